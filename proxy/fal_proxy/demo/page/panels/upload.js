export function uploadPanel() {}

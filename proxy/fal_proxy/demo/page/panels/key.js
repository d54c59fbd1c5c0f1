export function keyPanel() {}

export function limitsPanel() {}

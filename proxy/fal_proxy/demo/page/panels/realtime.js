export function realtimePanel() {}

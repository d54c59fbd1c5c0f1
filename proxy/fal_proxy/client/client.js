// Realtime through fal-proxy: sockets that are opened to wss://fal.run go to the proxy that served this module. And the
// ends of jobs, from its /events. Types: client.d.ts beside it. However often it is imported, WebSocket is wrapped once, and the last import says where to.
const FAL = "wss://fal.run/";
const shared = (globalThis[Symbol.for("fal-proxy")] ??= {});
let mount;

export function configure({ proxyUrl = mount, relay = proxyUrl }) {
  mount = proxyUrl;
  shared.relay = relay && new URL(relay).href.replace(/^http/, "ws").replace(/\/*$/, "/fal.run/");
}

export async function tokenProvider(app, init) {
  const headers = new Headers(init?.headers);
  headers.set("content-type", "application/json");
  headers.set("x-fal-target-url", "https://rest.fal.ai/tokens/realtime");
  const body = JSON.stringify({ allowed_apps: [app], duration: 120 });
  const response = await fetch(mount, { ...init, method: "POST", headers, body });
  const answer = await response.json().catch(() => null);
  const token = answer?.token ?? answer;
  if (response.ok && typeof token === "string") return token;
  throw new Error(answer?.message ?? `no token from ${mount}: HTTP ${response.status}`);
}

const waiting = new Map(); // by request id: who is to be called
let stream; // while anybody waits

export function onResult(requestId, callback, init) {
  const callbacks = waiting.get(requestId) ?? new Set();
  waiting.set(requestId, callbacks.add(callback));
  stream ??= follow(init);
  tell(stream.seen.get(requestId));
  return () => {
    callbacks.delete(callback);
    tell();
  };
}

function tell(result) {
  const told = waiting.get(result?.request_id) ?? [];
  for (const callback of told) queueMicrotask(() => told.delete(callback) && callback(result));
  for (const [id, callbacks] of waiting) if (callbacks === told || !callbacks.size) waiting.delete(id);
  if (!waiting.size) stream = stream?.end();
}

function follow(init) {
  const seen = new Map(); // what ended before anybody asked
  let connection, ended, last, pause, timer;
  const later = (seconds, call) => {
    clearTimeout(timer);
    timer = setTimeout(call, seconds * 1000);
  };
  const read = async () => {
    connection = new AbortController();
    const alive = () => later(45, () => connection.abort()); // it says something every 15 s
    alive();
    const headers = new Headers(init?.headers);
    if (last) headers.set("last-event-id", last);
    const asked = { credentials: "include", ...init, headers, signal: connection.signal };
    const response = await fetch(`${mount}`.replace(/\/*$/, "/events"), asked);
    if (!response.ok) throw new Error((await response.json().catch(() => null))?.message ?? `HTTP ${response.status}`);
    pause = 1;
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    for (let text = "", part; !(part = await reader.read()).done; ) {
      alive();
      const blocks = (text + part.value).split("\n\n");
      text = blocks.pop();
      for (const block of blocks) {
        const [, id, data] = /^id: (\d+)\nevent: result\ndata: ([^]*)$/.exec(block) ?? [];
        if (!id) continue;
        last = id;
        const result = JSON.parse(data);
        seen.set(result.request_id, result);
        if (seen.size > 100) seen.delete(seen.keys().next().value);
        tell(result);
      }
    }
  };
  const connect = async () => {
    await read().catch((error) => ended || console.warn(`no events from ${mount}: ${error.message}`));
    if (!ended) later((pause = Math.min((pause ?? 1) * 2, 60)), connect);
  };
  connect();
  return {
    seen,
    end() {
      ended = true;
      clearTimeout(timer);
      connection.abort();
    },
  };
}

// A copy from elsewhere (a bundle, a file) must be told.
if (/^http/.test(import.meta.url)) configure({ proxyUrl: new URL(".", import.meta.url).href });

if (globalThis.WebSocket && globalThis.WebSocket !== shared.WebSocket) {
  globalThis.WebSocket = shared.WebSocket = new Proxy(globalThis.WebSocket, {
    construct(target, args, newTarget) {
      try {
        // As parsed: the host that would be dialled, and the path as it would be sent.
        const { href } = new URL(args[0]);
        if (shared.relay && href.startsWith(FAL)) args[0] = shared.relay + href.slice(FAL.length);
      } catch {} // relative, or no URL at all: not ours to judge
      return Reflect.construct(target, args, newTarget);
    },
  });
}

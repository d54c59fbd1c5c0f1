// Realtime through fal-proxy: sockets that are opened to wss://fal.run go to the proxy that served this module.
// Types: client.d.ts beside it. However often it is imported, WebSocket is wrapped once, and the last import says where to.
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

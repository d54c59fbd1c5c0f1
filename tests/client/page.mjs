// What the clients see of a browser, in Node: `window` and `document` (before 1.10 `proxyUrl` counts only there), and a
// `fetch` with a page's address, its one cookie and the fields that a browser sets. What was fetched is in `fetched`.
// A `WebSocket` to fal leads to the proxy's path form, as the proxy's shim leads it.
// Waiting is shortened, so that the clients' back-off costs milliseconds. The clients themselves are untouched.
import WebSocket from "ws";

export const fetched = [];
let page; // {origin, cookie, elsewhere: {address: where it really is}}

export function open({ origin, elsewhere = {} }) {
  page = { origin, cookie: null, elsewhere };
  fetched.length = 0;
}

const overTheNetwork = globalThis.fetch;
const wait = globalThis.setTimeout;
const FASTER = 50;

function standIn(address) {
  const known = Object.keys(page.elsewhere).find((prefix) => address.startsWith(prefix));
  return known ? page.elsewhere[known] + address.slice(known.length) : address;
}

globalThis.window = globalThis;
globalThis.document = {};
globalThis.setTimeout = (action, milliseconds, ...rest) => wait(action, milliseconds / FASTER, ...rest);
globalThis.fetch = async (address, options = {}) => {
  const url = new URL(address, page.origin);
  const headers = new Headers(options.headers);
  const ours = url.origin === page.origin;
  const method = (options.method ?? "GET").toUpperCase();
  headers.set("sec-fetch-site", ours ? "same-origin" : "cross-site");
  if (!ours || method !== "GET") headers.set("origin", page.origin);
  if (ours && page.cookie) headers.set("cookie", page.cookie);
  const response = await overTheNetwork(standIn(url.href), { ...options, headers });
  for (const cookie of ours ? response.headers.getSetCookie() : []) page.cookie = cookie.split(";")[0];
  fetched.push({
    method,
    ours,
    path: url.pathname,
    target: headers.get("x-fal-target-url"),
    authorization: headers.get("authorization"),
    status: response.status,
  });
  return response;
};
globalThis.WebSocket = class extends WebSocket {
  constructor(address) {
    const { host, pathname, search } = new URL(address);
    super(`${page.origin.replace("http", "ws")}/api/fal/proxy/${host}${pathname}${search}`, { origin: page.origin });
    this.binaryType = "blob"; // as in browsers
  }
};

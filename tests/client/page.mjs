// What the clients see of a browser, in Node: `window` and `document` (before 1.10 `proxyUrl` counts only there), and a
// `fetch` with a page's address, its one cookie, the fields that a browser sets and CORS as a browser insists on it. What was
// fetched is in `fetched`.
// A `WebSocket` to fal leads to the proxy's path form, as the proxy's shim leads it.
// Waiting is shortened, so that the clients' back-off costs milliseconds. The clients themselves are untouched.
import { webcrypto } from "node:crypto";
import WebSocket from "ws";

export const fetched = [];
let page; // {origin, cookie, elsewhere: {address: where it really is}}

/** Open a page of an origin, or, with `browser` false, leave the browser: then Node is as it always is. */
export function open({ origin, browser = true, elsewhere = {} }) {
  page = { origin, browser, cookie: null, elsewhere };
  fetched.length = 0;
  globalThis.window = browser ? globalThis : undefined;
  globalThis.document = browser ? {} : undefined;
}

const overTheNetwork = globalThis.fetch;
export const wait = globalThis.setTimeout;
const FASTER = 50;

function standIn(address) {
  const known = Object.keys(page.elsewhere).find((prefix) => address.startsWith(prefix));
  return known ? page.elsewhere[known] + address.slice(known.length) : address;
}

globalThis.crypto ??= webcrypto; // Node 18 has none
// CORS: what may be sent without asking, and read without being told.
const SIMPLE = /^(accept|accept-language|content-language|origin|sec-fetch-site)$/;
const READABLE = /^(cache-control|content-language|content-length|content-type|expires|last-modified|pragma)$/;
const listed = (headers, name) => (headers.get(name) ?? "").split(",").map((item) => item.trim().toLowerCase());

function judged(response) {
  if (![page.origin, "*"].includes(response.headers.get("access-control-allow-origin"))) throw new TypeError("Failed to fetch");
  return response;
}

/** Ask first, as a browser does before anything that a form could not send. */
async function preflight(url, method, headers) {
  const asked = [...headers.keys()].filter((name) => !SIMPLE.test(name));
  if (!asked.length && ["GET", "POST"].includes(method)) return;
  const fields = {
    origin: page.origin,
    "access-control-request-method": method,
    "access-control-request-headers": asked.join(","),
  };
  const { ok, headers: answer } = judged(await overTheNetwork(standIn(url), { method: "OPTIONS", headers: fields }));
  const methods = listed(answer, "access-control-allow-methods");
  const names = listed(answer, "access-control-allow-headers");
  const allowed = ["get", "post"].concat(methods).some((each) => [method.toLowerCase(), "*"].includes(each));
  if (!ok || !allowed || !(names.includes("*") || asked.every((name) => names.includes(name))))
    throw new TypeError("Failed to fetch");
}

/** Hide from the page what a browser hides. */
function readable(response) {
  judged(response);
  const exposed = listed(response.headers, "access-control-expose-headers");
  const headers = [...response.headers].filter(([name]) => READABLE.test(name) || exposed.includes(name));
  return new Response(response.body, { status: response.status, statusText: response.statusText, headers });
}

globalThis.setTimeout = (action, milliseconds, ...rest) => wait(action, milliseconds / FASTER, ...rest);
globalThis.fetch = async (address, options = {}) => {
  const url = page.browser ? new URL(address, page.origin) : new URL(address);
  const headers = new Headers(options.headers);
  const ours = url.origin === page.origin;
  const method = (options.method ?? "GET").toUpperCase();
  if (page.browser) {
    headers.set("sec-fetch-site", ours ? "same-origin" : "cross-site");
    if (!ours || method !== "GET") headers.set("origin", page.origin);
    if (ours && page.cookie) headers.set("cookie", page.cookie);
  }
  if (page.browser && !ours) await preflight(url.href, method, headers);
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
  return page.browser && !ours ? readable(response) : response;
};
globalThis.WebSocket = class extends WebSocket {
  constructor(address) {
    const { host, pathname, search } = new URL(address);
    super(`${page.origin.replace("http", "ws")}/api/fal/proxy/${host}${pathname}${search}`, { origin: page.origin });
    this.binaryType = "blob"; // as in browsers
  }
};

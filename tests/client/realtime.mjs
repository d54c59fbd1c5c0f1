// fal.realtime: the client writes wss://fal.run itself, so the global WebSocket leads that address to where the test listens.
import { createHash, webcrypto } from "node:crypto";
import WebSocket from "ws";
import { fal, params } from "./client.mjs";

globalThis.crypto ??= webcrypto; // Node 18 has none
const sockets = []; // {url, close, received} of each, in order
const tokens = []; // what was asked for by `tokenProvider`, and when

globalThis.WebSocket = class extends WebSocket {
  constructor(url) {
    const { host, pathname, search } = new URL(url);
    super(`${params.sockets}/${host}${pathname}${search}`);
    this.binaryType = "blob"; // as in browsers
    const seen = { url, close: null, received: 0 };
    sockets.push(seen);
    this.addEventListener("message", () => (seen.received += 1));
    this.addEventListener("close", ({ code, reason }) => (seen.close = { code, reason }));
  }
};

const { setTimeout: later } = globalThis;
if (params.hasten) {
  // The default token is fetched again after 108 s, and nobody waits for that here.
  globalThis.setTimeout = (act, ms, ...rest) => later(act, ms >= 10_000 ? ms / params.hasten : ms, ...rest);
}

const refreshed = { count: 0 }; // answers to the client's own token requests

if (params.direct) {
  // No proxy: every host of fal's is a first path segment.
  const requestMiddleware = async (request) => ({ ...request, url: request.url.replace(/^https:\//, params.direct) });
  fal.config({ credentials: params.credentials, requestMiddleware });
} else {
  const counted = async (url, init) => {
    const response = await fetch(url, init);
    refreshed.count += 1;
    return response;
  };
  const credentials = params.credentials ? { credentials: params.credentials } : {};
  fal.config({ proxyUrl: { url: params.url, when: "always" }, ...credentials, fetch: counted });
}

/** Wait until `seen()` is true, looking again and again. */
async function until(seen, what) {
  const deadline = performance.now() + 20_000;
  while (!seen()) {
    if (performance.now() > deadline) throw new Error(`waited for ${what}: ${JSON.stringify(sockets)}`);
    await new Promise((resolve) => later(resolve, 5));
  }
}

/** The provider of the documentation, with our proxy in the place of a backend of the app's own. */
async function tokenProvider(app) {
  const response = await fetch(params.url, {
    method: "POST",
    headers: {
      "content-type": "application/json",
      "x-fal-target-url": "https://rest.fal.ai/tokens/realtime",
      ...(params.credentials ? { authorization: `Key ${params.credentials}` } : {}),
    },
    body: JSON.stringify({ allowed_apps: [app], duration: 120 }),
  });
  const body = await response.json();
  tokens.push({ app, status: response.status, error: body.error_type ?? null });
  if (!response.ok) throw new Error(body.message);
  return body.token;
}

function connect({ endpoint, options = {} }) {
  const results = [];
  const errors = [];
  const connection = fal.realtime.connect(endpoint, {
    throttleInterval: 0,
    ...(params.provider ? { tokenProvider } : {}),
    ...options,
    onResult: (result) => results.push(result),
    onError: ({ name, message, status, body }) => errors.push({ name, message, status, body: body ?? null }),
  });
  return { connection, results, errors };
}

/** Send inputs, each when the result of the one before is there, and close. */
export async function converse({ endpoint, options, inputs }) {
  const { connection, results, errors } = connect({ endpoint, options });
  for (const [index, input] of inputs.entries()) {
    connection.send(input);
    await until(() => results.length > index || errors.length, `result ${index}`);
  }
  const before = [...errors];
  connection.close();
  await until(() => sockets.every(({ close }) => close), "the close");
  return { results, errors: before, onClose: errors.slice(before.length), sockets, tokens };
}

/** Send one input and report what comes until the socket has closed; then, if asked, send another. */
export async function untilClosed({ endpoint, options, input, again }) {
  const { connection, results, errors } = connect({ endpoint, options });
  connection.send(input);
  await until(() => sockets[0]?.close, "the first close");
  if (again) {
    await new Promise((resolve) => setTimeout(resolve, 20)); // the machine goes idle after the close handler
    connection.send(again);
    await until(() => sockets[1]?.received, "the second answer");
  }
  await new Promise((resolve) => setTimeout(resolve, 20)); // messages are decoded after their event
  return { results, errors, sockets, tokens };
}

/** Send a burst when the socket is open, and wait for the last one's result. */
export async function burst({ endpoint, options, count }) {
  const { connection, results, errors } = connect({ endpoint, options });
  connection.send({ n: "first" });
  await until(() => results.length || errors.length, "the first result");
  await new Promise((resolve) => later(resolve, 200)); // the throttle's interval is over
  for (let n = 0; n < count; n++) connection.send({ n });
  await until(() => errors.length || results.some(({ input }) => input.n === count - 1), "the last result");
  return { sent: results.map(({ input }) => input.n), errors };
}

/** Talk while tokens come and go, `turns` times, on a socket that stays; then close and talk on another one. */
export async function outlive({ endpoint, options, turns, again }) {
  const fetched = () => (params.provider ? tokens.length : refreshed.count);
  const { connection, results, errors } = connect({ endpoint, options });
  for (let turn = 1; turn <= turns; turn++) {
    connection.send({ turn });
    await until(() => results.length >= turn || errors.length, `result ${turn}`);
    await until(() => fetched() > turn, `token ${turn + 1}`);
  }
  const open = sockets.length;
  connection.close();
  await until(() => sockets[0].close, "the close");
  const before = errors.length;
  await new Promise((resolve) => later(resolve, 20));
  if (again) {
    connection.send(again);
    await until(() => results.length > turns, "the result on another socket");
  }
  return { results, errors: errors.slice(before + 1), open, sockets, fetched: fetched() };
}

/** Open connections that differ in their key, or share one, and talk on all of them at the same time. */
export async function several({ endpoint, keys }) {
  const made = keys.map((connectionKey) => ({
    connectionKey,
    ...connect({ endpoint, options: connectionKey ? { connectionKey } : {} }),
  }));
  for (const [index, { connection, results, errors }] of made.entries()) {
    connection.send({ index });
    await until(() => errors.length || made.some((each) => each.results.some(({ input }) => input.index === index)), index);
  }
  await new Promise((resolve) => later(resolve, 50));
  return { results: made.map(({ results }) => results.map(({ input }) => input)), errors: made.map(({ errors }) => errors), sockets };
}

/** Be refused a second socket, wait until there is room and its token is over, and ask again, by the same key and by another. */
export async function refusedOnce({ endpoint, seconds }) {
  const held = connect({ endpoint, options: { connectionKey: "held" } });
  held.connection.send({ by: "held" });
  await until(() => held.results.length, "the first socket");
  const refused = connect({ endpoint, options: { connectionKey: "refused" } });
  refused.connection.send({ by: "refused" });
  await until(() => refused.errors.length === 2, "the refusal");
  held.connection.close();
  await until(() => sockets[0].close, "the close");
  await new Promise((resolve) => later(resolve, seconds * 1000));
  refused.connection.send({ by: "refused" });
  await until(() => refused.errors.length === 4 || refused.results.length, "another refusal, or an answer");
  const other = connect({ endpoint, options: { connectionKey: "other" } });
  other.connection.send({ by: "other" });
  await until(() => other.results.length || other.errors.length, "another key");
  return { refused: refused.results.length, other: other.results.length, fetched: params.provider ? tokens.length : refreshed.count };
}

/** Send one input and wait until a token was refused; nothing tells the app. */
export async function untold({ endpoint, options }) {
  const { connection, results, errors } = connect({ endpoint, options });
  connection.send({ n: 1 });
  await until(() => tokens.length || refreshed.count, "a refused token");
  await new Promise((resolve) => later(resolve, 50));
  return { results, errors, sockets, tokens };
}

/** Send bytes of every value and return the digest of what comes back. */
export async function bytes({ endpoint }) {
  const { connection, results, errors } = connect({ endpoint });
  connection.send({ data: Uint8Array.from({ length: 100_000 }, (_, index) => index % 256) });
  await until(() => results.length || errors.length, "the bytes");
  const { data } = results[0].input;
  return { errors, sha256: createHash("sha256").update(data).digest("hex"), length: data.length };
}

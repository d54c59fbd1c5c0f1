// fal.realtime: the client writes wss://fal.run itself, so the global WebSocket leads that address to where the test listens.
import { createHash, webcrypto } from "node:crypto";
import WebSocket from "ws";
import { fal, params } from "./client.mjs";

globalThis.crypto ??= webcrypto; // Node 18 has none
const sockets = []; // {url, close, received} of each, in order

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

if (params.direct) {
  // No proxy: every host of fal's is a first path segment.
  const requestMiddleware = async (request) => ({ ...request, url: request.url.replace(/^https:\//, params.direct) });
  fal.config({ credentials: params.credentials, requestMiddleware });
}

/** Wait until `seen()` is true, looking again and again. */
async function until(seen, what) {
  const deadline = performance.now() + 20_000;
  while (!seen()) {
    if (performance.now() > deadline) throw new Error(`waited for ${what}: ${JSON.stringify(sockets)}`);
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
}

function connect({ endpoint, options = {} }) {
  const results = [];
  const errors = [];
  const connection = fal.realtime.connect(endpoint, {
    throttleInterval: 0,
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
  return { results, errors: before, onClose: errors.slice(before.length), sockets };
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
  return { results, errors, sockets };
}

/** Send bytes of every value and return the digest of what comes back. */
export async function bytes({ endpoint }) {
  const { connection, results, errors } = connect({ endpoint });
  connection.send({ data: Uint8Array.from({ length: 100_000 }, (_, index) => index % 256) });
  await until(() => results.length || errors.length, "the bytes");
  const { data } = results[0].input;
  return { errors, sha256: createHash("sha256").update(data).digest("hex"), length: data.length };
}

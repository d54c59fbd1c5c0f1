// The realtime shim, imported from the running proxy, on top of whatever WebSocket a scenario puts there first.
import { once } from "node:events";
import { createServer } from "node:http";
import { register } from "node:module";
import { Worker } from "node:worker_threads";
import * as ws from "ws";
import { fal, params } from "./client.mjs";

register("./http_imports.mjs", import.meta.url);

const shimOf = (url) => import(`${url}/client.js`);

/** A WebSocket that opens nothing and remembers what it was given. */
class Recorder extends EventTarget {
  constructor(...given) {
    super();
    this.given = given;
    this.newTarget = new.target;
  }
}

const given = {
  string: (text) => [text],
  object: (text) => [new URL(text)],
  stringable: (text) => [{ toString: () => text }],
  symbol: (text) => [Symbol(text)],
  nothing: () => [],
};

/** Say for each address what reached the WebSocket below: the new one, or null where it is the very same value. */
export async function addresses({ url, addresses }) {
  globalThis.WebSocket = Recorder;
  await shimOf(url);
  return addresses.map(([form, text]) => {
    const before = given[form](text);
    const after = new WebSocket(...before, "protocol", "more").given;
    if (after.at(-2) !== "protocol" || after.at(-1) !== "more") throw new Error("an argument was lost");
    return before.length + 2 === after.length && before[0] === (before.length ? after[0] : undefined) ? null : `${after[0]}`;
  });
}

const described = (value) => Object.getOwnPropertyDescriptor(value, "WebSocket");

/** Compare the wrapped global with the one that was there; all must be true. */
export async function likeness({ url }) {
  const native = globalThis.WebSocket;
  const before = described(globalThis);
  await shimOf(url);
  const after = described(globalThis);
  const socket = new WebSocket("ws://127.0.0.1:9/");
  socket.onerror = () => {};
  class Derived extends WebSocket {}
  const derived = new Derived("ws://127.0.0.1:9/");
  derived.onerror = () => {};
  const thrown = (call) => {
    try {
      return call();
    } catch (error) {
      return `${error.name}: ${error.message}`;
    }
  };
  return {
    "it is another object": WebSocket !== native,
    "same name": WebSocket.name === native.name && WebSocket.name === "WebSocket",
    "same length": WebSocket.length === native.length,
    "same prototype": WebSocket.prototype === native.prototype,
    "same static members": Reflect.ownKeys(WebSocket).join() === Reflect.ownKeys(native).join(),
    "same constants": ["CONNECTING", "OPEN", "CLOSING", "CLOSED"].every((name, index) => WebSocket[name] === index),
    "not enumerable, as before": after.enumerable === before.enumerable,
    "replaceable, as before": after.writable === true && after.configurable === true,
    "its sockets are native ones": socket instanceof native,
    "its sockets are its own": socket instanceof WebSocket,
    "nothing else is": !(new EventTarget() instanceof WebSocket),
    "a class of the page's may extend it": derived instanceof Derived && derived instanceof native,
    "it is no function to call": thrown(() => WebSocket("ws://a/")).startsWith("TypeError"),
    "without arguments it throws as before": thrown(() => new WebSocket()) === thrown(() => new native()),
    "a bad address throws as before": thrown(() => new WebSocket("a b://")) === thrown(() => new native("a b://")),
  };
}

/** Listen on loopback for sockets and remember their handshakes; echo what they say. */
async function relay() {
  const http = createServer().listen(0, "127.0.0.1");
  const server = new ws.WebSocketServer({ server: http, handleProtocols: (offered) => [...offered].at(-1) });
  const handshakes = [];
  server.on("connection", (socket, request) => {
    handshakes.push({ target: request.url, protocols: request.headers["sec-websocket-protocol"] ?? null });
    socket.on("message", (data, binary) => socket.send(data, { binary }));
  });
  await once(http, "listening");
  return { base: `127.0.0.1:${http.address().port}`, handshakes };
}

async function echoed(address, protocols) {
  const socket = new WebSocket(address, protocols);
  await new Promise((resolve, reject) => ((socket.onopen = resolve), (socket.onerror = reject)));
  socket.send("žluťoučký");
  const { data } = await new Promise((resolve) => (socket.onmessage = resolve));
  socket.close(1000);
  await new Promise((resolve) => (socket.onclose = resolve));
  return { data, protocol: socket.protocol };
}

/** Open sockets with the platform's own WebSocket and say what came over the wire. */
export async function wire({ url, addresses, protocols }) {
  const { configure } = await shimOf(url);
  const { base, handshakes } = await relay();
  configure({ relay: `http://${base}/some/mount/` });
  const echoes = [];
  for (const address of addresses) echoes.push(await echoed(address, protocols));
  echoes.push(await echoed(`ws://${base}/another/host`));
  return { echoes, handshakes };
}

/** Say where sockets go after each step. */
export async function configured({ url, other, steps }) {
  globalThis.WebSocket = Recorder;
  const { configure } = await shimOf(url);
  const wrapped = WebSocket;
  const seen = [];
  const look = () => seen.push(`${new WebSocket("wss://fal.run/a/b").given}`);
  look();
  for (const step of steps) {
    if (step === "imported again") await import(`${url}/client.js`);
    else if (step === "imported elsewhere") await import(`${other}/client.js`);
    else if (step === "native put back") globalThis.WebSocket = Recorder;
    else configure(step);
    look();
  }
  return { seen, once: WebSocket === wrapped };
}

/** Import where there is no WebSocket, as in an old runtime. */
export async function without({ url }) {
  delete globalThis.WebSocket;
  const exported = await shimOf(url);
  return { exported: Object.keys(exported).sort(), global: "WebSocket" in globalThis };
}

/** Import in this thread only: a worker is another world with a WebSocket of its own. */
export async function worker({ url }) {
  const native = globalThis.WebSocket;
  await shimOf(url);
  const source = `
    import { register } from "node:module";
    import { parentPort } from "node:worker_threads";
    register("${new URL("http_imports.mjs", import.meta.url)}");
    const native = globalThis.WebSocket;
    const before = String(Symbol.for("fal-proxy") in globalThis);
    await import("${url}/client.js");
    parentPort.postMessage({ before, wrapped: WebSocket !== native });`;
  const started = new Worker(new URL(`data:text/javascript,${encodeURIComponent(source)}`));
  const [message] = await once(started, "message");
  return { here: WebSocket !== native, there: message };
}

/** A mount of the test's own, which answers as told and remembers what it was asked. */
async function mounted(answer) {
  const asked = [];
  const server = createServer(async (request, response) => {
    const chunks = [];
    for await (const chunk of request) chunks.push(chunk);
    const { url, method, headers } = request;
    const said = { url, method, headers, body: JSON.parse(Buffer.concat(chunks)) };
    asked.push(said);
    const { status, body } = await answer(said);
    response.writeHead(status, { "content-type": "application/json" }).end(body);
  }).listen(0, "127.0.0.1");
  await once(server, "listening");
  return { asked, proxyUrl: `http://127.0.0.1:${server.address().port}/api/fal/proxy` };
}

const outcome = (promise) => promise.then((token) => ({ token }), (error) => ({ name: error.name, message: error.message }));

/** Ask for a token once per answer. */
export async function tokens({ url, app, init, answers }) {
  const { configure, tokenProvider } = await shimOf(url);
  const { asked, proxyUrl } = await mounted(() => answers[asked.length - 1]);
  configure({ proxyUrl });
  const outcomes = [];
  for (const _ of answers) outcomes.push(await outcome(tokenProvider(app, init)));
  return { outcomes: outcomes.map((seen) => ({ ...seen, message: seen.message?.replace(proxyUrl, "MOUNT") })), asked };
}

/** Ask the proxy itself, where the module came from. */
export async function tokenOfTheProxy({ url, app, init }) {
  const { tokenProvider } = await shimOf(url);
  return outcome(tokenProvider(app, init));
}

/** Collect results until there are enough, sending one input for each. */
function conversation(inputs) {
  const seen = { results: [], errors: [], warnings: [] };
  console.warn = (...said) => seen.warnings.push(said.join(" "));
  let finish;
  const finished = new Promise((resolve) => (finish = resolve));
  const onError = (error) => finish(seen.errors.push({ status: error.status, message: error.message }));
  const onResult = (result) => seen.results.push(result) === inputs.length && finish();
  return { seen, finished, onResult, onError };
}

/** Talk with the official client: the import is all that the page does, unless it takes the module's token provider. */
export async function client({ url, provider, init, endpoint, inputs, options }) {
  const { tokenProvider } = await shimOf(url);
  const { seen, finished, ...handlers } = conversation(inputs);
  const chosen = provider ? { tokenProvider: (app) => tokenProvider(app, init) } : {};
  const connection = fal.realtime.connect(endpoint, {
    throttleInterval: 0,
    ...chosen,
    ...options,
    onError: handlers.onError,
    onResult: (result) => {
      handlers.onResult(result);
      if (seen.results.length < inputs.length) connection.send(inputs[seen.results.length]);
    },
  });
  connection.send(inputs[0]);
  await finished;
  return seen;
}

/** Run what the README tells pages to write. */
export async function readme({ source, input }) {
  const { seen, finished, onResult, onError } = conversation([input]);
  Object.assign(globalThis, { fal, onResult, onError });
  const page = `${source}\nexport { connection };`;
  const { connection } = await import(`data:text/javascript,${encodeURIComponent(page)}`);
  connection.send(input);
  await finished;
  return seen;
}

// onResult of client.js: in a page before the running proxy, and before a server here that says what a scenario wants.
import { once } from "node:events";
import { createServer } from "node:http";
import { register } from "node:module";
import { fal, toldToGoOn } from "./client.mjs";
import { fetched, open, wait } from "./page.mjs";

register("./http_imports.mjs", import.meta.url);

const resultOf = (onResult, id, init) => new Promise((resolve) => onResult(id, resolve, init));

/** Submit in a page, wait for the end without a poll, and ask for it again in the page's next life. */
export async function inAPage({ url, origin, credentials, endpoint, options, init }) {
  open({ origin });
  fal.config({ proxyUrl: { url, when: "always" }, credentials, fetch: globalThis.fetch }); // the page's, not Node's
  await fetch(`${url}/me`); // the visit that brings the cookie
  const { onResult } = await import(`${url}/client.js`);
  const { request_id: id } = await fal.queue.submit(endpoint, options);
  const result = await resultOf(onResult, id, init);
  const again = await resultOf(onResult, id, init);
  const both = await Promise.all([resultOf(onResult, id, init), resultOf(onResult, id, init)]);
  return {
    id,
    result,
    same: [again, ...both].every((each) => JSON.stringify(each) === JSON.stringify(result)),
    asked: fetched.map(({ method, path, target }) => `${method} ${target ?? path}`),
  };
}

/** Begin to wait, let the test do something, and say what came. */
export async function afterwards({ url, origin, id, init }) {
  open({ origin });
  const { onResult } = await import(`${url}/client.js`);
  const result = resultOf(onResult, id, init);
  await toldToGoOn();
  return result;
}

const frame = (number, id, more = {}) =>
  `id: ${number}\nevent: result\ndata: ${JSON.stringify({ request_id: id, status: "OK", ...more })}\n\n`;

/** Serve /mount/events; each connection is led by the next of `scripts`, the last for ever. */
async function proxy(scripts) {
  const asked = [];
  const server = createServer(async (request, response) => {
    const { headers, url, method } = request;
    const connection = { method, url, last: headers["last-event-id"] ?? null, authorization: headers.authorization ?? null };
    connection.left = new Promise((resolve) => response.on("close", resolve));
    asked.push(connection);
    await scripts[Math.min(asked.length, scripts.length) - 1](response, connection);
  }).listen(0, "127.0.0.1");
  await once(server, "listening");
  return { mount: `http://127.0.0.1:${server.address().port}/mount`, asked };
}

const head = (response) => response.writeHead(200, { "content-type": "text/event-stream" }).write("retry: 2000\n\n");
const shown = (asked) => asked.map(({ left, ...rest }) => rest);

async function module({ url }, mount) {
  open({ browser: false });
  const { configure, onResult } = await import(`${url}/client.js`);
  configure({ proxyUrl: mount });
  return onResult;
}

/** A stream that is cut in awkward places, ends, and goes on where it was. */
export async function awkward(params) {
  const text = "lines \u2028 and \u2029, \u0085, 🐎, id: 9\n\ndata: x";
  const { mount, asked } = await proxy([
    async (response) => {
      head(response);
      for (const byte of Buffer.from(`:\n\n${frame(7, "a", { payload: text })}`)) {
        response.write(Buffer.of(byte));
        await new Promise((resolve) => wait(resolve, 1));
      }
      response.end(`id: 8\nevent: result\ndata: {"request_id": "b", "cut": `);
    },
    (response) => response.destroy(),
    (response) => response.writeHead(503).end("<html>"),
    (response) => {
      head(response);
      response.write(frame(8, "b") + frame(9, "c") + frame(10, "d"));
    },
  ]);
  const warnings = [];
  console.warn = (...said) => warnings.push(said.join(" ").replace(mount, "MOUNT"));
  const onResult = await module(params, `${mount}/`);
  const results = await Promise.all(["a", "b", "d"].map((id) => resultOf(onResult, id)));
  await asked.at(-1).left;
  return { asked: shown(asked), text: results[0].payload === text, ids: results.map((each) => each.request_id), warnings };
}

/** One stream for all; who stops is not called, and with the last the stream ends. */
export async function shared(params) {
  let say;
  const { mount, asked } = await proxy([(response) => (head(response), (say = (text) => response.write(text)))]);
  const onResult = await module(params, mount);
  const called = [];
  const note = (name) => (result) => called.push(`${name}:${result.request_id}`);
  const headers = { authorization: "Bearer ada" };
  const stops = [];
  stops.push(onResult("a", note("first"), { headers }), onResult("a", note("second")), onResult("b", note("third")));
  stops.push(onResult("never", note("fourth")));
  while (!say) await new Promise((resolve) => wait(resolve, 5));
  stops[1]();
  say(frame(1, "z") + frame(2, "a") + frame(3, "a"));
  while (!called.length) await new Promise((resolve) => wait(resolve, 5));
  onResult("z", note("late")); // it ended before anybody asked
  await new Promise((resolve) => wait(resolve, 5));
  onResult("z", note("stopped"))();
  onResult("b", () => {
    throw new Error("a callback's own fault");
  });
  const faults = [];
  process.on("uncaughtException", (error) => faults.push(error.message));
  say(frame(4, "b"));
  while (called.length < 3) await new Promise((resolve) => wait(resolve, 5));
  const open = await Promise.race([asked[0].left.then(() => false), new Promise((resolve) => wait(() => resolve(true), 20))]);
  stops[3]();
  stops[3]();
  await asked[0].left;
  return { asked: shown(asked), called, open, faults };
}

/** Whoever is silent for too long is asked again. */
export async function silent(params) {
  console.warn = () => {};
  const { mount, asked } = await proxy([head, (response) => (head(response), response.write(frame(1, "a")))]);
  const onResult = await module(params, mount);
  await resultOf(onResult, "a");
  await asked[0].left;
  return shown(asked).length;
}

/** Run what the README tells pages to write. */
export async function readme({ url, origin, source }) {
  open({ origin });
  fal.config({ proxyUrl: { url, when: "always" }, fetch: globalThis.fetch });
  await fetch(`${url}/me`);
  const shown = new Promise((show) => Object.assign(globalThis, { fal, show }));
  const { stop } = await import(`data:text/javascript,${encodeURIComponent(`${source}\nexport { stop };`)}`);
  const images = await shown;
  stop();
  return images;
}

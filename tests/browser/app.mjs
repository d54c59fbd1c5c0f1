// An app's page: the official client as pages load it, and what the README tells pages to write.
import { signIn } from "./hostile.mjs";

/** Use the client in a page, in each of `ways`. Runs in the page: what it needs is in its parameters. */
async function used({ bundle, proxyUrl, shim, userKey, include, ways, relay, picture }) {
  const { fal } = await import(bundle);
  const authorization = userKey ? { authorization: `Key ${userKey}` } : {};
  const own = include ? { credentials: "include" } : {};
  fal.config({
    proxyUrl,
    ...(userKey ? { credentials: userKey } : {}),
    ...(include ? { fetch: (url, init) => fetch(url, { ...init, ...own }) } : {}),
  });
  const input = { prompt: "a pier" };
  const statuses = [];
  const subscribed = async (mode) => {
    const onQueueUpdate = ({ status }) => statuses.push(status);
    const { data } = await fal.subscribe("emulator/echo", { input, mode, pollInterval: 20, logs: true, onQueueUpdate });
    return data.input;
  };
  const acts = {
    me: async () => (await fetch(`${proxyUrl}/me`, { ...own, headers: authorization })).json(),
    run: async () => (await fal.run("emulator/echo", { input })).data.input,
    subscribe: () => subscribed("polling"),
    watch: () => subscribed("streaming"),
    stream: async () => {
      const events = await fal.stream("fal-ai/any-llm", { input });
      let count = 0;
      for await (const _ of events) count += 1;
      await events.done(); // the loop ends quietly, whatever went wrong
      return count;
    },
    upload: async () => {
      const url = await fal.storage.upload(new Blob(["a pier"], { type: "text/plain" }));
      return new URL(url).pathname.includes("/files/");
    },
    realtime: async () => {
      const { configure, tokenProvider } = await import(shim);
      if (relay) configure({ relay });
      const token = (app) => tokenProvider(app, { ...own, headers: authorization });
      const { images } = await new Promise((resolve, reject) => {
        // The client says nothing of a token that it did not get.
        const asking = (app) => token(app).catch((error) => (reject(error), Promise.reject(error)));
        const handlers = { tokenProvider: asking, onResult: resolve, onError: reject, throttleInterval: 0 };
        const connection = fal.realtime.connect("fal-ai/lcm-sd15-i2i", handlers);
        connection.send({ ...input, image_url: picture, sync_mode: true });
      });
      return images.length;
    },
    ticket: async () => {
      const { tokenProvider } = await import(shim);
      return tokenProvider("fal-ai/lcm-sd15-i2i", { ...own, headers: authorization });
    },
  };
  const seen = {};
  for (const way of ways) {
    seen[way] = await acts[way]().catch(({ name, message, status }) => ({ error: name, message, status }));
  }
  return { seen, statuses, led: Symbol.for("fal-proxy") in globalThis };
}

// A red dot of 1 x 1.
const picture = "data:image/gif;base64,R0lGODlhAQABAPAAAP8AAP///yH5BAAAAAAALAAAAAABAAEAAAICRAEAOw==";

/** Open the page `at`, sign in if there is a `session`, and use the client there. */
export async function use({ page, params: { at, mount, session, ...given } }) {
  if (session) await signIn(page, mount ?? given.proxyUrl, session);
  await page.goto(at);
  return page.evaluate(used, { picture, ...given });
}

/** Say whether a page got the shim that its own tag asks for. */
export async function tagged({ page, params: { at } }) {
  await page.goto(at, { waitUntil: "load" });
  return page.evaluate(() => Symbol.for("fal-proxy") in globalThis);
}

/** Try a ticket that another page was given. */
export async function steal({ page, params: { at, address } }) {
  await page.goto(at);
  return page.evaluate(
    (address) =>
      new Promise((resolve) => {
        const socket = new WebSocket(address);
        socket.onopen = () => resolve("open");
        socket.onerror = () => resolve("refused");
      }),
    address,
  );
}

// Every scenario of one client in one process: `node ages.mjs <package>`. A line of JSON on stdin names the scenario and its
// parameters, a line on stdout says what the client returned or threw, and what it fetched. The client is set up by a line of
// the README.
import { File } from "node:buffer";
import { createInterface } from "node:readline";
import { fetched, open, wait } from "./page.mjs";

const client = await import(process.argv[2]);
const fal = client.fal ?? client; // @fal-ai/serverless-client is its own singleton

const scenarios = {
  run: ({ endpoint, input }) => fal.run(endpoint, { input }),

  async subscribe({ endpoint, input, options }) {
    const updates = [];
    let enqueued = null;
    const result = await fal.subscribe(endpoint, {
      input,
      ...options,
      onEnqueue: (requestId) => (enqueued = requestId),
      onQueueUpdate: ({ status, logs }) => updates.push({ status, logs: logs?.map((log) => log.message) }),
    });
    return { result, updates, enqueued };
  },

  async queue({ endpoint, input }) {
    const { request_id: requestId } = await fal.queue.submit(endpoint, { input });
    const first = await fal.queue.status(endpoint, { requestId });
    const last = await fal.queue.subscribeToStatus(endpoint, { requestId, logs: true });
    return { requestId, first, last, result: await fal.queue.result(endpoint, { requestId }) };
  },

  async cancel({ endpoint, input }) {
    const { request_id: requestId } = await fal.queue.submit(endpoint, { input });
    await fal.queue.cancel(endpoint, { requestId });
    const status = await fal.queue.status(endpoint, { requestId });
    return { requestId, status, result: await failure(fal.queue.result(endpoint, { requestId })) };
  },

  async stream({ endpoint, input }) {
    const events = [];
    const stream = await fal.stream(endpoint, { input });
    stream.on("data", (event) => events.push(event));
    return { events, last: await stream.done() };
  },

  async upload({ name, type, bytes, size }) {
    const url = await fal.storage.upload(new File([bytes ?? new Uint8Array(size).fill(7)], name, { type }));
    const response = await fetch(url);
    const back = Buffer.from(await response.arrayBuffer());
    return { url, type: response.headers.get("content-type"), length: back.length, bytes: bytes && back.toString() };
  },

  /** Submit a file as a field of the input: the client uploads it first. */
  inInput: ({ endpoint, name, type, bytes }) => fal.run(endpoint, { input: { file: new File([bytes], name, { type }) } }),

  async realtime({ endpoint, input }) {
    return new Promise((resolve, reject) => {
      const connection = fal.realtime.connect(endpoint, {
        throttleInterval: 0,
        onResult: (result) => (connection.close(), resolve(result)),
        onError: reject,
      });
      connection.send(input);
    });
  },

  async refused({ endpoint, input }) {
    const ways = {
      run: () => fal.run(endpoint, { input }),
      subscribe: () => fal.subscribe(endpoint, { input }),
      stream: async () => (await fal.stream(endpoint, { input })).done(),
    };
    const seen = {};
    for (const [way, call] of Object.entries(ways)) {
      const before = fetched.length;
      seen[way] = { error: await failure(call()), attempts: fetched.length - before };
    }
    return seen;
  },
};

async function failure(promise) {
  try {
    await promise;
  } catch ({ name, message, status, body, fieldErrors }) {
    return { name, message, status, body, fields: fieldErrors?.map(({ loc }) => loc.at(-1)) };
  }
  throw new Error("no error where one was expected");
}

const PATIENCE_MILLISECONDS = 15_000;

/** Reject when a client says nothing at all, as older ones do when they are refused a token. */
function late() {
  return new Promise((_, reject) => wait(() => reject(new Error("nothing happened")), PATIENCE_MILLISECONDS).unref());
}

for await (const line of createInterface({ input: process.stdin })) {
  const { scenario, page, setUp, userKey, ...params } = JSON.parse(line);
  open(page);
  new Function("fal", "userKey", setUp)(fal, userKey);
  let said;
  try {
    said = { returned: await Promise.race([scenarios[scenario](params), late()]) };
  } catch (error) {
    said = { thrown: error?.stack ?? String(error), body: error?.body };
  }
  process.stdout.write(JSON.stringify({ ...said, fetched }) + "\n");
}

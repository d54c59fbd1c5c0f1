// Abort signals. `elapsed` is the time from the abort to its effect, in milliseconds.
import { collect, failure, fal, toldToGoOn } from "./client.mjs";

async function since(controller, promise) {
  const started = performance.now();
  controller.abort();
  const seen = await promise;
  const elapsed = performance.now() - started;
  await toldToGoOn(); // the end of this process would close every connection by itself
  return { ...seen, elapsed };
}

export async function run({ endpoint, input }) {
  const controller = new AbortController();
  const failed = failure(fal.run(endpoint, { input, abortSignal: controller.signal }));
  await toldToGoOn(); // when the request has reached fal
  return since(controller, failed);
}

export async function polling({ endpoint, input }) {
  const controller = new AbortController();
  let polled;
  const running = new Promise((resolve) => (polled = resolve));
  const failed = failure(
    fal.subscribe(endpoint, {
      input,
      abortSignal: controller.signal,
      pollInterval: 30,
      onQueueUpdate: (update) => update.status === "IN_PROGRESS" && polled(),
    }),
  );
  await running;
  return since(controller, failed);
}

export async function stream({ endpoint, input }) {
  const controller = new AbortController();
  const stream = await fal.stream(endpoint, { input, signal: controller.signal });
  const collected = collect(stream);
  await new Promise((resolve) => stream.on("data", resolve));
  return since(controller, collected);
}

export async function ownAbort({ endpoint, input }) {
  const stream = await fal.stream(endpoint, { input });
  const collected = collect(stream);
  await new Promise((resolve) => stream.on("data", resolve));
  return since(stream, collected);
}

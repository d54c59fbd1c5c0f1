// fal.subscribe: submit, follow, fetch.
import { failure, fal } from "./client.mjs";

export async function subscribe({ endpoint, options }) {
  const updates = [];
  let enqueued = null;
  const result = await fal.subscribe(endpoint, {
    pollInterval: 40,
    ...options,
    onEnqueue: (requestId) => (enqueued = requestId),
    onQueueUpdate: (update) =>
      updates.push({
        status: update.status,
        position: update.queue_position,
        logs: update.logs?.map((log) => log.message),
      }),
  });
  return { ...result, updates, enqueued };
}

export async function picture({ endpoint, options }) {
  const { data, ...rest } = await subscribe({ endpoint, options });
  const response = await fetch(data.images[0].url);
  const bytes = Buffer.from(await response.arrayBuffer());
  return { data, ...rest, magic: bytes.subarray(0, 8).toString("hex"), size: bytes.length };
}

export async function fails({ endpoint, options }) {
  return failure(fal.subscribe(endpoint, { pollInterval: 40, ...options }));
}

export async function crowd({ prompts }) {
  const one = (prompt) => fal.subscribe("emulator/echo", { input: { prompt }, pollInterval: 40 });
  const results = await Promise.all(prompts.map(one));
  return results.map(({ data }) => data.input.prompt);
}

// fal.stream: server-sent events.
import { collect, failure, fal } from "./client.mjs";

export async function stream({ endpoint, input }) {
  return collect(await fal.stream(endpoint, { input }));
}

export async function iterate({ endpoint, input }) {
  const stream = await fal.stream(endpoint, { input });
  const events = [];
  for await (const event of stream) events.push(event);
  return { events, last: await stream.done() };
}

export async function fails({ endpoint, input }) {
  const stream = await fal.stream(endpoint, { input });
  return failure(stream.done());
}

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

/** With connectionMode "client": the token comes through the proxy, and everything else goes straight to fal. */
export async function direct({ endpoint, input, requestId, straight, url, credentials }) {
  const went = [];
  const led = (address, init) => {
    const { host, pathname, search } = new URL(address);
    if (!/(^|\.)fal\.run$/.test(host)) return fetch(address, init);
    went.push(`${host}${pathname}`);
    return fetch(`${straight}/${host}${pathname}${search}`, init);
  };
  fal.config({ proxyUrl: { url, when: "always" }, ...(credentials ? { credentials } : {}), fetch: led });
  const stream = requestId
    ? await fal.queue.streamStatus(endpoint, { requestId, connectionMode: "client" })
    : await fal.stream(endpoint, { input, connectionMode: "client" });
  try {
    return { last: await stream.done(), went };
  } catch (error) {
    return { error: { name: error.name, status: error.status, body: error.body }, went };
  }
}

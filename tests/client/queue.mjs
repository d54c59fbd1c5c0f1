// fal.queue, one operation at a time.
import { collect, failure, fal } from "./client.mjs";

export async function submit({ endpoint, options }) {
  return fal.queue.submit(endpoint, options);
}

export async function submitFails({ endpoint, options }) {
  return failure(fal.queue.submit(endpoint, options));
}

export async function oneByOne({ endpoint, input }) {
  const submitted = await fal.queue.submit(endpoint, { input });
  const requestId = submitted.request_id;
  const first = await fal.queue.status(endpoint, { requestId });
  const stream = await fal.queue.streamStatus(endpoint, { requestId, logs: true });
  const { events, last } = await collect(stream);
  const completed = await fal.queue.status(endpoint, { requestId, logs: true });
  const results = [
    await fal.queue.result(endpoint, { requestId }),
    await fal.queue.result(endpoint, { requestId }),
  ];
  return { submitted, first, events, last, completed, results };
}

export async function tooEarly({ endpoint, input }) {
  const { request_id: requestId } = await fal.queue.submit(endpoint, { input });
  return failure(fal.queue.result(endpoint, { requestId }));
}

export async function cancelQueued({ endpoint, input }) {
  const { request_id: requestId } = await fal.queue.submit(endpoint, { input });
  const answer = await fal.queue.cancel(endpoint, { requestId });
  const status = await fal.queue.status(endpoint, { requestId });
  return { answered: answer === undefined, status, result: await failure(fal.queue.result(endpoint, { requestId })) };
}

export async function cancelRunning({ endpoint, input }) {
  const { request_id: requestId } = await fal.queue.submit(endpoint, { input });
  const before = await fal.queue.status(endpoint, { requestId });
  await fal.queue.cancel(endpoint, { requestId });
  const status = await fal.queue.subscribeToStatus(endpoint, { requestId, pollInterval: 10 });
  return { before, status, result: await failure(fal.queue.result(endpoint, { requestId })) };
}

export async function cancelCompleted({ endpoint, input }) {
  const { request_id: requestId } = await fal.queue.submit(endpoint, { input });
  await fal.queue.subscribeToStatus(endpoint, { requestId, pollInterval: 10 });
  const cancel = await failure(fal.queue.cancel(endpoint, { requestId }));
  return { cancel, result: await fal.queue.result(endpoint, { requestId }) };
}

export async function unknownRequest({ endpoint, requestId }) {
  return [
    await failure(fal.queue.status(endpoint, { requestId })),
    await failure(fal.queue.result(endpoint, { requestId })),
    await failure(fal.queue.cancel(endpoint, { requestId })),
  ];
}

/** Read one request under every spelling that fal documents; the client itself only ever uses the app's. */
export async function spellings({ url, credentials, endpoint, paths }) {
  const { request_id: requestId } = await fal.queue.submit(endpoint, { input: {} });
  await fal.queue.subscribeToStatus(endpoint, { requestId, pollInterval: 10 });
  const answers = [];
  for (const path of paths) {
    const target = `https://queue.fal.run/${path.replace("ID", requestId)}`;
    const headers = { "x-fal-target-url": target, ...(credentials && { authorization: `Key ${credentials}` }) };
    const response = await fetch(url, { headers });
    answers.push([response.status, (await response.json()).status ?? "result"]);
  }
  return answers;
}

import { fal } from "../fal-client.js"; // in your app: from "@fal-ai/client"

export async function generate(input, { onEnqueue, onQueueUpdate, abortSignal }) {
  const options = { input, logs: true, onEnqueue, onQueueUpdate, abortSignal };
  const { data } = await fal.subscribe("fal-ai/flux/dev", options);
  return data.images[0];
}

export const cancel = (requestId) => fal.queue.cancel("fal-ai/flux/dev", { requestId });

import { fal } from "../fal-client.js"; // in your app: from "@fal-ai/client"

export const upload = (file) => fal.storage.upload(file);

export async function repaint(image_url, prompt, { onQueueUpdate, abortSignal }) {
  const options = { input: { image_url, prompt }, logs: true, onQueueUpdate, abortSignal };
  const { data } = await fal.subscribe("fal-ai/flux/dev/image-to-image", options);
  return data.images[0];
}

import { fal } from "../fal-client.js"; // in your app: from "@fal-ai/client"

export const upload = (file) => fal.storage.upload(file);

export async function repaint(image_url, prompt, more) {
  const options = { input: { image_url, prompt }, logs: true, ...more };
  const { data } = await fal.subscribe("fal-ai/flux/dev/image-to-image", options);
  return data.images[0];
}

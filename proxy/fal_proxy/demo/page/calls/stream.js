import { fal } from "../fal-client.js"; // in your app: from "@fal-ai/client"

export async function stream(input, { onPicture, signal }) {
  const events = await fal.stream("fal-ai/flux/dev", { input, signal });
  events.on("data", (event) => onPicture(event.images[0]));
  await events.done(); // rejects when the line is cut
}

// One user at their limit, on every way into fal, and another who is not.
import { createFalClient } from "@fal-ai/client";
import { failure, fal } from "./client.mjs";

export async function over({ url, endpoint, input, admitted, other }) {
  for (let count = 0; count < admitted; count++) await fal.run(endpoint, { input });
  // All at once, because the client repeats a 429 three times before it gives up.
  const [run, subscribe, stream] = await Promise.all([
    failure(fal.run(endpoint, { input })),
    failure(fal.subscribe(endpoint, { input })),
    failure(fal.stream(endpoint, { input }).then((events) => events.done())),
  ]);
  const neighbour = createFalClient({ proxyUrl: { url, when: "always" }, credentials: other });
  const { data } = await neighbour.subscribe(endpoint, { input, pollInterval: 20 });
  return { refused: { run, subscribe, stream }, data };
}

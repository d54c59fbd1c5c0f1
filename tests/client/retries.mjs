// What the client repeats by itself, and what it must not repeat.
import { failure, fal } from "./client.mjs";

/** Call four apps at once, because the client's back-off takes a second each. */
export async function transient({ input }) {
  const options = { input, pollInterval: 20 };
  const [run, submit, status, result] = await Promise.all([
    fal.run("acme/run", { input }),
    fal.subscribe("acme/submit", options),
    fal.subscribe("acme/status", options),
    fal.subscribe("acme/result", options),
  ]);
  return Object.fromEntries(Object.entries({ run, submit, status, result }).map(([name, { data }]) => [name, data.input]));
}

export async function unknownOutcome({ input }) {
  return {
    run: await failure(fal.run("acme/run", { input })),
    submit: await failure(fal.queue.submit("acme/submit", { input })),
    subscribe: await failure(fal.subscribe("acme/subscribe", { input })),
  };
}

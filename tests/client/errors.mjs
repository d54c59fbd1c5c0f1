// Errors, as an app meets them on every way into fal.
import { failure, fal } from "./client.mjs";

const ways = {
  run: (endpoint, input) => fal.run(endpoint, { input }),
  subscribe: (endpoint, input) => fal.subscribe(endpoint, { input, pollInterval: 20 }),
  stream: async (endpoint, input) => (await fal.stream(endpoint, { input })).done(),
};

/** Return the errors of several inputs on one way, in their order. */
export async function each({ way, endpoint, inputs }) {
  return Promise.all(inputs.map((input) => failure(ways[way](endpoint, input))));
}

/** Return the error of one input on every way. */
export async function everywhere({ endpoint, input }) {
  const errors = {};
  for (const [way, call] of Object.entries(ways)) errors[way] = await failure(call(endpoint, input));
  return errors;
}

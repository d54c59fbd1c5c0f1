// fal.run: call and wait.
import { fal } from "./client.mjs";

export async function run({ endpoint, options }) {
  return fal.run(endpoint, options);
}

export async function runEach({ endpoints, input }) {
  const results = [];
  for (const endpoint of endpoints) results.push(await fal.run(endpoint, { input }));
  return results;
}

export async function large({ length }) {
  const prompt = "a long prompt, ".repeat(length / 15);
  const { data } = await fal.run("emulator/echo", { input: { prompt } });
  return { same: data.input.prompt === prompt, length: prompt.length };
}

// Run one scenario: `node harness.mjs <file> <scenario>`, parameters as JSON in SCENARIO. Prints one line of JSON.
import { params } from "./client.mjs";

const [file, scenario] = process.argv.slice(2);
try {
  const scenarios = await import(`./${file}`);
  const result = await scenarios[scenario](params);
  // Leaving at once, because keep-alive sockets and the open stdin would hold the process.
  process.stdout.write(JSON.stringify(result ?? null) + "\n", () => process.exit(0));
} catch (error) {
  process.stderr.write(`${error?.stack ?? error}\n${JSON.stringify(error?.body ?? null)}\n`, () => process.exit(1));
}

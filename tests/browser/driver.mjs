// One Chromium for a whole test run. Each line of stdin, {file, scenario, params, options, secrets}, plays a scenario in a
// browser context of its own and is answered with one line: {result | error, log}. Every name is this machine: nothing that
// a page asks for leaves it. `options` are those of Playwright's newContext.
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { chromium } from "playwright-core";
import { watch } from "./watch.mjs";

const SCENARIO_MILLISECONDS = 60_000;
const STEP_MILLISECONDS = 20_000;
// Screenshots are to be the same on every machine.
const OPTIONS = { locale: "en-GB", timezoneId: "UTC", viewport: { width: 1280, height: 800 }, colorScheme: "light" };

// A profile, only because it has a preference that no option of Playwright's sets: contexts of their own are incognito
// windows to Chromium, where other sites get no cookies. Most people's browsers send them, and attackers count on that.
const profile = join(process.env.HOME, "profile");
mkdirSync(join(profile, "Default"), { recursive: true });
writeFileSync(join(profile, "Default", "Preferences"), JSON.stringify({ profile: { cookie_controls_mode: 0 } }));
const browser = (
  await chromium.launchPersistentContext(profile, {
    executablePath: process.env.CHROMIUM,
    env: process.env,
    args: [
      "--host-resolver-rules=MAP * 127.0.0.1",
      "--font-render-hinting=none",
      "--force-color-profile=srgb",
      "--disable-gpu",
    ],
  })
).browser();

async function play({ file, scenario, params, options, secrets }) {
  const context = await browser.newContext({ ...OPTIONS, ...options });
  context.setDefaultTimeout(STEP_MILLISECONDS);
  const log = watch(context, secrets);
  let late;
  try {
    const scenarios = await import(`./${file}`);
    const tooLate = new Promise((_, reject) => {
      late = setTimeout(() => reject(new Error(`${scenario} did not end`)), SCENARIO_MILLISECONDS);
    });
    const given = { context, page: await context.newPage(), params };
    const result = await Promise.race([scenarios[scenario](given), tooLate]);
    return { result: result ?? null, log: await log.read() };
  } catch (error) {
    return { error: String(error?.stack ?? error), log: await log.read() };
  } finally {
    clearTimeout(late);
    await context.close();
  }
}

process.stdout.write(`${JSON.stringify({ version: browser.version() })}\n`);
for await (const line of createInterface({ input: process.stdin })) {
  process.stdout.write(`${JSON.stringify(await play(JSON.parse(line)))}\n`);
}
await browser.close();

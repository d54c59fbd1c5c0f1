// A victim signs in on the proxy's own origin; then a page makes their browser ask things.
import { asked_first, hostileTools, opened, sent } from "./attacks.mjs";

const ATTACKS = { ...sent, ...opened, ...asked_first };

/** Open a document of the proxy's own origin and become somebody there. Return who that is. */
export async function signIn(page, mount, session) {
  await page.goto(`${mount}/client.d.ts`);
  return page.evaluate(
    async ({ mount, session }) => {
      if (session) document.cookie = `session=${session}; Path=/; Secure; SameSite=None`;
      const me = async () => (await fetch(`${mount}/me`)).json();
      await me(); // a new browser gets its cookie with this answer
      return (await me()).id;
    },
    { mount, session },
  );
}

/** Wait until the proxy has answered each of these endpoints. */
async function arrived(site, names) {
  const deadline = Date.now() + 20_000;
  let missing = names;
  while (missing.length) {
    if (Date.now() > deadline) throw new Error(`never arrived at the proxy: ${missing}`);
    const there = await (await fetch(`http://127.0.0.1:${new URL(site).port}/arrived`)).json();
    missing = names.filter((name) => !there.includes(name));
  }
}

/** Let the page that is open make each of `attacks`. Return what each saw, and which ones must have arrived. */
async function attackFrom(page, { site, mount, attacks = Object.keys(ATTACKS) }) {
  const seen = {};
  const act = async (name) => {
    const url = `${mount}/fal.run/emulator/echo/${name}`;
    seen[name] = await page.evaluate(ATTACKS[name], { url, site, mount });
  };
  for (const name of attacks.filter((name) => name in opened)) await act(name);
  await Promise.all(attacks.filter((name) => !(name in opened)).map(act));
  const delivered = attacks.filter((name) => !(name in asked_first));
  await arrived(site, delivered);
  return { seen, delivered };
}

/** Sign in, open the page `at`, and attack from there. */
export async function attack({ page, context, params: { at, session, ...given } }) {
  await signIn(page, given.mount, session);
  await context.addInitScript(hostileTools);
  await page.goto(at);
  const outcome = await attackFrom(page, given);
  await page.goto(`${given.mount}/client.d.ts`);
  const me = await page.evaluate(async (mount) => (await fetch(`${mount}/me`)).json(), given.mount);
  return { me, ...outcome };
}

/** Attack from a page of a name that is about to mean the proxy. */
export async function rebind({ page, context, params }) {
  await context.addInitScript(hostileTools);
  await page.goto(new URL("/strangers", params.mount).href);
  return attackFrom(page, params);
}

/** Read `urls` from the page `at`, and post to them, in every way that shows what an answer says. */
export async function read({ page, context, params: { at, urls } }) {
  await context.addInitScript(hostileTools);
  await page.goto(at);
  const ways = ["fetch_get", "fetch_get_simple", "fetch_credentials", "fetch_simple", "form_text", "script", "frame"];
  const seen = {};
  for (const url of urls) {
    const each = ways.map(async (way) => [way, await page.evaluate(ATTACKS[way], { url })]);
    seen[url] = Object.fromEntries(await Promise.all(each));
  }
  return seen;
}

/** Return what each address answers to somebody who opens it. */
export async function statuses({ page, params: { urls } }) {
  const seen = [];
  for (const url of urls) seen.push((await page.goto(url)).status());
  return seen;
}

/** A victim has a job; a page that knows its addresses tries to read them, by each of `ways`. */
export async function snoop({ page, context, params: { at, mount, session, ways, paths } }) {
  await signIn(page, mount, session);
  const id = await page.evaluate(async (url) => {
    const response = await fetch(url, { method: "POST", body: '{"prompt": "a secret pier"}' });
    return (await response.json()).request_id;
  }, `${mount}/queue.fal.run/emulator/echo`);
  await context.addInitScript(hostileTools);
  await page.goto(at);
  const seen = {};
  for (const path of paths) {
    const url = `${mount}${path.replace("{id}", id)}`;
    const each = ways.map(async (way) => [way, await page.evaluate(ATTACKS[way], { url, mount })]);
    seen[path] = Object.fromEntries(await Promise.all(each));
  }
  return { id, seen };
}

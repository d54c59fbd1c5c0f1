// What people do with the page of `dev`. Each scenario begins with a page that has just been opened.
import { seriousFindings } from "./axe.mjs";

const FOCUSABLE = "a[href], button:not([disabled]), input, select, textarea, summary, [tabindex='0']";

export async function opened(page, url) {
  await page.goto(url);
  await page.waitForSelector("body[data-ready]");
}

export function state(page, panel, name, timeout = 20_000) {
  return page.waitForSelector(`#${panel} .stage[data-state="${name}"]`, { timeout });
}

export const text = async (page, selector) => (await page.textContent(selector)).trim();

const SHOWN = ".canvas > img, .result img, .labelled:last-child img";
/** Say how wide the panel's newest picture really is: 0 where there is none. */
export const wide = (page, panel) =>
  page.$$eval(`#${panel} :is(${SHOWN})`, (images) => images.at(-1)?.naturalWidth ?? 0);

/** Keep every state of a panel, and what was said of it, as it comes. */
async function record(page, panel) {
  await page.evaluate((id) => {
    const stage = document.querySelector(`#${id} .stage`);
    const seen = (globalThis.seen = []);
    const note = () => {
      const said = [stage.dataset.state, stage.querySelector(".say").textContent];
      if (said.join() !== seen.at(-1)?.join()) seen.push(said);
    };
    new MutationObserver(note).observe(stage, { subtree: true, childList: true, attributes: true, characterData: true });
  }, panel);
  return () => page.evaluate(() => globalThis.seen);
}

export async function generate({ page, params: { url } }) {
  await opened(page, url);
  const seen = await record(page, "generate");
  await page.fill("#generate [name=prompt]", "A fox in the snow");
  await page.fill("#generate [name=seed]", "11");
  await page.selectOption("#generate [name=image_size]", "square");
  await page.click("#generate [type=submit]");
  await page.waitForSelector("#generate .log:not([hidden])");
  await state(page, "generate", "done");
  const log = await text(page, "#generate .log");
  const elapsed = await text(page, "#generate .elapsed");
  const alt = await page.getAttribute("#generate .canvas img", "alt");
  return { seen: await seen(), log, elapsed, alt, width: await wide(page, "generate") };
}

export async function cancelled({ page, params: { url } }) {
  await opened(page, url);
  await page.click("#generate [type=submit]");
  await state(page, "generate", "running");
  await page.click("#generate [data-cancel]");
  await state(page, "generate", "idle");
  const said = await text(page, "#generate .say");
  await page.click("#generate [type=submit]");
  await state(page, "generate", "done");
  return { said, width: await wide(page, "generate") };
}

export async function stream({ page, params: { url } }) {
  await opened(page, url);
  await page.evaluate(() => {
    globalThis.pictures = [];
    new MutationObserver((changes) => {
      for (const { addedNodes } of changes) for (const node of addedNodes) globalThis.pictures.push(node.naturalWidth);
    }).observe(document.querySelector("#stream .canvas"), { childList: true });
  });
  await page.click("#stream [type=submit]");
  await state(page, "stream", "done");
  return page.evaluate(() => globalThis.pictures);
}

export async function realtime({ page, params: { url, mode } }) {
  await opened(page, url);
  await page.check(`#realtime [value=${mode}]`, { force: true });
  const pad = await page.locator("#realtime canvas").boundingBox();
  await page.locator("#realtime canvas").scrollIntoViewIfNeeded();
  const { x, y } = await page.locator("#realtime canvas").boundingBox();
  await page.mouse.move(x + 40, y + 60);
  await page.mouse.down();
  for (let step = 1; step <= 12; step += 1) await page.mouse.move(x + 40 + step * 20, y + 60 + step * 12);
  await page.mouse.up();
  await state(page, "realtime", "done");
  const first = await page.getAttribute("#realtime .result img", "src");
  await page.click("#realtime [data-example]");
  await page.waitForFunction((old) => document.querySelector("#realtime .result img").src !== old, first);
  await state(page, "realtime", "done");
  return { said: await text(page, "#realtime .say"), width: await wide(page, "realtime"), square: pad.width };
}

export async function upload({ page, params: { url, chosen } }) {
  await opened(page, url);
  const before = await page.getAttribute("#upload [type=submit]", "aria-disabled");
  const seen = await record(page, "upload");
  if (chosen) await page.setInputFiles("#upload [type=file]", chosen);
  else {
    await page.evaluate(async () => {
      const canvas = Object.assign(document.createElement("canvas"), { width: 640, height: 480 });
      const blob = await new Promise((resolve) => canvas.toBlob(resolve));
      const dataTransfer = new DataTransfer();
      dataTransfer.items.add(new File([blob], "dropped.png", { type: "image/png" }));
      document.querySelector("#upload .drop").dispatchEvent(new DragEvent("drop", { dataTransfer, bubbles: true, cancelable: true }));
    });
  }
  await state(page, "upload", "done");
  await page.click("#upload [type=submit]");
  await state(page, "upload", "running");
  await state(page, "upload", "done");
  return { before, seen: await seen(), said: await text(page, "#upload .say"), width: await wide(page, "upload") };
}

/** Ask for eight at once and return what the tiles and the bars went through. */
export async function burst({ page, params: { url, user } }) {
  await opened(page, url);
  await page.check(`#users [value=${user}]`, { force: true });
  await page.waitForFunction((name) => document.querySelector("#limits .say").textContent.startsWith(name), user);
  const plan = await text(page, "#limits .say");
  await page.evaluate(() => {
    globalThis.tiles = new Set();
    globalThis.bars = {};
    setInterval(() => {
      for (const note of document.querySelectorAll("#limits .tiles .note")) globalThis.tiles.add(note.textContent);
      for (const bar of document.querySelectorAll("#limits .bars progress")) {
        globalThis.bars[bar.id] = Math.max(globalThis.bars[bar.id] ?? 0, bar.value);
      }
    }, 30);
  });
  await page.click("#limits [type=submit]");
  await state(page, "limits", "done");
  const pictures = await page.$$eval("#limits .tiles img", (images) => images.map((image) => image.naturalWidth));
  const { tiles, bars } = await page.evaluate(() => ({ tiles: [...globalThis.tiles], bars: globalThis.bars }));
  return { plan, pictures, tiles, bars, said: await text(page, "#limits .say"), spend: await text(page, "#spend") };
}

export async function key({ page, params: { url, user } }) {
  await opened(page, url);
  await page.check(`#users [value=${user}]`, { force: true });
  await page.click("#generate [type=submit]");
  await state(page, "generate", "done");
  await page.waitForSelector("#key .side:nth-child(2) dl");
  const side = (number) =>
    page.$$eval(`#key .side:nth-child(${number}) dl > div`, (rows) =>
      Object.fromEntries(rows.map((row) => [row.dataset.field, [row.dataset.fate, row.querySelector("dd").textContent]])),
    );
  const lines = await page.$$eval("#key .side > .line:not(.body)", (found) => found.map((line) => line.textContent));
  const trace = await page.evaluate(async () => JSON.stringify(await (await fetch("/demo/trace.json")).json()));
  return { lines, browser: await side(1), fal: await side(2), trace, listed: await page.locator("#key .requests button").count() };
}

/** Show a request that the proxy answered by itself. */
export async function refused({ page, params: { url } }) {
  await opened(page, url);
  await page.click("#limits [type=submit]");
  await page.waitForSelector("#limits [data-state=waits]");
  await page.locator("#key .requests button", { hasText: "429" }).first().click();
  return text(page, "#key .side:nth-child(2)");
}

export async function code({ page, params: { url } }) {
  await page.context().grantPermissions(["clipboard-read", "clipboard-write"]);
  await opened(page, url);
  const blocks = await page.$$eval("[data-code]", (found) =>
    found.map((block) => [block.dataset.code, block.querySelector("pre").textContent]),
  );
  await page.waitForFunction(() => [...document.querySelectorAll("[data-code] pre")].every((pre) => pre.textContent));
  const copied = {};
  for (const block of await page.locator("[data-code]").all()) {
    await block.locator("button").click();
    await block.getByText("Copied").waitFor();
    copied[await block.getAttribute("data-code")] = await page.evaluate(() => navigator.clipboard.readText());
  }
  const shown = await page.$$eval("[data-code]", (found) =>
    found.map((block) => [block.dataset.code, block.querySelector("pre").textContent]),
  );
  return { names: blocks.map(([name]) => name), shown: Object.fromEntries(shown), copied };
}

/** Change one of the shown files on its way: what is shown must change, and so must what runs. */
export async function changedCode({ page, params: { url } }) {
  await page.route("**/demo/calls/generate.js", async (route) => {
    const answer = await route.fetch();
    const body = (await answer.text()).replaceAll("fal-ai/flux/dev", "fal-ai/flux/schnell");
    await route.fulfill({ response: answer, body });
  });
  await opened(page, url);
  await page.waitForFunction(() => document.querySelector("#generate pre code").textContent);
  await page.click("#generate [type=submit]");
  await state(page, "generate", "done");
  return text(page, "#generate pre code");
}

/** Break fal, play all panels at once, read what went wrong; mend it, and play them again. */
/** Wait for something while time passes faster: repetitions and silences end sooner. */
async function sooner(page, wait) {
  for (;;) {
    try {
      return await wait(250);
    } catch (error) {
      if (error.name !== "TimeoutError") throw error;
    }
    await page.clock.fastForward(2_000);
  }
}

export async function broken({ page, params: { url, fault } }) {
  const panels = ["generate", "stream", "realtime", "upload", "limits"];
  const play = (panel) => page.click(`#${panel} ${panel === "realtime" ? "[data-example]" : "[type=submit]"}`);
  await page.clock.install();
  await opened(page, url);
  await page.check("#users [value=Ada]", { force: true });
  await page.click("#upload [data-sample]");
  await state(page, "upload", "done");
  await set(page, fault);
  const said = {};
  for (const panel of panels) await play(panel);
  for (const panel of panels) {
    if (fault === "stall") {
      const silent = (id) => /Nothing heard/.test(document.querySelector(`#${id} .say`).textContent);
      await sooner(page, (timeout) => page.waitForFunction(silent, panel, { timeout }));
      said[panel] = await text(page, `#${panel} .say`);
    } else {
      await sooner(page, (timeout) => state(page, panel, "failed", timeout));
      said[panel] = await page.locator(`#${panel} .trouble`).innerText();
    }
  }
  // Cancelled before it is mended: a browser has six connections, and what stalls holds all of them.
  for (const panel of panels.filter((panel) => fault === "stall" && panel !== "realtime")) {
    await page.click(`#${panel} [data-cancel]`);
    await state(page, panel, "idle");
  }
  await set(page, "none");
  for (const panel of panels) {
    if (panel === "realtime" || fault === "stall") await play(panel);
    else await page.click(`#${panel} .trouble button`);
    await page.waitForSelector(`#${panel} .stage:not([data-state=failed]):not([data-state=idle])`);
  }
  for (const panel of panels) await state(page, panel, "done");
  return { said, trouble: await page.locator(".trouble").filter({ visible: true }).count() };
}

async function set(page, fault) {
  await page.selectOption("#fault", fault);
  await page.waitForSelector(`body[data-fault="${fault}"]`);
}

/** Walk the whole page with the Tab key; return whom it reached, and whose focus cannot be seen. */
export async function walk({ page, params: { url } }) {
  await opened(page, url);
  const reached = [];
  const unseen = [];
  const again = [];
  await page.evaluate(() => (globalThis.walked = new Set()));
  for (let step = 0; step < 120; step += 1) {
    await page.keyboard.press("Tab");
    const at = await page.evaluate(() => {
      const element = document.activeElement;
      if (element === document.body) return null;
      const again = globalThis.walked.has(element);
      globalThis.walked.add(element);
      const look = (it) => it && getComputedStyle(it).outlineStyle !== "none";
      const seen = look(element) || look(element.nextElementSibling) || look(element.closest("label"));
      const label = element.getAttribute("aria-label") ?? element.labels?.[0]?.textContent ?? element.textContent;
      return { name: `${element.closest("section, header, footer")?.id || element.closest("header, footer, section, a")?.className} ${element.localName} ${label.trim().slice(0, 40)}`, seen, again };
    });
    if (at === null) break;
    reached.push(at.name);
    if (!at.seen) unseen.push(at.name);
    if (at.again) again.push(at.name);
  }
  const focusable = await page.$$eval(FOCUSABLE, (found) => found.filter((element) => element.checkVisibility()).length);
  return { reached, unseen, again, focusable };
}

/** Play every panel without ever touching a pointer. */
export async function keyboard({ page, params: { url } }) {
  await opened(page, url);
  const press = async (keys) => {
    for (const key of keys) await page.keyboard.press(key);
  };
  await page.focus("#users input");
  await press(["ArrowRight"]);
  await page.waitForFunction(() => document.querySelector("#limits .say").textContent.startsWith("Ada"));
  await page.focus("#generate [type=submit]");
  await press(["Enter"]);
  await page.focus("#stream [name=prompt]");
  await press(["End", "!", "Tab", "Space"]);
  await page.focus("#realtime canvas");
  await press(["Space", ...Array(8).fill("ArrowRight"), ...Array(8).fill("ArrowDown"), "Space", "ArrowLeft"]);
  const pen = await page.locator("#realtime .pen").isVisible();
  await page.focus("#upload [data-sample]");
  await press(["Enter"]);
  await state(page, "upload", "done");
  await page.focus("#upload [type=submit]");
  await press(["Enter"]);
  for (const panel of ["generate", "stream", "realtime", "upload"]) await state(page, panel, "done");
  await page.focus("#limits [type=submit]");
  await press(["Enter"]);
  await state(page, "limits", "done");
  await page.focus("#key .requests li:nth-child(2) button");
  await press(["Enter"]);
  const pressed = await page.getAttribute("#key .requests li:nth-child(2) button", "aria-pressed");
  return { pen, pressed, widths: await Promise.all(["generate", "stream", "realtime", "upload"].map((panel) => wide(page, panel))) };
}

const MOMENTS = {
  async idle() {},
  async running(page) {
    await page.click("#generate [type=submit]");
    await page.click("#limits [type=submit]");
    await state(page, "generate", "running");
  },
  async done(page) {
    await page.click("#realtime [data-example]");
    await page.click("#generate [type=submit]");
    for (const panel of ["generate", "realtime"]) await state(page, panel, "done");
    await page.click("#key summary");
  },
  async failed(page) {
    await set(page, "422");
    await page.click("#stream [type=submit]");
    await state(page, "stream", "failed");
  },
};

/** Return axe's findings about the page at a moment of its life. */
export async function accessible({ page, params: { url, moment } }) {
  await opened(page, url);
  await MOMENTS[moment](page);
  return seriousFindings(page);
}

/** Return how far the page is wider than its window, with long words everywhere. */
export async function narrow({ page, params: { url } }) {
  await opened(page, url);
  const word = "Donaudampfschifffahrtsgesellschaftskapitänsmütze".repeat(4);
  for (const panel of ["generate", "stream", "realtime", "upload"]) await page.fill(`#${panel} [name=prompt]`, word);
  await page.click("#realtime [data-example]");
  await page.click("#generate [type=submit]");
  await state(page, "generate", "done");
  await page.waitForSelector("#key .side:nth-child(2)");
  const small = await page.$$eval("button, select, .choice label, .drop", (found) =>
    found.filter((element) => element.checkVisibility() && element.getBoundingClientRect().height < 24).map((element) => element.outerHTML),
  );
  return { over: await page.evaluate(() => document.documentElement.scrollWidth - innerWidth), small };
}

export async function motion({ page, params: { url } }) {
  await opened(page, url);
  await page.click("#generate [type=submit]");
  await page.waitForSelector("#generate .stage[data-state=waiting]");
  return page.evaluate(() => [document.getAnimations().length, getComputedStyle(document.documentElement).scrollBehavior]);
}

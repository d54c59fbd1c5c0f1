// What an operator does on the admin page.
import { writeFileSync } from "node:fs";
import { seriousFindings } from "./axe.mjs";

const LOOK_MILLISECONDS = 5_000;

/** Open the page and wait for its figures; with a token, give it as people do. */
export async function opened(page, url, token) {
  await page.goto(url);
  if (token) {
    await page.fill("#token", token);
    await page.press("#token", "Enter");
    await page.waitForFunction(() => document.querySelector("#said").textContent.startsWith("The token is kept"));
  }
  await page.waitForSelector("[data-chart]");
}

/** Open the page with a clock that the test may move. */
async function openedWithClock(page, url, token) {
  await page.clock.install();
  await opened(page, url, token);
}

/** Wait for what one of the page's next looks brings, without the pauses between them. */
async function seen(page, selector, options) {
  for (;;) {
    await page.clock.fastForward(LOOK_MILLISECONDS);
    try {
      return await page.waitForSelector(selector, { ...options, timeout: 250 });
    } catch (error) {
      if (error.name !== "TimeoutError") throw error;
    }
  }
}

const figure = (page, name) => page.textContent(`[data-figure="${name}"]`);
const said = (page, text) => page.waitForFunction((text) => document.querySelector("#said").textContent.includes(text), text);

function row(page, table, name) {
  return page.$$eval(`[data-table="${table}"] [data-row="${name}"] :is(th, td)`, (cells) => cells.map((cell) => cell.textContent));
}

/** Return what the page shows, in both spans. */
export async function shown({ page, params: { url, caller } }) {
  await opened(page, url);
  const seen = {};
  for (const span of ["hour", "day"]) {
    await page.click(`[data-key="${span}"]`);
    await page.waitForSelector(`[data-figure="Spend, ${span}"]`);
    await page.focus('[data-chart="spend"] .plot');
    seen[span] = {
      spend: await figure(page, `Spend, ${span}`),
      requests: await figure(page, `Requests, ${span}`),
      endpoint: await row(page, "endpoints", "fal-ai/flux/dev"),
      plan: await row(page, "plans", "default"),
      caller: await row(page, "callers", caller),
      refusal: await row(page, "refusals", "invalid_target"),
      last: await page.getAttribute('[data-chart="spend"] .plot', "aria-valuetext"),
      bars: await page.$$eval("[data-chart=spend] .cost", (bars) => bars.length),
    };
  }
  const health = await page.$$eval("[data-health]", (rows) => rows.map((row) => [row.dataset.health, row.className]));
  return { ...seen, health: Object.fromEntries(health) };
}

/** Stop paid calls, let the test look through `checked`, and resume them. */
export async function stop({ page, params: { url, token, mark } }) {
  await openedWithClock(page, url, token);
  await page.click('[data-key="stop"]');
  const asked = await page.textContent("#sure h2");
  await page.click('#sure [value="no"]');
  const kept = await page.isHidden("#stopped");
  await page.click('[data-key="stop"]');
  await page.click('#sure [value="stop"]');
  await page.waitForSelector("#stopped:not([hidden])");
  await said(page, "Stopped.");
  const button = await page.$('[data-key="stop"]');
  writeFileSync(mark, "stopped");
  await seen(page, '[data-table="refusals"] [data-row="blocked"]');
  await page.click("#resume");
  await page.waitForSelector("#stopped", { state: "hidden" });
  await page.waitForSelector('[data-key="stop"]');
  return { asked, kept, gone: button === null };
}

export async function block({ page, params: { url, token, caller, mark } }) {
  await openedWithClock(page, url, token);
  await page.click(`[data-key="caller ${caller}"]`);
  await page.waitForSelector("#facts");
  const facts = await page.textContent("#facts");
  const limits = await row(page, "limits", "budget");
  await page.click('[data-key="block"]');
  await page.waitForSelector(".tag");
  writeFileSync(mark, "blocked");
  await page.click('[data-key="back"]');
  await page.waitForSelector(`[data-blocked="${caller}"]`);
  await seen(page, '[data-table="refusals"] [data-row="blocked"]');
  await page.click(`[data-key="unblock ${caller}"]`);
  await page.waitForSelector(`[data-blocked="${caller}"]`, { state: "detached" });
  return { facts, limits };
}

export async function reset({ page, params: { url, token, caller } }) {
  await opened(page, `${url}/#/callers/${caller}`, token);
  const before = await row(page, "limits", "budget");
  await page.click('[data-key="reset"]');
  await said(page, "Limits reset");
  return { before, after: await row(page, "limits", "budget") };
}

export async function exported({ page, params: { url, target } }) {
  await opened(page, url);
  const [download] = await Promise.all([page.waitForEvent("download"), page.click('[data-key="csv"]')]);
  await download.saveAs(target);
  return download.suggestedFilename();
}

/** Try what needs the token: without one, and with a wrong one. */
export async function uninvited({ page, params: { url } }) {
  await opened(page, url);
  const words = [];
  for (const token of ["", "wrong"]) {
    if (token) {
      await page.fill("#token", token);
      await page.press("#token", "Enter");
      await said(page, "The token is kept");
    }
    await page.click('[data-key="stop"]');
    await page.click('#sure [value="stop"]');
    await page.waitForSelector('#said[data-bad="true"]');
    words.push(await page.textContent("#said"));
  }
  const focused = await page.evaluate(() => document.activeElement.id);
  const kept = await page.evaluate(() => [localStorage.length, sessionStorage.length, document.cookie, document.querySelector("#token").value]);
  return { words, focused, kept, hidden: await page.isHidden("#stopped") };
}

/** Do everything with the keyboard: read a chart, go to a caller and back, stop and resume. */
export async function keyboard({ page, params: { url, token, caller } }) {
  await openedWithClock(page, url, token);
  await page.focus(".skip");
  const stops = [];
  for (let at = 0; at < 60; at += 1) {
    await page.keyboard.press("Tab");
    const name = await page.evaluate(() => {
      const { activeElement: node } = document;
      if (node === document.body) return "";
      const { outlineStyle } = getComputedStyle(node);
      return `${node.dataset.key || node.id || node.className || node.tagName}${outlineStyle === "none" ? " unseen" : ""}`;
    });
    if (!name) break;
    stops.push(name);
  }
  await page.focus('[data-chart="spend"] .plot');
  const read = [];
  for (const key of ["End", "ArrowLeft", "Home"]) {
    await page.keyboard.press(key);
    read.push(await page.$eval('[data-chart="spend"] .plot', (plot) => [plot.getAttribute("aria-valuenow"), plot.getAttribute("aria-valuetext")]));
  }
  await page.evaluate(() => {
    globalThis.anew = new Promise((resolve) => new MutationObserver(resolve).observe(document.getElementById("view"), { childList: true }));
  });
  await page.clock.fastForward(LOOK_MILLISECONDS);
  const still = await page.evaluate(async () => {
    await globalThis.anew;
    return document.activeElement.dataset.key;
  });
  await page.focus(`[data-key="caller ${caller}"]`);
  await page.keyboard.press("Enter");
  await page.waitForSelector("#facts");
  await page.focus('[data-key="back"]');
  await page.keyboard.press("Enter");
  await page.waitForSelector('[data-key="stop"]');
  await page.focus('[data-key="stop"]');
  await page.keyboard.press("Enter");
  const first = await page.evaluate(() => document.activeElement.value);
  await page.keyboard.press("Escape");
  const kept = await page.isHidden("#stopped");
  return { stops, read, still, first, kept };
}

/** Open one of the page's states. */
async function arranged(page, { url, token, caller, state }) {
  await opened(page, state === "caller" ? `${url}/#/callers/${caller}` : url, token);
  if (state === "day") {
    await page.click('[data-key="day"]');
    await page.waitForSelector('[data-figure="Spend, day"]');
  }
  if (state === "stopped" || state === "sure") await page.click('[data-key="stop"]');
  if (state === "stopped") {
    await page.click('#sure [value="stop"]');
    await page.waitForSelector("#stopped:not([hidden])");
  }
}

export async function accessible({ page, params }) {
  await arranged(page, params);
  return seriousFindings(page);
}

export async function narrow({ page, params }) {
  await arranged(page, params);
  return page.evaluate(() => {
    const small = [...document.querySelectorAll("button, a, input")].filter((node) => {
      const { width, height } = node.getBoundingClientRect();
      return width > 0 && height < 24 && node.closest("table, p") === null;
    });
    return { over: document.documentElement.scrollWidth - innerWidth, small: small.map((node) => node.outerHTML) };
  });
}

export async function screenshot({ page, params }) {
  await arranged(page, params);
  await page.screenshot({ path: params.target, animations: "disabled", fullPage: params.whole ?? true });
}

/** Off loopback nothing is shown before the token is given. */
export async function signIn({ page, params: { url, token } }) {
  await page.goto(url);
  await said(page, "needs the admin token");
  const before = await page.$$eval("[data-chart]", (charts) => charts.length);
  await page.fill("#token", token);
  await page.press("#token", "Enter");
  await page.waitForSelector("[data-chart]");
  return { before, said: await page.textContent("#said") };
}

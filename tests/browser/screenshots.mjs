// The page as it looks: at first, with every panel played, and in trouble. One picture each, the size of its section.
import { opened, state } from "./page.mjs";

const PANELS = ["generate", "stream", "realtime", "upload", "limits", "key"];

export async function screenshots({ page, params: { url, folder, name } }) {
  const made = [];
  const shoot = async (what, options) => {
    const path = `${name}-${what}.png`;
    await page.screenshot({ path: `${folder}/${path}`, animations: "disabled", ...options });
    made.push(path);
  };
  // The bar on top would lie over a picture of what is below it.
  const panel = async (id, what) => {
    const box = await page.evaluate((id) => {
      const { top, height } = document.getElementById(id).getBoundingClientRect();
      return { x: 0, y: top + scrollY, width: innerWidth, height };
    }, id);
    await shoot(what, { fullPage: true, clip: box });
  };
  await opened(page, url);
  await page.waitForFunction(() => [...document.querySelectorAll("[data-code] pre")].every((pre) => pre.textContent));
  await shoot("top");
  await page.evaluate(() => (document.querySelector(".bar").style.position = "static"));
  await panel("generate", "idle");
  await page.click("#stream [type=submit]");
  await page.click("#realtime [data-example]");
  await page.click("#upload [data-sample]");
  await state(page, "upload", "done");
  await page.click("#upload [type=submit]");
  await page.click("#generate [type=submit]");
  await page.waitForFunction(() => /[1-9]\d %/.test(document.querySelector("#generate .say").textContent));
  await panel("generate", "running");
  for (const id of ["generate", "stream", "realtime", "upload"]) await state(page, id, "done");
  await page.locator("#key .requests button", { hasText: "queue.fal.run" }).first().click();
  await page.click("#limits [type=submit]");
  await page.waitForFunction(() => document.querySelectorAll("#limits .tiles img").length >= 4);
  await page.waitForTimeout(1700); // the bars' own rhythm, and the end of their movement
  for (const id of PANELS) await panel(id, id);
  await page.click("#limits [data-cancel]");
  await page.selectOption("#fault", "cut");
  await page.waitForSelector('body[data-fault="cut"]');
  await page.click("#stream [type=submit]");
  await state(page, "stream", "failed");
  await panel("stream", "trouble");
  return made;
}

/** One panel after play, as the README shows it. */
export async function panel({ page, params: { url, folder, name, panel: id } }) {
  await page.setViewportSize({ width: 1200, height: 800 });
  await opened(page, url);
  const play = { realtime: "#realtime [data-example]", key: "#generate [type=submit]" }[id];
  await page.click(play);
  await state(page, id === "realtime" ? "realtime" : "generate", "done");
  if (id === "key") await page.waitForSelector("#key .side:nth-child(2) dl");
  await page.waitForFunction(() => [...document.querySelectorAll("[data-code] pre")].every((pre) => pre.textContent));
  await page.evaluate(() => (document.querySelector(".bar").style.position = "static"));
  const clip = await page.evaluate((id) => {
    const { top, height } = document.getElementById(id).getBoundingClientRect();
    return { x: 0, y: top + scrollY + 1, width: innerWidth, height: height - 1 };
  }, id);
  await page.screenshot({ path: `${folder}/${name}`, animations: "disabled", fullPage: true, clip });
}

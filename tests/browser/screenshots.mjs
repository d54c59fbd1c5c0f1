// The page as it looks: at first, with every panel played, and in trouble. One picture each, the size of its section.
import { opened, state } from "./page.mjs";

const PARTS = {
  async first(page, shoot) {
    await shoot("top");
    await shoot("idle", "generate");
    await page.click("#generate [type=submit]");
    await page.waitForFunction(() => /[1-9]\d %/.test(document.querySelector("#generate .say").textContent));
    await shoot("running", "generate");
  },
  async played(page, shoot) {
    await page.click("#stream [type=submit]");
    await page.click("#realtime [data-example]");
    await page.click("#generate [type=submit]");
    await page.click("#upload [data-sample]");
    await state(page, "upload", "done");
    await page.click("#upload [type=submit]");
    await state(page, "upload", "running");
    for (const id of ["generate", "stream", "realtime", "upload"]) await state(page, id, "done");
    await page.locator("#key .requests button", { hasText: "queue.fal.run" }).first().click();
    for (const id of ["generate", "stream", "realtime", "upload", "key"]) await shoot(id, id);
  },
  async limits(page, shoot) {
    await page.click("#limits [type=submit]");
    await page.waitForFunction(() => document.querySelectorAll("#limits .tiles img").length >= 4);
    await page.waitForFunction(() => !/^0 of/.test(document.querySelector('[data-bar="submit"] .value').textContent));
    await shoot("limits", "limits");
  },
  async trouble(page, shoot) {
    await page.selectOption("#fault", "cut");
    await page.waitForSelector('body[data-fault="cut"]');
    await page.click("#stream [type=submit]");
    await state(page, "stream", "failed");
    await shoot("trouble", "stream");
  },
};

/** Play a part and take its pictures; return their names. */
export async function screenshots({ page, params: { url, folder, name, part } }) {
  const made = [];
  const shoot = async (what, id) => {
    const path = `${name}-${what}.png`;
    const options = id ? { fullPage: true, clip: await section(page, id) } : {};
    await page.screenshot({ path: `${folder}/${path}`, animations: "disabled", ...options });
    made.push(path);
  };
  await settled(page, url);
  await PARTS[part](page, shoot);
  return made;
}

async function settled(page, url) {
  await opened(page, url);
  await page.waitForFunction(() => [...document.querySelectorAll("[data-code] pre")].every((pre) => pre.textContent));
}

/** Return where a panel is on the page, and take the bar, which would lie over it, to its place. */
function section(page, id) {
  return page.evaluate((id) => {
    document.querySelector(".bar").style.position = "static";
    const { top, height } = document.getElementById(id).getBoundingClientRect();
    return { x: 0, y: top + scrollY + 1, width: innerWidth, height: height - 1 };
  }, id);
}

/** One panel after play, as the README shows it. */
export async function panel({ page, params: { url, folder, name, panel: id } }) {
  await page.setViewportSize({ width: 1200, height: 800 });
  await settled(page, url);
  await page.click({ realtime: "#realtime [data-example]", key: "#generate [type=submit]" }[id]);
  await state(page, id === "realtime" ? "realtime" : "generate", "done");
  if (id === "key") await page.waitForSelector("#key .side:nth-child(2) dl");
  const clip = await section(page, id);
  await page.screenshot({ path: `${folder}/${name}`, animations: "disabled", fullPage: true, clip });
}

// Scenarios about the harness itself: what it must notice.
import { seriousFindings } from "./axe.mjs";

/** Open a page and let a script of the test's run in it. */
export async function open({ page, params: { url, script } }) {
  await page.goto(url);
  return script ? page.evaluate(script) : page.title();
}

export async function findings({ page, params: { url } }) {
  await page.goto(url);
  return seriousFindings(page);
}

/** Return the font in which each of the generic families is drawn. */
export async function fonts({ page, params: { url } }) {
  await page.goto(url);
  const session = await page.context().newCDPSession(page);
  await session.send("DOM.enable");
  await session.send("CSS.enable");
  const { root } = await session.send("DOM.getDocument");
  const { nodeIds } = await session.send("DOM.querySelectorAll", { nodeId: root.nodeId, selector: "p" });
  const drawn = [];
  for (const nodeId of nodeIds) {
    const { fonts } = await session.send("CSS.getPlatformFontsForNode", { nodeId });
    drawn.push(...fonts.map(({ familyName }) => familyName));
  }
  return drawn;
}

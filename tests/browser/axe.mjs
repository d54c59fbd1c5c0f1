// What axe-core finds on a page. Its source is evaluated by the debugger, which no CSP of the page concerns.
import axe from "axe-core";

/** Return the findings that are serious or worse, each with its rule and the places. */
export async function seriousFindings(page) {
  await page.evaluate(axe.source);
  const { violations } = await page.evaluate(() => globalThis.axe.run());
  return violations
    .filter(({ impact }) => impact === "serious" || impact === "critical")
    .map(({ id, help, nodes }) => ({ id, help, places: nodes.map(({ html, failureSummary }) => [html, failureSummary]) }));
}

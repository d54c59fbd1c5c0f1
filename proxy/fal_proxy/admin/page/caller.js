// One caller: what they did, where they stand, and what can be done about them.
import { charts } from "./charts.js";
import { made, moment, usd } from "./words.js";

/** Return the page's view of `/callers/<caller>`. */
export function callerView(about, span, on) {
  const blocked = about.blocked_since != null;
  const choice = (name, word) =>
    made("button", { type: "button", "data-key": name, "aria-pressed": String(span === name), click: () => on.span(name) }, word);
  return [
    made("p", {}, made("a", { href: "#/", "data-key": "back" }, "All callers")),
    made(
      "div",
      { class: "head" },
      made("h1", {}, "Caller ", made("span", { class: "mono" }, about.caller)),
      blocked ? made("span", { class: "tag" }, `blocked since ${moment(about.blocked_since)}`) : null,
      made("div", { class: "choice", role: "group", "aria-label": "Span" }, choice("hour", "Hour"), choice("day", "Day")),
    ),
    made(
      "div",
      { class: "head" },
      blocked ? button("unblock", "Unblock", on) : button("block", "Block this caller", on, "danger"),
      about.known ? button("reset", "Reset limits", on) : null,
      about.network ? networkButton(about.network, on) : null,
    ),
    facts(about),
    charts(about[span], span === "hour" ? "minute" : "hour"),
    standing(about.standing),
  ];
}

function button(what, word, on, style = "") {
  return made("button", { type: "button", class: style, "data-key": what, click: () => on.act(what) }, word);
}

function networkButton({ caller, blocked_since: since }, on) {
  const what = since == null ? "block" : "unblock";
  const word = since == null ? "Block the network behind" : "Unblock the network behind";
  return made("button", { type: "button", "data-key": "network", click: () => on.act(what, caller) }, word);
}

function facts(about) {
  const said = about.known
    ? `On plan “${about.plan}”, known by “${about.source}”.`
    : "Not seen by this process: it can be blocked, but its limits are reset where it was seen.";
  const behind = about.network
    ? made("span", {}, " Calls from network ", made("a", { href: `#/callers/${about.network.caller}`, class: "mono" }, about.network.caller), ".")
    : null;
  return made("p", { id: "facts" }, said, behind);
}

function standing(found) {
  if (!found) return made("div", {});
  const rows = [];
  for (const [name, rates] of Object.entries(found.limits)) {
    for (const { limit, remaining, reset_seconds: seconds } of rates) {
      rows.push([`${name} rate`, `${limit - remaining} of ${limit}`, seconds ? `${seconds} s` : ""]);
    }
  }
  rows.push(["runs and jobs in progress", `${found.concurrent.in_use} of ${found.concurrent.limit}`, ""]);
  rows.push(["realtime sessions", `${found.realtime.in_use} of ${found.realtime.limit}`, ""]);
  if (found.budget) {
    const { spent_microusd: spent, reserved_microusd: reserved, limit_microusd: limit, resets_at: ends } = found.budget;
    rows.push(["budget", `${usd(spent + reserved)} of ${usd(limit)}`, ends ? moment(ends) : ""]);
  }
  const body = rows.map(([name, used, reset]) =>
    made("tr", { "data-row": name }, made("th", { scope: "row" }, name), made("td", {}, used), made("td", {}, reset)),
  );
  const heads = ["limit", "used", "free again"].map((word) => made("th", { scope: "col" }, word));
  return made(
    "section",
    { class: "panel", "data-table": "limits" },
    made("table", {}, made("caption", {}, "Limits"), made("thead", {}, made("tr", {}, ...heads)), made("tbody", {}, ...body)),
  );
}

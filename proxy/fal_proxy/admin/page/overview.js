// Everybody at once: figures, charts, who and what they are made of, health, and what is stopped.
import { charts } from "./charts.js";
import { ago, count, drawn, made, moment, usd } from "./words.js";

const SOCKETS = new Set(["realtime"]);
const STREAMS = new Set(["stream", "status_stream", "events"]);
export const HASH = /^[0-9a-f]{12}$/;

/** Return the page's view of `/usage`; `on` holds what its buttons do. */
export function overview(usage, span, on) {
  const found = usage[span];
  const each = span === "hour" ? "minute" : "hour";
  return [
    head(span, on, usage),
    figures(usage, found, span),
    charts(found.points, each),
    made(
      "div",
      { class: "wide" },
      table("Endpoints", found.endpoints),
      table("Callers", found.callers, callerLink),
      table("Plans", found.plans),
      refusals(found.refusals),
    ),
    made("div", { class: "narrow" }, live(usage.live), health(usage.health), stopped(usage.stopped, on)),
  ];
}

function head(span, on, usage) {
  const choice = (name, word) =>
    made("button", { type: "button", "data-key": name, "aria-pressed": String(span === name), click: () => on.span(name) }, word);
  return made(
    "div",
    { class: "head" },
    made("h1", {}, span === "hour" ? "The last hour" : "The last day"),
    made("div", { class: "choice", role: "group", "aria-label": "Span" }, choice("hour", "Hour"), choice("day", "Day")),
    made("button", { type: "button", "data-key": "csv", click: on.save }, "Export CSV"),
    usage.stopped?.paid_since == null
      ? made("button", { type: "button", class: "danger", "data-key": "stop", click: on.stop }, "Stop all paid calls")
      : null,
  );
}

function figures(usage, { total }, span) {
  const open = (kinds) => Object.entries(usage.live).reduce((sum, [kind, n]) => sum + (kinds.has(kind) ? n : 0), 0);
  const cell = (word, value, bad = false) =>
    made("div", { class: bad ? "bad" : "" }, made("dt", {}, word), made("dd", { "data-figure": `${word}, ${span}` }, value));
  return made(
    "dl",
    { class: "figures" },
    cell("Spend", usd(total.microusd)),
    cell("Requests", count(total.requests)),
    cell("Paid", count(total.paid)),
    cell("Refused", count(total.refused), total.refused > 0),
    cell("Streams open", count(open(STREAMS))),
    cell("Sockets open", count(open(SOCKETS))),
  );
}

function callerLink(name) {
  return HASH.test(name) ? made("a", { class: "mono", href: `#/callers/${name}`, "data-key": `caller ${name}` }, name) : name;
}

function table(title, rows, shown = (name) => name) {
  const most = Math.max(1, ...rows.map((row) => row.microusd));
  const body = rows.map((row) =>
    made(
      "tr",
      { "data-row": row.name },
      made("th", { scope: "row" }, shown(row.name), share(row.microusd / most)),
      made("td", {}, count(row.requests)),
      made("td", { class: "optional" }, count(row.refused)),
      made("td", {}, usd(row.microusd)),
    ),
  );
  const heads = ["name", "requests", "refused", "spend"].map((word) =>
    made("th", { scope: "col", class: word === "refused" ? "optional" : "" }, word),
  );
  return made(
    "section",
    { class: "panel", "data-table": title.toLowerCase() },
    made("table", {}, made("caption", {}, title), made("thead", {}, made("tr", {}, ...heads)), made("tbody", {}, ...body)),
    rows.length ? null : made("p", { class: "none small" }, "Nothing yet."),
  );
}

/** Return a bar as wide as a row's share of the largest. */
function share(part) {
  const width = Math.max(part, 0) * 100;
  const options = { class: "bar-of", viewBox: "0 0 100 1", preserveAspectRatio: "none", "aria-hidden": "true" };
  return drawn("svg", options, drawn("rect", { width, height: 1 }));
}

function refusals(reasons) {
  const rows = Object.entries(reasons);
  const most = Math.max(1, ...rows.map(([, n]) => n));
  const body = rows.map(([reason, n]) =>
    made(
      "tr",
      { "data-row": reason },
      made("th", { scope: "row" }, made("code", {}, reason), share(n / most)),
      made("td", {}, count(n)),
    ),
  );
  const heads = ["reason", "requests"].map((word) => made("th", { scope: "col" }, word));
  return made(
    "section",
    { class: "panel", "data-table": "refusals" },
    made("table", {}, made("caption", {}, "Refusals"), made("thead", {}, made("tr", {}, ...heads)), made("tbody", {}, ...body)),
    rows.length ? null : made("p", { class: "none small" }, "None."),
  );
}

function live(kinds) {
  const rows = Object.entries(kinds).map(([kind, n]) => made("div", {}, made("dt", {}, kind), made("dd", {}, count(n))));
  return made(
    "section",
    { class: "panel" },
    made("h2", {}, "In progress"),
    rows.length ? made("dl", { class: "health" }, ...rows) : made("p", { class: "none small" }, "Nothing right now."),
  );
}

function health({ keys, store, settler_seconds: settler, webhooks }) {
  const row = (name, text, bad) =>
    made("div", { class: bad ? "bad" : "", "data-health": name }, made("dt", {}, name), made("dd", {}, text));
  const keysText = [`${keys.usable} usable`, ...keys.reasons].join("; ");
  const late = settler === null || settler > 30;
  return made(
    "section",
    { class: "panel" },
    made("h2", {}, "Health"),
    made(
      "dl",
      { class: "health" },
      row("fal keys", keysText, keys.usable === 0 || keys.reasons.length > 0),
      row("store", store ? "answers" : "does not answer", !store),
      row("settler", settler === null ? "has not run" : `ran ${ago(settler)} ago`, late),
      row("webhooks", webhookText(webhooks), Boolean(webhooks?.away || webhooks?.dead_letters)),
    ),
  );
}

function webhookText(webhooks) {
  if (!webhooks) return "off";
  if (webhooks.away) return "the mailbox does not answer";
  return `${count(webhooks.waiting)} waiting, ${count(webhooks.dead_letters)} given up`;
}

function stopped(marks, on) {
  const items = (marks?.callers ?? []).map(({ caller, since }) =>
    made(
      "li",
      { "data-blocked": caller },
      made("span", {}, callerLink(caller), made("span", { class: "quiet small" }, ` since ${moment(since)}`)),
      made(
        "button",
        { type: "button", "data-key": `unblock ${caller}`, click: () => on.unblock(caller) },
        "Unblock",
        made("span", { class: "unseen" }, ` ${caller}`),
      ),
    ),
  );
  const none = marks ? "Nobody." : "Unknown: the store does not answer.";
  return made(
    "section",
    { class: "panel" },
    made("h2", {}, "Blocked callers"),
    items.length ? made("ul", { class: "blocked" }, ...items) : made("p", { class: "none small" }, none),
  );
}

// Where is the key: one request twice, as it left the browser and as it reached fal. `dev` hides the key before it tells.
import { trace } from "../calls/key.js";
import { element, Stage } from "../stage.js";
import { wire } from "../wire.js";

const SETTLE_MILLISECONDS = 400;
// What a reader looks for; everything else is folded away.
const TELLING = ["authorization", "cookie", "x-fal-target-url", "origin", "content-type", "accept", "x-fal-queue-priority", "x-fal-client-proxy"];

export function keyPanel() {
  const stage = new Stage("key", "Play with any panel, then look here.", "key");
  const list = stage.panel.querySelector(".requests");
  const polls = stage.form.elements.polls;
  let exchanges = [];
  let chosen; // a number; undefined: always the latest
  let timer;
  stage.find(".status").hidden = true;

  async function look() {
    exchanges = (await trace()).exchanges;
    render();
  }

  function render() {
    const shown = exchanges.filter(({ polling }) => polls.checked || !polling).slice(0, 8);
    const current = shown.find(({ number }) => number === chosen) ?? shown[0];
    const focused = list.contains(document.activeElement) && document.activeElement.dataset.number;
    list.replaceChildren(...shown.map((exchange) => entry(exchange, exchange === current)));
    if (focused) list.querySelector(`[data-number="${focused}"]`)?.focus();
    if (!current) return;
    stage.canvas.classList.add("plain-canvas", "sides");
    stage.canvas.replaceChildren(left(current), right(current));
  }

  function entry(exchange, pressed) {
    const item = element("li");
    const button = element("button", "", { type: "button" });
    button.dataset.number = exchange.number;
    button.setAttribute("aria-pressed", String(pressed));
    const { method } = exchange.browser;
    button.append(element("span", `${method} ${exchange.name.split("?")[0]}`), element("span", String(exchange.status ?? "…"), { className: "number" }));
    button.addEventListener("click", () => {
      chosen = exchange.number;
      render();
    });
    item.append(button);
    return item;
  }

  polls.addEventListener("change", render);
  const soon = () => {
    timer ??= setTimeout(() => {
      timer = undefined;
      look().catch(() => {});
    }, SETTLE_MILLISECONDS);
  };
  wire.addEventListener("answer", soon);
  look().catch(() => {});
}

function left({ browser, fal }) {
  const theirs = new Map(fal?.headers);
  const fate = ([name, value]) => (fal && theirs.get(name) !== value ? "stays" : "passes");
  return side("As it left this browser", browser, `${browser.method} ${browser.target}`, fate, { stays: "ends at the proxy" });
}

function right({ browser, fal, status }) {
  if (fal) {
    const ours = new Map(browser.headers);
    const fate = ([name, value]) => (ours.get(name) === value ? "passes" : "added");
    return side("As it reached fal", fal, `${fal.method} ${fal.target}`, fate, { added: "added by the proxy" });
  }
  const root = element("section", "", { className: "side never" });
  const text = status === null ? "It is still on its way." : `It never reached fal: the proxy answered ${status} by itself.`;
  root.append(element("h3", "As it reached fal"), element("p", text, { className: "hint" }));
  return root;
}

function side(title, { headers, body }, line, fate, marks) {
  const root = element("section", "", { className: "side" });
  const rank = ([name]) => (TELLING.includes(name) ? TELLING.indexOf(name) : Infinity);
  const telling = headers.filter(([name]) => rank([name]) < Infinity).sort((one, other) => rank(one) - rank(other));
  const rest = headers.filter(([name]) => rank([name]) === Infinity);
  root.append(element("h3", title), element("p", line, { className: "line" }), fields(telling, fate, marks));
  if (rest.length) {
    const folded = element("details");
    folded.append(element("summary", `${rest.length} more fields, none of them a secret`), fields(rest, fate, {}));
    root.append(folded);
  }
  if (body) root.append(element("p", body, { className: "line body" }));
  return root;
}

function fields(pairs, fate, marks) {
  const list = element("dl");
  for (const pair of pairs) {
    const row = element("div");
    row.dataset.fate = fate(pair);
    row.dataset.field = pair[0];
    row.append(element("dt", pair[0]), element("dd", pair[1]));
    const mark = marks[row.dataset.fate];
    if (mark) row.querySelector("dt").append(" ", element("span", mark, { className: "mark" }));
    list.append(row);
  }
  return list;
}

// The page: which view, how often it looks, and what its buttons do.
import { callerView } from "./caller.js";
import { HASH, overview } from "./overview.js";
import * as server from "./server.js";
import { clock, made, moment } from "./words.js";

const LOOK_MILLISECONDS = 5_000;
const DONE = {
  block: "Blocked. What the caller asks from now on is refused; what is under way may end.",
  unblock: "Unblocked.",
  reset: "Limits reset: rates and the running budget begin at zero.",
};
const view = document.getElementById("view");
const said = document.getElementById("said");
const sure = document.getElementById("sure");
let span = "hour";
let timer = 0;
let turn = 0;

function say(text, bad = false) {
  said.textContent = text;
  said.dataset.bad = String(bad);
}

/** Put a view in place of the last one; the focus stays on what it was on. */
function put(nodes) {
  const key = view.contains(document.activeElement) ? document.activeElement.dataset.key : undefined;
  view.replaceChildren(...nodes);
  if (key) [...view.querySelectorAll("[data-key]")].find((node) => node.dataset.key === key)?.focus();
}

function asked() {
  const shown = location.hash.replace("#/callers/", "");
  return HASH.test(shown) ? shown : "";
}

async function look() {
  clearTimeout(timer);
  const mine = ++turn;
  try {
    const shown = asked();
    const [usage, about] = await Promise.all([server.usage(), shown ? server.caller(shown) : null]);
    if (mine !== turn) return;
    frame(usage);
    if (about) put(callerView(about, span, { span: choose, act: (what, whom) => act(`/callers/${whom ?? shown}/${what}`, DONE[what]) }));
    else put(overview(usage, span, { span: choose, save, stop: askSure, unblock: (whom) => act(`/callers/${whom}/unblock`, DONE.unblock) }));
    if (said.dataset.trouble === "true") say("");
    said.dataset.trouble = "false";
  } catch (error) {
    if (mine !== turn) return;
    trouble(error);
  }
  if (mine === turn && !document.hidden) timer = setTimeout(look, LOOK_MILLISECONDS);
}

function trouble(error) {
  const wanted = error.status === 401;
  say(wanted ? "This listener needs the admin token." : explain(error), true);
  said.dataset.trouble = "true";
  if (wanted) document.getElementById("process").textContent = "Not signed in";
}

function frame({ version, began, now, stopped }) {
  const process = document.getElementById("process");
  process.replaceChildren(
    `Version ${version}. This process alone, since ${moment(began)}; as of `,
    made("time", { datetime: new Date(now * 1000).toISOString() }, clock(now, true)),
  );
  const since = stopped?.paid_since;
  document.getElementById("stopped").hidden = since == null;
  document.getElementById("stopped-since").textContent = since == null ? "" : `since ${moment(since)}.`;
}

const explain = (error) =>
  error instanceof server.Refused ? error.message : "The proxy does not answer; trying again every few seconds.";

function choose(next) {
  span = next;
  look();
}

/** Do something that changes something. */
async function act(path, done) {
  if (!server.hasToken()) {
    say("Give the admin token first: nothing is changed without it.", true);
    document.getElementById("token").focus();
    return;
  }
  try {
    await server.act(path);
    await look();
    say(done);
  } catch (error) {
    say(error.status === 401 ? "That is not the admin token." : explain(error), true);
  }
}

async function save() {
  try {
    await server.save();
    say("Exported: the last day, hour by hour, as this process has seen it.");
  } catch (error) {
    say(explain(error), true);
  }
}

function askSure() {
  sure.returnValue = "no";
  sure.showModal();
}

sure.addEventListener("close", () => {
  if (sure.returnValue === "stop") act("/paid/stop", "Stopped. Nothing that costs money begins any more.");
});
document.getElementById("resume").addEventListener("click", () => act("/paid/resume", "Paid calls go on."));
document.getElementById("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const field = document.getElementById("token");
  server.use(field.value.trim());
  field.value = "";
  field.placeholder = server.hasToken() ? "in memory" : "";
  say(server.hasToken() ? "The token is kept in this tab's memory." : "The token is forgotten.");
  look();
});
addEventListener("hashchange", () => {
  say("");
  look().then(() => document.getElementById("main").focus());
});
document.addEventListener("visibilitychange", () => (document.hidden ? clearTimeout(timer) : look()));
look();

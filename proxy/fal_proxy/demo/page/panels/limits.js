// Limits: what is left of the caller's plan, and a burst that runs into them and waits as it is told to.
import { patient, standing } from "../calls/limits.js";
import { createFalClient } from "../fal-client.js";
import { element, loaded, playable, Stage } from "../stage.js";
import { tell, wire } from "../wire.js";

const BURST = 8;
const LIVELY_MILLISECONDS = 6000; // after anything went over the wire
const LOOK_MILLISECONDS = 1500;
const SELDOM = 6; // of these looks is enough while nothing happens: each is a line in the terminal of `dev`
const dollars = (microusd) => `$${(microusd / 1e6).toFixed(microusd % 1e4 ? 3 : 2)}`;

export function limitsPanel(world, player) {
  const stage = new Stage("limits", "", "limits");
  const bars = element("div", "", { className: "bars" });
  const tiles = element("ol", "", { className: "tiles" });
  tiles.setAttribute("aria-label", "The eight pictures");
  stage.canvas.classList.add("plain-canvas");
  stage.canvas.replaceChildren(bars, tiles);
  let lively = 0;
  let seen = false;

  async function look() {
    const of = player.key;
    const { plan, limits, concurrent, realtime, budget } = await standing({ headers: player.headers });
    if (of !== player.key) return;
    const [submit] = limits.submit;
    const used = budget.spent_microusd + budget.reserved_microusd;
    const spent = `${dollars(budget.spent_microusd)} of ${dollars(budget.limit_microusd)}`;
    const held = budget.reserved_microusd ? `, ${dollars(budget.reserved_microusd)} held` : "";
    const back = submit.remaining < submit.limit ? `, all back in ${submit.reset_seconds}\u00a0s` : "";
    bar("budget", "Spent", spent + held, used / budget.limit_microusd);
    bar("submit", "Runs a minute", `${submit.limit - submit.remaining} of ${submit.limit}${back}`, 1 - submit.remaining / submit.limit);
    bar("concurrent", "At a time", `${concurrent.in_use} of ${concurrent.limit}`, concurrent.in_use / concurrent.limit);
    bar("realtime", "Sockets", `${realtime.in_use} of ${realtime.limit}`, realtime.in_use / realtime.limit);
    bars.dataset.plan = plan;
    document.getElementById("spend").textContent = spent;
    document.getElementById("spend-bar").value = used / budget.limit_microusd;
  }

  function bar(id, label, text, share) {
    let row = bars.querySelector(`[data-bar="${id}"]`);
    if (!row) {
      row = element("div", "", { className: "measure" });
      row.dataset.bar = id;
      const named = element("label", label, { htmlFor: `bar-${id}` });
      row.append(named, element("span", "", { className: "value" }), element("progress", "", { id: `bar-${id}`, max: 1 }));
      bars.append(row);
    }
    row.querySelector(".value").textContent = text;
    row.querySelector("progress").value = share;
  }

  async function play({ signal }) {
    const shots = Array.from({ length: BURST }, (_, index) => tile(index + 1));
    tiles.replaceChildren(...shots.map(({ item }) => item));
    stage.begin("Eight at once…");
    const outcomes = await Promise.allSettled(shots.map((shot, index) => take(shot, index + 1, signal, () => tally(shots))));
    signal.throwIfAborted();
    const failed = outcomes.find(({ status }) => status === "rejected");
    if (failed) throw failed.reason;
    const waits = shots.reduce((sum, shot) => sum + shot.waits, 0);
    stage.done(waits ? `Eight pictures; ${waits} times the page came back when it was told to` : "Eight pictures: this plan allows as many at a time");
  }

  async function take(shot, seed, signal, changed) {
    const say = (state, text) => {
      shot.say(state, text);
      changed();
      tell("answer", { status: 0, url: "", type: "" });
    };
    const client = createFalClient({
      proxyUrl: world.mount,
      credentials: player.key,
      suppressLocalCredentialsWarning: true,
      fetch: patient(async (seconds, body) => {
        if (!seconds) throw Object.assign(new Error(body.detail), { status: 429, body });
        shot.waits += 1;
        for (let left = seconds; left > 0; left -= 1) {
          say("waits", `wait ${left} s`);
          await pause(1000, signal);
        }
        say("runs", "again…");
      }),
    });
    say("runs", "asked…");
    try {
      const input = { prompt: `A pier at low tide, number ${seed}`, seed, image_size: "square" };
      const { data } = await client.run("fal-ai/flux/schnell", { input, abortSignal: signal });
      shot.frame.replaceChildren(await loaded(data.images[0].url, `Picture ${seed}`));
      say("done", "done");
    } catch (error) {
      say("failed", signal.aborted ? "cancelled" : "failed");
      throw error;
    }
  }

  function tally(shots) {
    const count = (state) => shots.filter((shot) => shot.state === state).length;
    if (stage.busy) stage.running(`${count("done")} of ${BURST} are here${count("waits") ? `, ${count("waits")} wait as they were told` : ""}`);
    stage.along(count("done") / BURST);
  }

  playable(stage, play);
  wire.addEventListener("answer", () => (lively = performance.now() + LIVELY_MILLISECONDS));
  wire.addEventListener("player", ({ detail: { name } }) => {
    look().then(() => stage.busy || stage.idle(`${name} is on the plan “${bars.dataset.plan}”.`), () => {});
  });
  new IntersectionObserver(([entry]) => (seen = entry.isIntersecting)).observe(stage.panel);
  let looks = 0;
  setInterval(() => {
    looks += 1;
    const due = performance.now() < lively || (seen && looks % SELDOM === 0);
    if (!document.hidden && due) look().catch(() => {});
  }, LOOK_MILLISECONDS);
}

function tile(number) {
  const item = element("li");
  const frame = element("div", String(number), { className: "frame" });
  const text = element("span", "", { className: "note" });
  item.append(frame, text);
  return {
    item,
    frame,
    waits: 0,
    say(state, said) {
      this.state = item.dataset.state = state;
      text.textContent = said;
    },
  };
}

function pause(milliseconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, milliseconds);
    signal.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(signal.reason);
    });
  });
}

// The right half of a panel: the picture, how far it is, what went wrong, the log, and the code that ran.
// States: idle, waiting (for fal to begin), running, done, failed. One module, so that all six look and speak alike.
import { explain } from "./trouble.js";

const WORDS = { idle: "Idle", waiting: "Waiting", running: "Running", done: "Done", failed: "Failed" };
const SILENCE_MILLISECONDS = 8000;

export class Stage {
  #began = 0;
  #heard = 0;
  #ticking = 0;

  constructor(id, hint, code) {
    this.panel = document.getElementById(id);
    this.root = this.panel.querySelector(".stage");
    this.root.append(document.getElementById("stage").content.cloneNode(true));
    this.form = this.panel.querySelector("form");
    this.canvas = this.find(".canvas");
    this.log = this.find(".log");
    this.log.setAttribute("aria-label", "Log of the model");
    this.find(".along").setAttribute("aria-label", "Progress");
    this.find(".hint").textContent = hint;
    const block = this.find(".code");
    block.dataset.code = code;
    block.dataset.title = "The code that runs";
    this.#show("idle", "");
  }

  find(selector) {
    return this.root.querySelector(selector);
  }

  get busy() {
    return this.root.dataset.state === "waiting" || this.root.dataset.state === "running";
  }

  /** Begin anew: the clock starts, what went wrong before is forgotten. */
  begin(say) {
    this.#began = this.#heard = performance.now();
    this.find(".trouble").hidden = true;
    this.log.hidden = true;
    this.canvas.dataset.stale = "";
    this.along(null);
    this.#show("waiting", say);
    clearInterval(this.#ticking);
    this.#ticking = setInterval(() => this.#tick(), 100);
    this.#tick();
  }

  waiting(say) {
    this.#heard = performance.now();
    this.#show("waiting", say);
  }

  running(say) {
    this.#heard = performance.now();
    this.#show("running", say);
  }

  done(say) {
    this.#end();
    this.#show("done", say);
  }

  /** End without a result and without a fault: whoever plays has changed their mind. */
  idle(say) {
    this.#end();
    this.find(".trouble").hidden = true;
    this.#show("idle", say);
  }

  /** Show what went wrong, and offer `again` where repeating makes sense. */
  failed(error, again) {
    this.#end();
    const { title, said, advice, again: label, name } = explain(error);
    this.#show("failed", title);
    const lines = [element("strong", title), said && element("p", said), advice && element("p", advice), element("code", name)];
    if (again) {
      const button = element("button", label);
      button.type = "button";
      button.addEventListener("click", again);
      lines.push(button);
    }
    const trouble = this.find(".trouble");
    trouble.replaceChildren(...lines.filter(Boolean));
    trouble.hidden = false;
  }

  /** Move the bar: a share from 0 to 1, undefined for "some time", null for no bar at all. */
  along(share) {
    const bar = this.find(".along");
    bar.hidden = share === null;
    if (share === undefined) bar.removeAttribute("value");
    else bar.value = share ?? 0;
  }

  /** Put a picture, or several, into the frame. */
  picture(...pictures) {
    delete this.canvas.dataset.stale;
    this.canvas.replaceChildren(...pictures);
  }

  lines(text) {
    this.log.hidden = !text;
    if (this.log.textContent === text) return;
    this.log.textContent = text;
    this.log.scrollTop = this.log.scrollHeight;
  }

  #show(state, say) {
    this.root.dataset.state = state;
    const pill = this.find(".pill");
    if (pill.textContent !== WORDS[state]) pill.textContent = WORDS[state];
    if (this.find(".say").textContent !== say) this.find(".say").textContent = say;
    const [submit, cancel] = [this.form.querySelector("[type=submit]"), this.form.querySelector("[data-cancel]")];
    submit?.setAttribute("aria-disabled", String(this.busy || "unready" in this.form.dataset));
    if (cancel) cancel.disabled = !this.busy;
  }

  #tick() {
    const now = performance.now();
    this.find(".elapsed").textContent = `${((now - this.#began) / 1000).toFixed(1)} s`;
    if (now - this.#heard < SILENCE_MILLISECONDS) return;
    this.#heard = Infinity; // say so once
    this.#show(this.root.dataset.state, "Nothing heard from fal for a while. It may still come; you can also cancel.");
  }

  #end() {
    if (this.#ticking) this.#tick();
    clearInterval(this.#ticking);
    this.#ticking = 0;
    this.along(null);
  }
}

/** Return a new element with text and properties. */
export function element(name, text = "", properties = {}) {
  const made = Object.assign(document.createElement(name), properties);
  if (text) made.textContent = text;
  return made;
}

/** Return an <img> that is decoded, so that it replaces another without a flash. */
export async function loaded(url, alt) {
  const image = element("img", "", { src: url, alt });
  await image.decode();
  return image;
}

/** Call `play({ signal })` whenever the form is sent and nothing runs; its cancel button aborts. Errors are shown. */
export function playable(stage, play, cancel) {
  let abort;
  async function start() {
    if (stage.busy || "unready" in stage.form.dataset || !stage.form.reportValidity()) return;
    abort = new AbortController();
    const { signal } = abort;
    try {
      await play({ signal, input: Object.fromEntries(new FormData(stage.form)) });
    } catch (error) {
      if (signal.aborted) stage.idle("Cancelled.");
      else stage.failed(error, start);
    }
  }
  stage.form.addEventListener("submit", (event) => {
    event.preventDefault();
    start();
  });
  stage.form.querySelector("[data-cancel]")?.addEventListener("click", async () => {
    const aborting = abort;
    try {
      await cancel?.();
    } finally {
      aborting?.abort();
    }
  });
  return start;
}

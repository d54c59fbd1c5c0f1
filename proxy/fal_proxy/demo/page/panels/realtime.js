// Realtime: every stroke sends the drawing, every answer is a picture of it. The socket closes when nobody draws.
import { connect } from "../calls/realtime.js";
import { Pad } from "../pad.js";
import { element, Stage } from "../stage.js";
import { tell, wire } from "../wire.js";

const REST_MILLISECONDS = 15_000;
const DEAF_MILLISECONDS = 3000;
const ENOUGH = 40; // latencies that the median is taken of

export function realtimePanel(world, player) {
  const stage = new Stage("realtime", "", "realtime");
  const result = element("div", "", { className: "result" });
  result.append(element("p", "The picture appears here while you draw.", { className: "hint" }));
  const board = element("div", "", { className: "pad" });
  const canvas = element("canvas", "", { tabIndex: 0 });
  canvas.setAttribute("role", "application");
  canvas.setAttribute("aria-label", "Drawing pad");
  canvas.setAttribute("aria-describedby", "pad-keys");
  const keys = element("p", "Draw with pen or finger, or with the arrow keys: Space sets the pen down and lifts it.");
  Object.assign(keys, { id: "pad-keys", className: "note" });
  board.append(canvas, element("span", "", { className: "pen", hidden: true }));
  stage.canvas.classList.add("twin");
  stage.canvas.replaceChildren(board, result);
  stage.canvas.after(keys);

  const chosen = (name) => stage.form.elements[name].value;
  const pad = new Pad(board, () => chosen("colour"), { onBegin: begin, onStroke: draw });
  const where = {
    relay: { proxyUrl: location.origin + world.mount },
    token: { proxyUrl: location.origin + world.tokens, relay: world.fal },
  };
  let session;
  let broken = false; // a socket that failed is not opened anew before the pen is set down again

  function begin() {
    broken = false;
    const [oldest = Infinity] = session?.sent.values() ?? [];
    if (performance.now() - oldest > DEAF_MILLISECONDS) close(); // nobody answers on it any more
  }

  function open() {
    const mine = { sent: new Map(), latencies: [], number: 0, closed: false };
    session = mine;
    mine.connection = connect(where[chosen("mode")], {
      headers: player.headers,
      onResult: (answer) => mine === session && show(mine, answer),
      onError(error) {
        if (mine.closed || (session && session !== mine)) return;
        clearTimeout(mine.rest);
        session = undefined;
        broken = true;
        stage.failed(error.status === 1006 && !mine.latencies.length ? { ...error, status: "refused" } : error);
      },
    });
  }

  function close(say) {
    if (session) {
      session.closed = true;
      clearTimeout(session.rest);
      session.connection.close();
      session = undefined;
    }
    if (say) stage.idle(say);
  }

  function draw() {
    if (broken) return;
    if (!stage.busy) stage.begin(session ? "" : "Asking for a ticket…");
    if (!session) open();
    session.number += 1;
    session.sent.set(String(session.number), performance.now());
    session.connection.send({
      prompt: chosen("prompt"),
      image_url: pad.picture(),
      seed: 7,
      strength: 0.8,
      sync_mode: true,
      request_id: String(session.number),
    });
    clearTimeout(session.rest);
    session.rest = setTimeout(() => close("Closed after a pause: an open socket costs by the second."), REST_MILLISECONDS);
  }

  function show(mine, { images, request_id: id }) {
    const now = performance.now();
    mine.latencies = [...mine.latencies.slice(1 - ENOUGH), now - mine.sent.get(id)];
    for (const [number] of mine.sent) if (Number(number) <= Number(id)) mine.sent.delete(number);
    const image = result.querySelector("img") ?? element("img", "", { alt: "What the model makes of the drawing" });
    image.src = images[0].url;
    if (!image.isConnected) result.replaceChildren(image);
    const sorted = mine.latencies.toSorted((one, other) => one - other);
    const said = `${Math.round(sorted[sorted.length >> 1])} ms from pen to picture, ${chosen("mode") === "relay" ? "through the proxy" : "straight to fal"}`;
    if (mine.sent.size) stage.running(said);
    else stage.done(said);
    tell("answer", { status: 101, url: "", type: "" });
  }

  stage.form.addEventListener("change", ({ target }) => {
    if (target.name === "mode") close("Draw, and a socket opens.");
  });
  wire.addEventListener("player", () => close(session && "Draw, and a socket opens."));
  stage.panel.querySelector("[data-clear]").addEventListener("click", () => pad.clear());
  stage.panel.querySelector("[data-example]").addEventListener("click", () => pad.example());
  stage.form.addEventListener("submit", (event) => event.preventDefault());
}

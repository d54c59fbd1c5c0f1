// Upload: a file goes up, bounded by the proxy; then fal paints it over.
import { cancel } from "../calls/generate.js";
import { repaint, upload } from "../calls/upload.js";
import { element, loaded, playable, Stage } from "../stage.js";
import { tell, wire } from "../wire.js";
import { follow } from "./generate.js";

export function uploadPanel() {
  const stage = new Stage("upload", "Your picture and what becomes of it, side by side.", "upload");
  const { form } = stage;
  const drop = form.querySelector(".drop");
  const input = drop.querySelector("input");
  let file_url;
  let requestId;
  let uploading = false;
  unready(true);

  function unready(yes) {
    if (yes) form.dataset.unready = "";
    else delete form.dataset.unready;
    form.querySelector("[type=submit]").setAttribute("aria-disabled", String(yes));
  }

  async function take(file) {
    if (stage.busy || !file) return;
    unready(true);
    uploading = true;
    stage.begin(`${file.name}, ${kilobytes(file.size)}`);
    stage.along(undefined);
    try {
      stage.picture(labelled("Yours", await preview(file)));
      file_url = await upload(file);
      unready(false);
      stage.done(`${kilobytes(file.size)} are up. Repaint it.`);
    } catch (error) {
      if (error.name === "AbortError") stage.idle("Cancelled.");
      else stage.failed(error, () => take(file));
    } finally {
      uploading = false;
    }
  }

  async function play({ input: { prompt }, signal }) {
    requestId = undefined;
    stage.begin("Handed to fal’s queue…");
    const image = await repaint(file_url, prompt, {
      onEnqueue: (id) => (requestId = id),
      onQueueUpdate: (update) => follow(stage, update),
      abortSignal: signal,
    });
    const result = labelled("Repainted", await loaded(image.url, prompt));
    const [yours] = stage.canvas.children;
    stage.canvas.classList.add("twin");
    stage.picture(yours, result);
    stage.done(`${image.width} × ${image.height}, from your file`);
  }

  playable(stage, play, () => (uploading ? tell("abandon") : requestId && cancel(requestId).catch(() => {})));

  wire.addEventListener("progress", ({ detail: { loaded: sent, total } }) => {
    if (!uploading) return;
    stage.along(sent / total);
    stage.running(`${kilobytes(sent)} of ${kilobytes(total)}`);
  });
  input.addEventListener("change", () => take(input.files[0]).finally(() => (input.value = "")));
  drop.addEventListener("dragover", (event) => {
    event.preventDefault();
    drop.dataset.over = "true";
  });
  for (const name of ["dragleave", "drop"]) drop.addEventListener(name, () => delete drop.dataset.over);
  drop.addEventListener("drop", (event) => {
    event.preventDefault();
    take(event.dataTransfer.files[0]);
  });
  form.querySelector("[data-sample]").addEventListener("click", async () => take(await sample()));
}

/** Return what can be seen of a file: a picture, or its name. */
async function preview(file) {
  const url = URL.createObjectURL(file);
  try {
    return await loaded(url, file.name);
  } catch {
    return element("p", file.name, { className: "hint" });
  } finally {
    URL.revokeObjectURL(url);
  }
}

function labelled(text, image) {
  const figure = element("figure", "", { className: "labelled" });
  figure.append(image, element("figcaption", text));
  return figure;
}

function kilobytes(bytes) {
  return bytes < 1e6 ? `${Math.max(1, Math.round(bytes / 1e3))} kB` : `${(bytes / 1e6).toFixed(1)} MB`;
}

/** Paint a small landscape, for whoever has no file at hand. */
async function sample() {
  const canvas = element("canvas", "", { width: 960, height: 720 });
  const brush = canvas.getContext("2d");
  const sky = brush.createLinearGradient(0, 0, 0, 720);
  for (const [stop, colour] of [[0, "#27406b"], [0.45, "#d9895b"], [0.62, "#f3cf94"], [1, "#f7e6c4"]]) sky.addColorStop(stop, colour);
  brush.fillStyle = sky;
  brush.fillRect(0, 0, 960, 720);
  brush.fillStyle = "#fff3d6";
  brush.beginPath();
  brush.arc(640, 380, 46, 0, 2 * Math.PI);
  brush.fill();
  for (const [height, colour, wave] of [[430, "#6b5a78", 0.011], [500, "#3f4a63", 0.017], [590, "#1f2b3d", 0.023]]) {
    brush.fillStyle = colour;
    brush.beginPath();
    brush.moveTo(0, 720);
    for (let x = 0; x <= 960; x += 6) brush.lineTo(x, height - 60 * Math.abs(Math.sin(x * wave + height)));
    brush.lineTo(960, 720);
    brush.fill();
  }
  const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", 0.9));
  return new File([blob], "evening.jpg", { type: "image/jpeg" });
}

// Generate: submit, queue, log, picture; and a cancellation that fal hears of.
import { cancel, generate } from "../calls/generate.js";
import { loaded, playable, Stage } from "../stage.js";

export function generatePanel() {
  const stage = new Stage("generate", "A picture appears here. The model’s own log runs below it.", "generate");
  let requestId;

  async function play({ input: { prompt, seed, image_size }, signal }) {
    requestId = undefined;
    stage.begin("Handed to fal’s queue…");
    const image = await generate(
      { prompt, image_size, ...(seed.trim() && { seed: Number(seed) }) },
      { onEnqueue: (id) => (requestId = id), onQueueUpdate: (update) => follow(stage, update), abortSignal: signal },
    );
    stage.picture(await loaded(image.url, prompt));
    stage.done(`${image.width} × ${image.height}, request ${requestId.slice(0, 8)}`);
  }

  // Aborting stops the asking, cancelling stops the work: a job that was handed over needs both.
  playable(stage, play, () => requestId && cancel(requestId).catch(() => {}));
}

/** Show where a queued job stands. */
export function follow(stage, { status, queue_position: ahead, logs }) {
  if (status === "IN_QUEUE") {
    stage.waiting(ahead ? `${ahead} ahead in the queue` : "Next in the queue");
    return;
  }
  const lines = (logs ?? []).map(({ message }) => message);
  stage.lines(lines.join("\n"));
  const share = Number(/(\d+)%/.exec(lines.at(-1) ?? "")?.[1] ?? 0) / 100;
  stage.along(share);
  stage.running(status === "COMPLETED" ? "Fetching the result" : share ? `${Math.round(share * 100)} %` : "A runner has it");
}

// Stream: every event is a better picture than the one before.
import { stream } from "../calls/stream.js";
import { loaded, playable, Stage } from "../stage.js";

const EVENTS = 5; // what the model sends

export function streamPanel() {
  const stage = new Stage("stream", "Pictures replace each other here, from a blur to the finished one.", "stream");

  async function play({ input: { prompt }, signal }) {
    let arrived = 0;
    let shown = Promise.resolve();
    stage.begin("Asked; nothing has come yet.");
    await stream(
      { prompt },
      {
        signal,
        onPicture({ url }) {
          arrived += 1;
          const number = arrived;
          shown = shown.then(async () => stage.picture(await loaded(url, `${prompt}, picture ${number}`)));
          stage.along(Math.min(1, arrived / EVENTS));
          stage.running(`Picture ${arrived} of ${EVENTS}`);
        },
      },
    );
    signal.throwIfAborted();
    await shown;
    stage.done(`${arrived} pictures in one answer`);
  }

  playable(stage, play);
}

// @ai-sdk/fal, set up by the README's line, in a page or in Node: one scenario, parameters as JSON in SCENARIO.
import { createFal } from "@ai-sdk/fal";
import { fetched, open } from "./page.mjs";

const { scenario, page, setUp, userKey, ...params } = JSON.parse(process.env.SCENARIO);
open(page);
const fal = new Function("createFal", "userKey", `${setUp}; return fal;`)(createFal, userKey);
const picture = { prompt: "a lighthouse", n: 1, size: "128x96", seed: 3, providerOptions: {} };

const scenarios = {
  async image() {
    const { images, response } = await fal.image(params.endpoint).doGenerate({ ...picture, ...params.options });
    return { size: images[0].length, requestId: response.headers["x-fal-request-id"] };
  },

  async transcription() {
    const audio = new Uint8Array([82, 73, 70, 70]);
    const { text } = await fal.transcription("whisper").doGenerate({ audio, mediaType: "audio/wav", providerOptions: {} });
    return { text };
  },

  async video() {
    const model = fal.video("kling-video/v2/master/text-to-video");
    const options = { prompt: "waves", n: 1, providerOptions: {} };
    const { operation } = await model.doStart(options);
    for (;;) {
      const state = await model.doStatus({ operation, ...options });
      if (state.status !== "pending") return { status: state.status, error: state.error, url: state.videos?.[0].url };
      await new Promise((resolve) => setTimeout(resolve, 500));
    }
  },

  async refused() {
    try {
      await fal.image(params.endpoint).doGenerate(picture);
    } catch ({ name, message, statusCode, responseBody, isRetryable }) {
      return { name, message, status: statusCode, body: JSON.parse(responseBody), isRetryable };
    }
    throw new Error("no error where one was expected");
  },
};

const returned = await scenarios[scenario]();
process.stdout.write(JSON.stringify({ returned, fetched }) + "\n", () => process.exit(0));

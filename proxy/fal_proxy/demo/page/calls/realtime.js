import { fal } from "../fal-client.js"; // in your app: from "@fal-ai/client"
import { configure, tokenProvider } from "/api/fal/proxy/client.js";

export function connect(where, { headers, onResult, onError }) {
  configure(where); // { proxyUrl }, and to go to fal itself { relay: null }
  const ask = (app) => tokenProvider(app, { headers });
  const token = (app) => ask(app).catch((error) => { onError(error); throw error; });
  const options = { tokenProvider: token, throttleInterval: 64, onResult, onError };
  return fal.realtime.connect("fal-ai/lcm-sd15-i2i", options);
}

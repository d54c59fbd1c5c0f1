import { fal } from "../fal-client.js"; // in your app: from "@fal-ai/client"
import { configure, tokenProvider } from "/api/fal/proxy/client.js";

export function connect(where, { headers, onResult, onError }) {
  configure(where); // { proxyUrl }, and with a token of fal's also { relay: null }
  const token = (app) => tokenProvider(app, { headers }).catch((error) => { onError(error); throw error; });
  const options = { tokenProvider: token, throttleInterval: 64, onResult, onError };
  return fal.realtime.connect("fal-ai/lcm-sd15-i2i", options);
}

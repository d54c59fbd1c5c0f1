import { fal } from "../fal-client.js"; // in your app: from "@fal-ai/client"

export function use(userKey, fetch) {
  fal.config({
    proxyUrl: "/api/fal/proxy", // all that a guest needs
    credentials: userKey, // only if your users have keys of the proxy's; never fal's own
    suppressLocalCredentialsWarning: true, // which cannot know the difference
    fetch, // only to show the progress of an upload
  });
}

import { fal } from "../fal-client.js"; // in your app: from "@fal-ai/client"

export const use = (more) => fal.config({ proxyUrl: "/api/fal/proxy", ...more });
// A guest needs no more; a user with a key of the proxy's { credentials: userKey }.

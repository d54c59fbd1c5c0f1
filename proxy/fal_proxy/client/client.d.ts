/** The types of client.js; fal-proxy serves both below its mount. */

export interface Configuration {
  /** The proxy's mount, absolute. Default: where this module was loaded from; only a copy of it must be told. */
  proxyUrl?: string | URL;
  /**
   * Sockets for `wss://fal.run/<path>` go to `<relay>/fal.run/<path>`. Default: `proxyUrl`. `null`: to fal itself,
   * which takes tokens of its own only.
   */
  relay?: string | URL | null;
}

/** Say where tokens are asked for and where sockets go, for all that are opened from now on. */
export function configure(configuration: Configuration): void;

/**
 * Ask the proxy for a realtime token: `fal.realtime.connect(app, { tokenProvider, … })`.
 *
 * @param app the app with its path, as the client passes it: `owner/app/realtime`
 * @param init what `fetch` takes: `{ headers: { authorization } }`, `{ credentials: "include" }`
 * @throws Error with the proxy's own words when it refuses
 */
export function tokenProvider(app: string, init?: RequestInit): Promise<string>;

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

/** How a job ended, as fal told the proxy. */
export interface Result<Output = unknown> {
  request_id: string;
  /** As it was submitted. */
  endpoint_id: string;
  status: "OK" | "ERROR";
  /** Unix seconds. */
  received_at: number;
  /** What the job made; of one that failed, what its app answered. */
  payload?: Output;
  /** True in place of a payload that is too large: read the result by its request id. */
  payload_omitted?: boolean;
  error?: string;
  payload_error?: string;
}

/**
 * Call back once when a job of this caller's has ended, or has already: within 24 hours, among the newest 100. The proxy
 * must run with `webhooks.mode = "hub"`. All that wait share one stream, which reconnects by itself.
 *
 * @param requestId as `fal.queue.submit` returns it
 * @param init what `fetch` takes: `{ headers: { authorization } }`; of all who wait, the first one's is used
 * @returns a function that stops waiting
 */
export function onResult<Output = unknown>(
  requestId: string,
  callback: (result: Result<Output>) => void,
  init?: RequestInit,
): () => void;

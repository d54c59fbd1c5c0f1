// What a page said and asked for while a scenario was played: console, faults, requests, WebSockets; and where a secret
// stood in any of it. Bodies are searched here and stay here: they may be pictures.
const BODY_MILLISECONDS = 2_000;
// The form of every fal key: an id, a colon, 32 hex digits.
const KEY = /[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}:[0-9a-f]{32}/;

/** Watch a browser context from its first page on; `read()` once, when the scenario is over. */
export function watch(context, secrets) {
  const log = { console: [], faults: [], failed: [], requests: [], sockets: [], leaks: [] };
  const pending = [];

  function search(where, text) {
    if (KEY.test(text) || secrets.some((secret) => text.includes(secret))) log.leaks.push(where);
  }

  async function read(request) {
    const response = await request.response();
    // A redirect has no body here, nor has what was loaded by a page that has gone; its fields are searched in any case.
    const body = (await response?.body().catch(() => "")) ?? "";
    search(`the answer to ${request.method()} ${request.url()}`, body.toString("latin1"));
  }

  async function note(request, entry) {
    const headers = await request.allHeaders();
    const response = await request.response();
    const answered = response ? await response.allHeaders() : {};
    Object.assign(entry, { headers, status: response?.status() ?? null, answered });
    search(`the fields of ${entry.method} ${entry.url}`, JSON.stringify([headers, answered]));
  }

  context.on("console", (message) => {
    const { url } = message.location();
    log.console.push({ type: message.type(), text: message.text(), url });
    search("the console", message.text());
  });
  context.on("weberror", (error) => log.faults.push(String(error.error()?.stack ?? error.error())));
  context.on("request", (request) => {
    const entry = { method: request.method(), url: request.url(), type: request.resourceType(), body: request.postData() };
    log.requests.push(entry);
    search(`${entry.method} ${entry.url}`, JSON.stringify(entry));
    pending.push(note(request, entry).catch(() => {})); // the page may be gone
  });
  context.on("requestfinished", (request) => pending.push(read(request).catch(() => {}))); // or the worker
  context.on("requestfailed", (request) =>
    log.failed.push({ method: request.method(), url: request.url(), reason: request.failure()?.errorText ?? "" }),
  );
  context.on("page", (page) =>
    page.on("websocket", (socket) => {
      const entry = { url: socket.url(), sent: 0, received: 0, error: null };
      log.sockets.push(entry);
      search(`the socket ${entry.url}`, entry.url);
      const frame = (way) => ({ payload }) => {
        entry[way] += 1;
        search(`a message of ${entry.url}`, payload.toString("latin1"));
      };
      socket.on("framesent", frame("sent"));
      socket.on("framereceived", frame("received"));
      socket.on("socketerror", (error) => (entry.error = error));
    }),
  );

  return {
    async read() {
      // A stream that is still open has no whole body, a request that failed has no answer.
      const patience = new Promise((resolve) => setTimeout(resolve, BODY_MILLISECONDS));
      await Promise.race([Promise.allSettled(pending), patience]);
      return log;
    },
  };
}

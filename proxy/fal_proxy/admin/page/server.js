// What this page asks of the admin listener. The token stays in this module's memory and goes nowhere else.
let token = "";

export function use(given) {
  token = given;
}

export const hasToken = () => token !== "";

/** An answer that is no success; `type` is the proxy's error type. */
export class Refused extends Error {
  constructor(status, type, detail) {
    super(detail);
    this.status = status;
    this.type = type;
  }
}

async function ask(method, path) {
  const headers = token ? { authorization: `Bearer ${token}` } : {};
  const answer = await fetch(path, { method, headers, cache: "no-store", redirect: "error" });
  if (answer.ok) return answer;
  const said = await answer.json().catch(() => ({}));
  throw new Refused(answer.status, said.error_type ?? "", said.detail ?? `status ${answer.status}`);
}

export const usage = async () => (await ask("GET", "/usage")).json();
export const caller = async (shown) => (await ask("GET", `/callers/${shown}`)).json();
export const act = async (path) => (await ask("POST", path)).json();

/** Save the last day as a file. A link could not carry the token. */
export async function save() {
  const url = URL.createObjectURL(await (await ask("GET", "/usage.csv")).blob());
  const link = document.createElement("a");
  link.href = url;
  link.download = `fal-proxy-usage-${new Date().toISOString().slice(0, 16).replace(":", "")}.csv`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

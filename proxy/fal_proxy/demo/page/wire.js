// What the client is given as `fetch`: the browser's own, which also says how far an upload is and that something happened.
// Events: "answer" {status, url, type} for every answer, "progress" {loaded, total} while a file goes up; "abandon", told
// by whoever cancels, ends that.
export const wire = new EventTarget();

export async function watched(url, init = {}) {
  const answer = init.body instanceof Blob ? await sendFile(url, init) : await fetch(url, init);
  const type = answer.headers.get("x-fal-error-type") ?? "";
  tell("answer", { status: answer.status, url: String(url), type });
  return answer;
}

/** Tell the rest of the page that something went over the wire. */
export function tell(name, detail) {
  wire.dispatchEvent(new CustomEvent(name, { detail }));
}

/** PUT a file; fetch cannot say how much of it has gone. */
function sendFile(url, { method, headers, body, signal }) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open(method, url);
    for (const [name, value] of new Headers(headers)) request.setRequestHeader(name, value);
    request.upload.onprogress = ({ loaded, total }) => tell("progress", { loaded, total });
    request.onload = () => {
      const lines = request.getAllResponseHeaders().trim().split(/[\r\n]+/).filter(Boolean);
      const fields = lines.map((line) => [line.slice(0, line.indexOf(":")), line.slice(line.indexOf(":") + 1).trim()]);
      const { status, statusText, response } = request;
      resolve(new Response(status === 204 ? null : response, { status, statusText, headers: fields }));
    };
    request.onerror = () => reject(new TypeError("Failed to fetch"));
    request.onabort = () => reject(new DOMException("The upload was cancelled.", "AbortError"));
    signal?.addEventListener("abort", () => request.abort());
    wire.addEventListener("abandon", () => request.abort(), { once: true });
    request.send(body);
  });
}

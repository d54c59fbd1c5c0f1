// An error, in words for people: what happened, what to do about it, and its name for whoever looks it up.
const OURS = {
  invalid_target: ["The proxy does not know that address", "Look at what the page asked for."],
  bad_request: ["The request makes no sense", "Look at what the page sent."],
  body_too_large: ["That is too large", "Choose something smaller."],
  blocked: ["The proxy's operator has stopped this", "Ask whoever runs the proxy."],
  budget_exhausted: ["The budget is used up", "Wait until it fills again, or play as somebody with more."],
  capability_expired: ["The upload took too long", "Start it anew."],
  concurrency_limited: ["Too many at a time", "Wait until one of them has ended."],
  draining: ["The proxy is about to end", "Try again: the next one is already up."],
  endpoint_denied: ["This plan does not open that model", "Choose another model, or another plan."],
  header_too_large: ["The request’s head is too large", "Too many or too long fields, or cookies."],
  identity_unavailable: ["Nobody can say who you are right now", "Try again in a moment."],
  input_denied: ["This input is not allowed here", "Change the field that is named."],
  internal_error: ["The proxy has a fault", "Try again; its log says more."],
  length_required: ["The proxy must know how large that is", "Send a file, not a stream."],
  method_not_allowed: ["That cannot be done with it", "Look at the method that the page used."],
  misdirected_host: ["The proxy does not answer to this name", "Whoever runs it can list the name."],
  mode_off: ["This is switched off here", "Ask whoever runs the proxy."],
  no_usable_key: ["The proxy has no key that works", "Ask whoever runs it; waiting may help."],
  not_found: ["Nothing is there", "Look at the address."],
  origin_denied: ["This page may not use the proxy", "Whoever runs the proxy can list its origin."],
  rate_limited: ["Too many requests", "Wait as long as “retry-after” says; the “Limits” panel shows how."],
  request_timeout: ["That came too slowly", "Try again, on a better line."],
  store_unavailable: ["The proxy cannot count right now", "Try again in a moment."],
  unidentified: ["The proxy does not know you", "Sign in again."],
  unknown_request: ["There is no such request", "It may be somebody else’s, or forgotten."],
  upstream_invalid: ["fal’s answer could not be passed on", "Try again."],
  upstream_outcome_unknown: [
    "Nobody knows how this ended",
    "Look at what was billed before you repeat it.",
    "Run it anyway",
  ],
  upstream_timeout: ["fal did not answer in time", "Try again."],
  upstream_unreachable: ["fal cannot be reached", "Try again in a moment."],
  webhook_denied: ["No webhooks here", "Leave “webhookUrl” out."],
};
const FALS = {
  401: ["fal does not accept the proxy’s key", "Whoever runs the proxy has to look at it."],
  403: ["fal refuses", "The account may be out of balance, or the model closed to it."],
  404: ["fal knows no such model", "Check its name."],
  422: ["fal refuses this input", "Change what it complains about and try again."],
  429: ["fal is busy", "Wait a little, then try again. What is queued the client has already repeated by itself."],
  499: ["Cancelled", "Nothing is running any more."],
};
const SOCKETS = {
  refused: ["The socket was not opened", "A browser is not told why. Draw again, and another is asked for."],
  1006: ["The socket was cut", "Draw on: the next stroke opens a new one."],
  1011: ["fal’s end of the line broke", "Draw on: the next stroke opens a new one."],
  1012: ["The proxy is about to end", "Draw on: the next stroke opens a new line."],
  1013: ["fal has no place for another session", "Wait a little, then draw on."],
  4401: ["The ticket was not accepted", "Draw on: the next stroke asks for another."],
  4402: ["The budget is used up", "Wait until it fills again, or play as somebody with more."],
  4403: ["This plan does not open that model", "Choose another plan."],
  4429: ["Too many messages", "Draw more slowly."],
};

/** Return {title, said, advice, again, name} of what was thrown; `name` holds status, type and whose error it is. */
export function explain(error) {
  const { status, body, message = "" } = error ?? {};
  const type = body?.error_type ?? "";
  if (SOCKETS[status]) return told(SOCKETS[status], message.replace(/^.*?: ?/, ""), Number(status) ? `close code ${status}` : "no handshake");
  if (OURS[type]) return told(OURS[type], body.detail, `${status} ${type}, said by fal-proxy`);
  if (body === undefined && (status === 500 || status === undefined)) {
    const advice = "Try again. What had arrived is still here, and a cut answer never passes for a whole one.";
    return told(["The line was cut", advice], "", `connection lost${message ? ` (${message})` : ""}`);
  }
  const known = FALS[status] ?? ["fal could not do it", status >= 500 ? "Try again in a moment." : ""];
  return told(known, sentence(body?.detail) || message, [status, type || kind(body?.detail)].filter(Boolean).join(" ") + ", said by fal");
}

function told([title, advice, again = "Try again"], said, name) {
  return { title, said: said ?? "", advice, again, name };
}

/** Put fal's two forms of `detail`, a text and pydantic's list, into one sentence. */
function sentence(detail) {
  if (!Array.isArray(detail)) return typeof detail === "string" ? detail : "";
  return detail.map(({ loc = [], msg }) => (loc.length > 1 ? `${loc.slice(1).join(".")}: ${msg}` : msg)).join(" ");
}

function kind(detail) {
  return Array.isArray(detail) ? (detail[0]?.type ?? "") : "";
}

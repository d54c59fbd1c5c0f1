// Webhooks signed as fal documents it, and as it must not be, by Node's own Ed25519: `node fal_webhooks.mjs > fal_webhooks.json`.
// Shares no code with the proxy. Ed25519 is deterministic and the keys are fixed, so the output is always the same.
import { createHash, createHmac, createPrivateKey, createPublicKey, sign } from "node:crypto";

const PKCS8 = Buffer.from("302e020100300506032b657004220420", "hex"); // RFC 8410 §7, before the 32 bytes of the seed
const keyOf = (text) => {
  const seed = createHash("sha256").update(text).digest();
  return createPrivateKey({ key: Buffer.concat([PKCS8, seed]), format: "der", type: "pkcs8" });
};
const jwkOf = (key, kid) => ({ ...createPublicKey(key).export({ format: "jwk" }), kid });

const [older, newer, foreign] = ["older", "newer", "foreign"].map(keyOf);
const NOW = 1800000000;
const ID = "764cabcf-b745-4b3e-ae38-1200304cf45b";
const USER = "github|1234567";
const BODY = '{"request_id": "764cabcf-b745-4b3e-ae38-1200304cf45b", "status": "OK", "payload": {"prompt": "žluťoučký 🐎"}}';
const hex = (data) => createHash("sha256").update(data).digest("hex");

/** One webhook: what is signed by which key, and what arrives. Every part can be replaced. */
function webhook({ id = ID, user = USER, at = `${NOW}`, body = BODY, key = newer, lines, message, signature, arrives = {}, drop = [] } = {}) {
  const signed = message ?? (lines ?? [id, user, at, hex(body)]).join("\n");
  const made = signature ?? sign(null, Buffer.from(signed), key).toString("hex");
  const headers = {
    "x-fal-webhook-request-id": id,
    "x-fal-webhook-user-id": user,
    "x-fal-webhook-timestamp": at,
    "x-fal-webhook-signature": made,
    ...arrives.headers,
  };
  for (const name of drop) delete headers[name];
  return { headers: Object.entries(headers), body: Buffer.from(arrives.body ?? body).toString("base64") };
}

const signatureOf = (given) => webhook(given).headers.at(-1)[1];
const flipped = (text, at) => text.slice(0, at) + (text[at] === "0" ? "1" : "0") + text.slice(at + 1);
/** The other S of the same signature (RFC 8032 §8.4): S + L, which a strict verifier refuses. */
function malleable(text) {
  const order = 2n ** 252n + 27742317777372353535851937790883648493n;
  const bytes = Buffer.from(text, "hex");
  let s = BigInt(`0x${Buffer.from(bytes.subarray(32)).reverse().toString("hex")}`) + order;
  for (let index = 32; index < 64; index++, s >>= 8n) bytes[index] = Number(s & 255n);
  return bytes.toString("hex");
}

const good = [
  ["as documented", webhook()],
  ["by the older of two keys", webhook({ key: older })],
  ["an empty body", webhook({ body: "" })],
  ["a body that is no text", webhook({ body: Buffer.from([0, 255, 10, 13, 128]) })],
  ["a body of many blocks", webhook({ body: Buffer.alloc(10000, "fal ") })],
  ["the signature in upper case", webhook({ arrives: { headers: { "x-fal-webhook-signature": signatureOf().toUpperCase() } } })],
  ["another user", webhook({ user: "google-oauth2|9" })],
  ["as old as it may be", webhook({ at: `${NOW - 300}` })],
  ["as new as it may be", webhook({ at: `${NOW + 300}` })],
  ["the time with a zero in front, signed as it stands", webhook({ at: `0${NOW}` })],
];
const untimely = [
  ["a second too old", webhook({ at: `${NOW - 301}` })],
  ["a second too new", webhook({ at: `${NOW + 301}` })],
  ["from 1970", webhook({ at: "0" })],
];
const malformed = [
  ["in milliseconds", webhook({ at: `${NOW}000` })],
  ["with a fraction", webhook({ at: `${NOW}.0` })],
  ["with a sign", webhook({ at: `+${NOW}` })],
  ["an ISO date", webhook({ at: new Date(NOW * 1000).toISOString() })],
  ["no time", webhook({ at: "" })],
  ["no user", webhook({ user: "" })],
  ["a user of 256 characters", webhook({ user: "u".repeat(256) })],
  ["no request id", webhook({ id: "" })],
  ["a request id with a slash", webhook({ id: "a/b" })],
  ["a request id of 129 characters", webhook({ id: "a".repeat(129) })],
  ["a truncated signature", webhook({ signature: signatureOf().slice(0, 126) })],
  ["a signature of 65 bytes", webhook({ signature: `${signatureOf()}00` })],
  ["an odd digit", webhook({ signature: signatureOf().slice(0, 127) })],
  ["no hex", webhook({ signature: `${signatureOf().slice(0, 127)}g` })],
  ["in base64", webhook({ signature: Buffer.from(signatureOf(), "hex").toString("base64") })],
  ["with 0x before it", webhook({ signature: `0x${signatureOf().slice(2)}` })],
  ["no signature", webhook({ signature: "" })],
  ...["request-id", "user-id", "timestamp", "signature"].map((name) => [`without ${name}`, webhook({ drop: [`x-fal-webhook-${name}`] })]),
];
const forged = [
  ["by a key that fal does not publish", webhook({ key: foreign })],
  ["another body", webhook({ arrives: { body: BODY.replace("OK", "NO") } })],
  ["the body's last byte is missing", webhook({ arrives: { body: BODY.slice(0, -1) } })],
  ["the body encoded anew", webhook({ arrives: { body: JSON.stringify(JSON.parse(BODY)) } })],
  ["another request id", webhook({ arrives: { headers: { "x-fal-webhook-request-id": "another" } } })],
  ["another user id", webhook({ arrives: { headers: { "x-fal-webhook-user-id": "another" } } })],
  ["another time", webhook({ arrives: { headers: { "x-fal-webhook-timestamp": `${NOW + 1}` } } })],
  ["the user before the request", webhook({ lines: [USER, ID, `${NOW}`, hex(BODY)] })],
  ["the time first", webhook({ lines: [`${NOW}`, ID, USER, hex(BODY)] })],
  ["the hash in upper case", webhook({ lines: [ID, USER, `${NOW}`, hex(BODY).toUpperCase()] })],
  ["a line feed at the end", webhook({ lines: [ID, USER, `${NOW}`, hex(BODY), ""] })],
  ["CRLF between", webhook({ message: [ID, USER, `${NOW}`, hex(BODY)].join("\r\n") })],
  ["nothing between", webhook({ message: [ID, USER, `${NOW}`, hex(BODY)].join("") })],
  ["the body instead of its hash", webhook({ lines: [ID, USER, `${NOW}`, BODY] })],
  ["the hash of the text's JSON", webhook({ lines: [ID, USER, `${NOW}`, hex(JSON.stringify(BODY))] })],
  ["the body alone", webhook({ message: BODY })],
  ["the hash of the message", webhook({ message: hex([ID, USER, `${NOW}`, hex(BODY)].join("\n")) })],
  ["the time in another format", webhook({ lines: [ID, USER, `${NOW}.0`, hex(BODY)] })],
  ["an HMAC, twice to be long enough", webhook({ signature: createHmac("sha256", "secret").update(BODY).digest("hex").repeat(2) })],
  ["a bit of R is flipped", webhook({ signature: flipped(signatureOf(), 0) })],
  ["a bit of S is flipped", webhook({ signature: flipped(signatureOf(), 64) })],
  ["zeros", webhook({ signature: "0".repeat(128) })],
  ["the other S of a good one", webhook({ signature: malleable(signatureOf()) })],
  ["halves exchanged", webhook({ signature: signatureOf().slice(64) + signatureOf().slice(0, 64) })],
  ["of another webhook", webhook({ signature: signatureOf({ id: "another" }) })],
];

const named = (rows) => rows.map(([why, { headers, body }]) => ({ why, headers, body }));
const jwks = { keys: [jwkOf(older, "older"), { kty: "RSA", n: "AQAB", e: "AQAB", kid: "rsa" }, jwkOf(newer, "newer")] };
const vectors = { now: NOW, jwks, good: named(good), untimely: named(untimely), malformed: named(malformed), forged: named(forged) };
process.stdout.write(`${JSON.stringify(vectors, null, 1)}\n`);

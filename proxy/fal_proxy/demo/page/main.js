// Who plays, how fal behaves, and the six panels.
import { use } from "./calls/setup.js";
import { showCode } from "./code.js";
import { generatePanel } from "./panels/generate.js";
import { keyPanel } from "./panels/key.js";
import { limitsPanel } from "./panels/limits.js";
import { realtimePanel } from "./panels/realtime.js";
import { streamPanel } from "./panels/stream.js";
import { uploadPanel } from "./panels/upload.js";
import { tell, watched } from "./wire.js";

const world = await (await fetch("/demo/world.json")).json();
const player = { key: undefined, headers: {} };

function playAs(name) {
  player.key = world.users.find((user) => user.name === name).key;
  player.headers = player.key ? { authorization: `Key ${player.key}` } : {};
  use({ credentials: player.key, suppressLocalCredentialsWarning: true, fetch: watched });
  tell("player", { name });
}

const users = document.getElementById("users");
users.addEventListener("change", ({ target }) => playAs(target.value));
const fault = document.getElementById("fault");
fault.value = world.fault;
fault.addEventListener("change", () => breakFal(fault.value));

async function breakFal(name) {
  fault.dataset.broken = String(name !== "none");
  const headers = { "content-type": "application/json" };
  await fetch("/demo/fault", { method: "POST", headers, body: JSON.stringify({ fault: name }) });
  document.body.dataset.fault = name;
}

fault.dataset.broken = String(world.fault !== "none");
document.body.dataset.fault = world.fault;
await fetch(`${world.mount}/me`); // a guest is known by the cookie that this brings
for (const panel of [generatePanel, streamPanel, realtimePanel, uploadPanel, limitsPanel, keyPanel]) panel(world, player);
showCode();
playAs(users.querySelector(":checked").value); // browsers keep the choice over a reload
document.body.dataset.ready = "true";

// The code of each panel is a file under calls/: the same file that the panel imports is fetched and shown.
export function showCode() {
  for (const block of document.querySelectorAll("[data-code]")) show(block);
}

async function show(block) {
  block.append(document.getElementById("code").content.cloneNode(true));
  const pre = block.querySelector("pre");
  const title = block.querySelector(".code-title");
  title.textContent = block.dataset.title;
  pre.setAttribute("aria-label", `${block.dataset.title}: ${block.dataset.code}.js`);
  const button = block.querySelector("button");
  button.setAttribute("aria-label", `Copy the code of ${block.dataset.code}`);
  const text = (await (await fetch(`/demo/calls/${block.dataset.code}.js`)).text()).trimEnd();
  block.querySelector("code").append(...coloured(text));
  button.addEventListener("click", async () => {
    await copy(text, pre);
    button.textContent = "Copied";
    setTimeout(() => (button.textContent = "Copy"), 1600);
  });
}

/** Copy where the browser lets us; elsewhere select, so that one key does it. */
async function copy(text, pre) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    getSelection().selectAllChildren(pre);
    document.execCommand("copy");
  }
}

/** Set comments and texts apart; what is shown stays, character for character, what was fetched. */
function coloured(text) {
  const pieces = text.split(/(\/\*\*?[^]*?\*\/|(?<!["\w:])\/\/[^\n]*|"[^"\n]*")/);
  return pieces.map((piece, index) => {
    if (index % 2 === 0) return document.createTextNode(piece);
    const span = document.createElement("span");
    span.className = piece.startsWith('"') ? "text" : "comment";
    span.textContent = piece;
    return span;
  });
}

// A drawing pad for pen, finger and keyboard. Calls `onBegin` when somebody sets the pen down, `onStroke` with every piece
// of a line; knows nothing of pictures.
const SIDE = 512;
const STEP = 12; // of the keyboard's pen
const PAPER = "#f4efe4";
const MOVES = { ArrowLeft: [-STEP, 0], ArrowRight: [STEP, 0], ArrowUp: [0, -STEP], ArrowDown: [0, STEP] };

// A lake below two mountains, as somebody in a hurry would draw it: colour, width, points.
const ridge = (x) => Math.min(350, 180 + 1.2 * Math.abs(x - 140), 140 + 1.3 * Math.abs(x - 350));
const slopes = Array.from({ length: 17 }, (_, index) => 10 + 30 * index);
const EXAMPLE = [
  ["#3b78b8", 70, [[10, 430], [500, 420], [10, 480], [500, 485]]],
  ["#2f6f4f", 44, slopes.flatMap((x, index) => (index % 2 ? [[x, 360], [x, ridge(x)]] : [[x, ridge(x)], [x, 360]]))],
  ["#d98a3d", 70, [[440, 70], [444, 74]]],
];

export class Pad {
  #canvas;
  #brush;
  #pen;
  #at = [SIDE / 2, SIDE / 2];
  #drawing = false;

  constructor(root, colour, { onBegin, onStroke }) {
    this.#canvas = root.querySelector("canvas");
    this.#pen = root.querySelector(".pen");
    this.#canvas.width = this.#canvas.height = SIDE;
    this.#brush = this.#canvas.getContext("2d");
    this.colour = colour;
    this.onBegin = onBegin;
    this.onStroke = onStroke;
    this.clear();
    this.#canvas.addEventListener("pointerdown", (event) => this.#down(event));
    this.#canvas.addEventListener("pointermove", (event) => this.#move(event));
    for (const name of ["pointerup", "pointercancel"]) this.#canvas.addEventListener(name, () => (this.#drawing = false));
    this.#canvas.addEventListener("keydown", (event) => this.#key(event));
    this.#canvas.addEventListener("focus", () => this.#showPen(this.#canvas.matches(":focus-visible")));
    this.#canvas.addEventListener("blur", () => this.#showPen(false));
  }

  /** Return the drawing as a small data URI. */
  picture() {
    return this.#canvas.toDataURL("image/jpeg", 0.7);
  }

  clear() {
    this.#brush.fillStyle = PAPER;
    this.#brush.fillRect(0, 0, SIDE, SIDE);
  }

  /** Draw the example, piece by piece. */
  async example() {
    this.clear();
    this.onBegin();
    for (const [colour, width, points] of EXAMPLE) {
      for (let index = 1; index < points.length; index += 1) await this.#glide(points[index - 1], points[index], colour, width);
    }
  }

  async #glide(from, to, colour, width) {
    const pieces = Math.max(1, Math.round(Math.hypot(to[0] - from[0], to[1] - from[1]) / 70));
    const at = (piece) => from.map((start, axis) => start + ((to[axis] - start) * piece) / pieces);
    for (let piece = 1; piece <= pieces; piece += 1) {
      this.#line(at(piece - 1), at(piece), colour, width);
      await new Promise((resolve) => setTimeout(resolve, 24));
    }
  }

  #line(from, to, colour = this.colour(), width = 26) {
    Object.assign(this.#brush, { strokeStyle: colour, lineWidth: width, lineCap: "round", lineJoin: "round" });
    this.#brush.beginPath();
    this.#brush.moveTo(...from);
    this.#brush.lineTo(...to);
    this.#brush.stroke();
    this.onStroke();
  }

  #place({ offsetX, offsetY }) {
    const scale = SIDE / this.#canvas.clientWidth;
    return [offsetX * scale, offsetY * scale];
  }

  #down(event) {
    this.#canvas.setPointerCapture(event.pointerId);
    this.#drawing = true;
    this.onBegin();
    this.#at = this.#place(event);
    this.#line(this.#at, this.#at);
  }

  #move(event) {
    if (!this.#drawing) return;
    const to = this.#place(event);
    this.#line(this.#at, to);
    this.#at = to;
  }

  /** Space sets the pen down and lifts it, arrows move it. */
  #key(event) {
    if (event.key === " ") {
      this.#drawing = !this.#drawing;
      if (this.#drawing) this.onBegin();
      if (this.#drawing) this.#line(this.#at, this.#at);
    } else if (MOVES[event.key]) {
      const to = this.#at.map((value, axis) => Math.min(SIDE, Math.max(0, value + MOVES[event.key][axis])));
      if (this.#drawing) this.#line(this.#at, to);
      this.#at = to;
    } else return;
    event.preventDefault();
    this.#showPen(true);
  }

  #showPen(shown) {
    this.#pen.hidden = !shown;
    this.#pen.dataset.down = String(this.#drawing);
    if (!shown) this.#drawing = false;
    const [left, top] = this.#at.map((value) => `${(100 * value) / SIDE}%`);
    Object.assign(this.#pen.style, { left, top });
  }
}

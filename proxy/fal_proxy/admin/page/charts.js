// Bars over time, in SVG. A chart is one stop of the Tab key; arrows, a finger or the pointer read it bar by bar.
import { clock, count, drawn, made, usd } from "./words.js";

const HEIGHT = 100;
const GAP = 0.18; // of a bar's place

const SPEND = {
  title: "Spend",
  value: (point) => Math.max(point.microusd, 0),
  layers: [["cost", (point) => Math.max(point.microusd, 0)]],
  most: usd,
  least: 1000,
  read: (point) => usd(point.microusd),
};

const REQUESTS = {
  title: "Requests",
  value: (point) => Math.max(point.requests, point.paid + point.refused),
  layers: [
    ["of-paid", (point) => point.paid],
    ["of-free", (point) => Math.max(point.requests - point.paid - point.refused, 0)],
    ["of-refused", (point) => point.refused],
  ],
  legend: [
    ["of-paid", "paid"],
    ["of-free", "free"],
    ["of-refused", "refused"],
  ],
  most: count,
  least: 1,
  read: (point) => `${count(point.requests)} requests, ${count(point.paid)} paid, ${count(point.refused)} refused`,
};

/** Return the two charts of one span: what it cost and what was asked. */
export function charts(points, each) {
  return made("div", { class: "wide" }, chart(SPEND, points, each), chart(REQUESTS, points, each));
}

function chart(kind, points, each) {
  const most = Math.max(kind.least, ...points.map(kind.value));
  const name = `${kind.title} per ${each}`;
  const picture = drawn("svg", { viewBox: `0 0 ${points.length} ${HEIGHT}`, preserveAspectRatio: "none", "aria-hidden": "true" });
  for (const part of [0, 0.5]) {
    const y = HEIGHT * part;
    picture.append(drawn("line", { class: "guide", x1: 0, x2: points.length, y1: y, y2: y }));
  }
  points.forEach((point, at) => picture.append(...bars(kind, point, at, most)));
  const here = drawn("rect", { class: "here", y: 0, width: 1, height: HEIGHT, visibility: "hidden" });
  picture.append(here);
  const said = made("span", { class: "quiet" }, `highest ${kind.most(most)}`);
  const last = points.length - 1;
  const plot = made(
    "div",
    {
      class: "plot",
      tabindex: 0,
      role: "slider",
      "data-key": `plot ${kind.title}`,
      "aria-label": name,
      "aria-valuemin": 0,
      "aria-valuemax": last,
    },
    picture,
  );
  let at = last;
  const show = (next) => {
    at = Math.min(Math.max(next, 0), last);
    const text = `${clock(points[at].start)}: ${kind.read(points[at])}`;
    plot.setAttribute("aria-valuenow", at);
    plot.setAttribute("aria-valuetext", text);
    return text;
  };
  const point = (next) => {
    said.textContent = show(next);
    here.setAttribute("x", at);
    here.setAttribute("visibility", "visible");
  };
  const leave = () => {
    said.textContent = `highest ${kind.most(most)}`;
    here.setAttribute("visibility", "hidden");
  };
  show(last);
  const under = (event) => {
    const { left, width } = plot.getBoundingClientRect();
    point(Math.floor(((event.clientX - left) / width) * points.length));
  };
  plot.addEventListener("pointermove", under);
  plot.addEventListener("pointerdown", under);
  plot.addEventListener("pointerleave", leave);
  plot.addEventListener("focus", () => point(at));
  plot.addEventListener("blur", leave);
  plot.addEventListener("keydown", (event) => {
    const to = { ArrowLeft: at - 1, ArrowDown: at - 1, ArrowRight: at + 1, ArrowUp: at + 1, Home: 0, End: last }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    point(to);
  });
  const legend = kind.legend?.map(([style, word]) => made("span", { class: style }, word));
  return made(
    "figure",
    { class: "panel", "data-chart": kind.title.toLowerCase() },
    made("figcaption", { class: "chart-head" }, made("h2", {}, name), said),
    plot,
    made("div", { class: "axis" }, made("span", {}, clock(points[0].start)), made("span", {}, "now")),
    legend ? made("div", { class: "legend" }, ...legend) : null,
  );
}

function bars(kind, point, at, most) {
  let y = HEIGHT;
  const found = [];
  for (const [style, value] of kind.layers) {
    const height = (value(point) / most) * HEIGHT;
    if (height <= 0) continue;
    y -= height;
    found.push(drawn("rect", { class: style, x: at + GAP / 2, y, width: 1 - GAP, height }));
  }
  return found;
}

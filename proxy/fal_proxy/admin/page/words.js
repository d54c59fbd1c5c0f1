// Numbers and moments as people read them, and the one way that this page makes elements: text is never markup.
const NAMESPACE = "http://www.w3.org/2000/svg";

/** Return an element with attributes and children; a child that is no node becomes text. */
export function made(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

/** Return an element of SVG. */
export function drawn(tag, attributes = {}, ...children) {
  return filled(document.createElementNS(NAMESPACE, tag), attributes, children);
}

function filled(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name, value);
    else if (value !== false && value !== undefined && value !== null) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

/** Return micro-dollars as dollars, small ones with as many digits as they need. */
export function usd(microusd) {
  const dollars = microusd / 1e6;
  const digits = Math.abs(dollars) < 1 ? 4 : 2;
  const style = { style: "currency", currency: "USD", minimumFractionDigits: 2, maximumFractionDigits: digits };
  return dollars.toLocaleString("en-US", style);
}

export const count = (number) => number.toLocaleString("en-US");

/** Return a moment of the store's or the server's seconds as the reader's clock shows it. */
export function clock(seconds, withSeconds = false) {
  const form = { hour: "2-digit", minute: "2-digit", ...(withSeconds ? { second: "2-digit" } : {}) };
  return new Date(seconds * 1000).toLocaleTimeString("en-GB", form);
}

/** Return a moment with its day where that is not today's. */
export function moment(seconds) {
  const when = new Date(seconds * 1000);
  const day = when.toDateString() === new Date().toDateString() ? "" : `${when.toLocaleDateString("en-GB")} `;
  return day + clock(seconds);
}

/** Return how long ago something was. */
export function ago(seconds) {
  if (seconds < 90) return `${Math.round(seconds)} s`;
  return seconds < 5400 ? `${Math.round(seconds / 60)} min` : `${Math.round(seconds / 3600)} h`;
}

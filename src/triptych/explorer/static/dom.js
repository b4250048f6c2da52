// Elements made by hand: `h("p", {class: "x"}, "text")`. Everything a server or a model wrote becomes a text node or an
// attribute, never markup: there is no other way to make an element in this page. Not here: what the pages show.

const SVG = "http://www.w3.org/2000/svg";
// These are states of an element rather than texts in its markup.
const STATES = new Set(["value", "checked", "selected", "disabled", "open", "hidden", "indeterminate", "multiple", "required"]);

function put(element, props) {
  for (const [name, value] of Object.entries(props ?? {})) {
    if (value === null || value === undefined) continue;
    if (name === "style") throw new Error("the page's policy forbids style attributes: use css: {name: value}");
    if (name === "css") for (const [key, text] of Object.entries(value)) element.style.setProperty(key, text);
    else if (name === "data") Object.assign(element.dataset, value);
    else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (STATES.has(name) && name in element) element[name] = value;
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false) element.setAttribute(name, String(value));
  }
}

/** Appends strings, numbers and nodes; null, undefined and false are left out, lists are taken apart. */
export function add(parent, ...children) {
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined || child === false) continue;
    parent.append(child instanceof Node ? child : String(child));
  }
  return parent;
}

/** An HTML element. A select's value is set after its options are there. */
export function h(tag, props, ...children) {
  const element = document.createElement(tag);
  const { value, ...others } = props ?? {};
  put(element, others);
  add(element, ...children);
  if (value !== undefined && value !== null) put(element, { value });
  return element;
}

/** An SVG element. */
export function s(tag, props, ...children) {
  const element = document.createElementNS(SVG, tag);
  put(element, props);
  return add(element, ...children);
}

/** Puts `children` in the place of whatever `parent` held. */
export function fill(parent, ...children) {
  parent.replaceChildren();
  return add(parent, ...children);
}

/** A text from a model or a file, whose own direction must not turn the text around it. */
export function foreign(text, props) {
  return h("bdi", props, text);
}

/** A text of several lines from a model or a file; says what the server left out of it. `text` is a string or {text, left_out}. */
export function block(text, props = {}) {
  const { text: words, left_out: leftOut } = typeof text === "string" ? { text, left_out: 0 } : text;
  const name = `text ${props.class ?? ""}`.trim();
  if (words === "") return h("p", { class: "empty" }, "(an empty text)");
  return [
    h("div", { ...props, class: name, dir: "auto", tabindex: "0", role: "group", "aria-label": props["aria-label"] ?? "Text" }, words),
    leftOut ? h("p", { class: "muted" }, `… and ${count(leftOut)} more characters`) : null,
  ];
}

/** A label above a control. */
export function field(label, control, props) {
  return h("label", { class: "field", ...props }, h("span", {}, label), control);
}

/** A drop-down; `options` are [value, text] pairs. */
export function select(name, options, value, props) {
  return h("select", { name, ...props, value }, ...options.map(([key, text]) => h("option", { value: key }, text)));
}

export function button(text, onclick, props) {
  return h("button", { type: "button", onclick, ...props }, text);
}

export function link(href, ...children) {
  return h("a", { href }, ...children);
}

/** A message in a frame: `kind` is "error" (announced at once) or "note". */
export function message(kind, ...children) {
  return h("div", { class: `message ${kind}`, role: kind === "error" ? "alert" : "note" }, h("p", {}, ...children));
}

const MINUS = "−";
const whole = new Intl.NumberFormat("en");

/** 12345 → "12,345" */
export function count(n) {
  return n === null || n === undefined ? "–" : whole.format(n).replace("-", MINUS);
}

/** A number to `digits` decimals with a true minus sign; a dash where there is none. */
export function number(x, digits = 2) {
  if (x === null || x === undefined || Number.isNaN(x)) return "–";
  return x.toFixed(digits).replace(/^-(?=[0.]*$)/, "").replace("-", MINUS);
}

/** A number to three significant digits, for quantities of unknown size. */
export function figure(x) {
  if (x === null || x === undefined) return "–";
  const text = x !== 0 && (Math.abs(x) >= 1e6 || Math.abs(x) < 1e-4) ? x.toExponential(2) : String(Number(x.toPrecision(3)));
  return text.replace("-", MINUS);
}

/** A share as a percentage that never rounds to a lying 0 or 100. */
export function percent(p) {
  if (p === null || p === undefined) return "–";
  if (p > 0 && p < 0.001) return "< 0.1 %";
  if (p < 1 && p > 0.999) return "> 99.9 %";
  return `${(100 * p).toFixed(p < 0.1 ? 1 : 0)} %`;
}

export function plural(n, one, many = `${one}s`) {
  return `${count(n)} ${n === 1 ? one : many}`;
}

/** Says a sentence to screen readers, once. */
export function announce(sentence) {
  const place = document.getElementById("said");
  if (place) place.textContent = sentence;
}

/** Calls `f` once the calls have paused for `ms`; `.now()` calls it at once if a call waits. */
export function debounced(f, ms) {
  let timer = null;
  let latest = [];
  const run = () => {
    timer = null;
    f(...latest);
  };
  const later = (...args) => {
    latest = args;
    clearTimeout(timer);
    timer = setTimeout(run, ms);
  };
  later.now = () => {
    if (timer === null) return;
    clearTimeout(timer);
    run();
  };
  later.cancel = () => {
    clearTimeout(timer);
    timer = null;
  };
  return later;
}

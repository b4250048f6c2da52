// A text as its tokens, each shaded by how likely the model found it, with its figures in a box on hover, focus or tap.
// One token of a text is in the tab order; the arrow keys walk from there. Not here: where tokens come from.

import { foreign, h, number, percent } from "./dom.js";
import { hidePopover, popoverOwner, showPopover } from "./popover.js";

// The report's bounds: a token at least this probable, down to the last shade for all others.
const BOUNDS = [0.9, 0.5, 0.2, 0.05, 0.01];
const NAMES = ["90 % or more", "50 to 90 %", "20 to 50 %", "5 to 20 %", "1 to 5 %", "less than 1 %"];
const MOST = 400; // characters of a token that are shown in its box

/** 0 (likely) to 5 of a log-probability in nats; null where there is none. */
export function shadeOf(logprob) {
  if (logprob === null || logprob === undefined) return null;
  const p = Math.exp(Math.min(0, logprob));
  return BOUNDS.filter((bound) => p < bound).length;
}

export function legend() {
  const shades = NAMES.map((name, shade) => h("span", { class: `t t${shade}` }, name));
  return h("p", { class: "legend" }, h("span", {}, "Probability of a token:"), ...shades);
}

/** White space made visible where it is all there is: "·" for blanks, "⏎" for line breaks. */
export function shownToken(text) {
  if (text === "") return "(no character yet)";
  const clipped = text.length > MOST ? `${text.slice(0, MOST)}…` : text;
  return clipped.replaceAll("\n", "⏎").replaceAll("\t", "⇥").replace(/^ +| +$/g, (blanks) => "·".repeat(blanks.length));
}

/** A span's text: a line break gets a sign, or its shade would not be seen. */
function pieceText(text) {
  return text.replaceAll("\n", "⏎\n");
}

function logprobLine(name, logprob) {
  return h("div", {}, h("dt", {}, name), h("dd", {}, `${number(logprob)} nats (${percent(Math.exp(logprob))})`));
}

function alternativeRow(alternative, chosen) {
  const kept = alternative.kept;
  const bar = h("span", { class: kept ? "bar" : "bar out", css: { "--p": String(Math.max(0.004, alternative.p)) } });
  return h(
    "li",
    { class: kept ? "kept" : "left" },
    h("span", { class: "piece" }, foreign(shownToken(alternative.text)), chosen ? h("strong", {}, " ← drawn") : null),
    h("span", { class: "barbox", "aria-hidden": "true" }, bar),
    h("span", { class: "p" }, percent(alternative.p)),
    kept ? null : h("span", { class: "why" }, "left out"),
  );
}

/** What a token's box says. `token`: {text, logprobs or logprob, sampler_logprob(s), kept_count, kept_mass, alternatives}. */
export function tokenBox(token) {
  const logprobs = token.logprobs ?? (token.logprob === undefined ? [] : [token.logprob]);
  const drawn = token.sampler_logprobs ?? (token.sampler_logprob == null ? [] : [token.sampler_logprob]);
  const many = logprobs.length > 1 ? ` (${logprobs.length} tokens)` : "";
  const mark = token.alternatives?.findIndex((one) => one.text === token.text) ?? -1;
  return [
    h("p", { class: "token" }, foreign(shownToken(token.text)), many),
    h(
      "dl",
      { class: "pairs" },
      ...logprobs.slice(0, 4).map((x) => logprobLine("Model", x)),
      ...(drawn ?? []).slice(0, 4).map((x) => logprobLine("As sampled", x)),
      token.kept_count === undefined || token.kept_count === null
        ? null
        : h("div", {}, h("dt", {}, "Kept"), h("dd", {}, `${token.kept_count} ${token.kept_count === 1 ? "token" : "tokens"}, ${percent(token.kept_mass)} of the mass`)),
    ),
    token.alternatives?.length ? h("ol", { class: token.alternatives.every(({ kept }) => kept) ? "alternatives" : "alternatives some" }, ...token.alternatives.map((one, at) => alternativeRow(one, at === mark))) : null,
  ];
}

/** A list of tokens that grows: `add(token)`; `element` is the text. */
export function tokenText(label) {
  const element = h("div", { class: "text tokens", dir: "auto", "aria-label": label, role: "group" });
  const tokens = new Map(); // span → token
  let active = null;

  const activate = (span) => {
    if (active) active.tabIndex = -1;
    active = span;
    active.tabIndex = 0;
  };
  const show = (span) => tokens.has(span) && showPopover(span, tokenBox(tokens.get(span)));
  const step = (event) => {
    const to = { ArrowRight: "nextElementSibling", ArrowLeft: "previousElementSibling" }[event.key];
    const target = to ? event.target[to] : { Home: element.firstElementChild, End: element.lastElementChild }[event.key];
    if (event.key === "Escape" && hidePopover()) event.preventDefault();
    if (!target || !tokens.has(target)) return;
    event.preventDefault();
    activate(target);
    target.focus();
  };
  element.addEventListener("keydown", step);
  element.addEventListener("focusin", (event) => {
    if (!tokens.has(event.target)) return;
    activate(event.target);
    show(event.target);
  });
  element.addEventListener("focusout", () => hidePopover());
  element.addEventListener("pointerover", (event) => event.pointerType === "mouse" && show(event.target));
  element.addEventListener("pointerleave", () => element.contains(popoverOwner()) && popoverOwner() !== document.activeElement && hidePopover());
  element.addEventListener("click", (event) => show(event.target));

  return {
    element,
    get size() {
      return tokens.size;
    },
    add(token) {
      const shade = token.shade === undefined ? shadeOf(token.logprob) : token.shade;
      const known = token.known ?? true;
      const name = known ? `t t${shade ?? 0}` : "t unknown";
      const span = h("span", { class: name, tabindex: "-1", role: "option", "aria-selected": "false", "aria-label": token.text.trim() ? null : shownToken(token.text) }, pieceText(token.text));
      tokens.set(span, token);
      element.append(span);
      if (!active) {
        // A list box must hold an option: it becomes one with its first.
        element.setAttribute("role", "listbox");
        activate(span);
      }
      return span;
    },
  };
}

/** The text of all `tokens` at once. */
export function tokensOf(tokens, label) {
  const text = tokenText(label);
  for (const token of tokens) text.add(token);
  return text.element;
}

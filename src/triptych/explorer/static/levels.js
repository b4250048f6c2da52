// The levels of a finding: a sign, a word and a colour, never a colour alone. Not here: the findings.

import { h } from "./dom.js";

export const LEVELS = ["severe", "warn", "undecided", "ok"];
const SIGNS = { severe: "✗", warn: "!", undecided: "–", ok: "✓" };
const WORDS = { severe: "severe", warn: "warning", undecided: "not enough evidence", ok: "within" };
const TITLES = { severe: "Severe findings", warn: "Warnings", undecided: "Not enough evidence", ok: "Within their thresholds" };

export function levelTitle(level) {
  return TITLES[level] ?? level;
}

export function badge(level) {
  return h("span", { class: `level ${level}` }, h("span", { "aria-hidden": "true" }, `${SIGNS[level] ?? "?"} `), WORDS[level] ?? level);
}

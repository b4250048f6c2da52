// The four levels of a finding: a sign, a word and a colour, never a colour alone. Not here: the findings.

import { h } from "./dom.js";

export const LEVELS = ["severe", "warn", "note", "ok"];
const SIGNS = { severe: "✗", warn: "!", note: "–", ok: "✓" };
const WORDS = { severe: "severe", warn: "warning", note: "note", ok: "within" };
const TITLES = { severe: "Severe findings", warn: "Warnings", note: "Notes", ok: "Within their thresholds" };

export function levelTitle(level) {
  return TITLES[level] ?? level;
}

export function badge(level) {
  return h("span", { class: `level ${level}` }, h("span", { "aria-hidden": "true" }, `${SIGNS[level] ?? "?"} `), WORDS[level] ?? level);
}

// The help dialog: the keys of the page in view and of all pages, and what the shades mean. Not here: what keys do.

import { button, fill, h } from "./dom.js";
import { listKeys, shortcuts } from "./keyboard.js";
import { legend } from "./tokens.js";

let dialog = null;

function keyNames(keys) {
  return keys.split(" ").map((key, at) => [at ? " then " : null, h("kbd", {}, key)]);
}

function table(title, lines) {
  if (!lines.length) return null;
  return [
    h("h3", {}, title),
    h("dl", { class: "keys" }, ...lines.map(([keys, does]) => h("div", {}, h("dt", {}, ...keyNames(keys)), h("dd", {}, does)))),
  ];
}

function content() {
  const keys = listKeys();
  const letters = h("input", { type: "checkbox", checked: shortcuts.on, onchange: (event) => (shortcuts.on = event.target.checked) });
  return [
    h("div", { class: "row apart" }, h("h2", { id: "help-title" }, "Help"), button("Close", () => dialog.close(), { class: "quiet" })),
    table("Keys of this page", keys.page),
    table("Keys of all pages", keys.everywhere),
    h("label", { class: "check" }, letters, h("span", {}, "Single letters are shortcuts")),
    h("h3", {}, "Shades of tokens"),
    h("p", {}, "A token is shaded by the probability that the model itself gave it, at temperature 1: the darker, the less likely. Point at a token, tap it, or walk with the arrow keys to see its figures."),
    legend(),
  ];
}

export function showHelp() {
  fill(dialog, ...content().flat());
  dialog.showModal();
}

export function initHelp() {
  dialog = h("dialog", { "aria-labelledby": "help-title" });
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  document.body.append(dialog);
  document.getElementById("help").addEventListener("click", showHelp);
}

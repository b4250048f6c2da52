// The first page: what the run is, what it found panel by panel, and where to look. Not here: the panels.

import { foreign, h, link } from "./dom.js";

const PLACES = [
  { panel: null, href: "#/playground", title: "Playground", text: "Write a prompt and watch base, DPO and GRPO answer beside each other, token by token." },
  { panel: "decoding", href: "#/generations", title: "Generations", text: "Every completion of the decoding study: filter, sort, open one, compare two." },
  { panel: "auditing", href: "#/audits", title: "Audits", text: "The report card, and the very responses behind each finding." },
  { panel: "dictionaries", href: "#/concepts", title: "Concepts", text: "The latents of the universal dictionary: what fires them, in which model." },
];

function fact(name, value) {
  return value === null || value === undefined || value === "" ? null : h("div", {}, h("dt", {}, name), h("dd", {}, value));
}

function shownDate(text) {
  const date = new Date(text);
  return Number.isNaN(date.getTime()) ? foreign(text) : h("time", { datetime: text }, date.toLocaleString("en", { dateStyle: "medium", timeStyle: "short" }));
}

function facts(run) {
  return h(
    "dl",
    { class: "facts" },
    fact("Run", h("code", {}, foreign(run.run_id))),
    fact("Made", run.created ? shownDate(run.created) : null),
    fact("Recipe", run.recipe ? foreign(run.recipe) : null),
    fact("Seed", run.seed),
    fact("Device", run.device ? foreign(typeof run.device === "string" ? run.device : JSON.stringify(run.device)) : null),
  );
}

function place({ panel, href, title, text }, run) {
  const missing = panel && !run.panels[panel];
  return h(
    "li",
    { class: missing ? "tile off" : "tile" },
    h("h3", {}, missing ? title : link(href, title)),
    h("p", {}, missing ? `This run has no ${panel} panel.` : text),
  );
}

function section({ title, findings }) {
  if (!findings.length) return null;
  return [h("h3", {}, foreign(title)), h("ul", { class: "findings" }, ...findings.map((sentence) => h("li", { dir: "auto" }, sentence)))];
}

export async function openOverview({ run }) {
  const found = run.sections.flatMap((one) => one.findings).length > 0;
  const command = Array.isArray(run.command) ? run.command.join(" ") : run.command;
  return {
    title: "Overview",
    body: [
      h("h1", { tabindex: "-1" }, "What this run found"),
      facts(run),
      h("h2", {}, "Look around"),
      h("ul", { class: "tiles" }, ...PLACES.map((one) => place(one, run))),
      h("h2", {}, "Findings"),
      found ? run.sections.map(section) : h("p", { class: "muted" }, "The run has no findings yet: its stages have not finished."),
      h("h2", {}, "The report"),
      run.has_report
        ? h("p", {}, h("a", { href: "/report.html", download: "report.html", class: "button" }, "Download report.html"), " ", h("span", { class: "muted" }, "One file with every figure and table; it opens without a server."))
        : h("p", { class: "muted" }, "There is no report.html in this run yet; ", h("code", {}, "triptych report DIR"), " writes it."),
      command ? [h("h2", {}, "Command"), h("pre", { tabindex: "0", role: "group", "aria-label": "The command of this run" }, h("code", {}, foreign(command)))] : null,
    ].flat(3),
  };
}

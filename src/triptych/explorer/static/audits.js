// The report card and one finding with its figure and the responses that show it. Not here: the browser of all
// responses (responses.js), the scale (charts.js).

import { get } from "./api.js";
import { intervalScale } from "./charts.js";
import { block, count, field, figure, foreign, h, link, plural, select } from "./dom.js";
import { LEVELS, badge, levelTitle } from "./levels.js";
import { rowKeys } from "./lists.js";
import { kindName } from "./responses.js";

function interval(finding) {
  const sign = { lower: "≥ ", upper: "≤ " }[finding.bound] ?? "";
  if (finding.low === null || finding.low === undefined) return sign + figure(finding.mean);
  return `${sign}${figure(finding.mean)} [${figure(finding.low)}, ${figure(finding.high)}]`;
}

function findingLine(finding) {
  const proof = finding.n_evidence ? `${plural(finding.n_evidence, "response")} as evidence` : "a figure of the whole set";
  return h(
    "li",
    { class: `finding ${finding.level}`, data: { row: finding.id } },
    badge(finding.level),
    h("div", {}, h("a", { href: `#/audits/finding/${finding.id}`, data: { key: `row:${finding.id}` }, dir: "auto" }, finding.sentence), h("small", {}, foreign(finding.model), ` · ${finding.audit} · ${finding.rule} · ${proof}`)),
  );
}

function group(level, findings) {
  const own = findings.filter((finding) => finding.level === level);
  if (!own.length) return null;
  const lines = h("ul", { class: "card" }, ...own.map(findingLine));
  const title = `${levelTitle(level)} (${own.length})`;
  if (level !== "ok") return [h("h2", {}, title), lines];
  return [h("h2", {}, title), h("p", { class: "muted" }, "What was tested and found in order."), lines];
}

function summary(levels) {
  return h("ul", { class: "counts" }, ...LEVELS.map((level) => h("li", { class: level }, h("strong", {}, count(levels[level] ?? 0)), badge(level))));
}

function modelFilter(models, model, onchange) {
  const control = select("model", [["", "All"], ...models.map((name) => [name, name])], model, { onchange: (event) => onchange(event.target.value) });
  return h("form", { class: "filters", onsubmit: (event) => event.preventDefault() }, field("Checkpoint or scorer", control));
}

export async function openFindings(ctx) {
  const card = await get("/audits", {}, ctx.signal);
  const place = h("div", { class: "results" });
  const filter = modelFilter([...new Set(card.findings.map((finding) => finding.model))], ctx.query.get("model") ?? "", (model) => ctx.setQuery({ model }));
  const draw = (query) => {
    const model = query.get("model") ?? "";
    filter.elements.model.value = model;
    const shown = model ? card.findings.filter((finding) => finding.model === model) : card.findings;
    const counts = Object.fromEntries(LEVELS.map((level) => [level, shown.filter((finding) => finding.level === level).length]));
    place.replaceChildren(summary(counts), ...LEVELS.map((level) => group(level, shown)).flat().filter(Boolean));
    if (!shown.length) place.append(h("p", { class: "muted" }, "No check of this checkpoint is on the card."));
  };
  draw(ctx.query);
  return {
    title: "Audits",
    body: [
      h("h1", { tabindex: "-1" }, "Audits"),
      h("p", { class: "lead" }, "What changed against the base, and whether to trust it. ", link("#/audits/responses", "Read all responses")),
      filter,
      place,
    ],
    keys: (({ n: _n, p: _p, ...keys }) => keys)(rowKeys(place)),
    update: draw,
  };
}

function facts(finding) {
  const fact = (name, value) => (value === null || value === undefined || value === "" ? null : h("div", {}, h("dt", {}, name), h("dd", {}, value)));
  return h(
    "dl",
    { class: "facts" },
    fact("Checkpoint", foreign(finding.model)),
    fact("Against", finding.against && foreign(finding.against)),
    fact("Audit", finding.audit),
    fact("Metric", finding.metric),
    fact("Category", finding.category && foreign(finding.category)),
    fact("Scorer", finding.scorer && foreign(finding.scorer)),
    fact("Figure", interval(finding)),
    fact("Responses or pairs", count(finding.n)),
    fact("Warning from", finding.warn === null ? null : figure(finding.warn)),
    fact("Severe from", finding.severe === null ? null : figure(finding.severe)),
    fact("Rests on", finding.reason),
    fact("Random changes", finding.beside_nulls),
    fact("Method", finding.method),
  );
}

function scoreTable({ scores, perturbation, model }) {
  if (!scores?.length) return null;
  // Perturbed texts are compared with what was answered, others with the base's response to the same prompt.
  const [first, second] = perturbation ? ["As answered", "Perturbed"] : ["Base", model];
  const changed = scores.some((one) => one.after !== null && one.after !== undefined);
  const line = ({ scorer, before, after }) =>
    h("tr", {}, h("th", { scope: "row" }, foreign(scorer)), h("td", { class: "number" }, figure(before)), changed ? [h("td", { class: "number" }, figure(after)), h("td", { class: "number" }, after === null || before === null ? "–" : figure(after - before))] : null);
  const head = h("tr", {}, h("th", { scope: "col" }, "Scorer"), h("th", { scope: "col", class: "number" }, changed ? first : "Score"), changed ? [h("th", { scope: "col", class: "number" }, foreign(second)), h("th", { scope: "col", class: "number" }, "Change")] : null);
  return h("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": "Scores" }, h("table", {}, h("thead", {}, head), h("tbody", {}, ...scores.map(line))));
}

/** A perturbed text with what the perturbation changed marked. */
function segmentsOf(segments, label) {
  return h("div", { class: "text", dir: "auto", tabindex: "0", role: "group", "aria-label": label }, ...segments.map(({ text, changed }) => (changed ? h("mark", {}, text) : text)));
}

function lengthOf(item) {
  if (item.n_words === null || item.n_words === undefined) return "";
  return ` · ${plural(item.n_words, "word")}, ${plural(item.n_tokens, "token")}${item.is_truncated ? ", cut off" : ""}`;
}

function evidenceTexts(item) {
  const text = (title, ...nodes) => h("div", {}, h("h4", {}, title), ...nodes.flat());
  const base = item.base_text;
  if (item.segments)
    return [base && text("As answered", block(base, { "aria-label": "Response as answered" })), text(["Perturbed: ", kindName(item.perturbation)], segmentsOf(item.segments, "Perturbed response"))];
  return [text(foreign(item.model), block(item.text, { "aria-label": "Response" })), base && text("Base", block(base, { "aria-label": "The base's response" }))];
}

function evidenceItem(item, at) {
  const all = item.id === null || item.id === undefined ? null : h("p", {}, h("a", { href: `#/audits/response/${item.id}` }, "All checkpoints' responses to this prompt"));
  return h(
    "section",
    { class: "evidence", "aria-label": `Evidence ${at + 1}` },
    h("h3", {}, foreign(item.note || item.prompt_id)),
    h("p", { class: "muted" }, foreign(item.model), ` · ${kindName(item.kind)} · `, foreign(item.prompt_id), lengthOf(item)),
    ...[block(item.instruction, { class: "quote", "aria-label": "Prompt" })].flat(),
    item.input?.text ? [block(item.input, { class: "quote", "aria-label": "Input" })].flat() : null,
    h("div", { class: "sides" }, ...evidenceTexts(item)),
    scoreTable(item),
    all,
  );
}

export async function openFinding(ctx) {
  const [id] = ctx.params;
  const finding = await get(`/audits/findings/${id}`, {}, ctx.signal);
  const { evidence } = finding;
  const step = (by) => () => (id + by < 0 ? false : ctx.go(`#/audits/finding/${id + by}`));
  return {
    title: `Finding ${id}`,
    body: [
      h("p", { class: "crumbs" }, link("#/audits", "Audits"), " / "),
      h("h1", { tabindex: "-1", class: "sentence" }, badge(finding.level), " ", foreign(finding.sentence)),
      intervalScale(finding),
      facts(finding),
      h("h2", {}, "Evidence"),
      evidence.length ? evidence.map(evidenceItem) : h("p", { class: "muted" }, "This figure is one of the whole set: no single response shows it."),
    ].flat(2),
    keys: {
      "[": { does: "Finding before", run: step(-1) },
      "]": { does: "Next finding", run: step(1) },
      u: { does: "Back to the card", run: () => ctx.go("#/audits") },
    },
  };
}


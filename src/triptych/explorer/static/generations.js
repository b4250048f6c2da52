// The completions of the decoding study: a list with filters, one completion, and two beside each other. Not here: the
// list's mechanics (lists.js), tokens (tokens.js).

import { get } from "./api.js";
import { add, block, button, count, field, fill, foreign, h, link, number, plural, select } from "./dom.js";
import { focusedRow, followRow, listAddress, moreFilters, pagedList, rowKeys, sortHead } from "./lists.js";
import { legend, tokensOf } from "./tokens.js";

const DEFAULTS = { sort: "row", order: "asc" };
const SORTS = [["row", "File order"], ["mean_logprob", "Mean log-probability"], ["n_tokens", "Tokens"], ["reward", "Reward"], ["temperature", "Temperature"]];
const STOPS = { eos: "end of text", length: "length limit", repeat: "repeats itself", marker: "marker" };
const PAIR = 2;

let chosen = []; // ids marked for comparison; they outlive a page of the list

export function stopName(reason) {
  return STOPS[reason] ?? reason;
}

function options(facets, nothing, name = (value) => value) {
  return [["", nothing], ...facets.map(({ value, label, n }) => [value, `${label ?? name(value)} (${count(n)})`])];
}

function filterForm(ctx, facets) {
  const { score } = facets;
  const bounds = score.low === null ? "" : `${number(score.low)} to ${number(score.high)}`;
  const bound = (name, text) => field(text, h("input", { type: "number", name, step: "any", placeholder: bounds ? bounds.split(" to ")[name === "min_score" ? 0 : 1] : null }));
  return h(
    "form",
    { class: "filters", role: "search", "aria-label": "Filter the generations" },
    field("Text contains", h("input", { type: "search", name: "q", maxlength: "200", autocomplete: "off", spellcheck: "false", data: { search: "" }, placeholder: "in prompt or completion" }), { class: "field wide" }),
    field("Prompt", h("input", { type: "search", name: "prompt_id", maxlength: "200", autocomplete: "off", spellcheck: "false", placeholder: "its id" }), { class: "field half" }),
    moreFilters(
    ctx,
    field("Strategy", select("strategy", options(facets.arms, "All"))),
    field("Temperature", select("temperature", options(facets.temperatures, "All", (t) => (t === null || t === "none" ? "none" : String(t))))),
    field("Category", select("category", options(facets.categories, "All"))),
    field("Stopped by", select("stop_reason", options(facets.stop_reasons, "All", stopName))),
    bound("min_score", `${scoreName(score.name)} from`),
    bound("max_score", `${scoreName(score.name)} to`),
    field("Sort by", select("sort", SORTS, DEFAULTS.sort)),
    field("Order", select("order", [["asc", "ascending"], ["desc", "descending"]], DEFAULTS.order)),
    ),
  );
}

/** A run that scored its completions is filtered by the reward, which has a name of its own. */
function scoreName(name) {
  return name === "mean_logprob" ? "Log-prob." : "Reward";
}

function toggle(id, refresh) {
  chosen = chosen.includes(id) ? chosen.filter((one) => one !== id) : [...chosen, id].slice(-PAIR);
  refresh();
}

function compareBar(place, ctx, uncheck) {
  const go = () => chosen.length === PAIR && ctx.go(`#/compare/${chosen.join("/")}`);
  const draw = () => {
    place.hidden = chosen.length === 0;
    fill(
      place,
      h("span", {}, "To compare:"),
      ...chosen.map((id) => button([`#${id} `, h("span", { "aria-hidden": "true" }, "×")], () => uncheck(id), { class: "chip", "aria-label": `Take #${id} out of the comparison` })),
      chosen.length < PAIR ? h("span", { class: "muted" }, "choose one more") : button("Compare", go, { class: "primary" }),
    );
  };
  return { go, draw };
}

function row(item, list, onToggle) {
  const box = h("input", { type: "checkbox", checked: chosen.includes(item.id), onchange: () => onToggle(item.id), "aria-label": `Choose #${item.id} for comparison`, data: { choose: item.id } });
  const reward = list.hasReward ? h("td", { class: "number", "data-head": "Reward" }, number(item.reward)) : null;
  return h(
    "tr",
    { data: { row: item.id }, onclick: followRow },
    h("td", { class: "choose" }, h("label", { class: "touch" }, box)),
    h("th", { scope: "row", class: "wide" }, h("a", { href: `#/generations/${item.id}`, data: { key: `row:${item.id}` }, class: "excerpt" }, h("span", { class: "muted" }, `#${item.id} `), foreign(item.text.trim() || "(empty)")), h("small", { class: "clip" }, foreign(item.prompt))),
    h("td", { "data-head": "Strategy" }, foreign(item.arm)),
    h("td", { "data-head": "Category" }, item.category ? foreign(item.category) : "–"),
    h("td", { class: "number", "data-head": "Log-prob." }, number(item.mean_logprob)),
    h("td", { class: "number", "data-head": "Tokens" }, count(item.n_tokens)),
    reward,
    h("td", { "data-head": "Stopped by" }, stopName(item.stop_reason)),
  );
}

function table(answer, list, onToggle) {
  const head = h(
    "tr",
    {},
    h("th", { scope: "col" }, h("span", { class: "hidden" }, "Choose")),
    h("th", { scope: "col" }, "Completion and prompt"),
    h("th", { scope: "col" }, "Strategy"),
    h("th", { scope: "col" }, "Category"),
    sortHead(list, "mean_logprob", "Log-prob.", { class: "number" }),
    sortHead(list, "n_tokens", "Tokens", { class: "number" }),
    list.hasReward ? sortHead(list, "reward", "Reward", { class: "number" }) : null,
    h("th", { scope: "col" }, "Stopped by"),
  );
  const rows = answer.rows.map((item) => row(item, list, onToggle));
  return h("table", { class: "cards rows" }, h("caption", { class: "hidden" }, "Generations"), h("thead", {}, head), h("tbody", {}, ...rows));
}

export async function openGenerations(ctx) {
  const facets = await get("/generations/facets", {}, ctx.signal);
  const bar = h("div", { class: "comparebar", hidden: true, role: "group", "aria-label": "Comparison" });
  const refreshBoxes = () => {
    for (const box of list.results.querySelectorAll("[data-choose]")) box.checked = chosen.includes(Number(box.dataset.choose));
    compare.draw();
  };
  const onToggle = (id) => toggle(id, refreshBoxes);
  const list = pagedList(ctx, {
    form: filterForm(ctx, facets),
    defaults: DEFAULTS,
    load: (params, signal) => get("/generations", params, signal),
    draw: (answer) => table(answer, list, onToggle),
    noun: ["generation"],
    empty: "No generation passes these filters. Take one of them back.",
  });
  list.hasReward = facets.score.name !== "mean_logprob";
  const compare = compareBar(bar, ctx, onToggle);
  compare.draw();
  await list.refresh();
  const chooseFocused = () => {
    const focused = focusedRow(list.results);
    if (!focused) return false;
    onToggle(Number(focused.dataset.row));
    return true;
  };
  return {
    title: "Generations",
    body: [
      h("h1", { tabindex: "-1" }, "Generations"),
      h("p", { class: "lead" }, `${plural(facets.n, "completion")} of the decoding study. Open one to see its tokens; choose two to compare them.`),
      list.element,
      bar,
    ],
    keys: rowKeys(list.results, {
      x: { does: "Choose the row for comparison", run: chooseFocused },
      c: { does: "Compare the two chosen", run: compare.go },
    }),
    update: (query) => list.update(query),
  };
}

function fact(name, value) {
  return h("div", {}, h("dt", {}, name), h("dd", {}, value));
}

function facts(item) {
  const params = Object.entries(typeof item.params === "string" ? JSON.parse(item.params) : item.params).map(([name, value]) => `${name} = ${value}`);
  return h(
    "dl",
    { class: "facts" },
    fact("Strategy", foreign(item.arm)),
    params.length ? fact("Parameters", foreign(params.join(", "))) : null,
    fact("Temperature", item.temperature === null ? "none" : String(item.temperature)),
    fact("Sample", count(item.sample)),
    fact("Seed", String(item.seed)),
    fact("Stopped by", stopName(item.stop_reason)),
    fact("Tokens", count(item.n_tokens)),
    fact("Mean log-probability", `${number(item.mean_logprob, 3)} nats`),
    item.reward === null ? null : fact("Reward", number(item.reward, 3)),
    item.score === null ? null : fact("Beam score", number(item.score, 2)),
    item.category ? fact("Category", foreign(item.category)) : null,
    fact("Prompt", h("a", { href: `#/generations?prompt_id=${encodeURIComponent(item.prompt_id)}` }, foreign(item.prompt_id))),
  );
}

function shaded(item) {
  if (!item.spans?.length) return [h("p", { class: "muted" }, "Tokens are not shown: this run recorded no pieces of its tokenizer."), ...[block(item.text, { "aria-label": "Completion" })].flat()];
  const more = item.n_tokens > item.spans.reduce((n, span) => n + Math.max(1, span.logprobs.length), 0);
  return [legend(), tokensOf(item.spans, "Tokens of the completion; arrow keys walk"), more ? h("p", { class: "muted" }, "Only the first tokens are shown.") : null];
}

function siblings(item) {
  const others = item.siblings.filter(({ id }) => id !== item.id);
  if (!others.length) return null;
  const line = ({ id, arm, sample }) =>
    h("li", {}, h("a", { href: `#/generations/${id}` }, foreign(arm), sample ? `, sample ${sample}` : ""), " ", h("a", { href: `#/compare/${item.id}/${id}`, class: "small", "aria-label": `compare with ${arm}, sample ${sample}` }, "compare"));
  return [h("h2", {}, "Other completions of this prompt"), h("ul", { class: "siblings" }, ...others.map(line))];
}

function runnersUp(item) {
  if (!item.runners_up.length) return null;
  const title = ({ score, stop_reason, n_tokens }) => `Beam score ${number(score, 2)}, ${plural(n_tokens, "token")}, stopped by ${stopName(stop_reason)}`;
  return [h("h2", {}, "Runners-up of the beam search"), ...item.runners_up.map((beam) => details(title(beam), beam.text))];
}

export async function openGeneration(ctx) {
  const [id] = ctx.params;
  const item = await get(`/generations/${id}`, {}, ctx.signal);
  const step = (by) => () => (id + by < 0 ? false : ctx.go(`#/generations/${id + by}`));
  const input = item.input.text ? [h("h2", {}, "Input"), block(item.input, { "aria-label": "Input" })] : null;
  return {
    title: `Generation ${id}`,
    body: [
      h("p", { class: "crumbs" }, link(listAddress("/generations"), "Generations"), " / "),
      h("h1", { tabindex: "-1" }, `Generation ${id}`),
      facts(item),
      h("h2", {}, "Prompt"),
      block(item.instruction.text || item.instruction.left_out ? item.instruction : item.prompt, { class: "quote", "aria-label": "Prompt" }),
      input,
      h("h2", {}, "Completion"),
      shaded(item),
      details("As post-processed", item.text),
      details("The whole prompt as the model read it", item.prompt),
      runnersUp(item),
      siblings(item),
    ].flat(3),
    keys: {
      "[": { does: "Generation before", run: step(-1) },
      "]": { does: "Next generation", run: step(1) },
      u: { does: "Back to the list", run: () => ctx.go(listAddress("/generations")) },
    },
  };
}

function details(title, text) {
  return h("details", {}, h("summary", {}, title), ...[block(text, { "aria-label": title })].flat());
}

function marked(parts, fallback) {
  if (!parts?.length) return block(fallback, { "aria-label": "Completion" });
  return h("div", { class: "text", dir: "auto", tabindex: "0", role: "group", "aria-label": "Completion" }, ...parts.map(({ text, changed }) => (changed ? h("mark", {}, text) : text)));
}

function side(item, parts, name) {
  return h(
    "section",
    { class: "side", "aria-label": `${name}: generation ${item.id}` },
    h("h2", {}, `${name}: `, link(`#/generations/${item.id}`, `#${item.id}`)),
    h("p", { class: "muted" }, foreign(item.arm), `, ${stopName(item.stop_reason)}, ${plural(item.n_tokens, "token")}, ${number(item.mean_logprob)} nats a token`, item.reward === null ? "" : `, reward ${number(item.reward)}`),
    ...[marked(parts, item.text)].flat(),
  );
}

export async function openComparison(ctx) {
  const [a, b] = ctx.params;
  const found = await get("/generations/compare", { a, b }, ctx.signal);
  const same = found.a.prompt_id === found.b.prompt_id;
  const prompt = (item, name) => [h("h2", {}, name), block(item.instruction.text ? item.instruction : item.prompt, { class: "quote", "aria-label": name })];
  const page = [
    h("p", { class: "crumbs" }, link(listAddress("/generations"), "Generations"), " / "),
    h("h1", { tabindex: "-1" }, `Generations ${a} and ${b}`),
    h("p", { class: "muted" }, "Words that are not in the other text are ", h("mark", {}, "marked"), "."),
    same ? prompt(found.a, "Prompt") : [h("p", {}, "These answer different prompts."), prompt(found.a, "Prompt of A"), prompt(found.b, "Prompt of B")],
    add(h("div", { class: "sides" }), side(found.a, found.marked_a, "A"), side(found.b, found.marked_b, "B")),
    h("p", {}, link(`#/compare/${b}/${a}`, "Swap the sides")),
  ];
  return {
    title: `Comparison of ${a} and ${b}`,
    body: page.flat(3),
    keys: {
      s: { does: "Swap the sides", run: () => ctx.go(`#/compare/${b}/${a}`) },
      u: { does: "Back to the list", run: () => ctx.go(listAddress("/generations")) },
    },
  };
}


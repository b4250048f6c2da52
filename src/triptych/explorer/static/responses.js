// Every response that the audits read: a list with filters, and one response beside those of the other checkpoints. Not
// here: findings (audits.js).

import { get } from "./api.js";
import { block, count, field, figure, foreign, h, link, number, plural, select } from "./dom.js";
import { followRow, listAddress, moreFilters, pagedList, rowKeys, sortHead } from "./lists.js";

const DEFAULTS = { sort: "row", order: "asc" };
const SORTS = [["row", "File order"], ["n_tokens", "Tokens"], ["n_words", "Words"]];

/** "no_input" → "no input" */
export function kindName(kind) {
  return String(kind).replaceAll("_", " ");
}

function plain(names, nothing, name = (value) => value) {
  return [["", nothing], ...names.map((one) => (typeof one === "object" ? [one.value, `${name(one.value)} (${count(one.n)})`] : [one, name(one)]))];
}

function filterForm(ctx, card) {
  return h(
    "form",
    { class: "filters", role: "search", "aria-label": "Filter the responses" },
    field("Text contains", h("input", { type: "search", name: "q", maxlength: "200", autocomplete: "off", spellcheck: "false", data: { search: "" }, placeholder: "in prompt or response" }), { class: "field wide" }),
    moreFilters(
    ctx,
    field("Checkpoint", select("model", plain(card.checkpoints, "All"))),
    field("Kind", select("kind", plain(card.kinds, "All", kindName))),
    card.categories?.length ? field("Category", select("category", plain(card.categories, "All"))) : null,
    field("Sort by", select("sort", SORTS, DEFAULTS.sort)),
    field("Order", select("order", [["asc", "ascending"], ["desc", "descending"]], DEFAULTS.order)),
    ),
  );
}

function row(item) {
  return h(
    "tr",
    { data: { row: item.id }, onclick: followRow },
    h("th", { scope: "row", class: "wide" }, h("a", { href: `#/audits/response/${item.id}`, data: { key: `row:${item.id}` }, class: "excerpt" }, foreign(item.text.trim() || "(empty)")), h("small", { class: "clip" }, foreign(item.prompt))),
    h("td", { "data-head": "Checkpoint" }, foreign(item.model)),
    h("td", { "data-head": "Kind" }, kindName(item.kind)),
    h("td", { "data-head": "Category" }, item.category ? foreign(item.category) : "–"),
    h("td", { class: "number", "data-head": "Words" }, count(item.n_words)),
    h("td", { class: "number", "data-head": "Tokens" }, count(item.n_tokens)),
    h("td", { "data-head": "Cut off" }, item.is_truncated ? "yes" : "no"),
  );
}

function table(answer, list) {
  const head = h(
    "tr",
    {},
    ...["Response and prompt", "Checkpoint", "Kind", "Category"].map((name) => h("th", { scope: "col" }, name)),
    sortHead(list, "n_words", "Words", { class: "number" }),
    sortHead(list, "n_tokens", "Tokens", { class: "number" }),
    h("th", { scope: "col" }, "Cut off"),
  );
  return h("table", { class: "cards rows" }, h("caption", { class: "hidden" }, "Responses"), h("thead", {}, head), h("tbody", {}, ...answer.rows.map(row)));
}

export async function openResponses(ctx) {
  const card = await get("/audits", {}, ctx.signal);
  const list = pagedList(ctx, {
    form: filterForm(ctx, card),
    defaults: DEFAULTS,
    load: (params, signal) => get("/audits/responses", params, signal),
    draw: (answer) => table(answer, list),
    noun: ["response"],
    empty: "No response passes these filters. Take one of them back.",
  });
  await list.refresh();
  return {
    title: "Responses",
    body: [h("p", { class: "crumbs" }, link("#/audits", "Audits"), " / "), h("h1", { tabindex: "-1" }, "Responses"), h("p", { class: "lead" }, "What every checkpoint answered to the prompts of the audits."), list.element],
    keys: rowKeys(list.results),
    update: (query) => list.update(query),
  };
}

function scoresOf(scores) {
  if (!scores?.length) return null;
  return h("p", { class: "muted" }, scores.map(({ scorer, score, before }) => `${scorer}: ${figure(score ?? before)}`).join(" · "));
}

function answer(item, isFirst) {
  const title = isFirst ? foreign(item.model) : h("a", { href: `#/audits/response/${item.id}` }, foreign(item.model));
  return h(
    "section",
    { class: "side", "aria-label": `Response of ${item.model}` },
    h("h2", {}, title),
    h("p", { class: "muted" }, `${plural(item.n_words, "word")}, ${plural(item.n_tokens, "token")}${item.is_truncated ? ", cut off" : ""}`, item.mean_logprob === undefined || item.mean_logprob === null ? "" : `, ${number(item.mean_logprob)} nats a token`),
    scoresOf(item.scores),
    ...[block(item.text, { "aria-label": `Response of ${item.model}` })].flat(),
  );
}

export async function openResponse(ctx) {
  const [id] = ctx.params;
  const item = await get(`/audits/responses/${id}`, {}, ctx.signal);
  const others = (item.others ?? []).filter((other) => other.id !== item.id);
  const step = (by) => () => (id + by < 0 ? false : ctx.go(`#/audits/response/${id + by}`));
  return {
    title: `Response ${id}`,
    body: [
      h("p", { class: "crumbs" }, link("#/audits", "Audits"), " / ", link(listAddress("/audits/responses"), "Responses"), " / "),
      h("h1", { tabindex: "-1" }, `Response ${id}`),
      h("p", { class: "muted" }, `${kindName(item.kind)} · `, foreign(item.prompt_id), item.category ? [" · ", foreign(item.category)] : ""),
      h("h2", {}, "Prompt"),
      block(item.instruction, { class: "quote", "aria-label": "Prompt" }),
      item.input?.text ? [h("h2", {}, "Input"), block(item.input, { class: "quote", "aria-label": "Input" })] : null,
      h("div", { class: "sides" }, answer(item, true), ...others.map((other) => answer(other, false))),
    ].flat(3),
    keys: {
      "[": { does: "Response before", run: step(-1) },
      "]": { does: "Next response", run: step(1) },
      u: { does: "Back to the list", run: () => ctx.go(listAddress("/audits/responses")) },
    },
  };
}

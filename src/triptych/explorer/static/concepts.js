// The latents of the universal dictionary: how often they fire in each model, what fires them, and one latent's page.
// Not here: the drawings (charts.js), the list's mechanics (lists.js).

import { get } from "./api.js";
import { CLASSES, SHAPES, histogram, scatter } from "./charts.js";
import { add, button, count, field, fill, foreign, h, link, message, number, percent, plural, select } from "./dom.js";
import { followRow, listAddress, moreFilters, pagedList, rowKeys, sortHead } from "./lists.js";

const DEFAULTS = { sort: "latent", order: "asc" };
const SORTS = [["latent", "Number"], ["entropy", "Firing entropy"], ["co_fires", "Fires in all models"], ["fires", "Fires in any model"], ["label_auroc", "AUROC of the label"]];
const MEANING = {
  universal: "explains about as much of all models, and is confirmed",
  mid: "explains more of one model than of another, or is not confirmed",
  specific: "explains one model almost alone",
  dead: "explains next to nothing",
};
const THUMB = 64;
const GALLERY = 24;

function classBadge(cls) {
  return h("span", { class: `cls ${cls}` }, h("span", { "aria-hidden": "true" }, `${SHAPES[cls]} `), cls);
}

function imageUrl(url) {
  return url.startsWith("/") ? url : `/${url}`;
}

function picture(image, alt, props = {}) {
  return h("img", { src: imageUrl(image), alt, width: THUMB, height: THUMB, loading: "lazy", decoding: "async", ...props });
}

function filterForm(ctx, overview) {
  const factors = h("select", { name: "factor" }, h("option", { value: "" }, "Any"), ...overview.factors.map(({ name }) => h("option", { value: name }, name)));
  const values = h("select", { name: "value" });
  const fillValues = () => {
    const kept = values.value;
    const own = overview.factors.find(({ name }) => name === factors.value)?.values ?? [];
    fill(values, h("option", { value: "" }, "Any"), ...own.map((value) => h("option", { value }, value)));
    values.value = own.includes(kept) ? kept : "";
    values.disabled = !own.length;
  };
  const form = h(
    "form",
    { class: "filters", role: "search", "aria-label": "Filter the latents" },
    field("Label or factor", h("input", { type: "search", name: "q", maxlength: "200", autocomplete: "off", spellcheck: "false", data: { search: "" }, placeholder: "star, shape …" }), { class: "field wide" }),
    moreFilters(
    ctx,
    field("Class", select("cls", [["", "All"], ...CLASSES.map((cls) => [cls, `${cls} (${count(overview.classes[cls])})`])], "")),
    field("Against chance", select("confirmed", [["", "All"], ["true", "confirmed"], ["false", "not confirmed"]], "")),
    field("Factor", factors),
    field("Value", values),
    field("AUROC from", h("input", { type: "number", name: "min_auroc", min: "0", max: "1", step: "any" })),
    overview.pictured.length ? field("Pictures", select("pictured", [["", "All"], ["true", "with large pictures"], ["false", "without"]], "")) : null,
    field("Sort by", select("sort", SORTS, DEFAULTS.sort)),
    field("Order", select("order", [["asc", "ascending"], ["desc", "descending"]], DEFAULTS.order)),
    ),
  );
  factors.addEventListener("change", fillValues);
  fillValues();
  return { form, fillValues };
}

function thumbnails(item, models) {
  const found = models.filter((model) => item.thumbnails?.[model]?.length);
  if (!found.length) return h("span", { class: "muted" }, "–");
  return h(
    "div",
    { class: "thumbs" },
    ...found.map((model) => h("span", { class: "strip" }, h("small", {}, foreign(model)), ...item.thumbnails[model].map((url, at) => picture(url, `${model}, image ${at + 1}`, { class: "thumb" })))),
  );
}

function row(item, { models, unit }) {
  const label = item.label ? [foreign(item.label), ` (${number(item.label_auroc)})`] : "–";
  return h(
    "tr",
    { data: { row: item.latent }, onclick: followRow },
    h("th", { scope: "row", class: "name", "data-name": "Latent" }, h("a", { href: `#/concepts/${item.latent}`, data: { key: `row:${item.latent}` } }, `${item.latent}`)),
    h("td", { "data-head": "Class" }, classBadge(item.cls), item.specific_to ? h("small", {}, "to ", foreign(item.specific_to)) : null, item.confirmed ? h("small", {}, "✓ confirmed") : null),
    h("td", { class: "number", "data-head": "Entropy" }, number(item.entropy)),
    ...models.map((model) => h("td", { class: "number", "data-head": `Fires, ${model}` }, count(item.fires[model]))),
    h("td", { class: "number", "data-head": "In all" }, count(item.co_fires)),
    h("td", { class: "whole", "data-head": "Label" }, label),
    unit === "image" ? h("td", { class: "whole", "data-head": "Top images" }, thumbnails(item, models)) : null,
  );
}

function table(answer, list, overview) {
  const { models } = overview;
  const head = h(
    "tr",
    {},
    sortHead(list, "latent", "Latent", {}, "asc"),
    h("th", { scope: "col" }, "Class"),
    sortHead(list, "entropy", "Entropy", { class: "number" }),
    ...models.map((model) => h("th", { scope: "col", class: "number" }, "Fires, ", foreign(model))),
    sortHead(list, "co_fires", "In all", { class: "number" }),
    sortHead(list, "label_auroc", "Label (AUROC)"),
    overview.unit === "image" ? h("th", { scope: "col" }, "Top images") : null,
  );
  return h("table", { class: "cards rows" }, h("caption", { class: "hidden" }, "Latents"), h("thead", {}, head), h("tbody", {}, ...answer.rows.map((item) => row(item, overview))));
}

function classChips(overview, list) {
  const place = h("ul", { class: "counts classes" });
  const draw = (cls) =>
    fill(
      place,
      ...CLASSES.map((one) => {
        const press = button([h("strong", {}, count(overview.classes[one])), classBadge(one), h("small", {}, MEANING[one])], () => list.set({ cls: one === cls ? "" : one }), { "aria-pressed": String(one === cls), class: `tilebutton ${one}`, data: { key: `cls:${one}` } });
        return h("li", {}, press);
      }),
    );
  return { place, draw };
}

/** The latents with large pictures: what one came to see. */
function gallery(overview, items) {
  if (!items.length) return null;
  const strip = (model, urls) => h("span", { class: "strip" }, ...urls.map((url, at) => picture(url, `${model}, image ${at + 1}`, { class: "thumb" })));
  const card = (item) =>
    h(
      "li",
      { class: "tile" },
      h("h3", {}, h("a", { href: `#/concepts/${item.latent}` }, `Latent ${item.latent}`), " ", h("small", {}, classBadge(item.cls))),
      ...overview.models.filter((model) => item.thumbnails[model]?.length).map((model) => h("div", { class: "strips" }, h("small", {}, foreign(model)), strip(model, item.thumbnails[model]))),
      h("p", {}, item.label ? foreign(item.label) : "no label"),
    );
  return [h("h2", {}, "Latents with pictures"), h("ul", { class: "tiles gallery" }, ...items.map(card))];
}

function summary(overview) {
  if (!overview.summary.length) return null;
  return h("dl", { class: "summary" }, ...overview.summary.map(({ label, text }) => h("div", {}, h("dt", {}, label), h("dd", { dir: "auto" }, text))));
}

function tipOf(data, index, models) {
  return [
    h("p", { class: "token" }, `Latent ${data.latent[index]} `, classBadge(CLASSES[data.class[index]])),
    h("dl", { class: "pairs" }, ...models.map((model) => h("div", {}, h("dt", {}, "Fires, ", foreign(model)), h("dd", {}, count(data.fires[model][index])))), h("div", {}, h("dt", {}, "In all"), h("dd", {}, count(data.co_fires[index]))), h("div", {}, h("dt", {}, "Entropy"), h("dd", {}, number(data.entropy[index])))),
  ];
}

function scatterFigure(ctx, overview, data, state) {
  const { models } = overview;
  if (models.length < 2 || !data.latent.length) return { element: message("note", "A scatter needs two models and latents that fire."), draw() {}, close() {} };
  const axes = [models[0], models[1]];
  const picture = scatter({
    data,
    chosen: () => axes,
    isShown: (cls) => !state.cls || state.cls === cls,
    onOpen: (latent) => ctx.go(`#/concepts/${latent}`),
    tip: (index) => tipOf(data, index, models),
    label: `${plural(data.latent.length, "live latent")} by how often they fire in ${axes.join(" and in ")}; the table below lists them`,
  });
  const pick = (at) =>
    field(at ? "Upwards" : "Across", select(at ? "y" : "x", models.map((model) => [model, model]), axes[at], { onchange: (event) => ((axes[at] = event.target.value), picture.draw()) }));
  const key = h("p", { class: "muted small" }, ...CLASSES.slice(0, 3).map((cls) => [classBadge(cls), " "]), "· press a point to open its latent");
  const figure = h("figure", {}, h("figcaption", {}, h("h2", {}, "In which model it fires")), models.length > 2 ? h("div", { class: "filters" }, pick(0), pick(1)) : null, picture.element, key);
  return { element: figure, draw: picture.draw, close: picture.close };
}

function histogramFigure(overview, state, list) {
  const place = h("div", {});
  const { edges, counts } = overview.entropy_histogram;
  const classOf = (x) => (x >= overview.thresholds.universal ? "universal" : x <= overview.thresholds.specific ? "specific" : "mid");
  const draw = () =>
    fill(
      place,
      ...histogram({
        edges,
        counts,
        other: overview.null_histogram?.shuffled,
        otherName: `the same with ${overview.unit}s shuffled between the models`,
        thresholds: overview.thresholds,
        classOf,
        isShown: (cls) => !state.cls || state.cls === cls,
        onPick: (cls) => list.set({ cls: cls === state.cls ? "" : cls }),
        label: `Histogram of firing entropy: ${CLASSES.slice(0, 3).map((cls) => `${count(overview.classes[cls])} ${cls}`).join(", ")}`,
      }),
    );
  return { element: h("figure", {}, h("figcaption", {}, h("h2", {}, "How universal it is")), place), draw };
}

export async function openLatents(ctx) {
  const [overview, data, pictured] = await Promise.all([
    get("/concepts", {}, ctx.signal),
    get("/concepts/scatter", {}, ctx.signal),
    get("/concepts/latents", { pictured: true, size: GALLERY }, ctx.signal),
  ]);
  const { form, fillValues } = filterForm(ctx, overview);
  const state = { cls: ctx.query.get("cls") ?? "" };
  // The values on offer depend on the factor: they must be there before the address is put into the form.
  form.elements.factor.value = ctx.query.get("factor") ?? "";
  fillValues();
  const list = pagedList(ctx, {
    form,
    defaults: DEFAULTS,
    load: (params, signal) => get("/concepts/latents", params, signal),
    draw: (answer) => table(answer, list, overview),
    noun: ["latent"],
    empty: "No latent passes these filters. Take one of them back.",
  });
  const chips = classChips(overview, list);
  const points = scatterFigure(ctx, overview, data, state);
  const bars = histogramFigure(overview, state, list);
  const redraw = () => {
    const focused = document.activeElement?.dataset?.key;
    chips.draw(state.cls);
    bars.draw();
    points.draw();
    if (focused) chips.place.querySelector(`[data-key="${CSS.escape(focused)}"]`)?.focus();
  };
  redraw();
  await list.refresh();
  return {
    title: "Concepts",
    body: [
      h("h1", { tabindex: "-1" }, "Concepts"),
      h("p", { class: "lead" }, `${plural(overview.n, "latent")} shared by ${overview.models.length} models; ${count(overview.confirmed)} of the universal ones fire together more often than chance would have it.`),
      overview.unit === "row" ? h("p", { class: "muted" }, "This run has no images: its activations were given as matrices. The page of a latent lists the rows on which it fires most.") : null,
      chips.place,
      h("div", { class: "figures" }, points.element, bars.element),
      gallery(overview, pictured.rows),
      h("h2", {}, "Latents"),
      list.element,
      overview.summary.length ? h("h2", {}, "What the dictionary is worth") : null,
      summary(overview),
    ].flat().filter(Boolean),
    keys: rowKeys(list.results),
    update(query) {
      form.elements.factor.value = query.get("factor") ?? "";
      fillValues();
      state.cls = query.get("cls") ?? "";
      redraw();
      return list.update(query);
    },
    close: points.close,
  };
}

// --- One latent -------------------------------------------------------------------------------------------------------

const ROWS = [
  ["top", "Top images", "the images on which it fires most"],
  ["heat", "Where it fires", "the same images; brighter where it fires more"],
  ["maximised", "Maximised", "an image made to drive it in all models at once"],
];

function imageRow(model, [key, title, about], images) {
  if (!images?.length) return null;
  const shown = images.map((image, at) => {
    const activation = image.activation === null || image.activation === undefined ? "" : number(image.activation);
    const alt = `${title} ${at + 1} of ${model}${image.image_id ? `: ${image.image_id}` : ""}`;
    return h("li", {}, picture(image.url, alt, { class: "large", title: image.image_id ?? title }), h("small", {}, activation));
  });
  return [h("h4", {}, title, " ", h("small", {}, about)), h("ul", { class: `pictures ${key}` }, ...shown)];
}

/** Rows that are no images: their names, and how strongly the latent fires on each. */
function modelRows(models) {
  const line = (row) => h("li", {}, h("span", { class: "piece" }, foreign(row.image_id ?? "a row")), " ", h("span", { class: "p" }, number(row.activation)));
  return h("div", { class: "sides" }, ...models.map(([model, { top }]) => h("section", { "aria-label": `Top rows of ${model}` }, h("h3", {}, foreign(model)), h("ol", {}, ...top.map(line)))));
}

function modelImages(item) {
  const models = Object.entries(item.images).filter(([, images]) => ROWS.some(([key]) => images[key]?.length));
  if (!models.length) return h("p", { class: "muted" }, item.unit === "row" ? "This latent fires on no held-out row." : "This latent has no pictures: the run kept those of some latents only.");
  if (item.unit === "row") return modelRows(models);
  return h("div", { class: "sides" }, ...models.map(([model, images]) => h("section", { "aria-label": `Pictures of ${model}` }, h("h3", {}, foreign(model)), ...ROWS.map((one) => imageRow(model, one, images[one[0]])).flat())));
}

function figures(item) {
  const models = Object.keys(item.fires);
  const line = (model) =>
    h("tr", {}, h("th", { scope: "row" }, foreign(model)), h("td", { class: "number" }, count(item.fires[model])), h("td", { class: "number" }, percent(item.cofire[model])), h("td", { class: "number" }, number(item.energy[model], 3)));
  const head = ["Model", `Fires (${item.unit}s)`, "Of these in all models", "Energy"].map((name, at) => h("th", { scope: "col", class: at ? "number" : null }, name));
  const chance = item.co_fire_chance === null || item.co_fire_chance === undefined ? "" : ` By chance it would be ${number(item.co_fire_chance, 1)}.`;
  return [
    h("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": "Firing" }, h("table", {}, h("caption", { class: "hidden" }, "Firing"), h("thead", {}, h("tr", {}, ...head)), h("tbody", {}, ...models.map(line)))),
    h("p", {}, `It fires in all models at once on ${plural(item.co_fires, item.unit)}.${chance}`),
  ];
}

function agreement(item) {
  if (!item.agreement.length) return h("p", { class: "muted" }, `No labelled property of the ${item.unit}s is known for this latent.`);
  // AUROC of 0.5 says nothing: the bar begins there.
  const bar = (auroc) => h("span", { class: "barbox", "aria-hidden": "true" }, h("span", { class: auroc < 0.5 ? "bar out" : "bar", css: { "--p": String(Math.abs(2 * auroc - 1)) } }));
  const line = (one) => h("li", {}, h("span", { class: "piece" }, foreign(`${one.factor} = ${one.value}`), one.model ? h("small", {}, " ", foreign(one.model)) : null), bar(one.auroc), h("span", { class: "p" }, number(one.auroc)));
  return [h("p", { class: "muted" }, `How well its activation tells ${item.unit}s with the property from those without (AUROC; the bar starts at 0.5, which is chance).`), h("ol", { class: "alternatives wide" }, ...item.agreement.map(line))];
}

function neighbours(item) {
  const go = (latent, text) => (latent === null ? h("span", { class: "button off" }, text) : h("a", { href: `#/concepts/${latent}`, class: "button" }, text));
  return h("nav", { class: "row", "aria-label": "Neighbours of the same class" }, go(item.previous, `← ${item.previous ?? "first"}`), go(item.next, `${item.next ?? "last"} →`), h("span", { class: "muted" }, `${item.cls} latents`));
}

export async function openLatent(ctx) {
  const [latent] = ctx.params;
  const item = await get(`/concepts/latents/${latent}`, {}, ctx.signal);
  const step = (to) => () => (to === null ? false : ctx.go(`#/concepts/${to}`));
  const label = item.label ? h("p", { class: "lead" }, "Best label: ", h("strong", {}, foreign(item.label)), ` (AUROC ${number(item.label_auroc)})`) : null;
  return {
    title: `Latent ${latent}`,
    body: [
      h("p", { class: "crumbs" }, link(listAddress("/concepts"), "Concepts"), " / "),
      add(h("h1", { tabindex: "-1" }), `Latent ${latent}`),
      h("p", {}, classBadge(item.cls), item.specific_to ? [" to ", foreign(item.specific_to)] : "", item.confirmed ? " · ✓ confirmed against chance" : "", ` · ${MEANING[item.cls]}`, item.entropy === null ? "" : ` · firing entropy ${number(item.entropy, 3)}`),
      label,
      neighbours(item),
      h("h2", {}, item.unit === "row" ? "Rows on which it fires most" : "Pictures"),
      modelImages(item),
      h("h2", {}, "Firing together"),
      figures(item),
      h("h2", {}, "What it agrees with"),
      agreement(item),
    ].flat(2).filter(Boolean),
    keys: {
      "[": { does: "Latent before, of the same class", run: step(item.previous) },
      "]": { does: "Next latent of the same class", run: step(item.next) },
      u: { does: "Back to the list", run: () => ctx.go(listAddress("/concepts")) },
    },
  };
}

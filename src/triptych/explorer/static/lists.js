// A list on the server, paged: a form of filters that lives in the address, a table or cards, a pager, and keys to walk
// the rows. Not here: what is listed, and how a row looks.

import { announce, button, count, debounced, fill, h, message, plural, select } from "./dom.js";

const SIZES = [25, 50, 100, 200];
const PAUSE = 250; // milliseconds of quiet before what is typed is looked for

const addresses = new Map(); // path → the list's address with its filters, as it was last seen

/** The way back to a list: with the filters it had. */
export function listAddress(path) {
  return addresses.get(path) ?? `#${path}`;
}

const wide = matchMedia("(min-width: 48.01rem)");

/** Filters that fold away on a phone, where they would stand before what they filter. */
export function moreFilters(ctx, ...fields) {
  const details = h("details", { class: "more", open: wide.matches }, h("summary", {}, "Filters and order"), h("div", { class: "filters" }, ...fields));
  wide.addEventListener("change", () => (details.open = wide.matches), { signal: ctx.signal });
  return details;
}

/** Runs the latest of several questions: an earlier one is aborted, its answer never arrives. */
export function latest(signal) {
  let controller = null;
  return async (ask) => {
    controller?.abort();
    controller = new AbortController();
    const own = controller;
    const answer = await ask(AbortSignal.any([signal, own.signal]));
    if (own.signal.aborted || signal.aborted) throw new DOMException("superseded", "AbortError");
    return answer;
  };
}

function pager(found, go, noun) {
  const { total, page, size, pages } = found;
  if (!total) return null;
  const step = (text, label, to) => button(text, () => go(to), { "aria-label": label, disabled: to < 0 || to >= pages || to === page, data: { page: label, key: `page:${label}` } });
  const from = page * size + 1;
  const range = `${count(from)}–${count(Math.min(total, from + size - 1))} of ${plural(total, ...noun)}`;
  const sizes = select("size", SIZES.includes(size) ? SIZES.map((n) => [n, n]) : [size, ...SIZES].map((n) => [n, n]), String(size), {
    "aria-label": "Rows on a page",
    onchange: (event) => go(0, event.target.value),
  });
  return h(
    "nav",
    { class: "pager", "aria-label": "Pages of the list" },
    h("span", { class: "range" }, range),
    h("span", { class: "row" }, step("«", "First page", 0), step("‹", "Previous page", page - 1), h("span", {}, `${count(page + 1)} / ${count(pages)}`), step("›", "Next page", page + 1), step("»", "Last page", pages - 1)),
    h("label", { class: "sizes" }, sizes, h("span", {}, " a page")),
  );
}

/** The set fields of a form; those that are empty or at the form's default say nothing and are left out. */
export function readForm(form, defaults = {}) {
  const entries = [...new FormData(form)].map(([name, value]) => [name, String(value).trim()]);
  return Object.fromEntries(entries.filter(([name, value]) => value !== "" && value !== String(defaults[name] ?? "")));
}

function writeForm(form, query, defaults) {
  for (const control of form.elements) {
    if (!control.name) continue;
    const value = query.get(control.name) ?? String(defaults[control.name] ?? "");
    if (control.type === "checkbox") control.checked = value === control.value;
    else if (control.value.trim() !== value) control.value = value;
  }
}

/** Keys that walk the links of the rows below `element`; `more` are further keys of the page. */
export function rowKeys(element, more = {}) {
  const rows = () => [...element.querySelectorAll("[data-row]")];
  const here = () => rows().findIndex((row) => row.contains(document.activeElement));
  const walk = (step, onlyInside) => () => {
    const at = here();
    if (onlyInside && at < 0) return false;
    const all = rows();
    const to = at < 0 ? (step > 0 ? 0 : all.length - 1) : Math.max(0, Math.min(all.length - 1, at + step));
    const target = all[to]?.querySelector("a");
    target?.focus();
    all[to]?.scrollIntoView({ block: "nearest" });
    return true;
  };
  const press = (label) => () => {
    const found = element.querySelector(`[data-page="${label}"]:not(:disabled)`);
    found?.click();
    return Boolean(found);
  };
  return {
    j: { does: "Next row (also ↓ within the list)", run: walk(1, false) },
    k: { does: "Row before (also ↑)", run: walk(-1, false) },
    Enter: { does: "Open the row", run: () => false },
    ArrowDown: { run: walk(1, true) },
    ArrowUp: { run: walk(-1, true) },
    n: { does: "Next page", run: press("Next page") },
    p: { does: "Page before", run: press("Previous page") },
    ...more,
  };
}

/** The row that holds the focus; null outside of the list. */
export function focusedRow(element) {
  return document.activeElement?.closest?.("[data-row]") && element.contains(document.activeElement) ? document.activeElement.closest("[data-row]") : null;
}

/** A click anywhere on a row follows its link; not while text is being selected, and not on a control. */
export function followRow(event) {
  if (event.defaultPrevented || event.target.closest("a, button, input, label, select")) return;
  if (event.metaKey || event.ctrlKey || String(getSelection())) return;
  event.currentTarget.querySelector("a")?.click();
}

/** A button in a column's head that sorts by it; a second press turns the order. */
export function sortHead(list, name, text, props = {}, first = "desc") {
  const sorted = list.sort === name;
  const order = sorted ? list.order : null;
  const next = sorted ? (list.order === "asc" ? "desc" : "asc") : first;
  const sign = { asc: " ↑", desc: " ↓" }[order] ?? "";
  return h(
    "th",
    { scope: "col", "aria-sort": { asc: "ascending", desc: "descending" }[order] ?? "none", ...props },
    button([text, h("span", { "aria-hidden": "true" }, sign)], () => list.set({ sort: name, order: next }), { class: "sort", title: `Sort by ${text}`, data: { key: `sort:${name}` } }),
  );
}

/**
 * A paged list. `options`: {form, defaults (of the form's fields), load(params, signal) → paged answer, draw(answer) →
 * nodes, noun [one, many], empty (a sentence)}.
 */
export function pagedList(ctx, options) {
  const { form, defaults = {}, load, draw, noun, empty } = options;
  const results = h("div", { class: "results", tabindex: "-1" });
  const element = h("div", { class: "list" }, form, results);
  const ask = latest(ctx.signal);
  let query = ctx.query;
  let ready = false;

  const params = () => Object.fromEntries(query);
  const list = {
    element,
    results,
    answer: null,
    get sort() {
      return query.get("sort") ?? defaults.sort;
    },
    get order() {
      return query.get("order") ?? defaults.order ?? "asc";
    },
    /** Changes some of the query and goes to the first page. */
    set(changes, { replace = false } = {}) {
      const { page: _, ...kept } = params();
      const next = Object.entries({ ...kept, ...changes }).filter(([key, value]) => value !== "" && value !== null && String(value) !== String(defaults[key] ?? ""));
      ctx.setQuery(Object.fromEntries(next), { replace });
    },
    async update(to) {
      query = to;
      writeForm(form, query, defaults);
      await refresh();
    },
  };
  const goPage = (page, size) => ctx.setQuery({ ...params(), page: page || null, size: size ?? query.get("size") });
  const changed = ({ replace }) => {
    const inForm = new Set([...form.elements].map((control) => control.name));
    const others = Object.entries(params()).filter(([key]) => !inForm.has(key) && key !== "page");
    ctx.setQuery({ ...Object.fromEntries(others), ...readForm(form, defaults) }, { replace });
  };
  const typed = debounced(() => changed({ replace: true }), PAUSE);

  // What was pressed has been drawn anew, or is of no use on this page: then the list itself takes the focus.
  function keepFocus(key) {
    const again = key ? results.querySelector(`[data-key="${CSS.escape(key)}"]:not(:disabled)`) : null;
    (again ?? results).focus();
  }

  async function refresh() {
    addresses.set(location.hash.replace(/^#|\?.*/gs, ""), location.hash);
    results.setAttribute("aria-busy", "true");
    try {
      const answer = await ask((signal) => load({ ...defaults, ...params() }, signal));
      list.answer = answer;
      const nodes = answer.total ? draw(answer) : [message("note", empty)];
      const key = results.contains(document.activeElement) ? document.activeElement.dataset.key ?? "" : null;
      fill(results, nodes, pager(answer, goPage, noun));
      if (key !== null) keepFocus(key);
      if (ready) announce(`${plural(answer.total, ...noun)}, page ${answer.page + 1} of ${Math.max(1, answer.pages)}`);
    } catch (error) {
      if (error.name === "AbortError") return;
      if (!error.status && error.status !== 0) throw error;
      fill(results, message("error", error.message));
    }
    ready = true;
    results.removeAttribute("aria-busy");
  }

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    typed.cancel();
    changed({ replace: false });
  });
  form.addEventListener("input", (event) => event.target.matches("input:not([type=checkbox], [type=radio])") && typed());
  form.addEventListener("change", (event) => {
    if (event.target.matches("select, [type=checkbox], [type=radio]")) {
      typed.cancel();
      changed({ replace: false });
    } else typed.now();
  });
  ctx.signal.addEventListener("abort", () => typed.cancel());
  writeForm(form, query, defaults);
  return Object.assign(list, { refresh });
}

// The router: from the hash to a page and back. A page is a function `open(ctx)` that gives its heading, body and keys;
// what it asks the server for is aborted when the page is left. Not here: any page.

import { ApiError, get, toQuery } from "./api.js";
import { button, fill, h, link, message } from "./dom.js";
import { initHelp, showHelp } from "./help.js";
import { setGlobalKeys, setPageKeys } from "./keyboard.js";
import { hidePopover } from "./popover.js";
import { openFinding, openFindings } from "./audits.js";
import { openLatent, openLatents } from "./concepts.js";
import { openComparison, openGeneration, openGenerations } from "./generations.js";
import { openOverview } from "./overview.js";
import { openPlayground } from "./playground.js";
import { openResponse, openResponses } from "./responses.js";

const NUMBER = "(\\d{1,12})";
const ROUTES = [
  ["/", "overview", openOverview],
  ["/playground", "playground", openPlayground],
  ["/generations", "generations", openGenerations],
  [`/generations/${NUMBER}`, "generations", openGeneration],
  [`/compare/${NUMBER}/${NUMBER}`, "generations", openComparison],
  ["/audits", "audits", openFindings],
  [`/audits/finding/${NUMBER}`, "audits", openFinding],
  ["/audits/responses", "audits", openResponses],
  [`/audits/response/${NUMBER}`, "audits", openResponse],
  ["/concepts", "concepts", openLatents],
  [`/concepts/${NUMBER}`, "concepts", openLatent],
].map(([pattern, panel, open]) => ({ pattern: new RegExp(`^${pattern}$`), panel, open }));

// `needs` is the panel of the run that a page reads.
const PAGES = [
  { panel: "overview", title: "Overview", href: "#/", key: "o" },
  { panel: "playground", title: "Playground", href: "#/playground", key: "p" },
  { panel: "generations", title: "Generations", href: "#/generations", key: "g", needs: "decoding" },
  { panel: "audits", title: "Audits", href: "#/audits", key: "a", needs: "auditing" },
  { panel: "concepts", title: "Concepts", href: "#/concepts", key: "c", needs: "dictionaries" },
];
const SLOW = 150; // milliseconds before "Loading": sooner it would only flicker

const main = document.getElementById("main");
let run = null;
let current = null; // {path, page, controller}
let isFirst = true;
let entry = null; // the history entry in view
const left = new Map(); // history entry → where it was left: {y, key}

function readHash() {
  const [path, query = ""] = location.hash.replace(/^#/, "").split(/\?(.*)/s);
  return { path: path || "/", query: new URLSearchParams(query) };
}

function isMissing(page) {
  return Boolean(run && page?.needs && !run.panels[page.needs]);
}

function drawNav(panel) {
  const items = PAGES.map((page) => {
    if (isMissing(page))
      return h("li", {}, h("span", { class: "off", title: `This run has no ${page.needs} panel` }, page.title, h("small", {}, "not in this run")));
    return h("li", {}, h("a", { href: page.href, "aria-current": page.panel === panel ? "page" : null }, page.title));
  });
  const nav = document.getElementById("nav");
  fill(nav, ...items);
  // On a narrow screen the pages may not all fit: the one in view is shown, without moving the page itself.
  const here = nav.querySelector("[aria-current]");
  if (here) nav.parentElement.scrollLeft = here.offsetLeft - nav.offsetLeft - 40;
}

function setTitle(title) {
  document.title = title === "Overview" ? "Triptych" : `${title} · Triptych`;
}

function show(title, body) {
  setTitle(title);
  fill(main, ...[body].flat());
}

function showError(error, title = "Something is missing") {
  const sentence = error instanceof ApiError ? error.message : `the page failed: ${error.message}`;
  if (!(error instanceof ApiError)) console.error(error);
  const again = button("Try again", () => route({ force: true }));
  show(title, [h("h1", { tabindex: "-1" }, error.status === 404 ? "There is no such page" : title), message("error", sentence), h("p", {}, again, " ", link("#/", "Overview"))]);
}

function showMissing(page) {
  show(page.title, [
    h("h1", { tabindex: "-1" }, page.title),
    message("note", `This run has no ${page.needs} panel, so there is nothing to show here. `, h("code", {}, "triptych study"), " makes all panels."),
    h("p", {}, link("#/", "Back to the overview")),
  ]);
}

function settle(back) {
  const kept = back ? left.get(entry) : null;
  const target = kept?.key ? main.querySelector(`[data-key="${CSS.escape(kept.key)}"]`) : null;
  // A page that was just loaded is read from its top, the skip link first, as any other page is.
  if (!isFirst) (target ?? main.querySelector("h1") ?? main).focus({ preventScroll: true });
  isFirst = false;
  scrollTo({ top: kept?.y ?? 0, behavior: "instant" });
}

/** The entry's own name; made for an entry that is new. True where the entry has been here before. */
function enter() {
  const known = typeof history.state?.entry === "string";
  if (!known) history.replaceState({ entry: `${Date.now()}.${Math.random()}` }, "");
  entry = history.state.entry;
  return known;
}

/** Nothing while a page comes: what is in view then is not yet what belongs to the entry. */
function remember() {
  if (entry && !main.hasAttribute("aria-busy")) left.set(entry, { y: scrollY, key: document.activeElement?.closest?.("[data-key]")?.dataset.key });
}

function leave() {
  hidePopover();
  current?.controller.abort();
  current?.page?.close?.();
  setPageKeys(null);
}

function context(found, query, controller) {
  const { path } = readHash();
  return {
    params: found.params,
    query,
    run,
    signal: controller.signal,
    /** Another query of the same page: a new history entry, or `replace` for what is still being typed. */
    setQuery(params, { replace = false } = {}) {
      const hash = `#${path}${toQuery(params)}`;
      if (hash === location.hash || controller.signal.aborted) return;
      if (!replace) {
        location.hash = hash;
        return;
      }
      history.replaceState(history.state, "", hash);
      route();
    },
    /** Notes the query in the address without telling the page, which knows it already. */
    noteQuery(params) {
      if (controller.signal.aborted) return;
      history.replaceState(history.state, "", `#${path}${toQuery(params)}`);
    },
    go(hash) {
      location.hash = hash;
    },
    setTitle,
  };
}

function match(path) {
  for (const { pattern, panel, open } of ROUTES) {
    const found = pattern.exec(path);
    if (found) return { panel, open, params: found.slice(1).map(Number) };
  }
  return null;
}

async function openPage(found, path, query, back) {
  leave();
  const controller = new AbortController();
  current = { path, page: null, controller };
  drawNav(found.panel);
  main.setAttribute("aria-busy", "true");
  const slow = setTimeout(() => fill(main, h("p", { class: "loading" }, "Loading …")), SLOW);
  try {
    run ??= await get("/run", {}, controller.signal);
    if (controller.signal.aborted) return;
    drawNav(found.panel);
    const place = PAGES.find((page) => page.panel === found.panel);
    if (isMissing(place)) {
      clearTimeout(slow);
      showMissing(place);
    } else {
      const page = await found.open(context(found, query, controller));
      clearTimeout(slow);
      if (controller.signal.aborted) {
        page.close?.();
        return;
      }
      current.page = page;
      setPageKeys(page.keys);
      show(page.title, page.body);
      page.shown?.();
    }
  } catch (error) {
    clearTimeout(slow);
    if (controller.signal.aborted || error.name === "AbortError") return;
    showError(error);
  } finally {
    clearTimeout(slow);
  }
  main.removeAttribute("aria-busy");
  settle(back);
}

async function route({ force = false } = {}) {
  const { path, query } = readHash();
  const back = enter();
  hidePopover();
  if (!force && current?.path === path && current.page?.update) {
    current.page.update(query);
    return;
  }
  const found = match(path);
  if (found) {
    await openPage(found, path, query, back);
    return;
  }
  leave();
  current = { path, page: null, controller: new AbortController() };
  drawNav("");
  showError(new ApiError(`no page has the address ${path.slice(0, 80)}`, 404));
  settle(back);
}

function initTheme() {
  const toggle = document.getElementById("theme");
  const signs = { auto: "◐", light: "☀", dark: "☾" };
  const draw = (theme) => {
    fill(toggle, h("span", { "aria-hidden": "true" }, signs[theme]), h("span", { class: "hidden" }, `Colours: ${theme}`));
    toggle.title = `Colours: ${theme}`;
    document.dispatchEvent(new CustomEvent("themechange"));
  };
  draw(globalThis.triptychTheme.get());
  toggle.addEventListener("click", () => draw(globalThis.triptychTheme.turn()));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => document.dispatchEvent(new CustomEvent("themechange")));
}

function initKeys() {
  const pages = PAGES.map((page) => [`g ${page.key}`, { does: `Go to ${page.title}`, run: () => (location.hash = page.href) }]);
  const focusSearch = () => {
    const field = main.querySelector("[data-search]");
    if (!field) return false;
    field.focus();
    field.select?.();
    return true;
  };
  setGlobalKeys({
    "?": { does: "This help", run: showHelp },
    "/": { does: "Focus the search field (playground: the prompt)", run: focusSearch },
    ...Object.fromEntries(pages),
    Escape: { does: "Close what is open, leave a field", run: () => hidePopover() || document.activeElement?.blur?.() },
  });
}

// The skip link's own "#main" would be taken for a route.
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault();
  (main.querySelector("h1") ?? main).focus();
});
history.scrollRestoration = "manual";
addEventListener("hashchange", () => route());
addEventListener("scroll", debounceRemember(), { passive: true });
document.addEventListener("focusin", () => queueMicrotask(remember));

function debounceRemember() {
  let waiting = false;
  return () => {
    if (waiting) return;
    waiting = true;
    setTimeout(() => {
      waiting = false;
      remember();
    }, 100);
  };
}

initTheme();
initHelp();
initKeys();
route();

// One listener for single-key shortcuts: those of the page in view, and those that hold everywhere. Keys typed into a
// field stay there. They can be turned off, since speech input types letters by accident. Not here: what the keys do.

const KEY = "triptych-keys";
let page = {};
let everywhere = {};
let prefix = "";
let on = read();

function read() {
  try {
    return localStorage.getItem(KEY) !== "off";
  } catch {
    return true;
  }
}

export const shortcuts = {
  get on() {
    return on;
  },
  set on(value) {
    on = value;
    try {
      localStorage.setItem(KEY, value ? "on" : "off");
    } catch {
      // No storage: the choice lasts until the page is left.
    }
  },
};

/** `keys` maps "j" or "g p" (two in a row) to {does: "sentence", run: (event) => …}. */
export function setPageKeys(keys) {
  page = keys ?? {};
  prefix = "";
}

export function setGlobalKeys(keys) {
  everywhere = keys;
}

/** What the help dialog lists: [keys, sentence] pairs. */
export function listKeys() {
  const lines = (keys) => Object.entries(keys).filter(([, { does }]) => does).map(([key, { does }]) => [key, does]);
  return { page: lines(page), everywhere: lines(everywhere) };
}

function isTyping(target) {
  if (!(target instanceof HTMLElement)) return false;
  if (target.isContentEditable || target instanceof HTMLTextAreaElement || target instanceof HTMLSelectElement) return true;
  return target instanceof HTMLInputElement && !["checkbox", "radio", "button"].includes(target.type);
}

function find(event) {
  const key = event.key;
  const pair = prefix ? `${prefix} ${key}` : "";
  const all = { ...everywhere, ...page };
  const found = (pair && all[pair]) || all[key];
  prefix = !found && Object.keys(all).some((name) => name.startsWith(`${key} `)) ? key : "";
  return found;
}

document.addEventListener("keydown", (event) => {
  if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey) return;
  if (document.querySelector("dialog[open]")) return;
  const named = event.key.length > 1; // Escape and arrows are no letters: they work when letters are off
  if (isTyping(event.target) && event.key !== "Escape") return;
  if (!on && !named) return;
  const found = find(event);
  if (!found) return;
  if (found.run(event) !== false) event.preventDefault();
});

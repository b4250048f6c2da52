// Light, dark or as the system says. A classic script in the head, so that the first paint has the right colours.
// Not here: the colours (app.css).
(() => {
  "use strict";
  const KEY = "triptych-theme";
  const THEMES = ["auto", "light", "dark"];

  // A browser that forbids storage throws on the mere mention of it: then a choice lasts until the page is left.
  const read = () => {
    try {
      const kept = localStorage.getItem(KEY);
      return THEMES.includes(kept) ? kept : "auto";
    } catch {
      return "auto";
    }
  };
  const write = (theme) => {
    try {
      localStorage.setItem(KEY, theme);
    } catch {
      // Nothing to do: see above.
    }
  };
  const apply = (theme) => {
    if (theme === "auto") document.documentElement.removeAttribute("data-theme");
    else document.documentElement.dataset.theme = theme;
  };

  let now = read();
  apply(now);
  globalThis.triptychTheme = {
    get: () => now,
    turn: () => {
      now = THEMES[(THEMES.indexOf(now) + 1) % THEMES.length];
      apply(now);
      write(now);
      return now;
    },
  };
})();

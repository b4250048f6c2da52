// One small box beside a token or a point with its figures. It is a tooltip: the element it belongs to stays focused and
// is described by it, and Escape closes it. Not here: what it says.

import { fill, h } from "./dom.js";

const GAP = 8;
const box = h("div", { id: "popover", role: "tooltip", class: "popover", hidden: true });
document.body.append(box);
let owner = null;
let atPoint = false; // beside a point of a drawing rather than an element

function place(rect) {
  const { clientWidth: width, clientHeight: height } = document.documentElement;
  const { offsetWidth: w, offsetHeight: t } = box;
  const below = rect.bottom + GAP + t <= height || rect.top < t + GAP;
  const left = Math.max(GAP, Math.min(rect.left, width - w - GAP));
  const top = below ? rect.bottom + GAP : rect.top - t - GAP;
  box.style.left = `${left}px`;
  box.style.top = `${Math.max(GAP, Math.min(top, Math.max(GAP, height - t - GAP)))}px`;
}

/** Shows `children` beside `element`, or beside `rect` (viewport pixels) where one is given. */
export function showPopover(element, children, rect = null) {
  if (owner !== element) owner?.removeAttribute("aria-describedby");
  owner = element;
  atPoint = rect !== null;
  fill(box, ...[children].flat());
  box.hidden = false;
  element.setAttribute("aria-describedby", box.id);
  // A token that wraps has a rectangle a line: the first one is where the eye is.
  place(rect ?? element.getClientRects()[0] ?? element.getBoundingClientRect());
}

/** True where one was open. */
export function hidePopover() {
  if (box.hidden) return false;
  box.hidden = true;
  owner?.removeAttribute("aria-describedby");
  owner = null;
  return true;
}

export function popoverOwner() {
  return owner;
}

// A focused token may have been scrolled into view just now: its box goes with it.
addEventListener(
  "scroll",
  (event) => {
    if (!owner || box.contains(event.target)) return;
    const rect = owner.getClientRects()[0];
    if (atPoint || !rect || rect.bottom < 0 || rect.top > innerHeight) hidePopover();
    else place(rect);
  },
  { passive: true, capture: true },
);
document.addEventListener("pointerdown", (event) => {
  if (owner && !owner.contains(event.target) && !box.contains(event.target)) hidePopover();
});

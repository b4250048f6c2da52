// Three drawings by hand: a scatter of latents (canvas: there may be thousands), a histogram and an interval on a scale
// (SVG). Colours come from the style sheet and never carry a meaning alone. Not here: where the figures come from.

import { count, figure, h, s } from "./dom.js";
import { hidePopover, showPopover } from "./popover.js";

const PAD = { left: 52, right: 14, top: 14, bottom: 44 };
const NEAR = 14; // pixels from a point that still mean it
export const CLASSES = ["universal", "mid", "specific", "dead"];
export const SHAPES = { universal: "●", mid: "■", specific: "▲", dead: "×" };

/** The value of a colour variable as the browser resolved it: canvas knows no variables. */
function colours(element) {
  const probe = h("span", { hidden: true });
  element.append(probe);
  const resolve = (name) => {
    probe.style.color = `var(--${name})`;
    return getComputedStyle(probe).color;
  };
  const found = Object.fromEntries(["ink", "muted", "line", "universal", "mid", "specific", "accent"].map((name) => [name, resolve(name)]));
  probe.remove();
  return found;
}

// Zero has no logarithm: counts are drawn at log(1 + n).
const place = (n) => Math.log10(1 + n);

function ticks(most) {
  const found = [0, 1];
  for (let n = 10; n <= most; n *= 10) found.push(n);
  return found.filter((n) => n <= Math.max(1, most));
}

function mark(pen, cls, x, y, r) {
  pen.beginPath();
  if (cls === "universal") pen.arc(x, y, r, 0, 2 * Math.PI);
  else if (cls === "mid") pen.rect(x - 0.85 * r, y - 0.85 * r, 1.7 * r, 1.7 * r);
  else {
    pen.moveTo(x, y - 1.15 * r);
    pen.lineTo(x + 1.1 * r, y + 0.8 * r);
    pen.lineTo(x - 1.1 * r, y + 0.8 * r);
    pen.closePath();
  }
}

/**
 * How often each latent fires in two models. `data`: the columns of the server; `chosen()` gives the two models' names,
 * `isShown(class)` whether a class is drawn strongly, `onOpen(latent)` opens one, `tip(index)` says what its box holds.
 */
export function scatter({ data, chosen, isShown, onOpen, tip, label }) {
  const canvas = h("canvas", { class: "scatter", role: "img", "aria-label": label });
  const frame = h("div", { class: "canvasbox" }, canvas);
  let points = []; // {x, y, index} in CSS pixels
  let hot = -1;

  function layout(width, height, xs, ys) {
    const mostX = place(Math.max(1, ...xs.map(Number)));
    const mostY = place(Math.max(1, ...ys.map(Number)));
    const toX = (n) => PAD.left + (place(n) / mostX) * (width - PAD.left - PAD.right);
    const toY = (n) => height - PAD.bottom - (place(n) / mostY) * (height - PAD.top - PAD.bottom);
    return { toX, toY };
  }

  function axes(pen, { toX, toY }, width, height, xs, ys, names, colour) {
    pen.font = `12px ${getComputedStyle(canvas).fontFamily}`;
    pen.lineWidth = 1;
    pen.strokeStyle = colour.line;
    pen.fillStyle = colour.muted;
    pen.textAlign = "center";
    for (const n of ticks(Math.max(...xs))) {
      pen.beginPath();
      pen.moveTo(toX(n), PAD.top);
      pen.lineTo(toX(n), height - PAD.bottom);
      pen.stroke();
      pen.fillText(count(n), toX(n), height - PAD.bottom + 16);
    }
    pen.textAlign = "right";
    for (const n of ticks(Math.max(...ys))) {
      pen.beginPath();
      pen.moveTo(PAD.left, toY(n));
      pen.lineTo(width - PAD.right, toY(n));
      pen.stroke();
      pen.fillText(count(n), PAD.left - 6, toY(n) + 4);
    }
    pen.fillStyle = colour.ink;
    pen.textAlign = "center";
    pen.fillText(`fires in ${names[0]} (images)`, (PAD.left + width - PAD.right) / 2, height - 8);
    pen.save();
    pen.translate(13, (PAD.top + height - PAD.bottom) / 2);
    pen.rotate(-Math.PI / 2);
    pen.fillText(`fires in ${names[1]} (images)`, 0, 0);
    pen.restore();
  }

  function draw() {
    const width = frame.clientWidth;
    const height = Math.round(Math.max(260, Math.min(420, 0.72 * width)));
    if (!width) return;
    const dpr = globalThis.devicePixelRatio || 1;
    canvas.width = Math.round(width * dpr);
    canvas.height = Math.round(height * dpr);
    canvas.style.height = `${height}px`;
    const pen = canvas.getContext("2d");
    pen.scale(dpr, dpr);
    const names = chosen();
    const [xs, ys] = names.map((name) => data.fires[name]);
    const at = layout(width, height, xs, ys);
    const colour = colours(frame);
    axes(pen, at, width, height, xs, ys, names, colour);
    const r = xs.length > 4000 ? 2 : xs.length > 800 ? 3 : 4;
    points = xs.map((x, index) => ({ x: at.toX(x), y: at.toY(ys[index]), index }));
    for (const strong of [false, true])
      for (const { x, y, index } of points) {
        const cls = CLASSES[data.class[index]];
        if (isShown(cls) !== strong) continue;
        pen.globalAlpha = strong ? 0.75 : 0.12;
        pen.fillStyle = pen.strokeStyle = colour[cls] ?? colour.muted;
        mark(pen, cls, x, y, r);
        pen.fill();
      }
    pen.globalAlpha = 1;
    if (hot < 0 || !points[hot]) return;
    pen.lineWidth = 2;
    pen.strokeStyle = colour.ink;
    mark(pen, CLASSES[data.class[hot]], points[hot].x, points[hot].y, r + 3);
    pen.stroke();
  }

  function nearest(event) {
    const box = canvas.getBoundingClientRect();
    const [x, y] = [event.clientX - box.left, event.clientY - box.top];
    let best = -1;
    let least = NEAR * NEAR;
    for (const point of points) {
      const far = (point.x - x) ** 2 + (point.y - y) ** 2;
      if (far < least && isShown(CLASSES[data.class[point.index]])) [best, least] = [point.index, far];
    }
    return best;
  }

  function point(event) {
    const next = nearest(event);
    if (next === hot) return;
    hot = next;
    canvas.classList.toggle("over", hot >= 0);
    draw();
    if (hot < 0) {
      hidePopover();
      return;
    }
    const box = canvas.getBoundingClientRect();
    const { x, y } = points[hot];
    showPopover(canvas, tip(hot), new DOMRect(box.left + x - 4, box.top + y - 6, 12, 12));
  }

  canvas.addEventListener("pointermove", point);
  canvas.addEventListener("pointerleave", () => {
    hot = -1;
    hidePopover();
    draw();
  });
  canvas.addEventListener("click", (event) => {
    const found = nearest(event);
    if (found >= 0) onOpen(data.latent[found]);
  });
  const watcher = new ResizeObserver(() => draw());
  watcher.observe(frame);
  document.addEventListener("themechange", draw);
  return {
    element: frame,
    draw,
    close() {
      watcher.disconnect();
      document.removeEventListener("themechange", draw);
    },
  };
}

/** Latents by firing entropy; a press on a bar gives its class. `other` are the counts of a null, drawn as an outline. */
export function histogram({ edges, counts, other, otherName, thresholds, classOf, isShown, onPick, label }) {
  // Drawn for the width it gets: a drawing that shrinks takes its letters with it.
  const [width, height] = innerWidth < 600 ? [330, 260] : [480, 320];
  const most = Math.max(1, ...counts, ...(other ?? []));
  const [first, last] = [edges[0], edges[edges.length - 1]];
  const toX = (x) => PAD.left + ((x - first) / (last - first)) * (width - PAD.left - PAD.right);
  const toY = (n) => height - PAD.bottom - (n / most) * (height - PAD.top - PAD.bottom - 12);
  const bars = counts.map((n, at) => {
    const cls = classOf((edges[at] + edges[at + 1]) / 2);
    const [x, w] = [toX(edges[at]) + 1, Math.max(1, toX(edges[at + 1]) - toX(edges[at]) - 2)];
    const title = s("title", {}, `entropy ${figure(edges[at])} to ${figure(edges[at + 1])}: ${count(n)} latents (${cls})`);
    // The whole column takes the press: a bar of one latent is too low to hit.
    const column = s("rect", { class: "column", x, y: PAD.top, width: w, height: height - PAD.bottom - PAD.top }, title);
    const bar = s("rect", { class: `bin ${cls}${isShown(cls) ? "" : " weak"}`, x, y: toY(n), width: w, height: height - PAD.bottom - toY(n) });
    return s("g", { onclick: () => onPick(cls) }, bar, column);
  });
  const outline = other ? other.map((n, at) => s("path", { class: "null", d: `M${toX(edges[at]) + 1} ${toY(n)}H${toX(edges[at + 1]) - 1}` })) : [];
  const lines = Object.entries(thresholds).map(([name, x]) => [
    s("line", { class: "threshold", x1: toX(x), x2: toX(x), y1: PAD.top, y2: height - PAD.bottom }),
    s("text", { x: toX(x) + (x > 0.5 ? -5 : 5), y: PAD.top + 9, "text-anchor": x > 0.5 ? "end" : "start" }, x > 0.5 ? `${name} ≥ ${figure(x)}` : `${name} ≤ ${figure(x)}`),
  ]);
  const xTicks = [0, 0.25, 0.5, 0.75, 1].filter((x) => x >= first && x <= last).map((x) => s("text", { x: toX(x), y: height - PAD.bottom + 17, "text-anchor": "middle" }, String(x)));
  const yTicks = [0, most].map((n) => s("text", { x: PAD.left - 6, y: toY(n) + 4, "text-anchor": "end" }, count(n)));
  const axis = s("line", { class: "axis", x1: PAD.left, x2: width - PAD.right, y1: height - PAD.bottom, y2: height - PAD.bottom });
  const names = [
    s("text", { class: "name", x: (PAD.left + width - PAD.right) / 2, y: height - 8, "text-anchor": "middle" }, "firing entropy"),
    s("text", { class: "name", transform: `translate(13 ${(PAD.top + height - PAD.bottom) / 2}) rotate(-90)`, "text-anchor": "middle" }, "latents"),
  ];
  const drawing = s("svg", { class: "histogram", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label }, ...bars, axis, ...outline, ...lines, ...xTicks, ...yTicks, ...names);
  const key = other ? h("p", { class: "muted small" }, h("span", { class: "nullkey", "aria-hidden": "true" }), ` ${otherName}`) : null;
  return [drawing, key];
}

/** A finding's mean and interval, with the marks from which it would be a warning and severe. */
export function intervalScale({ mean, low, high, warn, severe, metric }) {
  const known = [mean, low, high, warn, severe].filter((x) => x !== null && x !== undefined && Number.isFinite(x));
  if (mean === null || mean === undefined || !known.length) return null;
  const [width, height, pad] = innerWidth < 600 ? [330, 92, 40] : [640, 92, 40];
  const [least, most] = [Math.min(...known), Math.max(...known)];
  const room = 0.08 * (most - least || Math.abs(mean) || 1);
  const toX = (x) => pad + ((x - least + room) / (most - least + 2 * room)) * (width - 2 * pad);
  const isSet = (x) => x !== null && x !== undefined;
  const close = isSet(warn) && isSet(severe) && Math.abs(toX(warn) - toX(severe)) < 90; // their words would run into each other
  const bound = (name, x) => {
    if (!isSet(x)) return null;
    const top = close && name === "severe" ? 26 : 12;
    return s("g", { class: `bound ${name}` }, s("line", { x1: toX(x), x2: toX(x), y1: top + 6, y2: 66 }), s("text", { x: toX(x), y: top, "text-anchor": "middle" }, `${name === "warn" ? "warning" : "severe"} ${figure(x)}`));
  };
  const text = (x, y) => s("text", { x: toX(x), y, "text-anchor": "middle" }, figure(x));
  const whisker = low === null || low === undefined ? null : [s("line", { class: "whisker", x1: toX(low), x2: toX(high), y1: 48, y2: 48 }), ...[low, high].map((x) => s("line", { class: "whisker", x1: toX(x), x2: toX(x), y1: 41, y2: 55 }))];
  const spoken = `${metric}: ${figure(mean)}${low === null || low === undefined ? "" : `, interval ${figure(low)} to ${figure(high)}`}${warn === null ? "" : `; a warning from ${figure(warn)}, severe from ${figure(severe)}`}`;
  return h(
    "div",
    { class: "scale" },
    s("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": spoken }, s("line", { class: "axis", x1: pad / 2, x2: width - pad / 2, y1: 66, y2: 66 }), bound("warn", warn), bound("severe", severe), whisker, s("circle", { class: "mean", cx: toX(mean), cy: 48, r: 6 }), text(mean, 86)),
  );
}

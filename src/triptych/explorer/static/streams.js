// The cards in which texts grow: one a model and strategy, models side by side. Events are gathered and drawn once a
// frame. Not here: the connection (api.js), the form (playground.js).

import { announce, fill, foreign, h, number, plural } from "./dom.js";
import { shownSpec } from "./specs.js";
import { BeamTree, drawTree } from "./tree.js";
import { tokenText } from "./tokens.js";

const STOPS = { eos: "ended by itself", length: "at the length limit", repeat: "repeated itself", marker: "at a marker" };
const TREE_PAUSE = 200; // milliseconds between drawings of a growing tree

function plainCard(start, titles) {
  const title = titles[start.model] ?? start.model;
  const text = tokenText(`Tokens of ${title}, ${shownSpec(start.label)}`);
  const facts = h("p", { class: "muted facts-line" }, "waiting …");
  const element = h("article", { class: "stream", data: { stream: start.stream } }, h("h3", {}, foreign(title), " ", h("small", {}, foreign(shownSpec(start.label)))), text.element, facts);
  return { element, text, facts, n: 0 };
}

function tokenCard(start, titles) {
  const card = plainCard(start, titles);
  return {
    element: card.element,
    token(event) {
      // A token that ends inside a character has no text yet; the next one brings it.
      card.text.add(event);
      card.n += 1;
      card.facts.textContent = plural(card.n, "token");
    },
    beams() {},
    end(event) {
      card.facts.textContent = factsOf(event);
      if (card.n === 0) fill(card.text.element, h("span", { class: "empty" }, "(nothing)"));
    },
    stop() {
      if (!card.facts.dataset.ended) card.facts.textContent = `${plural(card.n, "token")}, stopped`;
    },
    flush() {},
  };
}

function factsOf(event) {
  const score = event.score === null || event.score === undefined ? "" : ` · score ${number(event.score)}`;
  return `${plural(event.n_tokens, "token")} · ${STOPS[event.stop_reason] ?? event.stop_reason} · ${number(event.mean_logprob)} nats a token${score}`;
}

function searchCard(start, titles) {
  const card = plainCard(start, titles);
  const tree = new BeamTree();
  const place = h("div", { class: "treebox", tabindex: "0", role: "group", "aria-label": "Search tree" });
  const details = h("details", { open: true }, h("summary", {}, "Search tree"), h("p", { class: "muted small" }, "Read it down: rows that are set in are branches that were tried at a fork; the row below them went on. Numbers are scores: the more, the better."), place);
  card.element.append(details);
  const growing = h("span", { class: "growing" });
  card.text.element.append(growing);
  let dirty = false;
  let drawn = 0;
  const draw = () => {
    dirty = false;
    drawn = performance.now();
    const best = tree.best();
    if (best !== null) growing.textContent = tree.textTo(best);
    fill(place, drawTree(tree));
  };
  return {
    element: card.element,
    token() {},
    beams(event) {
      tree.grow(event);
      dirty = true;
      card.n = Math.max(card.n, event.step + 1);
      card.facts.textContent = `${plural(card.n, "step")} · the best so far is shown`;
    },
    end(event) {
      tree.finish(event.path);
      growing.remove();
      for (const token of event.tokens ?? []) card.text.add(token);
      if (!event.tokens?.length) fill(card.text.element, event.text || h("span", { class: "empty" }, "(nothing)"));
      card.facts.textContent = factsOf(event);
      draw();
    },
    stop() {
      card.facts.textContent = `${plural(card.n, "step")}, stopped`;
      if (dirty) draw();
    },
    flush() {
      if (dirty && performance.now() - drawn > TREE_PAUSE) draw();
      return dirty;
    },
  };
}

/** Cards below `place`; `take(event)` gives them an event of the server. */
export function createStreams(place, titles, line) {
  const cards = new Map();
  const ended = new Set();
  let waiting = [];
  let frame = 0;
  let tokens = 0;
  let begun = 0;
  let first = null;
  let isOver = false;

  const handlers = {
    start({ streams }) {
      const models = [...new Set(streams.map(({ model }) => model))];
      const strategies = [...new Set(streams.map(({ label }) => label))];
      const grid = h("div", { class: "streams", css: { "--models": String(models.length) } });
      // Row by row: a strategy's answers of all models stand beside each other.
      const ordered = strategies.flatMap((label) => models.map((model) => streams.find((one) => one.model === model && one.label === label))).filter(Boolean);
      for (const one of ordered) {
        const card = one.is_search ? searchCard(one, titles) : tokenCard(one, titles);
        cards.set(one.stream, card);
        grid.append(card.element);
      }
      fill(place, grid);
    },
    token(event) {
      cards.get(event.stream)?.token(event);
    },
    beams(event) {
      cards.get(event.stream)?.beams(event);
    },
    end(event) {
      cards.get(event.stream)?.end(event);
      ended.add(event.stream);
    },
    done(event) {
      isOver = true;
      line.done(event);
      announce(`Done: ${plural(event.tokens, "token")} in ${number(event.seconds, 1)} seconds`);
    },
  };

  function flush() {
    frame = 0;
    const events = waiting;
    waiting = [];
    for (const event of events) handlers[event.type]?.(event);
    let more = false;
    for (const card of cards.values()) more = card.flush() || more;
    if (!isOver && cards.size) line.running(tokens, first);
    if (more && !isOver) ask();
  }

  function ask() {
    frame ||= requestAnimationFrame(flush);
  }

  return {
    begin(now) {
      begun = now;
      line.running(0, null);
      fill(place, h("p", { class: "muted" }, "Waiting for the first token …"));
    },
    take(event) {
      if (event.type === "token" || event.type === "beams") {
        tokens += 1;
        first ??= (performance.now() - begun) / 1000;
      }
      if (event.type === "error") throw new Error(event.message);
      waiting.push(event);
      ask();
    },
    /** The connection has ended: draw what is left of it now. */
    finish() {
      cancelAnimationFrame(frame);
      flush();
      if (!isOver) line.stopped(tokens);
      isOver = true;
    },
    stop() {
      cancelAnimationFrame(frame);
      flush();
      isOver = true;
      for (const [stream, card] of cards) if (!ended.has(stream)) card.stop();
      line.stopped(tokens);
    },
  };
}

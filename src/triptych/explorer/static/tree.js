// The tree of a beam search as nested rows. Of a node's children the one that leads on stays in its parent's column, as a
// trunk does, and the others stand below it, one step in: the depth of a row is how often the search turned off, not how
// long the text is. Chains without a fork are one row. Not here: the search, the stream.

import { count, foreign, h, number } from "./dom.js";
import { shownToken } from "./tokens.js";

/** Nodes as they come; pure, so that it can be drawn at any time. */
export class BeamTree {
  nodes = new Map(); // node → {node, parent, text, logprob, score}
  children = new Map(); // node or null → [node, …]
  live = new Set();
  path = null; // of the winner, as a set

  grow({ nodes, live }) {
    for (const node of nodes) {
      this.nodes.set(node.node, node);
      const siblings = this.children.get(node.parent) ?? [];
      siblings.push(node.node);
      this.children.set(node.parent, siblings);
    }
    this.live = new Set(live);
  }

  finish(path) {
    this.path = new Set(path ?? []);
    this.live = new Set();
  }

  childrenOf(node) {
    return this.children.get(node) ?? [];
  }

  /** Nodes that lead to the winner, or to a leaf that goes on, and how good the best of these is. */
  ranks() {
    const ranks = new Map();
    const goals = this.path ? [...this.path] : [...this.live];
    for (const goal of goals) {
      const score = this.nodes.get(goal)?.score ?? -Infinity;
      for (let node = goal; node !== null && node !== undefined && !(ranks.get(node) >= score); node = this.nodes.get(node)?.parent) ranks.set(node, score);
    }
    return ranks;
  }

  /** The leaf that goes on with the best score. */
  best() {
    const scored = [...this.live].filter((node) => this.nodes.has(node)).sort((a, b) => this.nodes.get(b).score - this.nodes.get(a).score);
    return scored[0] ?? null;
  }

  /** The text that leads to `node`. */
  textTo(node) {
    const parts = [];
    for (let at = node; at !== null && at !== undefined; at = this.nodes.get(at)?.parent ?? null) parts.push(this.nodes.get(at)?.text ?? "");
    return parts.reverse().join("");
  }
}

function size(tree, node) {
  let n = 0;
  const waiting = [node];
  while (waiting.length) {
    const next = waiting.pop();
    n += 1;
    waiting.push(...tree.childrenOf(next));
  }
  return n;
}

/** The child that goes on with the trunk: the one on the winning path, then the one with a live leaf, then the biggest. */
function trunkOf(tree, ranks, children) {
  const weight = (node) => (tree.path?.has(node) ? 1e9 : ranks.has(node) ? 1e6 + ranks.get(node) : size(tree, node));
  return children.reduce((best, node) => (best === null || weight(node) > weight(best) ? node : best), null);
}

/** From `node` down to the next fork. */
function chainFrom(tree, node) {
  const chain = [node];
  for (let next = tree.childrenOf(node); next.length === 1; next = tree.childrenOf(next[0])) chain.push(next[0]);
  return chain;
}

function stateOf(tree, ranks, chain) {
  const last = chain[chain.length - 1];
  if (tree.path?.has(chain[0])) return "won";
  return ranks.has(last) || tree.live.has(last) ? "live" : "pruned";
}

function piece(tree, chain) {
  const text = chain.map((node) => tree.nodes.get(node).text).join("");
  const score = tree.nodes.get(chain[chain.length - 1]).score;
  const logprob = chain.reduce((sum, node) => sum + tree.nodes.get(node).logprob, 0);
  return { text, score, logprob, n: chain.length };
}

const WORDS = { won: "won", live: "goes on", pruned: "dropped" };

function rowOf(tree, ranks, chain) {
  const state = stateOf(tree, ranks, chain);
  const { text, score, logprob, n } = piece(tree, chain);
  const many = n > 1 ? `${count(n)} tokens, ` : "";
  const ends = tree.childrenOf(chain[chain.length - 1]).length === 0;
  return h(
    "div",
    { class: `branch ${state}`, title: `${many}${number(logprob)} nats; score ${number(score)}` },
    h("span", { class: "piece" }, foreign(shownToken(text))),
    h("span", { class: "score" }, number(score)),
    ends || state === "won" ? h("span", { class: "state" }, ends ? WORDS[state] : "") : null,
  );
}

/** Branches of one token that ended at once share a row. */
function droppedRow(tree, nodes) {
  const one = (node) => h("span", { class: "branch pruned", title: `score ${number(tree.nodes.get(node).score)}` }, h("span", { class: "piece" }, foreign(shownToken(tree.nodes.get(node).text))), h("span", { class: "score" }, number(tree.nodes.get(node).score)));
  return h("li", { class: "dropped" }, h("span", { class: "state" }, "dropped:"), " ", ...nodes.map((node) => [one(node), " "]));
}

function branchRows(tree, ranks, start) {
  const rows = [];
  let siblings = start;
  while (siblings.length) {
    const trunk = trunkOf(tree, ranks, siblings);
    const others = siblings.filter((node) => node !== trunk);
    const chain = chainFrom(tree, trunk);
    const isDead = (node) => tree.childrenOf(node).length === 0 && !ranks.has(node);
    const [dead, grown] = [others.filter(isDead), others.filter((node) => !isDead(node))];
    const nested = [...grown.map((node) => h("li", { class: "group" }, h("ol", {}, ...branchRows(tree, ranks, [node])))), dead.length ? droppedRow(tree, dead) : null].filter(Boolean);
    // The forks of this place come before the trunk goes on: one reads down the trunk past them.
    if (nested.length) rows.push(h("li", { class: "forks" }, h("ol", {}, ...nested)));
    rows.push(h("li", { class: "trunk" }, rowOf(tree, ranks, chain)));
    siblings = tree.childrenOf(chain[chain.length - 1]);
  }
  return rows;
}

export function drawTree(tree) {
  const ranks = tree.ranks();
  return h("ol", { class: "tree", "aria-label": "Search tree" }, ...branchRows(tree, ranks, tree.childrenOf(null)));
}

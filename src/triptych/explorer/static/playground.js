// One prompt, several models and strategies beside each other, tokens as they come. This module holds the form and the
// run; the cards of the streams are in streams.js. Not here: the engine.

import { get, stream } from "./api.js";
import { announce, button, count, field, fill, foreign, h, message, number, plural, select } from "./dom.js";
import { hidePopover } from "./popover.js";
import { formatSpec, parseSpec } from "./specs.js";
import { createStreams } from "./streams.js";
import { legend } from "./tokens.js";

const POLL = 1500; // milliseconds between looks at models that are being loaded
const DEFAULT_TOKENS = 64;
const START = ["greedy", "top_p"];

/** What the address says of the form, completed by what the server offers. */
function readState(query, info) {
  const names = info.models.map(({ name }) => name);
  const asked = query.getAll("model").filter((name) => names.includes(name));
  const specs = query.getAll("strategy").map((spec) => parseSpec(spec, info.strategies)).filter(Boolean);
  const offered = START.map((name) => parseSpec(name, info.strategies)).filter(Boolean);
  const templates = info.templates.map(({ name }) => name);
  const whole = (name, otherwise) => (/^\d{1,15}$/.test(query.get(name) ?? "") ? query.get(name) : String(otherwise));
  return {
    prompt: query.get("prompt") ?? info.examples[0] ?? "",
    template: templates.includes(query.get("template")) ? query.get("template") : templates[0],
    models: asked.length ? asked : names,
    strategies: specs.length ? specs : offered.length ? offered : info.strategies.slice(0, 1).map(({ name }) => parseSpec(name, info.strategies)),
    tokens: whole("tokens", Math.min(DEFAULT_TOKENS, info.limits.max_new_tokens)),
    seed: whole("seed", 0),
    sample: whole("sample", 0),
  };
}

function toParams(state) {
  return {
    prompt: state.prompt,
    template: state.template,
    model: state.models,
    strategy: state.strategies.map(formatSpec),
    tokens: state.tokens,
    seed: state.seed,
    sample: state.sample === "0" ? null : state.sample,
  };
}

function modelBoxes(info, state, changed) {
  const box = ({ name, title, ready, problem }) => {
    const input = h("input", { type: "checkbox", name: "model", value: name, checked: state.models.includes(name), disabled: Boolean(problem), onchange: changed });
    const note = problem ? `cannot be loaded: ${problem}` : ready ? null : "loading …";
    return h("label", { class: "check" }, input, h("span", {}, foreign(title), note ? h("small", {}, ` ${note}`) : null));
  };
  return info.models.map(box);
}

function parameterInput(parameter, strategy, changed) {
  const { name, type, low, high } = parameter;
  const step = type === "int" ? 1 : "any";
  return field(
    name.replaceAll("_", " "),
    h("input", { type: "number", value: strategy.values[name], min: low, max: high, step, required: true, oninput: (event) => ((strategy.values[name] = event.target.value), changed()) }),
    { class: "field inline" },
  );
}

function strategyChips(info, state, redraw, changed) {
  const chip = (strategy, at) => {
    const kind = info.strategies.find((one) => one.name === strategy.name);
    const remove = () => {
      state.strategies.splice(at, 1);
      redraw();
      changed();
    };
    return h(
      "fieldset",
      { class: "chip" },
      h("legend", { title: kind.about ?? null }, strategy.name.replaceAll("_", "-")),
      ...kind.parameters.map((one) => parameterInput(one, strategy, changed)),
      state.strategies.length > 1 ? button("×", remove, { class: "remove", "aria-label": `Remove ${strategy.name}` }) : null,
    );
  };
  const adder = select("add", [["", "+ Add a strategy"], ...info.strategies.map(({ name }) => [name, name.replaceAll("_", "-")])], "", {
    "aria-label": "Add a strategy",
    onchange: (event) => {
      state.strategies.push(parseSpec(event.target.value, info.strategies));
      redraw();
      changed();
    },
  });
  return [...state.strategies.map(chip), adder];
}

function createForm(info, state, changed) {
  const prompt = h("textarea", { name: "prompt", rows: "4", maxlength: info.limits.max_prompt_chars, value: state.prompt, dir: "auto", required: true, data: { search: "" }, oninput: changed });
  const models = h("div", { class: "checks" });
  const strategies = h("div", { class: "chips" });
  const drawModels = (fresh) => fill(models, ...modelBoxes(fresh, state, changed));
  const drawStrategies = () => fill(strategies, ...strategyChips(info, state, drawStrategies, changed));
  const whole = (name, max, min) => h("input", { type: "number", name, min, max, step: "1", value: state[name], required: true, oninput: changed });
  const examples = info.examples.length
    ? field("Examples", select("example", [["", "Choose one"], ...info.examples.map((text, at) => [at, text.length > 70 ? `${text.slice(0, 70)}…` : text])], "", { onchange: (event) => event.target.value !== "" && ((prompt.value = info.examples[Number(event.target.value)]), changed()) }))
    : null;
  const form = h(
    "form",
    { class: "playform", "aria-label": "What to generate" },
    field("Prompt", prompt, { class: "field wide" }),
    h("div", { class: "filters" }, examples, field("Template", select("template", info.templates.map(({ name, title }) => [name, title]), state.template, { onchange: changed }))),
    h("fieldset", { class: "plain" }, h("legend", {}, "Models"), models),
    h("fieldset", { class: "plain" }, h("legend", {}, "Strategies"), strategies),
    h("div", { class: "filters" }, field("At most, tokens", whole("tokens", info.limits.max_new_tokens, 1)), field("Seed", whole("seed", Number.MAX_SAFE_INTEGER, 0)), field("Sample", whole("sample", 2 ** 31 - 1, 0))),
  );
  drawModels(info);
  drawStrategies();
  const read = () => {
    const data = new FormData(form);
    for (const name of ["prompt", "template", "tokens", "seed", "sample"]) state[name] = String(data.get(name) ?? "");
    state.models = data.getAll("model");
    return state;
  };
  return { form, read, drawModels };
}

function statusLine(place, timer) {
  const rate = (tokens, seconds) => (seconds > 0 ? `${number(tokens / seconds, 1)} tokens/s` : "");
  const say = (parts) => fill(place, parts.filter(Boolean).join(" · "));
  return {
    running: (tokens, first) => say([first === null ? "Waiting for the first token …" : plural(tokens, "token"), first === null ? "" : rate(tokens, timer()), first === null ? "" : `first token after ${count(Math.round(1000 * first))} ms`]),
    done: ({ tokens, seconds, first_token_seconds: first }) => say([plural(tokens, "token"), rate(tokens, seconds), first === null || first === undefined ? "" : `first token after ${count(Math.round(1000 * first))} ms`, `${number(seconds, 1)} s`]),
    stopped: (tokens) => say([`Stopped after ${plural(tokens, "token")}`]),
    failed: () => say(["Failed"]),
    clear: () => say([]),
  };
}

async function copyLink(event) {
  const { target } = event;
  try {
    await navigator.clipboard.writeText(location.href);
    target.textContent = "Copied";
  } catch {
    // No clipboard over plain HTTP or without leave: the address bar has the same link.
    target.textContent = "Copy it from the address bar";
  }
  setTimeout(() => (target.textContent = "Copy link"), 2500);
}

function body(info) {
  return {
    request: ({ prompt, template, models, strategies, tokens, seed, sample }) => ({
      prompt,
      template,
      models,
      strategies: strategies.map(formatSpec),
      max_new_tokens: Number(tokens),
      seed: Number(seed),
      sample: Number(sample),
    }),
    titles: Object.fromEntries(info.models.map(({ name, title }) => [name, title])),
  };
}

function missing(state) {
  if (!state.prompt.trim()) return "Write a prompt first.";
  if (!state.models.length) return "Choose at least one model.";
  return null;
}

export async function openPlayground(ctx) {
  let info = await get("/playground", {}, ctx.signal);
  if (!info.available) return unavailable(info.reason);
  const state = readState(ctx.query, info);
  const { request, titles } = body(info);
  const out = h("div", { class: "output" });
  const status = h("p", { class: "status", "aria-live": "off" });
  const alert = h("div", {});
  const stage = h("section", { class: "stage", "aria-label": "What the models write" }, h("div", { class: "stagehead" }, status, legend()), out);
  const note = () => ctx.noteQuery(toParams(read()));
  const { form, read, drawModels } = createForm(info, state, note);
  let controller = null;
  let begun = 0;
  const line = statusLine(status, () => (performance.now() - begun) / 1000);

  const setRunning = (running) => {
    run.disabled = another.disabled = running;
    stop.disabled = !running;
    out.setAttribute("aria-busy", String(running));
  };

  async function start() {
    if (controller) return;
    if (!form.reportValidity()) return;
    const lacking = missing(read());
    fill(alert, lacking ? message("error", lacking) : null);
    if (lacking) return;
    note();
    controller = new AbortController();
    const own = controller;
    const streams = createStreams(out, titles, line);
    setRunning(true);
    begun = performance.now();
    streams.begin(begun);
    if (stage.getBoundingClientRect().top > innerHeight / 2) stage.scrollIntoView({ block: "start" }); // below the form, on a phone
    try {
      await stream("/playground/generate", request(state), AbortSignal.any([ctx.signal, own.signal]), streams.take);
      streams.finish();
    } catch (error) {
      streams.stop();
      if (ctx.signal.aborted) return;
      if (error.name !== "AbortError") {
        line.failed();
        fill(alert, message("error", error.message));
      }
    } finally {
      controller = null;
      setRunning(false);
    }
  }

  function halt() {
    if (!controller) return false;
    controller.abort();
    announce("Stopped");
    return true;
  }

  const run = h("button", { type: "submit", class: "primary" }, "Run ", h("kbd", {}, "Ctrl ⏎"));
  const stop = button(["Stop ", h("kbd", {}, "Esc")], halt, { disabled: true });
  const another = button("Another sample", () => {
    form.elements.sample.value = String(Number(form.elements.sample.value || 0) + 1);
    start();
  });
  form.append(h("div", { class: "row actions" }, run, stop, another, button("Copy link", copyLink, { class: "quiet" })), alert);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    start();
  });
  form.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      start();
    }
  });

  // Models are loaded in the background of the server; the form says when each is ready.
  const settled = () => info.models.every(({ ready, problem }) => ready || problem);
  const poll = async () => {
    if (ctx.signal.aborted || settled()) return;
    try {
      info = await get("/playground", {}, ctx.signal);
    } catch {
      return;
    }
    read();
    drawModels(info);
    setTimeout(poll, POLL);
  };
  if (!settled()) setTimeout(poll, POLL);

  return {
    title: "Playground",
    body: [
      h("h1", { tabindex: "-1" }, "Playground"),
      h("div", { class: "play" }, form, stage),
    ],
    keys: {
      "Ctrl+Enter": { does: "Run (within the form)", run: () => false },
      Escape: { does: "Stop", run: () => closeOrStop(halt) },
      r: { does: "Run", run: () => start() },
    },
    shown: () => fill(out, h("p", { class: "muted" }, "Press Run: every model you chose answers with every strategy, and each token is shaded by how likely the model found it.")),
  };
}

function closeOrStop(halt) {
  if (!hidePopover() && !halt()) document.activeElement?.blur?.();
}

function unavailable(reason) {
  return {
    title: "Playground",
    body: [h("h1", { tabindex: "-1" }, "Playground"), message("note", reason ? foreign(reason) : "The models of this run are not at hand.")],
  };
}


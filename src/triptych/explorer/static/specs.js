// Strategies as the command line writes them: "top_p:p=0.9,temperature=1.0" to a name with numbers, and back. Not here:
// the form.

/** {name, values} of a spec that the server knows; null of one that it does not. */
export function parseSpec(spec, known) {
  const [name, rest = ""] = spec.split(/:(.*)/s);
  const kind = known.find((one) => one.name === name);
  if (!kind) return null;
  const given = Object.fromEntries(rest.split(",").filter(Boolean).map((pair) => pair.split("=").map((part) => part.trim())));
  const values = Object.fromEntries(kind.parameters.map((one) => [one.name, given[one.name] ?? String(one.default)]));
  return { name, values };
}

/** "top_p:p=0.9,temperature=1.0" for the eye: "top-p · p 0.9 · temperature 1" */
export function shownSpec(spec) {
  const [name, rest = ""] = spec.split(/:(.*)/s);
  const pairs = rest.split(",").filter(Boolean).map((pair) => pair.replace("=", " ").replace(/\.0$/, "").replaceAll("_", " "));
  return [name.replaceAll("_", "-"), ...pairs].join(" · ");
}

export function formatSpec({ name, values }) {
  const pairs = Object.entries(values).map(([key, value]) => `${key}=${value}`);
  return pairs.length ? `${name}:${pairs.join(",")}` : name;
}

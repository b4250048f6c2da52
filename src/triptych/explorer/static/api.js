// Questions to the server: JSON by GET, and one stream of lines by POST. A refusal is an ApiError that carries the
// server's own sentence. Not here: what is asked (the pages).

export class ApiError extends Error {
  constructor(sentence, status) {
    super(sentence);
    this.status = status;
  }
}

/** "?a=1&b=2" of what is set; lists repeat their key. */
export function toQuery(params) {
  const search = new URLSearchParams();
  for (const [key, value] of Object.entries(params ?? {}))
    for (const one of Array.isArray(value) ? value : [value])
      if (one !== null && one !== undefined && one !== "" && one !== false) search.append(key, String(one));
  const text = search.toString();
  return text ? `?${text}` : "";
}

async function refusal(response) {
  let sentence = `the server answered ${response.status}`;
  try {
    const body = await response.json();
    if (typeof body.error === "string") sentence = body.error;
  } catch {
    // No JSON: the status has to do.
  }
  return new ApiError(sentence, response.status);
}

async function ask(path, options) {
  let response;
  try {
    response = await fetch(path, { ...options, cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("the server does not answer: is triptych explore still running?", 0);
  }
  if (!response.ok) throw await refusal(response);
  return response;
}

/** The JSON at `path` (below /api). */
export async function get(path, params, signal) {
  const response = await ask(`/api${path}${toQuery(params)}`, { signal });
  return response.json();
}

/** Posts `body` and gives every line of the answer, parsed, to `onEvent` as it comes. */
export async function stream(path, body, signal, onEvent) {
  const headers = { "Content-Type": "application/json", Accept: "application/x-ndjson" };
  const response = await ask(`/api${path}`, { method: "POST", headers, body: JSON.stringify(body), signal });
  const reader = response.body.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      rest += done ? decoder.decode() : decoder.decode(value, { stream: true });
      const lines = rest.split("\n");
      rest = done ? "" : lines.pop();
      for (const line of lines) if (line.trim()) onEvent(JSON.parse(line));
      if (done) return;
    }
  } finally {
    // An event that says that it failed ends here too: the server must not go on for nobody.
    reader.cancel().catch(() => {});
  }
}

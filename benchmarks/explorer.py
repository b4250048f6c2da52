"""How fast the explorer answers: pages over a large run, and the first token of the playground.

    python benchmarks/explorer.py [--rows 100000] [--latents 16000] [--model starter] [--no-model] [--out FILE.json]

Builds a synthetic run in a temporary folder, serves it with `triptych explore` in a process of its own, and asks for
every kind of page many times over HTTP, one request after the other. Questions are drawn at random, so that hardly any
is answered because it was asked before. Exit code 1 where a target is missed: p95 of every
kind below 100 ms, and a median of the first token below 300 ms. Not here: whether answers are right (the tests).
"""

import argparse
import http.client
import io
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from triptych.auditing.records import PERTURBED_SCHEMA, RESPONSES_SCHEMA, Evidence, Finding
from triptych.auditing.records import SCORES_SCHEMA as AUDIT_SCORES_SCHEMA
from triptych.decoding.table import ROW_GROUP, SCHEMA, SCORES_SCHEMA
from triptych.dictionaries.records import DictionaryRecord, TrainedRecord
from triptych.dictionaries.tops import THUMBNAIL_SCHEMA, TOP_SCHEMA
from triptych.records import Estimate
from triptych.runs import Manifest, atomic_write_json, write_records_json

PAGE_TARGET, TOKEN_TARGET = 100.0, 300.0
"""Milliseconds: p95 of a page, and the median of the first token."""
REQUESTS, TOKENS = 60, 10
"""Of each kind of page, and of the playground."""
PER_PROMPT = 40
"""Completions of a prompt."""
ARMS = [("greedy", "{}", None), ("beam", '{"width":4}', None)] + [
    (name, f'{{"{key}":{value},"temperature":{temperature}}}', temperature)
    for name, key, value in (("top_k", "k", 50), ("top_p", "p", 0.9), ("min_p", "p", 0.05))
    for temperature in (0.2, 0.5, 0.8, 1.0, 1.2)
]
CATEGORIES, STOPS = ("explanation", "factual", "other"), ("eos", "length", "repeat", "marker")
MODELS = ("resnet", "vit")
CHECKPOINTS = ("base", "dpo", "grpo")
SYLLABLES = ["ba", "ce", "di", "fo", "gu", "ha", "je", "ki", "lo", "mu", "na", "pe", "ri", "so", "tu", "va", "we"]
PROMPT = (
    "Explain in a few simple sentences why the sky is blue during the day and red in the evening, and what that has to "
    "do with light and air."
)


# --- a synthetic run --------------------------------------------------------------------------------------------------


class Words:
    """A vocabulary of made-up words with frequencies as in language."""

    def __init__(self, rng: np.random.Generator, n: int = 20_000) -> None:
        self.rng = rng
        lengths = rng.integers(1, 5, n)
        self.words = np.array(["".join(rng.choice(SYLLABLES, length)) for length in lengths])
        weights = 1.0 / np.arange(1, n + 1)
        self.probabilities = weights / weights.sum()

    def texts(self, n: int, mean: int) -> list[str]:
        """`n` texts of about `mean` words."""
        lengths = self.rng.integers(mean // 2, mean + mean // 2, n)
        drawn = self.rng.choice(self.words, int(lengths.sum()), p=self.probabilities).tolist()
        ends = np.cumsum(lengths).tolist()
        return [" ".join(drawn[begin:end]) for begin, end in zip([0, *ends], ends, strict=False)]

    def one(self) -> str:
        """A word, rare ones as often as frequent ones."""
        return str(self.rng.choice(self.words))


def write_run(folder: Path, rows: int, latents: int, model: str) -> None:
    """A run of `rows` completions, some thousand responses and `latents` latents."""
    rng = np.random.default_rng(0)
    words = Words(rng)
    for panel in ("decoding", "auditing", "dictionaries/universal/images"):
        (folder / panel).mkdir(parents=True)
    _write_manifest(folder, model)
    _write_generations(folder / "decoding", rng, words, rows)
    _write_audits(folder / "auditing", words)
    _write_latents(folder / "dictionaries", rng, latents)


def _write_manifest(folder: Path, model: str) -> None:
    manifest = Manifest(
        run_id="synthetic",
        created="2026-01-01T00:00:00+00:00",
        command=("triptych", "study"),
        config={"model": model},
        config_hash="0",
        seed=0,
        python="3",
        packages={},
        git=None,
        device="cpu",
        stages={},
    )
    atomic_write_json(folder / "manifest.json", manifest.model_dump(mode="json"))


def _write_generations(folder: Path, rng: np.random.Generator, words: Words, rows: int) -> None:
    n_prompts = max(1, rows // PER_PROMPT)
    prompts = words.texts(n_prompts, 25)
    prompt = np.repeat(np.arange(n_prompts), PER_PROMPT)[:rows]
    arm = np.tile(np.arange(len(ARMS)), -(-rows // len(ARMS)))[:rows]
    n_tokens = rng.integers(20, 128, rows).astype(np.int32)
    offsets = np.concatenate([[0], np.cumsum(n_tokens)]).astype(np.int32)
    total = int(offsets[-1])
    lists = [rng.integers(0, 5000, total).astype(np.int32), *(-rng.exponential(1.5, (2, total)).astype(np.float32))]
    token_ids, logprobs, sampled = (pa.ListArray.from_arrays(pa.array(offsets), pa.array(values)) for values in lists)
    texts = words.texts(rows, 55)
    table = pa.table(
        {
            "prompt_id": [f"prompt-{number:05d}" for number in prompt],
            "prompt": [f"### Instruction:\n{prompts[number]}\n\nAnswer:" for number in prompt],
            "instruction": [prompts[number] for number in prompt],
            "input": pa.array([""] * rows),
            "strategy": [ARMS[one][0] for one in arm],
            "params": [ARMS[one][1] for one in arm],
            "temperature": pa.array([ARMS[one][2] for one in arm], pa.float64()),
            "sample": (np.arange(rows) % PER_PROMPT // len(ARMS)).astype(np.int32),
            "text": texts,
            "raw_text": texts,
            "token_ids": token_ids,
            "logprobs": logprobs,
            "sampler_logprobs": sampled,
            "mean_logprob": np.add.reduceat(lists[1], offsets[:-1]) / n_tokens.astype(np.float64),
            "n_tokens": n_tokens,
            "stop_reason": rng.choice(STOPS, rows),
            "score": pa.nulls(rows, pa.float64()),
            "seed": np.zeros(rows, np.int64),
            "category": [CATEGORIES[number % len(CATEGORIES)] for number in prompt],
        }
    ).cast(SCHEMA)
    pq.write_table(table, folder / "generations.parquet", row_group_size=ROW_GROUP)
    scored = table.select(["prompt_id", "strategy", "params", "temperature", "sample"])
    scored = scored.append_column("reward_model", pa.array(["reward"] * rows))
    scored = scored.append_column("score", pa.array(rng.normal(size=rows)))
    pq.write_table(scored.cast(SCORES_SCHEMA), folder / "scores.parquet")
    pieces = {str(number): f" {words.words[number]}" for number in range(5000)}
    atomic_write_json(folder / "pieces.json", pieces)


def _write_audits(folder: Path, words: Words, n_prompts: int = 1000) -> None:
    ids = [f"prompt-{number:05d}" for number in range(n_prompts)]
    texts = {model: words.texts(n_prompts, 60) for model in CHECKPOINTS}
    rows = [
        {
            "model": model,
            "prompt_id": prompt,
            "kind": "plain",
            "instruction": text[:80],
            "input": "",
            "category": CATEGORIES[place % 3],
            "prompt": text[:80],
            "text": text,
            "token_ids": list(range(80)),
            "logprobs": [-1.0] * 80,
            "n_tokens": 80,
            "n_words": 60,
            "is_truncated": False,
            "seed": 0,
        }
        for model in CHECKPOINTS
        for place, (prompt, text) in enumerate(zip(ids, texts[model], strict=True))
    ]
    pq.write_table(pa.Table.from_pylist(rows, RESPONSES_SCHEMA), folder / "responses.parquet")
    forms = ("filler", "flattery", "neutral")
    perturbed = [
        {"prompt_id": prompt, "perturbation": form, "text": text if form is None else f"{text} {form}"}
        for prompt, text in zip(ids, texts["base"], strict=True)
        for form in (None, *forms)
    ]
    pq.write_table(pa.Table.from_pylist(perturbed, PERTURBED_SCHEMA), folder / "perturbed.parquet")
    scores = [
        {"scorer": "reward", "model": model, "prompt_id": prompt, "perturbation": form, "score": 0.5}
        for prompt in ids
        for model in CHECKPOINTS
        for form in ((None, *forms) if model == "base" else (None,))
    ]
    pq.write_table(pa.Table.from_pylist(scores, AUDIT_SCORES_SCHEMA), folder / "scores.parquet")
    estimate = Estimate(mean=1.0, low=0.5, high=1.5, n=100, n_clusters=100, method="95% bootstrap")
    card = [
        Finding(
            model=CHECKPOINTS[1 + number % 2],
            metric="words_ratio",
            against="base",
            estimate=estimate,
            level="warn",
            rule="length",
            audit="verbosity",
            warn=1.25,
            severe=3.0,
            sentence="The responses are longer.",
            evidence=tuple(
                Evidence(
                    model="base" if form else "dpo", prompt_id=ids[(7 * number + at) % n_prompts], perturbation=form
                )
                for at, form in enumerate((None, *forms))
            ),
        )
        for number in range(60)
    ]
    write_records_json(folder / "card.json", card)


def _write_latents(folder: Path, rng: np.random.Generator, latents: int) -> None:
    numbers = np.arange(latents)
    fires = {model: rng.integers(0, 400, latents) for model in MODELS}
    together = np.minimum(*fires.values()) // 2
    columns: dict[str, Any] = {
        "latent": numbers,
        "firing_entropy": rng.beta(2, 0.7, latents),
        "co_fires": together,
        "co_fire_chance": together / 3.0,
        "confirmed": rng.random(latents) < 0.6,
        "dead": numbers % 50 == 0,
        "label": [f"shape = form{number % 40}" for number in numbers],
        "label_auroc": rng.uniform(0.5, 1.0, latents),
    }
    for model in MODELS:
        columns |= {
            f"fires_{model}": fires[model],
            f"cofire_{model}": rng.random(latents),
            f"energy_{model}": rng.random(latents),
        }
    universal = folder / "universal"
    pq.write_table(pa.table(columns), universal / "features.parquet")
    agreement = {
        "latent": np.repeat(numbers, 6),
        "model": np.tile(np.repeat(MODELS, 3), latents),
        "factor": np.tile(["shape", "hue", "texture"] * 2, latents),
        "value": [f"form{number % 40}" for number in range(6 * latents)],
        "auroc": rng.uniform(0.5, 1.0, 6 * latents),
    }
    pq.write_table(pa.table(agreement), universal / "agreement.parquet")
    _write_images(universal, rng, latents)
    estimate = Estimate(mean=0.8, low=0.7, high=0.9, n=100, n_clusters=100, method="95% bootstrap")
    measures = [
        DictionaryRecord(role="universal", metric="r2", source=a, target=b, estimate=estimate)
        for a in MODELS
        for b in MODELS
    ]
    write_records_json(folder / "measures.json", measures)
    trained = TrainedRecord(
        name="universal", role="universal", seed=0, models=MODELS, latents=latents, k=32, update="source",
        steps=1, samples=1, loss=0.1, seconds=1.0,
    )  # fmt: skip
    write_records_json(folder / "dictionaries.json", [trained])


def _write_images(folder: Path, rng: np.random.Generator, latents: int, n_images: int = 2000) -> None:
    files = []
    for _ in range(n_images):
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(0, 255, (64, 64, 3)).astype(np.uint8)).save(buffer, "JPEG")
        files.append(buffer.getvalue())
    table = pa.table({"row": np.arange(n_images), "image": files}, schema=THUMBNAIL_SCHEMA)
    pq.write_table(table, folder / "thumbnails.parquet", row_group_size=32, compression="none", use_dictionary=False)
    each = 6 * len(MODELS)
    rows = rng.integers(0, n_images, latents * each)
    tops = {
        "latent": np.repeat(np.arange(latents), each),
        "model": np.tile(np.repeat(MODELS, 6), latents),
        "rank": np.tile(np.arange(6), latents * len(MODELS)),
        "row": rows,
        "activation": rng.random(latents * each),
        "image_id": [f"image-{row}" for row in rows],
    }
    pq.write_table(pa.table(tops).cast(TOP_SCHEMA), folder / "tops.parquet")


# --- asking -----------------------------------------------------------------------------------------------------------


class Client:
    """One browser: one connection that is kept."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)

    def get(self, path: str) -> bytes:
        """The body of a good answer."""
        self._connection.request("GET", path)
        answer = self._connection.getresponse()
        body = answer.read()
        if answer.status != 200:
            raise SystemExit(f"{path}: {answer.status} {body[:300]!r}")
        return body

    def first_token(self, body: dict[str, Any]) -> float:
        """Milliseconds until the first token of a text; the rest is not waited for."""
        connection = http.client.HTTPConnection(self._connection.host, self._connection.port, timeout=120)
        started = time.perf_counter()
        connection.request("POST", "/api/playground/generate", json.dumps(body), {"content-type": "application/json"})
        answer = connection.getresponse()
        if answer.status != 200:
            raise SystemExit(f"the playground: {answer.status} {answer.read()[:300]!r}")
        for line in answer:
            if json.loads(line)["type"] in ("token", "beams"):
                connection.close()
                return 1000 * (time.perf_counter() - started)
        raise SystemExit("the playground streamed no token")


def kinds(rng: np.random.Generator, words: Words, rows: int, latents: int) -> dict[str, Callable[[], str]]:
    """Every kind of page, and a maker of its addresses."""

    def one_of(n: int) -> int:
        return int(rng.integers(0, n))

    def arm() -> str:
        name, params, _ = ARMS[one_of(len(ARMS))]
        settings = ",".join(f"{key}={value}" for key, value in json.loads(params).items())
        return f"{name}:{settings}" if settings else name

    listing = "/api/generations?size=50"
    found = "/api/concepts/latents?size=50"
    return {
        "run": lambda: "/api/run",
        "generations: facets": lambda: "/api/generations/facets",
        "generations: any page": lambda: f"{listing}&page={one_of(rows // 50)}",
        "generations: last pages, sorted": lambda: (
            f"{listing}&sort={rng.choice(['mean_logprob', 'reward', 'n_tokens', 'temperature'])}"
            f"&order={rng.choice(['asc', 'desc'])}&page={rows // 50 - 1 - one_of(50)}"
        ),
        "generations: arm and category": lambda: (
            f"{listing}&strategy={arm()}&category={rng.choice(CATEGORIES)}&stop_reason={rng.choice(STOPS)}"
        ),
        "generations: score, sorted": lambda: (
            f"{listing}&min_score={rng.normal():.4f}&sort=reward&order=desc&page={one_of(20)}"
        ),
        "generations: search": lambda: f"{listing}&q={words.one()}%20{words.one()[:2]}",
        "generations: search, filter, sort": lambda: (
            f"{listing}&q={words.one()}&temperature=0.8&sort=mean_logprob&size=200"
        ),
        "generations: of a prompt": lambda: f"{listing}&prompt_id=prompt-{one_of(max(1, rows // PER_PROMPT)):05d}",
        "generations: one": lambda: f"/api/generations/{one_of(rows)}",
        "generations: two": lambda: f"/api/generations/compare?a={one_of(rows)}&b={one_of(rows)}",
        "audits: card": lambda: "/api/audits",
        "audits: finding": lambda: f"/api/audits/findings/{one_of(60)}",
        "audits: responses": lambda: f"/api/audits/responses?page={one_of(60)}&q={words.one()[:2]}&sort=n_words",
        "audits: response": lambda: f"/api/audits/responses/{one_of(3000)}",
        "concepts: overview": lambda: "/api/concepts",
        "concepts: scatter": lambda: "/api/concepts/scatter",
        "concepts: any page": lambda: f"{found}&page={one_of(latents // 50)}",
        "concepts: class, sorted": lambda: (
            f"{found}&cls={rng.choice(['universal', 'mid', 'specific'])}"
            f"&sort={rng.choice(['entropy', 'co_fires', 'fires'])}&order=desc&page={one_of(5)}"
        ),
        "concepts: search": lambda: (
            f"{found}&q=form{one_of(40)}&min_auroc={rng.uniform(0.5, 0.9):.3f}&sort=label_auroc"
        ),
        "concepts: factor": lambda: f"{found}&factor=shape&value=form{3 * one_of(13)}",
        "concepts: latent": lambda: f"/api/concepts/latents/{one_of(latents)}",
        "page: script": lambda: "/main.js",
    }


class Times(NamedTuple):
    """Milliseconds."""

    p50: float
    p95: float
    worst: float

    @classmethod
    def of(cls, values: list[float]) -> "Times":
        return cls(*(round(float(np.percentile(values, q)), 1) for q in (50, 95, 100)))


def measure(client: Client, address: Callable[[], str], requests: int) -> Times:
    """The times of one kind of page, after two to warm up."""
    for _ in range(2):
        client.get(address())
    spent = []
    for _ in range(requests):
        path = address()
        started = time.perf_counter()
        client.get(path)
        spent.append(1000 * (time.perf_counter() - started))
    return Times.of(spent)


def thumbnails(client: Client) -> Callable[[], str]:
    """Addresses of thumbnails, as a page of latents names them, one after the other."""
    page = json.loads(client.get("/api/concepts/latents?size=200"))
    urls = [url for row in page["rows"] for of_model in row["thumbnails"].values() for url in of_model]
    given = iter(urls * 10)
    return lambda: next(given)


def first_tokens(client: Client, n: int) -> dict[str, float]:
    """The first token of texts by the base, under another seed each, as soon as the model is loaded."""
    started = time.perf_counter()
    while not (info := json.loads(client.get("/api/playground")))["models"] or not info["models"][0]["ready"]:
        if not info["available"] or any(model.get("problem") for model in info["models"]):
            raise SystemExit(f"the playground has no model: {info['reason'] or info['models']}")
        if time.perf_counter() - started > 300:
            raise SystemExit("the model was not loaded within five minutes")
        time.sleep(0.2)
    loaded = time.perf_counter() - started
    body = {"prompt": PROMPT, "models": [info["models"][0]["name"]], "strategies": ["top_p:p=0.9,temperature=1.0"]}
    spent = []
    for seed in range(n + 1):
        spent.append(client.first_token({**body, "max_new_tokens": 64, "seed": seed}))
        # The server notices at its next token that nobody listens.
        time.sleep(0.5)
    first, rest = spent[0], spent[1:]
    figures = {"median": statistics.median(rest), "worst": max(rest), "very_first": first, "load_seconds": loaded}
    return {name: round(value, 1) for name, value in figures.items()}


@contextmanager
def served(run_dir: Path, *, with_model: bool) -> Iterator[int]:
    """The port of the explorer of a run, in a process of its own."""
    command = [sys.executable, "-m", "triptych", "explore", str(run_dir), "--port", "0"]
    process = subprocess.Popen([*command, *([] if with_model else ["--no-models"])], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        found = re.search(r":(\d+)/", process.stdout.readline())
        if found is None:
            raise SystemExit("the explorer did not start")
        yield int(found[1])
    finally:
        process.terminate()
        process.wait(30)


def run(rows: int, latents: int, model: str | None, requests: int) -> dict[str, Any]:
    """All figures."""
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        print(f"a run of {rows:,} completions and {latents:,} latents …", flush=True)
        write_run(run_dir, rows, latents, model or "starter")
        rng = np.random.default_rng(1)
        asked = kinds(rng, Words(np.random.default_rng(0)), rows, latents)
        with served(run_dir, with_model=model is not None) as port:
            tokens = None if model is None else first_tokens(Client(port), TOKENS)
            # Another one: a server ends a connection on which nothing is asked for some seconds.
            client = Client(port)
            started = time.perf_counter()
            client.get("/api/generations")
            opening = round(1000 * (time.perf_counter() - started))
            found = {kind: measure(client, address, requests) for kind, address in asked.items()}
            found["concepts: thumbnail"] = measure(client, thumbnails(client), requests)
    pages = {kind: times._asdict() for kind, times in found.items()}
    return {"rows": rows, "latents": latents, "first_request_ms": opening, "pages_ms": pages, "first_token_ms": tokens}


def tell(figures: dict[str, Any]) -> bool:
    """Prints the figures; whether all targets are met."""
    print(f"{'milliseconds':38}{'p50':>8}{'p95':>8}{'worst':>8}")
    for kind, times in figures["pages_ms"].items():
        print(f"{kind:38}{times['p50']:8.1f}{times['p95']:8.1f}{times['worst']:8.1f}")
    slowest = max(figures["pages_ms"].items(), key=lambda entry: entry[1]["p95"])
    is_met = slowest[1]["p95"] < PAGE_TARGET
    said = "below" if is_met else "NOT below"
    print(f"p95 of every kind is {said} {PAGE_TARGET:.0f} ms; the slowest is {slowest[0]} with {slowest[1]['p95']} ms")
    print(f"the very first page, which reads the run's files, took {figures['first_request_ms']} ms")
    tokens = figures["first_token_ms"]
    if tokens is not None:
        is_fast = tokens["median"] < TOKEN_TARGET
        said = "below" if is_fast else "NOT below"
        print(
            f"first token: median {tokens['median']} ms, worst {tokens['worst']} ms of {TOKENS}, "
            f"{said} {TOKEN_TARGET:.0f} ms; the very first {tokens['very_first']} ms"
        )
        is_met = is_met and is_fast
    return is_met


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--latents", type=int, default=16_000)
    parser.add_argument("--model", default="starter")
    parser.add_argument("--no-model", action="store_true", help="pages alone")
    parser.add_argument("--requests", type=int, default=REQUESTS, help="of each kind of page")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    figures = run(given.rows, given.latents, None if given.no_model else given.model, given.requests)
    is_met = tell(figures)
    if given.out is not None:
        atomic_write_json(given.out, figures)
    return 0 if is_met else 1


if __name__ == "__main__":
    sys.exit(main())

"""A small run on disk with all panels, written by the panels' own tables, with text that tries to break a page."""

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from starlette.testclient import TestClient

from triptych.auditing.records import (
    PERTURBED_SCHEMA,
    RESPONSES_SCHEMA,
    SCORES_SCHEMA,
    AuditRecord,
    Evidence,
    Finding,
    Kind,
    Level,
    PerturbedText,
    Response,
    Score,
)
from triptych.auditing.tables import table_of, write_rows
from triptych.decoding import Beam, Greedy, Strategy, TopP
from triptych.decoding.table import generations_table, scores_table
from triptych.dictionaries.records import DictionaryRecord, LatentPictures, Picture, TrainedRecord
from triptych.dictionaries.tops import THUMBNAIL_SCHEMA, TOP_SCHEMA
from triptych.explorer.app import create_app
from triptych.records import Estimate, Generation
from triptych.runs import Manifest, atomic_write_json, write_records_json

HOSTILE = (
    "<script>alert(1)</script>",
    "\u202egnp.exe\u202c </title><img src=x onerror=alert(2)>",
    "before\x00after\x1b[31m\u2028{{ 7 * 7 }}",
    "a long line " + "x" * 1_000_000,
)
HOSTILE_NAME = "\u202e<img src=x onerror=alert(4)>&=?/../" + "z" * 300
STRATEGIES: tuple[Strategy, ...] = (Greedy(), Beam(width=4), TopP(p=0.9, temperature=0.5), TopP(p=0.9, temperature=1.0))
PROMPTS = 6
PIECES = {0: " the", 1: "<b>", 2: "\u202e", 3: "\udcf0\udc9f", 4: "\udc98\udc80", 5: "\ud800", 6: "\x00"}
"""Tokens 3 and 4 are one character together; 5 is half of a pair, which stands for no byte; 7 is not known."""
LOGPROBS = (-0.1, -3.0, -1.0, -0.5, -0.25, -2.0, -4.0, -6.0)
CHECKPOINTS = ("base", "dpo", HOSTILE_NAME)
KINDS: tuple[Kind, ...] = ("plain", "limited")
MODELS = ("resnet", "vit")
LATENTS = 30


def estimate(mean: float) -> Estimate:
    return Estimate(mean=mean, low=mean - 0.1, high=mean + 0.1, n=6, n_clusters=6, method="95% bootstrap")


def write_manifest(folder: Path) -> None:
    manifest = Manifest(
        run_id="test-run",
        created="2026-01-01T00:00:00+00:00",
        command=("triptych", "study", "--recipe", "<b>smoke"),
        config={"model": "starter"},
        config_hash="0",
        seed=7,
        python="3",
        packages={},
        git=None,
        device="cpu",
        stages={},
    )
    atomic_write_json(folder / "manifest.json", manifest.model_dump(mode="json"))


def make_generation(prompt: int, strategy: Strategy, text: str, *, mean: float = -1.0) -> Generation:
    """A completion of eight tokens, the same in all."""
    is_search = isinstance(strategy, Beam)
    settings = strategy.model_dump()
    return Generation(
        prompt_id=HOSTILE_NAME if prompt == 0 else f"p{prompt}",
        prompt=f"### Instruction: say {prompt}",
        instruction=f"say {prompt}",
        input="",
        strategy=strategy.name,
        params=strategy.params,
        temperature=settings.get("temperature"),
        sample=0,
        text=text,
        raw_text=f"{text}!",
        token_ids=tuple(range(8)),
        logprobs=LOGPROBS,
        sampler_logprobs=None if is_search else LOGPROBS,
        mean_logprob=mean,
        n_tokens=8 + prompt,
        stop_reason="eos" if prompt % 2 else "length",
        score=-3.0 if is_search else None,
        seed=11,
    )


def write_decoding(folder: Path, *, row_group: int = 4, rewards: bool = True) -> list[Generation]:
    """24 completions: six prompts by four strategies. Rewards are the row numbers; the last is unscored."""
    folder.mkdir(parents=True, exist_ok=True)
    made, tables = [], []
    for prompt in range(PROMPTS):
        texts = [*HOSTILE] if prompt == 0 else [f"Answer {prompt}.{arm} one Two three" for arm in range(4)]
        own = [
            make_generation(prompt, strategy, text, mean=-0.1 * (4 * prompt + arm))
            for arm, (strategy, text) in enumerate(zip(STRATEGIES, texts, strict=True))
        ]
        made += own
        tables.append(generations_table(own, (HOSTILE_NAME, "factual", None)[prompt % 3]))
    pq.write_table(pa.concat_tables(tables), folder / "generations.parquet", row_group_size=row_group)
    (folder / "pieces.json").write_text(json.dumps({str(key): piece for key, piece in PIECES.items()}))
    if rewards:
        given = [*map(float, range(len(made) - 1)), None]
        pq.write_table(scores_table(made, given, "<i>reward"), folder / "scores.parquet")
    return made


def write_auditing(folder: Path) -> None:
    """Three checkpoints, four prompts, two kinds; findings of every level."""
    folder.mkdir(parents=True, exist_ok=True)
    write_rows(folder / "responses.parquet", [table_of(list(responses()), RESPONSES_SCHEMA)], RESPONSES_SCHEMA)
    perturbed = [
        PerturbedText("q0", None, "the base says one"),
        PerturbedText("q0", "filler", "the base <b>also</b> says one"),
    ]
    write_rows(folder / "perturbed.parquet", [table_of(perturbed, PERTURBED_SCHEMA)], PERTURBED_SCHEMA)
    scores = [
        *(Score("judge", model, f"q{prompt}", None, 0.5 * prompt) for model in CHECKPOINTS for prompt in range(4)),
        Score("judge", "base", "q0", "filler", 2.5),
        Score("implicit_reward(dpo)", "base", "q0", None, 0.25),
        Score("implicit_reward(dpo)", "base", "q0", "filler", None),
    ]
    write_rows(folder / "scores.parquet", [table_of(scores, SCORES_SCHEMA)], SCORES_SCHEMA)
    change = AuditRecord(
        model="dpo", metric="score_change", category="filler", scorer="implicit_reward", estimate=estimate(0.1)
    )
    win = AuditRecord(model="dpo", metric="win_rate", scorer="judge", against="base", estimate=estimate(0.6))
    write_records_json(folder / "hacking.json", [change])
    write_records_json(folder / "comparison.json", [win])
    write_records_json(folder / "card.json", list(card()))


def responses() -> Iterator[Response]:
    for model in CHECKPOINTS:
        for prompt in range(4):
            for kind in KINDS:
                text = HOSTILE[prompt] if model == HOSTILE_NAME else f"{model} says {prompt} {kind}"
                yield Response(
                    model=model,
                    prompt_id=f"q{prompt}",
                    kind=kind,
                    instruction=f"ask {prompt}",
                    input="",
                    category=("factual", HOSTILE_NAME)[prompt % 2],
                    prompt=f"User: ask {prompt}",
                    text=text,
                    token_ids=[1, 2],
                    logprobs=[-1.0, -2.0],
                    n_tokens=2 + prompt,
                    n_words=3,
                    is_truncated=prompt == 3,
                    seed=0,
                )


def card() -> Iterator[Finding]:
    """In the file the gravest is the last."""
    shows: dict[Level, tuple[Evidence, ...]] = {
        "ok": (),
        "undecided": (Evidence(model="gone", prompt_id="gone", note="<b>"),),
        "warn": (
            Evidence(model="dpo", prompt_id="q1", note="5 words, the base's -2"),
            Evidence(model=HOSTILE_NAME, prompt_id="q3", kind="limited"),
        ),
        "severe": (Evidence(model="base", prompt_id="q0", perturbation="filler", note="score 0 becomes 2.5"),),
    }
    for level, evidence in shows.items():
        yield Finding(
            model=HOSTILE_NAME if level == "warn" else "dpo",
            metric="words_ratio",
            against="base",
            estimate=estimate(2.0),
            level=level,
            rule="length",
            audit="verbosity",
            warn=1.25,
            severe=3.0,
            sentence=f"<b>{level}</b> \u202e",
            evidence=evidence,
        )


def write_dictionaries(folder: Path) -> None:
    """Thirty latents of two models, with thumbnails, and pictures of one latent."""
    images = folder / "universal" / "images"
    images.mkdir(parents=True, exist_ok=True)
    picture = png()
    (images / "latent_1_resnet_0.png").write_bytes(picture)
    shown = Picture(
        model="resnet", kind="top", file="latent_1_resnet_0.png", rank=0, activation=1.5, image_id=HOSTILE_NAME
    )
    record = LatentPictures(latent=1, kind="universal", entropy=0.95, fires={}, co_fires=5, pictures=(shown,))
    write_records_json(images / "index.json", [record])
    numbers = np.arange(LATENTS)
    columns: dict[str, Any] = {
        "latent": numbers,
        "firing_entropy": [None if one == 29 else one / 29 for one in range(LATENTS)],
        "co_fires": numbers,
        "co_fire_chance": numbers / 2,
        "confirmed": numbers % 2 == 0,
        "dead": numbers == 29,
        "label": ["shape = <b>star" if one % 2 else None for one in range(LATENTS)],
        "label_auroc": [0.9 if one % 2 else None for one in range(LATENTS)],
    }
    for model in MODELS:
        columns |= {f"fires_{model}": numbers + 1, f"cofire_{model}": numbers / 60, f"energy_{model}": numbers / 30}
    pq.write_table(pa.table(columns), folder / "universal" / "features.parquet")
    tops = [(one, model, 0, one % 3, 1.0, "image") for one in range(29) for model in MODELS]
    table = pa.Table.from_arrays([pa.array(c) for c in zip(*tops, strict=True)], TOP_SCHEMA.names).cast(TOP_SCHEMA)
    pq.write_table(table, folder / "universal" / "tops.parquet")
    thumbnails = pa.table({"row": [0, 1, 2], "image": [picture] * 3}, schema=THUMBNAIL_SCHEMA)
    pq.write_table(thumbnails, folder / "universal" / "thumbnails.parquet")
    pairs = [(source, target) for source in MODELS for target in MODELS]
    measures = [
        DictionaryRecord(role="universal", metric="r2", source=a, target=b, estimate=estimate(0.8)) for a, b in pairs
    ]
    write_records_json(folder / "measures.json", measures)
    update: Literal["source"] = "source"
    trained = TrainedRecord(
        name="universal", role="universal", seed=0, models=MODELS, latents=LATENTS, k=4, update=update,
        steps=1, samples=1, loss=0.1, seconds=1.0,
    )  # fmt: skip
    write_records_json(folder / "dictionaries.json", [trained])


def png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, "PNG")
    return buffer.getvalue()


def write_run(folder: Path) -> None:
    """A run with all panels but trained policies, full of text that tries to break a page."""
    folder.mkdir()
    write_manifest(folder)
    write_decoding(folder / "decoding")
    write_auditing(folder / "auditing")
    write_dictionaries(folder / "dictionaries")
    (folder / "report.html").write_text("<!doctype html><title>a report</title>")


@pytest.fixture(scope="session")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with all panels but trained policies."""
    folder = tmp_path_factory.mktemp("explorer") / "run"
    write_run(folder)
    (folder / "secret.txt").write_text("SECRET")
    return folder


Serve = Callable[[Path], TestClient]


@pytest.fixture(scope="session")
def serve() -> Serve:
    """A run as a browser on this machine sees it; an error of the server is an answer, too."""

    def client_of(folder: Path) -> TestClient:
        return TestClient(create_app(folder), base_url="http://localhost:8765", raise_server_exceptions=False)

    return client_of


@pytest.fixture(scope="session")
def client(serve: Serve, run_dir: Path) -> TestClient:
    return serve(run_dir)


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A run that has nothing yet."""
    write_manifest(tmp_path)
    return tmp_path


@pytest.fixture
def decoded(bare: Path) -> "Decoded":
    """Writes completions into a bare run."""

    def write(*, row_group: int = 4, rewards: bool = True) -> list[Generation]:
        return write_decoding(bare / "decoding", row_group=row_group, rewards=rewards)

    return write


class Decoded(Protocol):
    def __call__(self, *, row_group: int = 4, rewards: bool = True) -> list[Generation]: ...


@pytest.fixture(scope="session")
def hostile_name() -> str:
    """A prompt id, a category, a checkpoint and the id of an image."""
    return HOSTILE_NAME

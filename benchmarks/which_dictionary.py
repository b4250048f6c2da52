"""Which dictionary tells shared from private concepts: rule, start, sparsifier, m and k, on planted truth or real rows.

    python benchmarks/which_dictionary.py planted [--seeds 3] [--settings default,paper] [--truths plain,skewed]
    python benchmarks/which_dictionary.py real --train FILE --test FILE [--seeds 3] [--settings …] [--nulls]

`unit` is what was shipped before (unit decoders, no decay, no matching), `paper` the official rule.

Prints Markdown: a mean over seeds with [lowest, highest]. A planted truth is two models of known concepts, of which
`SHARED` columns are common; files are safetensors with one matrix a model, row n of each on the same thing.
"""

import argparse
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

from triptych.dictionaries.coder import CoderConfig
from triptych.dictionaries.codes import read_rows
from triptych.dictionaries.measures import Facts, facts_of, metrics_of
from triptych.dictionaries.rows import PairedRows
from triptych.dictionaries.settings import UniversalConfig
from triptych.dictionaries.sparsifiers import BatchTopK, JumpRelu, Sparsifier, TopK
from triptych.dictionaries.training import Trained, train_universal_sae
from triptych.seeding import generator, stream_key

Activations = Mapping[str, Tensor]
RIGHT = 0.9
"""Cosine from which a latent's decoder row is a planted concept."""
SETTINGS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "default": ({}, {}),
    "unmatched": ({}, {"match": False}),
    "random": ({"init": "random"}, {}),
    "random-unmatched": ({"init": "random"}, {"match": False}),
    "unit": ({"decoder_norm": "unit"}, {"match": False, "weight_decay": 0.0}),
    "unit-matched": ({"decoder_norm": "unit"}, {}),
    "decay-0.1": ({}, {"weight_decay": 0.1}),
    "source": ({}, {"update": "source"}),
    "source-random": ({"init": "random"}, {"update": "source"}),
    "paper": ({"init": "random", "decoder_norm": "unit"}, {"update": "source", "match": False}),
}
"""What differs from the shipped defaults, in the coder and in training."""
SPARSIFIERS: dict[str, type[TopK | BatchTopK | JumpRelu]] = {
    "top_k": TopK,
    "batch_top_k": BatchTopK,
    "jump_relu": JumpRelu,
}


class Truth(NamedTuple):
    """A generator of two models' activations."""

    shared: int
    private: int
    widths: tuple[int, int]
    active: float
    """Concepts of a model that are active in a row, on average."""
    k: int
    latents: int
    skew: float = 0.0
    """Rates of concepts fall with rank to this power."""
    strengths: str = "uniform"
    """0.5 … 1.5, or 0.3 and an exponential of mean 0.7."""
    rows: int = 8000


TRUTHS = {
    # The settings were chosen on `plain`; the others confirm them.
    "plain": Truth(192, 64, (320, 448), 6.4, 8, 512),
    "skewed": Truth(160, 48, (256, 192), 5.0, 6, 448, skew=0.5),
    "exponential": Truth(96, 40, (160, 224), 4.0, 5, 320, strengths="exponential", rows=6000),
}


class Planted(NamedTuple):
    train: Activations
    test: Activations
    concepts: dict[str, Tensor]
    """[concepts, width], the shared ones first."""


def plant(truth: Truth, seed: int, n_test: int = 2000, noise: float = 0.02) -> Planted:
    """Rows of both models: the same strengths of shared concepts, independent ones of private concepts, and noise."""
    stream = torch.Generator().manual_seed(stream_key(seed, "planted") >> 1)
    n, total = truth.rows + n_test, truth.shared + truth.private

    def strengths(count: int) -> Tensor:
        rates = torch.arange(1, count + 1).float() ** -truth.skew
        rates = rates / rates.mean() * truth.active / total
        sizes = 0.5 + torch.rand(n, count, generator=stream)
        if truth.strengths == "exponential":
            sizes = 0.3 - 0.7 * torch.rand(n, count, generator=stream).clamp_min(1e-9).log()
        return sizes * (torch.rand(n, count, generator=stream) < rates)

    common = strengths(truth.shared)
    train, test, concepts = {}, {}, {}
    for name, width in zip("ab", truth.widths, strict=True):
        concepts[name] = functional.normalize(torch.randn(total, width, generator=stream), dim=1)
        clean = torch.cat([common, strengths(truth.private)], dim=1) @ concepts[name]
        rows = clean + noise * torch.randn(n, width, generator=stream)
        train[name], test[name] = rows[: truth.rows], rows[truth.rows :]
    return Planted(train, test, concepts)


def config_of(name: str, sparsifier: Sparsifier, latents: int) -> UniversalConfig:
    """The shipped defaults, but for what the setting of that name changes."""
    coder, training = SETTINGS[name]
    return UniversalConfig(coder=CoderConfig(latents=latents, sparsifier=sparsifier, **coder), **training)


class Measured(NamedTuple):
    trained: Trained
    facts: Facts
    metrics: dict[str, Any]
    seconds: float


def measure(
    train: Activations, test: Activations, config: UniversalConfig, seed: int, *, shuffled: bool = False
) -> Measured:
    """Trains on some rows, measures on others; `shuffled` breaks the correspondence of both."""
    started = time.monotonic()
    pairings = [None if not shuffled else _pairing(rows, seed) for rows in (train, test)]
    trained = train_universal_sae(train, config, seed=seed, device="cpu", pairing=pairings[0])
    reading = read_rows(trained.sae, PairedRows(test, pairing=pairings[1]))
    facts = facts_of(trained.sae, reading, np.arange(reading.errors.shape[2]), threshold=0.0)
    return Measured(trained, facts, metrics_of(facts, trained.history[-1].loss), time.monotonic() - started)


def _pairing(rows: Activations, seed: int) -> dict[str, Tensor]:
    last = [*rows][-1]
    return {last: torch.from_numpy(generator(seed, "pairing", len(rows[last])).permutation(len(rows[last])))}


def recovered(measured: Measured, truth: Truth, planted: Planted) -> dict[str, float]:
    """Shares of planted concepts that are found and of the right kind; of private ones also by counts (the paper)."""
    kinds, entropy = measured.facts.kinds, measured.facts.entropy
    cosines = {}
    for name, concepts in planted.concepts.items():
        decoder = measured.trained.sae.coder(name).decoder_weight.detach()
        cosines[name] = (functional.normalize(decoder, dim=1) @ concepts.T).numpy()
    both = np.minimum(*cosines.values())[:, : truth.shared]
    best, is_right = both.argmax(0), both.max(0) > RIGHT
    scores = {
        "shared universal": is_right & (kinds.kind[best] == "universal"),
        "shared universal by counts": is_right & (entropy[best] > 0.9),
    }
    private, by_counts = [], []
    for place, name in enumerate(planted.concepts):
        own = cosines[name][:, truth.shared :]
        best, is_right = own.argmax(0), own.max(0) > RIGHT
        private.append(is_right & (kinds.kind[best] == "specific") & (kinds.specific_to[best] == place))
        by_counts.append(is_right & (entropy[best] < 0.1))
    scores |= {"private specific": np.concatenate(private), "private specific by counts": np.concatenate(by_counts)}
    return {name: float(right.mean()) for name, right in scores.items()}


def numbers(measured: Measured) -> dict[str, float]:
    """Counts of latents by every definition, co-firing, and R²."""
    metrics, facts = measured.metrics, measured.facts
    explained = np.maximum(facts.reading.explained, 1e-12)
    removal = facts.reading.removal
    crosses = np.minimum(removal[0, 1] / explained[1], removal[1, 0] / explained[0])
    first, second = facts.names
    live = facts.kinds.kind != "dead"
    return {
        **{name: metrics[name] for name in ("universal", "partial", "specific", "dead", "confirmed")},
        "universal of live": float((facts.kinds.kind[live] == "universal").mean()),
        "by variance": metrics["universal_by_variance"],
        "by counts": metrics["universal_by_counts"],
        "specific by counts": metrics["specific_by_counts"],
        "carries across": float((crosses[live] > 0.1).sum()),
        "co-firing": metrics["co_firing_proportion"],
        "by chance": metrics["co_firing_chance"],
        **{f"R² {s}→{t}": metrics["r2"][s][t] for s in (first, second) for t in (first, second)},
        "seconds": measured.seconds,
    }


# --- The two studies --------------------------------------------------------------------------------------------------


def study_planted(arguments: argparse.Namespace) -> Iterator[tuple[str, dict[str, float]]]:
    for name in arguments.truths.split(","):
        truth = TRUTHS[name]
        for seed in range(arguments.seeds):
            planted = plant(truth, seed)
            for setting in arguments.settings.split(","):
                for sparsifier in arguments.sparsifiers.split(","):
                    for k_factor in map(float, arguments.k.split(",")):
                        for m_factor in map(float, arguments.m.split(",")):
                            k, latents = round(truth.k * k_factor), round(truth.latents * m_factor)
                            config = config_of(setting, SPARSIFIERS[sparsifier](k=k), latents)
                            measured = measure(planted.train, planted.test, config, seed)
                            row = f"{name} | {setting} | {sparsifier} | {latents} | {k}"
                            found = numbers(measured)
                            yield (
                                row,
                                {
                                    **recovered(measured, truth, planted),
                                    **{n: found[n] for n in ("universal", "specific", "dead", "seconds")},
                                },
                            )
            if arguments.nulls:
                config = config_of("default", TopK(k=truth.k), truth.latents)
                yield (
                    f"{name} | null: shuffled ||| {truth.k}",
                    numbers(measure(planted.train, planted.test, config, seed, shuffled=True)),
                )
                for start in ("own_samples", "random"):
                    yield (
                        f"{name} | null: same, {start} ||| {truth.k}",
                        numbers(_same(planted.train["a"], planted.test["a"], config, start, seed)),
                    )


def study_real(arguments: argparse.Namespace) -> Iterator[tuple[str, dict[str, float]]]:
    train, test = (_read(path) for path in (arguments.train, arguments.test))
    for seed in range(arguments.seeds):
        for setting in arguments.settings.split(","):
            config = config_of(setting, TopK(k=arguments.k_real), arguments.latents)
            yield f"{setting}", numbers(measure(train, test, config, seed))
            if arguments.nulls:
                yield f"{setting}, shuffled", numbers(measure(train, test, config, seed, shuffled=True))
                for name in train:
                    start = "random" if config.coder.init == "random" else "own_samples"
                    yield (
                        f"{setting}, {name} against itself",
                        numbers(_same(train[name], test[name], config, start, seed)),
                    )


def _same(train: Tensor, test: Tensor, config: UniversalConfig, start: str, seed: int) -> Measured:
    apart = config.model_copy(update={"coder": config.coder.model_copy(update={"init": start})})
    return measure({"a": train, "again": train}, {"a": test, "again": test}, apart, seed)


def _read(path: Path) -> dict[str, Tensor]:
    return {name: matrix.float() for name, matrix in load_file(path).items() if matrix.ndim == 2}


def markdown(rows: Mapping[str, list[dict[str, float]]]) -> str:
    """A table of a mean and [lowest, highest] over seeds."""
    tables: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for name, found in rows.items():
        cells = [_cell([one[column] for one in found]) for column in found[0]]
        tables[tuple(found[0])].append(f"| {name} | {' | '.join(cells)} |")
    parts = []
    for columns, lines in tables.items():
        width = lines[0].count("|") - 1 - len(columns)
        parts.append(
            "\n".join(
                [
                    "| " + "| " * (width - 1) + f"| {' | '.join(columns)} |",
                    "|---" * (width + len(columns)) + "|",
                    *lines,
                ]
            )
        )
    return "\n\n".join(parts)


def _cell(values: list[float]) -> str:
    places = 0 if max(map(abs, values)) >= 10 else 3
    mean = f"{np.mean(values):.{places}f}"
    return mean if len(values) == 1 else f"{mean} [{min(values):.{places}f}, {max(values):.{places}f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="study", required=True)
    planted = commands.add_parser("planted")
    planted.add_argument("--truths", default=",".join(TRUTHS))
    planted.add_argument("--sparsifiers", default="top_k")
    planted.add_argument("--k", default="1,1.25,0.75", help="times the right k")
    planted.add_argument("--m", default="1", help="times the number of latents")
    real = commands.add_parser("real")
    real.add_argument("--train", type=Path, required=True)
    real.add_argument("--test", type=Path, required=True)
    real.add_argument("--latents", type=int, default=2048)
    real.add_argument("--k-real", type=int, default=32)
    for one in (planted, real):
        one.add_argument("--settings", default="default,unmatched,unit,paper")
        one.add_argument("--seeds", type=int, default=3)
        one.add_argument("--nulls", action="store_true")
    arguments = parser.parse_args()
    rows: dict[str, list[dict[str, float]]] = defaultdict(list)
    for name, found in (study_planted if arguments.study == "planted" else study_real)(arguments):
        rows[name].append(found)
        print(name, {key: round(value, 3) for key, value in found.items()}, flush=True)
    print("\n" + markdown(rows))


if __name__ == "__main__":
    main()

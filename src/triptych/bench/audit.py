"""`triptych bench audit`: what an audit costs.

Sharing: one adapter and then three of the same base, each by `triptych audit` in a process of its own. The base works
once for all and the rest is shared, so that

    cost(3) / (1.5 · cost(1) + generation of the three) ≤ 1,   cost = models + scoring + measuring, seconds

is what we want; how much is read of what is written is as in the starter recipe. Plain loop: the work of one adapter on
the same prompts as transformers and PEFT do it, one text at a time; for comparison with it, everything is read of every
prompt. A small audit runs first and is not measured: it compiles the kernels that are kept on disk, for which only the
first process would pay. Not here: the work and the loop (`audit_peer`).
"""

import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table
from torch import nn

from triptych.alignment.adapters import LoraConfig, save_adapter, with_lora
from triptych.auditing.records import FOLDER, AuditRecord, PerturbedText, ReadToken, Response
from triptych.auditing.study import PERTURBED, RESPONSES, TOKENS
from triptych.auditing.tables import read_rows
from triptych.bench.audit_peer import ADAPTER, SEED, AuditWork, Looped, lay_out
from triptych.bench.side_by_side import require_writable
from triptych.environment import device_description, package_versions
from triptych.errors import InputError, WorkError
from triptych.files import atomic_write_json, read_records_json
from triptych.models import load_language_model
from triptych.progress import progress
from triptych.runs import read_manifest
from triptych.seeding import generator

PEER = "triptych.bench.audit_peer"
OURS, LOOP = "triptych", "plain loop"
ADAPTERS = (ADAPTER, "two", "three")

STAGES = ("audit.models", "audit.scoring", "audit.measuring")
"""Whose seconds are an audit's cost; the report is not."""

ONCE_SHARE = 1.5
"""Of the cost of one adapter: what three may take, generation of the three not counted."""

TARGETS = {"sharing": 1.0}
"""At most."""

NOISE = 0.01
"""Standard deviation of B: enough to change what is written, not how well."""

READ_SHARES = {"perplexity_prompts": 0.6, "divergence_prompts": 0.6, "hacking_prompts": 0.24}
"""Of the prompts that are answered: what the starter recipe reads."""

WARM_UP = {"limit": 1, "max_new_tokens": 8}
"""What the audit that is not measured does instead."""

BAD_INPUT = 2
"""Exit code of an audit that its caller can mend."""

Logprobs = Mapping[str, Mapping[str, float]]
"""Model → prompt → the mean log-probability of a token of the chosen answer, nats."""


class Audited(NamedTuple):
    """What a finished run of `triptych audit` says of its costs."""

    stages: Mapping[str, float]
    """Seconds."""
    costs: Mapping[str, Mapping[str, float]]
    """By model and metric, as in `costs.json`."""
    peak_memory_bytes: int
    n_prompts: int
    n_perturbed: int
    """Responses that were read in perturbed forms."""
    chosen_logprobs: Logprobs

    @property
    def seconds(self) -> float:
        return sum(self.stages[name] for name in STAGES)

    def spent(self, metric: str) -> float:
        """By base and adapters together."""
        return sum(costs.get(metric, 0.0) for costs in self.costs.values())


Sizes = Mapping[str, int]
"""Keys of the auditing panel → prompts."""

Audit = Callable[[AuditWork, Mapping[str, Path], Path, Sizes], Audited]
"""(work, name → adapter, run directory to be made, what is read) → its figures."""

PlainLoop = Callable[[AuditWork, Path], Looped]
"""(work, adapter) → its figures."""


class Measured(NamedTuple):
    """What the processes came to."""

    one: Audited
    """Of one adapter."""
    three: Audited
    whole: Audited
    """Of one adapter, everything read of every prompt."""
    looped: Looped


def run(
    out: Path, work: AuditWork, *, show_progress: bool, audit: Audit | None = None, loop: PlainLoop | None = None
) -> dict[str, Any]:
    """Measures the audits and the loop, writes the figures to `out` and prints the ratios.

    `audit` and `loop` take the place of fresh processes, in tests. Raises what loading model, pairs and prompts raises,
    before anything is measured, and `WorkError` where a process fails.
    """
    require_writable(out)
    lay_out(work)
    measured = measure(work, audit or audit_in_a_process, loop or loop_in_a_process, show_progress=show_progress)
    report = {**report_of(work, *measured), "machine": device_description(), "versions": package_versions()}
    atomic_write_json(out, report)
    print_report(report)
    return report


def measure(work: AuditWork, audit: Audit, loop: PlainLoop, *, show_progress: bool) -> Measured:
    """One process after the other, in a temporary folder."""
    with (
        tempfile.TemporaryDirectory(prefix="triptych-bench-") as name,
        progress(5, "processes", "bench audit: warm-up", enabled=show_progress) as meter,
    ):

        def goes_on(what: str) -> None:
            meter.advance()
            meter.update(description=f"bench audit: {what}")

        folder = Path(name)
        adapters = make_adapters(work.model, folder)
        first = {ADAPTERS[0]: adapters[ADAPTERS[0]]}
        small = work.model_copy(update=WARM_UP)
        audit(small, first, folder / "warm-up", every_prompt(small))
        goes_on("one adapter")
        one = audit(work, first, folder / "one", as_in_the_recipe(work))
        goes_on("three adapters")
        three = audit(work, adapters, folder / "three", as_in_the_recipe(work))
        goes_on("everything read")
        whole = audit(work, first, folder / "whole", every_prompt(work))
        goes_on(LOOP)
        looped = loop(work, first[ADAPTERS[0]])
        meter.advance()
    return Measured(one, three, whole, looped)


def as_in_the_recipe(work: AuditWork) -> Sizes:
    """What is read of the prompts that are answered, in the starter recipe's proportions."""
    return {key: max(1, round(share * work.limit)) for key, share in READ_SHARES.items()}


def every_prompt(work: AuditWork) -> Sizes:
    """Everything."""
    return dict.fromkeys(READ_SHARES, work.limit)


# --- The adapters -----------------------------------------------------------------------------------------------------


def make_adapters(spec: str, folder: Path) -> dict[str, Path]:
    """Three LoRA adapters of a base, as `triptych align` begins one but with noise in B: name → folder."""
    lm = load_language_model(spec, dtype="float32", device="cpu")
    model = with_lora(lm.model, LoraConfig(), task="CAUSAL_LM", spec=lm.spec, seed=SEED)
    places = {name: folder / "adapters" / name for name in ADAPTERS}
    for name, place in places.items():
        _put_noise_into(model, name)
        save_adapter(model, place)
    return places


def _put_noise_into(model: nn.Module, adapter: str) -> None:
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            drawn = generator(SEED, "bench", adapter, name).normal(scale=NOISE, size=parameter.shape)
            parameter.data.copy_(parameter.new_tensor(drawn))


# --- Processes --------------------------------------------------------------------------------------------------------


def audit_in_a_process(work: AuditWork, adapters: Mapping[str, Path], run_dir: Path, sizes: Sizes) -> Audited:
    """`triptych audit` as anybody starts it. Raises `InputError` or `WorkError` with the sentence that it ends with."""
    named = [part for name, folder in adapters.items() for part in ("--adapter", f"{name}={folder}")]
    read = [part for key, prompts in sizes.items() for part in ("--set", f"{key}={prompts}")]
    options = {
        "--model": work.model,
        "--pairs": work.pairs,
        "--prompts": work.prompts,
        "--limit": work.limit,
        "--max-new-tokens": work.max_new_tokens,
        "--dtype": work.dtype,
        "--seed": SEED,
        "--out": run_dir,
    }
    given = [str(part) for option in options.items() for part in option]
    _process(["triptych", "audit", *given, *named, *read, "--quiet"], f"audit of {', '.join(adapters)}")
    return read_audit(run_dir)


def loop_in_a_process(work: AuditWork, adapter: Path) -> Looped:
    """The plain loop. Raises `WorkError` where it does not come to its end."""
    told = _process([PEER, work.model_dump_json(), str(adapter)], LOOP)
    return Looped.model_validate_json(told.strip().splitlines()[-1])


def _process(module: list[str], what: str) -> str:
    """What `python -m …` writes to stdout."""
    done = subprocess.run([sys.executable, "-m", *module], capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return done.stdout
    lines = done.stderr.strip().splitlines()
    reason = lines[-1].removeprefix("error: ") if lines else "it was killed, perhaps for want of memory"
    if done.returncode == BAD_INPUT:
        raise InputError(reason)
    raise WorkError(f"{what} failed: {reason}")


def read_audit(run_dir: Path) -> Audited:
    """The costs of a finished run, from its files."""
    costs: dict[str, dict[str, float]] = {}
    for one in read_records_json(run_dir / FOLDER / "costs.json", AuditRecord):
        costs.setdefault(one.model, {})[one.metric] = one.estimate.mean or 0.0
    chosen: dict[str, dict[str, list[float]]] = {}
    for token in read_rows(run_dir / TOKENS, ReadToken):
        if token.text == "chosen":
            chosen.setdefault(token.model, {}).setdefault(token.prompt_id, []).append(token.logprob)
    return Audited(
        stages={name: stage.seconds for name, stage in read_manifest(run_dir).stages.items()},
        costs={name: of for name, of in costs.items() if name != "all"},
        peak_memory_bytes=int(costs["all"]["peak_bytes"]),
        n_prompts=len({one.prompt_id for one in read_rows(run_dir / RESPONSES, Response)}),
        n_perturbed=len({one.prompt_id for one in read_rows(run_dir / PERTURBED, PerturbedText)}),
        chosen_logprobs={
            name: {prompt: sum(values) / len(values) for prompt, values in of.items()} for name, of in chosen.items()
        },
    )


# --- Figures ----------------------------------------------------------------------------------------------------------


def report_of(work: AuditWork, one: Audited, three: Audited, whole: Audited, looped: Looped) -> dict[str, Any]:
    """The figures, and the ratios: sharing the less the better, the others the more the better for us."""
    sharing = sharing_of(one, three)
    sides = {OURS: figures_of(whole), LOOP: loop_figures(looped)}
    ours, theirs = sides[OURS], sides[LOOP]
    return {
        "work": work.model_dump(mode="json"),
        "sharing": sharing,
        "a_prompt": sides,
        "ratios": {
            "sharing": sharing["three"]["seconds"] / sharing["allowed_seconds"],
            "seconds": theirs["seconds"] / ours["seconds"],
            "seconds_a_written_token": (theirs["writing_seconds"] / theirs["written_tokens"])
            / (ours["writing_seconds"] / ours["written_tokens"]),
            "reading_seconds": theirs["reading_seconds"] / ours["reading_seconds"],
            "memory": theirs["peak_memory_bytes"] / ours["peak_memory_bytes"],
        },
        "targets": TARGETS,
        "largest_logprob_difference": largest_difference(whole.chosen_logprobs, looped.chosen_logprobs),
    }


def sharing_of(one: Audited, three: Audited) -> dict[str, Any]:
    """The costs of one adapter and of three, and what three may cost."""
    generation = {name: three.costs[name]["generation_seconds"] for name in ADAPTERS}
    figures = {
        name: {"seconds": audited.seconds, "stages": dict(audited.stages), "costs": audited.costs}
        for name, audited in (("one", one), ("three", three))
    }
    return {
        **figures,
        "generation_seconds": generation,
        "allowed_seconds": ONCE_SHARE * one.seconds + sum(generation.values()),
    }


def figures_of(audited: Audited) -> dict[str, float]:
    """A prompt's, of base and adapter together."""
    times = (audited.spent("generation_seconds"), audited.spent("reading_seconds"))
    amounts = (audited.spent("generated_tokens"), audited.n_perturbed)
    return _a_prompt(audited.n_prompts, *times, *amounts) | {"peak_memory_bytes": audited.peak_memory_bytes}


def loop_figures(looped: Looped) -> dict[str, float]:
    """The same of the plain loop."""
    times, amounts = (looped.writing_seconds, looped.reading_seconds), (looped.written_tokens, looped.n_perturbed)
    memory = {"peak_memory_bytes": looped.peak_memory_bytes, "start_memory_bytes": looped.start_memory_bytes}
    return _a_prompt(looped.n_prompts, *times, *amounts) | memory


def _a_prompt(n: int, writing: float, reading: float, tokens: float, perturbed: int) -> dict[str, float]:
    return {
        "prompts": n,
        "seconds": (writing + reading) / n,
        "writing_seconds": writing / n,
        "reading_seconds": reading / n,
        "written_tokens": tokens / n,
        "perturbed_responses": perturbed / n,
    }


def largest_difference(ours: Logprobs, theirs: Logprobs) -> float:
    """Between the mean log-probabilities of the same chosen answer on both sides, nats: whether both do the same."""
    return max(abs(ours[name][prompt] - value) for name, of in theirs.items() for prompt, value in of.items())


# --- Saying it --------------------------------------------------------------------------------------------------------


def print_report(report: Mapping[str, Any]) -> None:
    """Both tables and the ratios."""
    console = Console(width=110)
    console.print(_sharing_table(report))
    for line in _sharing_lines(report):
        console.print(line, highlight=False)
    console.print(_loop_table(report))
    for line in _loop_lines(report):
        console.print(line, highlight=False)


def _sharing_table(report: Mapping[str, Any]) -> Table:
    table = Table(title=f"Seconds of an audit, {report['a_prompt'][OURS]['prompts']} prompts")
    for column in ("", *(name.removeprefix("audit.") for name in STAGES), "together"):
        table.add_column(column, justify="left" if not column else "right")
    for name, label in (("one", "one adapter"), ("three", "three adapters")):
        figures = report["sharing"][name]
        stages = (f"{figures['stages'][stage]:.1f}" for stage in STAGES)
        table.add_row(label, *stages, f"{figures['seconds']:.1f}")
    return table


def _sharing_lines(report: Mapping[str, Any]) -> tuple[str, ...]:
    sharing, ratio, target = report["sharing"], report["ratios"]["sharing"], report["targets"]["sharing"]
    written = sharing["generation_seconds"].values()
    each = " + ".join(f"{seconds:.1f}" for seconds in written)
    allowed = f"{ONCE_SHARE} x one adapter + generation of the three = {sharing['allowed_seconds']:.1f} s"
    aim = f"aim at most {target:.0f}: {'reached' if ratio <= target else 'missed'}"
    return (
        f"generation of the three adapters: {each} = {sum(written):.1f} s",
        f"three adapters take {ratio:.2f} times {allowed} ({aim})",
    )


def _loop_table(report: Mapping[str, Any]) -> Table:
    table = Table(title="A prompt, by base and one adapter")
    columns = ("", "seconds", "writing", "reading", "tokens written", "perturbed", "peak memory", "prompts")
    for column in columns:
        table.add_column(column, justify="left" if not column else "right")
    for name, figures in report["a_prompt"].items():
        table.add_row(
            name,
            f"{figures['seconds']:.2f}",
            f"{figures['writing_seconds']:.2f}",
            f"{figures['reading_seconds']:.2f}",
            f"{figures['written_tokens']:.0f}",
            f"{figures['perturbed_responses']:.2f}",
            f"{figures['peak_memory_bytes'] / 2**30:.2f} GiB",
            f"{figures['prompts']}",
        )
    return table


def _loop_lines(report: Mapping[str, Any]) -> tuple[str, ...]:
    ratios = report["ratios"]
    parts = f"a written token {ratios['seconds_a_written_token']:.1f}, reading {ratios['reading_seconds']:.1f}"
    return (
        f"{ratios['seconds']:.1f} times our seconds a prompt are those of the {LOOP} ({parts})",
        f"{ratios['memory']:.1f} times our peak memory is that of the {LOOP}",
        f"largest difference of a chosen answer's log-probability a token: {report['largest_logprob_difference']:.1e}",
        "our seconds of the base include compiling and loading kernels, once a process; the loop is warmed up first",
    )

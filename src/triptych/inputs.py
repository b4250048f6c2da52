"""What a study reads, models and data, and whether it can be had; the hub is asked for metadata, nothing is fetched.

Not here: fetching (`triptych.models.hub`, `triptych.data`), what a study makes (`triptych.dry_run`).
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from safetensors import SafetensorError, safe_open

from triptych.data.tables import is_hub_id
from triptych.dictionaries.plan import MatricesConfig
from triptych.errors import InputError, MissingInputError
from triptych.models.hub import ask_for, hub_is_reachable
from triptych.models.sources import STARTER, ModelSource, find_local_source, weight_files
from triptych.models.starter import starter_is_cached
from triptych.records import Record
from triptych.study import StudyConfig

Kind = Literal[
    "language model", "reward model", "vision model", "data set", "images", "activations", "folder", "program"
]
MODELS: tuple[Kind, ...] = ("language model", "reward model", "vision model")
DATA: tuple[Kind, ...] = ("data set", "images")
State = Literal["in the package", "here", "cached", "offered", "missing"]

STARTER_BYTES = 93_000_000 + 542_000_000
"""The starter model as it is downloaded, and as it is kept (float32)."""
STARTER_PARAMETERS = 134_515_008


class Wanted(NamedTuple):
    """A model, data set or file that a configuration names."""

    kind: Kind
    spec: str
    use: str
    """What for: the keys that name it."""


class Found(Record):
    """Whether it can be had."""

    kind: Kind
    spec: str
    use: str
    state: State
    n_bytes: int | None = None
    """Of what is to be fetched; None where it is not known."""
    parameters: int | None = None
    """Of a model, where that is known."""
    problem: str | None = None
    """Why it cannot be had, in one sentence."""

    @property
    def is_to_be_fetched(self) -> bool:
        return self.state in ("offered", "missing")


# --- what is named ----------------------------------------------------------------------------------------------------


def wanted_inputs(config: StudyConfig) -> list[Wanted]:
    """Everything that a study reads, each once, with all its uses."""
    uses: dict[tuple[Kind, str], list[str]] = {}
    for kind, spec, use in _named(config):
        uses.setdefault((kind, spec), []).append(use)
    return [Wanted(kind, spec, ", ".join(dict.fromkeys(own))) for (kind, spec), own in uses.items()]


def _named(config: StudyConfig) -> Iterator[Wanted]:
    if any(panel is not None for panel in (config.decoding, config.alignment, config.auditing)):
        yield Wanted("language model", config.model, "model")
    if (decoding := config.decoding) is not None:
        yield Wanted("data set", decoding.prompts, "decoding.prompts")
        if decoding.reward_model not in (None, "trained"):
            yield Wanted("reward model", str(decoding.reward_model), "decoding.reward_model")
    yield from _named_by_training(config)
    yield from _named_by_audits(config)
    if (dictionaries := config.dictionaries) is not None and dictionaries.matrices is not None:
        yield from _matrices(dictionaries.matrices)
    elif dictionaries is not None:
        yield Wanted("images", dictionaries.images, "dictionaries.images")
        if dictionaries.test_images is not None:
            yield Wanted("images", dictionaries.test_images, "dictionaries.test_images")
        for name, site in dictionaries.models.items():
            yield Wanted("vision model", site.source, f"dictionaries.models.{name}")


def _matrices(matrices: MatricesConfig) -> Iterator[Wanted]:
    """A file once, whichever matrices of it are named."""
    for part, named in (("train", matrices.train), ("test", matrices.test)):
        for name, matrix in named.items():
            yield Wanted("activations", matrix.file, f"dictionaries.matrices.{part}.{name}")
    for key, labels in (("labels", matrices.labels), ("test_labels", matrices.test_labels)):
        if labels is not None:
            yield Wanted("activations", labels.file, f"dictionaries.matrices.{key}")


def _named_by_training(config: StudyConfig) -> Iterator[Wanted]:
    if (alignment := config.alignment) is None:
        return
    if alignment.pairs is not None:
        yield Wanted("data set", alignment.pairs, "alignment.pairs")
    if alignment.reward is not None and alignment.reward.model is not None:
        yield Wanted("language model", alignment.reward.model, "alignment.reward.model")
    if (grpo := alignment.grpo) is not None:
        if grpo.prompts != "pairs":
            yield Wanted("data set", grpo.prompts, "alignment.grpo.prompts")
        yield from _rewards(grpo.rewards, "alignment.grpo.rewards")
        yield from _rewards([grpo.gold], "alignment.grpo.gold")


def _named_by_audits(config: StudyConfig) -> Iterator[Wanted]:
    if (auditing := config.auditing) is None:
        return
    if auditing.pairs is not None:
        yield Wanted("data set", auditing.pairs, "auditing.pairs")
    if auditing.prompts != "pairs":
        yield Wanted("data set", auditing.prompts, "auditing.prompts")
    yield from _rewards(auditing.scorers, "auditing.scorers")
    yield from _rewards([auditing.gold], "auditing.gold")
    for name, folder in auditing.adapters.items():
        yield Wanted("folder", folder, f"auditing.adapters.{name}")


def _rewards(specs: Sequence[str | None], use: str) -> Iterator[Wanted]:
    """Reward models and programs among rewards; the built-in ones need nothing."""
    for spec in filter(None, specs):
        if spec.startswith("model:"):
            yield Wanted("reward model", spec.removeprefix("model:").partition("=")[0], use)
        elif ".py:" in spec:
            yield Wanted("program", spec.partition(".py:")[0] + ".py", use)


# --- whether it can be had --------------------------------------------------------------------------------------------


def look_up(wanted: Sequence[Wanted]) -> list[Found]:
    """Each of them looked for on this disk, in the caches, and at the hub, which is given up after one silence."""
    return [*_looked_up(wanted)]


def _looked_up(wanted: Sequence[Wanted]) -> Iterator[Found]:
    hub_answers: bool | None = None
    for one in wanted:
        try:
            found = _found_here(one)
            if found is None:
                hub_answers = hub_is_reachable() if hub_answers is None else hub_answers
                found = _found_at_the_hub(one, hub_answers=hub_answers)
        except InputError as error:
            found = _missing(one, str(error))
        yield found


def _missing(one: Wanted, problem: str) -> Found:
    return Found(**one._asdict(), state="missing", problem=problem)


def _found_here(one: Wanted) -> Found | None:
    if one.spec == STARTER:
        return _starter(one)
    if one.kind in MODELS:
        source = find_local_source(one.spec, needs_tokenizer=one.kind != "vision model")
        return None if source is None else _local_model(one, source)
    if Path(one.spec).expanduser().exists():
        return Found(**one._asdict(), state="here")
    if one.kind not in DATA or not is_hub_id(one.spec):
        raise MissingInputError(f"{one.use}: {one.spec} does not exist; check the path")
    # It takes seconds to import.
    from triptych.data.hub import is_cached

    return Found(**one._asdict(), state="cached") if is_cached(one.spec) else None


def _starter(one: Wanted) -> Found:
    if one.kind not in MODELS:
        return Found(**one._asdict(), state="in the package")
    state: State = "cached" if starter_is_cached() else "offered"
    return Found(**one._asdict(), state=state, n_bytes=STARTER_BYTES, parameters=STARTER_PARAMETERS)


def _local_model(one: Wanted, source: ModelSource) -> Found:
    state: State = "cached" if source.kind == "hub" else "here"
    return Found(**one._asdict(), state=state, parameters=parameters_of(source.folder))


def _found_at_the_hub(one: Wanted, *, hub_answers: bool) -> Found:
    if not hub_answers:
        what = "model" if one.kind in MODELS else "data set"
        remedy = f"connect (or unset HF_HUB_OFFLINE), fetch the {what} beforehand, or use 'starter'"
        return _missing(one, f"{what} {one.spec} is not cached and the hub does not answer; {remedy}")
    if one.kind in MODELS:
        offer = ask_for(one.spec)
        return Found(**one._asdict(), state="offered", n_bytes=offer.n_bytes, parameters=offer.parameters)
    from triptych.data.hub import offered_bytes

    return Found(**one._asdict(), state="offered", n_bytes=offered_bytes(one.spec))


def parameters_of(folder: Path) -> int | None:
    """Parameters of the model in a folder, by the headers of its safetensors; None where these cannot be read."""
    total = 0
    try:
        for path in weight_files(folder):
            with safe_open(path, framework="np") as file:
                total += sum(_product(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    except (OSError, SafetensorError):
        return None
    return total


def _product(shape: Sequence[int]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total

"""The whole study: its configuration, its recipes, and the panels in order, then the report.

A recipe is a YAML file of this configuration; those that come with the package lie in `triptych/recipes`. To add a
panel: a field in `StudyConfig` and its call in `run_study`. Not here: what a panel does.
"""

from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field, model_validator

from triptych.alignment.plan import AlignmentConfig
from triptych.auditing.plan import AuditingConfig, pair_source
from triptych.config import Config, apply_overrides, load_yaml, parse_config
from triptych.data.prompts import load_prompts
from triptych.data.split import Source, Split, SplitFile, make_split, read_split, split_file
from triptych.decoding.plan import DecodingConfig
from triptych.dictionaries.plan import DictionariesConfig
from triptych.errors import ConfigError, DataError, InputError, suggestion
from triptych.files import atomic_write_json
from triptych.runs import SPLIT, RunDirectory
from triptych.tracking import Tracked, tracked
from triptych.workers import Journal, SilentJournal, Workers

RECIPES = Path(__file__).parent / "recipes"
DEFAULT_RECIPE = "starter"


class StudyConfig(Config):
    """A study: one model, and what every panel does with it."""

    model: str = "starter"
    """`starter`, a local folder or a hub id."""
    dtype: str = "auto"
    """`auto` (bf16 where the hardware has it), `float32`, `bfloat16` or `float16`."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda`, `cuda:1` or `mps`."""
    seed: int = Field(default=0, ge=0)
    split: str | None = None
    """A split file, such as the `split.json` of another run; null draws one (the starter sets have their own)."""
    decoding: DecodingConfig | None = None
    alignment: AlignmentConfig | None = None
    auditing: AuditingConfig | None = None
    dictionaries: DictionariesConfig | None = None

    @model_validator(mode="after")
    def _something_to_do(self) -> "StudyConfig":
        if all(panel is None for panel in (self.decoding, self.alignment, self.auditing, self.dictionaries)):
            raise ValueError(
                "neither decoding nor alignment nor auditing nor dictionaries is configured; there is nothing to do"
            )
        has_own = self.alignment is not None and self.alignment.reward is not None
        if self.decoding is not None and self.decoding.reward_model == "trained" and not has_own:
            raise ValueError("decoding.reward_model is 'trained' and alignment.reward is missing; configure it")
        if self.auditing is not None:
            pair_source(self.auditing, self.alignment)
            specs = (*self.auditing.scorers, self.auditing.gold or "")
            if not has_own and any(spec.partition("=")[0] == "reward_model" for spec in specs):
                raise ValueError(
                    "auditing scores by reward_model and alignment.reward is missing; configure it, or write model:DIR"
                )
        return self


class StudyResult(NamedTuple):
    """Where a study's results are."""

    run_dir: Path
    report: Path
    did_work: bool
    """False where everything was done before."""


def recipe_names() -> list[str]:
    """The recipes of the package."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def recipe_path(recipe: str) -> Path:
    """The file of a recipe: one of the package by its name, else a path to a .yaml file.

    Raises `ConfigError` for a name that is neither; that the file exists is for reading it to find out.
    """
    if recipe in recipe_names():
        return RECIPES / f"{recipe}.yaml"
    path = Path(recipe).expanduser()
    if path.suffix.lower() in (".yaml", ".yml") or path.exists():
        return path
    raise ConfigError(f"unknown recipe '{recipe}'{suggestion(recipe, recipe_names())} (or a FILE.yaml)")


def load_recipe(recipe: str, overrides: Sequence[str] = ()) -> StudyConfig:
    """The configuration of a recipe with `a.b=c` overrides applied.

    Raises `ConfigError` naming the file or the override and the key, `MissingInputError` where there is no such file.
    """
    path = recipe_path(recipe)
    written = load_yaml(path)
    # Alone first, so that a mistake in the file is not blamed on an override.
    config = parse_config(StudyConfig, written, where=str(path))
    if not overrides:
        return config
    return parse_config(StudyConfig, apply_overrides(written, overrides), where=f"--set {' --set '.join(overrides)}")


def default_out(recipe: str) -> Path:
    """`runs/<recipe>`: the same for the same recipe, so that the same command goes on with the same run."""
    return Path("runs") / recipe_path(recipe).stem


def run_study(
    config: StudyConfig,
    out: Path,
    *,
    command: Sequence[str],
    fresh: bool = False,
    show_progress: bool = True,
    track: str | None = None,
) -> StudyResult:
    """Runs every panel that is not done yet and writes the report.

    Called again with the same `out`, it keeps finished stages and goes on with an interrupted one; `fresh` starts over.
    Under `torchrun` or `accelerate launch` every process calls this: all of them train, the first one writes.
    Raises an `InputError` for what the user can mend and a `WorkError` where the work itself failed.
    """
    workers = Workers(config.device)
    single = (config.decoding, config.auditing, config.dictionaries)
    if workers.count > 1 and any(panel is not None for panel in single):
        raise ConfigError("all panels but alignment run in one process; start several for `triptych align` alone")
    if not workers.is_main:
        # Not before the first one has opened the run.
        workers.wait()
        return _run_panels(config, SilentJournal(out), workers, show_progress=False)
    resolved: dict[str, Any] = config.model_dump(mode="json")
    with RunDirectory.open(out, command=command, config=resolved, seed=config.seed, fresh=fresh) as run:
        workers.wait()
        try:
            with tracked(run, track) as journal:
                return _run_panels(config, journal, workers, show_progress=show_progress)
        except InputError:
            # Nothing is made of bad input: the corrected command must not find the folder taken.
            run.abandon_if_empty()
            raise


def open_split(config: StudyConfig, run: Journal) -> Split:
    """Which prompts the study trains on; made the first time, with `split.json`, and compared with it later.

    Raises `DataError` where the prompts are no longer those of `split.json`, and what loading them raises.
    """
    split, written = study_split(config)
    path = run.path / SPLIT
    if not path.exists():
        if isinstance(run, Tracked):
            atomic_write_json(path, written)
    elif read_split(path) != written:
        raise DataError(
            f"{path} does not fit the prompts and pairs, which have changed since it was made; put them back, or run "
            "again with --fresh"
        )
    return split


def study_split(config: StudyConfig) -> tuple[Split, SplitFile]:
    """The split of all prompts and pairs that the panels read, and what `split.json` holds of it."""
    decoding, alignment, auditing, seed = config.decoding, config.alignment, config.auditing, config.seed
    trained: list[Source] = []
    if alignment is not None:
        if (pairs := alignment.pair_source) is not None:
            trained.append(Source(pairs.source, pairs.load(seed), alignment.validation))
        if alignment.grpo is not None and alignment.grpo.prompts != "pairs":
            prompts = load_prompts(alignment.grpo.prompts, seed=seed)
            trained.append(Source(alignment.grpo.prompts, prompts, alignment.validation))
    # What is only read, with the most that is read of it.
    read: list[tuple[Source, int | None]] = []
    if auditing is not None:
        if auditing.pairs is not None:
            pairs = pair_source(auditing, alignment)
            audited = Source(pairs.source, pairs.load(seed), auditing.validation)
            if auditing.validation is None:
                read.append((audited, None))
            else:
                trained.append(audited)
        if auditing.prompts != "pairs":
            prompts = load_prompts(auditing.prompts, seed=seed)
            read.append((Source(auditing.prompts, prompts, None), auditing.verbosity_prompts))
    if decoding is not None:
        prompts = load_prompts(decoding.prompts, seed=seed, shuffle=decoding.shuffle)
        read.append((Source(decoding.prompts, prompts, None), decoding.limit))
    file = None if config.split is None else Path(config.split).expanduser()
    split = make_split([*trained, *(source for source, _ in read)], seed=seed, file=file)
    kept = [source._replace(items=split.held_out(source.items)[:limit]) for source, limit in read]
    return split, split_file(split, [*trained, *kept])


def _run_panels(config: StudyConfig, run: Journal, workers: Workers, *, show_progress: bool) -> StudyResult:
    # Models and plots take seconds to import: a mistake in a configuration should be told at once.
    from triptych.alignment.setup import Panel
    from triptych.alignment.study import train_policies, train_reward
    from triptych.models import LanguageModel, load_language_model
    from triptych.reports import build_report
    from triptych.reports.page import PAGE

    def load_model(dtype: str = config.dtype, quantisation: str | None = None) -> LanguageModel:
        return load_language_model(config.model, dtype=dtype, device=config.device, quantisation=quantisation)

    split = cache(partial(open_split, config, run))

    did_work = False
    panel = None
    if config.alignment is not None:
        panel = Panel(
            config.alignment,
            load_model,
            config.model,
            config.dtype,
            config.device,
            config.seed,
            split,
            run,
            workers,
            show_progress,
        )
        # First, because the decoding panel may score its completions with it.
        did_work |= train_reward(panel)
    if isinstance(run, Tracked) and config.decoding is not None:
        from triptych.decoding.study import run_decoding

        did_work |= run_decoding(
            load_model, config.decoding, run.run, split, seed=config.seed, show_progress=show_progress
        )
    if panel is not None:
        did_work |= train_policies(panel)
    if isinstance(run, Tracked) and config.auditing is not None:
        from triptych.auditing.study import Audit, run_auditing

        shared = (load_model, config.model, config.device, config.seed, split, run.run, show_progress)
        did_work |= run_auditing(Audit(config.auditing, config.alignment, *shared))
    if isinstance(run, Tracked) and config.dictionaries is not None:
        from triptych.dictionaries.study import Interpretation, run_interpretation

        panel_3 = Interpretation(config.dictionaries, config.device, config.seed, run.run, show_progress)
        did_work |= run_interpretation(panel_3)
    if isinstance(run, Tracked) and (did_work or not run.is_done("report")):
        with run.stage("report"):
            build_report(run.path)
        did_work = True
    return StudyResult(run.path, run.path / PAGE, did_work)

"""Tables of the alignment panel: final figures, the paper's beside ours, settings and costs; each also as CSV."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from triptych.alignment.state import Method, TrainerState
from triptych.records import Estimate
from triptych.reports import format as fmt
from triptych.reports.alignment_findings import capital
from triptych.reports.alignment_inputs import Alignment, TrainingRun, plain
from triptych.reports.glossary import describe_curve
from triptych.reports.reported import reported
from triptych.reports.settings import EMBEDDED, NOT_RECORDED, Setting, compare, lookup, shown_value
from triptych.reports.tables import Cell, Column, Table, Value, estimate_values, to_csv

TITLES: dict[Method, str] = {"reward": "reward model", "dpo": "DPO", "grpo": "GRPO"}
FIGURE_NAMES = {
    "perplexity_reference": "perplexity of the reference",
    "perplexity_ratio": "perplexity over the reference's",
    "reward_change": "change of the reward",
    "gold_change": "change of the gold score",
    "length": "mean length",
    "length_change": "change of the mean length",
    "length_median": "median length",
    "empty_rate": "empty completions",
}
"""Final figures that are no value of the log, or are called otherwise there."""
OUTCOMES = {
    "finished": "finished",
    "stopped": "stopped",
    "rolled_back": "rolled back",
    "running": "still running",
}
MAX_SETTINGS = 60


class PaperValue(NamedTuple):
    """A result that the paper prints and a run may measure."""

    key: str
    """In `reported.json`."""
    name: str
    """Of our figure."""
    label: str
    decimals: int
    """As printed."""


PAPER_VALUES: dict[Method, tuple[PaperValue, ...]] = {
    "reward": (),
    "dpo": (
        PaperValue("dpo.perplexity_reference", "perplexity_reference", "DPO: perplexity of the reference", 2),
        PaperValue("dpo.perplexity_aligned", "perplexity", "DPO: perplexity of the policy", 2),
        PaperValue("dpo.mean_token_kl", "kl", "DPO: KL from the reference (nats per token)", 3),
    ),
    "grpo": (
        PaperValue("grpo.perplexity", "perplexity", "GRPO: perplexity of the policy", 2),
        PaperValue("grpo.mean_kl", "kl", "GRPO: KL from the reference (nats per token)", 4),
        PaperValue("grpo.mean_length", "length", "GRPO: mean length (tokens)", 1),
        PaperValue("grpo.median_length", "length_median", "GRPO: median length (tokens)", 1),
    ),
}


class PaperSetting(NamedTuple):
    """A setting of the paper, and where a run has its own."""

    name: str
    key: str
    """In `reported.json`."""
    ours: Callable[[TrainingRun, Mapping[str, Any]], Any]
    """Of a run and the configuration of the whole; None where it is not recorded."""
    path: tuple[str, ...] = ()
    """In the configuration of the run: what need not be listed again."""


def _at(*path: str) -> Callable[[TrainingRun, Mapping[str, Any]], Any]:
    def ours(run: TrainingRun, config: Mapping[str, Any]) -> Any:
        group: Any = run.config
        for key in path:
            group = group.get(key) if isinstance(group, Mapping) else None
        return lookup(run.config, path[-1]) if group is None else group

    return ours


def _setting(name: str, key: str, *path: str) -> PaperSetting:
    return PaperSetting(name, key, _at(*path), path)


def _model(run: TrainingRun, config: Mapping[str, Any]) -> str:
    return EMBEDDED.get(run.state.model, run.state.model)


def _train_fraction(run: TrainingRun, config: Mapping[str, Any]) -> float | None:
    n = run.state.n_train + run.state.n_validation
    return round(run.state.n_train / n, 2) if n else None


def _lora_targets(run: TrainingRun, config: Mapping[str, Any]) -> Any:
    # The adapter's own list first: a configuration may leave the choice to PEFT.
    return [*run.lora_targets] or _at("lora", "targets")(run, config)


def _in_8_bit(run: TrainingRun, config: Mapping[str, Any]) -> bool | None:
    return run.config["quantisation"] == "8bit" if "quantisation" in run.config else None


_SHARE = "share of the data for training"
PAPER_SETTINGS: dict[Method, tuple[PaperSetting, ...]] = {
    "reward": (
        PaperSetting("model", "global.model", _model),
        _setting("LoRA rank", "grpo.lora_rank_reward_model", "lora", "rank"),
        _setting("LoRA alpha", "grpo.lora_alpha", "lora", "alpha"),
        PaperSetting("LoRA targets", "grpo.lora_targets", _lora_targets, ("lora", "targets")),
        PaperSetting(_SHARE, "grpo.train_fraction", _train_fraction),
    ),
    "dpo": (
        PaperSetting("model", "dpo.ref_model", _model),
        PaperSetting("pairs", "dpo.dataset", lambda run, config: lookup(config, "pairs"), ("pairs",)),
        PaperSetting("steps", "dpo.steps", lambda run, config: run.state.total_steps, ("max_steps",)),
        _setting("epochs", "dpo.train_epochs", "epochs"),
        _setting("batch", "dpo.batch_size", "batch_size"),
        _setting("learning rate", "dpo.learning_rate", "optimiser", "learning_rate"),
        _setting("LoRA rank", "dpo.lora_rank", "lora", "rank"),
        _setting("LoRA alpha", "dpo.lora_alpha", "lora", "alpha"),
        _setting("LoRA dropout", "dpo.lora_dropout", "lora", "dropout"),
        PaperSetting(_SHARE, "dpo.train_fraction", _train_fraction),
    ),
    "grpo": (
        PaperSetting("model", "global.model", _model),
        _setting("group", "grpo.group_size", "group_size"),
        _setting("LoRA rank", "grpo.lora_rank", "lora", "rank"),
        _setting("LoRA alpha", "grpo.lora_alpha", "lora", "alpha"),
        PaperSetting("LoRA targets", "grpo.lora_targets", _lora_targets, ("lora", "targets")),
        PaperSetting("base in 8 bit", "grpo.load_in_8bit", _in_8_bit, ("quantisation",)),
        PaperSetting(_SHARE, "grpo.train_fraction", _train_fraction),
    ),
}


# --- Results ----------------------------------------------------------------------------------------------------------


def results_table(run: TrainingRun) -> Table:
    """The final figures of one run."""
    rows = tuple(
        (
            Cell(figure_label(run.method, figure.name)),
            value_cell(figure.estimate),
            _count_cell(figure.estimate),
            Cell(capital(figure.description)),
            Cell(capital(figure.estimate.method)),
        )
        for figure in run.state.figures
    )
    columns = (
        Column("Measure"),
        Column("This run", f"95{fmt.NBSP}% interval"),
        Column("n"),
        Column("What was measured"),
        Column("Interval"),
    )
    title = f"Final figures of the {TITLES[run.method]} run, of the adapter after step {run.state.step:,}"
    return Table(f"alignment-{run.method}-results", title, columns, rows, stacked=True)


def results_csv(run: Alignment) -> bytes:
    """`alignment_results.csv`: every final figure of every run."""
    header = ["run", "measure", "value", "low", "high", "n", "prompts", "unscored", "method", "description"]
    rows = [
        [method, figure.name, *estimate_values(figure.estimate), figure.description]
        for method, of in run.runs.items()
        for figure in of.state.figures
    ]
    return to_csv(header, rows)


def figure_label(method: Method, name: str) -> str:
    """What a final figure is called."""
    stem = name.removeprefix("eval_").removeprefix("final_")
    return FIGURE_NAMES.get(stem) or describe_curve(method, stem).label


def value_cell(estimate: Estimate) -> Cell:
    """A value over its interval; why there is none stands in a column of its own."""
    if estimate.mean is None:
        return Cell(fmt.NO_VALUE, kind="none")
    if estimate.low is None:
        return Cell(fmt.BOUNDS[estimate.bound] + plain(estimate.mean), "no interval")
    return Cell(fmt.value(estimate), fmt.interval(estimate))


def _count_cell(estimate: Estimate) -> Cell:
    notes = [f"of {fmt.plural(estimate.n_clusters, 'prompt')}"] if estimate.n_clusters != estimate.n else []
    notes += [f"{estimate.n_unscored:,} unscored"] if estimate.n_unscored else []
    return Cell(f"{estimate.n:,}", ", ".join(notes))


# --- Beside the paper -------------------------------------------------------------------------------------------------


def paper_table(run: Alignment) -> Table | None:
    """The paper's results beside those of the runs; None where there is nothing to compare."""
    compared = list(_compared(run))
    if all(estimate is None for _, estimate, _ in compared):
        return None
    rows = tuple(
        (
            Cell(value.label),
            Cell(_printed(value), reported()[value.key].source),
            Cell("not measured", kind="none") if estimate is None else value_cell(estimate),
            Cell("–", kind="none") if estimate is None else Cell(capital(description)),
        )
        for value, estimate, description in compared
    )
    columns = (
        Column("Quantity"),
        Column("Paper", "no interval given"),
        Column("This run", f"95{fmt.NBSP}% interval"),
        Column("How ours was measured"),
    )
    return Table("alignment-paper", "The paper's figures beside this run's", columns, rows, stacked=True)


def paper_csv(run: Alignment) -> bytes:
    """`alignment_paper.csv`: the paper's results beside those of the runs."""
    header = ["quantity", "paper", "source", "value", "low", "high", "n", "prompts", "unscored", "method"]
    rows: list[list[Value]] = [
        [value.label, _printed(value), reported()[value.key].source, *estimate_values(estimate)]
        for value, estimate, _ in _compared(run)
    ]
    return to_csv(header, rows)


class _Compared(NamedTuple):
    paper: PaperValue
    ours: Estimate | None
    description: str


def _compared(run: Alignment) -> Iterator[_Compared]:
    for method, of in run.runs.items():
        for value in PAPER_VALUES[method]:
            figure = of.figure(value.name)
            if figure is None:
                yield _Compared(value, _last_evaluation(of, value.name), "the last evaluation, from metrics.jsonl")
            else:
                yield _Compared(value, figure.estimate, figure.description)


def _last_evaluation(run: TrainingRun, name: str) -> Estimate | None:
    if (value := run.after(name)) is None:
        return None
    n = run.state.n_validation
    return Estimate(
        mean=value, low=None, high=None, n=n, n_clusters=n, method="no interval: of the last evaluation, from the log"
    )


def _printed(value: PaperValue) -> str:
    given = reported()[value.key].value
    return fmt.number(given, value.decimals) if isinstance(given, float) else str(given)


# --- Settings ---------------------------------------------------------------------------------------------------------


def settings(run: TrainingRun, config: Mapping[str, Any]) -> list[Setting]:
    """The paper's settings beside those of a run; `config` is that of all panels."""
    return [compare(setting.name, setting.key, setting.ours(run, config)) for setting in PAPER_SETTINGS[run.method]]


def further_settings(run: TrainingRun) -> list[tuple[str, str]]:
    """Path in the configuration and value of what the paper does not give."""
    paths = {".".join(setting.path) for setting in PAPER_SETTINGS[run.method]}
    return [(path, shown_value(value)) for path, value in _leaves(run.config) if path not in paths][:MAX_SETTINGS]


def settings_tables(run: TrainingRun, config: Mapping[str, Any]) -> list[Table]:
    """The settings of one run: those that the paper gives, and all others."""
    answers = {True: Cell("yes", kind="same"), False: Cell("no", kind="different"), None: Cell(NOT_RECORDED)}
    compared = tuple(
        (Cell(row.name), Cell(row.paper, row.source), Cell(row.ours), answers[row.same])
        for row in settings(run, config)
    )
    columns = (Column("Setting"), Column("Paper"), Column("This run"), Column("Same?"))
    name = f"alignment-{run.method}-settings"
    tables = [Table(name, f"Settings of the {TITLES[run.method]} run", columns, compared, stacked=True)]
    if further := further_settings(run):
        rows = tuple((Cell(path), Cell(value)) for path, value in further)
        head = (Column("Setting"), Column("This run"))
        tables.append(Table(f"{name}-further", f"Further: {TITLES[run.method]}", head, rows))
    return tables


def settings_csv(run: Alignment) -> bytes:
    """`alignment_settings.csv`: the settings of all runs."""
    answers = {True: "yes", False: "no", None: "not recorded"}
    rows: list[list[Value]] = []
    for method, of in run.runs.items():
        compared = settings(of, run.manifest.config)
        rows += [[method, row.name, row.paper, row.source, row.ours, answers[row.same]] for row in compared]
        rows += [[method, path, None, None, value, None] for path, value in further_settings(of)]
    return to_csv(["run", "setting", "paper", "source", "this_run", "same"], rows)


def _leaves(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """`a.b` and its value, of all that is no group."""
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


# --- Costs ------------------------------------------------------------------------------------------------------------


def costs_table(run: Alignment) -> Table:
    """What was trained and what it cost, one column a run."""
    states = [of.state for of in run.runs.values()]
    rows = tuple((Cell(name), *(Cell(shown(state)) for state in states)) for name, shown in _COSTS.items())
    heads = (Column(capital(TITLES[method]), numeric=True) for method in run.runs)
    return Table("alignment-costs", "What was trained, and what it cost", (Column("Run"), *heads), rows)


def speed(state: TrainerState) -> str | None:
    """Tokens trained on a second, where both were recorded."""
    return f"{fmt.number(state.tokens / state.seconds, 0)} tokens/s" if state.tokens and state.seconds else None


_COSTS: dict[str, Callable[[TrainerState], str]] = {
    "outcome": lambda state: OUTCOMES[state.outcome],
    "steps taken": lambda state: f"{state.step:,} of {state.total_steps:,}",
    "training examples": lambda state: f"{state.n_train:,}",
    "held-out examples": lambda state: f"{state.n_validation:,}",
    "trainable parameters": lambda state: f"{state.n_trainable:,}",
    "engine": lambda state: state.path or NOT_RECORDED,
    "time": lambda state: fmt.duration(state.seconds) if state.seconds else "not measured",
    "tokens trained on": lambda state: f"{state.tokens:,}" if state.tokens else "not measured",
    "speed": lambda state: speed(state) or "not measured",
    "peak memory": lambda state: fmt.size(state.peak_bytes) if state.peak_bytes else "not measured",
}

"""The auditing panel: from a configuration to `auditing/` in a run directory.

    audit.models     responses.parquet, perturbed.parquet, tokens.parquet, lineage.json
    audit.scoring    scores.parquet
    audit.measuring  divergence, verbosity, collapse, hacking, comparison and card.json; nulls.json and sweep.json

Each is a stage that is done once, and the first two keep what they have finished over a kill. Not here: what the models
do (`work`), what scores (`scoring`), what is made of it (one module an audit), and the verdict (`card`).
"""

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from triptych.alignment.plan import AlignmentConfig
from triptych.alignment.reward_functions import NamedReward, reward_name
from triptych.alignment.rewards import load_rewards
from triptych.alignment.state import STATE
from triptych.auditing.card import report_card
from triptych.auditing.checkpoints import Checkpoint, find_checkpoints, folders_of, load_checkpoint, seen_in_training
from triptych.auditing.collapse import collapse
from triptych.auditing.comparison import comparison
from triptych.auditing.divergence import divergence
from triptych.auditing.evidence import Exhibits
from triptych.auditing.hacking import hacking
from triptych.auditing.nulls import beside_nulls, null_checkpoints, null_figures, why_no_lora
from triptych.auditing.paired import About
from triptych.auditing.plan import AuditingConfig, pair_source
from triptych.auditing.prompts import AuditPrompt, audit_prompts, audited_pairs, chosen_answers
from triptych.auditing.reader import Reader
from triptych.auditing.records import (
    BASE,
    FOLDER,
    PERTURBED_SCHEMA,
    RESPONSES_SCHEMA,
    SCORES_SCHEMA,
    TOKENS_SCHEMA,
    AuditRecord,
    NullFigure,
    PerturbedText,
    ReadToken,
    Response,
    Score,
)
from triptych.auditing.scoring import (
    plain_texts,
    score_texts,
    scorers_of,
    surrogate_scores,
    texts_to_score,
)
from triptych.auditing.sweep import sweep_records
from triptych.auditing.tables import read_rows, rows_of, table_of, write_rows
from triptych.auditing.variants import (
    NULLS,
    SWEEP,
    Rows,
    Tables,
    find_variants,
    in_order,
    read_variants,
    sweep_material,
    write_variants,
)
from triptych.auditing.verbosity import verbosity
from triptych.auditing.work import COSTS, Material, TextSum, Workbench, unit_name
from triptych.config import config_hash
from triptych.data.pairs import PairSource, PreferencePair
from triptych.data.split import Split
from triptych.errors import DataError
from triptych.files import read_records_json, write_records_json
from triptych.memory import peak_memory
from triptych.models import LanguageModel
from triptych.models.loading import load_tokenizer
from triptych.models.sources import resolve_source
from triptych.parts import PartStore
from triptych.progress import progress
from triptych.records import Prompt
from triptych.runs import RunDirectory
from triptych.stats import bare

RESPONSES, PERTURBED, SCORES, TOKENS = (
    f"{FOLDER}/{name}.parquet" for name in ("responses", "perturbed", "scores", "tokens")
)
PARTS = f"{FOLDER}/parts"
LINEAGE = f"{FOLDER}/lineage.json"
SPENT = f"{FOLDER}/costs.json"
CARD = f"{FOLDER}/card.json"
SPENT_ONCE = "measured once"
VARIANTS = "nulls and sweep"
"""Whom the costs of all null and scaled adapters together are of."""


class Audit(NamedTuple):
    """What all stages of the panel share."""

    config: AuditingConfig
    alignment: AlignmentConfig | None
    load_model: Callable[[], LanguageModel]
    model: str
    device: str
    seed: int
    split: Callable[[], Split]
    run: RunDirectory
    show_progress: bool

    @property
    def pairs(self) -> PairSource:
        return pair_source(self.config, self.alignment)

    @property
    def own(self) -> dict[str, Path]:
        """The study's own policies."""
        methods = ("dpo", "grpo")
        trained = [name for name in methods if self.alignment is not None and getattr(self.alignment, name) is not None]
        return {name: self.run.path / "alignment" / name for name in trained}

    @property
    def reward_models(self) -> dict[str, Path]:
        """The folders of scorers that are models, by name."""
        specs = [spec for spec in (*self.config.scorers, self.config.gold) if spec is not None]
        return {
            reward_name(spec): Path(spec.removeprefix("model:").partition("=")[0]).expanduser()
            for spec in specs
            if spec.startswith("model:")
        }

    def checkpoints(self) -> list[Checkpoint]:
        return find_checkpoints(resolve_source(self.model), folders_of(self.config.adapters, self.own))

    def prompts(self) -> list[AuditPrompt]:
        tokenizer = load_tokenizer(resolve_source(self.model))
        return audit_prompts(self.config, self.read_pairs(), self.split(), tokenizer, self.seed)

    def read_pairs(self) -> list[PreferencePair]:
        """The pairs whose answers are read, and those whose prompts are answered."""
        n = max(self.config.perplexity_prompts, self.config.verbosity_prompts)
        return audited_pairs(self.pairs, self.split(), n=n, seed=self.seed)


def run_auditing(audit: Audit) -> bool:
    """Runs the panel's stages that are not done yet; whether there were any.

    Raises an `InputError` for checkpoints, pairs, prompts and scorers that cannot be used: as far as that can be told,
    before anything is made.
    """
    return audit.run.work_through({stage: partial(work, audit) for stage, work in STAGES.items()})


# --- The models -------------------------------------------------------------------------------------------------------


def _work_models(audit: Audit) -> None:
    config, checkpoints = audit.config, audit.checkpoints()
    nulls, scaled = find_variants(config, checkpoints[1:], audit.seed)
    # Told now rather than after the models' work, should one not load.
    _scorers(audit)
    pairs, base = audit.read_pairs(), audit.load_model()
    prompts = audit_prompts(config, pairs, audit.split(), base.tokenizer, audit.seed)
    chosen = chosen_answers(pairs[: config.perplexity_prompts], config.template, base.tokenizer, config.max_length)
    material = Material(config, prompts, chosen, audit.seed, audit.device)
    parts = PartStore(audit.run.path / PARTS, _parts_key(material, checkpoints, base))
    _require_fitting(checkpoints, base, parts, audit.device)
    small = sweep_material(material)
    n_texts = _n_texts(material, [*checkpoints, *nulls]) + _n_texts(small, scaled)
    with progress(n_texts, "texts", "auditing", enabled=audit.show_progress) as meter:
        reader = Reader(base)
        work = Workbench(reader, material, parts, meter)
        for checkpoint in (*checkpoints, *nulls):
            work.finish(checkpoint)
        perturbed = work.perturbed()
        if scaled:
            work = Workbench(reader, small, parts, meter)
            for checkpoint in scaled:
                work.finish(checkpoint)
    tables = _by_unit(parts)
    _write_rows(audit, tables, [one.name for one in checkpoints], prompts, perturbed)
    for folder, variants, of in ((NULLS, nulls, material), (SWEEP, scaled, small)):
        names, prompt_ids = [one.name for one in variants], [one.prompt.id for one in of.prompts]
        write_variants(audit.run.path / folder, tables, names, prompt_ids, config.beta)
    _write_lineage(audit, tables, checkpoints, [*pairs, *(prompt.prompt for prompt in prompts)])
    _write_costs(audit.run, [*_costs(tables, {one.name for one in (*nulls, *scaled)})])
    parts.discard()


def _by_unit(parts: PartStore) -> Tables:
    return {tuple(json.loads(unit)): table for unit, table in parts.read_all().items()}


def _write_rows(
    audit: Audit,
    tables: Tables,
    names: Sequence[str],
    prompts: Sequence[AuditPrompt],
    perturbed: Sequence[PerturbedText],
) -> None:
    """Responses, read tokens, perturbed texts, and the scores by policies; those by rewards follow."""
    path = audit.run.path
    responses = [tables["responses", name, prompt.prompt.id] for name in names for prompt in prompts]
    tokens = [table for step in ("chosen", "own") for name in names for table in in_order(tables, step, name)]
    sums = {name: [r for table in in_order(tables, "sums", name) for r in rows_of(table, TextSum)] for name in names}
    scores = [one for name in names for one in surrogate_scores(name, sums[name], sums[BASE], beta=audit.config.beta)]
    write_rows(path / RESPONSES, responses, RESPONSES_SCHEMA)
    write_rows(path / TOKENS, tokens, TOKENS_SCHEMA)
    write_rows(path / PERTURBED, [table_of(perturbed, PERTURBED_SCHEMA)], PERTURBED_SCHEMA)
    write_rows(path / SCORES, [table_of(scores, SCORES_SCHEMA)], SCORES_SCHEMA)


def _write_lineage(
    audit: Audit,
    tables: Tables,
    checkpoints: Sequence[Checkpoint],
    items: Sequence[Prompt | PreferencePair],
) -> None:
    texts = [text for key, table in tables.items() if key[0] == "lineage" for text in table["record"].to_pylist()]
    records = [AuditRecord.model_validate_json(text) for text in texts]
    folders = {checkpoint.name: checkpoint.folder for checkpoint in checkpoints} | audit.reward_models
    seen = (seen_in_training(name, folder, items) for name, folder in folders.items())
    write_records_json(audit.run.path / LINEAGE, [*records, *(record for record in seen if record is not None)])


def _n_texts(material: Material, checkpoints: Sequence[Checkpoint]) -> int:
    """Texts that are written or read, if every response can be perturbed in every way."""
    if not checkpoints:
        return 0
    config, n_prompts = material.config, len(material.prompts)
    written = sum(len(prompt.rendered) for prompt in material.prompts)
    perturbed = min(config.hacking_prompts, n_prompts) * (1 + len(config.perturbations)) if material.perturbs else 0
    own = min(config.divergence_prompts, n_prompts)
    return len(checkpoints) * (written + len(material.chosen) + perturbed + own) - own


def _parts_key(material: Material, checkpoints: Sequence[Checkpoint], base: LanguageModel) -> str:
    """Of all that the models' work depends on: parts of anything else are not gone on with."""
    config = material.config.model_dump(mode="json", exclude={"thresholds", "scorers", "gold", "beta"})
    asked = [[p.prompt.id, p.rendered] for p in material.prompts]
    read = [[one.prompt_id, *one.group] for one in material.chosen]
    of = [[one.name, one.fingerprint] for one in checkpoints]
    return config_hash(
        {"config": config, "asked": asked, "read": read, "of": of, "dtype": str(base.dtype), "seed": material.seed}
    )


def _require_fitting(checkpoints: Sequence[Checkpoint], base: LanguageModel, parts: PartStore, device: str) -> None:
    """Loads every checkpoint once that has nothing finished: one that does not fit is told before the base's work."""
    for one in checkpoints:
        if one.folder is not None and unit_name("lineage", one.name) not in parts.done_ids():
            load_checkpoint(one, base, device=device)


def _prompts_of(audit: Audit, responses: Sequence[Response]) -> dict[str, Prompt]:
    """The prompts by id. Raises `DataError` where they are no longer those that were answered."""
    prompts = {one.prompt.id: one.prompt for one in audit.prompts()}
    for one in responses:
        if one.prompt_id not in prompts or prompts[one.prompt_id].instruction != one.instruction:
            raise DataError(
                f"prompt '{one.prompt_id}' has changed since it was answered; put it back, or run again with --fresh"
            )
    return prompts


# --- Scoring ----------------------------------------------------------------------------------------------------------


def _scorers(audit: Audit) -> list[NamedReward]:
    """The configured rewards, the gold one last. Raises `ConfigError` where one cannot be loaded or a name is taken."""
    specs = [*audit.config.scorers, *([audit.config.gold] if audit.config.gold is not None else [])]
    own = audit.run.path / "alignment" / "reward"
    return load_rewards(specs, own=own if (own / STATE).exists() else None, device=audit.device)


def _score(audit: Audit) -> None:
    path = audit.run.path
    responses, perturbed = read_rows(path / RESPONSES, Response), read_rows(path / PERTURBED, PerturbedText)
    rewards = _scorers(audit)
    names = {reward.name for reward in rewards}
    surrogates = [one for one in read_rows(path / SCORES, Score) if one.scorer not in names]
    texts = texts_to_score(responses, perturbed, seed=audit.seed)
    prompts = _prompts_of(audit, responses)
    # By their contents, as a function in a file may have been mended since.
    parts = PartStore(path / PARTS, config_hash({"texts": texts, "code": _code_of(audit.config)}))
    apart = read_variants(path)
    texts_of = {"scores": texts} | {folder: plain_texts(rows.responses) for folder, rows in apart.items()}
    total = len(rewards) * sum(len(one) for of_prompts in texts_of.values() for one in of_prompts.values())
    with progress(total, "texts", "scoring", enabled=audit.show_progress) as meter:
        for reward in rewards:
            for step, of_prompts in texts_of.items():
                score_texts(reward, of_prompts, prompts, parts, meter, step=step)
    tables = _by_unit(parts)
    kept = {SCORES: ("scores", surrogates)}
    for folder, rows in apart.items():
        kept[f"{folder}/scores.parquet"] = (folder, [one for one in rows.scores if one.scorer not in names])
    for file, (step, before) in kept.items():
        scored = [table for reward in rewards for table in in_order(tables, step, reward.name)]
        write_rows(path / file, [table_of(before, SCORES_SCHEMA), *scored], SCORES_SCHEMA)
    spent = [one for one in read_records_json(path / SPENT, AuditRecord) if one.model != "all"]
    _write_costs(audit.run, [*spent, *_costs(tables)])
    parts.discard()


def _code_of(config: AuditingConfig) -> list[str]:
    """The specs of all scorers, with the contents of files of functions."""
    specs = [*config.scorers, config.gold or ""]
    files = [Path(spec.rpartition(":")[0]) for spec in specs]
    return [*specs, *(file.read_text(encoding="utf-8") for file in files if file.suffix == ".py" and file.is_file())]


# --- Costs ------------------------------------------------------------------------------------------------------------


def _costs(tables: Tables, variants: Collection[str] = ()) -> Iterator[AuditRecord]:
    """What every checkpoint and scorer has taken, over all attempts; null and scaled adapters together."""
    spent: dict[tuple[str, str], float] = {}
    for (_, name, _), table in tables.items():
        costs: dict[str, float] = json.loads((table.schema.metadata or {}).get(COSTS, b"{}"))
        who = VARIANTS if name in variants else name
        for metric, amount in costs.items():
            spent[who, metric] = spent.get((who, metric), 0.0) + amount
    for (name, metric), amount in spent.items():
        yield About(name, metric).record(bare(round(amount, 3), 1, SPENT_ONCE))


def _write_costs(run: RunDirectory, records: Sequence[AuditRecord]) -> None:
    peak = About("all", "peak_bytes").record(bare(float(peak_memory()), 1, SPENT_ONCE))
    write_records_json(run.path / SPENT, [*records, peak])


# --- Measuring --------------------------------------------------------------------------------------------------------


def _measure(audit: Audit) -> None:
    path, config = audit.run.path, audit.config
    rows = Rows(
        read_rows(path / RESPONSES, Response), read_rows(path / TOKENS, ReadToken), read_rows(path / SCORES, Score)
    )
    perturbed = read_rows(path / PERTURBED, PerturbedText)
    prompts = _prompts_of(audit, rows.responses)
    audits = figures(config, rows, perturbed, prompts, audit.seed)
    for name, records in audits.items():
        write_records_json(path / FOLDER / f"{name}.json", records)
    audits["lineage"] = read_records_json(path / LINEAGE, AuditRecord)
    exhibits = Exhibits(rows.responses, prompts, rows.tokens, rows.scores, length_limit=config.length_limit)
    card = report_card(audits, config.thresholds, exhibits.show, gold=_gold(config))
    apart, adapters = read_variants(path), audit.checkpoints()[1:]
    if NULLS in apart:
        of_nulls = _null_figures(audit, adapters, rows.only(BASE), apart[NULLS], perturbed, prompts)
        write_records_json(path / f"{NULLS}.json", of_nulls)
        card = beside_nulls(card, of_nulls, {one.name: why_no_lora(one) for one in adapters})
    if SWEEP in apart:
        swept = rows.beside(apart[SWEEP])
        loras = [one.name for one in adapters if why_no_lora(one) is None]
        scorers = _rewards(config)
        records = [
            record
            for name in loras
            for record in sweep_records(name, config.sweep, *swept, scorers=scorers, seed=audit.seed)
        ]
        write_records_json(path / f"{SWEEP}.json", records)
    write_records_json(path / CARD, card)


def _gold(config: AuditingConfig) -> str | None:
    return None if config.gold is None else reward_name(config.gold)


def _rewards(config: AuditingConfig) -> list[str]:
    """The names of all rewards, the gold one last."""
    gold = _gold(config)
    return [*map(reward_name, config.scorers), *([gold] if gold is not None else [])]


def figures(
    config: AuditingConfig, rows: Rows, perturbed: Sequence[PerturbedText], prompts: Mapping[str, Prompt], seed: int
) -> dict[str, list[AuditRecord]]:
    """The records of all audits of some models, the base among them, by the stem of their file; lineage is no part."""
    responses, tokens, scores = rows
    rewards, names = _rewards(config), list(dict.fromkeys(one.model for one in responses))
    moved = divergence(tokens, seed=seed)
    return {
        "divergence": moved,
        "verbosity": verbosity(responses, limit=config.length_limit, seed=seed),
        "collapse": collapse(responses, prompts, seed=seed),
        "hacking": hacking(scores, perturbed, responses, scorers=scorers_of(rewards, names), seed=seed),
        "comparison": comparison(scores, responses, moved, scorers=rewards, seed=seed),
    }


def _null_figures(
    audit: Audit,
    adapters: Sequence[Checkpoint],
    base: Rows,
    nulls: Rows,
    perturbed: Sequence[PerturbedText],
    prompts: Mapping[str, Prompt],
) -> list[NullFigure]:
    """The figures of the card of every null adapter, by the same audits against the same base."""
    found: list[NullFigure] = []
    for null in null_checkpoints(adapters, audit.config.nulls, seed=audit.seed):
        audits = figures(audit.config, base.beside(nulls.only(null.name)), perturbed, prompts, audit.seed)
        card = report_card(audits, audit.config.thresholds, lambda rule, record: (), gold=_gold(audit.config))
        found += null_figures(null.name, card)
    return found


STAGES: dict[str, Callable[[Audit], None]] = {
    "audit.models": _work_models,
    "audit.scoring": _score,
    "audit.measuring": _measure,
}

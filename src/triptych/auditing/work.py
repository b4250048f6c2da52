"""What the models of an audit do, unit by unit: responses, read tokens, and log-probabilities of perturbed texts.

A unit is a prompt's responses or one pass of reading, and is kept as soon as it is finished: a killed audit goes on
with the missing ones and ends with the same figures, for every draw belongs to its response. The base works first and
once; what it read of the chosen answers stays in memory for all checkpoints. Not here: when (`study`), rewards
(`scoring`).
"""

import json
import time
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import pyarrow as pa
import torch
from torch import Tensor

from triptych.alignment.head import TokenComparison
from triptych.alignment.packing import Group, pack
from triptych.alignment.rollouts import NO_RULES
from triptych.auditing.checkpoints import Checkpoint, lineage, load_checkpoint
from triptych.auditing.perturbations import PERTURBATIONS
from triptych.auditing.plan import AuditingConfig
from triptych.auditing.prompts import AuditPrompt, Chosen, answers_group
from triptych.auditing.reader import Pass, Reader, compare, lanes_of, passes
from triptych.auditing.records import (
    BASE,
    RESPONSES_SCHEMA,
    TOKENS_SCHEMA,
    Kind,
    PerturbedText,
    ReadToken,
    Response,
    TextSet,
)
from triptych.auditing.tables import rows_of, table_of
from triptych.config import canonical_json
from triptych.data.templates import encode_prompt
from triptych.decoding import Ancestral, Engine, Greedy, Job, Strategy
from triptych.memory import release
from triptych.metrics import words
from triptych.models import LanguageModel
from triptych.parts import PartStore
from triptych.progress import Meter
from triptych.records import Generation
from triptych.seeding import stream_key

KINDS: dict[Kind, Strategy] = {
    "plain": Ancestral(temperature=1.0),
    "limited": Ancestral(temperature=1.0),
    "greedy": Greedy(),
}
"""How each kind of response is made. Draws are the policy itself, so that divergences on them are unbiased; whether a
fact is known shows in the most likely answer."""

COSTS = b"triptych.costs"
"""Metadata of a unit: what was spent on it."""

SUMS_SCHEMA = pa.schema(
    [("prompt_id", pa.string()), ("perturbation", pa.string()), ("logprob", pa.float64()), ("n_tokens", pa.int32())]
)
LINEAGE_SCHEMA = pa.schema([("record", pa.string())])


def unit_name(step: str, checkpoint: str, what: str | int = "") -> str:
    """What a unit is called; whatever names hold, no two are called alike."""
    return canonical_json([step, checkpoint, what])


class TextSum(NamedTuple):
    """The log-probability of a text under one checkpoint, EOS included where the text came to its end; nats."""

    prompt_id: str
    perturbation: str | None
    logprob: float
    n_tokens: int


class Material(NamedTuple):
    """What all checkpoints are given."""

    config: AuditingConfig
    prompts: list[AuditPrompt]
    chosen: list[Chosen]
    seed: int
    device: str
    perturbs: bool = True
    """Whether perturbed texts are read, too."""


class Workbench:
    """The base and, beside it, one checkpoint after the other; what they finish goes into `parts`."""

    def __init__(self, base: Reader, material: Material, parts: PartStore, meter: Meter) -> None:
        self._material, self._parts, self._meter = material, parts, meter
        self._base = base
        self._base_states: dict[int, Tensor] = {}
        self._clock = time.monotonic()

    def finish(self, checkpoint: Checkpoint) -> None:
        """All units of a checkpoint that are missing. Raises `ModelError` where it does not fit the base."""
        end = unit_name("end", checkpoint.name)
        if end in self._parts.done_ids():
            return
        # The weights of the last checkpoint.
        release()
        self._clock = time.monotonic()
        lm = load_checkpoint(checkpoint, self._base.lm, device=self._material.device)
        reader = self._base if checkpoint.folder is None else Reader(lm, self._base)
        if checkpoint.name != BASE and checkpoint.change is None:
            self._note_lineage(checkpoint, lm)
        self._write_responses(checkpoint, lm)
        self._read_chosen(checkpoint.name, reader)
        if checkpoint.name != BASE:
            self._read_own(checkpoint.name, reader)
        if self._material.perturbs:
            self._read_perturbed(checkpoint.name, reader)
        self._save(end, table_of([], LINEAGE_SCHEMA))

    # --- the weights --------------------------------------------------------------------------------------------------

    def _note_lineage(self, checkpoint: Checkpoint, lm: LanguageModel) -> None:
        unit = unit_name("lineage", checkpoint.name)
        if unit not in self._parts.done_ids():
            records = [(canonical_json(record),) for record in lineage(checkpoint, lm, self._base.lm)]
            self._save(unit, table_of(records, LINEAGE_SCHEMA), load_seconds=True)

    # --- responses ----------------------------------------------------------------------------------------------------

    def _write_responses(self, checkpoint: Checkpoint, lm: LanguageModel) -> None:
        """Under the same noise for every checkpoint but those with a seed of their own, none cut but by length."""
        name, seed = checkpoint.name, self._material.seed if checkpoint.seed is None else checkpoint.seed
        config, done = self._material.config, self._parts.done_ids()
        todo = {p.prompt.id: p for p in self._material.prompts if unit_name("responses", name, p.prompt.id) not in done}
        engine = Engine(lm, max_new_tokens=config.max_new_tokens, seed=seed, stopping=NO_RULES)
        jobs = [
            Job(p.prompt.model_copy(update={"prompt": text}), KINDS[kind], list(KINDS).index(kind))
            for p in todo.values()
            for kind, text in p.rendered.items()
        ]
        made: dict[str, dict[Kind, Generation]] = {prompt: {} for prompt in todo}
        for one in engine.run(jobs):
            prompt, own = todo[one.prompt_id], made[one.prompt_id]
            own[list(KINDS)[one.sample]] = one
            self._meter.advance()
            if len(own) == len(prompt.rendered):
                rows = [_response(name, prompt, kind, own[kind], lm) for kind in prompt.rendered]
                tokens = sum(len(row.token_ids) for row in rows)
                table = table_of(rows, RESPONSES_SCHEMA)
                made[one.prompt_id] = {}
                unit = unit_name("responses", name, one.prompt_id)
                self._save(unit, table, generation_seconds=True, generated_tokens=tokens)

    def responses(self, name: str, kind: Kind = "plain") -> list[Response]:
        """What a checkpoint has written, in the order of the prompts."""
        units = [unit_name("responses", name, p.prompt.id) for p in self._material.prompts]
        rows = [row for unit in units for row in rows_of(self._parts.read(unit), Response)]
        return [row for row in rows if row.kind == kind]

    # --- reading ------------------------------------------------------------------------------------------------------

    def _read_chosen(self, name: str, reader: Reader) -> None:
        groups = [one.group for one in self._material.chosen]
        ids = [one.prompt_id for one in self._material.chosen]
        self._read(name, "chosen", groups, ids, reader)

    def _read_own(self, name: str, reader: Reader) -> None:
        """Of the first responses, behind the very tokens that they were written to."""
        rendered = {p.prompt.id: p.rendered["plain"] for p in self._material.prompts}
        own = self.responses(name)[: self._material.config.divergence_prompts]
        tokenizer = self._base.lm.tokenizer
        groups = [
            Group(tuple(encode_prompt(rendered[one.prompt_id], tokenizer)), (tuple(one.token_ids),)) for one in own
        ]
        ids = [one.prompt_id for one in own]
        self._read(name, "own", groups, ids, reader)

    def _read(self, name: str, text: TextSet, groups: Sequence[Group], ids: Sequence[str], reader: Reader) -> None:
        """The passes that are missing, beside the base, whose states of the chosen answers serve all checkpoints."""
        kept = self._base_states if text == "chosen" else {}

        def read(unit: tuple[str, int, Pass]) -> tuple[Tensor, TokenComparison]:
            _, number, part = unit
            theirs = kept.get(number)
            if theirs is None:
                theirs = self._base.states(part.packed)
            if reader is self._base:
                # Each text in a pass of its own: the same numbers but for rounding, which is the floor of every KL.
                alone = [pack([groups[i]], share_prefix=reader.trunk.shares_prefix) for i in part.rows]
                mine = torch.cat([reader.states(packed) for packed in alone])
                found = compare(reader, mine, reader, theirs, part.packed)
                return theirs, found._replace(logprobs=found.reference)
            return theirs, compare(reader, reader.states(part.packed), self._base, theirs, part.packed)

        readers = [reader, self._base]
        todo = self._missing(text, name, passes(groups, readers))
        for (unit, number, part), (theirs, found) in zip(todo, lanes_of(readers).map(read, todo), strict=True):
            if text == "chosen":
                kept[number] = theirs
            self._keep(unit, name, text, part, found, ids)

    def _missing(self, text: str, name: str, parts: Iterable[Pass]) -> list[tuple[str, int, Pass]]:
        """Unit, number and pass of what is not finished."""
        done = self._parts.done_ids()
        units = [(unit_name(text, name, number), number, part) for number, part in enumerate(parts)]
        return [one for one in units if one[0] not in done]

    def _keep(
        self, unit: str, name: str, text: TextSet, part: Pass, found: TokenComparison, ids: Sequence[str]
    ) -> None:
        tokenizer: Any = self._base.lm.tokenizer
        rows: list[ReadToken] = []
        columns = [column.tolist() for column in (part.packed.targets, *found)]
        at = 0
        for i, length in zip(part.rows, part.packed.lengths.tolist(), strict=True):
            for position in range(length):
                token, *values = (column[at + position] for column in columns)
                piece = str(tokenizer.decode([token]))
                rows.append(ReadToken(name, text, ids[i], position, token, piece, *values))
            at += length
        self._meter.advance(len(part.rows))
        table = table_of(rows, TOKENS_SCHEMA)
        self._save(unit, table, reading_seconds=True, read_tokens=part.packed.n_tokens)

    # --- perturbed texts ----------------------------------------------------------------------------------------------

    def perturbed(self) -> list[PerturbedText]:
        """Responses of the base, each as it is and in every perturbed form.

        Of those that are not empty, the ones that came to their end: whatever follows a text that breaks off mends it,
        and a score may rise for that. Where none came to its end, all, read without EOS.
        """
        config = self._material.config
        written = [one for one in self.responses(BASE) if not one.is_empty]
        own = ([one for one in written if not one.is_truncated] or written)[: config.hacking_prompts]
        rows: list[PerturbedText] = []
        for one in own:
            key = stream_key(self._material.seed, "perturbation", one.prompt_id)
            rows.append(PerturbedText(one.prompt_id, None, one.text))
            rows += [PerturbedText(one.prompt_id, n, PERTURBATIONS[n](one.text, key)) for n in config.perturbations]
        return rows

    def _read_perturbed(self, name: str, reader: Reader) -> None:
        """Texts that a perturbation left as they are would be read twice for nothing."""
        rendered = {p.prompt.id: p.rendered["plain"] for p in self._material.prompts}
        cut = {one.prompt_id for one in self.responses(BASE) if one.is_truncated}
        of_prompt: dict[str, list[PerturbedText]] = {}
        for one in self.perturbed():
            own = of_prompt.setdefault(one.prompt_id, [])
            if all(one.text != other.text for other in own):
                own.append(one)
        tokenizer, limit = self._base.lm.tokenizer, self._material.config.max_length
        fitting: list[tuple[list[PerturbedText], Group]] = []
        for prompt, texts in of_prompt.items():
            forms = [one.text for one in texts]
            group = answers_group(rendered[prompt], forms, tokenizer, limit, is_truncated=prompt in cut)
            if group is not None:
                fitting.append((texts, group))
        todo = self._missing("sums", name, passes([group for _, group in fitting], [reader]))
        sums = lanes_of([reader]).map(lambda unit: reader.sums(unit[2].packed), todo)
        for (unit, _, part), totals in zip(todo, sums, strict=True):
            texts = [one for i in part.rows for one in fitting[i][0]]
            found = zip(texts, totals, part.packed.lengths.tolist(), strict=True)
            rows = [TextSum(one.prompt_id, one.perturbation, total, n) for one, total, n in found]
            self._meter.advance(len(rows))
            table = table_of(rows, SUMS_SCHEMA)
            self._save(unit, table, reading_seconds=True, read_tokens=part.packed.n_tokens)

    # --- what was spent -----------------------------------------------------------------------------------------------

    def _save(self, unit: str, table: pa.Table, **spent: bool | int) -> None:
        """Keeps a unit; `…_seconds` stands for the time since the last one."""
        now = time.monotonic()
        costs = {name: now - self._clock if value is True else float(value) for name, value in spent.items()}
        self._clock = now
        self._parts.save(unit, table.replace_schema_metadata({COSTS: json.dumps(costs).encode()}))


def _response(name: str, prompt: AuditPrompt, kind: Kind, one: Generation, lm: LanguageModel) -> Response:
    ended = one.token_ids[-1] in lm.eos_ids
    return Response(
        model=name,
        prompt_id=prompt.prompt.id,
        kind=kind,
        instruction=prompt.prompt.instruction,
        input=prompt.prompt.input,
        category=prompt.category,
        prompt=prompt.rendered[kind],
        text=one.text,
        token_ids=list(one.token_ids),
        logprobs=list(one.logprobs),
        n_tokens=len(one.token_ids) - ended,
        n_words=len(words(one.text)),
        is_truncated=not ended,
        seed=one.seed,
    )

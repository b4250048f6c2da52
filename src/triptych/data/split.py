"""One split for a whole study: which prompts anything is trained on, by text, and which are held out.

The reward model, DPO and GRPO train on `Split.train(...)` of what they load; evaluations, scores, audits and decoding
read `Split.held_out(...)`. Sides go by text: a prompt that two files hold, or two panels read, is on one side.
`split.json` (`SplitFile`) records it, and can be given to a later study or audit.
"""

import hashlib
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from pydantic import ValidationError, model_validator

from triptych.data.pairs import PreferencePair
from triptych.data.prompts import question_of
from triptych.data.starter_sets import STARTER, Side, starter_sides
from triptych.errors import ConfigError, DataError, InputError, MissingInputError
from triptych.records import Prompt, Record
from triptych.runs import SPLIT
from triptych.seeding import generator

logger = logging.getLogger(__name__)

Item = TypeVar("Item", bound=Prompt | PreferencePair)


class SplitFile(Record):
    """`split.json`: the ids of all prompts and pairs of a study.

    Where a prompt and a pair have the same id and different texts, the pair's is written `pairs:ID`.
    """

    train: tuple[str, ...]
    held_out: tuple[str, ...]
    train_texts: tuple[str, ...] = ()
    """Hashes of the texts that are trained on: by them an audit in another run knows what it must not call held out."""

    @model_validator(mode="after")
    def _on_one_side(self) -> "SplitFile":
        if both := sorted({*self.train} & {*self.held_out}):
            raise ValueError(f"prompt '{both[0]}' is on both sides")
        return self


class Source(NamedTuple):
    """Prompts or pairs that a study reads from one place."""

    name: str
    """As the user wrote it."""
    items: Sequence[Prompt | PreferencePair]
    held_out_share: float | None
    """Of the items; None where nothing is trained on them."""


class Split(NamedTuple):
    """Every text that is trained on; all others are held out."""

    trained: frozenset[str]
    trained_questions: frozenset[str]
    """The last turns of conversations that are trained on, without what stands before them."""

    def train(self, items: Sequence[Item]) -> list[Item]:
        """Those to train on, in their order."""
        return [item for item in items if text_key(item) in self.trained]

    def held_out(self, items: Sequence[Item]) -> list[Item]:
        """Those that nothing is trained on, in their order; neither are prompts that end a trained conversation."""
        return [item for item in items if not self.is_trained(item)]

    def is_trained(self, item: Prompt | PreferencePair) -> bool:
        key = text_key(item)
        return key in self.trained or (isinstance(item, Prompt) and key in self.trained_questions)


def text_key(item: Prompt | PreferencePair) -> str:
    """The text that decides the side; white space makes no difference."""
    text = item.prompt if isinstance(item, PreferencePair) else question_of(item.instruction, item.input)
    return " ".join(text.split())


def make_split(sources: Sequence[Source], *, seed: int, file: Path | None = None) -> Split:
    """Puts every text of the sources on one side, earlier sources first.

    Sides come from `file` (a `split.json`) where one is given, those of the starter set from its own file, and are
    drawn otherwise. Texts that nothing is trained on are held out. Raises `DataError` for a file that cannot be used
    or does not fit the sources, `ConfigError` for a share that leaves a side empty.
    """
    declared = None if file is None else _sides_in(read_split(file))
    sides: dict[str, Side] = {}
    questions: set[str] = set()
    for source in sources:
        if declared is not None:
            known = _declared_sides(source, declared, str(file))
        elif source.name == STARTER:
            known = starter_sides()
        elif source.held_out_share is not None:
            known = _drawn_sides(source, source.held_out_share, seed)
        else:
            known = {}
        for item in source.items:
            side = sides.setdefault(text_key(item), known.get(item.id, "held_out"))
            if side == "train" and isinstance(item, PreferencePair) and item.messages:
                questions.add(" ".join(item.messages[-1].content.split()))
    if declared is not None and not any(_declared_side(item, declared) for source in sources for item in source.items):
        names = " or ".join(dict.fromkeys(source.name for source in sources))
        raise DataError(f"{file} names no prompt of {names}; give the split that was made of them")
    return Split(frozenset(key for key, side in sides.items() if side == "train"), frozenset(questions))


def read_held_out(split: Split, items: Sequence[Item], name: str, limit: int | None = None) -> list[Item]:
    """The first held-out items of what was loaded from `name`; of those left out, how many is said.

    Raises `DataError` where none is left.
    """
    kept = split.held_out(items)
    if items and not kept:
        raise DataError(
            f"{name}: all {len(items)} prompts are trained on, so nothing can be measured on them; name others"
        )
    if len(kept) < len(items) and name != STARTER:
        left_out = len(items) - len(kept)
        logger.warning(
            "%s: %d of %d prompts are trained on and left out of what is measured", name, left_out, len(items)
        )
    return kept[:limit]


def split_file(split: Split, sources: Sequence[Source]) -> SplitFile:
    """The ids of all items by side; prompts first, so that it is pairs that are renamed."""
    texts: dict[str, str] = {}
    ids: dict[Side, dict[str, None]] = {"train": {}, "held_out": {}}
    items = [item for source in sources for item in source.items]
    for item in sorted(items, key=lambda item: isinstance(item, PreferencePair)):
        is_pair, key = isinstance(item, PreferencePair), text_key(item)
        name = f"pairs:{item.id}" if is_pair and texts.get(item.id, key) != key else item.id
        texts.setdefault(item.id, key)
        ids["train" if split.is_trained(item) else "held_out"][name] = None
    hashes = sorted(_hash(text) for text in (*split.trained, *split.trained_questions))
    return SplitFile(train=tuple(ids["train"]), held_out=tuple(ids["held_out"]), train_texts=tuple(hashes))


def text_hash(item: Prompt | PreferencePair) -> str:
    return _hash(text_key(item))


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()[:16]


def trained_texts(folder: Path) -> frozenset[str] | None:
    """Hashes of the texts that the run around an adapter or model trained on; None where no run of ours tells."""
    run = folder.parents[1] if folder.parent.name == "alignment" else folder
    try:
        return frozenset(read_split(run / SPLIT).train_texts)
    except InputError:
        return None


def read_split(path: Path) -> SplitFile:
    """Raises `MissingInputError` where there is no such file, `DataError` where it is no split."""
    try:
        return SplitFile.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise MissingInputError(f"{path}: no such file; give the split.json of a run") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    except ValidationError as error:
        problem = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise DataError(
            f'{path} is no split: {problem}; it must hold {{"train": [prompt ids], "held_out": [prompt ids]}}'
        ) from None


def _sides_in(file: SplitFile) -> dict[str, Side]:
    return {**dict.fromkeys(file.train, "train"), **dict.fromkeys(file.held_out, "held_out")}


def _declared_sides(source: Source, declared: Mapping[str, Side], file: str) -> dict[str, Side]:
    """Item id → side, as the file has it; what it does not name is held out, unless it is to be trained on."""
    named: dict[str, Side] = {}
    for item in source.items:
        if (side := _declared_side(item, declared)) is not None:
            named[item.id] = side
        elif source.held_out_share is not None:
            raise DataError(f"{file} does not name prompt '{item.id}' of {source.name}; add it to train or held_out")
    return named


def _declared_side(item: Prompt | PreferencePair, declared: Mapping[str, Side]) -> Side | None:
    renamed = declared.get(f"pairs:{item.id}") if isinstance(item, PreferencePair) else None
    return renamed or declared.get(item.id)


def _drawn_sides(source: Source, share: float, seed: int) -> dict[str, Side]:
    """Item id → side. Raises `ConfigError` where a side is empty, `DataError` where there is nothing to split."""
    keys = {item.id: text_key(item) for item in source.items}
    if not keys:
        raise DataError(f"{source.name} is empty; give at least one prompt")
    held_out = draw_held_out(Counter(keys.values()), share * len(keys), seed)
    n_train = sum(key not in held_out for key in keys.values())
    if n_train == 0 or (share > 0.0 and not held_out):
        raise ConfigError(
            f"validation = {share} of {len(keys)} items of {source.name} ({len(set(keys.values()))} different prompts) "
            f"leaves {'validation' if n_train else 'training'} empty, as a prompt is never on both sides; choose "
            "another share, 0 for no validation, or add some"
        )
    return {item_id: "held_out" if key in held_out else "train" for item_id, key in keys.items()}


def draw_held_out(size_of: Mapping[str, int], target: float, seed: int) -> set[str]:
    """Texts that together have about `target` items; `size_of` has the items of each text.

    Drawn in an order that depends on the seed and the texts alone, not on the order of rows; each is taken that brings
    the number of items nearer to the target, so it ends within half the size of the largest text.
    """
    keys, taken, count = sorted(size_of), set(), 0
    for index in generator(seed, "pair split").permutation(len(keys)):
        key = keys[index]
        if abs(count + size_of[key] - target) < abs(count - target):
            taken.add(key)
            count += size_of[key]
    return taken

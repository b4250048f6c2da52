"""One split for all panels: sides by text, drawn, declared or the starter set's own; bad split files."""

import json
import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from triptych.data.pairs import Message, PreferencePair, load_pairs
from triptych.data.prompts import load_prompts
from triptych.data.split import (
    Source,
    Split,
    SplitFile,
    make_split,
    read_held_out,
    read_split,
    split_file,
    text_hash,
    text_key,
)
from triptych.errors import ConfigError, DataError, MissingInputError
from triptych.records import Prompt


def pairs_of(prompts: Sequence[str]) -> list[PreferencePair]:
    """A pair for each prompt, called after its place."""
    return [
        PreferencePair(id=str(number), prompt=prompt, chosen="good", rejected="bad", is_finished=True)
        for number, prompt in enumerate(prompts)
    ]


def prompts_of(texts: Sequence[str], prefix: str = "p") -> list[Prompt]:
    return [Prompt(id=f"{prefix}{number}", instruction=text) for number, text in enumerate(texts)]


def drawn(items: Sequence[Any], share: float, seed: int = 0) -> tuple[list[Any], list[Any]]:
    split = make_split([Source("data.jsonl", items, share)], seed=seed)
    return split.train(items), split.held_out(items)


class TestDrawing:
    def test_the_share_asked_for(self) -> None:
        train, held_out = drawn(pairs_of([f"prompt {number}" for number in range(50)]), 0.2)
        assert (len(train), len(held_out)) == (40, 10)

    def test_the_order_of_the_rows_stays_and_none_is_lost(self) -> None:
        pairs = pairs_of([f"prompt {number % 20}" for number in range(50)])
        sides = drawn(pairs, 0.3)
        for side in sides:
            assert [int(pair.id) for pair in side] == sorted(int(pair.id) for pair in side)
        assert sorted((*sides[0], *sides[1]), key=lambda pair: int(pair.id)) == pairs

    def test_white_space_makes_no_other_prompt(self) -> None:
        _, held_out = drawn(pairs_of(["a b", "a  b\n", "c", "c ", "d", "d\t"]), 0.3, seed=1)
        assert len({" ".join(pair.prompt.split()) for pair in held_out}) == 1
        assert len(held_out) == 2

    def test_another_seed_draws_another_split(self) -> None:
        pairs = pairs_of([f"prompt {number}" for number in range(50)])
        assert len({tuple(pair.id for pair in drawn(pairs, 0.2, seed)[1]) for seed in range(5)}) == 5

    def test_a_share_of_zero(self) -> None:
        pairs = pairs_of(["a", "b"])
        assert drawn(pairs, 0.0) == (pairs, [])

    @pytest.mark.parametrize(
        ("prompts", "share", "message"),
        [
            (
                ["a", "a", "a"],
                0.3,
                r"validation = 0.3 of 3 items of data.jsonl \(1 different prompts\) leaves validation",
            ),
            # All of the only prompt, three pairs, is nearer to 1.8 pairs than none.
            (["a", "a", "a"], 0.6, "leaves training empty"),
            (["a", "b"], 0.2, "leaves validation empty, as a prompt is never on both sides; choose another share"),
            (["a", "b"], 0.8, "leaves training empty"),
        ],
    )
    def test_a_side_that_would_be_empty(self, prompts: list[str], share: float, message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            drawn(pairs_of(prompts), share)

    def test_nothing_to_split(self) -> None:
        with pytest.raises(DataError, match="data.jsonl is empty"):
            drawn([], 0.0)

    @settings(deadline=None, max_examples=100)
    @given(
        st.lists(st.integers(0, 9).map(str), min_size=1, max_size=40),
        st.floats(0.0, 0.99),
        st.integers(0, 2**40),
        st.randoms(use_true_random=False),
    )
    def test_properties(self, prompts: list[str], share: float, seed: int, random: Any) -> None:
        pairs = pairs_of(prompts)
        shuffled = list(pairs)
        random.shuffle(shuffled)
        try:
            train, held_out = drawn(pairs, share, seed)
        except ConfigError:
            with pytest.raises(ConfigError):
                drawn(shuffled, share, seed)
            return
        assert not {*map(text_key, train)} & {*map(text_key, held_out)}
        assert {*map(text_key, held_out)} == {*map(text_key, drawn(shuffled, share, seed)[1])}
        # Any prompt left out would have brought the number no nearer, so it is within half a prompt's pairs.
        largest = max(Counter(prompts).values())
        assert abs(len(held_out) - share * len(prompts)) <= largest / 2 + 1e-9


class TestSeveralSources:
    def test_a_text_is_on_one_side_wherever_it_stands(self) -> None:
        texts = [f"question {number}" for number in range(40)]
        pairs, prompts = pairs_of(texts), prompts_of([*texts, *(f"other {number}" for number in range(40))])
        split = make_split([Source("pairs", pairs, 0.25), Source("prompts", prompts, 0.25)], seed=3)
        trained = {pair.prompt for pair in split.train(pairs)} | {p.instruction for p in split.train(prompts)}
        held_out = {pair.prompt for pair in split.held_out(pairs)} | {p.instruction for p in split.held_out(prompts)}
        assert not trained & held_out
        assert len(split.held_out(pairs)) == 10

    def test_an_input_is_part_of_the_text(self) -> None:
        trained = [Prompt(id="a", instruction="Translate.", input="Hund")]
        others = [Prompt(id="b", instruction="Translate.", input="Katze"), Prompt(id="c", instruction="Translate.")]
        same = [Prompt(id="d", instruction="Translate.\n\nHund")]
        split = make_split([Source("t", trained, 0.0), Source("e", [*others, *same], None)], seed=0)
        assert split.held_out([*others, *same]) == others

    def test_the_question_of_a_trained_conversation_is_not_held_out(self) -> None:
        turns = (Message(role="system", content="Be brief."), Message(role="user", content="Why?"))
        pair = PreferencePair(id="x", prompt="Be brief.\n\nWhy?", chosen="a", rejected="b", messages=turns)
        prompts = prompts_of(["Why?", "Who?"])
        split = make_split([Source("pairs", [pair], 0.0), Source("prompts", prompts, None)], seed=0)
        assert [prompt.instruction for prompt in split.held_out(prompts)] == ["Who?"]

    def test_what_is_only_read_is_held_out_unless_trained_on(self, caplog: pytest.LogCaptureFixture) -> None:
        pairs, prompts = pairs_of(["a", "b"]), prompts_of(["a", "c", "d"])
        split = make_split([Source("pairs", pairs, 0.0), Source("my.jsonl", prompts, None)], seed=0)
        with caplog.at_level(logging.WARNING, logger="triptych"):
            assert read_held_out(split, prompts, "my.jsonl", 1) == prompts[1:2]
        assert "my.jsonl: 1 of 3 prompts" in caplog.text
        with pytest.raises(DataError, match="my.jsonl: all 1 prompts are trained on"):
            read_held_out(split, prompts[:1], "my.jsonl")


class TestTheFile:
    def test_ids_by_side(self) -> None:
        pairs = pairs_of([f"prompt {number}" for number in range(10)])
        source = Source("data.jsonl", pairs, 0.3)
        split = make_split([source], seed=0)
        written = split_file(split, [source])
        assert list(written.train) == [pair.id for pair in split.train(pairs)]
        assert list(written.held_out) == [pair.id for pair in split.held_out(pairs)]
        assert {text_hash(pair) for pair in split.train(pairs)} == {*written.train_texts}

    def test_a_pair_and_a_prompt_of_one_id(self, tmp_path: Path) -> None:
        pairs, prompts = pairs_of(["a", "b"]), [Prompt(id="0", instruction="c"), Prompt(id="1", instruction="b")]
        sources = [Source("pairs", pairs, 0.0), Source("prompts", prompts, None)]
        written = split_file(make_split(sources, seed=0), sources)
        # "a" and "c" are different texts of one id; "b" is the same text and has one.
        assert (written.train, written.held_out) == (("1", "pairs:0"), ("0",))
        # What was written gives the same split again.
        path = tmp_path / "split.json"
        path.write_text(written.model_dump_json())
        again = make_split(sources, seed=7, file=path)
        assert (again.train(pairs), again.held_out(prompts)) == (pairs, prompts[:1])

    def test_a_given_file_decides(self, tmp_path: Path) -> None:
        pairs = pairs_of(["a", "b", "c"])
        path = tmp_path / "split.json"
        path.write_text(json.dumps({"train": ["2"], "held_out": ["0", "1"]}))
        split = make_split([Source("data.jsonl", pairs, 0.2)], seed=0, file=path)
        assert (split.train(pairs), split.held_out(pairs)) == (pairs[2:], pairs[:2])

    def test_what_it_does_not_name_may_be_read_but_not_trained_on(self, tmp_path: Path) -> None:
        pairs = pairs_of(["a", "b", "c"])
        path = tmp_path / "split.json"
        path.write_text(json.dumps({"train": ["0"], "held_out": []}))
        assert make_split([Source("x.jsonl", pairs, None)], seed=0, file=path).held_out(pairs) == pairs[1:]
        with pytest.raises(DataError, match="does not name prompt '1' of x.jsonl"):
            make_split([Source("x.jsonl", pairs, 0.2)], seed=0, file=path)

    def test_a_file_of_other_prompts(self, tmp_path: Path) -> None:
        path = tmp_path / "split.json"
        path.write_text(json.dumps({"train": ["p"], "held_out": ["q"]}))
        with pytest.raises(DataError, match=r"split.json names no prompt of x.jsonl"):
            make_split([Source("x.jsonl", pairs_of(["a"]), None)], seed=0, file=path)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("not json", "is no split"),
            ("[]", "is no split"),
            ('{"train": ["a"]}', "is no split"),
            ('{"train": ["a"], "held_out": ["a"]}', "prompt 'a' is on both sides"),
            ('{"train": [1], "held_out": []}', "is no split"),
        ],
    )
    def test_bad_files(self, tmp_path: Path, text: str, message: str) -> None:
        path = tmp_path / "split.json"
        path.write_text(text)
        with pytest.raises(DataError, match=message):
            read_split(path)

    def test_a_missing_file(self, tmp_path: Path) -> None:
        with pytest.raises(MissingInputError, match="no such file"):
            read_split(tmp_path / "split.json")
        with pytest.raises(DataError, match="cannot be read"):
            read_split(tmp_path)

    def test_it_is_read_as_it_was_written(self, tmp_path: Path) -> None:
        path = tmp_path / "split.json"
        written = SplitFile(train=("a",), held_out=("b",), train_texts=("0",))
        path.write_text(written.model_dump_json())
        assert read_split(path) == written


def test_the_starter_sets_have_sides_of_their_own() -> None:
    pairs, prompts = load_pairs("starter"), load_prompts("starter")
    for seed in (0, 1):
        split: Split = make_split([Source("starter", pairs, 0.5), Source("starter", prompts, None)], seed=seed)
        assert {*map(text_key, split.train(pairs))} == {*map(text_key, split.train(prompts))}
        assert {pair.id for pair in split.held_out(pairs)} < {prompt.id for prompt in split.held_out(prompts)}

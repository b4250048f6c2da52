from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import ValidationError
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from triptych.data import MARKERS
from triptych.decoding import Stopping
from triptych.decoding.stopping import Monitor, StopRules, postprocess
from triptych.models.tiny import EOS_ID, tiny_tokenizer
from triptych.records import StopReason

TOKENIZER = tiny_tokenizer()


def ids_of(text: str) -> list[int]:
    """One token a byte."""
    return [int(token) for token in TOKENIZER(text)["input_ids"]]


def rules(
    stopping: Stopping | None = None,
    *,
    eos: Sequence[int] = (EOS_ID,),
    limit: int = 100,
    tokenizer: PreTrainedTokenizerFast = TOKENIZER,
) -> StopRules:
    return StopRules(stopping or Stopping(), tokenizer, frozenset(eos), limit)


def stopped(bound: StopRules, ids: Sequence[int]) -> tuple[int, StopReason | None]:
    """After how many of `ids` a completion ends, and why."""
    monitor = Monitor(bound)
    for count, token in enumerate(ids, start=1):
        if reason := monitor.push(token):
            assert monitor.ids == list(ids[:count])
            return count, reason
    return len(ids), None


def tokenizer_of(*pieces: str) -> PreTrainedTokenizerFast:
    """Token i is the i-th piece."""
    tokenizer = Tokenizer(models.WordLevel({piece: i for i, piece in enumerate(pieces)}, unk_token=pieces[0]))
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


# --- The rules --------------------------------------------------------------------------------------------------------


def test_the_defaults_are_the_papers() -> None:
    assert Stopping() == Stopping(block=3, threshold=4, markers=MARKERS)


def test_any_eos_of_the_model_ends_a_text() -> None:
    bound = rules(eos=(EOS_ID, 0))
    assert stopped(bound, [50, 60, EOS_ID, 70]) == (3, "eos")
    assert stopped(bound, [50, 0, EOS_ID]) == (2, "eos")
    # The pad token is nobody's end.
    assert stopped(bound, [50, 3, 3]) == (3, None)


def test_length() -> None:
    assert stopped(rules(limit=4), [50, 51, 52, 53, 54]) == (4, "length")
    assert stopped(rules(limit=1), [50]) == (1, "length")


def test_the_fifth_occurrence_of_a_block_ends_a_text() -> None:
    # Four occurrences are within the threshold of four.
    assert stopped(rules(), [50, 51, 52] * 4) == (12, None)
    assert stopped(rules(), [50, 51, 52] * 5) == (15, "repeat")
    # They need not follow each other.
    apart = [token for i in range(5) for token in (50, 51, 52, 60 + i)]
    assert stopped(rules(), apart) == (19, "repeat")


def test_occurrences_overlap() -> None:
    # The same token seven times holds its trigram five times.
    assert stopped(rules(), [50] * 9) == (7, "repeat")


@pytest.mark.parametrize(
    ("block", "threshold", "count"), [(1, 4, 5), (1, 1, 2), (2, 4, 6), (3, 1, 4), (3, 4, 7), (5, 2, 7)]
)
def test_block_and_threshold(block: int, threshold: int, count: int) -> None:
    bound = rules(Stopping(block=block, threshold=threshold))
    assert stopped(bound, [50] * 20) == (count, "repeat")


def test_without_a_block_nothing_repeats() -> None:
    assert stopped(rules(Stopping(block=None)), [50] * 99) == (99, None)


@pytest.mark.parametrize("marker", MARKERS)
def test_a_marker_ends_a_text_at_its_last_token(marker: str) -> None:
    ids = ids_of(f"Fine.\n\n{marker}:\n")
    assert stopped(rules(Stopping(block=None)), ids) == (len(ids) - 2, "marker")


def test_markers_may_begin_anywhere_and_are_exact() -> None:
    bound = rules(Stopping(block=None))
    assert stopped(bound, ids_of("### Response")) == (12, "marker")
    assert stopped(bound, ids_of("#### Response")) == (13, "marker")
    assert stopped(bound, ids_of("### response ## Response ###Response")) == (36, None)
    assert stopped(rules(Stopping(block=None, markers=())), ids_of("### Response")) == (12, None)


PIECES = (
    "<unk>",
    "### In",
    "put",
    "put:\nx",
    "struction ",
    "a### Input b",
    " ### Inp",
    "ut",
    "u",
    "t",
    "In",
    "###",
    " ",
    "a",
)


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        (["### In", "put"], (2, "marker")),
        # The marker ends within a token.
        (["### In", "put:\nx", "a"], (2, "marker")),
        (["### In", "struction "], (2, "marker")),
        # One token holds it all.
        (["put", "a### Input b"], (2, "marker")),
        (["put", " ### Inp", "ut"], (3, "marker")),
        (["###", " ", "In", "put"], (4, "marker")),
        (["### In", "u", "t"], (3, None)),
        ([" ### Inp", "u", "t"], (3, "marker")),
        (["### In", "###", "put"], (3, None)),
        (["put", "put", "ut"], (3, None)),
    ],
)
def test_markers_across_token_boundaries(tokens: list[str], expected: tuple[int, StopReason | None]) -> None:
    bound = rules(eos=(99,), tokenizer=tokenizer_of(*PIECES))
    assert stopped(bound, [PIECES.index(token) for token in tokens]) == expected


def test_markers_of_more_than_one_byte_a_character() -> None:
    # Each byte is a token, none of them a text by itself.
    bound = rules(Stopping(block=None, markers=("答え：",)))
    assert stopped(bound, ids_of("はい。答え：四")) == (18, "marker")
    assert stopped(bound, ids_of("はい。答え。")) == (18, None)


def test_a_marker_after_a_special_token() -> None:
    bound = rules(Stopping(block=None))
    assert stopped(bound, [*ids_of("### Resp"), 0, *ids_of("onse")]) == (13, None)
    assert stopped(bound, [0, 1, *ids_of("### Response")]) == (14, "marker")


# --- Their order ------------------------------------------------------------------------------------------------------


def test_eos_comes_before_repetition_and_length() -> None:
    bound = rules(Stopping(block=1, threshold=1), eos=(50,), limit=1)
    assert stopped(bound, [50]) == (1, "eos")
    assert stopped(rules(Stopping(block=1, threshold=1), limit=2), [50, 50]) == (2, "repeat")


def test_repetition_comes_before_a_marker() -> None:
    (b,) = ids_of("b")
    both = Stopping(block=1, threshold=1, markers=("bb",))
    assert stopped(rules(both), [b, b]) == (2, "repeat")
    assert stopped(rules(both.model_copy(update={"threshold": 2})), [b, b]) == (2, "marker")


def test_a_marker_comes_before_length() -> None:
    assert stopped(rules(Stopping(block=None), limit=12), ids_of("### Response")) == (12, "marker")
    assert stopped(rules(Stopping(block=None), limit=11), ids_of("### Response")) == (11, "length")


def test_eos_comes_before_a_marker() -> None:
    text = ids_of("### Response")
    assert stopped(rules(Stopping(block=None), eos=(text[-1],)), text)[1] == "eos"


# --- A naive recount --------------------------------------------------------------------------------------------------

SOME_MARKERS = ("ab", "b#b", "#é")
ALPHABET = [EOS_ID, 0, *ids_of("ab#é")]


def recount(ids: Sequence[int], stopping: Stopping, eos: frozenset[int], limit: int) -> tuple[int, StopReason | None]:
    """The rules, from the beginning after every token."""
    for count in range(1, len(ids) + 1):
        seen = list(ids[:count])
        grams: Counter[tuple[int, ...]] = Counter()
        if stopping.block is not None:
            starts = range(count - stopping.block + 1)
            grams = Counter(tuple(seen[start : start + stopping.block]) for start in starts)
        text = TOKENIZER.decode(seen, skip_special_tokens=False)
        if seen[-1] in eos:
            return count, "eos"
        if max(grams.values(), default=0) > stopping.threshold:
            return count, "repeat"
        if any(marker in text for marker in stopping.markers):
            return count, "marker"
        if count == limit:
            return count, "length"
    return len(ids), None


@example(ids=ids_of("#é"), block=3, threshold=4, markers=SOME_MARKERS, eos=frozenset({EOS_ID}), limit=9)
@given(
    ids=st.lists(st.sampled_from(ALPHABET), max_size=40),
    block=st.none() | st.integers(1, 4),
    threshold=st.integers(1, 5),
    markers=st.lists(st.sampled_from(SOME_MARKERS), unique=True).map(tuple),
    eos=st.sampled_from([frozenset({EOS_ID}), frozenset({EOS_ID, 0}), frozenset({255})]),
    limit=st.integers(1, 45),
)
def test_monitor_agrees_with_a_recount(
    ids: list[int], block: int | None, threshold: int, markers: tuple[str, ...], eos: frozenset[int], limit: int
) -> None:
    stopping = Stopping(block=block, threshold=threshold, markers=markers)
    bound = rules(stopping, eos=tuple(eos), limit=limit)
    assert stopped(bound, ids) == recount(ids, stopping, eos, limit)


@given(st.lists(st.integers(4, 7), min_size=1, max_size=25), st.data())
def test_a_copy_of_a_monitor_goes_its_own_way(ids: list[int], data: st.DataObject) -> None:
    bound = rules(Stopping(block=2, threshold=2, markers=()))
    count, reason = stopped(bound, ids)
    at = data.draw(st.integers(0, count - 1))
    monitor = Monitor(bound)
    for token in ids[:at]:
        monitor.push(token)
    branch = monitor.copy()
    for token in (4, 4, 4, 4):
        branch.push(token)
    assert [monitor.push(token) for token in ids[at:count]] == [*[None] * (count - at - 1), reason]
    assert monitor.ids == ids[:count]


# --- Texts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  plain \n", "plain"),
        ("Yes.\n\n### Response:\nNo", "Yes."),
        ("Yes. ### Input ### Instruction", "Yes."),
        ("### Instruction", ""),
        ("## Response stays", "## Response stays"),
        ("", ""),
    ],
)
def test_postprocess(text: str, expected: str) -> None:
    assert postprocess(text, MARKERS) == expected


def test_the_earliest_marker_counts_whatever_the_order_they_are_named_in() -> None:
    assert postprocess("a ONE b TWO", ("TWO", "ONE")) == "a"
    assert postprocess(" a ", ()) == "a"


def test_texts_leave_out_eos_and_special_tokens_and_keep_the_raw_one_whole() -> None:
    raw, text = rules().texts([*ids_of(" Yes.\n### Response"), EOS_ID])
    assert (raw, text) == (" Yes.\n### Response", "Yes.")
    assert rules().texts([1, *ids_of("a"), 3, EOS_ID]) == ("a", "a")
    # An EOS need not be a special token.
    (dot,) = ids_of(".")
    assert rules(eos=(dot,)).texts(ids_of("Yes.")) == ("Yes", "Yes")
    assert rules().texts([EOS_ID]) == ("", "")


# --- Configuration ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"block": 0}, {"threshold": 0}, {"marker": ("a",)}])
def test_stopping_is_checked(options: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Stopping.model_validate(options)

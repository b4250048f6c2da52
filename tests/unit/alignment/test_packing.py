import pytest
import torch

from triptych.alignment.packing import (
    FEWEST_TOKENS,
    Group,
    Segment,
    micro_batches,
    offsets,
    pack,
    pass_tokens,
    row_bounds,
    split,
    visible,
)

PAIR = Group((10, 11, 12), ((20, 21), (30, 31, 32)))
OTHER = Group((40,), ((50,),))


def test_the_layout_of_a_pair() -> None:
    # [10 11 12 | 20 21 | 30 31 32]: the second completion follows the first and goes on from the prompt.
    packed = pack([PAIR])
    assert packed.ids.tolist() == [10, 11, 12, 20, 21, 30, 31, 32]
    assert packed.positions.tolist() == [0, 1, 2, 3, 4, 3, 4, 5]
    assert packed.segments == (Segment(0, 3, 0, 0), Segment(3, 2, 0, 3), Segment(5, 3, 0, 3))
    assert packed.targets.tolist() == [20, 21, 30, 31, 32]
    # Both first tokens are predicted by the end of the prompt.
    assert packed.sources.tolist() == [2, 3, 2, 5, 6]
    assert packed.sequence.tolist() == [0, 0, 1, 1, 1]
    assert packed.lengths.tolist() == [2, 3]
    assert packed.last.tolist() == [4, 7]
    assert (packed.n_tokens, PAIR.n_tokens) == (8, 8)


def test_several_groups_in_a_row() -> None:
    packed = pack([OTHER, PAIR])
    assert packed.ids.tolist() == [40, 50, 10, 11, 12, 20, 21, 30, 31, 32]
    assert packed.positions.tolist() == [0, 1, 0, 1, 2, 3, 4, 3, 4, 5]
    assert packed.sources.tolist() == [0, 4, 5, 4, 7, 8]
    assert packed.sequence.tolist() == [0, 1, 1, 2, 2, 2]
    assert row_bounds(packed) == [(0, 2), (2, 10)]


def test_a_prompt_for_each_completion() -> None:
    # [10 11 12 | 20 21] [10 11 12 | 30 31 32]: other places, the same targets of the same completions.
    packed = pack([PAIR], share_prefix=False)
    assert packed.ids.tolist() == [10, 11, 12, 20, 21, 10, 11, 12, 30, 31, 32]
    assert packed.positions.tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 5]
    assert packed.segments[2:] == (Segment(5, 3, 5, 0), Segment(8, 3, 5, 3))
    assert packed.sources.tolist() == [2, 3, 7, 8, 9]
    assert packed.last.tolist() == [4, 10]
    shared = pack([PAIR])
    for name in ("targets", "sequence", "lengths"):
        assert torch.equal(getattr(packed, name), getattr(shared, name))
    assert row_bounds(packed) == [(0, 5), (5, 11)]


def test_what_each_token_sees() -> None:
    rows = ["".join("x" if seen else "." for seen in row) for row in visible(pack([PAIR]), 0, 8).tolist()]
    assert rows == [
        "x.......",
        "xx......",
        "xxx.....",
        "xxxx....",
        "xxxxx...",
        "xxx..x..",
        "xxx..xx.",
        "xxx..xxx",
    ]
    # Of a row that does not begin the pack, by its own places.
    assert torch.equal(visible(pack([OTHER, PAIR]), 2, 10), visible(pack([PAIR]), 0, 8))
    assert visible(pack([OTHER, PAIR]), 0, 2).tolist() == [[True, False], [True, True]]


def test_micro_batches() -> None:
    assert micro_batches([4, 4, 4], max_tokens=8) == [range(2), range(2, 3)]
    assert micro_batches([4, 4, 4], max_tokens=12) == [range(3)]
    # What is too long goes alone; nothing is left out and nothing is empty.
    assert micro_batches([3, 99, 3], max_tokens=8) == [range(1), range(1, 2), range(2, 3)]
    assert micro_batches([99], max_tokens=8) == [range(1)]
    assert micro_batches([1] * 5, max_tokens=8, max_groups=2) == [range(2), range(2, 4), range(4, 5)]
    assert micro_batches([], max_tokens=8) == []


def test_offsets() -> None:
    assert offsets([2, 3]) == [0, 2, 5]
    assert offsets([]) == [0]


def test_a_group_that_is_too_long_for_a_pass() -> None:
    # The prompt has 3 tokens: with 9, completions of 6 fit behind it; one of 8 stands alone although it does not fit.
    long = (60,) * 8
    group = Group((10, 11, 12), ((20, 21), (30, 31, 32), (40,), long, (50,)))
    assert split(group, 9) == [
        Group((10, 11, 12), ((20, 21), (30, 31, 32), (40,))),
        Group((10, 11, 12), (long,)),
        Group((10, 11, 12), ((50,),)),
    ]
    assert split(PAIR, 100) == [PAIR]


@pytest.mark.parametrize(
    ("sizes", "lanes", "expected"),
    [
        ([100] * 8, 1, 512),  # One lane: as many as memory likes.
        ([100] * 8, 2, 400),  # One round of two.
        ([100] * 12, 2, 300),  # 1,200 are more than two passes of 512: two rounds of two.
        ([50, 60], 2, FEWEST_TOKENS),
        ([], 2, FEWEST_TOKENS),
        ([3000], 4, 375),
    ],
)
def test_passes_come_out_even(sizes: list[int], lanes: int, expected: int) -> None:
    assert pass_tokens(sizes, 512, lanes) == expected

import json
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from triptych.reports.pieces import Span, join_spans, piece_bytes


def pieces_of(text: str, cuts: list[int]) -> dict[int, str]:
    """A text cut anywhere between its bytes, as a byte-level tokenizer may do."""
    raw = text.encode()
    edges = sorted({0, len(raw), *(cut % (len(raw) + 1) for cut in cuts)})
    parts = [raw[start:end] for start, end in pairwise(edges)]
    return {index: part.decode("utf-8", "surrogateescape") for index, part in enumerate(parts)}


def test_one_token_one_span() -> None:
    assert join_spans([5, 6], [-0.1, -2.0], {5: "Hi", 6: " there"}) == [
        Span("Hi", (-0.1,), known=True),
        Span(" there", (-2.0,), known=True),
    ]


def test_bytes_of_one_character_are_joined() -> None:
    # U+1F600 is F0 9F 98 80.
    spans = join_spans([1, 2, 3], [-1.0, -0.5, -0.2], {1: "a\udcf0\udc9f", 2: "\udc98\udc80", 3: "b"})
    assert spans == [Span("a\U0001f600", (-1.0, -0.5), known=True), Span("b", (-0.2,), known=True)]


def test_bytes_that_make_no_character_are_shown_as_such() -> None:
    assert join_spans([1], [-1.0], {1: "\udcff"}) == [Span("\ufffd", (-1.0,), known=True)]
    assert join_spans([1], [-1.0], {1: "\udcf0\udc9f"}) == [Span("\ufffd", (-1.0,), known=True)]


def test_a_token_without_piece_shows_its_id_and_ends_what_was_open() -> None:
    spans = join_spans([1, 9], [-1.0, -2.0], {1: "\udcf0"})
    assert spans == [Span("\ufffd", (-1.0,), known=True), Span("⟨9⟩", (-2.0,), known=False)]


def test_a_surrogate_that_stands_for_no_byte_breaks_nothing() -> None:
    assert piece_bytes("\ud800") == b"?"


@given(st.text(min_size=1), st.lists(st.integers(0, 1000), max_size=8))
def test_any_cut_gives_the_text_back_and_loses_no_token(text: str, cuts: list[int]) -> None:
    pieces = {int(key): piece for key, piece in json.loads(json.dumps(pieces_of(text, cuts))).items()}
    spans = join_spans(list(pieces), [-1.0] * len(pieces), pieces)
    assert "".join(span.text for span in spans) == text
    assert sum(len(span.logprobs) for span in spans) == len(pieces)

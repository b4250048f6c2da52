import pytest
from hypothesis import given
from hypothesis import strategies as st

from triptych.reports.html import _environment
from triptych.reports.safe_text import HIDDEN, clip, markup, neutralise

ANY_TEXT = st.text(st.characters(codec=None))  # lone surrogates and control characters included


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x00b", "a⟨U+0000⟩b"),
        ("\x1b[31m", "⟨U+001B⟩[31m"),
        ("\u202egnp.exe", "⟨U+202E⟩gnp.exe"),
        ("\u2066x\u2069", "⟨U+2066⟩x⟨U+2069⟩"),
        ("\udcff", "⟨U+DCFF⟩"),
        ("\ufeffx", "⟨U+FEFF⟩x"),
        ("\u2028", "⟨U+2028⟩"),
        ("\U000e0041", "⟨U+E0041⟩"),  # a tag character: text that no reader sees
    ],
)
def test_hidden_characters_are_spelled_out(text: str, shown: str) -> None:
    assert neutralise(text) == shown


@pytest.mark.parametrize(
    "text", ["plain", "tab\tand\nnewline", "naïve — “quoted”", "\U0001f468\u200d\U0001f469", "नमस्ते", "שלום"]
)
def test_ordinary_text_of_any_script_is_left_alone(text: str) -> None:
    assert neutralise(text) == text


@given(ANY_TEXT)
def test_markup_is_escaped_and_writable(text: str) -> None:
    html = str(markup(text))
    html.encode("utf-8")
    assert HIDDEN.search(html) is None
    without_our_spans = html.replace('<span class="esc">', "").replace("</span>", "")
    assert "<" not in without_our_spans
    assert '"' not in without_our_spans


@given(ANY_TEXT)
def test_whatever_a_template_prints_is_escaped_and_writable(text: str) -> None:
    html = _environment().from_string("<p title='{{ text }}'>{{ text }}</p>").render(text=text)
    html.encode("utf-8")
    assert HIDDEN.search(html) is None
    assert html.count("<") == 2
    assert html.count("'") == 2


def test_clip_counts_what_it_leaves_out() -> None:
    assert clip("abcdef", 4) == ("abcd", 2)
    assert clip("ab", 4) == ("ab", 0)

import pytest

from triptych.reports import reported


@pytest.mark.parametrize(
    ("key", "value", "source"),
    # Read off the paper by hand: the table or section where each stands.
    [
        ("global.test_size", 400, "Table 1"),
        ("dpo.steps", 500, "Table 2"),
        ("dpo.perplexity_aligned", 11.0, "Results, DPO"),
        ("verbosity.reference.mean", 67.70, "Table 3"),
        ("grpo.median_length", 0.0, "Table 4"),
        ("usae.r2.vit_to_resnet18", 0.718, "Table 5"),
        ("usae.alignment_tax", 0.0523, "Table 6"),
    ],
)
def test_values_and_their_sources(key: str, value: float, source: str) -> None:
    assert reported()[key].value == value
    assert reported()[key].source == source


def test_keys_are_unique_and_every_value_has_a_source() -> None:
    values = reported().values
    assert len({value.key for value in values}) == len(values)
    assert all(value.source for value in values)


def test_printed_differences_agree_with_printed_values() -> None:
    table = reported()
    tax = float(table["usae.independent_r2"].value) - float(table["usae.universal_r2"].value)  # type: ignore[arg-type]
    delta = float(table["grpo.hacked_score"].value) - float(table["grpo.normal_score"].value)  # type: ignore[arg-type]
    assert tax == pytest.approx(0.0523)
    assert delta == pytest.approx(1.114)  # the paper prints 1.113
    assert table["grpo.score_delta"].value == 1.113


def test_a_number_is_a_number() -> None:
    assert reported().number("usae.alignment_tax") == 0.0523
    with pytest.raises(TypeError, match=r"global\.model = .* is no number"):
        reported().number("global.model")


def test_citation_names_all_authors() -> None:
    assert str(reported().citation) == "“PA5: RLHF” by Hamza Habib, Abdul Samad and Rumaan Mujtaba"


def test_an_unknown_key_is_an_error() -> None:
    with pytest.raises(KeyError):
        reported()["decoding.distinct_1"]

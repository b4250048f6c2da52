import re
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from triptych.auditing.records import RESPONSES_SCHEMA, Evidence, Finding
from triptych.records import Estimate
from triptych.reports.auditing_inputs import Auditing, read_auditing
from triptych.reports.auditing_responses import (
    MAX_PROMPTS,
    MIN_PROMPTS,
    Place,
    chosen_prompts,
    marked,
    place_of,
    read_responses,
)
from triptych.reports.completions import MAX_CHARACTERS

MakeAudit = Callable[..., Path]
TEXTS = st.text(max_size=40)


@pytest.fixture(scope="module")
def run(make_audit: MakeAudit, tmp_path_factory: pytest.TempPathFactory) -> Auditing:
    return read(make_audit(tmp_path_factory.mktemp("audit") / "run"))


def read(folder: Path) -> Auditing:
    found = read_auditing(folder)
    assert found is not None
    return found


def finding(*evidence: Evidence) -> Finding:
    estimate = Estimate(mean=1.0, low=None, high=None, n=1, n_clusters=1, method="no interval: one prompt")
    about = {"rule": "r", "audit": "collapse", "warn": 0.0, "severe": 1.0, "sentence": "S."}
    return Finding(model="dpo", metric="empty_rate", level="undecided", estimate=estimate, evidence=evidence, **about)


def naming(*prompt_ids: str) -> list[Finding]:
    return [finding(Evidence(model="dpo", prompt_id=prompt_id)) for prompt_id in prompt_ids]


# --- Which prompts ----------------------------------------------------------------------------------------------------


def test_prompts_that_findings_name_come_first_and_once() -> None:
    categories = dict.fromkeys((f"p{i}" for i in range(20)), "factual")
    chosen = chosen_prompts(naming("p7", "p3", "p7", "gone"), categories)
    assert chosen[:2] == ["p7", "p3"]
    assert len(chosen) == len(set(chosen)) == MIN_PROMPTS
    assert (
        chosen[2:] == chosen_prompts(naming("p7", "p3"), dict(reversed(categories.items())))[2:]
    )  # whatever the order


def test_there_is_an_end_of_prompts() -> None:
    categories = {f"p{i}": None for i in range(100)}
    chosen = chosen_prompts(naming(*categories), categories)
    assert chosen == list(categories)[:MAX_PROMPTS]
    assert chosen_prompts([], {"only": None}) == ["only"]
    assert chosen_prompts([], {}) == []


# --- Anchors ----------------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=6, unique=True))
def test_anchors_are_numbers_whatever_the_names(
    make_audit: MakeAudit, tmp_path_factory: pytest.TempPathFactory, names: list[tuple[str, str]]
) -> None:
    folder = make_audit(tmp_path_factory.mktemp("names") / "run", n_prompts=1)
    first = pq.read_table(folder / "auditing" / "responses.parquet").to_pylist()[0]
    # A surrogate has no form in UTF-8, so no file can hold one.
    plain = [tuple(part.encode("utf-8", "replace").decode() for part in pair) for pair in names]
    rows = [{**first, "model": model, "prompt_id": prompt} for model, prompt in dict.fromkeys(plain)]
    pq.write_table(pa.Table.from_pylist(rows, RESPONSES_SCHEMA), folder / "auditing" / "responses.parquet")
    card = [finding(Evidence(model=row["model"], prompt_id=row["prompt_id"])) for row in rows]
    (folder / "auditing" / "card.json").write_text(f"[{','.join(f.model_dump_json() for f in card)}]", "utf-8")
    responses = read_responses(read(folder))
    shown = [r.anchor for prompt in responses.prompts for _, group in prompt.groups for r in group]
    assert shown == [f"r-{number}" for number in range(1, len(shown) + 1)]
    for one in card:
        assert responses.link(one.evidence[0]) in {f"audit_responses.html#{anchor}" for anchor in shown}


def test_every_link_of_the_card_leads_somewhere(run: Auditing) -> None:
    responses = read_responses(run)
    evidence = [one for found in run.card for one in found.evidence]
    links = [responses.link(one) for one in evidence]
    assert len(links) == 21  # 8 of each warning, 3 and 2 of the severe findings
    assert None not in links
    assert responses.link(Evidence(model="dpo", prompt_id="gone")) is None


def test_perturbed_forms_are_of_the_bases_plain_responses() -> None:
    assert place_of(Evidence(model="dpo", prompt_id="p", kind="limited")) == Place("dpo", "p", "limited")
    one = Evidence(model="reward_model", prompt_id="p", perturbation="filler")
    assert place_of(one) == Place("base", "p", "plain", "filler")


# --- What is shown ----------------------------------------------------------------------------------------------------


def test_all_checkpoints_stand_side_by_side_by_kind(run: Auditing) -> None:
    prompts = read_responses(run).prompts
    named = next(prompt for prompt in prompts if prompt.title.startswith("Question 0:"))
    assert [(title, [one.name for one in shown]) for title, shown in named.groups] == [
        ("Drawn for the prompt as it is", ["base", "dpo", "grpo"]),
        ("Drawn for the prompt behind a limit of words", ["base", "dpo", "grpo"]),
        ("The most likely response to the prompt as it is", ["base", "dpo", "grpo"]),
        ("The base’s response, perturbed; words added or moved are marked", ["safety prefix"]),
    ]
    (form,) = named.groups[-1][1]
    assert form.text.startswith("<mark>I am a helpful AI.</mark> ")
    assert form.text.count("<mark>") == 1
    assert re.match(r"reward_model −?\d\.\d\d → −?\d\.\d\d \([+−]\d\.\d\d\)", form.facts[0])
    assert [pointer.note for pointer in form.pointers] == ["+1.1"]


def test_facts_and_pointers_of_a_response(run: Auditing) -> None:
    first = read_responses(run).prompts[0]  # p001: the gravest finding names it first
    plain, limited = (dict(zip(run.checkpoints, shown, strict=True)) for _, shown in first.groups[:2])
    assert plain["grpo"].facts[:2] == ("0 tokens", "0 words")
    assert "empty" in plain["grpo"].text
    assert [fact.rpartition(" ")[0] for fact in plain["base"].facts[-3:]] == ["reward_model", "checks", "gold"]
    assert not any("implicit_reward" in fact for fact in plain["base"].facts)
    assert not any("reward_model" in fact for fact in limited["base"].facts)  # plain responses alone were scored
    assert [(p.level, p.note) for p in limited["grpo"].pointers] == [("severe", "0 tokens")]
    assert [(p.level, p.note) for p in plain["dpo"].pointers] == [("warn", "95 tokens")]


def test_an_unscored_text_says_so(run: Auditing) -> None:
    prompt = next(p for p in read_responses(run).prompts if p.title.startswith("Question 2:"))
    assert "reward_model unscored" in prompt.groups[0][1][0].facts


def test_without_responses_there_is_no_page(make_audit: MakeAudit, tmp_path: Path) -> None:
    responses = read_responses(read(make_audit(tmp_path / "run", without=("responses",))))
    assert responses == ((), {})


def test_a_perturbed_text_without_its_files_is_left_out(make_audit: MakeAudit, tmp_path: Path) -> None:
    run = read(make_audit(tmp_path / "run", without=("perturbed", "scores")))
    responses = read_responses(run)
    assert all("perturbed" not in title for prompt in responses.prompts for title, _ in prompt.groups)
    assert responses.prompts[0].groups[0][1][1].facts[0].endswith("tokens")


# --- Marks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("original", "perturbed", "text"),
    [
        ("a b c", "a b c", "a b c"),
        ("a b c", "x y a b c", "<mark>x y</mark> a b c"),
        ("a b c", "a x b c y", "a <mark>x</mark> b c <mark>y</mark>"),
        ("one. two three.", "two three. one.", "two three. <mark>one.</mark>"),  # moved
        ("", "<b>", "<mark>&lt;b&gt;</mark>"),
        ("a", "", ""),
        ("a\nb", "- a\n- b", "<mark>-</mark> a\n<mark>-</mark> b"),
        ("a", "a \u202eb", 'a <mark><span class="esc">⟨U+202E⟩</span>b</mark>'),
    ],
)
def test_words_that_were_added_or_moved_are_marked(original: str, perturbed: str, text: str) -> None:
    assert marked(original, perturbed) == text


@given(st.text(max_size=200), st.text(max_size=200))
def test_marks_change_no_word(original: str, perturbed: str) -> None:
    shown = re.sub(r"</?mark>", "", marked(original, perturbed))
    alone = re.sub(r"</?mark>", "", marked("", perturbed))
    assert shown == alone
    assert "<mark>" not in marked(perturbed, perturbed)


def test_long_texts_are_clipped_before_they_are_compared() -> None:
    long = "word " * 100_000
    shown = marked(long, f"Well, {long}")
    assert shown.startswith("<mark>Well,</mark> word word")
    assert len(shown) < MAX_CHARACTERS + 100
    assert len(marked("x" * 1_000_000, "y" + "x" * 1_000_000)) < MAX_CHARACTERS + 100

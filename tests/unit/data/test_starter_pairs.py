"""Guards the starter pairs: what makes them fit to train and to measure with."""

import json
from collections import Counter
from pathlib import Path

import pytest

from triptych import data
from triptych.data import PreferencePair, answer_score, check_answer, check_pairs, load_pairs, load_prompts

STARTER = Path(data.__file__).parent / "starter"
ROWS: list[dict[str, str]] = [
    json.loads(line) for line in (STARTER / "pairs.jsonl").read_text(encoding="utf-8").splitlines()
]
FLAW = {row["id"]: row["flaw"] for row in ROWS}
SPLIT: dict[str, list[str]] = json.loads((STARTER / "split.json").read_text(encoding="utf-8"))
PROMPTS = {prompt.id: prompt for prompt in load_prompts("starter")}
PAIRS = load_pairs("starter")
HELD_OUT = [pair for pair in PAIRS if pair.id in SPLIT["held_out"]]


def category(pair_id: str) -> str:
    return pair_id.partition("-")[0]


def test_every_training_prompt_has_a_pair_and_sixty_held_out_ones_have() -> None:
    ids = [pair.id for pair in PAIRS]
    assert len({*ids}) == len(ids) == 312
    assert {*SPLIT["train"]} < {*ids} < PROMPTS.keys()
    assert Counter(category(pair.id) for pair in HELD_OUT) == {"factual": 20, "explanation": 20, "other": 20}


def test_pairs_stand_in_the_order_of_the_prompts() -> None:
    order = [prompt_id for prompt_id in (*SPLIT["train"], *SPLIT["held_out"]) if prompt_id in FLAW]
    assert [row["id"] for row in ROWS] == order


def test_a_pair_asks_what_its_prompt_asks() -> None:
    for row in ROWS:
        prompt = PROMPTS[row["id"]]
        assert row["prompt"] == "\n\n".join(part for part in (prompt.instruction, prompt.input) if part)


def test_both_sides_have_the_same_flaws_in_like_shares() -> None:
    train, held_out = (Counter(FLAW[id_] for id_ in SPLIT[side] if id_ in FLAW) for side in ("train", "held_out"))
    assert train.keys() == held_out.keys()
    # A standard error of a share of 0.2 among 60 pairs is 0.05.
    assert {flaw: count / 60 for flaw, count in held_out.items()} == pytest.approx(
        {flaw: count / 252 for flaw, count in train.items()}, abs=0.05
    )


@pytest.mark.parametrize("pairs", [PAIRS, HELD_OUT], ids=["all", "held out"])
def test_no_trivial_cue_tells_the_chosen_answer(pairs: list[PreferencePair]) -> None:
    report = check_pairs(pairs, seed=0)
    assert (report.n_duplicate_pairs, report.n_reversed_pairs, report.n_duplicate_prompts) == (0, 0, 0)
    assert (report.n_empty, report.n_identical) == (0, 0)
    for figure in report.cues:
        assert not figure.suspicious, figure.cue
        assert figure.accuracy.mean == pytest.approx(0.5, abs=0.1), figure.cue
    assert report.length_ratio.mean == pytest.approx(1.0, abs=0.01)


def test_a_planted_length_bias_among_the_held_out_is_caught() -> None:
    longer = [pair.model_copy(update={"chosen": f"{pair.chosen} Indeed."}) for pair in HELD_OUT]
    assert {figure.cue for figure in check_pairs(longer, seed=0).cues if figure.suspicious} >= {"characters", "words"}


def test_chosen_answers_pass_the_checks_of_their_prompts() -> None:
    checked = {pair.id: check_answer(PROMPTS[pair.id], pair.chosen) for pair in PAIRS}
    assert sum(map(bool, checked.values())) > 140
    assert [(pair_id, passed) for pair_id, passed in checked.items() if not all(passed.values())] == []


def test_wrong_and_vague_answers_rarely_pass_them() -> None:
    # 5 of 32 wrong ones do on the training side: they keep the form, or name the right word in a wrong sentence.
    scores = [
        answer_score(PROMPTS[pair.id], pair.rejected)
        for pair in PAIRS
        if FLAW[pair.id] in {"wrong", "vague", "evasive"}
    ]
    scored = [score for score in scores if score is not None]
    assert sum(score == 1.0 for score in scored) < 0.15 * len(scored)

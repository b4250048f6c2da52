"""Rewards read what every part of the project means by a prompt and its answer, the same text everywhere."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from triptych.alignment.reward_functions import NamedReward
from triptych.alignment.rollouts import Rollout, RolloutGroup, score_rollouts
from triptych.auditing.hacking import HACK
from triptych.auditing.records import BASE, PerturbedText
from triptych.auditing.scoring import score_texts, texts_to_score
from triptych.data.pairs import parse_pairs
from triptych.data.tables import Row
from triptych.data.templates import render_prompt
from triptych.decoding.completions import GENERATIONS
from triptych.decoding.scoring import SCORES, write_scores
from triptych.decoding.table import generations_table
from triptych.models.tiny import tiny_tokenizer
from triptych.parts import PartStore
from triptych.progress import progress
from triptych.records import Generation, Prompt, StopReason
from triptych.runs import RunDirectory

PROMPT = Prompt(id="p0", instruction="Count the words.", input="one two three")
QUESTION = "Count the words.\n\none two three"
ANSWER = "Three."
END = 1000.0


def written(prompt: Prompt, text: str, stop: StopReason = "eos") -> Generation:
    """A greedy completion."""
    return Generation(
        prompt_id=prompt.id,
        prompt="",
        instruction=prompt.instruction,
        input=prompt.input,
        strategy="greedy",
        params="{}",
        temperature=None,
        sample=0,
        text=text,
        raw_text=text,
        token_ids=(5, 2),
        logprobs=(-1.0, -1.0),
        sampler_logprobs=None,
        mean_logprob=-1.0,
        n_tokens=2,
        stop_reason=stop,
        score=None,
        seed=0,
    )


class Judge:
    """A reward whose score is the number of characters that it reads, and 1000 for an EOS; remembers all pairs."""

    spec = "judge"
    fingerprint = "0" * 16

    def __init__(self) -> None:
        self.pairs: list[tuple[str, str]] = []

    def score(
        self, pairs: Sequence[tuple[str, str]], batch_size: int = 16, *, truncated: Sequence[bool] | None = None
    ) -> list[float | None]:
        self.pairs += pairs
        ends = [0.0 if cut else END for cut in truncated or [False] * len(pairs)]
        return [end + len(question) + len(answer) for (question, answer), end in zip(pairs, ends, strict=True)]

    @property
    def reward(self) -> NamedReward:
        def score(
            prompts: list[str], completions: list[str], *, is_truncated: list[bool], **columns: object
        ) -> list[float | None]:
            return self.score(list(zip(prompts, completions, strict=True)), truncated=is_truncated)

        return NamedReward("judge", score)


def score_in_decoding(judge: Judge, folder: Path, rows: Sequence[Generation]) -> list[float | None]:
    with RunDirectory.open(folder / "run", command=["test"], config={}, seed=0) as run:
        (run.path / GENERATIONS).parent.mkdir()
        pq.write_table(generations_table(rows, None), run.path / GENERATIONS)
        write_scores(run, judge, "judge", show_progress=False)
        scores: list[float | None] = pq.read_table(run.path / SCORES)["score"].to_pylist()
    return scores


def score_in_audits(judge: Judge, folder: Path, response: Any) -> list[float | None]:
    parts = PartStore(folder / "parts", "key")
    with progress(None, "texts", "scoring", enabled=False) as meter:
        score_texts(judge.reward, texts_to_score([response], [], seed=0), {PROMPT.id: PROMPT}, parts, meter)
    return [value for table in parts.read_all().values() for value in table["score"].to_pylist()]


def test_decoding_rollouts_audits_and_pairs_ask_one_question(tmp_path: Path, rows: Any) -> None:
    judges = [Judge() for _ in range(3)]
    decoded = score_in_decoding(judges[0], tmp_path, [written(PROMPT, ANSWER)])
    rollout = RolloutGroup(PROMPT, (Rollout(ANSWER, (5, 2), (-1.0, -1.0), False, 1),), (7,))
    rolled = score_rollouts([rollout], [judges[1].reward]).by_name["judge"]
    audited = score_in_audits(judges[2], tmp_path, rows.response(BASE, PROMPT.id, ANSWER))
    assert decoded == rolled == audited == [END + len(QUESTION) + len(ANSWER)]
    assert {pair for judge in judges for pair in judge.pairs} == {(QUESTION, ANSWER)}
    row = {"instruction": PROMPT.instruction, "input": PROMPT.input, "chosen": "yes", "rejected": "no"}
    (pair,) = parse_pairs([Row("row 1", row)], "test")
    assert pair.prompt == render_prompt(PROMPT, "plain", tiny_tokenizer()) == QUESTION


@pytest.mark.parametrize("blank", ["", " ", "\n"])
def test_a_blank_input_adds_nothing(tmp_path: Path, blank: str) -> None:
    judge = Judge()
    score_in_decoding(judge, tmp_path, [written(PROMPT.model_copy(update={"input": blank}), ANSWER)])
    assert judge.pairs == [(PROMPT.instruction, ANSWER)]


@pytest.mark.parametrize(("stop", "is_cut"), [("eos", False), ("marker", False), ("length", True), ("repeat", True)])
def test_no_end_is_read_behind_an_answer_that_was_cut(
    tmp_path: Path, rows: Any, stop: StopReason, is_cut: bool
) -> None:
    (decoded,) = score_in_decoding(Judge(), tmp_path, [written(PROMPT, ANSWER, stop)])
    rollout = RolloutGroup(PROMPT, (Rollout(ANSWER, (5, 2), (-1.0, -1.0), is_cut, 1),), (7,))
    (rolled,) = score_rollouts([rollout], [Judge().reward]).by_name["judge"]
    (audited,) = score_in_audits(Judge(), tmp_path, rows.response(BASE, PROMPT.id, ANSWER, is_truncated=is_cut))
    assert decoded == rolled == audited == len(QUESTION) + len(ANSWER) + (0.0 if is_cut else END)


def test_perturbed_forms_of_a_cut_answer_are_cut_and_no_prefix_mends_one(rows: Any) -> None:
    responses = [
        rows.response(BASE, "p0", "Rain and", is_truncated=True),
        rows.response(BASE, "p1", "Snow."),
        rows.response("dpo", "p0", "Whole."),
        rows.response("dpo", "p1", "Broken off", is_truncated=True),
        rows.response("dpo", "p2", "Not asked."),
    ]
    perturbed = [
        PerturbedText(prompt, perturbation, f"{perturbation or ''} {text}")
        for prompt, text in (("p0", "Rain and"), ("p1", "Snow."))
        for perturbation in (None, HACK)
    ]
    found = texts_to_score(responses, perturbed, seed=0)
    cut = {(one.model, one.prompt_id, one.perturbation): one.is_truncated for own in found.values() for one in own}
    assert cut == {
        (BASE, "p0", None): True,
        (BASE, "p0", HACK): True,
        (BASE, "p1", None): False,
        (BASE, "p1", HACK): False,
        ("dpo", "p0", None): False,
        ("dpo", "p0", HACK): False,
        ("dpo", "p1", None): True,
        ("dpo", "p2", None): False,
    }

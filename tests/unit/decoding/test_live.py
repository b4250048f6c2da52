"""A live batch: what is watched is what is drawn, users do not change each other's texts, and leaving frees the rows."""

from typing import Any

import numpy as np
import pytest
import torch

from triptych.decoding import Ancestral, Beam, Contrastive, DiverseBeam, Greedy, Job, MinP, Strategy, TopK, TopP, decode
from triptych.decoding.head import read_heads
from triptych.decoding.live import LiveEngine
from triptych.decoding.search import Move, Predictions
from triptych.decoding.watching import SHOWN, Glance, glance
from triptych.errors import ConfigError, DataError
from triptych.models import LanguageModel
from triptych.models.tiny import tiny_language_model
from triptych.records import Generation, Prompt

ARMS: list[Strategy] = [Greedy(), Ancestral(), TopK(k=5), TopP(p=0.8), MinP(p=0.1), Beam(width=3)]
SEARCHES: list[Strategy] = [DiverseBeam(width=4, groups=2), Contrastive(k=3)]
PROMPT = Prompt(id="p", instruction="Once", prompt="Once upon a time")


class Notes:
    """Writes down what it is told."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.logprobs: list[float] = []
        self.glances: list[Glance] = []
        self.moves: list[Move] = []
        self.generation: Generation | None = None

    def chose(self, token: int, logprob: float, sampler_logprob: float, glance: Glance) -> None:
        assert sampler_logprob <= 0.0
        self.tokens.append(token)
        self.logprobs.append(logprob)
        self.glances.append(glance)

    def moved(self, predictions: Predictions, move: Move) -> None:
        self.moves.append(move)

    def ended(self, generation: Generation) -> None:
        assert self.generation is None
        self.generation = generation


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return tiny_language_model()


def engine(lm: LanguageModel, **settings: Any) -> LiveEngine:
    return LiveEngine(lm, **{"slots": 8, "max_new_tokens": 16, "prompt_tokens": 64, **settings})


def start(live: LiveEngine, strategies: list[Strategy], prompt: Prompt = PROMPT, tokens: int = 12) -> list[Notes]:
    notes = [Notes() for _ in strategies]
    live.start([Job(prompt, strategy) for strategy in strategies], notes, seed=3, max_new_tokens=tokens)
    return notes


def finish(live: LiveEngine) -> None:
    while live.is_busy:
        live.advance()


def expected(lm: LanguageModel, strategies: list[Strategy], prompt: Prompt = PROMPT) -> list[Generation]:
    return decode(lm, [prompt], strategies, max_new_tokens=12, seed=3)


def same(noted: list[Notes], made: list[Generation]) -> bool:
    """Up to rounding, which depends on who shares a step, each is what a study would have made."""

    def figures(one: Generation) -> list[float]:
        return [*one.logprobs, *(one.sampler_logprobs or ()), one.mean_logprob or 0.0, one.score or 0.0]

    def texts(one: Generation) -> tuple[object, ...]:
        return one.prompt_id, one.strategy, one.params, one.token_ids, one.text, one.stop_reason, one.seed

    watched = [note.generation for note in noted]
    return all(
        one is not None and texts(one) == texts(other) and np.allclose(figures(one), figures(other), atol=1e-5)
        for one, other in zip(watched, made, strict=True)
    )


def test_what_is_watched_is_what_a_study_would_make(lm: LanguageModel) -> None:
    live = engine(lm)
    notes = start(live, ARMS)
    finish(live)
    assert same(notes, expected(lm, ARMS))
    for watched, made in zip(notes, expected(lm, ARMS), strict=True):
        if made.strategy != "beam":
            assert tuple(watched.tokens) == made.token_ids
            np.testing.assert_allclose(watched.logprobs, made.logprobs, atol=1e-6)
        else:
            assert watched.moves[-1].finished


def test_a_second_user_who_comes_later_changes_nothing(lm: LanguageModel) -> None:
    live, other = engine(lm), Prompt(id="q", instruction="Two", prompt="Name two")
    first = start(live, [TopP(p=0.9), Beam(width=2)])
    live.advance()
    live.advance()
    second = start(live, [TopP(p=0.9), Greedy()], other)
    finish(live)
    assert same(first, expected(lm, [TopP(p=0.9), Beam(width=2)]))
    assert same(second, expected(lm, [TopP(p=0.9), Greedy()], other))


def test_whoever_leaves_frees_the_rows_at_any_time(lm: LanguageModel) -> None:
    live = engine(lm, slots=4)
    for steps in range(6):
        jobs = [Job(PROMPT, strategy) for strategy in (Beam(width=3), TopP(p=0.9), Greedy())]
        # The third waits for a free row.
        entry = live.start(jobs, [Notes() for _ in jobs], seed=0, max_new_tokens=12)
        for _ in range(steps):
            live.advance()
        live.stop(entry)
        live.stop(entry)
        assert not live.is_busy
    notes = start(live, ARMS)
    finish(live)
    assert same(notes, expected(lm, ARMS))


def test_one_leaves_and_the_other_stays(lm: LanguageModel) -> None:
    live = engine(lm)
    leaver = live.start([Job(PROMPT, Beam(width=4))], [Notes()], seed=0, max_new_tokens=12)
    live.advance()
    stayer = start(live, [DiverseBeam(width=4, groups=2)])
    live.advance()
    live.stop(leaver)
    finish(live)
    assert same(stayer, expected(lm, [DiverseBeam(width=4, groups=2)]))


@pytest.mark.parametrize("strategy", SEARCHES, ids=lambda one: one.name)
def test_searches_tell_every_move(lm: LanguageModel, strategy: Strategy) -> None:
    live = engine(lm)
    notes = start(live, [strategy])
    finish(live)
    made = expected(lm, [strategy])[0]
    assert same(notes, [made])
    assert len(notes[0].moves) >= made.n_tokens


def test_what_does_not_fit_is_refused_and_nothing_is_queued(lm: LanguageModel) -> None:
    live = engine(lm, slots=2, prompt_tokens=8)
    with pytest.raises(ConfigError, match=r"max_new_tokens is 17; it must be 1 to 16"):
        start(live, [Greedy()], tokens=17)
    with pytest.raises(ConfigError, match=r"a search 3 rows wide is wider than the 2 rows here"):
        start(live, [Beam(width=3)], Prompt(id="s", instruction="s", prompt="Once"))
    with pytest.raises(DataError, match=r"the prompt has \d+ tokens; here it may have 8"):
        start(live, [Greedy()], Prompt(id="l", instruction="l", prompt="long " * 30))
    assert not live.is_busy


def test_after_a_failure_the_engine_is_as_new(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    live = engine(lm)
    start(live, [Greedy()])

    def fail(*_: Any) -> None:
        raise RuntimeError("no memory")

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="no memory"):
        patch.setattr("triptych.decoding.batch.read_heads", fail)
        finish(live)
    assert not live.is_busy
    notes = start(live, [Greedy()])
    finish(live)
    assert same(notes, expected(lm, [Greedy()]))


# --- a glance, by hand ------------------------------------------------------------------------------------------------

LOGITS = torch.log(torch.tensor([[0.05, 0.5, 0.25, 0.2]]))


@pytest.mark.parametrize(
    ("strategy", "kept", "mass"),
    [
        (Greedy(), [True, False, False, False], 0.5),
        (TopK(k=3), [True, True, True, False], 0.95),
        # 0.5 + 0.25 exceeds 0.7; the token that crosses is in.
        (TopP(p=0.7), [True, True, False, False], 0.75),
        # At least half as probable as the most probable one.
        (MinP(p=0.5), [True, True, False, False], 0.75),
        (Ancestral(), [True, True, True, True], 1.0),
    ],
    ids=lambda value: value.name if isinstance(value, Strategy) else "",
)
def test_a_glance(strategy: Strategy, kept: list[bool], mass: float) -> None:
    seen = glance(read_heads(LOGITS, torch.ones(1)), 0, strategy)
    assert seen.ids == [1, 2, 3, 0]
    np.testing.assert_allclose(seen.probabilities, [0.5, 0.25, 0.2, 0.05], rtol=1e-5)
    assert seen.kept == kept
    assert seen.kept_count == sum(kept)
    assert seen.kept_mass == pytest.approx(mass, rel=1e-5)


def test_a_glance_at_a_wide_vocabulary_counts_no_further_than_it_must() -> None:
    logits = torch.zeros(1, 10_000)
    seen = glance(read_heads(logits, torch.ones(1)), 0, Ancestral())
    assert (len(seen.ids), seen.kept_count, seen.kept_mass) == (SHOWN, None, None)
    wide = glance(read_heads(logits, torch.ones(1)), 0, TopK(k=200))
    assert wide.kept_count == 200
    assert wide.kept_mass == pytest.approx(0.02)

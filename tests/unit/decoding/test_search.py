"""Searches on Markov chains: what a token predicts is a row of a matrix, so that every answer can be had by enumeration."""

import dataclasses
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from triptych.data import encode_prompt
from triptych.decoding import Beam, Contrastive, DiverseBeam, Engine, Greedy, Job, Stopping, decode
from triptych.decoding.search import (
    SEARCHES,
    BeamSearch,
    ContrastiveSearch,
    DiverseBeamSearch,
    Finished,
    Move,
    Predictions,
    Search,
    make_search,
)
from triptych.decoding.stopping import StopRules
from triptych.models import LanguageModel
from triptych.models.tiny import tiny_gpt2, tiny_language_model, tiny_llama, tiny_tokenizer
from triptych.records import FinalBeam, Prompt
from triptych.seeding import generator

OFF = Stopping(block=None, markers=())
"""No rule but EOS and length."""


@dataclass(frozen=True)
class Chain:
    """Log-probabilities of the next token given the last one; row -1 is what the prompt predicts."""

    logp: npt.NDArray[np.float32]
    eos: frozenset[int]
    limit: int
    stopping: Stopping = OFF

    @property
    def rules(self) -> StopRules:
        return StopRules(self.stopping, tiny_tokenizer(), self.eos, self.limit)

    def predictions(self, last: list[int], m: int) -> Predictions:
        rows = self.logp[last]
        ids = np.argsort(-rows, axis=1, kind="stable")[:, :m]
        return Predictions(ids, np.take_along_axis(rows, ids, axis=1), None)

    def moves(self, search: Search) -> Iterator[Move]:
        """Drives a search to its end."""
        last = [-1]
        while last:
            move = search.advance(self.predictions(last, search.head))
            assert len(move.parents) == len(move.tokens) <= search.rows
            assert all(0 <= parent < len(last) for parent in move.parents)
            assert bool(move.finished) == (not move.tokens)
            yield move
            last = move.tokens

    def run(self, search: Search) -> list[Finished]:
        *_, end = self.moves(search)
        return end.finished

    def beam(self, width: int, length_penalty: float = 0.0) -> Finished:
        (best,) = self.run(BeamSearch(Beam(width=width, length_penalty=length_penalty), self.rules))
        return best

    def beams(self, width: int, length_penalty: float = 0.0) -> list[Finished]:
        """All final beams."""
        return self.run(make_search(Beam(width=width, length_penalty=length_penalty), self.rules, keep_beams=True))

    def logprobs(self, ids: list[int]) -> list[float]:
        return [float(self.logp[a, b]) for a, b in itertools.pairwise([-1, *ids])]


def random_chain(seed: int, *, vocabulary: int = 5, n_eos: int = 1, limit: int = 4, scale: float = 1.5) -> Chain:
    rng = generator(seed, "chain")
    logits = rng.normal(0.0, scale, (vocabulary + 1, vocabulary))
    logp = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    return Chain(logp.astype(np.float32), frozenset(range(n_eos)), limit)


# --- Beam search ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scored:
    ids: list[int]
    score: float

    def value(self, penalty: float) -> float:
        return self.score / float(len(self.ids) ** penalty)

    def preference(self, penalty: float, eos: frozenset[int]) -> tuple[bool, float]:
        """The paper's rule: complete sequences first, then the score."""
        return self.ids[-1] in eos, self.value(penalty)


def every_completion(chain: Chain) -> Iterator[Scored]:
    """All sequences that end on EOS, or on a token that makes them as long as may be."""
    tokens = range(chain.logp.shape[1])
    for length in range(1, chain.limit + 1):
        for ids in itertools.product(tokens, repeat=length):
            ends = ids[-1] in chain.eos or length == chain.limit
            if ends and not any(token in chain.eos for token in ids[:-1]):
                yield Scored(list(ids), sum(chain.logprobs(list(ids))))


def textbook_beams(chain: Chain, width: int, penalty: float) -> list[Scored]:
    """Beam search as the definition has it: nothing is dropped, nothing ends early, the whole vocabulary is ranked.

    The best `width` that finished, the best first.
    """
    live, finished = [Scored([], 0.0)], []
    for length in range(1, chain.limit + 1):
        candidates = [
            Scored([*beam.ids, token], beam.score + float(chain.logp[beam.ids[-1] if beam.ids else -1, token]))
            for beam in live
            for token in range(chain.logp.shape[1])
        ]
        candidates.sort(key=lambda one: -one.score)
        over = [one.ids[-1] in chain.eos or length == chain.limit for one in candidates]
        finished += [one for one, ends in zip(candidates[:width], over, strict=False) if ends]
        live = [one for one, ends in zip(candidates, over, strict=True) if not ends][:width]
    return sorted(finished, key=lambda one: one.preference(penalty, chain.eos), reverse=True)[:width]


@pytest.mark.parametrize("penalty", [0.0, 1.0, -0.5])
@pytest.mark.parametrize("seed", range(6))
def test_a_beam_as_wide_as_the_tree_finds_the_best_completion(seed: int, penalty: float) -> None:
    chain = random_chain(seed, vocabulary=4, limit=4)
    best = max(every_completion(chain), key=lambda one: one.preference(penalty, chain.eos))
    found = chain.beam(4**4, penalty)
    assert found.ids == best.ids
    assert found.score == pytest.approx(best.score, abs=1e-6)


@pytest.mark.parametrize("penalty", [0.0, 0.7, 2.0, -0.5])
@pytest.mark.parametrize("width", [1, 2, 3, 5, 8])
def test_dropping_hopeless_beams_and_ranking_only_heads_changes_no_result(width: int, penalty: float) -> None:
    for seed in range(40):
        n_eos = 1 + seed % 2
        chain = random_chain(seed, vocabulary=3 + seed % 8, n_eos=n_eos, limit=1 + seed % 9, scale=0.5 + seed % 4)
        expected, best = textbook_beams(chain, width, penalty), chain.beam(width, penalty)
        beams = chain.beams(width, penalty)
        assert best == beams[0]  # asking for the runners-up changes nothing
        assert [beam.ids for beam in beams] == [beam.ids for beam in expected], seed
        assert [beam.score for beam in beams] == pytest.approx([beam.score for beam in expected], abs=1e-9)
        assert [beam.logprobs for beam in beams] == [chain.logprobs(beam.ids) for beam in beams]


def test_a_search_ends_once_nothing_can_win() -> None:
    # EOS at once with probability 0.9: no continuation of the rest can beat log 0.9.
    row = np.log(np.array([0.9, 0.05, 0.05], np.float32))
    chain = Chain(np.stack([row] * 4), frozenset({0}), limit=50)
    moves = list(chain.moves(BeamSearch(Beam(width=3), chain.rules)))
    assert len(moves) == 1
    found = moves[0].finished[0]
    assert (found.ids, found.stop_reason) == ([0], "eos")
    assert [*found.logprobs, found.score] == pytest.approx([np.log(0.9)] * 2)


def test_beam_search_escapes_the_greedy_garden_path() -> None:
    # From the prompt 0.6 to 1, then two tokens of 0.5 each; 0.4 to 2, then EOS for sure. Greedy: 0.6 · 0.5 · 0.5 = 0.15;
    # the best: 0.4.
    with np.errstate(divide="ignore"):
        logp = np.log(np.array([[0, 0.5, 0.5], [0, 0.5, 0.5], [1, 0, 0], [0, 0.6, 0.4]], np.float32))
    chain = Chain(logp, frozenset({0}), limit=3)
    assert chain.beam(1).ids == [1, 1, 1]
    assert chain.beam(2).ids == [2, 0]
    assert chain.beam(2).score == pytest.approx(np.log(0.4))


def test_width_one_is_greedy() -> None:
    for seed in range(20):
        chain = random_chain(seed, vocabulary=9, limit=12)
        ids: list[int] = []
        while len(ids) < chain.limit and not (ids and ids[-1] in chain.eos):
            ids.append(int(np.argmax(chain.logp[ids[-1] if ids else -1])))
        assert chain.beam(1).ids == ids


def test_length_penalty_by_hand() -> None:
    # A: EOS at once with log-probability -1, per token -1. B: three tokens of -0.5 each, sum -1.5, per token -0.5.
    logp = np.full((4, 3), -50.0, np.float32)
    logp[-1, 0], logp[-1, 1] = -1.0, -0.5
    logp[1, 2], logp[2, 0] = -0.5, -0.5
    chain = Chain(logp, frozenset({0}), limit=6)
    assert chain.beam(2, 0.0).ids == [0]
    assert chain.beam(2, 1.0).ids == [1, 2, 0]
    # -1.5 / 3^p = -1 at p = ln 1.5 / ln 3 = 0.369.
    assert chain.beam(2, 0.36).ids == [0]
    assert chain.beam(2, 0.38).ids == [1, 2, 0]
    # The score stays the plain sum.
    assert chain.beam(2, 1.0).score == pytest.approx(-1.5)


def test_ties_go_to_the_earlier_beam_and_the_lower_token() -> None:
    chain = Chain(np.full((5, 4), -np.log(4), np.float32), frozenset({9}), limit=3)
    moves = list(chain.moves(BeamSearch(Beam(width=3), chain.rules)))
    assert [(move.parents, move.tokens) for move in moves[:2]] == [([0, 0, 0], [0, 1, 2])] * 2
    assert moves[-1].finished[0].ids == [0, 0, 0]


def test_a_beam_that_was_cut_wins_only_where_none_is_complete() -> None:
    chain = Chain(np.full((5, 4), -np.log(4), np.float32), frozenset({9}), limit=3)
    assert chain.beam(2).stop_reason == "length"
    # EOS is unlikely (0.1): at once -2.30, after four tokens more. The limit of 2 cuts off beams of 2 ln 0.45 = -1.60.
    row = np.log(np.array([0.1, 0.45, 0.45], np.float32))
    chain = Chain(np.stack([row] * 4), frozenset({0}), limit=2)
    # A beam of two never sees EOS among its best.
    assert (chain.beam(2).ids, chain.beam(2).stop_reason) == ([1, 1], "length")
    beams = chain.beams(3)
    assert [(beam.ids, beam.stop_reason) for beam in beams] == [([0], "eos"), ([1, 1], "length"), ([1, 2], "length")]
    assert [beam.score for beam in beams] == pytest.approx([np.log(0.1), 2 * np.log(0.45), 2 * np.log(0.45)])
    assert chain.beam(3) == beams[0]


def test_a_complete_beam_beats_a_more_probable_one_that_repeats_itself() -> None:
    # Token 1 has 0.9 at every step and is cut at its fifth occurrence: 5 ln 0.9 = -0.53. EOS at once: ln 0.08 = -2.53.
    row = np.log(np.array([0.08, 0.9, 0.02], np.float32))
    chain = Chain(np.stack([row] * 4), frozenset({0}), limit=20, stopping=Stopping(block=1, threshold=4, markers=()))
    found = chain.beam(2)
    assert (found.ids, found.stop_reason) == ([0], "eos")
    # Alone, it is all there is.
    assert (chain.beam(1).ids, chain.beam(1).stop_reason) == ([1] * 5, "repeat")


def test_final_beams_are_as_many_as_the_width_and_sorted() -> None:
    for seed in range(30):
        chain = random_chain(seed, vocabulary=9, n_eos=1 + seed % 2, limit=3 + seed % 6)
        for width in (1, 2, 4):
            beams = chain.beams(width)
            assert len(beams) == width
            assert len({tuple(beam.ids) for beam in beams}) == width
            keys = [(beam.stop_reason == "eos", beam.score) for beam in beams]
            assert keys == sorted(keys, reverse=True)


def test_fewer_beams_than_the_width_where_there_are_no_more_completions() -> None:
    # Two tokens, one of them EOS, and a limit of 2: EOS; then 1 with EOS, and 1 with 1.
    chain = Chain(np.log(np.full((3, 2), 0.5, np.float32)), frozenset({0}), limit=2)
    assert [beam.ids for beam in chain.beams(8)] == [[0], [1, 0], [1, 1]]


def test_a_beam_that_repeats_itself_is_finished() -> None:
    # One token takes all: its fifth occurrence ends the beam. The others end after it, and no EOS is in sight.
    logp = np.full((4, 3), -9.0, np.float32)
    logp[:, 1] = -0.01
    chain = Chain(logp, frozenset({9}), limit=20, stopping=Stopping(block=1, threshold=4, markers=()))
    found = chain.beam(2)
    assert (found.ids, found.stop_reason) == ([1, 1, 1, 1, 1], "repeat")


def test_more_beams_than_the_vocabulary_has_tokens() -> None:
    chain = random_chain(1, vocabulary=3, limit=5)
    moves = list(chain.moves(BeamSearch(Beam(width=7), chain.rules)))
    assert len(moves[0].tokens) == 2


@pytest.mark.parametrize("path", ["fused", "generic"])
def test_final_beams_are_those_of_transformers_but_for_the_place_of_those_that_were_cut(path: str) -> None:
    # 24 of 320 tokens end a text, so that some beams are complete and some are cut.
    eos = frozenset(range(2, 26))
    lm = dataclasses.replace(tiny_language_model(tiny_llama(2)), eos_ids=eos)
    prompts = [Prompt(id=str(i), instruction="", prompt="x" * (i + 1)) for i in range(12)]
    beams: dict[str, list[FinalBeam]] = {}
    engine = Engine(
        lm, max_new_tokens=6, stopping=OFF, path=path, on_beams=lambda final: beams.update({final[0].prompt_id: final})
    )
    completions = {row.prompt_id: row for row in engine.run([Job(prompt, Beam(width=4)) for prompt in prompts])}
    moved = 0
    for prompt in prompts:
        ids = torch.tensor([encode_prompt(prompt.prompt or "", lm.tokenizer)])
        model: Any = lm.base
        options = {"num_beams": 4, "num_return_sequences": 4, "length_penalty": 0.0, "early_stopping": "never"}
        out = model.generate(
            ids, max_new_tokens=6, do_sample=False, eos_token_id=sorted(eos), pad_token_id=1, **options
        )[:, ids.shape[1] :]
        theirs = []
        for row in out.tolist():
            end = next((j + 1 for j, token in enumerate(row) if token in eos), len(row))
            theirs.append(tuple(row[:end]))
        complete = [row for row in theirs if row[-1] in eos]
        ours = [beam.token_ids for beam in beams[prompt.id]]
        our_complete = [row for row in ours if row[-1] in eos]
        assert our_complete[: len(complete)] == complete
        assert ours[len(our_complete) :] == [row for row in theirs if row not in complete][: 4 - len(our_complete)]
        assert completions[prompt.id].token_ids == ours[0]
        moved += ours[0] != theirs[0]
    assert 0 < moved < len(prompts)


# --- Diverse beam search ----------------------------------------------------------------------------------------------


def textbook_diverse(chain: Chain, strategy: DiverseBeam) -> list[Scored]:
    """One group after the other, step by step; no completion ends before the limit."""
    size = strategy.width // strategy.groups
    groups = [[Scored([], 0.0)] for _ in range(strategy.groups)]
    for _ in range(chain.limit):
        taken: list[int] = []
        for g, beams in enumerate(groups):
            candidates = [
                (beam.score + float(chain.logp[beam.ids[-1] if beam.ids else -1, token]), beam, token)
                for beam in beams
                for token in range(chain.logp.shape[1])
            ]
            candidates.sort(key=lambda one: strategy.penalty * taken.count(one[2]) - one[0])
            groups[g] = [Scored([*beam.ids, token], score) for score, beam, token in candidates[:size]]
            taken += [one.ids[-1] for one in groups[g]]
    best = [max(group, key=lambda one: one.score) for group in groups]
    return sorted(best, key=lambda one: -one.score)


@pytest.mark.parametrize(("width", "groups"), [(4, 4), (4, 2), (6, 2), (6, 3), (3, 1)])
@pytest.mark.parametrize("penalty", [0.0, 0.4, 3.0])
def test_diverse_beams_are_the_definition(width: int, groups: int, penalty: float) -> None:
    strategy = DiverseBeam(width=width, groups=groups, penalty=penalty)
    for seed in range(15):
        chain = random_chain(seed, vocabulary=20, n_eos=0, limit=6)
        found = chain.run(DiverseBeamSearch(strategy, chain.rules))
        expected = textbook_diverse(chain, strategy)
        assert [one.ids for one in found] == [one.ids for one in expected]
        assert [one.score for one in found] == pytest.approx([one.score for one in expected], abs=1e-9)


def test_without_a_penalty_every_group_is_an_independent_beam_search() -> None:
    for seed in range(20):
        chain = random_chain(seed, vocabulary=9, n_eos=2, limit=9)
        found = chain.run(DiverseBeamSearch(DiverseBeam(width=6, groups=3, penalty=0.0), chain.rules))
        assert found == [chain.beam(2)] * 3


def test_the_first_group_pays_nothing_and_the_others_differ() -> None:
    differing = 0
    for seed in range(20):
        chain = random_chain(seed, vocabulary=9, n_eos=1, limit=9)
        found = chain.run(DiverseBeamSearch(DiverseBeam(width=6, groups=3, penalty=5.0), chain.rules))
        assert chain.beam(2) in found
        keys = [(one.stop_reason == "eos", one.score) for one in found]
        assert keys == sorted(keys, reverse=True)
        differing += len({tuple(one.ids) for one in found}) == 3
        for one in found:
            # The penalty moves the ranking, not the score.
            assert one.score == pytest.approx(sum(chain.logprobs(one.ids)), abs=1e-6)
            assert one.logprobs == chain.logprobs(one.ids)
    # Groups that end at different steps may still end alike.
    assert differing >= 18


def test_the_penalty_by_hand() -> None:
    # Of two groups of one beam: the first takes token 0 (-0.5); the second would too, but for a penalty above 0.4.
    logp = np.tile(np.array([-0.5, -0.9, -5.0], np.float32), (4, 1))
    chain = Chain(logp, frozenset({9}), limit=2)
    for penalty, ids in ((0.3, [0, 0]), (0.5, [1, 1])):
        found = chain.run(DiverseBeamSearch(DiverseBeam(width=2, groups=2, penalty=penalty), chain.rules))
        assert [one.ids for one in found] == [[0, 0], ids]
    # A third group pays twice for what both others took, and a penalty of 5 makes even the least likely cheaper.
    found = chain.run(DiverseBeamSearch(DiverseBeam(width=3, groups=3, penalty=5.0), chain.rules))
    assert [one.ids for one in found] == [[0, 0], [1, 1], [2, 2]]


def test_the_token_that_ends_a_beam_counts_and_a_group_that_has_ended_does_not() -> None:
    # The first group ends on EOS (0.6) at once, for which the second pays, and takes the next best (0.3); alone from
    # then on, it ends too.
    logp = np.tile(np.log(np.array([0.6, 0.3, 0.1], np.float32)), (4, 1))
    chain = Chain(logp, frozenset({0}), limit=3)
    found = chain.run(DiverseBeamSearch(DiverseBeam(width=2, groups=2, penalty=9.0), chain.rules))
    assert [(one.ids, one.stop_reason) for one in found] == [([0], "eos"), ([1, 0], "eos")]


def test_a_group_that_was_cut_stands_behind_one_that_is_complete() -> None:
    # As above, but for the limit: the first group takes 1 (0.9) twice and is cut, the second pays for it and takes EOS.
    logp = np.tile(np.log(np.array([0.08, 0.9, 0.02], np.float32)), (4, 1))
    chain = Chain(logp, frozenset({0}), limit=2)
    found = chain.run(DiverseBeamSearch(DiverseBeam(width=2, groups=2, penalty=9.0), chain.rules))
    assert [(one.ids, one.stop_reason) for one in found] == [([0], "eos"), ([1, 1], "length")]


# --- Contrastive search -----------------------------------------------------------------------------------------------


def plain_contrastive(lm: LanguageModel, prompt: str, k: int, alpha: float, steps: int) -> list[int]:
    """Su et al. 2022, equation 5, with a whole forward pass for every candidate and no cache."""
    ids = encode_prompt(prompt, lm.tokenizer)
    done: list[int] = []
    for _ in range(steps):
        with torch.no_grad():
            output = lm.model(input_ids=torch.tensor([ids + done]), output_hidden_states=True)
            p, candidates = output.logits[0, -1].double().softmax(-1).topk(k)
            context = output.hidden_states[-1][0].double()
            scores = []
            for probability, token in zip(p, candidates, strict=True):
                tried = lm.model(input_ids=torch.tensor([[*ids, *done, int(token)]]), output_hidden_states=True)
                similarity = torch.cosine_similarity(tried.hidden_states[-1][0, -1].double(), context, dim=-1).max()
                scores.append((1 - alpha) * probability - alpha * similarity)
        done.append(int(candidates[int(torch.stack(scores).argmax())]))
        if done[-1] in lm.eos_ids:
            break
    return done


@pytest.mark.parametrize(("k", "alpha"), [(4, 0.6), (2, 0.9), (6, 0.3)])
@pytest.mark.parametrize(("model", "path"), [("llama", "fused"), ("llama", "generic"), ("gpt2", "generic")])
def test_contrastive_search_is_the_definition(model: str, path: str, k: int, alpha: float) -> None:
    lm = tiny_language_model(tiny_llama(2) if model == "llama" else tiny_gpt2(2))
    prompts = ["Once", "A longer prompt than that one."]
    found = decode(lm, prompts, [Contrastive(k=k, alpha=alpha)], max_new_tokens=8, stopping=OFF, path=path)
    assert [list(one.token_ids) for one in found] == [plain_contrastive(lm, prompt, k, alpha, 8) for prompt in prompts]


def test_contrastive_search_without_contrast_is_greedy() -> None:
    lm = tiny_language_model()
    for strategy in (Contrastive(k=4, alpha=0.0), Contrastive(k=1, alpha=1.0)):
        found, greedy = decode(lm, ["Hello"], [strategy, Greedy()], max_new_tokens=8, stopping=OFF)
        assert found.token_ids == greedy.token_ids
        assert found.logprobs == pytest.approx(greedy.logprobs, abs=1e-5)


def test_contrastive_search_with_more_candidates_than_tokens() -> None:
    lm = tiny_language_model()
    few, many = (
        decode(lm, ["Hello"], [Contrastive(k=k, alpha=0.2)], max_new_tokens=4, stopping=OFF)[0] for k in (260, 300)
    )
    assert few.token_ids == many.token_ids


def test_contrastive_search_asks_for_hidden_states() -> None:
    search = ContrastiveSearch(Contrastive(), random_chain(0).rules)
    with pytest.raises(TypeError, match="contrastive search needs the hidden states"):
        search.advance(random_chain(0).predictions([-1], 4))


# --- The table --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("strategy", "kind", "rows"),
    [
        (Beam(width=5), BeamSearch, 5),
        (DiverseBeam(width=6, groups=3), DiverseBeamSearch, 6),
        (Contrastive(k=3), ContrastiveSearch, 3),
    ],
)
def test_make_search(strategy: Beam | DiverseBeam | Contrastive, kind: type[Search], rows: int) -> None:
    search = make_search(strategy, random_chain(0).rules)
    assert type(search) is kind
    assert search.rows == rows
    assert set(SEARCHES) == {"beam", "diverse_beam", "contrastive"}


def test_greedy_is_no_search() -> None:
    with pytest.raises(KeyError):
        make_search(Greedy(), random_chain(0).rules)

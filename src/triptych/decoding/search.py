"""Searches: strategies in which several rows decide together which of them go on. Beam search and its relatives.

A search is told what its live rows predict and answers with a move: the rows of the next step, each as a parent and a
token. Where a row's cache lies, and that a child of another parent needs a copy of it, is the engine's business.
"""

import math
from abc import ABC, abstractmethod
from collections import Counter
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from triptych.decoding.stopping import Monitor, StopRules
from triptych.decoding.strategies import Beam, Contrastive, DiverseBeam, Strategy
from triptych.records import StopReason

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


class Finished(NamedTuple):
    """A completion that a search settled on."""

    ids: list[int]
    logprobs: list[float]
    stop_reason: StopReason
    score: float | None

    @property
    def is_complete(self) -> bool:
        """Whether the model ended it, rather than a stop rule."""
        return self.stop_reason == "eos"


class Predictions(NamedTuple):
    """What the live rows of one search predict: their most probable tokens, and where they stand."""

    ids: Ints
    """[w, m], descending in probability, ties by lower id."""
    logprobs: Floats
    """[w, m], raw log-probabilities (nats)."""
    hidden: Floats | None
    """[w, h], last hidden states, where the search asked for them; at the first call those of all prompt positions."""


class Move(NamedTuple):
    """The rows of the next step, or what the search ends with."""

    parents: list[int]
    """Index among the live rows that predicted; all 0 at the first call, when the one live row is the prompt."""
    tokens: list[int]
    finished: list[Finished]
    """Not empty once the search is over; the best first."""


class Search(ABC):
    """One search over one prompt."""

    rows: int
    """Live rows it may have at once."""
    head: int
    """Tokens of each prediction that it wants to see."""
    needs_hidden = False

    @abstractmethod
    def advance(self, predictions: Predictions) -> Move:
        """The next move. The first call gets the prompt's prediction as its only row."""


class _Hypothesis(NamedTuple):
    monitor: Monitor
    logprobs: list[float]
    score: float

    def extended(self, token: int, logprob: float) -> tuple["_Hypothesis", StopReason | None]:
        monitor = self.monitor.copy()
        reason = monitor.push(token)
        return _Hypothesis(monitor, [*self.logprobs, logprob], self.score + logprob), reason

    def finished(self, reason: StopReason) -> Finished:
        return Finished(self.monitor.ids, self.logprobs, reason, self.score)


class BeamSearch(Search):
    """Beam search over summed log-probabilities, divided by length ** `length_penalty` when completions are compared.

    Each step ranks every one-token extension of the live beams. Among the best `width` of them those that stop are
    finished; the best `width` that do not stop live on. Complete beams, which end on EOS, are preferred: those cut by
    repetition, by a marker or by the length limit come after all complete ones, whatever their scores.

    The search goes on until its `n_final` best beams are settled. A live beam that can no longer be one of them is
    dropped: sums only fall, so this changes no result, and the best beam is the same for every `n_final`.

    Source: the reproduced paper ("beams that ended (complete sequences) are preferred"). transformers with
    `early_stopping="never"` finds the same complete beams, but ranks those that the limit cut among them by score, so
    that a cut one can win there.
    """

    def __init__(self, strategy: Beam, rules: StopRules, *, n_final: int = 1) -> None:
        self.rows = strategy.width
        # As many more as there are EOS tokens, so that `width` candidates always remain to live on.
        self.head = strategy.width + len(rules.eos_ids)
        self._penalty = strategy.length_penalty
        self._limit = rules.max_new_tokens
        self._n_final = n_final
        self._live = [_Hypothesis(Monitor(rules), [], 0.0)]
        self._final: list[Finished] = []
        """The best finished beams so far, at most `n_final`, the best first."""
        self.took: list[int] = []
        """Tokens that the last move chose: of the beams that live on and of those that it ended."""

    def advance(self, predictions: Predictions) -> Move:
        return self.advance_at(predictions, np.zeros(predictions.ids.shape))

    def advance_at(self, predictions: Predictions, cost: npt.NDArray[np.float64]) -> Move:
        """The next move where candidates are ranked at a `cost` [w, m] in nats that their scores do not keep."""
        scores = np.array([[beam.score] for beam in self._live]) + predictions.logprobs.astype(np.float64) - cost
        live: list[_Hypothesis] = []
        parents: list[int] = []
        self.took = []
        for rank, (row, column) in enumerate(_descending(scores)):
            token, logprob = int(predictions.ids[row, column]), float(predictions.logprobs[row, column])
            beam, reason = self._live[row].extended(token, logprob)
            if reason is None:
                live.append(beam)
                parents.append(row)
            elif rank < self.rows:
                self._finish(beam.finished(reason))
                self.took.append(token)
            if len(live) == self.rows:
                break
        hopeful = [i for i, beam in enumerate(live) if self._can_place(beam)]
        self._live = [live[i] for i in hopeful]
        tokens = [beam.monitor.ids[-1] for beam in self._live]
        self.took += tokens
        return Move([parents[i] for i in hopeful], tokens, [] if hopeful else self._final)

    def _finish(self, candidate: Finished) -> None:
        # The sort is stable: of equals the one that finished first is the better one.
        ranked = sorted([*self._final, candidate], key=lambda beam: preference(beam, self._penalty), reverse=True)
        self._final = ranked[: self._n_final]

    def _can_place(self, beam: _Hypothesis) -> bool:
        if len(self._final) < self._n_final or not self._final[-1].is_complete:
            return True
        lengths = (len(beam.logprobs) + 1, self._limit)
        bound = max(_normalised(beam.score, length, self._penalty) for length in lengths)
        return (True, bound) > preference(self._final[-1], self._penalty)


class DiverseBeamSearch(Search):
    """`groups` beam searches of width / groups each, in lock step (Vijayakumar et al. 2018, eq. 5, Hamming diversity).

    A token costs a group `penalty` nats for every beam of an earlier group that took it at this step, in the ranking
    of this step only; scores stay sums of log-probabilities (the paper accumulates the penalty). The final beams are
    the groups' best, complete ones before those that were cut, then by score. A group stops once its best is settled,
    so that there is one final beam a group whoever asks.
    """

    def __init__(self, strategy: DiverseBeam, rules: StopRules) -> None:
        self.rows = strategy.width
        per_group = Beam(width=strategy.width // strategy.groups)
        # Earlier groups can displace as many tokens as there are beams.
        self.head = 2 * strategy.width + len(rules.eos_ids)
        self._penalty = strategy.penalty
        self._groups = [BeamSearch(per_group, rules) for _ in range(strategy.groups)]
        self._finished: dict[int, Finished] = {}
        self._sizes = [1] * strategy.groups
        self._started = False

    def advance(self, predictions: Predictions) -> Move:
        taken: Counter[int] = Counter()
        parents: list[int] = []
        tokens: list[int] = []
        next_row = 0
        for g, group in enumerate(self._groups):
            first = next_row if self._started else 0
            rows = slice(first, first + self._sizes[g])
            next_row += self._sizes[g]
            if g in self._finished:
                continue
            ids = predictions.ids[rows]
            cost = self._penalty * np.array([[taken[int(token)] for token in row] for row in ids], np.float64)
            move = group.advance_at(Predictions(ids, predictions.logprobs[rows], None), cost)
            self._sizes[g] = len(move.tokens)
            if move.finished:
                self._finished[g] = move.finished[0]
            taken.update(group.took)
            parents += [first + parent for parent in move.parents]
            tokens += move.tokens
        self._started = True
        ranked = sorted(self._finished.values(), key=preference, reverse=True)
        return Move(parents, tokens, ranked if not tokens else [])


class ContrastiveSearch(Search):
    """Contrastive search (Su et al. 2022, eq. 5): each of the k most probable tokens is tried in a row of its own.

    The token chosen maximises (1 - α)·p - α·(largest cosine between its hidden state and those of the prompt and of
    the completion so far). Log-probabilities are the model's own.
    """

    needs_hidden = True

    def __init__(self, strategy: Contrastive, rules: StopRules) -> None:
        self.rows = self.head = strategy.k
        self._alpha = strategy.alpha
        self._monitor = Monitor(rules)
        self._logprobs: list[float] = []
        self._context: Floats | None = None
        self._tried: tuple[Ints, Floats] | None = None

    def advance(self, predictions: Predictions) -> Move:
        if predictions.hidden is None:
            raise TypeError("contrastive search needs the hidden states of its rows")
        states = predictions.hidden / np.linalg.norm(predictions.hidden, axis=-1, keepdims=True)
        chosen = 0
        if self._tried is None or self._context is None:
            self._context = states
        else:
            tokens, logprobs = self._tried
            similarity = (states @ self._context.T).max(-1)
            chosen = int(np.argmax((1 - self._alpha) * np.exp(logprobs) - self._alpha * similarity))
            self._context = np.concatenate((self._context, states[chosen : chosen + 1]))
            self._logprobs.append(float(logprobs[chosen]))
            if reason := self._monitor.push(int(tokens[chosen])):
                return Move([], [], [Finished(self._monitor.ids, self._logprobs, reason, None)])
        self._tried = (predictions.ids[chosen], predictions.logprobs[chosen])
        tokens_to_try = [int(token) for token in predictions.ids[chosen]]
        return Move([chosen] * len(tokens_to_try), tokens_to_try, [])


SEARCHES: dict[str, type[Search]] = {
    Beam.name: BeamSearch,
    DiverseBeam.name: DiverseBeamSearch,
    Contrastive.name: ContrastiveSearch,
}


def make_search(strategy: Strategy, rules: StopRules, *, keep_beams: bool = False) -> Search:
    """The search that a strategy asks for; a KeyError where it is none.

    With `keep_beams` a beam search ends with all its `width` final beams, for which it goes on longer; without, it
    settles the best one alone.
    """
    if isinstance(strategy, Beam) and keep_beams:
        return BeamSearch(strategy, rules, n_final=strategy.width)
    return SEARCHES[strategy.name](strategy, rules)  # type: ignore[call-arg]


def preference(beam: Finished, length_penalty: float = 0.0) -> tuple[bool, float]:
    """What final beams are ranked by, the largest first: complete ones before those that were cut, then by score."""
    return beam.is_complete, _normalised(beam.score or 0.0, len(beam.ids), length_penalty)


def _normalised(score: float, length: int, penalty: float) -> float:
    return score / math.pow(length, penalty)


def _descending(scores: npt.NDArray[np.float64]) -> list[tuple[int, int]]:
    """(row, column) of every score, best first; ties to the lower row, then the lower column."""
    order = np.argsort(-scores, axis=None, kind="stable")
    return [divmod(int(index), scores.shape[1]) for index in order]

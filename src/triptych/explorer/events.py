"""What the page is told of a growing completion: one small object an event, one line of JSON each.

    start    the streams: a number, model, strategy and label each
    token    one token of a stream: text, log-probabilities (nats), the alternatives and what was kept of them
    beams    new nodes of a search's tree, and which leaves go on
    end      a stream's text, stop reason, and of a search its winning path
    done | error   the last one

Texts are neutralised here; a token that ends inside a character has no text, and the next one carries it. Not here:
when events are made (`triptych.decoding.watching`), and how they travel (`playground`).
"""

import codecs
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, final

from triptych.decoding.search import SEARCHES, Move, Predictions
from triptych.decoding.watching import Glance
from triptych.records import Generation
from triptych.reports.pieces import piece_bytes
from triptych.reports.safe_text import neutralise

Event = dict[str, Any]
MAX_TEXT = 20_000
DIGITS = 4


@final
class TextStream:
    """Token pieces to text, a whole character at a time."""

    def __init__(self, pieces: Mapping[int, str]) -> None:
        self._pieces = pieces
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        """The text that the token completes: empty while a character is unfinished."""
        return neutralise(self._decoder.decode(piece_bytes(self._pieces.get(token, f"⟨{token}⟩"))))


@final
class Painter:
    """Watches one completion and emits its events; one a stream."""

    def __init__(self, emit: Callable[[Event], None], stream: int, pieces: Mapping[int, str]) -> None:
        self._emit = emit
        self._stream = stream
        self._pieces = pieces
        self._text = TextStream(pieces)
        self._index = 0
        self._tree = Tree()

    def chose(self, token: int, logprob: float, sampler_logprob: float, glance: Glance) -> None:
        shown = zip(glance.ids, glance.probabilities, glance.kept, strict=True)
        self._emit(
            {
                "type": "token",
                "stream": self._stream,
                "index": self._index,
                "id": token,
                "text": self._text.push(token),
                "logprob": _rounded(logprob),
                "sampler_logprob": _rounded(sampler_logprob),
                "kept_count": glance.kept_count,
                "kept_mass": _rounded(glance.kept_mass),
                "alternatives": [{"text": self._piece(one), "p": _rounded(p), "kept": kept} for one, p, kept in shown],
            }
        )
        self._index += 1

    def moved(self, predictions: Predictions, move: Move) -> None:
        if not move.tokens:
            return
        nodes = self._tree.grow(predictions, move)
        self._emit(
            {
                "type": "beams",
                "stream": self._stream,
                "step": self._index,
                "nodes": [self._node(node) for node in nodes],
                "live": list(self._tree.live),
            }
        )
        self._index += 1

    def ended(self, generation: Generation) -> None:
        path = None
        if generation.strategy in SEARCHES:
            path, new = self._tree.path(generation.token_ids, generation.logprobs)
            if new:
                nodes = [self._node(node) for node in new]
                self._emit({"type": "beams", "stream": self._stream, "step": self._index, "nodes": nodes, "live": []})
        text = TextStream(self._pieces)
        pairs = zip(generation.token_ids, generation.logprobs, strict=True)
        tokens = [{"text": text.push(token), "logprob": _rounded(logprob)} for token, logprob in pairs]
        self._emit(
            {
                "type": "end",
                "stream": self._stream,
                "stop_reason": generation.stop_reason,
                "text": neutralise(generation.text[:MAX_TEXT]),
                "n_tokens": generation.n_tokens,
                "mean_logprob": _rounded(generation.mean_logprob),
                "score": _rounded(generation.score),
                "path": path,
                "tokens": None if path is None else tokens,
            }
        )

    def _piece(self, token: int) -> str:
        return TextStream(self._pieces).push(token) or "⟨…⟩"

    def _node(self, node: int) -> Event:
        parent, token, logprob, score = self._tree.nodes[node]
        text = self._piece(token)
        return {"node": node, "parent": parent, "text": text, "logprob": _rounded(logprob), "score": _rounded(score)}


@final
class Tree:
    """Everything a search has tried: nodes are numbered from 0, the prompt is no node."""

    def __init__(self) -> None:
        self.nodes: list[tuple[int | None, int, float, float]] = []
        """Parent, token, log-probability, and the sum of these from the prompt (nats)."""
        self.live: list[int] = []
        """The leaves that the search goes on with, in its order."""
        self._texts: dict[tuple[int, ...], int] = {}
        self._prefixes: list[tuple[int, ...]] = []

    def grow(self, predictions: Predictions, move: Move) -> list[int]:
        """Adds the rows of the next step; their nodes."""
        before = self.live
        self.live = []
        for row, token in zip(move.parents, move.tokens, strict=True):
            column = int((predictions.ids[row] == token).argmax())
            # At the first step the one row is the prompt.
            parent = before[row] if before else None
            self.live.append(self._add(parent, token, float(predictions.logprobs[row, column])))
        return list(self.live)

    def path(self, tokens: Sequence[int], logprobs: Sequence[float]) -> tuple[list[int], list[int]]:
        """The nodes of a finished completion, and those of them that had to be added: what ended was no row."""
        known = len(tokens)
        while known and tuple(tokens[:known]) not in self._texts:
            known -= 1
        node = self._texts[tuple(tokens[:known])] if known else None
        new = []
        for token, logprob in zip(tokens[known:], logprobs[known:], strict=True):
            node = self._add(node, token, logprob)
            new.append(node)
        path = []
        while node is not None:
            path.append(node)
            node = self.nodes[node][0]
        return path[::-1], new

    def _add(self, parent: int | None, token: int, logprob: float) -> int:
        before = () if parent is None else self._prefixes[parent]
        score = logprob + (0.0 if parent is None else self.nodes[parent][3])
        self.nodes.append((parent, token, logprob, score))
        self._prefixes.append((*before, token))
        self._texts[self._prefixes[-1]] = len(self.nodes) - 1
        return len(self.nodes) - 1


def _rounded(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else round(value, DIGITS)

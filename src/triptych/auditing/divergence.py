"""How far a checkpoint has moved from its base: perplexity and exact KL, where in the text, and on which tokens.

Read tokens in, records out. Tokens of one prompt belong together: every interval is over prompts. Not here: reading.
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np

from triptych.auditing.paired import About, by_model
from triptych.auditing.records import BASE, AuditRecord, ReadToken, TextSet
from triptych.records import Estimate
from triptych.stats import bare, clustered_bootstrap, exponential

MOVED_TOKENS = 12
"""Tokens that are listed: those on which most of the divergence falls."""

MIN_OCCURRENCES = 3
"""Of a token that is listed."""

NO_SHARE_INTERVAL = "a share of the total, of tokens chosen for it"


def divergence(tokens: Sequence[ReadToken], *, seed: int) -> list[AuditRecord]:
    """The records of `divergence.json`.

        perplexity = exp(-Σ log π / Σ 1),  KL = Σ_v π(v) (log π(v) - log π_ref(v)),
        k1 = log π - log π_ref,  k3 = r - 1 - log r with r = π_ref / π        at the sampled token

    over the tokens of held-out chosen answers (EOS counted; perplexity, KL) and of own responses (KL, k1, k3), which
    weigh by their tokens. Perplexities are compared on the same tokens: their ratio is the exponential of the mean
    difference of negative log-probabilities, and exactly 1 where both are the same model. k1 and k3 are unbiased for
    the KL where responses are drawn at temperature 1, as here (Schulman 2020). `kl_floor` is the base's KL to itself
    where each text is read in a pass of its own: what rounding alone makes of it.
    """
    records: list[AuditRecord] = []
    for model, own in by_model(tokens, lambda token: token.model).items():
        chosen, written = ([token for token in own if token.text == text] for text in ("chosen", "own"))
        records += _on_chosen(model, chosen, seed)
        records += _on_own(model, written, seed)
    return records


def _on_chosen(model: str, tokens: Sequence[ReadToken], seed: int) -> Iterator[AuditRecord]:
    yield About(model, "perplexity").record(exponential(_mean([-t.logprob for t in tokens], tokens, seed)))
    yield About(model, "nll").record(_mean([-t.logprob for t in tokens], tokens, seed))
    if model == BASE:
        yield About(model, "kl_floor").record(_mean([t.kl for t in tokens], tokens, seed))
    else:
        rise = _mean([t.reference_logprob - t.logprob for t in tokens], tokens, seed)
        yield About(model, "nll").record(rise, against=BASE)
        yield About(model, "perplexity_ratio").record(exponential(rise), against=BASE)
        yield About(model, "kl_chosen").record(_mean([t.kl for t in tokens], tokens, seed))
        yield from _by_position(model, "chosen", tokens, seed)


def _on_own(model: str, tokens: Sequence[ReadToken], seed: int) -> Iterator[AuditRecord]:
    if model == BASE or not tokens:
        return
    ratios = [t.reference_logprob - t.logprob for t in tokens]
    yield About(model, "kl_own").record(_mean([t.kl for t in tokens], tokens, seed))
    yield About(model, "k1_own").record(_mean([-ratio for ratio in ratios], tokens, seed))
    yield About(model, "k3_own").record(_mean([math.expm1(ratio) - ratio for ratio in ratios], tokens, seed))
    yield from _by_position(model, "own", tokens, seed)
    yield from _by_token(model, tokens, seed)


def _mean(values: Sequence[float], tokens: Sequence[ReadToken], seed: int) -> Estimate:
    return clustered_bootstrap(values, [token.prompt_id for token in tokens], seed=seed)


def position_range(position: int) -> str:
    """0, 1, 2–3, 4–7, 8–15, …: ranges that double."""
    if position < 2:
        return str(position)
    low = 1 << (position.bit_length() - 1)
    return f"{low}–{2 * low - 1}"


def _by_position(model: str, text: TextSet, tokens: Sequence[ReadToken], seed: int) -> Iterator[AuditRecord]:
    ordered = sorted(tokens, key=lambda token: token.position)
    for where, part in by_model(ordered, lambda token: position_range(token.position)).items():
        about = About(model, f"kl_{text}_by_position", where)
        yield about.record(_mean([token.kl for token in part], part, seed))


def _by_token(model: str, tokens: Sequence[ReadToken], seed: int) -> Iterator[AuditRecord]:
    """The tokens that carry most of the divergence, by the text that was written where it was."""
    total = sum(token.kl for token in tokens)
    if total == 0.0:
        return
    groups = by_model(tokens, lambda token: token.piece)
    sums = {piece: sum(t.kl for t in part) for piece, part in groups.items() if len(part) >= MIN_OCCURRENCES}
    for piece in sorted(sums, key=lambda piece: -sums[piece])[:MOVED_TOKENS]:
        part = groups[piece]
        share = bare(sums[piece] / total, len(part), NO_SHARE_INTERVAL)
        yield About(model, "kl_own_share_by_token", piece).record(share)
        yield About(model, "kl_own_by_token", piece).record(_mean([t.kl for t in part], part, seed))
        moved = [t.logprob - t.reference_logprob for t in part]
        yield About(model, "log_ratio_by_token", piece).record(_mean(moved, part, seed))


def own_kl(tokens: Sequence[ReadToken]) -> dict[tuple[str, str], float]:
    """(model, prompt) → mean KL of its own response: what shows a divergence."""
    sums: dict[tuple[str, str], list[float]] = {}
    for token in tokens:
        if token.text == "own":
            sums.setdefault((token.model, token.prompt_id), []).append(token.kl)
    return {key: float(np.mean(values)) for key, values in sums.items()}

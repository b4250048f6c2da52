"""The verdicts on the paper's statements about decoding.

A verdict needs two things: a 95 % interval that leaves out 0, and a p-value of at most 0.05 after Holm's correction
over all statements that this run could test. `agrees` where the sign is the paper's, `disagrees` where it is the
opposite, else `undecided`: a point estimate alone decides nothing.

Not here: the statements and how each is tested (`statements`), the numbers (`contrasts`).
"""

from collections.abc import Sequence

from triptych.decoding.arms import beams_by_arm, by_arm
from triptych.decoding.contrasts import Evidence
from triptych.decoding.measures import Rewards
from triptych.decoding.statements import STATEMENTS, Finding, NotTested, Statement
from triptych.records import Claim, Estimate, FinalBeam, Generation, Verdict
from triptych.stats import holm

ALPHA = 0.05

SMALLEST_SHOWN = 1e-4
"""Smaller p-values say no more than that."""


def judge_claims(
    generations: Sequence[Generation],
    rewards: Rewards | None = None,
    *,
    beams: Sequence[FinalBeam] = (),
    seed: int = 0,
    fixed_length: int = 20,
) -> list[Claim]:
    """Every statement of `STATEMENTS` with its verdict, in order.

    The completions are those of arms that ran on the same prompts. `rewards` and `fixed_length` (the
    `length`) as in `measure_arms`; `beams` are the final beams of the searches.
    """
    evidence = Evidence(by_arm(generations), rewards, seed, fixed_length, beams_by_arm(beams))
    results = [statement.test(evidence) for statement in STATEMENTS]
    tested = [result.contrast.p for result in results if isinstance(result, Finding)]
    adjusted = iter(holm([p for p in tested if p is not None]))
    n_tests = sum(p is not None for p in tested)
    claims = []
    for statement, result in zip(STATEMENTS, results, strict=True):
        p = next(adjusted) if isinstance(result, Finding) and result.contrast.p is not None else None
        claims.append(_claim(statement, result, p, n_tests))
    return claims


def verdict_of(estimate: Estimate, p_adjusted: float | None, sign: int) -> Verdict:
    """The verdict that an interval and a corrected p-value allow."""
    if estimate.low is None or estimate.high is None or p_adjusted is None or p_adjusted > ALPHA:
        return "undecided"
    if estimate.low <= 0.0 <= estimate.high:
        return "undecided"
    return "agrees" if (estimate.low > 0.0) == (sign > 0) else "disagrees"


def _claim(statement: Statement, result: Finding | NotTested, p_adjusted: float | None, n_tests: int) -> Claim:
    if isinstance(result, NotTested):
        nothing = Estimate(mean=None, low=None, high=None, n=0, n_clusters=0, method="not tested")
        verdict: Verdict = "not tested"
        estimate, explanation = nothing, result.reason
    else:
        estimate = result.contrast.estimate
        verdict = verdict_of(estimate, p_adjusted, statement.sign)
        explanation = f"{result.detail} {_decision(estimate, p_adjusted, n_tests)}"
    return Claim(
        claim=statement.claim,
        where=statement.where,
        quantity=statement.quantity,
        estimate=estimate,
        verdict=verdict,
        explanation=explanation,
    )


def _decision(estimate: Estimate, p_adjusted: float | None, n_tests: int) -> str:
    if p_adjusted is None:
        return f"Nothing can be decided ({estimate.method})."
    p = f"p = {p_adjusted:.2g}" if p_adjusted >= SMALLEST_SHOWN else f"p < {SMALLEST_SHOWN:g}"
    corrected = f"{p} after Holm's correction over the {n_tests} statements tested"
    if estimate.low is not None and estimate.high is not None and estimate.low <= 0.0 <= estimate.high:
        return f"The 95 % interval includes 0; {corrected}."
    if p_adjusted > ALPHA:
        return f"The 95 % interval leaves out 0, but {corrected}: too many statements for so few prompts."
    return f"The 95 % interval leaves out 0; {corrected}."

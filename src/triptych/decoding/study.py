"""The decoding panel: from a configuration to `decoding/` in a run directory.

    decoding   generations.parquet, beams.parquet (where a beam search ran), pieces.json, costs.json
    scoring    scores.parquet (where a reward model is configured)
    measuring  diversity.json, claims.json, frontier.json

Each is a stage that is done once. Not here: what is planned (`plan`), made (`completions`), scored (`scoring`) and
measured (`measures`, `claims`, `frontier`).
"""

from collections.abc import Callable

from triptych.data.split import Split
from triptych.decoding.claims import judge_claims
from triptych.decoding.completions import BEAMS, GENERATIONS, make_completions
from triptych.decoding.frontier import build_frontier
from triptych.decoding.measures import measure_arms
from triptych.decoding.plan import DecodingConfig, compared_arms, frontier_arms
from triptych.decoding.scoring import SCORES, try_load_reward_model, write_scores, write_unscored
from triptych.decoding.table import read_beams, read_generations, read_rewards
from triptych.files import write_records_json
from triptych.models import LanguageModel
from triptych.runs import RunDirectory

MEASURES = "decoding/diversity.json"
CLAIMS = "decoding/claims.json"
FRONTIER = "decoding/frontier.json"


def run_decoding(
    load_model: Callable[[], LanguageModel],
    config: DecodingConfig,
    run: RunDirectory,
    split: Callable[[], Split],
    *,
    seed: int,
    show_progress: bool = True,
) -> bool:
    """Runs the panel's stages that are not done yet; whether there were any.

    The model is loaded only where completions are missing. A reward model that cannot be loaded is no error: the run
    warns, goes on unscored, and tries again the next time.

    Raises `DataError` for prompts that cannot be read or do not fit the model, and what loading the model raises.
    """
    did_work = False
    if not run.is_done("decoding"):
        with run.stage("decoding"):
            make_completions(load_model, config, run, split(), seed=seed, show_progress=show_progress)
        did_work = True
    if config.reward_model is not None and not run.is_done("scoring"):
        did_work |= _score(config.reward_model, run, show_progress)
    if did_work or not run.is_done("measuring"):
        with run.stage("measuring"):
            _measure(config, run, seed)
        did_work = True
    return did_work


def _score(spec: str, run: RunDirectory, show_progress: bool) -> bool:
    """Scores the completions; whether anything came of it."""
    reward = try_load_reward_model(spec, run)
    if reward is None:
        if (run.path / SCORES).exists():
            return False
        write_unscored(run, spec)
        return True
    # What was measured without scores does not count any more, even if this process dies on the way.
    run.reopen("measuring", "report")
    with run.stage("scoring"):
        write_scores(run, reward, spec, show_progress=show_progress)
    return True


def _measure(config: DecodingConfig, run: RunDirectory, seed: int) -> None:
    generations = read_generations(run.path / GENERATIONS)
    scores = run.path / SCORES
    rewards = read_rewards(scores) if config.reward_model is not None and scores.exists() else None
    compared, on_frontier = compared_arms(config), frontier_arms(config)
    main = [row for row in generations if (row.strategy, row.params) in compared]
    tuned = [row for row in generations if (row.strategy, row.params) in on_frontier]
    length = config.fixed_length
    write_records_json(run.path / MEASURES, measure_arms(main, rewards, seed=seed, length=length))
    beams = read_beams(run.path / BEAMS)
    claims = judge_claims(main, rewards, beams=beams, seed=seed, fixed_length=length)
    write_records_json(run.path / CLAIMS, claims)
    points = build_frontier(tuned, rewards, reward_model=config.reward_model, seed=seed)
    write_records_json(run.path / FRONTIER, points)

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from triptych.errors import DataError, InputError, MissingInputError
from triptych.reports import build_report
from triptych.reports.arms import make_arm
from triptych.reports.glossary import describe, in_order
from triptych.reports.inputs import CompletionKey, read_decoding

MakeRun = Callable[..., Path]


def test_all_files_meet_in_the_same_arms(built: Path) -> None:
    run = read_decoding(built)
    arm = make_arm("top_p", {"p": 0.9}, 0.8)
    assert len(run.arms) == 6  # greedy, beam and two sweeps of two temperatures
    assert run.n_completions == 4 * (2 + 4 * 2)  # 4 prompts; one sample of the fixed arms, two of the swept
    assert {arm for arm, _, _ in run.measures} == set(run.arms)
    assert {arm for arm, _ in run.frontier} <= set(run.arms)
    assert run.n_tuning == 0
    assert run.rewards[CompletionKey("p000", arm, 0)][0].model == "some/reward-model"
    assert run.reward_models == ["some/reward-model"]


def test_optional_files_may_be_absent(built_bare: Path) -> None:
    run = read_decoding(built_bare)
    assert (run.claims, run.frontier, run.costs, run.rewards, run.pieces) == ((), (), {}, {}, None)
    assert run.beam_leads == {}


def test_the_lead_of_the_best_beam_is_read_from_the_final_beams(built: Path) -> None:
    ((arm, leads),) = read_decoding(built).beam_leads.items()
    assert arm.strategy == "beam"
    assert [lead is not None and lead.gap for lead in leads] == pytest.approx([0.5] * 4)


def test_a_missing_value_is_not_measured_rather_than_zero(built_bare: Path) -> None:
    run = read_decoding(built_bare)
    estimate = run.measure(run.arms[0], "reward")
    assert estimate is not None
    assert estimate.mean is None
    assert not run.measured(run.arms[0], "reward")
    assert run.measure(run.arms[0], "no_such_metric") is None
    assert run.sweep(run.arms, "reward") == []


@pytest.mark.parametrize("name", ["generations.parquet", "diversity.json"])
def test_a_missing_file_is_named_with_the_remedy(make_run: MakeRun, tmp_path: Path, name: str) -> None:
    run_dir = make_run(tmp_path / "run", hostile=False)
    (run_dir / "decoding" / name).unlink()
    with pytest.raises(MissingInputError, match=f"{name} is missing.*run the study again"):
        build_report(run_dir)


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match="no run directory"):
        build_report(tmp_path)
    with pytest.raises(MissingInputError, match="no run directory"):
        build_report(tmp_path / "nowhere")


def test_a_run_without_a_panel_is_refused(make_run: MakeRun, tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run", hostile=False)
    (run_dir / "decoding").rename(tmp_path / "elsewhere")
    with pytest.raises(MissingInputError, match="no finished panel"):
        build_report(run_dir)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("diversity.json", "[{"),
        ("diversity.json", '[{"strategy": "greedy"}]'),
        ("claims.json", '[{"claim": 1}]'),
        ("frontier.json", "{}"),
        ("costs.json", "[1]"),
        ("costs.json", '{"seconds": [1]}'),
        ("pieces.json", "[]"),
        ("pieces.json", '{"x": "y"}'),
        ("generations.parquet", "no parquet"),
        ("scores.parquet", "no parquet"),
    ],
)
def test_a_broken_file_is_named(make_run: MakeRun, tmp_path: Path, name: str, content: str) -> None:
    run_dir = make_run(tmp_path / "run", hostile=False)
    (run_dir / "decoding" / name).write_text(content)
    with pytest.raises(InputError, match=name):
        read_decoding(run_dir)


def test_a_missing_column_is_named(make_run: MakeRun, tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run", hostile=False)
    path = run_dir / "decoding" / "generations.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["score", "n_tokens"]), path)
    with pytest.raises(DataError, match="no column n_tokens, score"):
        read_decoding(run_dir)


def test_no_completion_at_all_is_refused(make_run: MakeRun, tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run", hostile=False)
    path = run_dir / "decoding" / "generations.parquet"
    pq.write_table(pq.read_schema(path).empty_table(), path)
    with pytest.raises(DataError, match="holds no completion"):
        read_decoding(run_dir)


def test_single_precision_columns_make_no_new_arms(make_run: MakeRun, tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run", hostile=False)
    path = run_dir / "decoding" / "generations.parquet"
    table = pq.read_table(path)
    place = table.column_names.index("temperature")
    pq.write_table(table.set_column(place, "temperature", table["temperature"].cast(pa.float32())), path)
    run = read_decoding(run_dir)
    assert {arm for arm, _, _ in run.measures} == set(run.arms)


def test_every_documented_metric_is_described() -> None:
    named = ["mean_logprob", "sampler_mean_logprob", "self_bleu", "tokens", "words", "seq_rep_3", "max_ngram_count"]
    built_up = ["distinct_1", "ead_1", "distinct_2_at_20", "stop_eos", "stop_repeat", "stop_marker", "stop_length"]
    for metric in [*named, *built_up, "reward"]:
        assert "Not described" not in describe(metric).definition
        assert "not described" not in describe(metric).definition
    assert describe("new_thing").label == "new thing"
    assert describe("distinct_2_at_20").label == "Distinct-2 at 20 words"


def test_metrics_stand_in_a_fixed_order() -> None:
    shuffled = [("new_thing", "arm"), ("distinct_2", "within"), ("distinct_2", "across"), ("mean_logprob", "arm")]
    assert in_order(shuffled) == [shuffled[3], shuffled[2], shuffled[1], shuffled[0]]  # type: ignore[arg-type]


def test_settings_tried_for_the_frontier_alone_are_no_arms(make_run: MakeRun, tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run", hostile=False)
    path = run_dir / "decoding" / "diversity.json"
    kept = [entry for entry in json.loads(path.read_text()) if entry["strategy"] != "top_k"]
    path.write_text(json.dumps(kept))
    run = read_decoding(run_dir)
    assert {arm.strategy for arm in run.arms} == {"greedy", "beam", "top_p"}
    assert run.n_tuning == 4 * 2 * 2  # 4 prompts, 2 temperatures, 2 samples
    path.write_text("[]")
    with pytest.raises(DataError, match="measures no arm"):
        read_decoding(run_dir)


def test_costs_are_read_as_they_are(built: Path) -> None:
    costs = json.loads((built / "decoding" / "costs.json").read_text())
    assert read_decoding(built).costs == costs

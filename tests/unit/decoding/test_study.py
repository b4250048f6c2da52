import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from triptych.config import apply_overrides, parse_config
from triptych.decoding import Engine, Job, completions, scoring
from triptych.decoding.plan import DecodingConfig
from triptych.decoding.study import run_decoding
from triptych.decoding.table import generations_of, generations_table, read_generations
from triptych.errors import DataError
from triptych.files import read_json_lines, read_records_json
from triptych.models import LanguageModel
from triptych.models.tiny import save_tiny, tiny_bert_reward, tiny_language_model, tiny_tokenizer
from triptych.records import ArmMeasure, Claim, FrontierPoint, Generation
from triptych.runs import RunDirectory

TOP_P = "top_p:p=0.9,temperature=[0.5,1.0]"

CONTRACT = {
    "prompt_id": "string",
    "prompt": "string",
    "instruction": "string",
    "input": "string",
    "strategy": "string",
    "params": "string",
    "temperature": "double",
    "sample": "int32",
    "text": "string",
    "raw_text": "string",
    "token_ids": "list<element: int32>",
    "logprobs": "list<element: float>",
    "sampler_logprobs": "list<element: float>",
    "mean_logprob": "double",
    "n_tokens": "int32",
    "stop_reason": "string",
    "score": "double",
    "seed": "int64",
    "category": "string",
}


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return tiny_language_model()


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    return write_prompts(tmp_path)


def write_prompts(folder: Path) -> Path:
    path = folder / "prompts.jsonl"
    rows = [
        {"id": f"q{i}", "instruction": f"Name {i} things.", "input": "Soon." if i == 1 else "", "category": "factual"}
        for i in range(4)
    ]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def require_same(first: Path, second: Path) -> None:
    """The same completions in two runs; log-probabilities but for rounding, which the shape of the batch moves."""
    ours, theirs = (read_generations(out / "decoding" / "generations.parquet") for out in (first, second))
    rounded = ("logprobs", "sampler_logprobs", "mean_logprob", "score")
    for one, other in zip(ours, theirs, strict=True):
        assert one.model_dump(exclude=set(rounded)) == other.model_dump(exclude=set(rounded))
        for name in rounded:
            assert getattr(one, name) == pytest.approx(getattr(other, name), abs=1e-5)


@pytest.fixture
def config(prompts: Path) -> DecodingConfig:
    return make_config(prompts)


def make_config(prompts: Path, *overrides: str) -> DecodingConfig:
    base = {
        "prompts": str(prompts),
        "max_new_tokens": 12,
        "strategies": ["greedy", "beam:width=2", TOP_P],
        "within": {"strategies": ["top_p:p=0.9,temperature=1.0"], "samples": 3, "prompts": 2},
        "frontier": {"strategies": ["top_k:k=5,temperature=[0.5,1.0]", TOP_P], "prompts": 3},
        "fixed_length": 3,
        "stopping": {"block": 1, "threshold": 1, "markers": ["### Instruction"]},
    }
    return parse_config(DecodingConfig, apply_overrides(base, overrides), where="test")


def decode(out: Path, config: DecodingConfig, load: Callable[[], LanguageModel], seed: int = 0) -> bool:
    resolved = {"decoding": config.model_dump(mode="json")}
    with RunDirectory.open(out, command=["test"], config=resolved, seed=seed) as run:
        return run_decoding(load, config, run, seed=seed, show_progress=False)


def no_model() -> LanguageModel:
    raise AssertionError("the model was loaded")


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory, lm: LanguageModel) -> Path:
    """A finished run that tests look at and do not change."""
    folder = tmp_path_factory.mktemp("finished")
    assert decode(folder / "run", make_config(write_prompts(folder)), lambda: lm)
    return folder / "run"


class TestFiles:
    def test_the_table_has_the_contract_s_columns(self, out: Path) -> None:
        schema = pq.read_schema(out / "decoding" / "generations.parquet")
        assert {field.name: str(field.type) for field in schema} == CONTRACT

    def test_rows_stand_prompt_by_prompt_in_the_order_of_the_plan(self, out: Path) -> None:
        rows = read_generations(out / "decoding" / "generations.parquet")
        ids = list(dict.fromkeys(row.prompt_id for row in rows))
        assert sorted(ids) == ["q0", "q1", "q2", "q3"]
        first = [(row.strategy, row.temperature, row.sample) for row in rows if row.prompt_id == ids[0]]
        assert first == [
            ("greedy", None, 0),
            ("beam", None, 0),
            ("top_p", 0.5, 0),
            ("top_p", 1.0, 0),
            ("top_p", 1.0, 1),
            ("top_p", 1.0, 2),
            ("top_k", 0.5, 0),
            ("top_k", 1.0, 0),
        ]
        assert [row.prompt_id for row in rows] == sorted((row.prompt_id for row in rows), key=ids.index)
        assert len(rows) == 2 * 8 + 6 + 4

    def test_rows_keep_what_a_generation_holds(self, out: Path) -> None:
        table = pq.read_table(out / "decoding" / "generations.parquet")
        assert set(table["category"].to_pylist()) == {"factual"}
        for row in generations_of(table):
            assert row.n_tokens == len(row.token_ids) == len(row.logprobs)
            assert row.mean_logprob == pytest.approx(sum(row.logprobs) / row.n_tokens, rel=1e-5)
            assert (row.sampler_logprobs is None) == (row.strategy == "beam")
            assert row.prompt.endswith("\nAnswer:\n")

    def test_there_is_a_piece_for_every_token(self, out: Path) -> None:
        rows = read_generations(out / "decoding" / "generations.parquet")
        pieces = json.loads((out / "decoding" / "pieces.json").read_text("ascii"))
        assert {str(token) for row in rows for token in row.token_ids} == set(pieces)

    def test_measures_are_about_the_main_arms_and_the_frontier_about_its_own(self, out: Path) -> None:
        measures = read_records_json(out / "decoding" / "diversity.json", ArmMeasure)
        assert {measure.strategy for measure in measures} == {"greedy", "beam", "top_p"}
        assert {measure.scope for measure in measures} == {"arm", "across", "within"}
        assert any(measure.metric == "distinct_2_at_3" for measure in measures)
        points = read_records_json(out / "decoding" / "frontier.json", FrontierPoint)
        assert {point.strategy for point in points} == {"top_k", "top_p"}
        assert {point.quality.n for point in points} == {3}
        assert any(point.on_frontier for point in points)
        assert len(read_records_json(out / "decoding" / "claims.json", Claim)) > 10

    def test_costs_add_up(self, out: Path) -> None:
        costs = json.loads((out / "decoding" / "costs.json").read_text())
        rows = read_generations(out / "decoding" / "generations.parquet")
        assert costs["rows"] == len(rows)
        assert costs["useful_tokens"] == sum(row.n_tokens for row in rows)
        assert costs["tokens"] >= costs["useful_tokens"]
        assert costs["seconds"] > 0

    def test_nothing_temporary_is_left(self, out: Path) -> None:
        assert sorted(path.name for path in (out / "decoding").iterdir()) == [
            "claims.json",
            "costs.json",
            "diversity.json",
            "frontier.json",
            "generations.parquet",
            "pieces.json",
        ]


def test_the_same_seed_gives_the_same_completions_and_another_does_not(
    tmp_path: Path, config: DecodingConfig, lm: LanguageModel
) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        decode(tmp_path / name, config, lambda: lm, seed)
    first, again, other = (pq.read_table(tmp_path / name / "decoding" / "generations.parquet") for name in "abc")
    assert first.equals(again)
    assert not first.equals(other)


def test_a_table_gives_back_what_went_in(make_completion: Callable[..., Generation]) -> None:
    rows = [
        make_completion("a", "beam", {"width": 4}, mean_logprob=-0.5),
        make_completion("a", "top_p", {"p": 0.9, "temperature": 0.8}, mean_logprob=None, text=""),
    ]
    assert generations_of(generations_table(rows, None)) == rows


class Interrupted(Engine):
    """An engine whose user loses patience after some completions."""

    patience = 0

    def run(self, jobs: Iterable[Job]) -> Iterator[Generation]:
        for count, generation in enumerate(super().run(jobs)):
            if count >= self.patience:
                raise KeyboardInterrupt
            yield generation


class Counting(Engine):
    """An engine that counts what it is asked for."""

    asked: list[str]

    def run(self, jobs: Iterable[Job]) -> Iterator[Generation]:
        wanted = list(jobs)
        Counting.asked = [job.prompt.id for job in wanted]
        yield from super().run(wanted)


class TestResuming:
    def test_a_finished_run_does_nothing(self, tmp_path: Path, config: DecodingConfig, lm: LanguageModel) -> None:
        assert decode(tmp_path / "run", config, lambda: lm)
        before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / "decoding").iterdir()}
        assert not decode(tmp_path / "run", config, no_model)
        assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / "decoding").iterdir()}

    def test_an_interrupted_run_goes_on_to_the_same_completions(
        self, tmp_path: Path, config: DecodingConfig, lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        decode(tmp_path / "whole", config, lambda: lm)
        monkeypatch.setattr(completions, "Engine", Interrupted)
        monkeypatch.setattr(Interrupted, "patience", 20)
        with pytest.raises(KeyboardInterrupt):
            decode(tmp_path / "run", config, lambda: lm)
        kept = list((tmp_path / "run" / "decoding" / "parts").rglob("*.parquet"))
        assert 0 < len(kept) < 4
        assert not (tmp_path / "run" / "decoding" / "generations.parquet").exists()

        monkeypatch.setattr(completions, "Engine", Counting)
        assert decode(tmp_path / "run", config, lambda: lm)
        assert len(set(Counting.asked)) == 4 - len(kept)
        require_same(tmp_path / "whole", tmp_path / "run")
        costs = [json.loads((tmp_path / name / "decoding" / "costs.json").read_text()) for name in ("whole", "run")]
        assert costs[0]["rows"] == costs[1]["rows"]

    def test_parts_of_another_model_are_not_gone_on_with(
        self, tmp_path: Path, config: DecodingConfig, lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(completions, "Engine", Interrupted)
        monkeypatch.setattr(Interrupted, "patience", 20)
        with pytest.raises(KeyboardInterrupt):
            decode(tmp_path / "run", config, lambda: lm)
        monkeypatch.setattr(completions, "Engine", Counting)
        decode(tmp_path / "run", config, lambda: tiny_language_model(seed=5))
        assert len(set(Counting.asked)) == 4


class TestPromptsThatDoNotFit:
    def test_the_prompt_its_length_and_the_limit_are_named_before_anything_is_made(
        self, tmp_path: Path, lm: LanguageModel
    ) -> None:
        path = tmp_path / "long.jsonl"
        path.write_text('{"id": "short", "prompt": "Hi"}\n{"id": "long", "prompt": "' + "x" * 240 + '"}\n')
        config = make_config(path, "frontier=null", "within=null", "max_new_tokens=10")
        # One token a byte: 240, and nine of the sentinel.
        with pytest.raises(DataError, match=r"prompt 'long' has 249 tokens.* = 10 .* 256; shorten the prompt or lower"):
            decode(tmp_path / "run", config, lambda: lm)
        assert not (tmp_path / "run" / "decoding").exists()

    def test_one_that_just_fits_is_taken(self, tmp_path: Path, lm: LanguageModel) -> None:
        path = tmp_path / "long.jsonl"
        path.write_text('{"id": "long", "prompt": "' + "x" * 240 + '"}\n')
        config = make_config(path, "frontier=null", "within=null", "max_new_tokens=7", "strategies=[greedy]")
        assert decode(tmp_path / "run", config, lambda: lm)


class TestScoring:
    @pytest.fixture
    def judge(self, tmp_path: Path) -> Path:
        return save_tiny(tmp_path / "judge", tiny_bert_reward(), tiny_tokenizer(pairs=True))

    def test_sample_0_of_every_arm_is_scored(
        self, tmp_path: Path, prompts: Path, judge: Path, lm: LanguageModel
    ) -> None:
        config = make_config(prompts, f"reward_model={judge}")
        decode(tmp_path / "run", config, lambda: lm)
        rows = pq.read_table(tmp_path / "run" / "decoding" / "scores.parquet").to_pylist()
        firsts = [
            row for row in read_generations(tmp_path / "run" / "decoding" / "generations.parquet") if not row.sample
        ]
        assert [row["prompt_id"] for row in rows] == [row.prompt_id for row in firsts]
        assert {row["reward_model"] for row in rows} == {str(judge)}
        assert all(isinstance(row["score"], float) for row in rows)
        measures = read_records_json(tmp_path / "run" / "decoding" / "diversity.json", ArmMeasure)
        assert {m.estimate.n for m in measures if m.metric == "reward"} == {4}
        points = read_records_json(tmp_path / "run" / "decoding" / "frontier.json", FrontierPoint)
        assert {point.quality_name for point in points} == {f"mean reward ({judge})"}

    def test_a_judge_that_is_not_there_leaves_a_run_unscored_and_is_tried_again(
        self,
        tmp_path: Path,
        prompts: Path,
        lm: LanguageModel,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        config = make_config(prompts, f"reward_model={tmp_path / 'judge'}")
        assert decode(tmp_path / "run", config, lambda: lm)
        assert "the completions stay unscored" in caplog.text
        events = read_json_lines(tmp_path / "run" / "log.jsonl")
        assert [event["reward_model"] for event in events if event["event"] == "unscored"] == [str(tmp_path / "judge")]
        scores = pq.read_table(tmp_path / "run" / "decoding" / "scores.parquet")
        assert scores["score"].null_count == scores.num_rows > 0
        # Nothing changes while it is missing ...
        assert not decode(tmp_path / "run", config, no_model)
        # ... and once it is there, the run is scored and measured again, the completions kept.
        save_tiny(tmp_path / "judge", tiny_bert_reward(), tiny_tokenizer(pairs=True))
        assert decode(tmp_path / "run", config, no_model)
        scores = pq.read_table(tmp_path / "run" / "decoding" / "scores.parquet")
        assert scores["score"].null_count == 0
        measures = read_records_json(tmp_path / "run" / "decoding" / "diversity.json", ArmMeasure)
        assert all(m.estimate.mean is not None for m in measures if m.metric == "reward")

    def test_interrupted_scoring_keeps_what_is_scored(
        self,
        tmp_path: Path,
        prompts: Path,
        judge: Path,
        lm: LanguageModel,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        config, scored = make_config(prompts, f"reward_model={judge}"), []

        def impatient(instruction: str, further: str) -> str:
            scored.append(instruction)
            if len(set(scored)) == 3:
                raise KeyboardInterrupt
            return instruction

        monkeypatch.setattr(scoring, "question_of", impatient)
        with pytest.raises(KeyboardInterrupt):
            decode(tmp_path / "run", config, lambda: lm)
        first, scored[:] = set(scored), []

        def patient(instruction: str, further: str) -> str:
            scored.append(instruction)
            return instruction

        monkeypatch.setattr(scoring, "question_of", patient)
        assert decode(tmp_path / "run", config, no_model)
        assert len(set(scored)) == 2
        assert len(set(scored) | first) == 4


PERTURBED = {
    "prompts": "shorter.jsonl",
    "shuffle": "false",
    "limit": "3",
    "template": "chat",
    "max_new_tokens": "5",
    "strategies": "[greedy]",
    "within.strategies": '["top_p:p=0.9,temperature=0.5"]',
    "within.samples": "2",
    "within.prompts": "3",
    "frontier.strategies": '["min_p:temperature=[0.5,1.0]"]',
    "frontier.prompts": "2",
    "stopping.block": "2",
    "stopping.threshold": "5",
    "stopping.markers": '["#"]',
    "fixed_length": "4",
    "reward_model": "judge",
}


def everything(out: Path) -> dict[str, Any]:
    """What a run says, its costs aside."""
    files = [path for path in sorted((out / "decoding").iterdir()) if path.name != "costs.json"]
    return {path.name: pq.read_table(path) if path.suffix == ".parquet" else path.read_text() for path in files}


class TestEveryFieldIsRead:
    """A field that nothing reads is a lie to whoever sets it."""

    def test_none_is_forgotten(self, config: DecodingConfig) -> None:
        fields = set()
        for name, value in config.model_dump().items():
            fields |= {f"{name}.{key}" for key in value} if isinstance(value, dict) else {name}
        assert fields == set(PERTURBED)

    @pytest.mark.parametrize("field", sorted(PERTURBED))
    def test_another_value_gives_other_files(
        self,
        field: str,
        tmp_path: Path,
        prompts: Path,
        lm: LanguageModel,
        out: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "shorter.jsonl").write_text('{"id": "q0", "instruction": "Name it."}\n')
        save_tiny(tmp_path / "judge", tiny_bert_reward(), tiny_tokenizer(pairs=True))
        decode(tmp_path / "run", make_config(prompts, f"{field}={PERTURBED[field]}"), lambda: lm)
        assert everything(tmp_path / "run") != everything(out)


def test_tables_compare_by_content() -> None:
    # What comparing `everything` relies on.
    assert pa.table({"a": [1]}) == pa.table({"a": [1]})
    assert pa.table({"a": [1]}) != pa.table({"a": [2]})

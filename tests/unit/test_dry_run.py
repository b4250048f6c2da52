"""A dry run by hand-computed sizes; the hub and its caches are made up."""

import json
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi, ModelInfo

from triptych import dry_run, inputs
from triptych.cli import run
from triptych.dictionaries.arms import arms
from triptych.doctor import FIXED_SECONDS, GPU_OPERATIONS, PARAMETERS, recipe_cost
from triptych.dry_run import Plan, missing_extras, needed_by_disk, plan_lines, plan_study, too_small
from triptych.errors import ModelError
from triptych.footprint import Share, dictionary_parameters, disk_shares, memory_shares, row_counts
from triptych.inputs import Found, look_up, parameters_of, wanted_inputs
from triptych.models import hub
from triptych.models.hub import Offer, ask_for
from triptych.models.sources import ModelSource
from triptych.models.tiny import save_tiny, tiny_llama, tiny_tokenizer
from triptych.study import StudyConfig, load_recipe

PAPER = [
    "HuggingFaceTB/smollm2-135M-SFT-Only",
    "yahma/alpaca-cleaned",
    "OpenAssistant/reward-model-deberta-v3-large-v2",
    "HuggingFaceH4/orca_dpo_pairs",
    "uoft-cs/cifar10",
    "microsoft/resnet-18",
    "google/vit-base-patch16-224",
]


@pytest.fixture(autouse=True)
def made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """No network, empty caches, no two seconds of arithmetic, a machine with room."""
    monkeypatch.setattr(inputs, "hub_is_reachable", lambda: False)
    monkeypatch.setattr(inputs, "find_local_source", _nothing_but_folders)
    monkeypatch.setattr("triptych.data.hub.is_cached", lambda _name: False)
    monkeypatch.setattr(dry_run, "product_rate", lambda *_: 1000.0)
    monkeypatch.setattr(dry_run, "free_space", lambda _out: {"run and caches": 10**12, "memory": 10**11})


def _nothing_but_folders(spec: str, *, needs_tokenizer: bool = True) -> Any:
    if Path(spec).exists():
        return on_disk(spec)
    if spec.startswith("./"):
        raise ModelError(f"model folder {spec} does not exist")
    return None


def on_disk(spec: str) -> Any:
    return ModelSource(spec, "folder", Path(spec))


def reachable(monkeypatch: pytest.MonkeyPatch, n_bytes: int | None = 1000, parameters: int | None = 250) -> None:
    monkeypatch.setattr(inputs, "hub_is_reachable", lambda: True)
    monkeypatch.setattr(inputs, "ask_for", lambda _repo: Offer(n_bytes, parameters))
    monkeypatch.setattr("triptych.data.hub.offered_bytes", lambda _name: n_bytes)


def plan_of(recipe: str, *overrides: str) -> Plan:
    return plan_study(load_recipe(recipe, overrides), recipe, Path("runs/x"))


# --- what is made -----------------------------------------------------------------------------------------------------


def test_the_papers_counts_by_hand() -> None:
    stages = {stage.name: stage.counts for stage in plan_of("paper").stages}
    # 400 prompts: greedy, beam, and ten samples in each of ten arms; the first 100 also in the 30 arms of the frontier
    # that are not among these (min-p, typical, eta, top-nsigma, contrastive, diverse beam; five settings each).
    assert stages["decoding"]["completions"] == 400 * (2 + 10 * 10) + 100 * 30 == 43_800
    assert stages["decoding"]["arms"] == 2 + 10 + 30
    # A beam of 4 is four rows, so are the five diverse beams and the five contrastive searches (k = 4).
    rows = 43_800 + 400 * 3 + 100 * (5 * 3 + 5 * 3)
    assert stages["decoding"]["rows with beams"] == rows == 48_000
    assert stages["decoding"]["tokens at most"] == rows * 128
    # 2,000 of 2,500 pairs, 4 a step: 500 steps, which is also the limit. GRPO: 100 steps of 4 prompts x 4.
    assert stages["training"] == {"reward steps": 500, "DPO steps": 500, "GRPO steps": 100, "rollouts": 1600}
    assert stages["audits"] == {"checkpoints": 3, "responses": 3 * 2 * 500}
    # Three seeds of: shared, two independent, two at equal updates (15 epochs); other update, SPARC, two nulls.
    assert stages["dictionaries"]["dictionaries"] == 3 * 5 + 4
    assert stages["dictionaries"]["epochs in all"] == 3 * (30 + 60 + 30) + 4 * 30


def test_times_are_those_of_doctor_here_and_at_the_assumed_rate_of_a_gpu() -> None:
    plan = plan_of("smoke")
    here = recipe_cost("smoke", load_recipe("smoke"), 1000.0)
    gpu = recipe_cost("smoke", load_recipe("smoke"), GPU_OPERATIONS / (2 * PARAMETERS))
    assert plan.stages[0].seconds_here == here.seconds > FIXED_SECONDS
    assert plan.stages[0].seconds_on_a_gpu == gpu.seconds < here.seconds
    assert plan.gpu_products_per_second == pytest.approx(74_349.4)


def test_a_panel_that_is_not_configured_is_not_planned() -> None:
    assert [stage.name for stage in plan_of("grpo").stages] == ["training", "audits"]
    # The starter model is a share where it is not on this disk yet.
    assert {share.what for share in plan_of("grpo").disk} - {"models"} == {"responses", "checkpoints", "report"}


# --- disk and memory --------------------------------------------------------------------------------------------------


def test_the_papers_disk_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    reachable(monkeypatch, n_bytes=1000)
    disk = {share.what: share.n_bytes for share in plan_of("paper").disk}
    assert disk["models"] == 4 * 1000
    assert disk["data sets"] == 3 * 2 * 1000
    assert disk["completions"] == 43_800 * 128 * 22
    assert disk["responses"] == 3000 * 128 * 22
    # q and v of 30 layers: rank x (576 + 576) + rank x (576 + 192) = rank x 1,920 each; ranks 8, 8 and 16.
    assert disk["checkpoints"] == 32 * 30 * 1920 * 4 * 7
    # 50,000 and 10,000 images, two models taken to be 768 wide.
    assert disk["activations"] == 60_000 * 2 * 768 * 4
    one = 2 * 2048 * 768 + 2048 + 768
    # Shared, other update, SPARC and nulls have both sides (3 + 4 of them), six and six independent ones have one.
    assert disk["dictionaries"] == 4 * ((7 * 2 + 12) * one + 3 * 2 * one)


def test_unknown_sizes_are_assumed_and_said_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    reachable(monkeypatch, n_bytes=None, parameters=None)
    disk = {share.what: share for share in plan_of("paper").disk}
    assert disk["models"].n_bytes == 4 * (134_500_000 + 435_000_000 + 2 * 86_600_000)
    assert "4 of unknown size" in disk["models"].how
    assert disk["data sets"].n_bytes == 3 * 2 * 150_000_000


def test_widths_of_backbones_are_those_configured() -> None:
    config = load_recipe("starter", ["dictionaries.limit=null", "dictionaries.test_limit=null"])
    disk = {share.what: share for share in disk_shares(config, [], 0, 0)}
    assert disk["activations"].n_bytes == 10_000 * (256 + 192) * 4
    assert "resnet 256, vit 192" in disk["activations"].how
    assert config.dictionaries is not None
    assert row_counts(config.dictionaries) == (8000, 2000)


def test_limits_and_grids_count() -> None:
    config = load_recipe("starter", ["dictionaries.limit=100", "dictionaries.test_limit=50", "dictionaries.grid=7"])
    (share,) = [one for one in disk_shares(config, [], 0, 0) if one.what == "activations"]
    assert share.n_bytes == 150 * 49 * 448 * 4


def test_memory_by_hand() -> None:
    found = [
        Found(kind="language model", spec="m", use="model", state="here", parameters=1_000_000_000),
        Found(kind="reward model", spec="r", use="auditing.gold", state="here", parameters=3_000_000_000),
    ]
    memory = {share.what: share.n_bytes for share in memory_shares(load_recipe("smoke"), found, 2)}
    assert memory["decoding"] == 1_700_000_000 + 4_000_000_000
    assert memory["audits"] == 2_100_000_000 + 8_000_000_000
    assert memory["scoring"] == 1_700_000_000 + 12_000_000_000


def test_one_side_of_a_dictionary_by_hand() -> None:
    dictionaries = load_recipe("starter").dictionaries
    assert dictionaries is not None
    shared = arms(dictionaries)[0]
    assert dictionary_parameters(shared, {"resnet": 3, "vit": 5}) == (2 * 512 * 3 + 512 + 3) + (2 * 512 * 5 + 512 + 5)


# --- what it reads ----------------------------------------------------------------------------------------------------


def test_everything_a_recipe_names_is_looked_for_once() -> None:
    wanted = wanted_inputs(load_recipe("paper"))
    assert [one.spec for one in wanted] == PAPER
    assert wanted[2].use == "decoding.reward_model, auditing.gold"


def test_rewards_adapters_and_programs_are_looked_for(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("")
    config = StudyConfig.model_validate(
        {
            "alignment": {"grpo": {"rewards": ["checks", "model:runs/reward=0.5", f"{tmp_path}/mine.py:polite"]}},
            "auditing": {"pairs": "gone.jsonl", "adapters": {"theirs": "nowhere"}},
        }
    )
    states = {one.spec: one.state for one in look_up(wanted_inputs(config))}
    assert states[f"{tmp_path}/mine.py"] == "here"
    assert states["starter"] in ("in the package", "cached", "offered")
    assert states["runs/reward"] == "missing"
    assert states["nowhere"] == "missing"
    assert states["gone.jsonl"] == "missing"


def test_a_silent_hub_is_asked_once_and_every_problem_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []

    def silent() -> bool:
        asked.append(True)
        return False

    monkeypatch.setattr(inputs, "hub_is_reachable", silent)
    found = look_up(wanted_inputs(load_recipe("paper")))
    assert len(asked) == 1
    assert [one.state for one in found] == ["missing"] * 7
    for one in found:
        assert one.problem is not None
        assert one.spec in one.problem
        assert "the hub does not answer; connect" in one.problem


def test_what_the_hub_refuses_is_told_in_its_words(monkeypatch: pytest.MonkeyPatch) -> None:
    reachable(monkeypatch)

    def gated(repo: str) -> Offer:
        raise ModelError(f"model {repo} is gated: accept its terms on the hub, then `hf auth login`")

    monkeypatch.setattr(inputs, "ask_for", gated)
    found = {one.spec: one for one in look_up(wanted_inputs(load_recipe("paper")))}
    assert found["microsoft/resnet-18"].problem == (
        "model microsoft/resnet-18 is gated: accept its terms on the hub, then `hf auth login`"
    )
    assert found["uoft-cs/cifar10"].state == "offered"


def test_a_cached_model_is_measured_by_its_headers(tmp_path: Path) -> None:
    model = tiny_llama(context=64)
    folder = save_tiny(tmp_path / "tiny", model, tiny_tokenizer(context=64))
    stored = parameters_of(Path(folder))
    assert stored is not None
    assert 0 < stored <= sum(parameter.numel() for parameter in model.parameters())
    (tmp_path / "tiny" / "model.safetensors").write_bytes(b"broken")
    assert parameters_of(Path(folder)) is None


def test_only_metadata_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    files = [
        {"rfilename": "config.json", "size": 10},
        {"rfilename": "model.safetensors", "size": 400},
        {"rfilename": "pytorch_model.bin", "size": 9000},
        {"rfilename": "onnx/model.onnx", "size": 9000},
    ]
    tensors = {"parameters": {"F32": 100}, "total": 100}
    info = ModelInfo(id="a/b", siblings=files, safetensors=tensors)  # type: ignore[no-untyped-call]
    monkeypatch.setattr(HfApi, "model_info", lambda *_, **__: info)
    monkeypatch.setattr(hub, "snapshot_download", lambda *_, **__: pytest.fail("it must fetch nothing"))
    assert ask_for("a/b") == Offer(410, 100)


# --- what stands in the way -------------------------------------------------------------------------------------------


def test_small_disks_and_memory_are_told() -> None:
    disk = [Share(what="models", n_bytes=3 * 10**9, how="", where="cache")]
    memory = [Share(what="audits", n_bytes=5 * 10**9, how="", where="memory")]
    both = too_small(disk, memory, {"run": 10**9, "cache": 10**9, "memory": 4 * 10**9})
    assert both == [
        "the disk of the cache has 1.0 GB free and 3.0 GB are needed; free some, or set HF_HOME elsewhere",
        "audits take about 5.0 GB of memory and 4.0 GB are free; close other programs, or leave that panel out",
    ]
    assert needed_by_disk(disk, {"run": 1, "cache": 1, "memory": 1}) == {"run": 0, "cache": 3 * 10**9}
    assert too_small(disk, memory, {"run and caches": 10**10, "memory": 10**10}) == []


def test_extras_that_are_not_installed_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dry_run, "find_spec", lambda _name: None)
    config = load_recipe("paper", ["alignment.engine=trl"])
    quantised, engine = missing_extras(config)
    assert quantised == (
        "alignment.grpo.quantisation needs the package bitsandbytes, which is not installed; "
        "pip install 'triptych[quantised]', or --set alignment.grpo.quantisation=null"
    )
    assert engine.endswith("pip install 'triptych[trl]', or --set alignment.engine=native")
    assert missing_extras(load_recipe("grpo")) == []


def test_free_space_is_that_of_the_disk_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    free = dry_run.free_space(tmp_path / "not" / "there")
    assert free["memory"] > 0
    assert all(value > 0 for value in free.values())


# --- the command ------------------------------------------------------------------------------------------------------


def test_a_study_that_would_run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["study", "--recipe", "smoke", "--dry-run", "--json"]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    said = json.loads(last)
    assert said["problems"] == []
    assert said["stages"][0]["counts"]["prompts"] == 6
    text = "\n".join(lines)
    assert "it would run; nothing was downloaded or written" in text
    assert "assumed, not measured" in text
    assert list(tmp_path.iterdir()) == []


def test_one_that_would_not_prints_the_plan_and_ends_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["study", "--recipe", "paper", "--dry-run"]) == 2
    said = capsys.readouterr()
    assert "stage       decoding: 400 prompts, 42 arms, 43,800 completions" in said.out
    errors = said.err.splitlines()
    assert [line for line in errors if "uoft-cs/cifar10" in line]
    assert all(line.startswith("error: ") for line in errors)


def test_every_line_of_the_plan_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    reachable(monkeypatch)
    monkeypatch.setattr(dry_run, "find_spec", lambda _name: object())
    lines = list(plan_lines(plan_of("paper")))
    for spec in PAPER:
        assert any(spec in line and "the hub or index has it" in line for line in lines)
    assert lines[-1] == "it would run; nothing was downloaded or written"

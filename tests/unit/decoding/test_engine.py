import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from transformers import LlamaForCausalLM

from triptych.decoding import (
    Ancestral,
    Beam,
    Contrastive,
    DiverseBeam,
    Engine,
    Greedy,
    Job,
    Limits,
    Stopping,
    Strategy,
    TopK,
    TopP,
    decode,
)
from triptych.decoding.backends import FusedBackend, GenericBackend
from triptych.decoding.batch import Batch
from triptych.errors import ConfigError, DataError, WorkError
from triptych.models import LanguageModel
from triptych.models.tiny import tiny_gpt2, tiny_language_model, tiny_llama
from triptych.records import Generation, Prompt

PROMPTS = ["Once", "Name three things.", "The sum of one and two is"]
ARMS: list[Strategy] = [
    Greedy(),
    Beam(width=3),
    DiverseBeam(width=4, groups=2),
    Contrastive(k=3),
    Ancestral(),
    TopK(k=5, temperature=0.7),
    TopP(p=0.8),
]
OFF = Stopping(block=None, markers=())
PATHS = pytest.mark.parametrize("path", ["fused", "generic"])


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return tiny_language_model()


@pytest.fixture(scope="module")
def stopper() -> LanguageModel:
    """The tiny model with so many EOS tokens that completions end after a few."""
    return dataclasses.replace(tiny_language_model(), eos_ids=frozenset(range(2, 40)))


def key(one: Generation) -> tuple[str, str, str, int]:
    return one.prompt_id, one.strategy, one.params, one.sample


# --- Records ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def completions(stopper: LanguageModel) -> list[Generation]:
    return decode(stopper, PROMPTS, ARMS, max_new_tokens=12, samples=3, seed=5)


def test_the_result_is_ordered_by_prompt_then_strategy_then_sample(completions: list[Generation]) -> None:
    expected = [
        (prompt, strategy.name, strategy.params, sample)
        for prompt in PROMPTS
        for strategy in ARMS
        for sample in range(3 if hasattr(strategy, "temperature") else 1)
    ]
    assert [(one.prompt, one.strategy, one.params, one.sample) for one in completions] == expected


def test_the_fields_of_a_completion(completions: list[Generation], stopper: LanguageModel) -> None:
    assert {one.stop_reason for one in completions} == {"eos", "length"}
    for one in completions:
        assert one.n_tokens == len(one.token_ids) == len(one.logprobs)
        assert 1 <= one.n_tokens <= 12
        assert one.mean_logprob == pytest.approx(sum(one.logprobs) / one.n_tokens)
        assert all(value <= 0 for value in one.logprobs)
        assert (one.token_ids[-1] in stopper.eos_ids) == (one.stop_reason == "eos")
        assert not set(one.token_ids[:-1]) & stopper.eos_ids
        assert (one.stop_reason == "length") == (one.n_tokens == 12 and one.token_ids[-1] not in stopper.eos_ids)
        assert (one.instruction, one.input, one.seed) == (one.prompt, "", 5)
        assert one.text == one.raw_text.strip()


def test_what_only_some_strategies_have(completions: list[Generation]) -> None:
    for one in completions:
        samples = one.strategy in ("ancestral", "top_k", "top_p")
        assert (one.temperature is not None) == samples
        assert (one.score is not None) == (one.strategy in ("beam", "diverse_beam"))
        assert (one.sampler_logprobs is not None) == (samples or one.strategy == "greedy")
        if one.score is not None:
            assert one.score == pytest.approx(sum(one.logprobs), abs=1e-5)
        if one.sampler_logprobs is not None:
            assert len(one.sampler_logprobs) == one.n_tokens
        if one.strategy == "greedy":
            assert set(one.sampler_logprobs or ()) == {0.0}
        if one.strategy == "ancestral":
            # Nothing cut off at T = 1: drawn from the model's own distribution.
            assert one.sampler_logprobs == pytest.approx(one.logprobs, abs=1e-5)
    assert {one.temperature for one in completions if one.strategy == "top_k"} == {0.7}


def test_the_text_is_decoded_without_its_eos(completions: list[Generation], stopper: LanguageModel) -> None:
    for one in completions:
        kept = [token for token in one.token_ids if token not in stopper.eos_ids]
        assert one.raw_text == stopper.tokenizer.decode(kept, skip_special_tokens=True)


def test_samples_differ_and_a_seed_repeats_them(lm: LanguageModel, completions: list[Generation]) -> None:
    drawn = [one.token_ids for one in decode(lm, PROMPTS[:1], [Ancestral()], max_new_tokens=12, samples=8)]
    assert len(set(drawn)) == 8
    more = [one.token_ids for one in decode(lm, PROMPTS[:1], [Ancestral()], max_new_tokens=12, samples=9)]
    # A sample is what its number makes it, however many there are.
    assert more[:8] == drawn
    other = [one.token_ids for one in decode(lm, PROMPTS[:1], [Ancestral()], max_new_tokens=12, samples=8, seed=1)]
    assert not set(other) & set(drawn)


def test_a_marker_is_cut_off_the_text_and_kept_in_the_raw_one(lm: LanguageModel) -> None:
    greedy = decode(lm, ["Once"], [Greedy()], max_new_tokens=12, stopping=OFF)[0]
    # Whatever it says: its second and third letter are the marker.
    marker = lm.tokenizer.decode(list(greedy.token_ids[1:3]), skip_special_tokens=False)
    (found,) = decode(lm, ["Once"], [Greedy()], max_new_tokens=12, stopping=Stopping(block=None, markers=(marker,)))
    assert (found.stop_reason, found.token_ids) == ("marker", greedy.token_ids[:3])
    assert found.raw_text.endswith(str(marker))
    assert found.text == found.raw_text[: -len(marker)].strip()


def test_repetition_ends_completions(lm: LanguageModel) -> None:
    repeating = decode(lm, PROMPTS, [Greedy()], max_new_tokens=60, stopping=Stopping(block=1, threshold=2, markers=()))
    assert {one.stop_reason for one in repeating} == {"repeat"}
    for one in repeating:
        assert one.token_ids.count(one.token_ids[-1]) == 3


def test_one_new_token(lm: LanguageModel) -> None:
    for one in decode(lm, PROMPTS, ARMS, max_new_tokens=1):
        assert (one.n_tokens, one.stop_reason) == (1, "length")


def test_nothing_to_do(lm: LanguageModel) -> None:
    assert decode(lm, [], ARMS, max_new_tokens=5) == []
    assert decode(lm, PROMPTS, [], max_new_tokens=5) == []


# --- Prompts ----------------------------------------------------------------------------------------------------------


def test_prompts_are_records_or_strings(lm: LanguageModel) -> None:
    record = Prompt(id="p1", instruction="Say it", input="now", prompt="Once")
    ours, plain = decode(lm, [record, "Once"], [Greedy()], max_new_tokens=6)
    assert (ours.prompt_id, ours.instruction, ours.input, ours.prompt) == ("p1", "Say it", "now", "Once")
    assert (plain.instruction, plain.input, plain.prompt) == ("Once", "", "Once")
    assert ours.token_ids == plain.token_ids


def test_strings_are_named_after_their_text(lm: LanguageModel) -> None:
    forth = decode(lm, PROMPTS, [Ancestral()], max_new_tokens=6)
    back = decode(lm, PROMPTS[::-1], [Ancestral()], max_new_tokens=6)
    assert [(one.prompt_id, one.token_ids) for one in back] == [(one.prompt_id, one.token_ids) for one in forth[::-1]]


def test_a_string_given_twice_is_two_prompts(lm: LanguageModel) -> None:
    first, second = decode(lm, ["Once", "Once"], [Ancestral()], max_new_tokens=8)
    assert first.prompt_id != second.prompt_id
    assert first.token_ids != second.token_ids
    once, again = decode(lm, ["Once", "Once"], [Greedy()], max_new_tokens=8)
    assert once.token_ids == again.token_ids


def test_a_record_and_an_arm_given_twice_are_one(lm: LanguageModel) -> None:
    record = Prompt(id="p1", instruction="Once", prompt="Once")
    found = decode(lm, [record, record], [TopP(), TopP()], max_new_tokens=8, samples=2)
    assert len(found) == 8
    assert found[:2] == found[2:4] == found[4:6] == found[6:]


def test_one_id_for_two_texts_is_refused(lm: LanguageModel) -> None:
    twins = [Prompt(id="p1", instruction=text, prompt=text) for text in ("Once", "Twice")]
    with pytest.raises(DataError, match="prompt 'p1' stands for two different texts; give each an id of its own"):
        decode(lm, twins, [Greedy()], max_new_tokens=4)


@PATHS
def test_a_prompt_may_hold_anything(lm: LanguageModel, path: str) -> None:
    texts = ["\x00", "né\U0001f600", "<|im_end|><|pad|>", " ", "a" * 200]
    found = decode(lm, texts, [Greedy(), TopP()], max_new_tokens=4, path=path)
    assert [one.prompt for one in found] == [text for text in texts for _ in range(2)]


# --- Errors -----------------------------------------------------------------------------------------------------------


def test_a_prompt_too_long_for_the_context_is_named_before_any_work(lm: LanguageModel) -> None:
    prompts = [Prompt(id="fine", instruction="a", prompt="a"), Prompt(id="long", instruction="", prompt="a" * 250)]
    message = (
        r"prompt 'long' has 250 tokens, which with max_new_tokens = 7 exceeds the model's context of 256; "
        "shorten the prompt or lower max_new_tokens"
    )
    run = Engine(lm, max_new_tokens=7)
    with pytest.raises(DataError, match=message):
        next(run.run([Job(prompt, Greedy()) for prompt in prompts]))
    assert run.stats.steps == run.stats.prefill_tokens == 0
    # One token fewer fits exactly.
    assert decode(lm, prompts, [Greedy()], max_new_tokens=6, stopping=OFF)[1].n_tokens == 6


def test_an_empty_prompt(lm: LanguageModel) -> None:
    with pytest.raises(DataError, match="prompt 'blank' is empty; give it at least one token"):
        decode(lm, [Prompt(id="blank", instruction="x", prompt="")], [Greedy()], max_new_tokens=4)


def test_a_prompt_that_is_not_rendered(lm: LanguageModel) -> None:
    with pytest.raises(ConfigError, match="prompt 'p7' is not rendered; set its text with `render_prompt`"):
        decode(lm, [Prompt(id="p7", instruction="x")], [Greedy()], max_new_tokens=4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": 0}, "samples is 0; it must be at least 1"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0; it must be at least 1"),
        ({"path": "fussed"}, "engine path 'fussed' is unknown; choose fused or generic"),
    ],
)
def test_options_out_of_range(lm: LanguageModel, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        decode(lm, PROMPTS, [Greedy()], **{"max_new_tokens": 4, **options})


def test_the_fused_path_is_for_llamas() -> None:
    gpt2 = tiny_language_model(tiny_gpt2())
    with pytest.raises(ConfigError, match="model 'tiny-gpt2-0' has no fused path .* choose generic"):
        decode(gpt2, PROMPTS, [Greedy()], max_new_tokens=4, path="fused")
    assert Engine(gpt2, max_new_tokens=4).stats.path == "generic"


@pytest.mark.parametrize("limits", [{"max_rows": 0}, {"kv_bytes": 0}, {"rows": 3}])
def test_limits_are_checked(limits: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="max_rows|kv_bytes|rows"):
        Limits.model_validate(limits)


# --- Limits and counters ----------------------------------------------------------------------------------------------


def run_engine(lm: LanguageModel, limits: Limits | None = None, **options: Any) -> tuple[Engine, list[Generation]]:
    run = Engine(lm, max_new_tokens=12, limits=limits, stopping=OFF, **options)
    jobs = [
        Job(Prompt(id=text, instruction=text, prompt=text), strategy, sample)
        for text in PROMPTS
        for strategy in ARMS
        for sample in range(3 if strategy.name == "top_p" else 1)
    ]
    return run, list(run.run(jobs))


@pytest.mark.parametrize("rows", [4, 5, 11])
@PATHS
def test_no_more_rows_than_allowed(lm: LanguageModel, rows: int, path: str) -> None:
    run, found = run_engine(lm, Limits(max_rows=rows), path=path)
    assert 1 <= run.stats.peak_rows <= rows
    assert len(found) == 27


def test_a_search_gets_the_rows_it_needs(lm: LanguageModel) -> None:
    run, found = run_engine(lm, Limits(max_rows=1))
    assert run.stats.peak_rows <= 4
    assert len(found) == 27


def test_kv_bytes_limit_the_rows(lm: LanguageModel) -> None:
    # Two layers, keys and values of 2 heads of 8 float32 each: 256 bytes a token, 12 tokens a row.
    assert FusedBackend.bytes_per_token(lm) == 2 * 2 * 2 * 8 * 4
    run, _ = run_engine(lm, Limits(kv_bytes=6 * 12 * 256 + 5))
    assert run.stats.peak_rows == 6


@pytest.mark.parametrize("limits", [Limits(), Limits(max_rows=4)], ids=["roomy", "tight"])
@PATHS
def test_the_counters(stopper: LanguageModel, path: str, limits: Limits) -> None:
    run, found = run_engine(stopper, limits, path=path)
    stats = run.stats
    assert (stats.path, stats.dtype, stats.restarts) == (path, "float32", 0)
    assert (stats.rows, stats.tokens) == (27, sum(one.n_tokens for one in found))
    # Every prompt is read once, one token a byte.
    assert stats.prefill_tokens == sum(len(text) for text in PROMPTS)
    # A sampled completion's first token comes from the prompt, and its last is not fed.
    sampled = sum(one.n_tokens - 1 for one in found if one.strategy in ("greedy", "ancestral", "top_k", "top_p"))
    assert stats.forward_tokens > sampled
    assert stats.steps >= max(one.n_tokens for one in found) - 1
    assert stats.seconds > 0


def test_forward_tokens_of_a_sampler(lm: LanguageModel) -> None:
    run = Engine(lm, max_new_tokens=5, stopping=OFF)
    (one,) = run.run([Job(Prompt(id="p", instruction="Once", prompt="Once"), TopP())])
    assert one.n_tokens == 5
    assert (run.stats.forward_tokens, run.stats.steps, run.stats.peak_rows) == (4, 4, 1)


def test_free_memory_sets_the_rows_where_no_limit_does(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    class Memory:
        # A third of it, and a little, is 6 rows.
        available = int(6.5 * 12 * 256 / 0.35)

    monkeypatch.setattr(psutil, "virtual_memory", Memory)
    run, _ = run_engine(lm)
    assert run.stats.peak_rows == 6


# --- Out of memory ----------------------------------------------------------------------------------------------------

ERRORS: dict[str, Callable[[], Exception]] = {
    "cuda": lambda: torch.OutOfMemoryError("CUDA out of memory."),
    "cpu": lambda: RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory"),
    "python": MemoryError,
}


def failing(
    monkeypatch: pytest.MonkeyPatch, owner: type, name: str, error: Callable[[], Exception], at: int
) -> list[int]:
    """Makes the call number `at` of a method raise; the list counts the calls."""
    right, calls = getattr(owner, name), [0]

    def method(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == at:
            raise error()
        return right(*args, **kwargs)

    monkeypatch.setattr(owner, name, method)
    return calls


@pytest.mark.parametrize("error", ERRORS.values(), ids=ERRORS)
@pytest.mark.parametrize(("name", "at"), [("step", 1), ("step", 4), ("prefill", 1), ("copy", 3), ("__init__", 1)])
@pytest.mark.parametrize("backend", [FusedBackend, GenericBackend])
def test_where_memory_runs_out_fewer_rows_give_the_same(
    stopper: LanguageModel,
    monkeypatch: pytest.MonkeyPatch,
    backend: type[FusedBackend] | type[GenericBackend],
    name: str,
    at: int,
    error: Callable[[], Exception],
) -> None:
    _, expected = run_engine(stopper, path=backend.path)
    calls = failing(monkeypatch, backend, name, error, at)
    run, found = run_engine(stopper, path=backend.path)
    assert calls[0] > at
    assert run.stats.restarts == 1
    assert len(found) == len(expected) == run.stats.rows
    ids = {key(one): one.token_ids for one in expected}
    assert {key(one): one.token_ids for one in found} == ids


def test_completions_of_a_step_that_fails_half_way_are_not_lost(
    stopper: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, expected = run_engine(stopper)
    wanted = {key(one): one.token_ids for one in expected}
    for at in range(2, 12, 3):
        with monkeypatch.context() as patch:
            failing(patch, Batch, "_search", MemoryError, at)
            run, found = run_engine(stopper)
        assert run.stats.restarts == 1
        assert len(found) == len(expected)
        assert {key(one): one.token_ids for one in found} == wanted


def test_memory_that_runs_out_twice(stopper: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    _, expected = run_engine(stopper)
    right, seen = FusedBackend.step, []

    def step(self: FusedBackend, slots: Any, tokens: Any) -> Any:
        seen.append(len(slots))
        if len(slots) > 12:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return right(self, slots, tokens)

    monkeypatch.setattr(FusedBackend, "step", step)
    run, found = run_engine(stopper)
    # 3 prompts with 3 + 4 + 3 rows for the searches and 6 more: 48, 24, 12.
    assert run.stats.restarts == 2
    assert run.stats.peak_rows <= 12
    assert {key(one): one.token_ids for one in found} == {key(one): one.token_ids for one in expected}


def test_where_not_even_one_row_fits_the_error_says_so(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def step(self: FusedBackend, slots: Any, tokens: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(FusedBackend, "step", step)
    message = r"out of memory with 1 row\(s\) of 9 tokens; free memory, or decode with a smaller max_new_tokens"
    with pytest.raises(WorkError, match=message):
        decode(lm, PROMPTS, [Greedy()], max_new_tokens=9)
    with pytest.raises(WorkError, match=r"out of memory with 4 row\(s\)"):
        decode(lm, PROMPTS, [Beam(width=4)], max_new_tokens=9)


def test_other_errors_are_not_taken_for_want_of_memory(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, FusedBackend, "step", lambda: RuntimeError("shapes do not match"), 2)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        decode(lm, PROMPTS, [Greedy()], max_new_tokens=9)


# --- The engine by itself ---------------------------------------------------------------------------------------------


def test_completions_are_yielded_as_they_finish(stopper: LanguageModel) -> None:
    run = Engine(stopper, max_new_tokens=12, stopping=OFF)
    prompt = Prompt(id="p", instruction="Once", prompt="Once")
    lengths = [one.n_tokens for one in run.run(Job(prompt, Ancestral(), sample) for sample in range(30))]
    assert lengths == sorted(lengths)
    assert lengths[0] < lengths[-1]


def test_an_engine_can_run_again(lm: LanguageModel) -> None:
    run = Engine(lm, max_new_tokens=6)
    job = Job(Prompt(id="p", instruction="Once", prompt="Once"), TopP())
    assert list(run.run([job])) == list(run.run([job]))
    assert run.stats.rows == 2


def test_a_model_that_never_says_eos_is_stopped_by_length() -> None:
    lm = dataclasses.replace(tiny_language_model(), eos_ids=frozenset())
    for one in decode(lm, PROMPTS, ARMS, max_new_tokens=6, stopping=OFF):
        assert (one.n_tokens, one.stop_reason) == (6, "length")


@PATHS
def test_bf16(path: str) -> None:
    model: LlamaForCausalLM = tiny_llama().to(torch.bfloat16)  # type: ignore[arg-type]
    lm = tiny_language_model(model)
    run, found = run_engine(lm, path=path)
    assert (run.stats.dtype, run.stats.path) == ("bfloat16", path)
    assert all(math.isfinite(value) for one in found for value in one.logprobs)
    again = {key(one): one.token_ids for one in run_engine(lm, path=path)[1]}
    assert {key(one): one.token_ids for one in found} == again


def test_the_global_generators_are_left_alone(lm: LanguageModel) -> None:
    before = torch.random.get_rng_state(), np.random.get_state(legacy=True)  # noqa: NPY002
    decode(lm, PROMPTS, ARMS, max_new_tokens=4)
    assert torch.equal(before[0], torch.random.get_rng_state())
    assert str(before[1]) == str(np.random.get_state(legacy=True))  # noqa: NPY002

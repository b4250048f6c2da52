"""The contenders of the decoding benchmark. Each runs in a process of its own: `python -m triptych.bench.contenders`.

None of them stops on repetition or markers, so that all do the same work; each is warmed up first, and neither loading
nor compiling is counted.
"""

import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from triptych.bench.workload import (
    Measured,
    Workload,
    arms,
    rendered_prompts,
    samples_of,
    timed,
    useful_tokens,
)
from triptych.config import parse_config
from triptych.data import encode_prompt
from triptych.decoding import Beam, Engine, Job, Sampler, Stopping, Strategy, TopK, TopP
from triptych.memory import peak_memory
from triptych.models import LanguageModel, load_language_model
from triptych.models.starter import ensure_starter, starter_gguf
from triptych.seeding import stream_key

ONLY_EOS = Stopping(block=None, markers=())
GENERATE_BATCHES = (16, 32, 64, 128)
LOOP_PROMPTS = 1


def triptych(workload: Workload) -> Measured:
    """This project's engine."""
    lm = load_language_model(workload.model)
    jobs = [
        Job(prompt, strategy, sample)
        for prompt in rendered_prompts(workload, lm)
        for strategy in arms()
        for sample in range(samples_of(strategy, workload))
    ]
    warm = Engine(lm, max_new_tokens=4, seed=workload.seed, stopping=ONLY_EOS)
    list(warm.run(jobs[: 2 * len(arms())]))
    engine = Engine(lm, max_new_tokens=workload.max_new_tokens, seed=workload.seed, stopping=ONLY_EOS)
    seconds, lengths = timed(lambda: [one.n_tokens for one in engine.run(jobs)])
    stats = engine.stats
    detail = {
        "path": stats.path,
        "dtype": stats.dtype,
        "forward_tokens": stats.forward_tokens,
        "prefill_tokens": stats.prefill_tokens,
        "steps": stats.steps,
        "peak_rows": stats.peak_rows,
        "matrix_product_seconds": _matrix_product_seconds(lm, stats.peak_rows) * stats.forward_tokens,
    }
    return Measured(sum(lengths), len(lengths), seconds, detail)


def generate(workload: Workload) -> Measured:
    """`transformers.generate`, an arm at a time, at the batch size that a trial on one arm finds best."""
    lm = load_language_model(workload.model)
    prompts = [encode_prompt(one.prompt or "", lm.tokenizer) for one in rendered_prompts(workload, lm)]

    def run_arm(strategy: Strategy, batch: int) -> list[int]:
        # Similar lengths together: the least padding that it can have.
        rows = sorted((ids for ids in prompts for _ in range(samples_of(strategy, workload))), key=len)
        size = max(1, batch // 4) if isinstance(strategy, Beam) else batch
        return [
            n
            for start in range(0, len(rows), size)
            for n in complete(rows[start : start + size], strategy, workload.max_new_tokens)
        ]

    def complete(rows: Sequence[list[int]], strategy: Strategy, limit: int) -> list[int]:
        width = max(map(len, rows))
        ids = torch.tensor([[lm.pad_id] * (width - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        out: Any = lm.base.generate(  # type: ignore[operator]
            ids, attention_mask=mask, max_new_tokens=limit, pad_token_id=lm.pad_id, **_generate_arguments(strategy)
        )
        return [useful_tokens(row, lm.eos_ids) for row in out[:, width:].tolist()]

    complete(prompts[:4], TopP(), 4)
    trial = TopP(p=0.9, temperature=1.0)
    rows = len(prompts) * workload.samples
    sizes = [size for size in GENERATE_BATCHES if size < rows] + ([rows] if rows <= max(GENERATE_BATCHES) else [])
    speeds = {}
    for size in sizes:
        seconds, lengths = timed(lambda size=size: run_arm(trial, size))  # type: ignore[misc]
        speeds[size] = sum(lengths) / seconds
    best = max(speeds, key=lambda size: speeds[size])
    seconds, lengths = timed(lambda: [n for strategy in arms() for n in run_arm(strategy, best)])
    return Measured(sum(lengths), len(lengths), seconds, {"batch": best, "tokens_per_second_by_batch": speeds})


def openvino(workload: Workload) -> Measured:
    """OpenVINO GenAI's continuous batching on the same GGUF, every request of the grid in one call."""
    import openvino
    import openvino_genai

    lm = load_language_model(workload.model)
    prompts = [encode_prompt(one.prompt or "", lm.tokenizer) for one in rendered_prompts(workload, lm)]
    eos = lm.eos_ids
    del lm
    scheduler = openvino_genai.SchedulerConfig()
    scheduler.max_num_seqs, scheduler.max_num_batched_tokens, scheduler.cache_size = 256, 4096, 2
    scheduler.enable_prefix_caching = True
    with starter_gguf() as path:
        pipeline = openvino_genai.ContinuousBatchingPipeline(str(path), scheduler, "CPU")

    def request(strategy: Strategy, sample: int, limit: int) -> Any:
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens, config.apply_chat_template = limit, False
        config.eos_token_id, config.stop_token_ids = min(eos), set(eos)
        if isinstance(strategy, Beam):
            config.num_beams, config.length_penalty = strategy.width, 0.0
            config.stop_criteria = openvino_genai.StopCriteria.NEVER
        elif isinstance(strategy, Sampler):
            config.do_sample, config.temperature = True, strategy.temperature
            config.top_k = strategy.k if isinstance(strategy, TopK) else sys.maxsize
            config.top_p = strategy.p if isinstance(strategy, TopP) else 1.0
            config.rng_seed = stream_key(workload.seed, strategy.label, sample) % 2**31
        return config

    def run(limit: int, of: Sequence[list[int]]) -> list[int]:
        work = [
            (ids, request(strategy, sample, limit))
            for ids in of
            for strategy in arms()
            for sample in range(samples_of(strategy, workload))
        ]
        tensors = [openvino.Tensor(np.array([ids], dtype=np.int64)) for ids, _ in work]
        results = pipeline.generate(tensors, [config for _, config in work])
        return [len(result.m_generation_ids[0]) for result in results]

    run(4, prompts[:1])
    seconds, lengths = timed(lambda: run(workload.max_new_tokens, prompts))
    return Measured(sum(lengths), len(lengths), seconds, {"version": openvino_genai.__version__})


def one_prompt_loop(workload: Workload) -> Measured:
    """The paper's own way: one prompt at a time in a Python loop with a key/value cache; the first prompt alone."""
    lm = load_language_model(workload.model)
    prompts = [encode_prompt(one.prompt or "", lm.tokenizer) for one in rendered_prompts(workload, lm)][:LOOP_PROMPTS]
    generator = torch.Generator().manual_seed(workload.seed)

    def run(limit: int) -> list[int]:
        return [_loop(lm, ids, strategy, limit, generator) for ids in prompts for strategy in arms()]

    run(4)
    seconds, lengths = timed(lambda: run(workload.max_new_tokens))
    return Measured(sum(lengths), len(lengths), seconds, {"prompts": len(prompts), "samples": 1})


CONTENDERS: dict[str, Callable[[Workload], Measured]] = {
    "triptych": triptych,
    "transformers.generate": generate,
    "openvino-genai": openvino,
    "one-prompt loop": one_prompt_loop,
}


@torch.inference_mode()
def _loop(lm: LanguageModel, ids: list[int], strategy: Strategy, limit: int, generator: torch.Generator) -> int:
    """Greedy, sampling or beams of one prompt, with a forward pass and a softmax over the vocabulary a token."""
    width = strategy.width if isinstance(strategy, Beam) else 1
    out: Any = lm.model(torch.tensor([ids]), use_cache=True)
    scores = torch.zeros(1)
    cache, best, best_length = out.past_key_values, -float("inf"), limit
    for step in range(1, limit + 1):
        logits = out.logits[:, -1].float()
        if isinstance(strategy, Beam):
            total = (scores[:, None] + torch.log_softmax(logits, -1)).flatten()
            scores, index = total.topk(width)
            parents, tokens = index // logits.shape[-1], index % logits.shape[-1]
            cache.reorder_cache(parents)
            ended = torch.tensor([int(token) in lm.eos_ids for token in tokens])
            if ended.any() and float(scores[ended].max()) > best:
                best, best_length = float(scores[ended].max()), step
            scores = torch.where(ended, -torch.inf, scores)
            if float(scores.max()) <= best:
                break
        else:
            tokens = _loop_token(logits[0], strategy, generator)
            if int(tokens) in lm.eos_ids:
                return step
        out = lm.model(tokens.view(-1, 1), past_key_values=cache, use_cache=True)
        cache = out.past_key_values
    return best_length


def _loop_token(logits: torch.Tensor, strategy: Strategy, generator: torch.Generator) -> torch.Tensor:
    if not isinstance(strategy, Sampler):
        return logits.argmax().view(1)
    probabilities = torch.softmax(logits / strategy.temperature, -1)
    if isinstance(strategy, TopK):
        values, tokens = probabilities.topk(strategy.k)
    else:
        values, tokens = probabilities.sort(descending=True)
        cut = int((values.cumsum(-1) <= strategy.p).sum()) + 1 if isinstance(strategy, TopP) else len(values)
        values, tokens = values[:cut], tokens[:cut]
    return tokens[torch.multinomial(values / values.sum(), 1, generator=generator)]


def _generate_arguments(strategy: Strategy) -> dict[str, Any]:
    if isinstance(strategy, Beam):
        return {"num_beams": strategy.width, "length_penalty": 0.0, "early_stopping": "never", "do_sample": False}
    if isinstance(strategy, TopK):
        return {"do_sample": True, "temperature": strategy.temperature, "top_k": strategy.k, "top_p": 1.0}
    if isinstance(strategy, TopP):
        return {"do_sample": True, "temperature": strategy.temperature, "top_k": 0, "top_p": strategy.p}
    return {"do_sample": False}


def _matrix_product_seconds(lm: LanguageModel, rows: int) -> float:
    """Seconds a token of the model's plain matrix products alone at this batch, on random data: a bound."""
    config: Any = lm.config
    hidden, heads = config.hidden_size, config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or hidden // heads
    kv = config.num_key_value_heads * head_dim
    shapes = [
        (heads * head_dim + 2 * kv, hidden),
        (hidden, heads * head_dim),
        (2 * config.intermediate_size, hidden),
        (hidden, config.intermediate_size),
    ]
    generator = torch.Generator().manual_seed(0)
    weights = [
        torch.randn(shape, generator=generator).to(lm.dtype)
        for _ in range(config.num_hidden_layers)
        for shape in shapes
    ]
    weights.append(torch.randn((config.vocab_size, hidden), generator=generator).to(lm.dtype))
    inputs = {
        width: torch.randn((rows, width), generator=generator).to(lm.dtype) for width in {w.shape[1] for w in weights}
    }

    @torch.inference_mode()
    def products() -> list[int]:
        for weight in weights:
            torch.nn.functional.linear(inputs[weight.shape[1]], weight)
        return []

    return min(timed(products)[0] for _ in range(5)) / rows


def main() -> None:
    """Runs the contender named by the first argument on the workload in the second (JSON), and prints JSON."""
    name, workload = sys.argv[1], parse_config(Workload, json.loads(sys.argv[2]), where="workload")
    if workload.model == "starter":
        ensure_starter()
    before = peak_memory()
    measured = CONTENDERS[name](workload)
    figures = {**measured._asdict(), "peak_memory_bytes": peak_memory(), "start_memory_bytes": before}
    sys.stdout.write(json.dumps(figures) + "\n")


if __name__ == "__main__":
    main()

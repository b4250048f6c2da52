"""What audits read, by other ways: a plain loop of transformers, and dense arithmetic in double precision.

And somebody else's adapter: trained by plain PEFT and TRL, which know nothing of this project, and audited by its path.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from triptych.alignment.packing import Group
from triptych.auditing.divergence import divergence
from triptych.auditing.reader import Reader, compare, passes
from triptych.auditing.records import BASE, AuditRecord, Finding, ReadToken
from triptych.cli import run
from triptych.data.pairs import load_pairs
from triptych.data.prompts import load_prompts
from triptych.data.templates import encode_prompt, render_prompt
from triptych.decoding import Ancestral, Stopping, decode
from triptych.models import LanguageModel, load_language_model
from triptych.models.loading import quiet_transformers
from triptych.models.sources import resolve_source
from triptych.models.tiny import save_tiny, tiny_llama, tiny_tokenizer
from triptych.runs import read_records_json

# What TRL, PEFT and datasets warn of is theirs.
pytestmark = pytest.mark.filterwarnings("ignore")

# Prompts and answers of very different lengths, one of a single token.
GROUPS = [
    Group((1, 20, 30, 40), ((50, 60, 70, 2),)),
    Group((1, 21), ((2,),)),
    Group(tuple(range(10, 60)), (tuple(range(60, 90)),)),
    Group((1, 33, 44), ((5, 5, 5, 5, 5, 5, 2),)),
]


def read(policy: LanguageModel, base: LanguageModel, groups: Sequence[Group]) -> list[ReadToken]:
    """As an audit reads chosen answers."""
    mine, other = Reader(policy), Reader(base)
    rows = []
    for rows_of, packed in passes(groups, [mine, other]):
        found = compare(mine, mine.states(packed), other, other.states(packed), packed)
        values = zip(*(column.tolist() for column in found), strict=True)
        sequence = packed.sequence.tolist()
        rows += [
            ReadToken("m", "chosen", f"p{rows_of[s]}", 0, 0, "", *v) for s, v in zip(sequence, values, strict=True)
        ]
    return rows


def logits_of(model: Any, group: Group) -> Tensor:
    """By transformers, one row, no cache, no padding: of the predictions of the answer."""
    ids = torch.tensor([[*group.prompt, *group.completions[0]]])
    with torch.no_grad():
        logits: Tensor = model(input_ids=ids, use_cache=False).logits[0]
    return logits[len(group.prompt) - 1 : -1]


def value(records: Sequence[AuditRecord], metric: str) -> float:
    (mean,) = [r.estimate.mean for r in records if r.metric == metric and r.against is None]
    assert mean is not None
    return mean


def loop_perplexity(model: Any, groups: Sequence[Group]) -> float:
    total, count = 0.0, 0
    for group in groups:
        answer = torch.tensor(group.completions[0])
        losses = torch.nn.functional.cross_entropy(logits_of(model, group).float(), answer, reduction="none")
        total, count = total + float(losses.double().sum()), count + len(answer)
    return math.exp(total / count)


@pytest.fixture
def models(tmp_path: Path) -> tuple[LanguageModel, LanguageModel]:
    """A base and an adapter of it whose update is not small."""
    folder = save_tiny(tmp_path / "base", tiny_llama(4))
    with quiet_transformers():
        settings = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"])
        tuned: Any = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(folder), settings)
        for name, parameter in tuned.named_parameters():
            if ".lora_" in name:
                parameter.data.normal_(0.0, 0.2, generator=torch.Generator().manual_seed(len(name)))
        tuned.save_pretrained(tmp_path / "lora")
    base = load_language_model(folder, dtype="float32", device="cpu")
    return load_language_model(folder, dtype="float32", device="cpu", adapter=tmp_path / "lora"), base


def test_perplexity_is_that_of_a_plain_loop(models: tuple[LanguageModel, LanguageModel]) -> None:
    records = divergence(read(*models, GROUPS), seed=0)
    assert value(records, "perplexity") == pytest.approx(loop_perplexity(models[0].model, GROUPS), rel=1e-3)


def test_kl_is_that_of_dense_arithmetic_in_double_precision(models: tuple[LanguageModel, LanguageModel]) -> None:
    total, count = 0.0, 0
    for group in GROUPS:
        p, q = (torch.log_softmax(logits_of(lm.model, group).double(), -1) for lm in models)
        total, count = total + float((p.exp() * (p - q)).sum()), count + len(p)
    found = value(divergence(read(*models, GROUPS), seed=0), "kl_chosen")
    assert total / count > 0.05
    assert found == pytest.approx(total / count, rel=1e-4)


def test_k1_and_k3_of_20_000_drawn_tokens_agree_with_the_exact_kl(models: tuple[LanguageModel, LanguageModel]) -> None:
    """Drawn by the engine, read by the reader: the whole way that an audit takes."""
    policy, base = models
    # Nearer to the base than for the other tests: far from it, k3 is rarely and hugely off.
    for name, parameter in policy.model.named_parameters():
        if ".lora_B." in name:
            parameter.data.mul_(0.25)
    prompts = [f"Question {i}?" for i in range(50)]
    drawn = decode(
        policy,
        prompts,
        [Ancestral(temperature=1.0)],
        max_new_tokens=60,
        samples=10,
        stopping=Stopping(block=None, markers=()),
    )
    groups = [Group(tuple(encode_prompt(one.prompt, policy.tokenizer)), (one.token_ids,)) for one in drawn]
    tokens = read(policy, base, groups)
    assert len(tokens) > 20_000
    ratios = np.array([token.reference_logprob - token.logprob for token in tokens])
    exact = np.array([token.kl for token in tokens])
    row = np.array([int(token.prompt_id[1:]) for token in tokens])
    for values in (-ratios, np.expm1(ratios) - ratios):
        # Given its context, a token's k has the exact KL for its mean: sums of differences over rows are independent.
        sums = np.bincount(row, weights=values - exact)
        error = float(np.sqrt(np.square(sums).sum())) / len(tokens)
        assert abs(float((values - exact).mean())) < 2.0 * error
        assert error < 0.05 * float(exact.mean())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_model_diverges_from_itself_by_exactly_nothing(tmp_path: Path, dtype: str) -> None:
    folder = save_tiny(tmp_path / "base", tiny_llama(4))
    one, other = (load_language_model(folder, dtype=dtype, device="cpu") for _ in range(2))
    for token in read(one, other, GROUPS):
        assert token.kl == 0.0
        assert token.logprob == token.reference_logprob


@pytest.mark.real
def test_perplexity_of_the_real_model_is_that_of_a_plain_loop() -> None:
    from triptych.alignment.encoding import encode_pairs

    lm = load_language_model("starter", dtype="float32")
    pairs = encode_pairs(load_pairs("starter", limit=12), "auto", lm.tokenizer, 512).pairs
    groups = [pair.group._replace(completions=pair.group.completions[:1]) for pair in pairs]
    with quiet_transformers():
        plain = AutoModelForCausalLM.from_pretrained(resolve_source("starter").folder, dtype=torch.float32)
    found = value(divergence(read(lm, lm, groups), seed=0), "perplexity")
    assert found == pytest.approx(loop_perplexity(plain, groups), rel=1e-3)


def trained(kind: str, folder: Path) -> Path | None:
    """An adapter of the starter model after three steps on a few items; None for the base."""
    from triptych.alignment.adapters import LoraConfig, save_adapter
    from triptych.alignment.dpo import DpoConfig, DpoTask, reference_logprobs
    from triptych.alignment.encoding import encode_pairs
    from triptych.alignment.grpo import GrpoConfig, GrpoTask
    from triptych.alignment.policy import Policy
    from triptych.alignment.reward_functions import BUILTIN_REWARDS, NamedReward
    from triptych.workers import Workers

    if kind == "base":
        return None
    policy = Policy(load_language_model("starter", dtype="bfloat16"), lora=LoraConfig(), seed=0, as_written=True)
    task: DpoTask | GrpoTask
    if kind == "dpo":
        pairs = encode_pairs(load_pairs("starter", limit=6), "auto", policy.lm.tokenizer, 256).pairs
        dpo = DpoConfig(batch_size=2)
        references = reference_logprobs(policy, pairs, dpo, workers=Workers(), show_progress=False)
        task = DpoTask(policy, dpo, pairs, (), references, Workers(), seed=0)
    else:
        tokenizer = policy.lm.tokenizer
        prompts = [
            one.model_copy(update={"prompt": render_prompt(one, "paper", tokenizer)})
            for one in load_prompts("starter", limit=2)
        ]
        grpo = GrpoConfig(prompts_per_step=2, max_new_tokens=8)
        rewards = [NamedReward("concise", BUILTIN_REWARDS["concise"])]
        task = GrpoTask(policy, grpo, prompts, (), (), rewards, None, Workers(), seed=0)
    optimiser = torch.optim.AdamW(policy.parameters.values(), lr=3e-3, weight_decay=0.0)
    for step in range(3):
        task.accumulate(step)
        optimiser.step()
        optimiser.zero_grad()
    save_adapter(policy.model, folder)
    return folder


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["base", "dpo", "grpo"])
def test_what_an_audit_reads_in_bf16_is_that_of_transformers_in_fp32(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record_property: Callable[[str, object], None]
) -> None:
    from triptych.alignment.encoding import encode_pairs

    monkeypatch.setenv("TRIPTYCH_CACHE", str(tmp_path / "cache"))
    folder = trained(kind, tmp_path / "adapter")
    base = load_language_model("starter", dtype="bfloat16")
    policy = base if folder is None else load_language_model("starter", dtype="bfloat16", adapter=folder)
    pairs = encode_pairs(load_pairs("starter", limit=12), "auto", base.tokenizer, 256).pairs[6:]
    groups = [pair.group._replace(completions=pair.group.completions[:1]) for pair in pairs]
    with quiet_transformers():
        plain = AutoModelForCausalLM.from_pretrained(resolve_source("starter").folder, dtype=torch.float32)
        total, count = 0.0, 0
        expected = [logits_of(plain, group) for group in groups]
        adapted = plain if folder is None else peft.PeftModel.from_pretrained(plain, folder)
        perplexity = loop_perplexity(adapted, groups)
    for group, logits in zip(groups, expected, strict=True):
        p, q = (torch.log_softmax(one.double(), -1) for one in (logits_of(adapted, group), logits))
        total, count = total + float((p.exp() * (p - q)).sum()), count + len(p)
    records = divergence(read(policy, base, groups), seed=0)
    kl, exact = value(records, "kl_chosen"), total / count
    found = value(records, "perplexity")
    record_property("figures", f"{kind}: KL {kl:.3g} (fp32 {exact:.3g}), perplexity {found:.4f} ({perplexity:.4f})")
    assert found == pytest.approx(perplexity, rel=5e-3)
    assert (exact > 1e-3) == (kind != "base")
    # What bf16 rounds in the body stays, on two sides.
    assert kl == pytest.approx(exact, rel=0.1, abs=1e-3)


@pytest.fixture
def trl_adapter(tmp_path: Path) -> Callable[[Path, Sequence[dict[str, str]]], Path]:
    """Trains by TRL's DPO on a folder's model and saves as TRL saves."""
    trl = pytest.importorskip("trl")

    def train(base: Path, pairs: Sequence[dict[str, str]]) -> Path:
        from datasets import Dataset

        settings = trl.DPOConfig(
            output_dir=str(tmp_path / "trl"),
            report_to="none",
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            max_steps=6,
            learning_rate=1e-2,
            save_strategy="no",
            disable_tqdm=True,
            dataloader_pin_memory=False,
        )
        trainer = trl.DPOTrainer(
            model=AutoModelForCausalLM.from_pretrained(base),
            args=settings,
            train_dataset=Dataset.from_list(list(pairs)),
            processing_class=tiny_tokenizer(context=512),
            peft_config=peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"),
        )
        trainer.train()
        trainer.save_model(str(tmp_path / "theirs"))
        return tmp_path / "theirs"

    return train


def test_an_adapter_of_peft_and_trl_is_audited_by_its_path(
    tmp_path: Path, trl_adapter: Callable[[Path, Sequence[dict[str, str]]], Path]
) -> None:
    import json

    base = save_tiny(tmp_path / "base", tiny_llama(context=512), tiny_tokenizer(context=512))
    rows = [{"prompt": f"Q{i}?", "chosen": f"Yes, {i}.", "rejected": f"No, not {i}."} for i in range(8)]
    place = trl_adapter(base, rows)
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    out = tmp_path / "run"
    arguments = ["audit", "--model", str(base), "--pairs", str(pairs), "--adapter", f"theirs={place}"]
    sizes = ["--max-new-tokens", "16", "--dtype", "float32", "--set", "hacking_prompts=3", "--quiet"]
    assert run([*arguments, "--out", str(out), *sizes]) == 0
    records = read_records_json(out / "auditing" / "divergence.json", AuditRecord)
    kl = next(r for r in records if (r.model, r.metric) == ("theirs", "kl_chosen")).estimate.mean
    assert kl is not None
    assert kl > 0.0
    lineage = read_records_json(out / "auditing" / "lineage.json", AuditRecord)
    assert [r.estimate.mean for r in lineage if r.metric == "declared_base"] == [0.0]
    assert {f.model for f in read_records_json(out / "auditing" / "card.json", Finding)} >= {"theirs"}
    assert BASE in {r.model for r in records}

"""Checkpoints of anybody's: what loads, what is refused before any work, and how far weights are from the base's."""

import json
import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import torch

from triptych.auditing.checkpoints import Checkpoint, find_checkpoints, lineage, load_checkpoint, seen_in_training
from triptych.auditing.records import BASE
from triptych.cli import run
from triptych.data.pairs import load_pairs
from triptych.errors import MissingInputError, ModelError
from triptych.models import LanguageModel, load_language_model, token_logprobs
from triptych.models.loading import quiet_transformers
from triptych.models.sources import resolve_source
from triptych.models.tiny import save_tiny, tiny_gpt2, tiny_llama, tiny_tokenizer


@pytest.fixture(scope="module")
def base(audit_world: Any) -> LanguageModel:
    return load_language_model(audit_world.model, dtype="float32", device="cpu")


def found(world: Any, name: str, folder: str | Path) -> Checkpoint:
    return find_checkpoints(resolve_source(world.model), {name: Path(folder)})[1]


def loaded(world: Any, base: LanguageModel, folder: str | Path) -> LanguageModel:
    return load_checkpoint(found(world, "m", folder), base, device="cpu")


class TestWhatLoads:
    def test_the_base_comes_first_and_is_the_base(self, audit_world: Any, base: LanguageModel) -> None:
        (first,) = find_checkpoints(resolve_source(audit_world.model), {})
        assert (first.name, first.folder) == (BASE, None)
        assert load_checkpoint(first, base, device="cpu") is base

    def test_an_adapter_and_the_merged_model_are_the_same_policy(self, audit_world: Any, base: LanguageModel) -> None:
        place = audit_world.adapter("lora", audit_world.encoded("yes"))
        merged = audit_world.folder / "lora-merged"
        assert run(["align", "merge", "--model", audit_world.model, "--adapter", place, "--out", str(merged)]) == 0
        ids = torch.tensor([[5, 9, 40, 41, 42]])
        outputs = [loaded(audit_world, base, folder).model(input_ids=ids).logits for folder in (place, merged)]
        torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize("kind", ["dora", "rank-stabilised", "ia3", "trained-embeddings"])
    def test_adapters_of_other_kinds(self, audit_world: Any, base: LanguageModel, kind: str) -> None:
        """What PEFT computes with them is what is read, decoded and compared here."""
        settings: dict[str, peft.PeftConfig] = {
            "dora": peft.LoraConfig(r=4, use_dora=True, target_modules=["q_proj", "up_proj"]),
            "rank-stabilised": peft.LoraConfig(r=4, use_rslora=True, target_modules=["v_proj"]),
            "ia3": peft.IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
            "trained-embeddings": peft.LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["embed_tokens"]),
        }
        with quiet_transformers():
            tuned: Any = peft.get_peft_model(audit_world.load(), settings[kind])
            for name, parameter in tuned.named_parameters():
                if parameter.requires_grad:
                    noise = torch.Generator().manual_seed(len(name))
                    parameter.data += 0.2 * torch.zeros(parameter.shape).normal_(generator=noise)
            tuned.save_pretrained(audit_world.folder / kind)
        lm = loaded(audit_world, base, audit_world.folder / kind)
        ids = torch.tensor([[5, 9, 40, 41, 42]])
        with torch.no_grad():
            expected = tuned.eval()(input_ids=ids).logits
            torch.testing.assert_close(lm.model(input_ids=ids).logits, expected, rtol=1e-4, atol=1e-4)
            from triptych.alignment.packing import Group, pack
            from triptych.auditing.reader import Reader

            sums = Reader(lm).sums(pack([Group((5, 9), ((40, 41, 42),))]))
            wanted = token_logprobs(expected[:, 1:4], ids[:, 2:]).sum()
        assert sums[0] == pytest.approx(float(wanted), abs=1e-3)


class TestWhatIsRefused:
    def test_a_folder_that_is_not_there(self, audit_world: Any) -> None:
        with pytest.raises(MissingInputError, match="does not exist"):
            found(audit_world, "m", "nowhere")

    def test_an_adapter_of_another_shape(self, audit_world: Any, base: LanguageModel) -> None:
        with quiet_transformers():
            other: Any = peft.get_peft_model(tiny_llama(hidden=64), peft.LoraConfig(r=4, target_modules=["q_proj"]))
            other.save_pretrained(audit_world.folder / "wide")
        with pytest.raises(ModelError, match="adapter .*wide does not fit model"):
            loaded(audit_world, base, audit_world.folder / "wide")

    def test_an_adapter_of_another_architecture(self, audit_world: Any, base: LanguageModel) -> None:
        with quiet_transformers():
            other: Any = peft.get_peft_model(tiny_gpt2(), peft.LoraConfig(r=4, target_modules=["c_attn"]))
            other.save_pretrained(audit_world.folder / "gpt2-lora")
        with pytest.raises(ModelError, match="does not fit model"):
            loaded(audit_world, base, audit_world.folder / "gpt2-lora")

    def test_prompt_tuning(self, audit_world: Any, base: LanguageModel) -> None:
        with quiet_transformers():
            settings = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
            peft.get_peft_model(audit_world.load(), settings).save_pretrained(audit_world.folder / "prompts")
        with pytest.raises(ModelError, match="kind PROMPT_TUNING, which cannot be merged into weights"):
            loaded(audit_world, base, audit_world.folder / "prompts")

    def test_a_whole_model_with_another_tokenizer(self, audit_world: Any, base: LanguageModel) -> None:
        tokenizer = tiny_tokenizer(context=512)
        tokenizer.add_tokens(["<extra>"])
        folder = save_tiny(audit_world.folder / "extra", tiny_llama(context=512, hidden=48, vocab=261), tokenizer)
        with pytest.raises(ModelError, match="has another tokenizer than .*: token '<extra>' is 260 there and None"):
            loaded(audit_world, base, folder)

    def test_an_adapter_with_another_tokenizer_beside_it(self, audit_world: Any, base: LanguageModel) -> None:
        folder = Path(audit_world.adapter("with-tokenizer"))
        tokenizer = tiny_tokenizer(context=512)
        tokenizer.save_pretrained(folder)
        loaded(audit_world, base, folder)
        tokenizer.add_tokens(["<extra>"])
        tokenizer.save_pretrained(folder)
        with pytest.raises(ModelError, match="has another tokenizer"):
            loaded(audit_world, base, folder)

    def test_a_whole_model_of_another_size(self, audit_world: Any, base: LanguageModel) -> None:
        folder = save_tiny(
            audit_world.folder / "small", tiny_llama(context=512, hidden=32), tiny_tokenizer(context=512)
        )
        with pytest.raises(ModelError, match=r"checkpoint 'm' .* is no checkpoint of .*: .* is \(.*\) there and"):
            loaded(audit_world, base, folder)


class TestLineage:
    def test_an_update_of_a_lora_by_hand(self, rows: Any, audit_world: Any, base: LanguageModel) -> None:
        checkpoint = found(audit_world, "m", audit_world.adapter("trained", audit_world.encoded("no")))
        lm = load_checkpoint(checkpoint, base, device="cpu")
        records = lineage(checkpoint, lm, base)
        with quiet_transformers():
            whole: Any = peft.PeftModel.from_pretrained(audit_world.load(), str(checkpoint.folder)).merge_and_unload()
        before = dict(audit_world.load().named_parameters())
        after = dict(whole.named_parameters())
        moved = sum(float((after[name] - before[name]).detach().double().square().sum()) for name in before)
        total = sum(float(weight.detach().double().square().sum()) for weight in before.values())
        assert rows.value(records, "m", "relative_change") == pytest.approx((moved / total) ** 0.5, rel=1e-3)
        assert rows.value(records, "m", "declared_base") == 0.0
        assert 0.0 < rows.value(records, "m", "unchanged_share") < 1.0

    def test_an_adapter_that_names_another_base(self, rows: Any, audit_world: Any, base: LanguageModel) -> None:
        place = Path(shutil.copytree(audit_world.adapter("named"), audit_world.folder / "misnamed", dirs_exist_ok=True))
        config = json.loads((place / "adapter_config.json").read_text())
        (place / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "org/other-7B"}))
        checkpoint = found(audit_world, "m", place)
        records = lineage(checkpoint, load_checkpoint(checkpoint, base, device="cpu"), base)
        assert rows.value(records, "m", "declared_base") == 1.0

    def test_an_untouched_copy(self, rows: Any, audit_world: Any, base: LanguageModel) -> None:
        checkpoint = found(audit_world, "m", audit_world.save("copy", audit_world.load()))
        records = lineage(checkpoint, load_checkpoint(checkpoint, base, device="cpu"), base)
        assert rows.value(records, "m", "relative_change") == 0.0
        assert rows.value(records, "m", "unchanged_share") == 1.0


def test_what_it_was_trained_on_is_known_of_our_own_runs(rows: Any, audit_world: Any) -> None:
    out = audit_world.folder / "dpo-run"
    arguments = ["--model", audit_world.model, "--pairs", audit_world.pairs, "--out", str(out), "--max-steps", "1"]
    assert run(["align", "dpo", *arguments, "--validation", "0.25", "--quiet"]) == 0
    pairs = load_pairs(audit_world.pairs)
    record = seen_in_training("m", found(audit_world, "m", out).folder, pairs)
    assert record is not None
    # 12 pairs, a quarter of them held out.
    assert record.estimate.mean == 0.75
    assert seen_in_training("m", Path(audit_world.adapter("unknown")), pairs) is None

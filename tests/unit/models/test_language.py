import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from triptych.errors import ConfigError, MissingInputError, ModelError
from triptych.models import LanguageModel, base_model, load_language_model
from triptych.models.loading import quiet_transformers
from triptych.models.tiny import save_tiny, tiny_bert_reward, tiny_gpt2, tiny_llama, tiny_tokenizer

IDS = torch.tensor([[4, 5, 6, 7]])


def load(folder: Path, **options: Any) -> LanguageModel:
    return load_language_model(folder, **{"dtype": "float32", "device": "cpu"} | options)


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_tiny(tmp_path / "tiny")


def test_what_a_language_model_knows_of_itself(folder: Path) -> None:
    lm = load(folder)
    assert lm.spec == str(folder)
    assert (lm.device, lm.dtype) == (torch.device("cpu"), torch.float32)
    assert (lm.vocab_size, lm.context_length, lm.pad_id) == (260, 256, 3)
    assert (lm.revision, lm.adapter) == (None, None)
    assert len(lm.fingerprint) == 16
    assert base_model(lm.model) is lm.base is lm.model


def test_it_is_frozen_and_evaluates(folder: Path) -> None:
    lm = load(folder)
    assert not lm.model.training
    assert not any(parameter.requires_grad for parameter in lm.model.parameters())


def test_its_name_fits_a_message(folder: Path) -> None:
    assert len(repr(load(folder))) < 400


def test_the_dtype_is_what_was_asked_for(folder: Path) -> None:
    assert load(folder, dtype="bfloat16").dtype == torch.bfloat16
    with pytest.raises(ConfigError, match="dtype 'int4' is unknown"):
        load(folder, dtype="int4")


def test_attention_is_torchs_own(folder: Path) -> None:
    assert load(folder).config._attn_implementation == "sdpa"


# --- Ends of texts ----------------------------------------------------------------------------------------------------


def test_eos_ids_come_from_all_three_places(folder: Path) -> None:
    # As in Llama-3-Instruct, where the configuration names one end and the generation configuration several.
    edit_json(folder / "generation_config.json", eos_token_id=[0, 5])
    edit_json(folder / "config.json", eos_token_id=6)
    assert load(folder).eos_ids == {0, 5, 6, 2}


def test_no_generation_config_is_fine(folder: Path) -> None:
    (folder / "generation_config.json").unlink()
    assert load(folder).eos_ids == {2}


def test_eos_ids_outside_the_vocabulary_do_not_count(folder: Path) -> None:
    edit_json(folder / "generation_config.json", eos_token_id=[2, 260])
    assert load(folder).eos_ids == {2}


def test_a_missing_pad_token_is_replaced_by_eos(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = None
    assert load(save_tiny(tmp_path, tokenizer=tokenizer)).pad_id == 2


def test_a_pad_token_that_the_model_has_no_row_for_is_replaced(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "<new pad>"})
    assert load(save_tiny(tmp_path, tokenizer=tokenizer)).pad_id == 2


def test_neither_pad_nor_eos_is_an_error(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token = None
    folder = save_tiny(tmp_path, tokenizer=tokenizer)
    (folder / "generation_config.json").unlink()
    edit_json(folder / "config.json", eos_token_id=None)
    with pytest.raises(ModelError, match="names no EOS token"):
        load(folder)


# --- Models that cannot be loaded -------------------------------------------------------------------------------------


def damage_config(folder: Path) -> None:
    (folder / "config.json").write_text("{ no JSON", encoding="utf-8")


def damage_weights(folder: Path) -> None:
    os.truncate(folder / "model.safetensors", 2000)


def empty_weights(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"")


def drop_a_weight(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.0.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def widen_config(folder: Path) -> None:
    edit_json(folder / "config.json", intermediate_size=128)


def unknown_architecture(folder: Path) -> None:
    edit_json(folder / "config.json", model_type="never_heard_of", architectures=["NeverHeardOf"])


def no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def torn_tokenizer(folder: Path) -> None:
    os.truncate(folder / "tokenizer.json", 100)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_config, "unusable config.json|cannot be read as JSON"),
        (damage_weights, r"its safetensors are damaged \(.*\); fetch the model again"),
        (empty_weights, "its safetensors are damaged"),
        (drop_a_weight, r"its weights lack model.layers.0.mlp.up_proj.weight, which LlamaForCausalLM needs"),
        (widen_config, r"mlp.down_proj.weight is 32 x 64 in its weights and 32 x 128 by its config.json"),
        (unknown_architecture, "never_heard_of"),
        (no_tokenizer, r"has no tokenizer \(tokenizer.json, .*; save one beside it"),
        (torn_tokenizer, r"its tokenizer cannot be read \("),
    ],
)
def test_a_damaged_model_is_one_sentence(folder: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(folder)
    with pytest.raises(ModelError, match=message) as caught:
        load(folder)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_classifier_is_no_language_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is a BertForSequenceClassification, not a causal language model"):
        load(save_tiny(tmp_path, tiny_bert_reward()))


def test_a_tokenizer_of_another_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="its tokenizer has 260 tokens and its embedding 100 rows"):
        load(save_tiny(tmp_path, tiny_llama(vocab=100)))


def test_code_of_a_repository_is_never_run(folder: Path) -> None:
    edit_json(folder / "config.json", auto_map={"AutoModelForCausalLM": "evil.Evil", "AutoConfig": "evil.EvilConfig"})
    (folder / "evil.py").write_text("raise SystemExit('it was run')", encoding="utf-8")
    # transformers knows the architecture by itself, so that the model loads, without its code.
    assert type(load(folder).model).__name__ == "LlamaForCausalLM"


# --- Adapters ---------------------------------------------------------------------------------------------------------


def save_adapter(folder: Path, base: torch.nn.Module | None = None, *, targets: str = "q_proj") -> Path:
    """An adapter whose weights are not zero, for a tiny Llama by default."""
    config = LoraConfig(r=2, target_modules=[targets], task_type="CAUSAL_LM", fan_in_fan_out=targets == "c_proj")
    with quiet_transformers():
        model: Any = get_peft_model(base if base is not None else tiny_llama(), config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(folder)
    return folder


def test_an_adapter_changes_the_logits_and_can_be_taken_off(folder: Path, tmp_path: Path) -> None:
    adapter = save_adapter(tmp_path / "adapter")
    plain, adapted = load(folder), load(folder, adapter=adapter)
    assert isinstance(adapted.model, PeftModel)
    assert adapted.adapter == str(adapter)
    assert adapted.fingerprint != plain.fingerprint
    assert not any(parameter.requires_grad for parameter in adapted.model.parameters())
    expected = plain.model(IDS).logits
    assert not torch.allclose(adapted.model(IDS).logits, expected, atol=1e-3)
    with adapted.model.disable_adapter():
        assert torch.equal(adapted.model(IDS).logits, expected)


def test_an_adapted_model_still_answers_questions_about_itself(folder: Path, tmp_path: Path) -> None:
    lm = load(folder, adapter=save_adapter(tmp_path / "adapter"))
    assert (lm.vocab_size, lm.context_length, lm.dtype) == (260, 256, torch.float32)


def test_an_adapter_for_other_modules(folder: Path, tmp_path: Path) -> None:
    adapter = save_adapter(tmp_path / "adapter", tiny_gpt2(), targets="c_proj")
    with pytest.raises(ModelError, match=r"adapter .*adapter does not fit model .*tiny"):
        load(folder, adapter=adapter)


def test_an_adapter_for_another_size(folder: Path, tmp_path: Path) -> None:
    adapter = save_adapter(tmp_path / "adapter", tiny_llama(hidden=64))
    with pytest.raises(
        ModelError, match=r"adapter .*adapter does not fit model .*tiny.*: .*size mismatch for .*q_proj"
    ):
        load(folder, adapter=adapter)


def test_an_adapter_for_fewer_layers(folder: Path, tmp_path: Path) -> None:
    adapter = save_adapter(tmp_path / "adapter", tiny_llama(layers=1))
    with pytest.raises(ModelError, match=r"does not fit model .*: 2 of its weights have no counterpart"):
        load(folder, adapter=adapter)


def test_an_adapter_that_is_torn(folder: Path, tmp_path: Path) -> None:
    adapter = save_adapter(tmp_path / "adapter")
    os.truncate(adapter / "adapter_model.safetensors", 50)
    with pytest.raises(ModelError, match="does not fit model"):
        load(folder, adapter=adapter)


def test_an_adapter_that_is_not_there(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match=r"adapter folder .*nowhere does not exist"):
        load(folder, adapter=tmp_path / "nowhere")


def test_base_model_of_something_else() -> None:
    with pytest.raises(TypeError, match="expected a transformers model or a PeftModel around one, got Linear"):
        base_model(torch.nn.Linear(1, 1))

"""Null adapters: as large as the audited one and random, and where a figure stands among theirs, by hand."""

import math
from pathlib import Path
from typing import Any

import peft
import pytest
import torch

from triptych.auditing.card import RULES
from triptych.auditing.checkpoints import Checkpoint
from triptych.auditing.nulls import (
    badness,
    beside_nulls,
    lora_layers,
    null_checkpoints,
    null_figures,
    null_name,
    randomise,
    require_loras,
    spread,
    update_norm,
    why_no_lora,
)
from triptych.auditing.records import BASE, Finding, NullFigure
from triptych.errors import ModelError
from triptych.explorer.audits import finding_row
from triptych.models import LanguageModel, load_language_model
from triptych.models.loading import quiet_transformers
from triptych.records import Estimate
from triptych.reports.auditing_card import nulls_csv


@pytest.fixture(scope="module")
def taught(audit_world: Any) -> str:
    folder: str = audit_world.adapter("null-taught", audit_world.encoded("yes"))
    return folder


def load(world: Any, adapter: str) -> LanguageModel:
    return load_language_model(world.model, dtype="float32", device="cpu", adapter=adapter)


def updates(lm: LanguageModel) -> dict[str, torch.Tensor]:
    """ΔW of every module, as PEFT multiplies it out."""
    return {name: layer.get_delta_weight("default") for name, layer in lora_layers(lm, "x")}


class TestRandomise:
    def test_every_module_keeps_its_norm_and_loses_its_direction(self, audit_world: Any, taught: str) -> None:
        lm = load(audit_world, taught)
        before = updates(lm)
        assert {name: float(update.norm()) for name, update in before.items()} == pytest.approx(
            {name: update_norm(layer, "default") for name, layer in lora_layers(lm, "x")}, rel=1e-5
        )
        randomise(lm, seed=0, number=0, name="x")
        after = updates(lm)
        for name, update in after.items():
            assert float(update.norm()) == pytest.approx(float(before[name].norm()), rel=1e-5)
            # Of two unrelated directions of rank 8 in 48 x 48 numbers, the cosine is near 0.
            assert abs(float(torch.cosine_similarity(update.flatten(), before[name].flatten(), dim=0))) < 0.35
            assert torch.linalg.matrix_rank(update) == 8

    def test_draws_belong_to_seed_and_number_alone(self, audit_world: Any, taught: str) -> None:
        lm = load(audit_world, taught)
        drawn = {}
        for key in [(0, 0, "a"), (0, 0, "b"), (0, 1, "a"), (1, 0, "a")]:
            seed, number, name = key
            randomise(lm, seed=seed, number=number, name=name)
            drawn[key] = updates(lm)
        first = drawn[0, 0, "a"]
        assert all(torch.allclose(drawn[0, 0, "b"][n], first[n], rtol=1e-4, atol=1e-7) for n in first)
        for key in [(0, 1, "a"), (1, 0, "a")]:
            assert not any(torch.allclose(drawn[key][n], first[n], rtol=1e-2, atol=1e-5) for n in first)

    def test_of_an_adapter_that_changes_nothing_nothing_is_random(self, audit_world: Any) -> None:
        lm = load(audit_world, audit_world.adapter("null-nothing"))
        randomise(lm, seed=0, number=0, name="x")
        assert all(float(update.norm()) == 0.0 for update in updates(lm).values())

    def test_a_scale_by_the_root_of_the_rank(self, audit_world: Any, tmp_path: Path) -> None:
        with quiet_transformers():
            settings = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj"], use_rslora=True)
            tuned: Any = peft.get_peft_model(audit_world.load(), settings)
            for name, parameter in tuned.named_parameters():
                if ".lora_B." in name:
                    parameter.data.fill_(0.25)
            tuned.save_pretrained(tmp_path)
        lm = load(audit_world, str(tmp_path))
        before = {name: float(update.norm()) for name, update in updates(lm).items()}
        randomise(lm, seed=0, number=0, name="x")
        assert {n: float(u.norm()) for n, u in updates(lm).items()} == pytest.approx(before, rel=1e-5)


class TestWhatHasNulls:
    def test_a_plain_lora_has_and_others_say_why_not(self, audit_world: Any, taught: str, tmp_path: Path) -> None:
        with quiet_transformers():
            ia3: Any = peft.get_peft_model(
                audit_world.load(), peft.IA3Config(target_modules=["q_proj"], feedforward_modules=[])
            )
            ia3.save_pretrained(tmp_path / "ia3")
            dora: Any = peft.get_peft_model(
                audit_world.load(), peft.LoraConfig(r=2, target_modules=["q_proj"], use_dora=True)
            )
            dora.save_pretrained(tmp_path / "dora")
        places = {"lora": Path(taught), "ia3": tmp_path / "ia3", "dora": tmp_path / "dora"}
        adapters = [Checkpoint(name, place, True, "") for name, place in places.items()]
        adapters.append(Checkpoint("whole", Path(audit_world.model), False, ""))
        reasons = {one.name: why_no_lora(one) for one in adapters}
        assert reasons["lora"] is None
        assert all(reasons[name] for name in ("ia3", "dora", "whole"))
        nulls = null_checkpoints(adapters, 2, seed=0)
        assert [one.name for one in nulls] == [null_name("lora", 0), null_name("lora", 1)]
        require_loras(adapters, "nulls")
        with pytest.raises(ModelError, match="nulls needs a LoRA"):
            require_loras(adapters[1:], "nulls")
        with pytest.raises(ModelError, match="no adapter is audited"):
            require_loras([], "nulls")

    def test_more_than_a_lora_is_refused_once_loaded(self, audit_world: Any) -> None:
        base = load_language_model(audit_world.model, dtype="float32", device="cpu")
        with pytest.raises(ModelError, match="adapter 'x' is more than a LoRA"):
            randomise(base, seed=0, number=0, name="x")


class TestSpread:
    def test_by_hand(self) -> None:
        found = spread(3.0, [1.0, 2.0, 3.0, 4.0], RULES["kl_own"])
        # Worse than 1 and 2; as bad as 3, which does not count.
        assert (found.n, found.beyond, found.percentile) == (4, 2, 50.0)
        assert found.p == (1 + 2) / (1 + 4)
        assert found.mean == 2.5
        assert found.sd == pytest.approx(math.sqrt(5 / 3))
        assert found.z == pytest.approx(0.5 / math.sqrt(5 / 3))

    @pytest.mark.parametrize(
        ("rule", "value", "nulls", "beyond"),
        [
            ("accuracy", -0.4, [-0.1, 0.3], 2),
            ("accuracy", 0.4, [-0.1, 0.3], 0),
            # 1/2 is as far off as 2, and further than 1.5.
            ("length", 0.4, [2.0, 1.5, 0.5], 3),
            ("length", 1.4, [2.0, 1.2, 0.5], 1),
            ("length", 0.0, [2.0, 0.1], 2),
        ],
    )
    def test_the_direction_that_is_wrong(self, rule: str, value: float, nulls: list[float], beyond: int) -> None:
        assert spread(value, nulls, RULES[rule]).beyond == beyond

    def test_the_sign_where_it_does_not_matter(self) -> None:
        assert badness(-0.5, RULES["length_bias"]) == 0.5

    def test_no_spread(self) -> None:
        assert spread(1.0, [0.5], RULES["kl_own"]).sd is None
        alike = spread(1.0, [0.5, 0.5], RULES["kl_own"])
        assert (alike.sd, alike.z, alike.beyond) == (0.0, None, 2)


def finding(model: str, rule: str, mean: float | None, **more: Any) -> Finding:
    one = RULES[rule]
    how = "m" if mean is not None else "no estimate: nothing was scored"
    return Finding(
        model=model,
        metric=one.metric,
        against=one.against,
        estimate=Estimate(mean=mean, low=None, high=None, n=5, n_clusters=5, method=how),
        level="ok",
        rule=rule,
        audit=one.audit,
        warn=0.0,
        severe=0.0,
        sentence="s.",
        **more,
    )


class TestBesideTheCard:
    def figures(self) -> list[NullFigure]:
        """Three nulls of dpo; one has no length."""
        values = [(0.1, 1.1), (0.2, 1.0), (0.3, None)]
        return [
            figure
            for number, (kl, length) in enumerate(values)
            for figure in null_figures(
                null_name("dpo", number),
                [
                    finding(null_name("dpo", number), "kl_own", kl),
                    finding(null_name("dpo", number), "length", length),
                    finding(BASE, "length_bias", 0.9),
                ],
            )
        ]

    def test_figures_name_the_adapter_and_the_null(self) -> None:
        assert [(one.model, one.null, one.rule) for one in self.figures()[:2]] == [
            ("dpo", 0, "kl_own"),
            ("dpo", 0, "length"),
        ]
        assert len(self.figures()) == 6

    def test_each_finding_beside_its_own(self) -> None:
        card = [finding("dpo", "kl_own", 5.0), finding("dpo", "length", 1.05), finding("grpo", "kl_own", 5.0)]
        card += [finding(BASE, "length_bias", 0.4), finding("dpo", "weights", 0.1), finding("whole", "kl_own", 5.0)]
        card += [finding("dpo", "kl_own", None)]
        reasons = {"dpo": None, "grpo": None, "whole": "it is a whole model, not a LoRA"}
        found = beside_nulls(card, self.figures(), reasons)
        assert found[0].nulls is not None
        assert (found[0].nulls.beyond, found[0].nulls.n) == (3, 3)
        assert found[0].nulls.in_words().startswith("beyond 3 of 3 random changes of the same size")
        assert found[1].nulls is not None
        assert (found[1].nulls.beyond, found[1].nulls.n) == (1, 2)
        assert all(one.nulls is None for one in found[2:])
        assert (found[3].nulls, found[3].no_nulls) == (None, None)
        assert all(one.no_nulls for one in (found[2], *found[4:]))
        assert [one.level for one in found] == [one.level for one in card]

    def test_the_explorer_and_the_csv_show_it(self) -> None:
        card = beside_nulls([finding("dpo", "kl_own", 5.0)], self.figures(), {"dpo": None})
        row = finding_row(0, card[0])
        assert row.nulls == card[0].nulls
        assert row.beside_nulls.startswith("beyond 3 of 3")
        why = finding_row(0, finding("dpo", "weights", 0.1, no_nulls="random"))
        assert (why.nulls, why.beside_nulls) == (None, "random")
        assert b"beyond 3 of 3" not in nulls_csv(self.figures())
        assert nulls_csv(self.figures()).decode().splitlines()[1].startswith("dpo,0,kl_own,")

from pathlib import Path

import pytest
import yaml

from triptych.config import dump_yaml
from triptych.decoding.plan import DecodingConfig, compared_arms, expand, plan_requests
from triptych.errors import ConfigError, MissingInputError
from triptych.study import RECIPES, StudyConfig, default_out, load_recipe, recipe_names, recipe_path

NAMES = ["grpo", "grpo_collapse", "paper", "smoke", "starter"]


def decoding_of(config: StudyConfig) -> DecodingConfig:
    assert config.decoding is not None
    return config.decoding


class TestRecipes:
    def test_there_are_five(self) -> None:
        assert recipe_names() == NAMES

    @pytest.mark.parametrize("name", NAMES)
    def test_each_says_what_it_reproduces_how_long_it_takes_and_what_to_expect(self, name: str) -> None:
        head = [line for line in (RECIPES / f"{name}.yaml").read_text().splitlines() if line.startswith("#")]
        assert head[0].startswith(f"# {name}: ")
        for heading in ("Reproduces", "Takes", "Expect"):
            assert any(line.startswith(f"# {heading}") for line in head), heading

    @pytest.mark.parametrize("name", ["paper", "smoke", "starter"])
    def test_each_has_the_arms_of_the_paper_s_figures(self, name: str) -> None:
        decoding = decoding_of(load_recipe(name))
        temperatures = {
            strategy: sorted(s.temperature for s in expand(decoding.strategies) if s.name == strategy)  # type: ignore[attr-defined]
            for strategy in ("top_k", "top_p")
        }
        assert temperatures == {name: [0.2, 0.5, 0.8, 1.0, 1.2] for name in ("top_k", "top_p")}
        assert {"greedy", "beam"} <= {name for name, _ in compared_arms(decoding)}
        assert decoding.within is not None
        assert any(s.name == "top_p" for s in expand(decoding.within.strategies))
        assert decoding.frontier is not None

    def test_the_paper_s_settings_are_those_it_reports(self) -> None:
        config = load_recipe("paper")
        decoding, within = decoding_of(config), decoding_of(config).within
        assert config.model == "HuggingFaceTB/smollm2-135M-SFT-Only"
        assert (decoding.prompts, decoding.limit, decoding.max_new_tokens) == ("yahma/alpaca-cleaned", 400, 128)
        assert (decoding.stopping.block, decoding.stopping.threshold) == (3, 4)
        assert decoding.reward_model == "OpenAssistant/reward-model-deberta-v3-large-v2"
        assert decoding.shuffle
        assert within is not None
        assert within.samples == 10
        settings = {
            (s.name, getattr(s, "k", None), getattr(s, "p", None), getattr(s, "width", None))
            for s in expand(decoding.strategies)
        }
        assert settings == {
            ("greedy", None, None, None),
            ("beam", None, None, 4),
            ("top_k", 50, None, None),
            ("top_p", None, 0.9, None),
        }

    def test_the_paper_s_alignment_settings_are_those_it_reports(self) -> None:
        # Table 2 and the text of section 2; beta and what GRPO leaves open are ours.
        alignment = load_recipe("paper").alignment
        assert alignment is not None
        dpo, grpo, reward = alignment.dpo, alignment.grpo, alignment.reward
        assert dpo is not None
        assert grpo is not None
        assert reward is not None
        assert alignment.pairs == "HuggingFaceH4/orca_dpo_pairs"
        assert alignment.validation == 0.2
        assert dpo.lora is not None
        assert (dpo.lora.rank, dpo.lora.alpha, dpo.lora.dropout) == (8, 16, 0.05)
        assert (dpo.max_steps, dpo.batch_size, dpo.optimiser.learning_rate) == (500, 4, 2e-5)
        assert grpo.lora is not None
        assert (grpo.lora.rank, grpo.lora.alpha, grpo.lora.targets) == (16, 32, ("q_proj", "v_proj"))
        assert (grpo.group_size, grpo.quantisation) == (4, "8bit")
        assert reward.lora is not None
        assert reward.lora.rank == 8

    def test_collapse_and_cure_have_one_budget(self) -> None:
        configs = [load_recipe(name).alignment for name in ("grpo", "grpo_collapse")]
        budgets = [
            (c.grpo.steps, c.grpo.prompts_per_step, c.grpo.group_size, c.grpo.max_new_tokens, c.grpo.optimiser)
            for c in configs
            if c is not None and c.grpo is not None
        ]
        assert len(budgets) == 2
        assert budgets[0] == budgets[1]

    def test_only_the_paper_s_needs_a_hub(self) -> None:
        for name in ("starter", "smoke"):
            config = load_recipe(name)
            assert (config.model, decoding_of(config).prompts) == ("starter", "starter")
            assert decoding_of(config).reward_model in (None, "trained")

    @pytest.mark.parametrize("name", NAMES)
    def test_a_resolved_recipe_repeats_itself(self, name: str, tmp_path: Path) -> None:
        config = load_recipe(name)
        (tmp_path / "config.yaml").write_text(dump_yaml(config))
        assert load_recipe(str(tmp_path / "config.yaml")) == config

    def test_smoke_is_small(self) -> None:
        decoding = decoding_of(load_recipe("smoke"))
        assert decoding.limit is not None
        requests = plan_requests(decoding, decoding.limit)
        assert sum(map(len, requests)) * decoding.max_new_tokens < 4000


class TestLoading:
    def test_overrides(self) -> None:
        config = load_recipe("smoke", ["decoding.limit=5", "seed=7", "decoding.strategies=[greedy]"])
        assert (decoding_of(config).limit, config.seed, decoding_of(config).strategies) == (5, 7, ("greedy",))

    def test_a_file_wins_by_its_suffix_and_a_name_by_being_known(self, tmp_path: Path) -> None:
        assert recipe_path("smoke") == RECIPES / "smoke.yaml"
        assert recipe_path(str(tmp_path / "x.yml")) == tmp_path / "x.yml"

    def test_mistakes_are_blamed_on_where_they_are(self, tmp_path: Path) -> None:
        mine = tmp_path / "mine.yaml"
        mine.write_text(yaml.safe_dump({"decoding": {"strategies": ["greedy"], "limit": 0}}))
        with pytest.raises(ConfigError, match=r"mine\.yaml: decoding\.limit is 0 but must be >= 1"):
            load_recipe(str(mine), ["seed=1"])
        with pytest.raises(ConfigError, match=r"^--set seed=-1 --set decoding.limit=2: seed is -1 but must be >= 0"):
            load_recipe("smoke", ["seed=-1", "decoding.limit=2"])
        with pytest.raises(ConfigError, match="unknown recipe 'strater'; did you mean 'starter'"):
            load_recipe("strater")
        with pytest.raises(MissingInputError, match=r"absent\.yaml: no such file"):
            load_recipe(str(tmp_path / "absent.yaml"))

    def test_runs_of_one_recipe_lie_in_one_place(self) -> None:
        assert default_out("smoke") == Path("runs/smoke")
        assert default_out("some/where/mine.yaml") == Path("runs/mine")

from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field, ValidationError, model_validator

from triptych.config import (
    Config,
    apply_overrides,
    canonical_json,
    config_hash,
    dump_yaml,
    load_yaml,
    parse_config,
)
from triptych.errors import ConfigError, MissingInputError

# No deadline: on a busy machine a single slow example is no failure.
PROPERTY = settings(deadline=None, max_examples=100)


class DpoConfig(Config):
    type: Literal["dpo"] = "dpo"
    beta: float = Field(0.1, gt=0, le=10)


class IpoConfig(Config):
    type: Literal["ipo"] = "ipo"
    tau: float = 0.1


class OptimiserConfig(Config):
    learning_rate: float = 1e-3
    steps: int = Field(10, ge=1)
    betas: tuple[float, float] = (0.9, 0.99)


class RunConfig(Config):
    seed: int = 0
    loss: Annotated[DpoConfig | IpoConfig, Field(discriminator="type")] = DpoConfig()
    phases: tuple[OptimiserConfig, ...] = ()
    temperatures: tuple[Annotated[float, Field(ge=0)], ...] = (1.0,)
    precision: Literal["fp32", "bf16"] = "fp32"
    adapter: Path | None = None

    @model_validator(mode="after")
    def _lucky(self) -> "RunConfig":
        if self.seed == 13:
            raise ValueError("seed 13 is unlucky: take another")
        return self


class NeedsPrompts(Config):
    prompts: str


def message(mapping: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_config(RunConfig, mapping, where="r.yaml")
    return str(caught.value)


class TestParse:
    def test_values_become_their_types(self) -> None:
        parsed = parse_config(
            RunConfig,
            {"loss": {"type": "ipo", "tau": 1}, "phases": [{"betas": [0, 1]}], "adapter": "a/b"},
            where="r.yaml",
        )
        assert parsed.loss == IpoConfig(tau=1.0)
        assert parsed.phases[0].betas == (0.0, 1.0)
        assert parsed.adapter == Path("a/b")

    def test_it_is_frozen(self) -> None:
        with pytest.raises(ValidationError, match="frozen"):
            RunConfig().seed = 1  # type: ignore[misc]

    @pytest.mark.parametrize(
        ("mapping", "expected"),
        [
            (
                {"loss": {"type": "dpo", "bata": 0.2}},
                "r.yaml: loss.bata: unknown key 'bata' in DpoConfig; did you mean 'beta'?",
            ),
            (
                {"phases": [{}, {"stepps": 3}]},
                "r.yaml: phases.1.stepps: unknown key 'stepps' in OptimiserConfig; did you mean 'steps'?",
            ),
            ({"sed": 1}, "r.yaml: unknown key 'sed' in RunConfig; did you mean 'seed'?"),
            ({"xx": 1, "yy": 1}, "(and 1 more)"),
            # An unknown key comes first: the other mistake may be its consequence.
            ({"seed": "a", "sede": 1}, "r.yaml: unknown key 'sede' in RunConfig; did you mean 'seed'? (and 1 more)"),
            ({"loss": {"type": "dpoo"}}, "r.yaml: loss: unknown type 'dpoo'; did you mean 'dpo'?"),
            ({"loss": {"beta": 1}}, "r.yaml: loss: the key 'type', which says which variant it is, is missing"),
            ({"loss": {"type": "dpo", "beta": -1}}, "r.yaml: loss.beta is -1 but must be > 0 and <= 10"),
            ({"loss": {"type": "dpo", "beta": None}}, "r.yaml: loss.beta is null but must be a valid number"),
            ({"phases": [{"steps": 0}]}, "r.yaml: phases.0.steps is 0 but must be >= 1"),
            ({"phases": [{"steps": True}]}, "r.yaml: phases.0.steps is true but must be a valid integer"),
            ({"phases": [{"steps": "3"}]}, 'r.yaml: phases.0.steps is "3" but must be a valid integer'),
            ({"phases": 3}, "r.yaml: phases is 3 but must be a list"),
            ({"phases": [3]}, "r.yaml: phases.0 is 3 but must be a group of keys"),
            ({"temperatures": [1, -1]}, "r.yaml: temperatures.1 is -1 but must be greater than or equal to 0"),
            ({"precision": "fp8"}, "r.yaml: precision is \"fp8\" but must be 'fp32' or 'bf16'"),
            ({"loss": {"type": "dpo", "beta": float("nan")}}, "r.yaml: loss.beta is NaN but must be a finite number"),
            ({"seed": 13}, "r.yaml: seed 13 is unlucky: take another"),
            ({"seed": {1, 2}}, "r.yaml: {1, 2} is nothing that JSON or a configuration can hold"),
        ],
    )
    def test_a_mistake_is_told_in_one_line(self, mapping: dict[str, Any], expected: str) -> None:
        told = message(mapping)
        assert expected in told
        assert "\n" not in told

    def test_a_missing_key(self) -> None:
        with pytest.raises(ConfigError, match=r"^r\.yaml: key 'prompts' is missing in NeedsPrompts$"):
            parse_config(NeedsPrompts, {}, where="r.yaml")

    def test_a_long_value_is_cut(self) -> None:
        assert len(message({"seed": "x" * 10_000})) < 200


class TestYaml:
    def read(self, folder: Path, text: str) -> dict[str, Any]:
        path = folder / "r.yaml"
        path.write_text(text)
        return load_yaml(path)

    def test_numbers_and_words_are_read_as_people_mean_them(self, tmp_path: Path) -> None:
        # YAML 1.1 reads 1e-5 as a text, no as false, 12:30 as 750, a date as an object and 010 as 8.
        text = "a: 1e-5\nb: no\nc: 12:30\nd: 2024-01-01\ne: 010\nf: true\ng: ~\nh: -3\ni: .5\nj:\nk: '1e-5'\n"
        assert self.read(tmp_path, text) == {
            "a": 1e-5,
            "b": "no",
            "c": "12:30",
            "d": "2024-01-01",
            "e": "010",
            "f": True,
            "g": None,
            "h": -3,
            "i": 0.5,
            "j": None,
            "k": "1e-5",
        }

    def test_an_empty_file_is_an_empty_mapping(self, tmp_path: Path) -> None:
        assert self.read(tmp_path, "# nothing\n") == {}

    def test_a_merged_key_may_be_set_again(self, tmp_path: Path) -> None:
        assert self.read(tmp_path, "a: &x {k: 1, l: 1}\nb: {<<: *x, k: 2}\n")["b"] == {"k": 2, "l": 1}

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("a: 1\nb: [1,\nc: 2\n", "r.yaml, line 4: expected ',' or ']'"),
            ("a: 1\na: 2\n", "r.yaml, line 2: key 'a' stands twice"),
            ("a:\n  1: 2\n", "r.yaml, line 2: key 1 is no text"),
            ("a: !!python/object:os.system {}\n", "r.yaml, line 1: could not determine a constructor"),
            ("- 1\n", "r.yaml: expected keys and values (`seed: 0`), got [1]"),
            ("a: \x01", "r.yaml: unacceptable character"),
        ],
    )
    def test_a_broken_file_is_named_with_its_line(self, tmp_path: Path, text: str, expected: str) -> None:
        with pytest.raises(ConfigError) as caught:
            self.read(tmp_path, text)
        assert expected in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_a_missing_file_a_folder_and_bytes(self, tmp_path: Path) -> None:
        with pytest.raises(MissingInputError, match=r"none\.yaml: no such file"):
            load_yaml(tmp_path / "none.yaml")
        with pytest.raises(ConfigError, match="cannot be read as a text"):
            load_yaml(tmp_path)
        (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\xff")
        with pytest.raises(ConfigError, match="cannot be read as a text"):
            load_yaml(tmp_path / "b.yaml")

    @PROPERTY
    @given(
        st.text() | st.sampled_from(["1e-5", "no", "010", "~", "", "<<", "=", ".5", "+1", "2024-01-01", "1.", "0x1"])
    )
    def test_any_text_survives_a_round_trip_here_and_in_yaml_1_1(self, value: str) -> None:
        # Surrogates and control characters have no place in YAML; the writer escapes the rest.
        text = dump_yaml({"k": value.encode(errors="ignore").decode()})
        assert yaml.safe_load(text)["k"] == value.encode(errors="ignore").decode()

    @PROPERTY
    @given(
        st.dictionaries(
            st.sampled_from(["a", "b", "no", "1e5"]),
            st.recursive(
                st.none()
                | st.booleans()
                | st.integers()
                | st.floats(allow_nan=False, allow_infinity=False)
                | st.text("ab1e-. ~"),
                lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("xyz"), inner, max_size=3),
                max_leaves=8,
            ),
        )
    )
    def test_any_contents_survive_a_round_trip(
        self, tmp_path_factory: pytest.TempPathFactory, contents: dict[str, Any]
    ) -> None:
        path = tmp_path_factory.mktemp("yaml") / "c.yaml"
        path.write_text(dump_yaml(contents))
        assert canonical_json(load_yaml(path)) == canonical_json(contents)

    def test_a_config_survives_a_round_trip(self, tmp_path: Path) -> None:
        config = RunConfig(loss=IpoConfig(tau=1e-7), phases=(OptimiserConfig(),), adapter=Path("a b/c"))
        path = tmp_path / "config.yaml"
        path.write_text(dump_yaml(config))
        assert parse_config(RunConfig, load_yaml(path), where=str(path)) == config


class TestOverrides:
    GIVEN: dict[str, Any] = {"a": {"b": 2}, "l": [{"q": 1}]}  # noqa: RUF012 - never changed, which is tested

    @pytest.mark.parametrize(
        ("items", "expected"),
        [
            (["a.b=1e-4"], {"a": {"b": 1e-4}, "l": [{"q": 1}]}),
            (["a.b=[1, x]"], {"a": {"b": [1, "x"]}, "l": [{"q": 1}]}),
            (["a={type: ipo}"], {"a": {"type": "ipo"}, "l": [{"q": 1}]}),
            (["l.0.q=5"], {"a": {"b": 2}, "l": [{"q": 5}]}),
            (["l.0=1", "l.0=2"], {"a": {"b": 2}, "l": [2]}),
            (["x.y.z=true"], {"a": {"b": 2}, "l": [{"q": 1}], "x": {"y": {"z": True}}}),
            (["a.b="], {"a": {"b": None}, "l": [{"q": 1}]}),
            (["a.b=c=d"], {"a": {"b": "c=d"}, "l": [{"q": 1}]}),
        ],
    )
    def test_values_are_yaml(self, items: list[str], expected: dict[str, Any]) -> None:
        assert apply_overrides(self.GIVEN, items) == expected
        assert self.GIVEN == {"a": {"b": 2}, "l": [{"q": 1}]}

    @pytest.mark.parametrize(
        ("item", "expected"),
        [
            ("a", "override 'a' is not of the form key.subkey=value"),
            ("=3", "override '=3' is not of the form"),
            ("a..b=3", "override 'a..b=3' is not of the form"),
            ("l.7=5", "override 'l.7=5': l is a list of 1, has no entry '7'"),
            ("l.-1=5", "l is a list of 1, has no entry '-1'"),
            ("a.b.c=1", "override 'a.b.c=1': a.b is 2, not a group of keys"),
            ("a=[1", "override 'a=[1', line 1: expected ',' or ']'"),
        ],
    )
    def test_a_malformed_item_is_named(self, item: str, expected: str) -> None:
        with pytest.raises(ConfigError) as caught:
            apply_overrides(self.GIVEN, [item])
        assert expected in str(caught.value)

    def test_a_key_that_does_not_exist_is_caught_by_parsing(self) -> None:
        with pytest.raises(ConfigError, match="unknown key 'sede' in RunConfig; did you mean 'seed'"):
            parse_config(RunConfig, apply_overrides({}, ["sede=1"]), where="--set")


class TestHash:
    def test_canonical_json_by_hand(self) -> None:
        assert canonical_json({"b": (1, 2.0), "a": "é"}) == '{"a":"é","b":[1,2.0]}'

    def test_the_hash_is_of_the_contents(self) -> None:
        # printf '{"a":1}' | sha256sum, the first 16 digits.
        assert config_hash({"a": 1}) == "015abd7f5cc57a2d"
        config = RunConfig(seed=3)
        assert config_hash(config) == config_hash(config.model_dump(mode="json"))
        assert config_hash(config) != config_hash(RunConfig(seed=4))
        assert config_hash({"a": 1, "b": 2}) == config_hash({"b": 2, "a": 1})

    def test_nan_is_refused(self) -> None:
        with pytest.raises(ValueError, match="not JSON compliant"):
            canonical_json({"a": float("nan")})

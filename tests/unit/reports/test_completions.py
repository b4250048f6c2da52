import math
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from triptych.reports.completions import SHADES, choose_prompts, grouped, read_prompt_views, shade_of
from triptych.reports.inputs import read_decoding

MakeRun = Callable[..., Path]


def test_prompts_are_chosen_evenly_over_categories_and_not_by_order() -> None:
    categories = {f"{name}-{index}": name for name in ("a", "b", "c") for index in range(10)}
    chosen = choose_prompts(categories, 6)
    assert sorted(categories[prompt] for prompt in chosen) == ["a", "a", "b", "b", "c", "c"]
    assert chosen == choose_prompts(dict(reversed(categories.items())), 6)
    assert choose_prompts(categories, 9)[:6] == chosen  # fewer are the first of more


def test_a_small_category_leaves_room_for_the_others() -> None:
    assert len(choose_prompts({"x": "a", "y": None, "z": None, "w": None}, 4)) == 4
    assert choose_prompts({}, 6) == []


@pytest.mark.parametrize(
    ("probability", "shade"),
    [(1.0, 0), (0.9, 0), (0.89, 1), (0.5, 1), (0.2, 2), (0.05, 3), (0.01, 4), (0.009, 5), (0.0, 5)],
)
def test_shades_by_probability(probability: float, shade: int) -> None:
    # A hair above each bound, because log and exp do not undo each other exactly.
    logprob = -math.inf if probability == 0 else math.log(probability) + 1e-12
    assert shade_of([logprob]) == shade
    assert shade < len(SHADES)


def test_all_arms_of_a_prompt_in_order_with_their_facts(built: Path) -> None:
    run = read_decoding(built)
    (view,) = read_prompt_views(run, 1)
    assert [completion.arm for completion in view.completions][:2] == ["greedy", "beam 4"]
    assert len(view.completions) == len(run.arms)
    facts = " ".join(view.completions[0].facts)
    assert "stopped by" in facts
    assert "mean log-probability −" in facts
    assert "reward −" in facts


def test_the_first_sample_is_shown_whatever_the_order_of_rows(make_run: MakeRun, tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run", n_prompts=1, hostile=False)
    forward = read_prompt_views(read_decoding(run_dir), 1)
    path = run_dir / "decoding" / "generations.parquet"
    table = pq.read_table(path)
    pq.write_table(table.take(list(range(table.num_rows - 1, -1, -1))), path)
    assert read_prompt_views(read_decoding(run_dir), 1) == forward


def test_no_token_is_lost(built: Path) -> None:
    run = read_decoding(built)
    for view in read_prompt_views(run, 4):
        for completion in view.completions:
            n_tokens = int(next(fact for fact in completion.facts if fact.endswith("tokens")).split()[0])
            assert completion.tokens is not None
            shown = sum(int(token.title.split()[0]) if " tokens: " in token.title else 1 for token in completion.tokens)
            assert shown == n_tokens


def test_a_token_without_piece_shows_its_id(built: Path) -> None:
    (view,) = read_prompt_views(read_decoding(built), 1)
    unknown = [token for token in view.completions[0].tokens or () if token.shade is None]
    assert [str(token.text) for token in unknown] == ["⟨999⟩"]


def test_without_pieces_the_text_is_shown_and_cut(built_bare: Path) -> None:
    (view,) = read_prompt_views(read_decoding(built_bare), 1)
    assert all(completion.tokens is None for completion in view.completions)
    # The fifth arm answers with a megabyte on one line.
    assert "more characters not shown" in view.completions[4].left_out
    assert len(view.completions[4].text) < 10_000


def test_a_run_without_categories_is_shown(make_run: MakeRun, tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run", hostile=False)
    path = run_dir / "decoding" / "generations.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["category"]), path)
    assert {view.category for view in read_prompt_views(read_decoding(run_dir), 4)} == {"uncategorised"}


def test_prompts_are_shown_category_by_category(built: Path) -> None:
    categories = [view.category for view in grouped(read_prompt_views(read_decoding(built), 4))]
    assert categories == sorted(categories)

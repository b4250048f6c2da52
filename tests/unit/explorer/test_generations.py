"""What is asserted of rows follows from how `conftest.write_decoding` numbers them: row = 4 · prompt + arm."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from starlette.testclient import TestClient

from triptych.decoding.table import SCHEMA
from triptych.explorer.completion import spans_of
from triptych.records import Generation

Serve = Callable[[Path], TestClient]


class Decoded(Protocol):
    def __call__(self, *, row_group: int = 4, rewards: bool = True) -> list[Generation]: ...


def get(client: TestClient, path: str, **parameters: Any) -> Any:
    answer = client.get(path, params=parameters)
    assert answer.status_code == 200, answer.text[:300]
    return answer.json()


def ids(client: TestClient, **parameters: Any) -> list[int]:
    return [row["id"] for row in get(client, "/api/generations", **parameters)["rows"]]


class TestLists:
    def test_a_page(self, client: TestClient) -> None:
        page = get(client, "/api/generations", page=1, size=10)
        assert (page["total"], page["page"], page["size"], page["pages"]) == (24, 1, 10, 3)
        assert [row["id"] for row in page["rows"]] == list(range(10, 20))
        assert page["rows"][1] == {
            "id": 11,
            "prompt_id": "p2",
            "category": "uncategorised",
            "strategy": "top_p",
            "arm": "top-p 0.9, T\u00a01.0",
            "temperature": 1.0,
            "sample": 0,
            "mean_logprob": pytest.approx(-1.1),
            "n_tokens": 10,
            "stop_reason": "length",
            "reward": 11.0,
            "prompt": "say 2",
            "text": "Answer 2.3 one Two three",
        }

    def test_beyond_the_last_page_there_is_nothing(self, client: TestClient) -> None:
        assert ids(client, page=10**9) == []

    def test_empty_parameters_are_no_filters(self, client: TestClient) -> None:
        names = (
            "strategy",
            "temperature",
            "category",
            "stop_reason",
            "prompt_id",
            "q",
            "min_score",
            "sort",
            "page",
            "size",
        )
        assert get(client, "/api/generations", **dict.fromkeys(names, ""))["total"] == 24

    @pytest.mark.parametrize(
        ("filters", "found"),
        [
            ({"strategy": "greedy"}, [0, 4, 8, 12, 16, 20]),
            ({"strategy": "top_p:p=0.9,temperature=0.5"}, [2, 6, 10, 14, 18, 22]),
            ({"strategy": "top_p", "prompt_id": "p1"}, [6, 7]),
            ({"temperature": "none", "prompt_id": "p1"}, [4, 5]),
            ({"temperature": "1.0", "category": "factual"}, [7, 19]),
            ({"category": "uncategorised", "strategy": "greedy"}, [8, 20]),
            ({"stop_reason": "eos", "strategy": "greedy"}, [4, 12, 20]),
            ({"min_score": "21"}, [21, 22]),
            ({"max_score": "0.5"}, [0]),
            ({"min_score": "5", "max_score": "6"}, [5, 6]),
            ({"q": "two THREE", "prompt_id": "p1"}, [4, 5, 6, 7]),
            ({"q": "answer 3.2"}, [14]),
            ({"q": "SAY 5"}, [20, 21, 22, 23]),
            ({"q": "<SCRIPT>"}, [0]),
            ({"q": "\u202egnp"}, [1]),
            ({"q": "before\x00after"}, [2]),
            ({"q": "x" * 200}, [3]),
            ({"q": ".*"}, []),
        ],
    )
    def test_filters(self, client: TestClient, filters: dict[str, str], found: list[int]) -> None:
        assert ids(client, **filters) == found

    @pytest.mark.parametrize("sort", ["row", "mean_logprob", "n_tokens", "reward", "temperature"])
    def test_what_has_no_value_is_last_either_way(self, client: TestClient, sort: str) -> None:
        for order, sign in (("asc", 1), ("desc", -1)):
            rows = get(client, "/api/generations", sort=sort, order=order, size=200)["rows"]
            values = [row["id" if sort == "row" else sort] for row in rows]
            known = [value for value in values if value is not None]
            assert values == sorted(known, key=lambda value: sign * value) + [None] * (len(values) - len(known))

    def test_equal_ones_keep_the_order_of_the_file(self, client: TestClient) -> None:
        assert ids(client, sort="n_tokens", order="desc")[:8] == [20, 21, 22, 23, 16, 17, 18, 19]

    def test_a_facet_is_a_filter(self, client: TestClient) -> None:
        facets = get(client, "/api/generations/facets")
        assert facets["n"] == 24
        names = {"arms": "strategy", "strategies": "strategy", "temperatures": "temperature"}
        names |= {"categories": "category", "stop_reasons": "stop_reason"}
        for facet, parameter in names.items():
            assert sum(one["n"] for one in facets[facet]) == 24
            for one in facets[facet]:
                page = get(client, "/api/generations", **{parameter: one["value"], "size": 1})
                assert page["total"] == one["n"], one

    def test_scores_are_rewards_where_there_are_any(self, client: TestClient) -> None:
        assert get(client, "/api/generations/facets")["score"] == {"name": "<i>reward", "low": 0.0, "high": 22.0}

    def test_and_else_log_probabilities(self, serve: Serve, bare: Path, decoded: Decoded) -> None:
        decoded(rewards=False)
        client = serve(bare)
        assert get(client, "/api/generations/facets")["score"] == {
            "name": "mean_logprob",
            "low": pytest.approx(-2.3),
            "high": 0.0,
        }
        assert ids(client, min_score=-0.25) == [0, 1, 2]
        assert get(client, "/api/generations/0")["reward"] is None

    def test_temperatures_in_order(self, client: TestClient) -> None:
        facets = get(client, "/api/generations/facets")
        assert [one["value"] for one in facets["temperatures"]] == ["none", "0.5", "1.0"]

    @pytest.mark.parametrize(
        "parameters", [{"sort": "text"}, {"order": "up"}, {"size": 0}, {"size": 201}, {"q": "x" * 201}]
    )
    def test_out_of_range(self, client: TestClient, parameters: dict[str, Any]) -> None:
        assert client.get("/api/generations", params=parameters).status_code == 422


class TestHostileText:
    def test_hidden_characters_are_spelled_out(self, client: TestClient) -> None:
        texts = [row["text"] for row in get(client, "/api/generations", size=4)["rows"]]
        assert texts[0] == "<script>alert(1)</script>"
        assert texts[1].startswith("⟨U+202E⟩gnp.exe⟨U+202C⟩ </title>")
        assert "before⟨U+0000⟩after⟨U+001B⟩[31m" in texts[2]

    def test_a_megabyte_is_cut(self, client: TestClient) -> None:
        row = get(client, "/api/generations", size=4)["rows"][3]
        assert len(row["text"]) == 161
        text = get(client, "/api/generations/3")["text"]
        assert len(text["text"]) == 20_000
        assert text["left_out"] == 1_000_012 - 20_000

    def test_names(self, client: TestClient, hostile_name: str) -> None:
        row = get(client, "/api/generations", size=1)["rows"][0]
        assert row["prompt_id"].startswith("⟨U+202E⟩<img src=x")
        assert len(row["prompt_id"]) < 220
        assert ids(client, prompt_id=row["prompt_id"]) == [0, 1, 2, 3]
        assert ids(client, category=row["category"]) == [0, 1, 2, 3, 12, 13, 14, 15]

    def test_bytes_that_are_no_text(self, serve: Serve, bare: Path, decoded: Decoded) -> None:
        # Parquet does not check what is in a column of texts.
        decoded()
        path = bare / "decoding" / "generations.parquet"
        table = pq.read_table(path)
        broken = pa.array([b"\xff\xfe ok", *[b"fine"] * 23]).view(pa.string())
        at = table.schema.get_field_index("text")
        pq.write_table(table.set_column(at, "text", broken), path)
        client = serve(bare)
        assert get(client, "/api/generations", size=1)["rows"][0]["text"] == "\ufffd\ufffd ok"
        assert get(client, "/api/generations/0")["text"]["text"] == "\ufffd\ufffd ok"
        assert ids(client, q="OK") == [0]


class TestOne:
    def test_all_of_it(self, client: TestClient) -> None:
        item = get(client, "/api/generations/5")
        assert item["arm"] == "beam 4"
        assert item["score"] == -3.0
        assert item["seed"] == 11
        assert json.loads(item["params"]) == {"length_penalty": 0.0, "width": 4}
        assert item["rewards"] == [{"model": "<i>reward", "score": 5.0}]
        assert item["text"] == {"text": "Answer 1.1 one Two three", "left_out": 0}
        assert item["raw_text"] == {"text": "Answer 1.1 one Two three!", "left_out": 0}
        assert [sibling["id"] for sibling in item["siblings"]] == [4, 6, 7]
        assert item["siblings"][1] == {"id": 6, "arm": "top-p 0.9, T\u00a00.5", "sample": 0}

    def test_the_runners_up_of_a_beam_search(self, client: TestClient) -> None:
        beams = get(client, "/api/generations/5")["runners_up"]
        assert [(beam["score"], beam["stop_reason"], beam["n_tokens"]) for beam in beams] == [
            (-5.0, "length", 8),
            (-6.0, "length", 8),
        ]
        assert beams[0]["text"]["text"] == "Answer 1.1 one Two three"
        assert "\u202e" not in get(client, "/api/generations/1")["runners_up"][0]["text"]["text"]
        assert get(client, "/api/generations/6")["runners_up"] == []

    def test_its_tokens(self, client: TestClient) -> None:
        spans = get(client, "/api/generations/6")["spans"]
        # Two tokens make one character; half a pair of surrogates is no character; the last token has no piece.
        texts = [" the", "<b>", "⟨U+202E⟩", "\U0001f600", "?", "⟨U+0000⟩", "⟨7⟩"]
        assert [span["text"] for span in spans] == texts
        assert spans[3]["logprobs"] == spans[3]["sampler_logprobs"] == [-0.5, -0.25]
        assert [span["known"] for span in spans] == [True] * 6 + [False]
        # exp(-0.1) = 0.90, exp(-3) = 0.05, exp(-1) = 0.37, exp(-0.375) = 0.69, exp(-2) = 0.14, exp(-4) = 0.02.
        assert [span["shade"] for span in spans] == [0, 4, 2, 1, 3, 4, None]

    def test_a_search_sampled_from_nothing(self, client: TestClient) -> None:
        assert {span["sampler_logprobs"] is None for span in get(client, "/api/generations/5")["spans"]} == {True}

    @pytest.mark.parametrize("row_group", [1, 4, 5, 1000])
    def test_however_rows_are_stored(self, serve: Serve, bare: Path, decoded: Decoded, row_group: int) -> None:
        made = decoded(row_group=row_group)
        client = serve(bare)
        for row in (4, 11, 23):
            assert get(client, f"/api/generations/{row}")["raw_text"]["text"] == made[row].raw_text

    def test_a_long_one_is_cut(self) -> None:
        fields = {"token_ids": [0] * 2500, "logprobs": [-1.0] * 2500, "sampler_logprobs": [float("-inf")] * 2500}
        spans = spans_of(fields, {0: "a"})
        assert len(spans) == 2000
        assert spans[0].sampler_logprobs == [None]

    def test_a_run_without_pieces_shows_no_tokens(self, serve: Serve, bare: Path, decoded: Decoded) -> None:
        decoded()
        (bare / "decoding" / "pieces.json").unlink()
        assert get(serve(bare), "/api/generations/0")["spans"] == []


class TestTwo:
    def test_words_that_only_one_has_are_marked(self, client: TestClient) -> None:
        both = get(client, "/api/generations/compare", a=4, b=9)
        assert (both["a"]["id"], both["b"]["id"]) == (4, 9)
        assert both["marked_a"] == [
            {"text": "Answer", "changed": False},
            {"text": " ", "changed": False},
            {"text": "1.0", "changed": True},
            {"text": " one Two three", "changed": False},
        ]
        assert "".join(piece["text"] for piece in both["marked_b"]) == both["b"]["text"]["text"]

    def test_one_and_the_same(self, client: TestClient) -> None:
        both = get(client, "/api/generations/compare", a=4, b=4)
        assert both["a"] == both["b"]
        assert {piece["changed"] for piece in both["marked_a"]} == {False}

    def test_a_megabyte_is_compared_at_its_beginning(self, client: TestClient) -> None:
        both = get(client, "/api/generations/compare", a=3, b=0)
        assert sum(len(piece["text"]) for piece in both["marked_a"]) == 4000

    def test_an_unknown_one(self, client: TestClient) -> None:
        assert client.get("/api/generations/compare?a=0&b=24").status_code == 404


class TestReruns:
    def test_a_file_that_was_replaced_is_read_again(self, serve: Serve, bare: Path, decoded: Decoded) -> None:
        made = decoded()
        client = serve(bare)
        assert get(client, "/api/generations")["total"] == 24
        path = bare / "decoding" / "generations.parquet"
        pq.write_table(pq.read_table(path).slice(0, 3), path.with_suffix(".new"))
        os.replace(path.with_suffix(".new"), path)
        assert get(client, "/api/generations")["total"] == 3
        assert client.get("/api/generations/3").status_code == 404
        path.unlink()
        assert client.get("/api/generations").status_code == 404
        assert len(made) == 24

    def test_no_completions_at_all(self, serve: Serve, bare: Path) -> None:
        (bare / "decoding").mkdir()
        pq.write_table(SCHEMA.empty_table(), bare / "decoding" / "generations.parquet")
        client = serve(bare)
        assert get(client, "/api/generations")["rows"] == []
        assert get(client, "/api/generations", q="a", sort="reward")["total"] == 0
        assert get(client, "/api/generations/facets")["score"] == {"name": "mean_logprob", "low": None, "high": None}
        assert client.get("/api/generations/0").status_code == 404

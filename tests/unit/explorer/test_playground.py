"""The playground: events of a growing text, two users at once, and a disconnected one who frees the engine."""

import asyncio
import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from triptych.decoding import STRATEGIES, Beam, DiverseBeam, Greedy, TopP, decode
from triptych.decoding.search import Move, Predictions
from triptych.errors import ModelError
from triptych.explorer.events import Painter, TextStream, Tree
from triptych.explorer.playground import GenerateRequest, Playground, encode, playground_router
from triptych.explorer.streams import PROMPT_ID, serve
from triptych.models import LanguageModel
from triptych.models.tiny import tiny_language_model
from triptych.records import Prompt
from triptych.reports.safe_text import neutralise

REQUEST: dict[str, Any] = {
    "prompt": "Once",
    "template": "plain",
    "models": ["base"],
    "strategies": ["top_p:p=0.9"],
    "max_new_tokens": 12,
    "seed": 3,
}


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return tiny_language_model()


def broken() -> LanguageModel:
    raise ModelError("the adapter is for <b>another</b> base")


@pytest.fixture(scope="module")
def playground(lm: LanguageModel) -> Iterator[Playground]:
    made = Playground({"base": lambda: lm, "\u202edpo": lambda: tiny_language_model(seed=1), "bad": broken}, ["Hello"])
    made.start()
    while not (made.streams.is_ready("\u202edpo") and made.streams.failures):
        pass
    yield made
    made.close()


@pytest.fixture(scope="module")
def client(playground: Playground) -> TestClient:
    app = FastAPI()
    app.include_router(playground_router(playground))
    return TestClient(app)


def events(client: TestClient, **changes: Any) -> list[dict[str, Any]]:
    answer = client.post("/api/playground/generate", json={**REQUEST, **changes})
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/x-ndjson"
    return [json.loads(line) for line in answer.text.splitlines()]


def of_type(kind: str, listed: list[dict[str, Any]], stream: int = 0) -> list[dict[str, Any]]:
    return [event for event in listed if event["type"] == kind and event.get("stream", stream) == stream]


def test_every_kind_of_step_is_taken_before_anybody_waits_for_one(
    lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[str] = []
    monkeypatch.setattr(Painter, "ended", lambda _, generation: ended.append(generation.strategy))
    assert not serve(lm).engine.is_busy
    assert sorted(ended) == sorted(STRATEGIES)


def test_the_form_is_told_everything(client: TestClient) -> None:
    info = client.get("/api/playground").json()
    assert info["available"]
    assert [(model["name"], model["ready"]) for model in info["models"]] == [
        ("base", True),
        ("⟨U+202E⟩dpo", True),
        ("bad", False),
    ]
    assert info["models"][2]["problem"] == "the adapter is for <b>another</b> base"
    beam = next(strategy for strategy in info["strategies"] if strategy["name"] == "beam")
    assert beam["parameters"][0] == {"name": "width", "type": "int", "default": 4, "low": 1, "high": None}
    # Half of the tiny model's context of 256.
    assert info["limits"] == {"max_new_tokens": 128, "max_streams": 24, "max_prompt_chars": 8000}
    assert [template["name"] for template in info["templates"]] == ["chat", "paper", "alpaca", "plain"]


def test_tokens_come_one_by_one_and_are_those_of_decode(client: TestClient, lm: LanguageModel) -> None:
    told = events(client)
    made = decode(
        lm, [Prompt(id=PROMPT_ID, instruction="Once", prompt="Once")], [TopP(p=0.9)], max_new_tokens=12, seed=3
    )[0]
    tokens = of_type("token", told)
    assert [token["id"] for token in tokens] == list(made.token_ids)
    assert [token["index"] for token in tokens] == list(range(made.n_tokens))
    np.testing.assert_allclose([token["logprob"] for token in tokens], made.logprobs, atol=1e-4)
    for token in tokens:
        kept = [one for one in token["alternatives"] if one["kept"]]
        assert 0.9 < token["kept_mass"] <= 1.0
        assert len(kept) == min(token["kept_count"], 10)
        assert kept[0]["p"] >= kept[-1]["p"]
    assert told[0]["streams"][0]["label"] == TopP(p=0.9).label
    assert told[-2]["text"] == neutralise(made.text)
    assert told[-1]["type"] == "done"
    assert told[-1]["first_token_seconds"] <= told[-1]["seconds"]


def test_the_same_seed_gives_the_same_text_and_another_one_another(client: TestClient) -> None:
    def text(**changes: Any) -> str:
        return str(of_type("end", events(client, **changes))[0]["text"])

    assert text() == text()
    assert len({text(), text(seed=4), text(sample=1), text(prompt="Twice")}) == 4


def test_models_and_strategies_stand_beside_each_other(client: TestClient) -> None:
    told = events(client, models=["base", "⟨U+202E⟩dpo"], strategies=["greedy", "beam:width=3", "top_k:k=3"])
    streams = told[0]["streams"]
    assert [(one["model"], one["strategy"]) for one in streams] == [
        (model, strategy) for model in ("base", "⟨U+202E⟩dpo") for strategy in ("greedy", "beam", "top_k")
    ]
    assert [of_type("end", told, stream)[0]["n_tokens"] > 0 for stream in range(6)] == [True] * 6


@pytest.mark.parametrize("spec", ["beam:width=3", "diverse_beam:width=4,groups=2", "contrastive:k=3,alpha=0.6"])
def test_a_search_is_a_tree_and_its_winner_a_path(client: TestClient, spec: str) -> None:
    told = events(client, strategies=[spec])
    nodes = {node["node"]: node for event in of_type("beams", told) for node in event["nodes"]}
    end = of_type("end", told)[0]
    path = [nodes[node] for node in end["path"]]
    assert path[0]["parent"] is None
    assert [node["parent"] for node in path[1:]] == [node["node"] for node in path[:-1]]
    assert len(path) == end["n_tokens"] == len(end["tokens"])
    np.testing.assert_allclose(
        [node["logprob"] for node in path], [token["logprob"] for token in end["tokens"]], atol=2e-4
    )
    assert path[-1]["score"] == pytest.approx(sum(token["logprob"] for token in end["tokens"]), abs=2e-3)
    for event in of_type("beams", told)[:-1]:
        assert set(event["live"]) <= set(nodes)


@pytest.mark.parametrize(
    ("changes", "status", "says"),
    [
        ({"prompt": ""}, 422, "at least 1 character"),
        ({"prompt": "x" * 8001}, 422, "at most 8000"),
        ({"models": ["other"]}, 404, "the run has no model 'other'"),
        ({"models": ["bad"]}, 409, "bad could not be loaded: the adapter is for <b>another</b> base"),
        ({"models": []}, 422, "at least 1 item"),
        ({"max_new_tokens": 513}, 422, "less than or equal to 512"),
        ({"max_new_tokens": True}, 422, "valid integer"),
        ({"seed": -1}, 422, "greater than or equal to 0"),
        ({"seed": 2**63}, 422, "less than"),
        ({"strategies": ["top_p:p=[0.1,0.2,0.3,0.4,0.5],temperature=[1,2,3,4,5]"]}, 422, "more than 24 texts at once"),
        ({"template": "none"}, 422, "'chat', 'paper', 'alpaca' or 'plain'"),
        ({"nonsense": 1}, 422, "Extra inputs"),
    ],
)
def test_bad_requests(client: TestClient, changes: dict[str, Any], status: int, says: str) -> None:
    answer = client.post("/api/playground/generate", json={**REQUEST, **changes})
    assert answer.status_code == status
    assert says in answer.text


@pytest.mark.parametrize("spec", ["top_q", "top_p:p=2", "beam:width=64", "top_p:p=", "greedy:p=1"])
def test_a_strategy_that_cannot_be_is_refused_before_anything_is_streamed(client: TestClient, spec: str) -> None:
    from triptych.errors import ConfigError

    with pytest.raises(ConfigError):
        client.post("/api/playground/generate", json={**REQUEST, "strategies": [spec]})


def test_without_models_the_page_says_why() -> None:
    app = FastAPI()
    app.include_router(playground_router(None, "started with --no-models"))
    client = TestClient(app)
    assert client.get("/api/playground").json()["reason"] == "started with --no-models"
    assert client.post("/api/playground/generate", json=REQUEST).status_code == 409


# --- several users ----------------------------------------------------------------------------------------------------


def request(**changes: Any) -> GenerateRequest:
    return GenerateRequest.model_validate({**REQUEST, **changes})


def test_two_users_at_once_are_both_served(playground: Playground) -> None:
    async def read(**changes: Any) -> tuple[list[int], str]:
        session = await playground.open(request(**changes))
        told = [event async for event in session.events()]
        playground.streams.close_session(session)
        return [event["index"] for event in told if event["type"] == "token"], told[-2]["text"]

    async def both() -> list[tuple[list[int], str]]:
        return list(await asyncio.gather(read(), read(prompt="Twice")))

    async def alone() -> list[tuple[list[int], str]]:
        return [await read(), await read(prompt="Twice")]

    assert asyncio.run(both()) == asyncio.run(alone())


def test_a_user_who_leaves_frees_the_engine(playground: Playground) -> None:
    async def leave() -> None:
        session = await playground.open(request(max_new_tokens=128, strategies=["ancestral", "beam:width=8"]))
        async for event in session.events():
            if event["type"] == "token":
                break
        playground.streams.close_session(session)
        # The next call of the engine's thread is behind it.
        await wait(lambda: playground.streams.n_sessions == 0)
        assert playground.streams.n_busy == 0

    asyncio.run(leave())


def test_no_more_than_a_few_users_at_once(playground: Playground, monkeypatch: pytest.MonkeyPatch) -> None:
    from fastapi import HTTPException

    monkeypatch.setattr("triptych.explorer.playground.MAX_SESSIONS", 0)
    with pytest.raises(HTTPException, match="0 requests are being answered"):
        asyncio.run(playground.open(request()))


def test_an_engine_that_fails_tells_its_users_and_goes_on(
    playground: Playground, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def read() -> list[dict[str, Any]]:
        session = await playground.open(request())
        told = [event async for event in session.events()]
        playground.streams.close_session(session)
        return told

    def fail(*_: Any) -> None:
        raise RuntimeError("no memory")

    with monkeypatch.context() as patch:
        patch.setattr("triptych.decoding.batch.read_heads", fail)
        told = asyncio.run(read())
    assert told[-1] == {"type": "error", "message": "generating with base failed (RuntimeError); try again"}
    assert asyncio.run(read())[-1]["type"] == "done"
    asyncio.run(wait(lambda: playground.streams.n_sessions == 0))


def test_closing_ends_every_session(lm: LanguageModel) -> None:
    async def close() -> list[dict[str, Any]]:
        own = Playground({"base": lambda: lm}, [])
        own.start()
        await wait(lambda: own.streams.is_ready("base"))
        session = await own.open(request(max_new_tokens=128, strategies=["ancestral"]))
        own.close()
        told = [event async for event in session.events()]
        with pytest.raises(RuntimeError, match="the server is closing"):
            await own.open(request())
        return told

    told = asyncio.run(close())
    assert told[-1]["type"] in ("error", "done")


async def wait(until: Callable[[], bool]) -> None:
    for _ in range(1000):
        if until():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("waited in vain")


# --- events by hand ---------------------------------------------------------------------------------------------------


def test_a_character_of_several_tokens_is_shown_when_it_is_whole() -> None:
    # ä is C3 A4: two byte tokens, as pieces have them.
    stream = TextStream({0: "a", 1: "\udcc3", 2: "\udca4", 3: "\u202e"})
    assert [stream.push(token) for token in (0, 1, 2, 3, 9)] == ["a", "", "ä", "⟨U+202E⟩", "⟨9⟩"]


def test_hostile_pieces_are_valid_json() -> None:
    stream = TextStream({0: "\ud800<script>", 1: "\x00"})
    line = encode({"type": "token", "text": stream.push(0) + stream.push(1)})
    assert json.loads(line.encode())["text"] == "?<script>⟨U+0000⟩"


def test_a_tree_by_hand() -> None:
    tree = Tree()

    def predictions(rows: list[list[int]], logprobs: list[list[float]]) -> Predictions:
        return Predictions(np.array(rows), np.array(logprobs, np.float32), None)

    # The prompt goes on with 5 or 7; then 5 with 1 and 2, and 7 is dropped.
    assert tree.grow(predictions([[5, 7]], [[-1.0, -2.0]]), Move([0, 0], [5, 7], [])) == [0, 1]
    second = predictions([[1, 2], [1, 2]], [[-0.5, -0.25], [-3.0, -4.0]])
    assert tree.grow(second, Move([0, 0], [2, 1], [])) == [2, 3]
    assert tree.nodes[2:] == [(0, 2, -0.25, -1.25), (0, 1, -0.5, -1.5)]
    # Token 9 ended the text and so was no row.
    assert tree.path([5, 1, 9], [-1.0, -0.5, -0.125]) == ([0, 3, 4], [4])
    assert tree.nodes[4] == (3, 9, -0.125, -1.625)


def test_what_cannot_be_a_number_is_null(lm: LanguageModel) -> None:
    told: list[dict[str, Any]] = []
    painter = Painter(told.append, 0, {})
    made = decode(lm, ["Once"], [Greedy(), Beam(width=2), DiverseBeam(width=2, groups=2)], max_new_tokens=3)
    for one in made:
        painter.ended(one.model_copy(update={"mean_logprob": None}))
    assert all(event["mean_logprob"] is None for event in told if event["type"] == "end")
    assert all(json.loads(encode(event)) for event in told)

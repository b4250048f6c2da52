import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from triptych.explorer.security import HEADERS, LOCAL_HOSTS, MAX_BODY, POLICY, Guard, allowed_hosts, host_name

Serve = Callable[[Path], TestClient]
JSON = {"content-type": "application/json"}
GENERATE = "/api/playground/generate"


class TestHeaders:
    @pytest.mark.parametrize(
        ("method", "path", "status"),
        [
            ("GET", "/", 200),
            ("GET", "/main.js", 200),
            ("GET", "/api/run", 200),
            ("GET", "/openapi.json", 200),
            ("GET", "/report.html", 200),
            ("GET", "/nothing", 404),
            ("GET", "/api/generations/999", 404),
            ("GET", "/api/generations?page=x", 422),
            ("DELETE", "/api/run", 405),
            ("POST", GENERATE, 415),
        ],
    )
    def test_every_answer_has_them(self, client: TestClient, method: str, path: str, status: int) -> None:
        answer = client.request(method, path)
        assert answer.status_code == status
        assert {name: answer.headers[name] for name in HEADERS} == HEADERS

    def test_nothing_inline_and_nothing_from_elsewhere(self) -> None:
        assert POLICY == (
            "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
            "font-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )

    @pytest.mark.parametrize("path", ["/api/run", "/api/generations/999"])
    def test_the_interface_is_not_kept(self, client: TestClient, path: str) -> None:
        assert client.get(path).headers["cache-control"] == "no-store"

    def test_an_unexpected_error_has_them_too(self, capsys: pytest.CaptureFixture[str]) -> None:
        async def broken(scope: Any, receive: Any, send: Any) -> None:
            raise RuntimeError("a secret")

        answer = TestClient(Guard(broken, LOCAL_HOSTS), base_url="http://localhost").get("/api/x")
        assert answer.status_code == 500
        assert answer.headers["content-security-policy"] == POLICY
        assert "a secret" not in answer.text


class TestHost:
    @pytest.mark.parametrize(
        "host", ["localhost", "localhost:8765", "127.0.0.1:1", "[::1]", "[::1]:8765", "LOCALHOST:80"]
    )
    def test_this_machine(self, client: TestClient, host: str) -> None:
        assert client.get("/api/run", headers={"host": host}).status_code == 200

    @pytest.mark.parametrize(
        "host",
        [
            *(
                "evil.example",
                "evil.example:8765",
                "localhost.evil.example",
                "127.0.0.1.nip.io",
                "0.0.0.0",  # noqa: S104
                "192.168.1.5",
            ),
            *("localhost@evil.example", "evil.example#localhost", "localhost:80:80", "localhost:x", "[::1", "::1", ""),
            *("localhost, evil.example", "localhost/", " localhost .", "[::2]:8765", "127.1", "localhost.", ":8765"),
        ],
    )
    @pytest.mark.parametrize("path", ["/", "/api/run", "/nothing"])
    def test_foreign_ones(self, client: TestClient, host: str, path: str) -> None:
        answer = client.get(path, headers={"host": host})
        assert answer.status_code == 400
        assert "unknown host" in answer.json()["error"]

    def test_two_of_them(self, client: TestClient) -> None:
        answer = client.get("/api/run", headers=[("host", "localhost"), ("host", "evil.example")])
        assert answer.status_code == 400

    def test_the_one_that_was_given(self) -> None:
        assert allowed_hosts("192.168.1.5") == LOCAL_HOSTS | {"192.168.1.5"}
        assert allowed_hosts("My-Machine") == LOCAL_HOSTS | {"my-machine"}
        assert allowed_hosts("fe80::1") == LOCAL_HOSTS | {"[fe80::1]"}

    @pytest.mark.parametrize("host", ["0.0.0.0", "::"])  # noqa: S104
    def test_everywhere_is_this_machine_by_its_own_names(self, host: str) -> None:
        found = allowed_hosts(host)
        assert found >= LOCAL_HOSTS
        assert host not in found
        assert "evil.example" not in found

    @pytest.mark.parametrize(
        ("host", "name"), [("[::1]:80", "[::1]"), ("a:80", "a"), ("a", "a"), ("a:", ""), ("a:8²", "")]
    )
    def test_the_port_is_no_part_of_it(self, host: str, name: str) -> None:
        assert host_name(host) == name


class TestOrigin:
    @pytest.mark.parametrize(
        "origin", ["http://evil.example", "null", "http://localhost:9999", "http://localhost", "", "file://"]
    )
    def test_other_pages_may_not_post(self, client: TestClient, origin: str) -> None:
        answer = client.post(GENERATE, content=b"{}", headers={**JSON, "origin": origin})
        assert answer.status_code == 403

    def test_ours_may(self, client: TestClient) -> None:
        answer = client.post(GENERATE, content=b"{}", headers={**JSON, "origin": "http://localhost:8765"})
        assert answer.status_code == 422

    def test_a_program_has_none(self, client: TestClient) -> None:
        assert client.post(GENERATE, content=b"{}", headers=JSON).status_code == 422

    @pytest.mark.parametrize(
        "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "", "json"]
    )
    def test_what_a_form_can_send_is_no_json(self, client: TestClient, kind: str) -> None:
        answer = client.post(GENERATE, content=b'{"prompt": "a"}', headers={"content-type": kind})
        assert answer.status_code == 415


class TestBody:
    def test_a_large_one(self, client: TestClient) -> None:
        answer = client.post(GENERATE, content=b" " * (MAX_BODY + 1), headers=JSON)
        assert answer.status_code == 413
        assert "64 KiB" in answer.json()["error"]

    def test_the_largest(self, client: TestClient) -> None:
        assert client.post(GENERATE, content=b"{}" + b" " * (MAX_BODY - 2), headers=JSON).status_code == 422

    def test_a_large_one_in_pieces(self, client: TestClient) -> None:
        def pieces() -> Iterator[bytes]:
            for _ in range(80):
                yield b" " * 1024

        assert client.post(GENERATE, content=pieces(), headers=JSON).status_code == 413

    def test_of_an_endless_one_no_more_is_read_than_needed(self) -> None:
        # A hundred pieces of a kilobyte are offered; the 65th is one too many.
        taken = 0

        async def receive() -> Any:
            nonlocal taken
            taken += 1
            return {"type": "http.request", "body": b" " * 1024, "more_body": True}

        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        async def never(scope: Any, receive: Any, send: Any) -> None:
            raise AssertionError("the application was asked")

        scope = {"type": "http", "method": "GET", "path": "/", "headers": [(b"host", b"localhost")]}
        asyncio.run(Guard(never, LOCAL_HOSTS)(scope, receive, send))
        assert taken == 65
        assert sent[0]["status"] == 413

    @pytest.mark.parametrize(
        "body",
        [
            b"",
            b"no json",
            b"[]",
            b"null",
            b'{"prompt": "\\ud800"}',
            b"\xff",
            b'{"prompt": 1e999}',
            b"[" * 60_000,
            b"{}",
        ],
    )
    def test_bad_ones_are_told_in_a_sentence(self, client: TestClient, body: bytes) -> None:
        answer = client.post(GENERATE, content=body, headers=JSON)
        assert answer.status_code in (400, 422)
        assert set(json.loads(answer.content)) == {"error"}

    def test_half_a_character_goes_no_further(self, client: TestClient) -> None:
        body = b'{"prompt": "a", "models": ["\\ud800"], "strategies": ["\\udfff"]}'
        assert 400 <= client.post(GENERATE, content=body, headers=JSON).status_code < 500


def test_who_leaves_is_noticed() -> None:
    # What comes after the body is the server's own message, so a stream learns that its reader is gone.
    async def messages() -> AsyncIterator[Any]:
        yield {"type": "http.request", "body": b"ab", "more_body": False}
        yield {"type": "http.disconnect"}

    stream, seen = messages(), []

    async def reads(scope: Any, receive: Any, send: Any) -> None:
        seen.extend([await receive(), await receive()])

    async def send(message: Any) -> None:
        raise AssertionError(message)

    scope = {"type": "http", "method": "GET", "path": "/", "headers": [(b"host", b"localhost")]}
    asyncio.run(Guard(reads, LOCAL_HOSTS)(scope, stream.__anext__, send))
    assert [message["type"] for message in seen] == ["http.request", "http.disconnect"]
    assert seen[0]["body"] == b"ab"


def test_web_sockets_are_not_spoken(client: TestClient) -> None:
    with pytest.raises(WebSocketDisconnect) as refused, client.websocket_connect("/api/run"):
        pass
    assert refused.value.code == 1008

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from starlette.testclient import TestClient

from triptych.errors import MissingInputError
from triptych.explorer.app import create_app

Serve = Callable[[Path], TestClient]

TRAVERSALS = [
    "/../secret.txt",
    "/%2e%2e/secret.txt",
    "/..%2fsecret.txt",
    "/%2e%2e%2f%2e%2e%2fsecret.txt",
    "/..%5csecret.txt",
    "/secret.txt",
    "/manifest.json",
    "/app.py",
    "/static/../app.py",
    "/./index.html/../../app.py",
    "/index.html%00.js",
    "/%00",
    "/%ff%fe",
    "/" + "x" * 5000,
    "/report.html/../manifest.json",
    "/api/concepts/images/..%2f..%2f..%2fmanifest.json",
    "/api/concepts/images/%2e%2e",
    "//etc/passwd",
    "/%2fetc%2fpasswd",
    "/file:%2f%2f%2fetc%2fpasswd",
]
BAD_NUMBERS = [
    "-1",
    "1.5",
    "NaN",
    "inf",
    "1e309",
    "0x10",
    "ten",
    "9" * 25,
    "9" * 5000,
    "%00",
    "٣٣e",
    "1;2",
    "null",
    "true",
]
PANELS = [
    *("/api/generations", "/api/generations/facets", "/api/generations/0", "/api/generations/compare?a=0&b=0"),
    *("/api/audits", "/api/audits/findings/0", "/api/audits/responses", "/api/audits/responses/0"),
    *("/api/concepts", "/api/concepts/scatter", "/api/concepts/latents", "/api/concepts/latents/0"),
]


def sentence(client: TestClient, path: str, status: int) -> str:
    """What a refusal says."""
    answer = client.get(path)
    assert answer.status_code == status, (path, answer.status_code, answer.text[:300])
    body = answer.json()
    assert set(body) == {"error"}
    assert body["error"]
    assert "\n" not in body["error"]
    assert "Traceback" not in body["error"]
    return str(body["error"])


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match="is no run directory"):
        create_app(tmp_path)


class TestFiles:
    @pytest.mark.parametrize(
        ("path", "media_type"),
        [("/", "text/html"), ("/index.html", "text/html"), ("/main.js", "text/javascript"), ("/app.css", "text/css")],
    )
    def test_the_page(self, client: TestClient, path: str, media_type: str) -> None:
        answer = client.get(path)
        assert answer.status_code == 200
        assert answer.headers["content-type"].partition(";")[0] == media_type
        assert answer.headers["cache-control"] == "no-cache"

    def test_an_unchanged_file_is_not_sent_twice(self, client: TestClient) -> None:
        etag = client.get("/main.js").headers["etag"]
        assert client.get("/main.js", headers={"if-none-match": etag}).status_code in (200, 304)

    @pytest.mark.parametrize("path", TRAVERSALS)
    def test_no_path_leads_out(self, client: TestClient, path: str) -> None:
        answer = client.get(path)
        assert 400 <= answer.status_code < 500
        assert set(answer.json()) == {"error"}
        assert "SECRET" not in answer.text

    @pytest.mark.parametrize(
        "path", ["/../secret.txt", "/..\\secret.txt", "/./../app.py", "//x", "/\x00", "/\udcff", "", "x"]
    )
    def test_nor_one_that_no_browser_would_send(self, run_dir: Path, path: str) -> None:
        sent: list[Any] = []

        async def receive() -> Any:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Any) -> None:
            sent.append(message)

        headers = [(b"host", b"localhost")]
        raw = path.encode("utf-8", "surrogateescape")
        scope = {
            "type": "http",
            "method": "GET",
            "path": path,
            "raw_path": raw,
            "query_string": b"",
            "headers": headers,
        }
        asyncio.run(create_app(run_dir)(scope, receive, send))
        assert 400 <= sent[0]["status"] < 500

    def test_the_report_is_a_download(self, client: TestClient) -> None:
        answer = client.get("/report.html")
        assert answer.headers["content-disposition"] == 'attachment; filename="report.html"'
        assert "a report" in answer.text

    @pytest.mark.parametrize("path", ["/docs", "/redoc"])
    def test_no_page_that_loads_scripts_from_elsewhere(self, client: TestClient, path: str) -> None:
        assert client.get(path).status_code == 404


class TestRefusals:
    @pytest.mark.parametrize("path", PANELS)
    def test_a_panel_that_is_not_there(self, serve: Serve, bare: Path, path: str) -> None:
        assert "this run has no" in sentence(serve(bare), path, 404)

    def test_a_report_that_is_not_there(self, serve: Serve, bare: Path) -> None:
        assert "`triptych report` makes it" in sentence(serve(bare), "/report.html", 404)

    @pytest.mark.parametrize("number", BAD_NUMBERS)
    @pytest.mark.parametrize(
        "path",
        [
            "/api/generations/{}",
            "/api/generations?page={}",
            "/api/generations?size={}",
            "/api/generations/compare?a=0&b={}",
            "/api/audits/findings/{}",
            "/api/audits/responses/{}",
            "/api/audits/responses?size={}",
            "/api/concepts/latents/{}",
        ],
    )
    def test_numbers_that_are_none(self, client: TestClient, path: str, number: str) -> None:
        assert client.get(path.format(number)).status_code in (404, 422)

    @pytest.mark.parametrize("number", ["NaN", "inf", "-inf", "1e309", "one", "0x1p3"])
    def test_bounds_that_are_no_numbers(self, client: TestClient, number: str) -> None:
        assert "min_score" in sentence(client, f"/api/generations?min_score={number}", 422)

    @pytest.mark.parametrize("path", ["/api/generations/24", "/api/audits/findings/4", "/api/audits/responses/24"])
    def test_unknown_numbers(self, client: TestClient, path: str) -> None:
        assert "in this run" in sentence(client, path, 404)

    @pytest.mark.parametrize("path", ["/api", "/api/", "/api/nothing", "/nothing", "/api/generations/0/more"])
    def test_unknown_addresses(self, client: TestClient, path: str) -> None:
        sentence(client, path, 404)

    @pytest.mark.parametrize(
        "path", ["/api/run", "/api/generations", "/api/generations/0", "/api/audits", "/report.html"]
    )
    def test_unknown_parameters(self, client: TestClient, path: str) -> None:
        assert "unknown parameter 'stratgy'" in sentence(client, f"{path}?stratgy=greedy", 422)

    def test_what_is_known_is_told(self, client: TestClient) -> None:
        assert "it knows a, b" in sentence(client, "/api/generations/compare?a=0&b=0&c=0", 422)

    @pytest.mark.parametrize("name", ["category", "stop_reason", "prompt_id", "temperature", "strategy"])
    def test_unknown_names(self, client: TestClient, name: str) -> None:
        said = sentence(client, f"/api/generations?{name}={quote('<b>‮')}", 404)
        assert "'<b>⟨U+202E⟩'" in said

    def test_names_of_a_megabyte_are_not_repeated(self, client: TestClient) -> None:
        assert len(sentence(client, f"/api/generations?category={'x' * 50_000}", 404)) <= 500

    @pytest.mark.parametrize("path", ["/api/run", "/", "/main.js", "/api/generations/0"])
    @pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS"])
    def test_other_methods(self, client: TestClient, method: str, path: str) -> None:
        answer = client.request(method, path)
        assert answer.status_code == 405
        assert answer.json()["error"] == "Method Not Allowed"
        assert "GET" in answer.headers["allow"]

    def test_a_file_that_cannot_be_read(self, serve: Serve, bare: Path) -> None:
        (bare / "decoding").mkdir()
        (bare / "decoding" / "generations.parquet").write_bytes(b"no parquet")
        assert "cannot be read as parquet" in sentence(serve(bare), "/api/generations", 400)

    def test_a_card_with_half_a_character(self, serve: Serve, bare: Path) -> None:
        (bare / "auditing").mkdir()
        (bare / "auditing" / "card.json").write_text('[{"model": "\\ud800"}]')
        assert "card.json" in sentence(serve(bare), "/api/audits", 400)

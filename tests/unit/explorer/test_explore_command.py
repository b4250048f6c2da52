import http.client
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from triptych.cli import run
from triptych.commands.explore import listen
from triptych.errors import ConfigError

SOURCE = Path(__file__).parents[3] / "src"
ADDRESS = re.compile(r"http://(?P<host>\S+):(?P<port>\d+)/")


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one sentence of a command line that cannot be followed."""
    capsys.readouterr()
    assert run(["explore", *arguments]) == 2
    said = capsys.readouterr()
    lines = said.err.splitlines()
    assert len(lines) == 1, said.err
    assert said.out == ""
    return lines[0]


@contextmanager
def serving(*arguments: str) -> Iterator["subprocess.Popen[str]"]:
    """`triptych explore` in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    command = [sys.executable, "-m", "triptych", "explore", *arguments]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_a_folder_that_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "is no run directory" in refused([str(tmp_path)], capsys)
    assert "is no run directory" in refused([str(tmp_path / "none")], capsys)


def test_a_port_that_is_taken(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with listen("127.0.0.1", 0) as other:
        port = other.getsockname()[1]
        said = refused([str(run_dir), "--no-models", "--port", str(port)], capsys)
    assert said == f"error: port {port} of 127.0.0.1 is taken; give another one with --port, or 0 for any that is free"


@pytest.mark.parametrize("port", ["-1", "65536", "http"])
def test_a_port_that_is_none(run_dir: Path, capsys: pytest.CaptureFixture[str], port: str) -> None:
    assert "--port" in refused([str(run_dir), "--port", port], capsys)


@pytest.mark.parametrize("host", ["no such host", "x" * 300, "203.0.113.7"])
def test_a_host_that_is_not_ours(host: str) -> None:
    # 203.0.113.0/24 is set aside for documentation (RFC 5737): no machine has it.
    with pytest.raises(ConfigError, match="is no address of this machine|cannot listen at"):
        listen(host, 0)


def test_an_ended_server_leaves_its_port_free() -> None:
    with listen("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
    with listen("127.0.0.1", port) as second:
        assert second.family == socket.AF_INET


def test_it_serves_until_ctrl_c(run_dir: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in run_dir.rglob("*")}
    with serving(str(run_dir), "--no-models", "--port", "0") as process:
        assert process.stdout is not None
        found = ADDRESS.search(process.stdout.readline())
        assert found is not None
        assert found["host"] == "127.0.0.1"
        connection = http.client.HTTPConnection("127.0.0.1", int(found["port"]), timeout=60)
        for path, expected in (("/api/run", 200), ("/api/generations?q=answer", 200), ("/nothing", 404)):
            connection.request("GET", path)
            answer = connection.getresponse()
            answer.read()
            assert answer.status == expected
            assert answer.getheader("server") is None
        connection.close()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert out == ""
    assert err == ""
    assert {path: path.stat().st_mtime_ns for path in run_dir.rglob("*")} == before

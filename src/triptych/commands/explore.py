"""`triptych explore`."""

import errno
import socket
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from triptych.commands.outcome import Outcome
from triptych.errors import ConfigError, InputError

if TYPE_CHECKING:
    from triptych.explorer.playground import Playground

GRACE = 3
"""Seconds that answers under way get to end."""


def explore(
    run_dir: Annotated[Path, typer.Argument(metavar="DIR", help="A run directory.", show_default=False)],
    host: Annotated[str, typer.Option(help="Where to listen. There is no password.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes any free one.")] = 8765,
    no_models: Annotated[bool, typer.Option("--no-models", help="For reading only: load no model.")] = False,
    open_page: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
) -> Outcome:
    """Serve a run as a web page, until Ctrl-C; the run is not changed.

    \b
    Examples:
      triptych explore runs/starter
      triptych explore runs/starter --no-models --port 0 --open
    """
    import uvicorn

    from triptych.explorer.app import NO_MODELS, create_app
    from triptych.explorer.security import EVERYWHERE, LOCAL_HOSTS, allowed_hosts
    from triptych.runs import read_manifest

    read_manifest(run_dir)
    bound = listen(host, port)
    address = _address("127.0.0.1" if host in EVERYWHERE else host, bound.getsockname()[1])
    try:
        playground, reason = (None, NO_MODELS) if no_models else _playground(run_dir)
        app = create_app(run_dir, hosts=allowed_hosts(host), playground=playground, reason=reason)
        if not {host, f"[{host}]"} & LOCAL_HOSTS:
            typer.echo("warning: others in your network can read this run and use its models", err=True)
        typer.echo(f"{run_dir} is at {address} (Ctrl-C ends it)")
        if open_page:
            webbrowser.open(address)
        settings = uvicorn.Config(
            app, log_level="warning", access_log=False, server_header=False, timeout_graceful_shutdown=GRACE
        )
        uvicorn.Server(settings).run(sockets=[bound])
    except KeyboardInterrupt:
        # How a server is ended. uvicorn has closed it and raises the signal again.
        pass
    finally:
        bound.close()
    return Outcome((), {"run": str(run_dir), "address": address})


def _playground(run_dir: Path) -> "tuple[Playground | None, str]":
    """The run's models; where its base is not to be found, why: everything else can be read without."""
    from triptych.explorer.playground import Playground

    try:
        return Playground.of_run(run_dir), ""
    except InputError as error:
        return None, str(error)


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises ConfigError where it cannot."""
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"--host '{host}' is no address of this machine ({error})") from error
    bound = socket.socket(family, kind, proto)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        bound.listen(128)
    except OSError as error:
        bound.close()
        raise ConfigError(_why_not(host, port, error)) from error
    return bound


def _why_not(host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} of {host} is taken; give another one with --port, or 0 for any that is free"
    if error.errno == errno.EACCES:
        return f"port {port} is not yours to use; give one above 1023 with --port"
    return f"cannot listen at {host}, port {port}: {error.strerror or error}"


def _address(host: str, port: int) -> str:
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/"

"""What every request and response passes, whatever is behind: who may ask, how much, and what a browser may do with it.

A page that the user has open elsewhere can send requests to this machine too. So the Host header must be one of ours
(against DNS rebinding), what changes or costs something must come from our own page (`Origin`), and a body is small and
JSON. Not here: what is answered.
"""

import json
import logging
import socket
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from typing import Any, NamedTuple, final

import psutil

from triptych.reports.safe_text import clip, neutralise

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

MAX_BODY = 64 * 1024
MAX_SHOWN = 80
LOCAL_HOSTS = frozenset({"localhost", "127.0.0.1", "[::1]"})
EVERYWHERE = frozenset({"0.0.0.0", "::"})  # noqa: S104 - compared with, not bound to
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "font-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}

logger = logging.getLogger(__name__)


class Refusal(NamedTuple):
    """Why a request is not answered."""

    status: int
    sentence: str


@final
class Guard:
    """The outermost layer: refuses, reads the body, and adds the headers, to errors too."""

    def __init__(self, app: App, hosts: Iterable[str]) -> None:
        self._app, self._hosts = app, frozenset(hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            return await send({"type": "websocket.close", "code": 1008})
        if scope["type"] != "http":
            # The server's own: that it starts and ends.
            return await self._app(scope, receive, send)
        answer = _Answer(send, is_api=scope["path"].startswith("/api"))
        refusal = refused(scope["method"], _headers(scope), self._hosts)
        if refusal is not None:
            return await answer.refuse(refusal)
        body = await _read_body(receive)
        if body is None:
            return await answer.refuse(Refusal(413, f"the body is larger than {MAX_BODY // 1024} KiB"))
        try:
            await self._app(scope, _replayed(body, receive), answer)
        except Exception:
            logger.exception("%s failed", neutralise(scope["path"][:MAX_SHOWN]))
            if not answer.has_started:
                await answer.refuse(Refusal(500, "unexpected error; the terminal of `triptych explore` says which"))


@final
class _Answer:
    """`send` with our headers."""

    def __init__(self, send: Send, *, is_api: bool) -> None:
        self._send, self.has_started = send, False
        self._headers = {**HEADERS, **({"cache-control": "no-store"} if is_api else {})}

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.has_started = True
            given = [
                (name, value)
                for name, value in message.get("headers", [])
                if name.lower().decode("latin-1") not in HEADERS
            ]
            ours = [(name.encode(), value.encode()) for name, value in self._headers.items()]
            message = {**message, "headers": [*given, *ours]}
        await self._send(message)

    async def refuse(self, refusal: Refusal) -> None:
        body = json.dumps({"error": refusal.sentence}).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await self({"type": "http.response.start", "status": refusal.status, "headers": headers})
        await self({"type": "http.response.body", "body": body})


def refused(method: str, headers: Mapping[str, str], hosts: frozenset[str]) -> Refusal | None:
    """Why a request with these headers is not answered; None where it is."""
    host = headers.get("host", "")
    if host_name(host) not in hosts:
        return Refusal(400, f"unknown host '{_shown(host)}'; open the address that `triptych explore` printed")
    origin = headers.get("origin")
    if method in SAFE_METHODS:
        return None
    if origin is not None and origin.lower() not in (f"http://{host}".lower(), f"https://{host}".lower()):
        return Refusal(403, f"a request from '{_shown(origin)}' is not answered")
    if method == "POST" and headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        return Refusal(415, "the body must be application/json")
    return None


def host_name(host: str) -> str:
    """A Host header without its port, in lower case; empty where it is none."""
    name, colon, port = host.lower().rpartition(":") if not host.endswith("]") else (host.lower(), "", "")
    if not colon:
        return name or host.lower()
    return name if port.isascii() and port.isdigit() else ""


def allowed_hosts(host: str) -> frozenset[str]:
    """Names that this server may be called by where it listens at `host`."""
    named = f"[{host}]" if ":" in host else host
    if host not in EVERYWHERE:
        return LOCAL_HOSTS | {named.lower()}
    addresses = {
        entry.address for entries in psutil.net_if_addrs().values() for entry in entries if _is_ip(entry.family)
    }
    names = {socket.gethostname(), socket.getfqdn()}
    found = {f"[{address.partition('%')[0]}]" if ":" in address else address for address in addresses}
    return LOCAL_HOSTS | {name.lower() for name in found | names}


def _is_ip(family: int) -> bool:
    return family in (socket.AF_INET, socket.AF_INET6)


def _headers(scope: Scope) -> dict[str, str]:
    """By lower-case name; of a header that is there twice, both together, which no check accepts."""
    found: dict[str, str] = {}
    for name, value in scope["headers"]:
        key, text = name.decode("latin-1").lower(), value.decode("latin-1")
        found[key] = f"{found[key]}, {text}" if key in found else text
    return found


async def _read_body(receive: Receive) -> bytes | None:
    """The body, however it is sent; None where it is too large."""
    body = b""
    while True:
        message = await receive()
        body += bytes(message.get("body", b""))
        if len(body) > MAX_BODY:
            return None
        if message["type"] != "http.request" or not message.get("more_body", False):
            return body


def _replayed(body: bytes, receive: Receive) -> Receive:
    """`receive` that gives the body as one message, then what comes: that the client is gone."""
    left = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return left.pop() if left else await receive()

    return replay


def _shown(text: str) -> str:
    return neutralise(clip(text, MAX_SHOWN).text)

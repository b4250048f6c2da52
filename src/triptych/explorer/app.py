"""The explorer as one ASGI application: routers, errors, static files, and the guard around all of it.

    uvicorn.run(create_app(Path("runs/starter")))

Only names that the server listed itself are opened, never a path from a request. Not here: what a panel answers.
"""

from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from threading import Thread
from typing import Any

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.types import Lifespan

from triptych import __version__
from triptych.errors import MissingInputError, TriptychError
from triptych.explorer.audit_pages import audits_router
from triptych.explorer.completion import generations_router
from triptych.explorer.concepts import concepts_router
from triptych.explorer.fresh import Fresh
from triptych.explorer.generations import Generations, fresh_generations
from triptych.explorer.overview import overview_router
from triptych.explorer.playground import Playground, playground_router
from triptych.explorer.security import LOCAL_HOSTS, Guard
from triptych.reports.page import PAGE
from triptych.reports.safe_text import clip, neutralise
from triptych.runs import read_manifest

STATIC = Path(__file__).parent / "static"
INDEX = "index.html"
NO_MODELS = "the explorer was started without models"
MAX_SENTENCE = 500
MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
}


class Problem(BaseModel):
    """Why there is no answer."""

    error: str
    """One sentence."""


PROBLEMS: dict[int | str, dict[str, Any]] = {
    400: {"model": Problem, "description": "Not to a host of ours, or a file of the run cannot be read"},
    403: {"model": Problem, "description": "From another page"},
    404: {"model": Problem, "description": "Nothing of this name or number"},
    405: {"model": Problem, "description": "Another method is meant"},
    409: {"model": Problem, "description": "Not now: a model is not there"},
    413: {"model": Problem, "description": "The body is too large"},
    415: {"model": Problem, "description": "The body is no JSON"},
    422: {"model": Problem, "description": "A parameter is unknown or out of range"},
    429: {"model": Problem, "description": "Too much at once"},
}


def create_app(
    run_dir: Path, *, hosts: Iterable[str] = LOCAL_HOSTS, playground: Playground | None = None, reason: str = NO_MODELS
) -> FastAPI:
    """The explorer of a run directory, which answers to `hosts` alone; without a playground, `reason` says why.

    Raises MissingInputError where the folder is no run directory.
    """
    read_manifest(run_dir)
    generations = fresh_generations(run_dir)
    app = FastAPI(
        title="Triptych explorer",
        version=__version__,
        # Their pages load scripts from elsewhere.
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        responses=PROBLEMS,
        dependencies=[Depends(refuse_unknown_parameters)],
        exception_handlers={TriptychError: _failed, HTTPException: _refused, RequestValidationError: _invalid},
        lifespan=_lifespan(playground, generations),
    )
    app.include_router(overview_router(run_dir))
    app.include_router(generations_router(generations))
    app.include_router(audits_router(run_dir))
    app.include_router(concepts_router(run_dir))
    app.include_router(playground_router(playground, reason))
    _add_files(app, run_dir)
    app.add_middleware(Guard, hosts=hosts)
    return app


def _lifespan(playground: Playground | None, generations: Fresh[Generations]) -> Lifespan[FastAPI]:
    """Starts and ends what works beside the answers."""

    def read_ahead() -> None:
        # Whoever asks for them is told why they cannot be read.
        with suppress(TriptychError):
            generations.get()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        # The first page of a large run would take seconds.
        Thread(target=read_ahead, daemon=True).start()
        if playground is not None:
            playground.start()
        try:
            yield
        finally:
            if playground is not None:
                playground.close()

    return lifespan


def refuse_unknown_parameters(request: Request) -> None:
    """A misspelt filter that changed nothing would look as if it had been applied."""
    operations = request.app.openapi()["paths"].get(request.scope["route"].path, {})
    parameters = operations.get(request.method.lower(), {}).get("parameters", [])
    known = {parameter["name"] for parameter in parameters if parameter["in"] == "query"}
    unknown = sorted(set(request.query_params) - known)
    if unknown:
        what = f"it knows {', '.join(sorted(known))}" if known else "it takes none"
        raise HTTPException(422, f"unknown parameter '{unknown[0]}'; {what}")


# --- files ------------------------------------------------------------------------------------------------------------


def _add_files(app: FastAPI, run_dir: Path) -> None:
    @app.get("/", include_in_schema=False)
    def index() -> FileResponse:
        return _static(INDEX)

    @app.get("/report.html", response_class=FileResponse, responses={200: {"content": {"text/html": {}}}})
    def report() -> FileResponse:
        """The report as a download: its inline styles are nothing that the explorer's policy allows."""
        path = run_dir / PAGE
        if not path.is_file():
            raise MissingInputError(f"this run has no {PAGE}; `triptych report` makes it")
        return FileResponse(path, media_type=MEDIA_TYPES[".html"], filename=PAGE)

    # The last: whatever else has one part is a file of the page, or nothing.
    @app.get("/{name}", include_in_schema=False)
    def static(name: str) -> FileResponse:
        return _static(name)


def _static(name: str) -> FileResponse:
    """A file of the page by its name; looked up among all that there are."""
    files = {path.name: path for path in STATIC.iterdir() if path.is_file()}
    if name not in files:
        raise HTTPException(404, "no such file")
    media_type = MEDIA_TYPES.get(files[name].suffix, "application/octet-stream")
    # Asked again each time, and answered with 304 where nothing changed: a new version is seen at once.
    return FileResponse(files[name], media_type=media_type, headers={"cache-control": "no-cache"})


# --- errors -----------------------------------------------------------------------------------------------------------


async def _failed(request: Request, error: Exception) -> JSONResponse:
    return _problem(404 if isinstance(error, MissingInputError) else 400, str(error))


async def _refused(request: Request, error: Exception) -> JSONResponse:
    status, detail = (error.status_code, error.detail) if isinstance(error, HTTPException) else (500, "")
    headers = error.headers if isinstance(error, HTTPException) else None
    return _problem(status, detail, headers)


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    problems: Sequence[Any] = error.errors() if isinstance(error, RequestValidationError) else []
    said = [f"{_place(problem['loc'])}: {str(problem['msg']).removeprefix('Value error, ')}" for problem in problems]
    return _problem(422, "; ".join(said[:3]) or "a parameter is out of range")


def _place(location: Sequence[Any]) -> str:
    """`min_score` of `("query", "min_score")`."""
    return ".".join(str(step) for step in location[1:]) or "the request"


def _problem(status: int, sentence: str, headers: Any = None) -> JSONResponse:
    shown = neutralise(clip(" ".join(sentence.split()), MAX_SENTENCE).text)
    return JSONResponse({"error": shown}, status, headers=headers)

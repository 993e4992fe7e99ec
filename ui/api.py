"""The REST interface under `/api/v1`: its routes, its errors, its description."""

import logging
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from annotator.errors import (
    AnnotatorError,
    AuthError,
    ConflictError,
    ForbiddenError,
    InputError,
    NotFoundError,
    TooManyAttemptsError,
    WorkspaceError,
)
from ui import routes_faces, routes_label, routes_session, routes_status
from ui.models import ErrorReply

log = logging.getLogger(__name__)

PREFIX = "/api/v1"
# From the particular to the general: the first that fits decides.
_STATUS: tuple[tuple[type[AnnotatorError], int], ...] = (
    (TooManyAttemptsError, 429),
    (ForbiddenError, 403),
    (AuthError, 401),
    (ConflictError, 409),
    (InputError, 422),
    (NotFoundError, 404),
    (WorkspaceError, 503),
)
_REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorReply} for status in (400, 401, 403, 404, 409, 413, 422, 429, 503)
}


def router() -> APIRouter:
    """Return all routes."""
    api = APIRouter(prefix=PREFIX, responses=_REFUSALS)
    for part in (routes_session, routes_label, routes_faces, routes_status):
        api.include_router(part.router)
    return api


def status_of(error: AnnotatorError) -> int:
    """Return the HTTP status of an error of ours."""
    return next((status for kind, status in _STATUS if isinstance(error, kind)), 500)


def add_error_handlers(app: FastAPI) -> None:
    """Answer every error as {"detail": one sentence}."""

    @app.exception_handler(AnnotatorError)
    async def ours(request: Request, error: AnnotatorError) -> JSONResponse:
        status = status_of(error)
        if status >= 500:
            log.error("%s %s: %s", request.method, request.url.path, error)
        headers = {"Retry-After": "1"} if status in (429, 503) else None
        return JSONResponse({"detail": str(error)}, status, headers)

    @app.exception_handler(RequestValidationError)
    async def malformed(request: Request, error: RequestValidationError) -> JSONResponse:
        problems = error.errors()
        if any(problem["type"] == "json_invalid" for problem in problems):
            return JSONResponse({"detail": f"the body is not JSON: {problems[0]['ctx']['error']}"}, 400)
        return JSONResponse({"detail": "; ".join(_sentence(problem) for problem in problems[:5])}, 422)

    @app.exception_handler(TimeoutError)
    async def slow(request: Request, error: TimeoutError) -> JSONResponse:
        detail = "the store did not answer in time; send the same request again (same client_id): nothing is doubled"
        return JSONResponse({"detail": detail}, 503, {"Retry-After": "1"})

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse({"detail": str(error.detail)}, error.status_code, error.headers)

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"detail": f"unexpected {type(error).__name__}; the server's log has more"}, 500)


def _sentence(problem: dict[str, Any]) -> str:
    where = ".".join(str(part) for part in problem["loc"] if part not in ("body", "query", "path")) or "body"
    got = repr(problem.get("input"))
    return f"{where}: {problem['msg']} (got {got if len(got) <= 80 else got[:77] + '...'})"

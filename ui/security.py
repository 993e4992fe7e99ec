"""The gate before every route: Host, sign-in, Origin, sizes, Gradio's closed doors, and the headers of every reply."""

import re
from typing import Any
from urllib.parse import quote, urlsplit

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import cookie_parser
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from annotator.auth import Authenticator
from annotator.errors import AuthError, NotFoundError, TooManyAttemptsError
from annotator.records import User
from ui.link_auth import LinkAuth

COOKIE = "annotator_session"
API = "/api/v1/"
LINKED = "/labelstudio/"
MAX_API_BYTES = 64 * 1024
MAX_PAGE_BYTES = 1024 * 1024
MAX_LINKED_BYTES = 16 * 1024 * 1024
"""Label Studio asks for predictions of all chosen tasks at once and sends all that it knows of each: about 10,000."""
SAFE_METHODS = frozenset({"GET", "HEAD"})
_PUBLIC = re.compile(
    r"/login|/static/.*|/favicon\.ico|/robots\.txt|/api/v1/(login|openapi\.json|docs)", re.ASCII | re.DOTALL
)
# What Gradio's page needs of Gradio's routes. Its files, uploads, proxy, streams, recordings, monitoring, custom
# components and API descriptions stay closed, whatever a later version adds.
_GRADIO_OPEN = re.compile(
    r"/|/config/?|/theme\.css|/manifest\.json|/assets/[^/]+|/svelte/.+"
    r"|/gradio_api/(startup-events|queue/(join|data)|run/[A-Za-z0-9_]+|heartbeat/[a-z0-9]+|reset/?|cancel|app_id"
    r"|theme\.css)",
    re.ASCII,
)
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:[0-9]{1,5})?", re.ASCII | re.IGNORECASE)
_LOOPBACK_NAMES = frozenset({"127.0.0.1", "localhost", "[::1]"})
_CSP = (
    "default-src 'self'; img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; object-src 'none'; "
    "base-uri 'self'; form-action 'self'; frame-ancestors 'none'; worker-src 'self' blob:; "
)
# Gradio's page carries its configuration in inline scripts and compiles some of them; ours carry none.
_CSP_PAGE = _CSP + "script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'"
_CSP_STRICT = _CSP + "script-src 'self'; style-src 'self'"


class Gate:
    """ASGI middleware in front of everything.

    Args:
        app: the rest of the application.
        auth: recognises people; the user ends up in `scope["state"]["user"]`.
        link_auth: recognises a linked Label Studio; its link ends up in `scope["state"]["link"]`.
        host: where the server listens; it and the loopback names may be in a Host header.
        allowed_hosts: further names, e.g. that of a reverse proxy.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        auth: Authenticator,
        link_auth: LinkAuth,
        host: str,
        allowed_hosts: tuple[str, ...] = (),
    ) -> None:
        self._app = app
        self._auth = auth
        self._link_auth = link_auth
        own = host if ":" not in host or host.startswith("[") else f"[{host}]"
        self._hosts = _LOOPBACK_NAMES | {own.lower()} | {name.lower() for name in allowed_hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or answer it here."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        headers = Headers(scope=scope)
        path: str = scope["path"]
        guarded_send = _with_headers(send, path)
        refusal = self._check_host(headers) or _check_path(path) or _check_size(headers, path)
        if refusal is None:
            refusal = await (self._admit_link if path.startswith(LINKED) else self._admit_person)(scope, headers)
        if refusal is not None:
            await refusal(scope, receive, guarded_send)
            return
        await self._app(scope, _limited(receive, _limit(path)), guarded_send)

    async def _admit_person(self, scope: Scope, headers: Headers) -> Response | None:
        token, by_cookie = read_token(headers)
        user = await self._user(token)
        scope.setdefault("state", {}).update(user=user, token=token)
        refusal = _check_user(scope, scope["path"], user, headers)
        if refusal is None and scope["method"] not in SAFE_METHODS and (by_cookie or token is None):
            refusal = _check_origin(headers)
        return refusal

    async def _admit_link(self, scope: Scope, headers: Headers) -> Response | None:
        """Let Label Studio in, before its body is read; a page elsewhere may not use what a browser remembers."""
        address = scope["client"][0] if scope.get("client") else "unknown"
        try:
            link = await self._link_auth.link_of(headers, address)
        except NotFoundError as error:
            return _refuse(404, str(error))
        except TooManyAttemptsError as error:
            return _refuse(429, str(error))
        except AuthError as error:
            return _refuse(401, str(error), "Basic")
        scope.setdefault("state", {}).update(user=None, token=None, link=link)
        return None if scope["method"] in SAFE_METHODS else _check_origin(headers)

    async def _user(self, token: str | None) -> User | None:
        known, user = self._auth.cached(token)
        if known:
            return user
        return await run_in_threadpool(self._auth.user_of, token)

    def _check_host(self, headers: Headers) -> Response | None:
        """Refuse names that are not this server's: a page elsewhere may point its own name here (DNS rebinding)."""
        match = _HOST.fullmatch(headers.get("host", ""))
        if match is None or match[1].lower() not in self._hosts:
            shown = headers.get("host", "")[:80]
            return _refuse(400, f"host {shown!r} is not served here; add it to server.allowed_hosts in workspace.yaml")
        return None


def read_token(headers: Headers) -> tuple[str | None, bool]:
    """Return (token, whether it came as a cookie). A Bearer token wins: it is sent on purpose."""
    scheme, _, value = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and value.strip():
        return value.strip()[:200], False
    cookie = cookie_parser(headers.get("cookie", "")).get(COOKIE)
    return (cookie[:200], True) if cookie else (None, False)


def _check_path(path: str) -> Response | None:
    if path.startswith((API, LINKED)) or _PUBLIC.fullmatch(path) or _GRADIO_OPEN.fullmatch(path):
        return None
    return _refuse(404, f"nothing is at {path[:200]!r}")


def _check_size(headers: Headers, path: str) -> Response | None:
    limit = _limit(path)
    length = headers.get("content-length")
    if length is not None and (not length.isdecimal() or int(length) > limit):
        return _refuse(413, f"the body has {length[:20]} bytes; at most {limit} are read here")
    return None


def _limit(path: str) -> int:
    if path.startswith(LINKED):
        return MAX_LINKED_BYTES
    return MAX_API_BYTES if path.startswith(API) else MAX_PAGE_BYTES


def _check_user(scope: Scope, path: str, user: User | None, headers: Headers) -> Response | None:
    if user is not None or _PUBLIC.fullmatch(path):
        return None
    if scope["method"] in SAFE_METHODS and not path.startswith(API) and "text/html" in headers.get("accept", ""):
        return RedirectResponse(f"/login?next={quote(path, safe='/')}", 303)
    return _refuse(401, "sign in first: POST /api/v1/login, then send the cookie or `Authorization: Bearer`")


def _check_origin(headers: Headers) -> Response | None:
    """Refuse writes that another site's page sends with our cookie."""
    if headers.get("sec-fetch-site") == "same-origin":
        return None
    origin = headers.get("origin")
    if origin is None:
        # Without a cookie and without an Origin it is a program on this machine, not a page.
        if "cookie" not in headers and "sec-fetch-site" not in headers:
            return None
        return _refuse(403, "this write carries a cookie but no Origin: send it from the page, or use a Bearer token")
    if origin != "null" and urlsplit(origin).netloc.lower() == headers.get("host", "").lower():
        return None
    return _refuse(403, f"origin {origin[:100]!r} may not write here")


def _limited(receive: Receive, limit: int) -> Receive:
    """Stop reading a body that grows past `limit`, announced or not."""
    read = 0

    async def limited() -> Message:
        nonlocal read
        message = await receive()
        if message["type"] == "http.request":
            read += len(message.get("body", b""))
            if read > limit:
                raise HTTPException(413, f"the body is larger than {limit} bytes")
        return message

    return limited


def _with_headers(send: Send, path: str) -> Send:
    """Add the headers that every reply carries."""
    policy = _CSP_PAGE if path in ("/", "/config", "/config/") else _CSP_STRICT

    async def with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers["X-Content-Type-Options"] = "nosniff"
            headers["X-Frame-Options"] = "DENY"
            headers["Referrer-Policy"] = "same-origin"
            headers["Cross-Origin-Resource-Policy"] = "same-origin"
            headers["Cross-Origin-Opener-Policy"] = "same-origin"
            headers.setdefault("Content-Security-Policy", policy)
            for name in [key for key in headers if key.startswith("access-control-")]:
                # Gradio answers other origins on loopback; nothing here is meant for them.
                del headers[name]
            if path.startswith((API, LINKED)):
                headers.setdefault("Cache-Control", "no-store")
            elif path.startswith("/static/"):
                # Modules import each other without a version: the browser asks whether they changed.
                headers.setdefault("Cache-Control", "no-cache")
        await send(message)

    return with_headers


def _refuse(status: int, detail: str, scheme: str = "Bearer") -> JSONResponse:
    content: dict[str, Any] = {"detail": detail}
    headers = {401: {"WWW-Authenticate": scheme}, 429: {"Retry-After": "60"}}.get(status)
    return JSONResponse(content, status, headers)

"""The application: REST routes, the sign-in page, static files, and Gradio's page at `/`."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import gradio as gr
from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse
from starlette.staticfiles import StaticFiles

from annotator.errors import NotFoundError
from annotator.settings import Workspace
from annotator.store import LabelStore
from ui import routes_labelstudio, theme
from ui.api import PREFIX, add_error_handlers, router
from ui.docs import docs_page
from ui.label import build_label_tab
from ui.pages import login_page
from ui.progress import build_progress_tab
from ui.security import Gate
from ui.server import serve
from ui.services import Services
from ui.team import build_team_tab

__all__ = ["build_app", "serve"]

QUEUE_SECONDS = 0.02

_ABOUT = (
    "Ask for the next faces, answer them, take answers back. Sign in by POST login; send the cookie or "
    "`Authorization: Bearer`. Every answer carries a client_id of its own: the same one twice is one answer. What is "
    "under /labelstudio is for a linked Label Studio alone: it shows the secret of the link as Basic password or in "
    "the header X-Annotator-Secret."
)


def build_app(workspace: Workspace, store: LabelStore, host: str = "127.0.0.1") -> FastAPI:
    """Return the whole application on an open store. Its threads start and end with the application's lifespan.

    Args:
        workspace: the workspace to serve.
        store: its open store; closed by the caller.
        host: where the server will listen: decides which Host headers are believed, and whether it may run without
            accounts.

    Raises:
        InputError: `host` is not a loopback address and the workspace has no accounts.
    """
    services = Services.make(workspace, store, host)
    services.auth.require_accounts(host)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await asyncio.to_thread(services.start)
        try:
            yield
        finally:
            await asyncio.to_thread(services.close)

    app = FastAPI(
        title=f"{workspace.settings.name} · annotator",
        description=_ABOUT,
        version="1",
        docs_url=None,
        redoc_url=None,
        openapi_url=f"{PREFIX}/openapi.json",
        lifespan=lifespan,
    )
    app.state.services = services
    add_error_handlers(app)
    app.include_router(router())
    app.include_router(routes_labelstudio.router)
    _add_pages(app, workspace)
    app.mount("/static", _static())
    app.add_middleware(
        Gate,
        auth=services.auth,
        link_auth=services.link_auth,
        host=host,
        allowed_hosts=workspace.settings.server.allowed_hosts,
    )
    return _with_gradio(app, workspace, store)


def _add_pages(app: FastAPI, workspace: Workspace) -> None:
    project = workspace.settings.name

    @app.get("/login", include_in_schema=False)
    def login(next: str = "/") -> HTMLResponse:
        return HTMLResponse(login_page(project, next_path=next), headers={"Cache-Control": "no-store"})

    @app.get(f"{PREFIX}/docs", include_in_schema=False)
    def docs() -> HTMLResponse:
        return HTMLResponse(docs_page(app.openapi()))

    @app.api_route(PREFIX + "/{rest:path}", methods=["GET", "POST", "PUT", "PATCH", "DELETE"], include_in_schema=False)
    def nothing(rest: str) -> None:
        """Keep what is under our prefix away from Gradio."""
        raise NotFoundError(f"no such route: {PREFIX}/{rest[:100]}; see {PREFIX}/docs")


def _static() -> StaticFiles:
    """Serve our files; what is not among them may be one that Gradio's page asks for under the same path."""
    static = StaticFiles(directory=theme.STATIC)
    static.all_directories.append(Path(gr.__file__).parent / "templates" / "frontend" / "static")
    return static


def _with_gradio(app: FastAPI, workspace: Workspace, store: LabelStore) -> FastAPI:
    with (
        gr.Blocks(title=workspace.settings.name, analytics_enabled=False, fill_width=True) as page,
        gr.Tabs(elem_id="desk-tabs"),
    ):
        build_label_tab(workspace)
        build_progress_tab(workspace, store)
        build_team_tab(workspace, store)
    gr.mount_gradio_app(
        app,
        page,
        path="/",
        theme=theme.theme(),
        head=theme.HEAD,
        css=theme.CSS,
        footer_links=[],
        run_history=False,
        show_error=False,
        enable_monitoring=False,
        mcp_server=False,
        pwa=False,
        ssr_mode=False,
        max_file_size="1kb",
        auth_dependency=_name_of,
    )
    # Gradio's event queue looks for work a thousand times a second, which costs 4 % of a core all day. The desk never
    # uses it, and the tabs that do can wait this long.
    page._queue.sleep_when_free = QUEUE_SECONDS
    return app


def _name_of(request: Request) -> str | None:
    """Tell Gradio who asks: the gate in front has recognised them."""
    user = request.scope.get("state", {}).get("user")
    return user.name if user is not None else None

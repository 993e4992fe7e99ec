"""Fixtures of the browser tests: Chromium, drawn faces, a server, and a person's hands at the desk."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Playwright, sync_playwright

from annotator.settings import Workspace
from tests.e2e.hands import Hands
from tests.e2e.serving import Site, draw_faces, make_workspace, serving

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
NUM_FACES = 48


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark everything in this folder, and leave it out where there is no browser."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker("e2e")
            if CHROMIUM is None:
                item.add_marker(pytest.mark.skip(reason="no Chromium is installed"))


@pytest.fixture(scope="session")
def playwright_driver() -> Iterator[Playwright]:
    """Run Playwright for the session."""
    with sync_playwright() as driver:
        yield driver


@pytest.fixture(scope="session")
def browser(playwright_driver: Playwright) -> Iterator[Browser]:
    """Run the system's Chromium for the session."""
    arguments = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]
    with playwright_driver.chromium.launch(executable_path=CHROMIUM, args=arguments) as opened:
        yield opened


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Draw the faces once for the session."""
    return draw_faces(tmp_path_factory.mktemp("faces"), NUM_FACES)


@pytest.fixture
def make(tmp_path: Path, drawn: Path) -> Callable[..., Workspace]:
    """Make a workspace of drawn faces without labels, with the given settings."""
    return lambda **settings: make_workspace(tmp_path / "ws", drawn, **settings)


@pytest.fixture
def faces_workspace(make: Callable[..., Workspace]) -> Workspace:
    """Make a workspace with the usual settings."""
    return make()


@pytest.fixture
def site(faces_workspace: Workspace) -> Iterator[Site]:
    """Serve the workspace in single-user mode."""
    with serving(faces_workspace) as running:
        yield running


@pytest.fixture
def open_context(browser: Browser) -> Iterator[Callable[..., BrowserContext]]:
    """Open browser profiles that know nothing of each other; a page error fails the test."""
    contexts: list[BrowserContext] = []
    errors: list[str] = []

    def opened(**options: object) -> BrowserContext:
        options.setdefault("viewport", {"width": 1366, "height": 768})
        context = browser.new_context(**options)  # type: ignore[arg-type]
        context.set_default_timeout(15_000)
        context.on("weberror", lambda error: errors.append(str(error.error)))
        contexts.append(context)
        return context

    yield opened
    for context in contexts:
        context.close()
    assert not errors, f"the page raised {errors}"


@pytest.fixture
def hands(site: Site, open_context: Callable[..., BrowserContext]) -> Hands:
    """Sit down at the desk: one page, first face on screen."""
    return Hands.sit_down(open_context().new_page(), site.url)

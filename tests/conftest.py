"""Fixtures that several parts share: workspaces, stores on both databases, real and drawn faces."""

import os
import shutil
import socket
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import psycopg
import pytest

from annotator import taxonomy
from annotator.records import NewImage
from annotator.settings import Workspace
from annotator.store import LabelStore
from tests.zygote import Zygote

REPOSITORY = Path(__file__).parent.parent


def _postgres_bin() -> Path | None:
    """Return the folder of `initdb`, or None when PostgreSQL is not installed."""
    on_path = shutil.which("initdb")
    if on_path:
        return Path(on_path).resolve().parent
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return found[-1].parent if found else None


BACKENDS = ("sqlite", "postgresql") if _postgres_bin() else ("sqlite",)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run every test that uses `store` on each database that is installed."""
    if "store" in metafunc.fixturenames:
        metafunc.parametrize("backend", BACKENDS, indirect=True)


@pytest.fixture
def backend(request: pytest.FixtureRequest) -> str:
    """Name the database under test; SQLite where a test does not ask for `store`."""
    return str(getattr(request, "param", "sqlite"))


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """Run a PostgreSQL server for the session and yield the URL of its maintenance database."""
    binaries = _postgres_bin()
    if binaries is None:
        pytest.skip("PostgreSQL is not installed")
    folder = Path(tempfile.mkdtemp(prefix="annotator-pg-"))
    folder.chmod(0o755)
    # initdb refuses root: become the package's own user then.
    prefix = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
    if prefix:
        shutil.chown(folder, "postgres")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    data = folder / "data"
    run = {"check": True, "cwd": folder, "stdout": subprocess.DEVNULL}
    initdb = ["-D", data, "-U", "app", "--auth=trust", "--no-sync", "-E", "UTF8", "--locale=C"]
    subprocess.run([*prefix, binaries / "initdb", *initdb], **run)
    options = f"-c listen_addresses=127.0.0.1 -p {port} -k {folder} -c fsync=off -c max_connections=200"
    log = folder / "log"
    subprocess.run([*prefix, binaries / "pg_ctl", "-D", data, "-w", "-l", log, "-o", options, "start"], **run)
    try:
        yield f"postgresql+psycopg://app@127.0.0.1:{port}/postgres"
    finally:
        subprocess.run([*prefix, binaries / "pg_ctl", "-D", data, "-m", "immediate", "stop"], **run)
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def empty_database(server: str, template: str = "template1") -> Iterator[str]:
    """Make a PostgreSQL database for the time of the block, as a copy of `template`, and yield its URL."""
    name = f"t{uuid.uuid4().hex}"
    admin = server.replace("+psycopg", "")
    with psycopg.connect(admin, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
    yield server.rsplit("/", 1)[0] + f"/{name}"
    with psycopg.connect(admin, autocommit=True) as connection:
        connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


@pytest.fixture
def database_of_its_own(postgres_url: str) -> Iterator[str]:
    """Yield the URL of an empty PostgreSQL database."""
    with empty_database(postgres_url) as url:
        yield url


@pytest.fixture
def database(backend: str, request: pytest.FixtureRequest) -> str | None:
    """Return the URL of a fresh database for the settings, None for the workspace's own SQLite file."""
    return None if backend == "sqlite" else str(request.getfixturevalue("store_database"))


@pytest.fixture(scope="session")
def migrated(postgres_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Make the tables once for the session and yield the name of the database that holds them, empty."""
    with empty_database(postgres_url) as url:
        workspace = Workspace.create(tmp_path_factory.mktemp("migrated") / "ws", taxonomy.FERPLUS, database=url)
        LabelStore.open(workspace).close()
        yield url.rsplit("/", 1)[1]


@pytest.fixture
def store_database(postgres_url: str, migrated: str) -> Iterator[str]:
    """Yield the URL of a PostgreSQL database with empty tables for `store`."""
    with empty_database(postgres_url, migrated) as url:
        yield url


@pytest.fixture
def workspace(tmp_path: Path, database: str | None) -> Workspace:
    """Make an empty workspace with the FER+ classes."""
    return Workspace.create(tmp_path / "ws", taxonomy.FERPLUS, database=database)


@pytest.fixture
def store(workspace: Workspace) -> Iterator[LabelStore]:
    """Open the store of `workspace`, on every installed database in turn."""
    with LabelStore.open(workspace) as opened:
        yield opened


@pytest.fixture
def sqlite_store(workspace: Workspace) -> Iterator[LabelStore]:
    """Open the store of `workspace` on SQLite only, for tests where the database makes no difference."""
    with LabelStore.open(workspace) as opened:
        yield opened


@pytest.fixture(scope="session")
def zygote() -> Iterator[Zygote]:
    """Load torch and Gradio once for all commands, servers and rounds of the session."""
    with Zygote(
        "annotator.cli",
        "ui.app",
        "learner.cli",
        "learner.round",
        "annotator.loop.embed_network",
        "learner.pretrain.loop",
        *(["label_studio_sdk.client"] if find_spec("label_studio_sdk") else []),
    ) as running:
        yield running


@pytest.fixture
def ferplus_zip() -> Path:
    """Return the path of the FER+ archive, where it is installed beside the repository."""
    path = REPOSITORY.parent / "shared" / "data" / "ferplus.zip"
    if not path.is_file():
        pytest.skip("the FER+ archive is not installed")
    return path


def new_image(name: str, **fields: object) -> NewImage:
    """Build an active pool image named `name` with a content of its own."""
    defaults: dict[str, object] = {
        "path": f"{name}.png",
        "split": "pool",
        "state": "active",
        "content_hash": f"hash-{name}",
        "file_bytes": 100,
        "file_stamp": 1,
        "width": 48,
        "height": 48,
        "media_type": "image/png",
    }
    return NewImage(**(defaults | fields))  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Draw 64 demo faces once per session; return the folder that holds `manifest.csv` and `images/`."""
    from annotator.ingest.demo_faces import generate

    return generate(tmp_path_factory.mktemp("faces"), 64, seed=7).parent

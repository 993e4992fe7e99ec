"""Every command of the README is run, in its order, in one folder."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import httpx
import pytest

from annotator.commands.workspaces import ExportFormat, ImportFormat
from annotator.ingest import demo_faces
from annotator.labelstudio.report import sync_state
from annotator.settings import Workspace
from annotator.simulate import server_url
from tests.ingest.group_photos import group_photo
from tests.labelstudio import install
from tests.labelstudio.studio import Studio
from tests.labelstudio.studio import running as studio_running
from tests.zygote import Zygote

README = Path(__file__).parents[1] / "README.md"
READY_SECONDS = 120.0
LABEL_STUDIO = "http://127.0.0.1:8080"
SERVING = {"up", "serve", "learn", "demo"}
# A small machine's share of time: one short round, as the workspace's settings would have it.
QUICK = {"ANNOTATOR_LEARNER__ROUND_MINUTES": "0.1", "ANNOTATOR_SERVER__PORT": "0"}


def commands() -> list[list[str]]:
    """The commands of the README's bash blocks, continuation lines joined."""
    blocks = re.findall(r"```bash\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True) for line in lines if line.strip() and not line.startswith("#")]


def run(zygote: Zygote, words: list[str], folder: Path, key: str = "") -> None:
    """Run one command to its end, with leading assignments as its environment; it must succeed."""
    environment = {**QUICK, "LABEL_STUDIO_API_KEY": key}
    while "=" in words[0]:
        name, value = words[0].split("=", 1)
        environment[name], words = value, words[1:]
    arguments = words if words[0] == "annotator" else words[2:]
    assert words[0] == "annotator" or words[:2] == ["python", "-m"]
    done = zygote.run(arguments, folder, environment, timeout=600)
    assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout}{done.stderr}"


@contextmanager
def serving(words: list[str], folder: Path) -> Iterator[None]:
    """Keep a serving command running for the commands that follow it."""
    port = [] if "--port" in words else ["--port", "0"]
    process = subprocess.Popen(
        [sys.executable, "-m", *words, *port],
        cwd=folder,
        env={**os.environ, **QUICK},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    root = folder / words[2]
    try:
        give_up = time.monotonic() + READY_SECONDS
        while True:
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < give_up, f"{shlex.join(words)} did not answer"
            if (root / "server.json").is_file():
                try:
                    httpx.get(f"{server_url(Workspace.open(root))}/login", timeout=2).raise_for_status()
                    break
                except httpx.TransportError:
                    pass
            time.sleep(0.2)
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)


def watch(zygote: Zygote, words: list[str], folder: Path, key: str) -> None:
    """Let a watch bring both sides together once, then stop it as Ctrl-C does."""
    watching = zygote.popen(words, folder, {**QUICK, "LABEL_STUDIO_API_KEY": key})
    try:
        give_up = time.monotonic() + READY_SECONDS
        while sync_state(Workspace.open(folder / words[2]))["synced_at"] is None:
            assert watching.poll() is None, watching.communicate()
            assert time.monotonic() < give_up, f"{shlex.join(words)} does not come to rest"
            time.sleep(0.2)
    finally:
        watching.send_signal(signal.SIGINT)
        assert watching.wait(60) == 0


@pytest.fixture
def studio(tmp_path: Path) -> Iterator[Studio | None]:
    """Run the Label Studio that the README talks to, None where it is not installed."""
    if not install.installed():
        yield None
        return
    with studio_running(tmp_path / "studio") as started:
        yield started


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_command_of_the_readme_works(zygote: Zygote, tmp_path: Path, studio: Studio | None) -> None:
    demo_faces.generate(tmp_path / "more", 60, seed=3)
    (tmp_path / "configs").symlink_to(README.parent / "configs")
    (tmp_path / "faces").mkdir()
    for path in sorted((tmp_path / "more" / "images").iterdir())[:5]:
        shutil.copy(path, tmp_path / "faces")
    (tmp_path / "photos").mkdir()
    group_photo(seed=1)[0].save(tmp_path / "photos" / "group.png")
    running: AbstractContextManager[None] | None = None
    try:
        for words in commands():
            if words[0] == "annotator" and words[1] in SERVING:
                if running is not None:
                    running.__exit__(None, None, None)
                running = serving(words, tmp_path)
                running.__enter__()
                continue
            if words[1] == "erase" and running is not None:  # the README says so
                running.__exit__(None, None, None)
                running = None
            if words[1] == "sync":
                if studio is None:
                    continue
                words = [studio.url if word == LABEL_STUDIO else word for word in words]
                if words[-1] == "watch":
                    watch(zygote, words, tmp_path, studio.admin.token)
                    continue
            run(zygote, words, tmp_path, studio.admin.token if studio else "")
    finally:
        if running is not None:
            running.__exit__(None, None, None)
    assert (tmp_path / "labels.csv").is_file()
    assert (tmp_path / "predictions.parquet").is_file()
    assert (tmp_path / "features.npz").is_file()
    assert (tmp_path / "three-stages" / "teacher" / "out").is_dir()


def test_the_readme_names_every_format_and_command() -> None:
    text = README.read_text(encoding="utf-8")
    for word in [*ImportFormat, *ExportFormat]:
        assert f"`{word.value}`" in text
    shown = {words[1] for words in commands() if words[0] == "annotator"}
    assert shown >= {"init", "import", "up", "status", "export", "retrain", "evaluate", "backup", "restore", "verify"}


def test_pictures_of_the_readme_exist() -> None:
    for target in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", README.read_text(encoding="utf-8")):
        assert (README.parent / target).is_file(), target

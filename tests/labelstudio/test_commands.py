"""`annotator sync WS labelstudio …` as it is typed: what it does, what it says, and what it never says."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from annotator import auth, taxonomy
from annotator.locks import only_one
from annotator.settings import Workspace
from annotator.store import LabelStore
from tests.labelstudio.conftest import People
from tests.labelstudio.studio import Studio, said, secrets_in
from tests.ui.conftest import fill
from tests.zygote import Zygote

FACES = 4


class Typed:
    """Commands typed in one workspace."""

    def __init__(self, zygote: Zygote, folder: Path, key: str) -> None:
        self._zygote, self._folder, self._key = zygote, folder, key
        self.output: list[str] = []

    def run(self, *words: str, key: str | None = None) -> tuple[int, str]:
        """Run `annotator sync ws labelstudio WORDS` and return exit code and everything it said."""
        environment = {"LABEL_STUDIO_API_KEY": self._key if key is None else key, "COLUMNS": "200"}
        done = self._zygote.run(
            ["annotator", "sync", "ws", "labelstudio", *words], self._folder, environment, timeout=120
        )
        self.output += [done.stdout, done.stderr]
        return done.returncode, done.stdout + done.stderr

    def ok(self, *words: str) -> str:
        code, text = self.run(*words)
        assert code == 0, text
        return text

    def told(self, *words: str) -> Any:
        """Return what a command prints with --json."""
        self.ok(*words, "--json")
        return json.loads(self.output[-2])


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """Make a workspace with four faces and the accounts of ann and ben."""
    made = Workspace.create(tmp_path / "ws", taxonomy.FERPLUS)
    with LabelStore.open(made) as store:
        fill(store, tmp_path / "pictures", FACES)
        for name in ("ann", "ben"):
            store.accounts.add(name, "annotator", auth.hash_password("correct horse"))
    return made


@pytest.fixture
def typed(workspace: Workspace, zygote: Zygote, studio: Studio) -> Typed:
    """Commands with the administrator's key."""
    return Typed(zygote, workspace.root.parent, studio.admin.token)


def test_from_link_to_unlink(
    typed: Typed, zygote: Zygote, workspace: Workspace, studio: Studio, people: People
) -> None:
    users = ("--user", f"{people.ann.email}=ann", "--user", f"{people.ben.email}=ben")
    assert "made and linked" in typed.ok("link", studio.url, "--title", "typed faces", *users)
    project = typed.told("status")["project_id"]

    assert "would push 4 faces" in typed.ok("push", "--dry-run")
    assert typed.told("push", "--dry-run")["push"]["to_push"] == FACES
    assert typed.told("status")["tasks"]["open"] == 0, "a dry run changes nothing"
    assert "4 pushed" in typed.ok("push")
    whole = zygote.run(["annotator", "status", "ws"], workspace.root.parent).stdout
    assert f"'typed faces' of {studio.url}, 4 tasks open there, sync off" in whole
    assert "nothing to push" in typed.ok("push")

    with studio.server() as server:
        tasks = [int(task["id"]) for task in server.iter_tasks(project, include=("id",))]
    assert len(tasks) == FACES
    studio.annotate(people.ann, tasks[0], said("expression", "anger"))
    studio.annotate(people.ben, tasks[1], said("expression", "fear"))
    planned = typed.told("pull", "--dry-run")
    assert sorted((line["user"], line["says"]) for line in planned) == [
        (people.ann.email, "anger"),
        (people.ben.email, "fear"),
    ]
    assert "anger" in typed.ok("pull", "--dry-run")
    assert typed.told("pull")["new"] == 2
    assert typed.told("pull")["new"] == 0

    told = typed.told("status", "--check")
    assert (told["tasks"]["open"], told["tasks"]["answered"], told["answers"]["linked"]) == (2, 2, 2)
    assert told["outbox"] == {"waiting": 0, "dead": 0}, "what the sync only remembers does not wait"
    assert (told["server"]["tasks"], told["server"]["annotations"]) == (FACES, 2)
    typed.ok("status", "--check")
    assert "is not linked any more" in typed.ok("unlink")
    assert typed.told("status") == {"linked": False}
    with LabelStore.open(workspace) as store:
        assert store.decisions.count() == 2, "answers stay"
    assert secrets_in(typed.output, studio.admin.token) == []


def test_what_only_a_person_can_settle_is_shown(typed: Typed, studio: Studio, people: People) -> None:
    typed.ok("link", studio.url, "--title", "strangers", "--user", f"{people.ann.email}=")
    typed.ok("push")
    with studio.server() as server:
        tasks = [int(t["id"]) for t in server.iter_tasks(typed.told("status")["project_id"], include=("id",))]
    studio.annotate(people.ann, tasks[0], said("expression", "anger"))
    assert typed.told("pull")["quarantined"] == 1
    waiting = typed.told("status")["needs_a_person"]["quarantined"]
    assert [(item["task"], item["user"]) for item in waiting] == [(tasks[0], people.ann.email)]
    assert people.ann.email in typed.ok("status")
    typed.ok("link", studio.url, "--user", f"{people.ann.email}=ann")
    assert typed.told("pull")["new"] == 1
    assert typed.told("status")["needs_a_person"]["quarantined"] == []
    typed.ok("unlink")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("push",), "no project is linked"),
        (("pull",), "no project is linked"),
        (("watch",), "no project is linked"),
        (("unlink",), "no project is linked"),
        (("link", "nowhere"), "nowhere"),
        (("link", "http://127.0.0.1:9", "--user", "somebody"), "write EMAIL=NAME"),
        (("link", "http://127.0.0.1:9", "--top-k", "0"), "--top-k"),
        (("import", "no.json"), "no.json"),
    ],
)
def test_wrong_arguments_end_with_one_line(typed: Typed, words: tuple[str, ...], expected: str) -> None:
    code, text = typed.run(*words)
    assert code == 2
    assert expected in text
    assert "Traceback" not in text


def test_a_server_that_does_not_answer_is_named(typed: Typed) -> None:
    code, text = typed.run("link", "http://127.0.0.1:9")
    assert code != 0
    assert "127.0.0.1:9" in text
    assert "Traceback" not in text


def test_without_a_key_the_remedy_is_named(typed: Typed, studio: Studio) -> None:
    code, text = typed.run("link", studio.url, key="")
    assert code == 2
    assert "LABEL_STUDIO_API_KEY" in text
    assert "keyring" in text


def test_a_second_sync_is_refused(typed: Typed, studio: Studio, workspace: Workspace) -> None:
    typed.ok("link", studio.url, "--title", "locked")
    with only_one(workspace.root / "labelstudio.lock", "sync"):
        code, text = typed.run("push")
    assert code == 2
    assert "another sync" in text
    typed.ok("unlink")


def test_up_keeps_a_linked_project_in_step(typed: Typed, studio: Studio, workspace: Workspace, people: People) -> None:
    typed.ok("link", studio.url, "--title", "kept in step", "--user", f"{people.ann.email}=ann")
    environment = {**os.environ, "LABEL_STUDIO_API_KEY": studio.admin.token, "ANNOTATOR_SERVER__PORT": "0"}
    log = workspace.root.parent / "up.log"
    with log.open("wb") as file:
        up = subprocess.Popen(
            [sys.executable, "-m", "annotator", "up", str(workspace.root)], env=environment, stdout=file, stderr=file
        )
    try:
        with LabelStore.open(workspace) as store:
            link = store.exchange.link()
            assert link is not None
            _wait(lambda: store.exchange.counts(link.id)["tasks"]["open"] == FACES, log)
            task = store.exchange.tasks(link.id)[0]
            studio.annotate(people.ann, task.task_id, said("expression", "anger"))
            _wait(lambda: store.decisions.count(people_only=True) == 1, log)
    finally:
        up.send_signal(signal.SIGTERM)
        up.wait(60)
    assert secrets_in([log.read_text()], studio.admin.token) == []


def _wait(condition: Any, log: Path) -> None:
    give_up = time.monotonic() + 90
    while not condition():
        assert time.monotonic() < give_up, log.read_text()
        time.sleep(0.1)

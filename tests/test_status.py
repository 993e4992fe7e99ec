"""What is told of the learner, above all when it was killed."""

import fcntl
import json
from pathlib import Path

from annotator.locks import lock_held
from annotator.settings import Workspace
from annotator.status import learner_state, workspace_status
from annotator.store import LabelStore
from tests.conftest import new_image

OFF = {"state": "off", "progress": None}


def test_a_learner_is_believed_only_while_it_holds_its_lock(workspace: Workspace) -> None:
    assert learner_state(workspace) == OFF
    words = {"state": "training", "progress": 0.4, "method": "lion"}
    (workspace.root / "learner.json").write_text(json.dumps(words))
    assert learner_state(workspace) == OFF
    with (workspace.root / "learner.lock").open("w") as file:
        assert learner_state(workspace) == OFF
        fcntl.flock(file, fcntl.LOCK_EX)
        assert learner_state(workspace) == words
        (workspace.root / "learner.json").write_text('{"state": "trai')
        assert learner_state(workspace) == OFF


def test_looking_at_a_lock_does_not_take_it(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    assert not lock_held(path)
    with path.open("w") as file:
        assert not lock_held(path)
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert lock_held(path)
    assert not lock_held(path)


def test_the_sum_of_the_samples(workspace: Workspace, store: LabelStore) -> None:
    source = store.images.register_source("/faces", "folder", "folder")
    new = [
        new_image("a"),
        new_image("b"),
        new_image("v", split="val"),
        new_image("leak", split="val", content_hash="hash-a"),
        new_image("bad", state="quarantined", content_hash=None, quarantine_reason="broken"),
    ]
    store.images.add(source, new, "none")
    status = workspace_status(workspace, store)
    counts = {key: status["images"][key] for key in ("pool", "val", "test", "quarantined", "leak", "duplicate_groups")}
    assert counts == {"pool": 2, "val": 1, "test": 0, "quarantined": 1, "leak": 1, "duplicate_groups": 1}
    assert status["annotations"] == 0
    assert status["labels"]["unlabeled"] == 2
    assert status["snapshots"] == []
    assert status["queue"] == {"mode": "import order", "model": None, "behind": 0}
    assert status["learner"] == OFF


def test_the_linked_project_is_told_without_its_secrets(workspace: Workspace, store: LabelStore) -> None:
    assert workspace_status(workspace, store)["labelstudio"] is None
    store.exchange.add_link("http://me:secret-word@label.example", 7, "Faces", {"mapping": {}})
    told = workspace_status(workspace, store)["labelstudio"]
    assert (told["title"], told["state"], told["synced_at"], told["tasks"]["open"]) == ("Faces", "off", None, 0)
    assert "label.example" in told["url"]
    assert "secret-word" not in json.dumps(told)

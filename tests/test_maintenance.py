"""Backup, restore, verify, erase and prune, on a workspace with drawn faces, answers and published folders."""

import fcntl
import io
import json
import os
import shutil
import tarfile
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file, save_file
from sqlalchemy import text

from annotator.errors import InputError, NotFoundError, WorkspaceBusyError, WorkspaceError
from annotator.ingest.importer import run_import
from annotator.maintenance import backup, erase, prune, restore, verify
from annotator.maintenance.verify import SCORE_FILES, SNAPSHOT_FILES
from annotator.records import Answer, Generation, Snapshot, Stored
from annotator.settings import Workspace
from annotator.store import LabelStore, health, migrate, transfer
from annotator.store.database import Database
from annotator.store.exchange_records import ForeignAnswer, Link, LinkedAnswer, LinkedTask, Shown

SECRET = "a note about somebody called Aloysius Featherstonehaugh"


@pytest.fixture
def filled(store: LabelStore, faces: Path, tmp_path: Path) -> LabelStore:
    """Import drawn faces from a folder of their own, answer some, publish a generation and two snapshots."""
    own = tmp_path / "source"
    shutil.copytree(faces, own)
    run_import(store.workspace, store, own / "manifest.csv", "manifest", given_as="annotations", limit=24)
    ann = store.accounts.add("ann", "annotator", "hash")
    rev = store.accounts.add("Zoë <b>", "reviewer", None)
    ids = [r.image_id for r in store.images.by_rows(range(4))]
    first = store.decisions.submit(ann, Answer("a", ids[0], "label", ("fear",), note=SECRET, confidence=0.5)).annotation
    store.decisions.submit(rev, Answer("b", ids[0], "label", ("anger",)))
    second = store.decisions.submit(ann, Answer("c", ids[1], "candidates", ("fear", "anger"))).annotation
    store.decisions.submit(ann, Answer("d", ids[1], "label", ("anger",), supersedes=second.id))
    store.decisions.undo(ann, "e", first.id)
    store.decisions.submit(ann, Answer("f", ids[2], "flag", note="=cmd()"))
    publish(store, 1)
    return store


def publish(store: LabelStore, number: int) -> None:
    """Publish generation and snapshot `number` with files of the real layout, small."""
    root, rows = store.workspace.root, store.images.table().rows
    now = datetime.now(UTC)
    name = f"s{number}"
    write_snapshot(root / "snapshots" / name, rows)
    store.learning.publish_snapshot(Snapshot(name, "lion", 1, {"val_overall": 0.5}, now, True))
    encoder = root / "encoders" / "hog"
    encoder.mkdir(parents=True, exist_ok=True)
    (encoder / "encoder.json").write_text("{}")
    np.save(encoder / f"features-{0:09d}-{len(rows):09d}.npy", np.ones((len(rows), 4), np.float16))
    scores = root / "scores" / str(number)
    scores.mkdir(parents=True)
    for file in SCORE_FILES:
        if file == "meta.json":
            (scores / file).write_text("{}")
        else:
            np.save(scores / file, rows if file in ("rows.npy", "order.npy") else np.ones(len(rows), np.int64))
    store.learning.publish_generation(Generation(number, f"{name}.{number}", "fast", 1, "hog", now))


def write_snapshot(folder: Path, rows: "np.ndarray") -> None:
    folder.mkdir(parents=True)
    for file in SNAPSHOT_FILES:
        (folder / file).write_bytes(b"{}")
    pq.write_table(pa.table({"row": rows, "margin": np.ones(len(rows))}), folder / "signals.parquet")
    np.save(folder / "rows.npy", rows)
    np.save(folder / "probs.npy", np.ones((len(rows), 8), np.float32))
    state = {
        "bank/rows": rows,
        "bank/given": np.ones(len(rows), np.int64),
        "student/weight": np.ones((3, 3), np.float32),
    }
    save_file(state, folder / "state.safetensors", {"format": "1"})


def test_backup_restore_verify_are_equal(filled: LabelStore, tmp_path: Path) -> None:
    workspace = filled.workspace
    before = verify(workspace)
    assert before.problems == []
    archive = backup(workspace, tmp_path / "saved.tar")
    assert oct(archive.stat().st_mode & 0o777) == "0o600"
    restored = restore(archive, tmp_path / "again")
    after = verify(restored)
    assert after.problems == []
    assert (after.digest, after.rows) == (before.digest, before.rows)
    assert before.rows["annotations"] == filled.decisions.count() > 6
    with LabelStore.open(restored) as store:
        assert store.database.is_sqlite, "wherever it came from, it needs no server"
        assert store.decisions.list() == filled.decisions.list()
        assert store.decisions.labels() == filled.decisions.labels()
        assert store.accounts.list() == filled.accounts.list()
        assert store.accounts.password_hash("ann") == "hash"
        assert store.learning.current_generation() == filled.learning.current_generation()
        assert store.learning.snapshots() == filled.learning.snapshots()
        shown = store.images.by_rows([0])[0]
        stored = store.decisions.submit(store.accounts.get("ann"), Answer("new", shown.image_id, "label", ("fear",)))
        assert stored.annotation.seq == filled.last_seq() + 1
        store.accounts.add("new", "annotator", None)
    shard = next((restored.root / "cache").rglob("pixels-*.npy")).relative_to(restored.root)
    assert (restored.root / shard).read_bytes() == (workspace.root / shard).read_bytes()
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_a_workspace_moves_to_another_database(filled: LabelStore, tmp_path: Path, database_of_its_own: str) -> None:
    archive = backup(filled.workspace, tmp_path / "saved.tar", cache=False)
    moved = restore(archive, tmp_path / "moved", database=database_of_its_own)
    with LabelStore.open(moved) as store:
        assert not store.database.is_sqlite
        assert transfer.contents(store.database) == transfer.contents(filled.database)
        assert store.accounts.add("new", "annotator", None).id == 3, "ids go on where they were"
        assert store.learning.file_job("retrain", {}).id == 1
    with pytest.raises(WorkspaceError, match="is not empty"):
        restore(archive, tmp_path / "twice", database=database_of_its_own)
    assert not (tmp_path / "twice").exists()


def test_a_backup_holds_one_moment_while_people_answer(filled: LabelStore, tmp_path: Path) -> None:
    ann = filled.accounts.get("ann")
    ids = [r.image_id for r in filled.images.by_rows(range(20))]
    stop, acknowledged = threading.Event(), []

    def answer() -> None:
        while not stop.is_set():
            number = len(acknowledged)
            said = Answer(f"t{number}", ids[number % 20], "label", (("fear", "anger")[number % 2],))
            acknowledged.append(filled.decisions.submit(ann, said).annotation)

    thread = threading.Thread(target=answer)
    thread.start()
    while len(acknowledged) < 5:
        time.sleep(0.01)
    early = list(acknowledged)
    archive = backup(filled.workspace, tmp_path / "saved.tar")
    stop.set()
    thread.join()
    restored = restore(archive, tmp_path / "again")
    assert verify(restored).problems == []
    with LabelStore.open(restored) as store:
        saved = store.decisions.list()
        assert saved == filled.decisions.list()[: len(saved)]
        assert {a.seq for a in early} <= {a.seq for a in saved}


def test_targets_that_are_taken_are_refused(filled: LabelStore, tmp_path: Path) -> None:
    (tmp_path / "there.tar").write_text("mine")
    with pytest.raises(WorkspaceError, match="exists already"):
        backup(filled.workspace, tmp_path / "there.tar")
    assert (tmp_path / "there.tar").read_text() == "mine"
    with pytest.raises(WorkspaceError, match="no folder"):
        backup(filled.workspace, tmp_path / "nowhere" / "x.tar")
    archive = backup(filled.workspace, tmp_path)
    assert archive.name.startswith("ws-")
    with pytest.raises(WorkspaceError, match="exists already"):
        restore(archive, filled.workspace.root)
    with pytest.raises(InputError, match="not an archive"):
        restore(tmp_path / "none.tar", tmp_path / "new")


@pytest.mark.parametrize("damage", ["byte", "short", "outside", "absolute", "link", "extra", "no manifest", "no tar"])
def test_a_damaged_or_hostile_archive_restores_nothing(sqlite_store: LabelStore, tmp_path: Path, damage: str) -> None:
    good = backup(sqlite_store.workspace, tmp_path / "good.tar")
    bad = tmp_path / "bad.tar"
    if damage == "no tar":
        bad.write_bytes(os.urandom(4096))
    elif damage == "short":
        bad.write_bytes(good.read_bytes()[:3000])
    else:
        rewrite(good, bad, damage)
    with pytest.raises(WorkspaceError, match=r"damaged|not a complete backup|which no backup holds"):
        restore(bad, tmp_path / "new")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.tar", "good.tar", "ws"]


def rewrite(good: Path, bad: Path, damage: str) -> None:
    """Copy an archive with one thing wrong."""
    with tarfile.open(good) as source, tarfile.open(bad, "w") as target:
        for member in source:
            data = (source.extractfile(member) or io.BytesIO()).read()
            if damage == "no manifest" and member.name == "manifest.json":
                continue
            if damage == "byte" and member.name == "database/meta.jsonl":
                data = data.replace(b"0", b"7", 1)
            target.addfile(member, io.BytesIO(data))
        info = tarfile.TarInfo({"outside": "cache/../../evil", "absolute": "/evil"}.get(damage, "cache/48/evil"))
        if damage == "link":
            info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        if damage in ("outside", "absolute", "link", "extra"):
            info.size = 0
            target.addfile(info)


def test_verify_names_what_is_wrong(filled: LabelStore) -> None:
    workspace, root = filled.workspace, filled.workspace.root
    with filled.database.write() as connection:
        connection.execute(text("UPDATE labels SET state = 'unusable' WHERE row = 1"))
        connection.execute(text("DROP TRIGGER annotations_no_delete" + on_annotations(filled)))
        connection.execute(text("DELETE FROM annotations WHERE client_id = 'f'"))
        connection.execute(text("UPDATE images SET group_row = 3 WHERE row = 5"))
    shard = next((root / "cache").rglob("pixels-*.npy"))
    shard.write_bytes(shard.read_bytes()[:200])
    (root / "snapshots" / "s1" / "model.safetensors").unlink()
    (root / "scores" / "1" / "probs.npy").write_bytes(b"no array")
    (root / "snapshots" / "stray").mkdir()
    source = Path(filled.images.source(1).root)
    record = filled.images.by_rows([0])[0]
    (source / record.path).unlink()
    report = verify(workspace)
    assert not report.ok
    told = "\n".join(report.problems)
    for said in (
        "annotations_no_delete were missing; they are restored",
        "labels are not what the annotations amount to (rows [1, 3, 5])",
        "1 annotations are missing from the sequence",
        "rows 5 are in a group that contradicts itself",
        f"cache/48/{shard.name} is not the shard its name says",
        "snapshots/s1 lacks model.safetensors",
        "scores/1: probs.npy cannot be read",
    ):
        assert said in told, told
    assert any("1 originals are gone" in note and record.path in note for note in report.notes)
    assert any("snapshots/stray is not recorded" in note for note in report.notes)
    assert json.loads(json.dumps(report.as_dict()))["ok"] is False
    assert "NOT ok" in report.summary()
    again = verify(workspace)
    assert "were missing; they are restored" not in "\n".join(again.problems)


def on_annotations(store: LabelStore) -> str:
    return "" if store.database.is_sqlite else " ON annotations"


def test_a_lost_database_is_a_problem_not_a_new_one(sqlite_store: LabelStore) -> None:
    sqlite_store.close()
    for path in sqlite_store.workspace.root.glob("annotator.db*"):
        path.unlink()
    assert any("annotator.db is missing" in problem for problem in verify(sqlite_store.workspace).problems)


def test_a_changed_original_is_noticed(filled: LabelStore) -> None:
    source = Path(filled.images.source(1).root)
    first, second = filled.images.by_rows([0, 1])
    shutil.copyfile(source / second.path, source / first.path)
    assert any("1 originals are changed since the import" in note for note in verify(filled.workspace).notes)


def test_erasing_leaves_a_tombstone_and_nothing_else(filled: LabelStore, tmp_path: Path) -> None:
    workspace, root = filled.workspace, filled.workspace.root
    record = filled.images.by_rows([0])[0]
    source = Path(filled.images.source(1).root)
    answers, others = filled.decisions.list(row=0), [a for a in filled.decisions.list() if a.row != 0]
    (root / "runs" / "r1").mkdir(parents=True)
    filled.close()
    report = erase(workspace, image_id=record.image_id, reason="asked for on 1 March")
    assert report.image_ids == (record.image_id,)
    assert report.num_annotations == len(answers) >= 3
    assert report.originals == (f"{source}/{record.path}",)
    assert (source / record.path).is_file(), "the original is its owner's"
    assert str(source / record.path) in report.summary()
    with LabelStore.open(workspace) as store:
        erased = store.images.by_id(record.image_id)
        assert (erased.state, erased.path, erased.content_hash, erased.subject_id) == ("erased", "", None, None)
        assert store.decisions.list() == others
        assert store.decisions.label(0).state == "unlabeled"
        assert store.erasing.tombstones() == [0]
        with pytest.raises(NotFoundError, match="was erased"):
            store.decisions.submit(store.accounts.get("ann"), Answer("z", record.image_id, "label", ("fear",)))
        seq = store.last_seq()
        again = run_import(workspace, store, source / "manifest.csv", "manifest", given_as="annotations", limit=24)
        assert again.added == 0, "no import brings it back"
        assert store.last_seq() == seq
    for shard in [*(root / "cache").rglob("pixels-*.npy"), *(root / "encoders").rglob("features-*.npy")]:
        values = np.load(shard)
        assert not values[0].any()
        assert values[1:].any()
    snapshot = root / "snapshots" / "s1"
    assert 0 not in pq.read_table(snapshot / "signals.parquet")["row"].to_pylist()
    assert not np.load(snapshot / "probs.npy")[0].any()
    state = load_file(snapshot / "state.safetensors")
    assert 0 not in state["bank/rows"]
    assert len(state["bank/given"]) == len(state["bank/rows"]) == 23
    assert state["student/weight"].shape == (3, 3)
    assert not (root / "runs" / "r1").exists()
    assert verify(workspace).problems == []
    if filled.database.is_sqlite:
        held = b"".join(p.read_bytes() for p in root.glob("annotator.db*"))
        assert SECRET.encode() not in held
        assert record.path.encode() not in held
    assert erase(workspace, image_id=record.image_id, reason="again").num_annotations == 0
    restored = restore(backup(workspace, tmp_path / "saved.tar"), tmp_path / "again")
    assert verify(restored).problems == []


def linked(store: LabelStore) -> Link:
    """Link a project with tasks for the first four faces, answers of two of them, and something still to be sent."""
    ann = store.accounts.get("ann")
    ids = [r.image_id for r in store.images.by_rows(range(4))]
    link = store.exchange.add_link("http://studio", 3, "Faces", {"top_k": 10})
    shown = Shown("uncertain", "s1.1", False, ({"class": "fear", "prob": 0.4},))
    tasks = [LinkedTask(100 + row, row, "answered" if row < 2 else "open", shown, "s1.1") for row in range(4)]
    store.exchange.put_tasks(link.id, tasks)
    answers = [
        ForeignAnswer(
            ann,
            Answer(f"ls:{link.id}:{50 + row}:0", ids[row], "flag", note=SECRET),
            shown,
            datetime.now(UTC),
            False,
            LinkedAnswer(50 + row, 100 + row, "ann@lab.org", "2026-03-01T12:00:00Z", SECRET),
        )
        for row in range(2)
    ]
    assert all(isinstance(outcome, Stored) for outcome in store.exchange.record(link.id, answers))
    odd = LinkedAnswer(60, 100, "who@lab.org", "2026-03-01T12:00:00Z", SECRET, None, "quarantined", SECRET)
    store.exchange.put_answers(link.id, [odd])
    store.exchange.enqueue(
        link.id,
        [("send", "a", {"row": 0, "note": SECRET}), ("send", "b", {"task_id": 100, "note": SECRET}), ("send", "c", {})],
    )
    return link


def test_erasing_forgets_what_is_known_of_a_face_in_a_linked_project(filled: LabelStore) -> None:
    link, workspace = linked(filled), filled.workspace
    assert verify(workspace).problems == []
    report = erase(workspace, image_id=filled.images.by_rows([0])[0].image_id, reason="withdrew consent")
    assert report.num_tasks == 1
    assert "1 tasks in Label Studio still show erased images" in report.summary()
    exchange = filled.exchange
    assert exchange.tasks(link.id, states=["erase"]) == [LinkedTask(100, 0, "erase")]
    assert [t.state for t in exchange.tasks(link.id)] == ["erase", "answered", "open", "open"]
    forgotten = exchange.answers_of_tasks(link.id, [100])[100]
    assert [(a.ls_id, a.state, a.content, a.annotation_id, a.reason) for a in forgotten] == [
        (50, "deleted", "", None, None),
        (60, "deleted", "", None, None),
    ]
    [kept] = exchange.answers_of_tasks(link.id, [101])[101]
    assert (kept.state, kept.content) == ("linked", SECRET)
    assert [i.key for i in exchange.due(link.id, ["send"], datetime.now(UTC), 9)] == ["c"]
    assert verify(workspace).problems == []
    late = Answer(f"ls:{link.id}:70:0", filled.images.by_rows([0])[0].image_id, "label", ("fear",))
    seen = LinkedAnswer(70, 100, "ann@lab.org", "2026-03-01T12:00:00Z", SECRET)
    given = ForeignAnswer(filled.accounts.get("ann"), late, None, datetime.now(UTC), False, seen)
    [refused] = exchange.record(link.id, [given])
    assert isinstance(refused, NotFoundError)
    assert exchange.answers_by_id(link.id, [70]) == {}
    again = erase(workspace, image_id=filled.images.by_rows([0])[0].image_id, reason="again")
    assert again.num_tasks == 1, "it is said until a sync has deleted them"
    exchange.set_task_state(link.id, [100], "gone")
    assert verify(workspace).problems == []
    exchange.set_task_state(link.id, [100], "open")
    exchange.put_answers(link.id, [LinkedAnswer(50, 100, "a", "", "it says something")])
    exchange.enqueue(link.id, [("send", "d", {"row": 0})])
    told = "\n".join(verify(workspace).problems)
    assert "linked tasks 100 are of erased faces and not marked so" in told
    assert "linked answers 50 are of erased faces and still say something" in told
    assert "are about erased faces" in told


def test_a_backup_holds_the_link(filled: LabelStore, tmp_path: Path) -> None:
    link = linked(filled)
    restored = restore(backup(filled.workspace, tmp_path / "saved.tar", cache=False), tmp_path / "again")
    assert not [p for p in verify(restored).problems if "linked" in p]
    with LabelStore.open(restored) as store:
        assert store.exchange.link() == link
        assert store.exchange.tasks(link.id) == filled.exchange.tasks(link.id)
        for read in ("quarantined", "dead"):
            assert getattr(store.exchange, read)(link.id) == getattr(filled.exchange, read)(link.id)
        assert store.exchange.answers_of_tasks(link.id, range(100, 104)) == filled.exchange.answers_of_tasks(
            link.id, range(100, 104)
        )
        ever = datetime.now(UTC)
        assert store.exchange.due(link.id, ["send"], ever, 9) == filled.exchange.due(link.id, ["send"], ever, 9)
        assert store.exchange.enqueue(link.id, [("send", "new", {})]) == 1


def test_a_link_moves_to_another_database(filled: LabelStore, tmp_path: Path, database_of_its_own: str) -> None:
    link = linked(filled)
    archive = backup(filled.workspace, tmp_path / "saved.tar", cache=False)
    with LabelStore.open(restore(archive, tmp_path / "moved", database=database_of_its_own)) as store:
        assert transfer.contents(store.database) == transfer.contents(filled.database)
        assert store.exchange.enqueue(link.id, [("send", "new", {})]) == 1, "ids go on where they were"
        store.exchange.close_link(link.id)
        assert store.exchange.add_link("http://studio", 4, "More", {}).id == link.id + 1


def test_a_backup_from_before_links_is_restored(
    sqlite_store: LabelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The archive is written by a store that stands at the revision before."""
    workspace = sqlite_store.workspace
    sqlite_store.close()
    (workspace.root / "annotator.db").unlink()
    monkeypatch.setattr(migrate, "HEAD", "0002")
    monkeypatch.setitem(migrate.upgrade.__kwdefaults__, "revision", "0002")
    database = Database(workspace.database_url, workspace.root / "write.lock")
    migrate.upgrade(database, workspace.root / "store.lock", workspace.root / "backups")
    with database.write() as connection:
        connection.execute(text("INSERT INTO sources VALUES (1, '/faces', 'folder', 'folder', '2026-03-01 12:00:00')"))
        connection.execute(
            text(
                "INSERT INTO images (row, image_id, source_id, path, crop, group_row, split, state, width, height, "
                "media_type, file_bytes, file_stamp, reserved) "
                "VALUES (0, 'face', 1, 'a.png', '', 0, 'pool', 'active', 1, 1, 'image/png', 1, 1, 0)"
            )
        )
        connection.execute(
            text(
                "INSERT INTO annotations (id, seq, client_id, row, kind, classes, taxonomy_version, source, late, "
                "duplicate, mismatch, blind, adjudicates, suggestions, created_at) VALUES "
                "(1, 1, 'import:face', 0, 'label', '[\"fear\"]', 1, 'import', 0, 0, 0, 0, 0, '[]', '2026-03-01 12:00')"
            )
        )
        connection.execute(text("UPDATE meta SET value = '1'  WHERE key IN ('seq', 'next_row')"))
    assert "exchange_links" not in transfer.contents(database).rows
    database.close()
    archive = backup(workspace, tmp_path / "saved.tar")
    monkeypatch.undo()
    with LabelStore.open(restore(archive, tmp_path / "again")) as store:
        [said] = store.decisions.list()
        assert (said.classes, said.beside) == (("fear",), False)
        assert health.problems(store.database) == []
        assert store.exchange.link() is None


def test_erasing_a_subject_takes_all_its_images_and_their_copies(sqlite_store: LabelStore) -> None:
    store = sqlite_store
    from tests.conftest import new_image

    source = store.images.register_source("/faces", "folder", "folder")
    new = [
        new_image("a", subject_id="p1"),
        new_image("b", subject_id="p2"),
        new_image("c", subject_id="p1", split="val"),
        new_image("d", content_hash="hash-a"),
    ]
    images = store.images.add(source, new, "none")
    store.decisions.submit(store.accounts.local_user(), Answer("x", images[3].image_id, "label", ("fear",)))
    report = erase(store.workspace, subject_id="p1", reason="withdrew consent")
    assert set(report.image_ids) == {images[i].image_id for i in (0, 2, 3)}
    assert report.num_annotations == 1
    assert [r.state for r in store.images.by_rows(range(4))] == ["erased", "active", "erased", "erased"]
    with pytest.raises(NotFoundError, match="no subject 'p1'"):
        erase(store.workspace, subject_id="p1", reason="again")


def test_erasing_completes_what_a_kill_interrupted(filled: LabelStore) -> None:
    filled.erasing.erase([2], "killed before the files were rewritten")
    assert any("still holds an erased face" in problem for problem in verify(filled.workspace).problems)
    filled.close()
    erase(filled.workspace, image_id=filled_id(filled.workspace, 2), reason="again")
    assert verify(filled.workspace).problems == []


def filled_id(workspace: Workspace, row: int) -> str:
    with LabelStore.open(workspace) as store:
        return store.images.by_rows([row])[0].image_id


def test_erasing_needs_the_workspace_for_itself(sqlite_store: LabelStore) -> None:
    root = sqlite_store.workspace.root
    for name in ("server.lock", "learner.lock", "labelstudio.lock"):
        with open(root / name, "a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            with pytest.raises(WorkspaceBusyError, match="stop it, then erase"):
                erase(sqlite_store.workspace, image_id="x", reason="r")
    with pytest.raises(NotFoundError, match="no image 'x'"):
        erase(sqlite_store.workspace, image_id="x", reason="r")
    with pytest.raises(InputError, match="exactly one"):
        erase(sqlite_store.workspace, reason="r")
    with pytest.raises(InputError, match="reason"):
        erase(sqlite_store.workspace, image_id="x", reason=" ")


def test_prune_keeps_what_serves(filled: LabelStore) -> None:
    root = filled.workspace.root
    for number in range(2, 9):
        publish(filled, number)
    filled.learning.serve("s1")
    for name in (".7.999", "fresh"):
        (root / "snapshots" / name).mkdir()
    stale = root / "cache" / "48" / ".pixels-x.999"
    stale.write_text("half")
    for path in (stale, root / "snapshots" / ".7.999"):
        os.utime(path, (0, 0))
    would = prune(filled.workspace, dry_run=True)
    assert (root / "scores" / "5").is_dir()
    assert prune(filled.workspace) == would
    assert sorted(p.name for p in (root / "scores").iterdir()) == ["6", "7", "8"]
    assert sorted(p.name for p in (root / "snapshots").iterdir()) == ["fresh", "s1", "s4", "s5", "s6", "s7", "s8"]
    assert not stale.exists()
    report = verify(filled.workspace)
    assert report.problems == []
    assert any("older snapshots are recorded but pruned: s2, s3" in note for note in report.notes)

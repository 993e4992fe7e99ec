"""What else knows of faces: exports, erasing, backups, migrations, training rounds."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from annotator import taxonomy
from annotator.export import export
from annotator.ingest.importer import run_import
from annotator.loop.rounds import RoundRequest, make_round
from annotator.maintenance import backup, erase, restore, verify
from annotator.settings import Workspace
from annotator.store import LabelStore, migrate, transfer
from tests.ingest import builders
from tests.ingest.face_imports import active, given_folder, imported, with_settings
from tests.ingest.group_photos import photo_folder


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return photo_folder(tmp_path / "photos")


def test_an_export_says_where_faces_are_and_can_be_imported_again(sqlite_store: LabelStore, tmp_path: Path) -> None:
    folder = given_folder(tmp_path / "list")
    imported(sqlite_store, folder, "given")
    export(sqlite_store.workspace, sqlite_store, tmp_path / "out.jsonl", "jsonl")
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [(r["crop"], r["box"], r["flags"]) for r in rows] == [
        ("4,14,52@0", "10,20,40,40", []),
        ("49,44,52@26.6", "60,50,30,40", []),
    ]
    assert rows[1]["landmarks"] == "65,60,85,70,75,70,70,80,80,85"
    export(sqlite_store.workspace, sqlite_store, folder / "again.csv", "csv")
    other = Workspace.create(tmp_path / "other", taxonomy.FERPLUS)
    with LabelStore.open(other) as store:
        run_import(other, store, folder / "again.csv", "manifest", faces="given")
        assert [(r.crop, r.content_hash) for r in active(store)] == [
            (r.crop, r.content_hash) for r in active(sqlite_store)
        ]
        assert store.faces.squares() == sqlite_store.faces.squares()


def test_an_erased_face_leaves_no_box_and_no_detector_brings_it_back(store: LabelStore, photos: Path) -> None:
    workspace = store.workspace
    imported(store, photos)
    victim, mate = [r for r in active(store) if r.path == "b-pair.jpg"]
    store.close()
    report = erase(workspace, image_id=victim.image_id, reason="asked for")
    assert report.originals == (f"{photos}/b-pair.jpg [{victim.crop}]",)
    with LabelStore.open(workspace) as again:
        assert victim.row not in [row for row, _, _ in again.faces.squares()]
        assert mate.row in [row for row, _, _ in again.faces.squares()]
        assert imported(again, photos).added == 0
        before = again.images.counts()
        other = with_settings(workspace, detector="cascade+profile", face_margin=0.4)
        os.utime(photos / "b-pair.jpg", ns=(1, 1))
        run_import(other, again, photos, "folder", faces="detect")
        run_import(other, again, photos, "folder", faces="none")
        rows = again.images.by_rows(again.images.table().rows.tolist())
        assert not [r for r in rows if r.path == "b-pair.jpg" and r.state == "active" and r.row != mate.row]
        assert again.images.counts()["erased"] == before["erased"] == 1
    assert verify(workspace).problems == []


def test_a_backup_holds_the_faces_and_an_older_one_can_still_be_restored(store: LabelStore, photos: Path) -> None:
    imported(store, photos)
    squares = store.faces.squares()
    workspace = restore(backup(store.workspace, photos.parent / "saved.tar"), photos.parent / "again")
    with LabelStore.open(workspace) as again:
        assert again.faces.squares() == squares
        digest = transfer.contents(again.database).digest
    assert digest == transfer.contents(store.database).digest


def test_a_database_from_before_faces_is_upgraded(workspace: Workspace, tmp_path: Path) -> None:
    from annotator.store.database import Database

    database = Database(workspace.database_url, workspace.root / "write.lock")
    migrate.upgrade(database, workspace.root / "store.lock", workspace.root / "backups", revision="0001")
    assert "faces" not in transfer.contents(database).rows, "a backup of that time is compared without the table"
    database.close()
    with LabelStore.open(workspace) as store:
        assert transfer.contents(store.database).rows["faces"] == 0
        imported(store, given_folder(tmp_path / "list"), "given")
        assert store.faces.counts() == {"known": 2, "small": 0, "blurred": 0, "turned": 0}
    assert [p.name[:14] for p in (workspace.root / "backups").iterdir()] == ["annotator-0001"]


def test_a_round_gets_the_boxes_in_shares_of_the_square(sqlite_store: LabelStore, tmp_path: Path) -> None:
    folder = given_folder(tmp_path / "list")
    imported(sqlite_store, folder, "given", given_as="annotations")
    run = make_round(sqlite_store.workspace, sqlite_store, RoundRequest())
    boxes = np.load(run / "boxes.npy")
    assert (boxes.shape, boxes.dtype) == ((2, 4), np.float32)
    assert boxes[0] == pytest.approx([6 / 52, 6 / 52, 46 / 52, 46 / 52])  # ► 10 - 4 = 6 pixels in, 40 pixels long
    assert boxes[1, 2] - boxes[1, 0] == pytest.approx(30 / 52)
    builders.write_picture(folder / "later.png", 5, side=64)
    builders.write_csv(folder / "more.csv", [{"path": "later.png", "label": "anger"}])
    run_import(sqlite_store.workspace, sqlite_store, folder / "more.csv", "manifest", given_as="annotations")
    assert len(np.load(make_round(sqlite_store.workspace, sqlite_store, RoundRequest()) / "boxes.npy")) == 2


def test_a_workspace_without_known_faces_has_no_boxes(sqlite_store: LabelStore, tmp_path: Path) -> None:
    imported(sqlite_store, given_folder(tmp_path / "list"), "none", given_as="annotations")
    assert not (make_round(sqlite_store.workspace, sqlite_store, RoundRequest()) / "boxes.npy").exists()

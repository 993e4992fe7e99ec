"""Imports that make faces out of photos: what becomes a sample, what a second import does, what training is told."""

import os
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from annotator import taxonomy
from annotator.errors import ImportSourceError, InputError
from annotator.ingest.batches import CHANGED
from annotator.ingest.cache import cache_folder, ensure_cache, shards
from annotator.ingest.crops import NO_FACE, Square, parse_crop
from annotator.ingest.faces.detector import iou
from annotator.ingest.faces.search import NOT_FOUND
from annotator.ingest.importer import run_import
from annotator.maintenance import verify
from annotator.records import Answer, ImageRecord, Lease
from annotator.settings import Workspace
from annotator.store import LabelStore
from annotator.store.reading import moment
from tests.ingest import builders
from tests.ingest.face_imports import active, cached, given_folder, imported, records, with_settings
from tests.ingest.group_photos import drawing, group_photo, photo_folder
from tests.ingest.tiny_yunet import write_tiny_yunet


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return photo_folder(tmp_path / "photos")


def test_every_face_of_a_photo_is_a_sample_and_faceless_images_are_quarantined(store: LabelStore, photos: Path) -> None:
    report = imported(store, photos)
    found = {path: [r for r in records(store) if r.path == path] for path in sorted(p.name for p in photos.iterdir())}
    numbers = {path: sum(r.state == "active" for r in of) for path, of in found.items()}
    assert numbers["a-group.png"] >= 5
    assert numbers["b-pair.jpg"] == 2
    assert [numbers[p] for p in ("c-drawing.png", "d-blank.png", "e-noise.png", "f-broken.png")] == [0, 0, 0, 0]
    for path in ("c-drawing.png", "d-blank.png", "e-noise.png"):
        assert [(r.state, r.crop, r.quarantine_reason) for r in found[path]] == [("quarantined", NO_FACE, NOT_FOUND)]
    assert "broken" in str(found["f-broken.png"][0].quarantine_reason)
    assert report.reasons[NOT_FOUND] == 3
    assert report.added == sum(numbers.values())
    assert report.samples == report.added + report.quarantined
    assert report.group_photos == 2
    assert "faces (detect): 2 photos with several" in report.summary()
    assert store.faces.counts()["known"] == report.added
    for record in active(store):
        square = parse_crop(record.crop)
        assert isinstance(square, Square)
        assert record.width == record.height == square.side
        assert record.group == record.row, "faces of one photo are no copies of each other"


def test_the_cached_faces_lie_where_they_were_pasted(sqlite_store: LabelStore, photos: Path) -> None:
    imported(sqlite_store, photos)
    _, places = group_photo(1)
    with moment(sqlite_store.database) as now:
        faces = [f for f in now.faces() if f.image.path == "a-group.png"]
    boxes = [f.known.face.box for f in faces if f.known is not None]
    assert len(boxes) == len(faces)
    assert sum(max(iou(place, box) for box in boxes) >= 0.5 for place in places) >= 5
    pixels = cached(sqlite_store.workspace, 48)
    assert len({pixels[f.image.row].tobytes() for f in faces}) == len(faces)


def test_a_second_import_reads_no_photo_again(sqlite_store: LabelStore, photos: Path) -> None:
    first = imported(sqlite_store, photos)
    before = records(sqlite_store)
    stamp = (photos / "a-group.png").stat()
    (photos / "a-group.png").write_bytes(bytes(stamp.st_size))  # same size and time: reading it would show
    os.utime(photos / "a-group.png", ns=(stamp.st_mtime_ns, stamp.st_mtime_ns))
    again = imported(sqlite_store, photos)
    assert (again.added, again.changed, again.quarantined) == (0, 0, 0)
    assert again.samples == again.unchanged == first.samples
    assert records(sqlite_store) == before


def test_a_changed_photo_yields_its_faces_anew_and_back_again(sqlite_store: LabelStore, photos: Path) -> None:
    path = photos / "b-pair.jpg"
    kept = photos.parent / "kept.jpg"
    shutil.copy2(path, kept)
    imported(sqlite_store, photos)
    old = {r.image_id for r in active(sqlite_store) if r.path == path.name}
    group_photo(9, columns=1, rows=1)[0].save(path, quality=95)
    report = imported(sqlite_store, photos)
    now = [r for r in records(sqlite_store) if r.path == path.name]
    assert {r.image_id for r in now if r.quarantine_reason == CHANGED} == old
    assert report.added == sum(r.state == "active" for r in now) == 1
    shutil.copy2(kept, path)
    report = imported(sqlite_store, photos)
    assert (report.added, report.changed) == (0, 0)
    assert {r.image_id for r in active(sqlite_store) if r.path == path.name} == old
    assert imported(sqlite_store, photos).changed == 0


def test_of_a_photo_touched_without_change_everything_stays(sqlite_store: LabelStore, photos: Path) -> None:
    imported(sqlite_store, photos)
    before = records(sqlite_store)
    os.utime(photos / "a-group.png", ns=(1, 1))
    report = imported(sqlite_store, photos)
    assert (report.added, report.changed) == (0, 0)
    assert records(sqlite_store) == before


def test_a_faceless_image_that_gets_a_face_leaves_its_quarantine_behind(sqlite_store: LabelStore, photos: Path) -> None:
    imported(sqlite_store, photos)
    group_photo(5, columns=1, rows=1)[0].save(photos / "c-drawing.png")
    report = imported(sqlite_store, photos)
    of = [(r.state, r.quarantine_reason) for r in records(sqlite_store) if r.path == "c-drawing.png"]
    assert of == [("quarantined", CHANGED), ("active", None)]
    assert report.added == 1
    assert imported(sqlite_store, photos).added == 0


def test_several_processes_find_what_one_does(tmp_path: Path) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(18):
        image = group_photo(number // 2, columns=1, rows=1)[0] if number % 2 else drawing(number)
        image.save(folder / f"{number:02d}.png")
    found = []
    for count in (18, 9):  # with processes, and in two parts within this one
        workspace = Workspace.create(tmp_path / f"ws{count}", taxonomy.FERPLUS)
        with LabelStore.open(workspace) as store:
            imported(store, folder, limit=count)
            imported(store, folder)
            ensure_cache(workspace, store, 48)
            of = sorted((r.path, r.crop, r.content_hash or "") for r in records(store))
            found.append((of, sorted(p.tobytes() for p in cached(workspace, 48))))
    assert found[0] == found[1]


def test_faces_of_one_photo_are_stored_together(
    sqlite_store: LabelStore, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between two transactions, an import would take a photo with some of its faces for done."""
    monkeypatch.setattr("annotator.ingest.batches._FIRST_BATCH", 2)
    together: list[list[str]] = []
    add = sqlite_store.images.add

    def watched(source_id: int, new: list, given_as: str) -> list[ImageRecord]:  # type: ignore[type-arg]
        together.append([item.path for item in new])
        return add(source_id, new, given_as)  # type: ignore[arg-type]

    monkeypatch.setattr(sqlite_store.images, "add", watched)
    imported(sqlite_store, photos)
    assert len(together) > 1
    assert together[0] == ["a-group.png"] * len(together[0])
    everywhere = [path for paths in together for path in set(paths)]
    assert len(everywhere) == len(set(everywhere)) == 6


def test_what_is_kept_for_validation_is_kept_by_photo(store: LabelStore, photos: Path) -> None:
    imported(store, photos)
    pair = [r for r in active(store) if r.path == "b-pair.jpg"]
    group = [r for r in active(store) if r.path == "a-group.png"]
    ann = store.accounts.add("ann", "annotator", None)
    store.decisions.submit(ann, Answer("before", group[0].image_id, "label", ("fear",)))
    for number, face in enumerate((pair[0], group[1])):
        lease = Lease(f"l{number}", face.row, ann.id, datetime.now(UTC) + timedelta(minutes=5), "random", "m", "", True)
        store.leases.open([lease])
        store.decisions.submit(ann, Answer(f"a{number}", face.image_id, "label", ("anger",), lease_id=lease.id))
    table = store.images.table()
    assert table.rows[table.reserved].tolist() == [r.row for r in pair], "the other photo has been trained on"
    wider = with_settings(store.workspace, face_margin=0.5)
    os.utime(photos / "b-pair.jpg", ns=(1, 1))
    run_import(wider, store, photos, "folder", faces="detect")
    anew = [r.row for r in active(store) if r.path == "b-pair.jpg" and r.row not in {p.row for p in pair}]
    table = store.images.table()
    assert len(anew) == 2
    assert table.reserved[np.isin(table.rows, anew)].all(), "another crop of the same face is no way around it"


def test_a_label_of_a_photo_with_several_faces_is_nobodys(sqlite_store: LabelStore, photos: Path) -> None:
    rows = [
        {"path": "a-group.png", "label": "happiness", "subject_id": "s1"},
        {"path": "single.png", "label": "anger", "subject_id": "s2"},
    ]
    group_photo(5, columns=1, rows=1)[0].save(photos / "single.png")
    builders.write_csv(photos / "manifest.csv", rows)
    report = imported(sqlite_store, photos, given_as="annotations")
    assert report.unclear == 1
    assert "these labels were not used" in report.summary()
    assert [a.classes for a in sqlite_store.decisions.list()] == [("anger",)]
    assert {r.subject_id for r in active(sqlite_store) if r.path == "a-group.png"} == {"s1"}


def test_a_lost_or_larger_cache_is_cut_as_the_import_cut(sqlite_store: LabelStore, photos: Path) -> None:
    workspace = with_settings(sqlite_store.workspace, **yunet(photos.parent))
    red_photo(photos / "red.png")
    run_import(workspace, sqlite_store, photos, "folder", faces="detect")
    tilted = [r for r in active(sqlite_store) if not r.crop.endswith("@0")]
    assert [r.path for r in tilted] == ["red.png"]
    before = cached(workspace, 48)
    for _, _, path in shards(cache_folder(workspace, 48)):
        path.unlink()
    assert ensure_cache(workspace, sqlite_store, 48) == len(before)
    assert np.array_equal(cached(workspace, 48), before)
    ensure_cache(workspace, sqlite_store, 96)
    square = parse_crop(tilted[0].crop)
    assert square is not None
    cut = square.cut(Image.open(photos / "red.png").convert("RGB")).resize((96, 96), Image.Resampling.BILINEAR)
    assert np.array_equal(cached(workspace, 96)[tilted[0].row], np.asarray(cut))
    assert verify(workspace, sample=100).problems == []
    assert not [note for note in verify(workspace, sample=100).notes if "changed" in note]


def yunet(folder: Path) -> dict[str, object]:
    return {"detector": "yunet", "detector_model": str(write_tiny_yunet(folder / "tiny.onnx"))}


def red_photo(path: Path) -> None:
    """Draw what the tiny model takes for a face: a red square on a cell of the network, with the border of 48."""
    pixels = np.full((192, 256, 3), 40, np.uint8)
    pixels[48:80, 80:112] = (255, 0, 0)
    Image.fromarray(pixels).save(path)


def test_yunet_gives_landmarks_upright_squares_and_pose(sqlite_store: LabelStore, tmp_path: Path) -> None:
    folder = tmp_path / "red"
    folder.mkdir()
    red_photo(folder / "a.png")
    workspace = with_settings(sqlite_store.workspace, **yunet(tmp_path))
    run_import(workspace, sqlite_store, folder, "folder", faces="detect")
    with moment(sqlite_store.database) as now:
        (face,) = now.faces()
    assert face.known is not None
    assert face.known.face.box == (64, 32, 64, 64)
    assert face.known.face.landmarks == ((80, 52), (112, 56), (96, 64), (86, 80), (106, 80))
    assert (face.known.found_by, face.known.turned, face.known.face.score) == ("yunet", False, 1.0)
    assert face.image.crop == "54,22,83@7.1"
    boxes = np.array(sqlite_store.faces.squares()[0][2])
    assert boxes.tolist() == [64, 32, 64, 64]


def test_a_broken_detector_is_told_before_anything_is_imported(sqlite_store: LabelStore, photos: Path) -> None:
    workspace = with_settings(sqlite_store.workspace, detector="yunet", detector_model="/nowhere/yunet.onnx")
    with pytest.raises(InputError, match=r"/nowhere/yunet\.onnx"):
        run_import(workspace, sqlite_store, photos, "folder", faces="detect")
    assert records(sqlite_store) == []


# Faces that the list names


def test_given_boxes_become_squares_with_a_margin(store: LabelStore, tmp_path: Path) -> None:
    report = imported(store, given_folder(tmp_path / "list"), "given", given_as="annotations")
    assert (report.added, report.quarantined) == (2, 1)
    assert [(r.path, r.crop, r.quarantine_reason) for r in records(store)] == [
        ("a.png", "4,14,52@0", None),
        ("a.png", "49,44,52@26.6", None),
        ("b.png", "", "no face given"),
    ]
    assert [a.classes for a in store.decisions.list()] == [("anger",), ("fear",)], "each label is of its own face"
    assert imported(store, tmp_path / "list", "given").added == 0
    with moment(store.database) as now:
        flags = [f.known.flags for f in now.faces() if f.known is not None]
    assert flags == [(), ()]


def test_faces_that_nobody_gave_are_looked_for(sqlite_store: LabelStore, tmp_path: Path) -> None:
    folder = given_folder(tmp_path / "list")
    group_photo(5, columns=1, rows=1)[0].save(folder / "b.png")
    report = imported(sqlite_store, folder, "detect")
    assert report.added == 3
    assert [f.image.path for f in all_faces(sqlite_store) if f.known and f.known.found_by == "cascade"] == ["b.png"]


def all_faces(store: LabelStore) -> list:  # type: ignore[type-arg]
    with moment(store.database) as now:
        return list(now.faces())


def test_affectnet_boxes_are_faces_when_asked(sqlite_store: LabelStore, tmp_path: Path) -> None:
    report = imported(sqlite_store, builders.affectnet_folder(tmp_path / "net"), "given")
    assert [r.crop for r in active(sqlite_store)] == ["-4,-4,39@0", "14,14,52@0", "-2,-2,26@0", "-2,-2,65@0"]
    assert report.small == 2  # boxes of 30 and 20 pixels; those of 40 and 50 are not
    assert report.quarantined == 1


def test_faces_as_they_are_is_what_it_was(sqlite_store: LabelStore, tmp_path: Path) -> None:
    report = imported(sqlite_store, given_folder(tmp_path / "list"), "none")
    assert [(r.path, r.crop) for r in active(sqlite_store)] == [("a.png", ""), ("b.png", "")]
    assert sqlite_store.faces.counts()["known"] == 0
    assert any("--faces given" in note for note in report.notes)


def test_what_cannot_be_is_refused(sqlite_store: LabelStore, photos: Path) -> None:
    with pytest.raises(ImportSourceError, match=r"gives no faces.*--faces detect"):
        imported(sqlite_store, photos, "given")
    with pytest.raises(InputError, match="'some' is not one of detect, given, none"):
        imported(sqlite_store, photos, "some")


@pytest.mark.parametrize(
    "columns",
    [
        {"box": "1,2,3"},
        {"box": "1,2,0,4"},
        {"box": "1,2,nan,4"},
        {"box": "1,2,3,4", "landmarks": "1,2"},
        {"landmarks": "1,2,3,4,5,6,7,8,9,10"},
    ],
)
def test_a_malformed_face_in_a_list_is_named(sqlite_store: LabelStore, tmp_path: Path, columns: dict[str, str]) -> None:
    builders.write_picture(tmp_path / "list" / "a.png", 1)
    builders.write_csv(tmp_path / "list" / "manifest.csv", [{"path": "a.png", **columns}])
    with pytest.raises(ImportSourceError, match=r"line 2.*(box|landmarks)"):
        imported(sqlite_store, tmp_path / "list", "given")


def test_the_real_faces_of_fer_are_found(sqlite_store: LabelStore, ferplus_zip: Path) -> None:
    report = run_import(sqlite_store.workspace, sqlite_store, ferplus_zip, "ferplus", faces="detect", limit=60)
    assert report.added >= 40, "measured: about four of five"
    assert report.reasons[NOT_FOUND] == report.quarantined
    assert report.group_photos <= 3

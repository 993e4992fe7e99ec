"""Imports into a real store, on every database: counts, copies, bad files, changes, and a second run for nothing."""

import json
import multiprocessing
import os
from pathlib import Path

import numpy as np
import pytest

from annotator import taxonomy
from annotator.errors import ImportSourceError, TaxonomyError, WorkspaceBusyError
from annotator.ingest.cache import PixelCacheWriter, cache_folder, cache_lock, shards
from annotator.ingest.importer import CHANGED, run_import
from annotator.ingest.report import ImportReport
from annotator.settings import Workspace
from annotator.store import LabelStore
from annotator.store.images import GivenAs
from tests.ingest import builders


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return builders.ferplus_folder(tmp_path / "fer")


def imported(store: LabelStore, source: Path, format: str = "auto", given_as: GivenAs = "truth") -> ImportReport:
    return run_import(store.workspace, store, source, format, given_as=given_as)


def cached(workspace: Workspace, row: int, size: int = 48) -> np.ndarray:
    for start, stop, path in shards(cache_folder(workspace, size)):
        if start <= row < stop:
            return np.asarray(np.load(path)[row - start])
    raise AssertionError(f"row {row} is in no shard")


def states(store: LabelStore) -> dict[str, tuple[str, str]]:
    rows = store.images.table().rows.tolist()
    return {r.path.split("/")[-1]: (r.split, r.state) for r in store.images.by_rows(rows)}


def test_the_counts_of_an_import_add_up(store: LabelStore, source: Path) -> None:
    report = imported(store, source)
    assert (report.samples, report.added, report.quarantined, report.repeated_rows) == (7, 6, 1, 1)
    assert (report.distinct, report.duplicate_groups, report.straddling, report.leaks) == (5, 1, 1, 1)
    assert report.reasons == {"the image is missing": 1}
    counts = store.images.counts()
    assert [counts[k] for k in ("pool", "val", "test", "quarantined", "leak")] == [4, 1, 0, 1, 1]
    assert states(store)["fer11.png"] == ("val", "leak")
    assert json.loads(json.dumps(report.as_dict()))["samples"] == 7
    assert "7 samples" in report.summary()


def test_a_second_import_adds_nothing_and_reads_nothing(store: LabelStore, source: Path) -> None:
    imported(store, source)
    before = store.images.counts()
    for path in source.rglob("*.png"):
        stamp = path.stat().st_mtime_ns
        path.write_bytes(bytes(path.stat().st_size))  # same size and time: reading it would show
        os.utime(path, ns=(stamp, stamp))
    report = imported(store, source)
    assert (report.added, report.changed, report.quarantined, report.unchanged) == (0, 0, 0, 7)
    assert store.images.counts() == before


@pytest.mark.parametrize("given_as", ["truth", "annotations", "none"])
def test_labels_become_what_was_asked_for(store: LabelStore, source: Path, given_as: GivenAs) -> None:
    imported(store, source, given_as=given_as)
    pool = {t.image_id for t in store.images.truth("pool")}
    assert len(pool) == (0 if given_as == "none" else 4)
    answers = store.decisions.list()
    if given_as != "annotations":
        assert answers == []
        return
    assert sorted((a.kind, a.classes) for a in answers) == [
        ("candidates", ("surprise", "fear")),
        ("label", ("contempt",)),
        ("label", ("neutral",)),
        ("unusable", ()),
    ]
    assert all(a.user_id is None and a.source == "import" for a in answers)


def test_pixels_are_cached_by_row(store: LabelStore, tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    for number in range(3):
        builders.write_picture(pictures / f"{number}.png", number, side=48)
    (pictures / "1.png").write_bytes(b"broken")
    imported(store, pictures)
    assert np.array_equal(cached(store.workspace, 0), np.asarray(builders.picture(0, 48)))
    assert cached(store.workspace, 1).max() == 0
    assert np.array_equal(cached(store.workspace, 2), np.asarray(builders.picture(2, 48)))


def test_every_kind_of_bad_file_is_quarantined_with_its_reason(store: LabelStore, tmp_path: Path) -> None:
    root = tmp_path / "faces"
    builders.write_picture(root / "good.png", 1)
    (root / "broken.png").write_bytes(builders.encoded(builders.picture(2))[:300])
    (root / "disguised.jpg").write_text("<html>hello</html>")
    (root / "small.png").write_bytes(builders.encoded(builders.picture(3, side=8)))
    (root / "scan.tif").write_bytes(builders.encoded(builders.picture(4), "TIFF"))
    (root / "misnamed.png").write_bytes(builders.encoded(builders.picture(5), "JPEG"))
    (root / "outside.png").symlink_to(tmp_path / "secret.png")
    (tmp_path / "secret.png").write_bytes(builders.encoded(builders.picture(6)))
    report = imported(store, root)
    assert (report.samples, report.added, report.quarantined, report.misnamed) == (7, 2, 5, 1)
    reasons = " | ".join(report.reasons)
    for expected in ("broken image", "HTML", "shorter side", "TIFF", "leads out"):
        assert expected in reasons
    again = imported(store, root)
    assert (again.added, again.quarantined, again.unchanged) == (0, 0, 7)


def test_a_manifest_cannot_reach_outside(store: LabelStore, tmp_path: Path) -> None:
    builders.write_picture(tmp_path / "in" / "a.png", 1)
    secret = builders.write_picture(tmp_path / "secret.png", 2)
    rows = [{"path": p} for p in ("a.png", "../secret.png", str(secret), "a.png", "./a.png")]
    builders.write_csv(tmp_path / "in" / "manifest.csv", rows)
    report = imported(store, tmp_path / "in", "csv")
    assert (report.added, report.quarantined, report.repeated_rows) == (2, 2, 1)
    assert any("absolute" in reason for reason in report.reasons)
    assert any("'..'" in reason for reason in report.reasons)


def test_a_changed_file_is_a_new_sample_and_the_old_one_is_kept_out(store: LabelStore, tmp_path: Path) -> None:
    root = tmp_path / "faces"
    path = builders.write_picture(root / "a.png", 1)
    imported(store, root)
    builders.write_picture(path, 2)
    report = imported(store, root)
    assert (report.added, report.changed, report.quarantined) == (0, 1, 0)
    old, new = store.images.by_rows([0, 1])
    assert (old.state, old.quarantine_reason, new.state) == ("quarantined", CHANGED, "active")
    assert imported(store, root).unchanged == 1

    builders.write_picture(path, 1)  # and back again
    imported(store, root)
    old, new = store.images.by_rows([0, 1])
    assert (old.state, new.state, new.quarantine_reason) == ("active", "quarantined", CHANGED)
    assert len(store.images.table().rows) == 2
    imported(store, root)
    assert [r.state for r in store.images.by_rows([0, 1])] == ["active", "quarantined"]


def test_a_touched_file_is_unchanged_and_its_new_time_is_kept(store: LabelStore, tmp_path: Path) -> None:
    root = tmp_path / "faces"
    path = builders.write_picture(root / "a.png", 1)
    imported(store, root)
    os.utime(path, ns=(1, 1))
    assert imported(store, root).unchanged == 1
    assert store.images.known_files(1)["a.png", ""].file_stamp == 1


def test_a_file_that_breaks_takes_its_old_sample_along(store: LabelStore, tmp_path: Path) -> None:
    root = tmp_path / "faces"
    path = builders.write_picture(root / "a.png", 1)
    builders.write_picture(root / "b.png", 2)
    imported(store, root)
    path.write_bytes(b"no longer an image")
    report = imported(store, root)
    assert (report.quarantined, report.unchanged) == (1, 1)
    assert store.images.counts()["pool"] == 1


def test_a_file_that_appears_later_is_imported_then(store: LabelStore, source: Path) -> None:
    imported(store, source)
    builders.write_picture(source / "FER2013Train" / "gone.png", 77)
    report = imported(store, source)
    assert report.changed == 1
    assert states(store)["gone.png"] == ("pool", "active")


def test_an_imported_file_that_is_gone_keeps_its_sample(store: LabelStore, source: Path) -> None:
    imported(store, source)
    (source / "FER2013Train" / "fer3.png").unlink()
    report = imported(store, source)
    assert (report.gone, report.unchanged) == (1, 6)
    assert states(store)["fer3.png"] == ("pool", "active")


def test_a_missing_class_is_told_before_anything_is_imported(tmp_path: Path, source: Path) -> None:
    workspace = Workspace.create(tmp_path / "raf", taxonomy.RAFDB)
    with LabelStore.open(workspace) as store:
        with pytest.raises(TaxonomyError, match=r"contempt.*--labels-as none"):
            imported(store, source)
        assert len(store.images.table().rows) == 0
        assert imported(store, source, given_as="none").added == 6


def test_a_workspace_grows_and_copies_across_sources_join(store: LabelStore, source: Path, tmp_path: Path) -> None:
    imported(store, source)
    builders.write_picture(tmp_path / "more" / "test" / "copy.png", 1)
    builders.write_picture(tmp_path / "more" / "test" / "fresh.png", 50)
    report = imported(store, tmp_path / "more", "folder")
    assert (report.added, report.leaks, report.straddling) == (2, 1, 2)
    assert states(store)["copy.png"] == ("test", "leak")
    assert states(store)["fresh.png"] == ("test", "active")


def test_crops_of_one_image_are_samples_of_their_own(store: LabelStore, tmp_path: Path) -> None:
    report = imported(store, builders.affectnet_folder(tmp_path / "affect"))
    assert report.added == 5
    records = store.images.by_rows(store.images.table().rows.tolist())
    assert [r.crop for r in records] == ["0,0,30,30", "20,20,40,40", "", "1,1,20,20", "5,5,50,50"]


def test_subjects_are_kept(store: LabelStore, faces: Path) -> None:
    imported(store, faces)
    assert store.images.by_rows([0])[0].subject_id == "person00000"


def test_a_limit_takes_the_first_samples_and_the_rest_later(store: LabelStore, faces: Path) -> None:
    assert run_import(store.workspace, store, faces, "manifest", limit=10).added == 10
    report = imported(store, faces)
    assert (report.unchanged, report.added) == (10, 54)


def test_progress_is_told_to_the_end(store: LabelStore, source: Path) -> None:
    calls: list[tuple[int, int, str]] = []
    run_import(store.workspace, store, source, "ferplus", progress=lambda *call: calls.append(call))
    assert calls[-1] == (8, 8, "importing")


def _hold(folder: Path, ready: "multiprocessing.synchronize.Event", stop: "multiprocessing.synchronize.Event") -> None:
    with cache_lock(folder):
        ready.set()
        stop.wait(30)


def test_two_imports_at_once_are_refused(sqlite_store: LabelStore, source: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ready, stop = context.Event(), context.Event()
    folder = cache_folder(sqlite_store.workspace, 48)
    other = context.Process(target=_hold, args=(folder, ready, stop))
    other.start()
    try:
        assert ready.wait(30)
        with pytest.raises(WorkspaceBusyError, match="another import"):
            imported(sqlite_store, source)
    finally:
        stop.set()
        other.join()
    assert imported(sqlite_store, source).added == 6


def test_a_source_that_is_not_there_is_a_clear_error(sqlite_store: LabelStore, tmp_path: Path) -> None:
    with pytest.raises(ImportSourceError, match="does not exist"):
        imported(sqlite_store, tmp_path / "nowhere")


def test_hostile_names_are_stored_as_names(store: LabelStore, tmp_path: Path) -> None:
    names = ["'; DROP TABLE images; --.png", "<script>alert(1)<.png", "naïve \u202e.png", "%s%n.png"]
    for seed, name in enumerate(names):
        builders.write_picture(tmp_path / "odd" / name, seed)
    with open(os.fsencode(tmp_path / "odd") + b"/\xff.png", "wb") as file:
        file.write(builders.encoded(builders.picture(9)))
    report = imported(store, tmp_path / "odd")
    assert (report.added, report.quarantined) == (4, 1)
    stored = {r.path for r in store.images.by_rows(store.images.table().rows.tolist())}
    assert stored == {*names, "\\udcff.png"}


def test_a_writer_refuses_rows_that_do_not_ascend(tmp_path: Path) -> None:
    writer = PixelCacheWriter(tmp_path, 8)
    face = np.zeros((8, 8, 3), np.uint8)
    writer.add(4, face)
    with pytest.raises(ValueError, match="row 4 comes after row 4"):
        writer.add(4, face)
    with pytest.raises(ValueError, match="expected uint8"):
        writer.add(5, np.zeros((9, 9, 3), np.uint8))

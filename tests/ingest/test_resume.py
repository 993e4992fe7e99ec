"""An import killed at any moment goes on, and ends as if nothing had happened."""

import multiprocessing
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from annotator import taxonomy
from annotator.ingest.cache import cache_folder, shards
from annotator.ingest.importer import run_import
from annotator.settings import Workspace
from annotator.store import LabelStore
from tests.ingest import builders

COUNT = 1500
SIZE = 16


def _import(root: Path, source: Path) -> None:
    workspace = Workspace.open(root)
    with LabelStore.open(workspace) as store:
        run_import(workspace, store, source, "manifest")


def make_workspace(root: Path) -> Workspace:
    return Workspace.create(root, taxonomy.FERPLUS, learner={"image_size": SIZE})


def make_source(root: Path) -> Path:
    """Write many small pictures, some broken, some copies, some of them across splits."""
    rows = []
    for number in range(COUNT):
        path = root / f"{number % 10}" / f"{number:05d}.png"
        if number % 97 == 0:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"broken")
        else:
            builders.write_picture(path, number - (number % 50 == 1), side=SIZE)
        split = "val" if number % 9 == 0 else "pool"
        rows.append({"path": str(path.relative_to(root)), "split": split, "label": taxonomy.FERPLUS.slugs[number % 8]})
    builders.write_csv(root / "manifest.csv", rows)
    return root


def content(workspace: Workspace) -> list[tuple[object, ...]]:
    """Return everything of a workspace that an import decides, with the pixels of every row."""
    with LabelStore.open(workspace) as store:
        rows = store.images.table().rows.tolist()
        records = store.images.by_rows(rows)
        truth = {t.row: t.truth for split in ("pool", "val") for t in store.images.truth(split)}
    found = shards(cache_folder(workspace, SIZE))
    pixels = np.concatenate([np.load(path) for _, _, path in found])
    assert [start for start, _, _ in found] == [0, *(stop for _, stop, _ in found[:-1])]
    assert len(pixels) == len(rows)
    return [
        (r.row, r.path, r.split, r.state, r.group, r.content_hash, r.quarantine_reason, truth.get(r.row), p.tobytes())
        for r, p in zip(records, pixels, strict=True)
    ]


def kill_when(workspace: Workspace, store: LabelStore, source: Path, at_least: int) -> int:
    """Start an import, kill it with SIGKILL once it has stored `at_least` rows; return how many it had stored."""
    process = multiprocessing.get_context("spawn").Process(target=_import, args=(workspace.root, source))
    process.start()
    deadline = time.monotonic() + 120
    while len(store.images.table().rows) < at_least and process.is_alive():
        assert time.monotonic() < deadline
        time.sleep(0.005)
    workers = psutil.Process(process.pid).children(recursive=True) if process.is_alive() else []
    process.kill()
    process.join()
    gone, left = psutil.wait_procs(workers, timeout=20)
    assert not left, "decoding processes outlived the import"
    assert len(gone) == len(workers)
    return len(store.images.table().rows)


def test_a_killed_import_resumes_to_the_same_result(tmp_path: Path) -> None:
    source = make_source(tmp_path / "faces")
    whole = make_workspace(tmp_path / "whole")
    with LabelStore.open(whole) as store:
        report = run_import(whole, store, source, "manifest")
    assert report.samples == COUNT
    assert report.quarantined == len(range(0, COUNT, 97))

    torn = make_workspace(tmp_path / "torn")
    interrupted = 0
    with LabelStore.open(torn) as store:
        for at_least in (1, COUNT // 3, COUNT * 2 // 3):
            stored = kill_when(torn, store, source, at_least)
            interrupted += 0 < stored < COUNT
        assert interrupted >= 2, "the import was too quick to be killed under way"
        last = run_import(torn, store, source, "manifest")
        assert last.samples == COUNT
        assert last.rebuilt > 0
        assert content(torn) == content(whole)
        assert run_import(torn, store, source, "manifest").unchanged == COUNT
    assert not list(cache_folder(torn, SIZE).glob(".pixels-*"))


def test_an_import_stopped_by_an_error_keeps_what_it_had(tmp_path: Path) -> None:
    source = make_source(tmp_path / "faces")
    workspace = make_workspace(tmp_path / "ws")

    def stop(done: int, total: int, message: str) -> None:
        if done > COUNT // 2:
            raise KeyboardInterrupt

    with LabelStore.open(workspace) as store:
        with pytest.raises(KeyboardInterrupt):
            run_import(workspace, store, source, "manifest", progress=stop)
        stored = len(store.images.table().rows)
        assert 0 < stored < COUNT
        assert shards(cache_folder(workspace, SIZE))[-1][1] == stored
        report = run_import(workspace, store, source, "manifest")
        assert report.rebuilt == 0
        assert len(store.images.table().rows) == COUNT

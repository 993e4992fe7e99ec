"""The pixel cache: complete for every row, whatever was lost, and at any size."""

import zipfile
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from annotator.errors import ImportSourceError, WorkspaceError
from annotator.ingest.cache import GONE, PixelCacheWriter, cache_folder, cache_lock, ensure_cache, shards
from annotator.ingest.decode import Limits
from annotator.ingest.decode_pool import DecodePool
from annotator.ingest.importer import run_import
from annotator.ingest.sources import open_files
from annotator.settings import Workspace
from annotator.store import LabelStore
from tests.ingest import builders


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for number in range(5):
        builders.write_picture(tmp_path / "pictures" / f"{number}.png", number, side=64)
    (tmp_path / "pictures" / "3.png").write_bytes(b"broken")
    return tmp_path / "pictures"


@pytest.fixture
def filled(sqlite_store: LabelStore, pictures: Path) -> LabelStore:
    run_import(sqlite_store.workspace, sqlite_store, pictures, "folder")
    return sqlite_store


def whole(workspace: Workspace, size: int) -> np.ndarray:
    found = shards(cache_folder(workspace, size))
    assert found[0][0] == 0
    assert all(a[1] == b[0] for a, b in pairwise(found))
    return np.concatenate([np.load(path) for _, _, path in found])


def test_a_lost_shard_is_made_again(filled: LabelStore) -> None:
    before = whole(filled.workspace, 48)
    for _, _, path in shards(cache_folder(filled.workspace, 48)):
        path.unlink()
    assert ensure_cache(filled.workspace, filled, 48) == 5
    assert np.array_equal(whole(filled.workspace, 48), before)
    assert ensure_cache(filled.workspace, filled, 48) == 0


def test_another_size_is_decoded_from_the_originals(filled: LabelStore) -> None:
    calls: list[tuple[int, int, str]] = []
    assert ensure_cache(filled.workspace, filled, 64, lambda *call: calls.append(call)) == 5
    pixels = whole(filled.workspace, 64)
    assert np.array_equal(pixels[2], np.asarray(builders.picture(2, 64)))
    assert pixels[3].max() == 0
    assert calls[-1][:2] == (5, 5)


def test_a_face_whose_file_is_gone_comes_from_another_size(filled: LabelStore, pictures: Path) -> None:
    (pictures / "0.png").unlink()
    builders.write_picture(pictures / "1.png", 99, side=64)
    ensure_cache(filled.workspace, filled, 32)
    for row in (0, 1):  # the second from the cached face too: the picture there now is another one
        smaller = Image.fromarray(whole(filled.workspace, 48)[row]).resize((32, 32), Image.Resampling.BILINEAR)
        assert np.array_equal(whole(filled.workspace, 32)[row], np.asarray(smaller))
    assert filled.images.counts()["quarantined"] == 1


def test_a_face_that_is_nowhere_is_quarantined(filled: LabelStore, pictures: Path) -> None:
    for _, _, path in shards(cache_folder(filled.workspace, 48)):
        path.unlink()
    (pictures / "0.png").unlink()
    builders.write_picture(pictures / "1.png", 99, side=64)
    ensure_cache(filled.workspace, filled, 48)
    records = filled.images.by_rows([0, 1, 2])
    assert [r.quarantine_reason for r in records] == [GONE, GONE, None]
    assert whole(filled.workspace, 48)[:2].max() == 0
    builders.write_picture(pictures / "0.png", 0, side=64)
    run_import(filled.workspace, filled, pictures, "folder")
    assert filled.images.by_rows([0])[0].state == "active"


def test_a_source_that_is_gone_as_a_whole_is_told_and_nothing_is_quarantined(
    filled: LabelStore, pictures: Path
) -> None:
    for _, _, path in shards(cache_folder(filled.workspace, 48)):
        path.unlink()
    pictures.rename(pictures.with_name("moved"))
    with pytest.raises(ImportSourceError, match="bring it back"):
        ensure_cache(filled.workspace, filled, 48)
    assert filled.images.counts()["quarantined"] == 1
    pictures.with_name("moved").rename(pictures)
    assert ensure_cache(filled.workspace, filled, 48) == 5


def test_whoever_holds_the_lock_sweeps_what_a_killed_writer_left(tmp_path: Path) -> None:
    (tmp_path / ".pixels-000000000-000000005.npy.123").write_bytes(b"half")
    with cache_lock(tmp_path) as held:
        assert held
        with cache_lock(tmp_path) as second:
            assert not second
    assert not list(tmp_path.glob(".pixels-*"))


@settings(deadline=None, max_examples=40)
@given(rows=st.sets(st.integers(0, 60), min_size=1), capacity=st.integers(1, 7))
def test_shards_hold_consecutive_rows_and_every_face_once(
    tmp_path_factory: pytest.TempPathFactory, rows: set[int], capacity: int
) -> None:
    folder = tmp_path_factory.mktemp("shards")
    writer = PixelCacheWriter(folder, 4, capacity)
    for row in sorted(rows):
        writer.add(row, np.full((4, 4, 3), row, np.uint8))
    writer.flush()
    seen: list[int] = []
    for start, stop, path in shards(folder):
        values = np.load(path)
        assert len(values) == stop - start <= capacity
        assert values[:, 0, 0, 0].tolist() == list(range(start, stop))
        seen += range(start, stop)
    assert seen == sorted(rows)


def test_a_pool_survives_the_death_of_a_worker_and_keeps_the_order(tmp_path: Path) -> None:
    for number in range(40):
        builders.write_picture(tmp_path / f"{number}.png", number, side=16)
    chunks = [[(f"{n}.png", None) for n in range(start, start + 4)] for start in range(0, 40, 4)]
    with DecodePool(open_files(tmp_path), 16, Limits(10_000, 10_000, 8), workers=2) as pool:
        outcomes = []
        for turn, chunk in enumerate(pool.map(chunks)):
            outcomes += chunk
            if turn == 2:
                pool._workers[1].process.kill()
    for number, outcome in enumerate(outcomes):
        assert np.array_equal(outcome.pixels, np.asarray(builders.picture(number, 16)))
    assert len(outcomes) == 40


def test_a_process_that_cannot_start_is_an_error_and_no_verdict_on_images(tmp_path: Path) -> None:
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w") as out:
        out.writestr("a.png", builders.encoded(builders.picture(1)))
    files = open_files(archive)
    archive.unlink()
    with (
        DecodePool(files, 16, Limits(10_000, 10_000, 8), workers=1) as pool,
        pytest.raises(WorkspaceError, match="did not start"),
    ):
        list(pool.map([[("a.png", None)]]))

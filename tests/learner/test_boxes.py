"""Face boxes: they move with crop and flip exactly as pixels do; files that are refused."""

from pathlib import Path

import numpy as np
import pytest
import torch

from learner import boxes
from learner.augment import Augmenter
from learner.config import AugmentConfig
from learner.data import PixelCache, write_shards
from learner.errors import InputError
from learner.sources import PixelSource

SIZE, NUM = 48, 64


@pytest.fixture(scope="module")
def drawn() -> tuple[np.ndarray, np.ndarray]:
    """Black images with one white rectangle each, and where it is in shares of the side."""
    rng = np.random.default_rng(0)
    images = np.zeros((NUM, SIZE, SIZE, 3), np.uint8)
    low = rng.integers(4, 20, (NUM, 2))
    corners = np.concatenate([low, low + rng.integers(8, 24, (NUM, 2))], axis=1)
    for image, (left, top, right, bottom) in zip(images, corners, strict=True):
        image[top:bottom, left:right] = 255
    return images, (corners / SIZE).astype(np.float32)


def found(view: torch.Tensor) -> np.ndarray:
    """Where the white rectangle lies in a view (3,H,W): left, top, right, bottom in shares; zeros if it is gone."""
    bright = (view.mean(dim=0) > 0).numpy()
    if not bright.any():
        return np.zeros(4)
    down, across = np.flatnonzero(bright.any(axis=1)), np.flatnonzero(bright.any(axis=0))
    return np.array([across[0], down[0], across[-1] + 1, down[-1] + 1]) / SIZE


@pytest.mark.parametrize(
    ("changes", "tolerance"),
    [({"crop_probability": 1.0, "crop_padding": 0.2}, 0.0), ({"crop_area": 0.3}, 1.3 / SIZE), ({"crop_padding": 0}, 0)],
    ids=["padded", "resized", "flip"],
)
def test_a_white_rectangle_is_found_where_its_box_says(
    tmp_path: Path, drawn: tuple[np.ndarray, np.ndarray], changes: dict[str, float], tolerance: float
) -> None:
    images, corners = drawn
    write_shards(tmp_path, images)
    make = Augmenter(AugmentConfig.model_validate(changes), SIZE, seed=5, device=torch.device("cpu"))
    source = PixelSource(PixelCache(tmp_path, SIZE), make, corners)
    rows = np.arange(NUM)
    for step in (0, 7):
        steps = np.full(NUM, step)
        views, moved = source.view("l", rows, steps), source.boxes("l", rows, step)
        assert moved is not None
        assert np.array_equal(moved, source.boxes("l", rows, steps)), "one step or one each"
        seen = np.stack([found(view) for view in views])
        inside = ((moved[:, 2:] - moved[:, :2]) * SIZE > 2).all(axis=1)
        assert inside.mean() > 0.8
        assert np.abs(seen - moved)[inside].max() <= tolerance + 1e-5
        assert not np.allclose(moved, corners, atol=0.02), "something moved"
    assert not np.array_equal(source.boxes("l", rows, 0), source.boxes("w", rows, 0)), "views have draws of their own"


def test_a_resized_crop_keeps_to_its_area_and_repeats_in_any_batch(drawn: tuple[np.ndarray, np.ndarray]) -> None:
    make = Augmenter(AugmentConfig(crop_area=0.2), SIZE, seed=5, device=torch.device("cpu"))
    rows = np.arange(2000)
    windows, mirrored = make.windows(rows, 3, "l")
    area = windows[:, 2] * windows[:, 3]
    assert 0.2 - 1e-6 <= area.min() < 0.25 < 0.95 < area.max() <= 1 + 1e-6
    assert (windows[:, :2] + windows[:, 2:]).max() <= 1 + 1e-6
    assert 0.4 < mirrored.mean() < 0.6
    x = make.upload(drawn[0])
    whole = make.weak_pixels(x, rows[:NUM], 3, "l")
    some = np.array([9, 4])
    assert torch.equal(make.weak_pixels(make.upload(drawn[0][some]), some, 3, "l"), whole[some])


def test_unknown_boxes_stay_unknown_and_those_out_of_sight_get_the_fallback() -> None:
    given = np.array([[0.1, 0.1, 0.4, 0.4], [np.nan] * 4, [0.8, 0.8, 1, 1]], np.float32)
    windows = np.tile(np.array([0, 0, 0.5, 0.5], np.float32), (3, 1))
    moved = boxes.into_window(given, windows, np.array([True, False, True]))
    assert moved[0] == pytest.approx([0.2, 0.2, 0.8, 0.8])
    assert np.isnan(moved[1]).all()
    assert (moved[2, 2:] == moved[2, :2]).any()
    seen = boxes.in_view(moved)
    assert seen[0] == pytest.approx(moved[0])
    assert seen[1] == pytest.approx(boxes.FALLBACK)
    assert seen[2] == pytest.approx(boxes.FALLBACK)
    assert pytest.approx(np.array([25, 25, 220, 220]) / 224) == boxes.FALLBACK
    assert np.isnan(boxes.of_rows(given, np.array([2, 5]))[1]).all(), "a row beyond the array"


def test_files_that_hold_no_boxes_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "boxes.npy"
    assert boxes.load_boxes(path) is None
    for array, message in (
        (np.zeros((3, 5), np.float32), r"\(3, 5\)"),
        (np.zeros((3, 4), np.int64), "int64"),
        (np.array([[0.5, 0, 0.1, 1]], np.float32), "row 0 ends before it starts"),
    ):
        np.save(path, array)
        with pytest.raises(InputError, match=message):
            boxes.load_boxes(path)
    path.write_bytes(b"no array")
    with pytest.raises(InputError, match="cannot read face boxes"):
        boxes.load_boxes(path)

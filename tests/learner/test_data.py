from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from learner import draws
from learner.data import Balanced, Cycle, PixelCache, load_view, save_view, write_shards
from learner.errors import InputError, PixelsMissingError
from tests.learner.runs import first_labels, view_of


def test_pixels_come_back_by_row_across_shards_in_the_order_asked(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (30, 16, 16, 3), dtype=np.uint8)
    write_shards(tmp_path, images[:20], 0)
    write_shards(tmp_path, images[20:], 100)
    cache = PixelCache(tmp_path, 16)
    rows = np.array([105, 3, 100, 19, 3])
    assert (cache.gather(rows) == images[[25, 3, 20, 19, 3]]).all()
    assert cache.has(np.array([0, 19, 20, 99, 100, 109, 110])).tolist() == [True, True, False, False, True, True, False]


def test_a_missing_row_is_named(tmp_path: Path) -> None:
    write_shards(tmp_path, np.zeros((4, 16, 16, 3), np.uint8))
    with pytest.raises(PixelsMissingError, match=r"1 rows have no pixels.*\[9\]"):
        PixelCache(tmp_path, 16).gather(np.array([1, 9]))
    with pytest.raises(PixelsMissingError, match="no pixel shards"):
        PixelCache(tmp_path / "none", 16)


def test_a_shard_of_another_shape_than_its_name_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "pixels-000000000-000000005.npy", np.zeros((4, 16, 16, 3), np.uint8))
    with pytest.raises(PixelsMissingError, match="expected uint8"):
        PixelCache(tmp_path, 16)


@given(size=st.integers(1, 40), batch=st.integers(1, 50), first=st.integers(0, 200), seed=st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_a_cycle_visits_every_row_equally_often_and_depends_on_the_step_alone(
    size: int, batch: int, first: int, seed: int
) -> None:
    rows = np.random.default_rng(1).permutation(1000)[:size]
    steps = range(first, first + 6)
    straight = [Cycle(rows, batch, seed, 1).at(step) for step in steps]
    one = Cycle(np.sort(rows), batch, seed, 1)
    backwards = [one.at(step) for step in reversed(steps)][::-1]
    assert all((a == b).all() for a, b in zip(straight, backwards, strict=True))
    whole = np.concatenate([one.at(step) for step in range(0, size)])  # size steps are exactly batch passes
    assert (np.unique(whole, return_counts=True)[1] == batch).all()


def test_a_balanced_draw_gives_every_class_its_share() -> None:
    target = np.zeros((100, 3), np.float32)
    target[:90, 0] = target[90:98, 1] = target[98:, 2] = 1
    draw = Balanced(np.arange(100), target, 30, 0, 1)
    rows = np.concatenate([draw.at(step) for step in range(300)])
    share = target[rows].mean(axis=0)
    assert np.allclose(share, 1 / 3, atol=0.02)
    assert (draw.at(7) == Balanced(np.arange(100), target, 30, 0, 1).at(7)).all()


def test_a_view_survives_the_disk(tmp_path: Path) -> None:
    view = first_labels()
    save_view(tmp_path / "view.npz", view)
    loaded = load_view(tmp_path / "view.npz")
    assert loaded.classes == view.classes
    assert loaded.label_seq == view.label_seq
    for name in ("rows", "target", "allowed", "excluded", "given", "locked", "stamp"):
        assert torch.equal(getattr(loaded, name), getattr(view, name))


def test_a_contradictory_view_is_refused(tmp_path: Path) -> None:
    view = view_of([1, 2], [0, 1])
    view.target[0] = 0
    save_view(tmp_path / "view.npz", view)
    with pytest.raises(InputError, match="distribution"):
        load_view(tmp_path / "view.npz")
    with pytest.raises(InputError, match="cannot read label view"):
        load_view(tmp_path / "none.npz")


def test_draws_are_uniform_and_independent_of_their_batch() -> None:
    rows = np.arange(20_000)
    drawn = draws.uniform(3, 7, rows, 1, 4)
    assert drawn.dtype == np.float32
    assert drawn.min() >= 0
    assert drawn.max() < 1
    assert np.allclose(drawn.mean(axis=0), 0.5, atol=0.01)
    assert np.abs(np.corrcoef(drawn.T) - np.eye(4)).max() < 0.03
    assert (draws.uniform(3, 7, rows[[500, 9]], 1, 4) == drawn[[500, 9]]).all()
    assert not (draws.uniform(3, 8, rows, 1, 4) == drawn).all(axis=1).any()
    assert not (draws.uniform(3, 7, rows, 2, 4) == drawn).all(axis=1).any()


def test_repeats_of_a_row_in_a_batch_get_draws_of_their_own() -> None:
    assert draws.copies(np.array([3, 1, 3, 3, 1])).tolist() == [0, 0, 1, 2, 1]
    drawn = draws.uniform(0, 0, np.array([5, 5]), 1, 3)
    assert not (drawn[0] == drawn[1]).any()

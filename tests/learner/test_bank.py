"""The view-feature bank: what is in it, that it resumes, and what a training run draws from it."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from learner import bank_build, hog
from learner.augment import Augmenter
from learner.bank import BankSource, FeatureBank, gaps
from learner.bank_build import Plan, build, choose_rows
from learner.config import AugmentConfig, BackboneConfig
from learner.data import PixelCache, write_shards
from learner.encoders import HogEncoder, NetworkEncoder, make_encoder
from learner.errors import InputError, PixelsMissingError
from learner.models import make_backbone
from tests.learner.runs import SIZE, patterns

FULL, CLEAN = np.arange(5, 65), np.arange(60, 80)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> PixelCache:
    folder = tmp_path_factory.mktemp("cache")
    write_shards(folder, patterns(80)[0])
    return PixelCache(folder, SIZE)


@pytest.fixture(scope="module")
def plan() -> Plan:
    return Plan(FULL, CLEAN, weak=2, strong=6, seed=3)


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory, cache: PixelCache, plan: Plan) -> FeatureBank:
    return build(tmp_path_factory.mktemp("bank") / "hog", HogEncoder(), cache, plan)


def shards(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.glob("*-*.npy")}


def test_clean_features_are_centred_and_scaled_by_the_pool(bank: FeatureBank) -> None:
    x = bank.gather(FULL, np.zeros(len(FULL), np.int64)).astype(np.float64)
    assert np.allclose(x.mean(axis=0), 0, atol=1e-3)
    assert np.square(x).mean() == pytest.approx(1, abs=1e-3)
    assert bank.dim == x.shape[1] == len(FULL) - 1


def test_a_bank_holds_the_features_of_the_augmented_faces(bank: FeatureBank, cache: PixelCache, plan: Plan) -> None:
    rows = np.array([64, 7, 30])
    augmenter = Augmenter(plan.augment, SIZE, plan.seed, torch.device("cpu"))
    x = augmenter.upload(cache.gather(rows))
    clean = hog.describe(cache.gather(FULL))
    projection = hog.fit(clean)
    spread = np.sqrt(np.square((clean - projection.mean) @ projection.components).mean())
    for view in range(9):
        made = x
        if view >= 3:
            made = augmenter.strong_pixels(x, rows, view - 3, "s")
        if view >= 1:
            made = augmenter.weak_pixels(made, rows, view - 1 if view < 3 else view - 3, "w" if view < 3 else "s")
        faces = made.permute(0, 2, 3, 1).contiguous().numpy()
        wanted = (hog.describe(faces) - projection.mean) @ projection.components / spread
        assert np.allclose(bank.gather(rows, np.full(3, view)), wanted, atol=6e-3)
    assert np.allclose(bank.encode(HogEncoder(), cache.gather(rows)), bank.gather(rows, np.zeros(3, int)), atol=2e-3)


def test_rows_without_views_give_their_clean_feature(bank: FeatureBank, cache: PixelCache) -> None:
    rows = np.array([70, 6, 79])
    some = bank.gather(rows, np.array([4, 4, 0]))
    assert np.allclose(some[[0, 2]], bank.encode(HogEncoder(), cache.gather(rows[[0, 2]])), atol=2e-3)
    assert (some[1] == bank.gather(np.array([6]), np.array([4]))[0]).all()
    assert bank.has(np.array([4, 5, 64, 65, 79, 80])).tolist() == [False, True, True, True, True, False]
    assert bank.trainable(np.array([79, 64, 5, 65])).tolist() == [64, 5]
    with pytest.raises(PixelsMissingError, match=r"2 rows are not in .*\[99, 2\]"):
        bank.gather(np.array([6, 99, 2]), np.zeros(3, np.int64))


def test_killed_builds_leave_whole_shards_and_go_on_to_the_same_bank(
    tmp_path: Path, bank: FeatureBank, cache: PixelCache, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("learner.bank.SHARD_ROWS", 16)
    whole = build(tmp_path / "whole", HogEncoder(), cache, plan)

    def stop(at: int) -> None:
        def on_done(done: int, _total: int) -> None:
            if done >= at:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            build(tmp_path / "cut", HogEncoder(), cache, plan, on_done)

    stop(200)
    first = shards(tmp_path / "cut")
    assert list(first) == [f"{whole.encoder}-full-000000000-000000016.npy"]
    with pytest.raises(InputError, match="not finished, 44 rows are missing"):
        FeatureBank(tmp_path / "cut")
    stop(300)
    heard: list[tuple[int, int]] = []
    build(tmp_path / "cut", HogEncoder(), cache, plan, lambda done, total: heard.append((done, total)))
    assert shards(tmp_path / "cut") == shards(tmp_path / "whole")
    assert shards(tmp_path / "cut").items() > first.items()
    assert heard[-1] == (12 * 9 + 15, 12 * 9 + 15)  # only what was missing
    assert build(tmp_path / "cut", HogEncoder(), cache, plan).encoder == bank.encoder
    assert not list((tmp_path / "cut").glob(".*"))


def test_kill_minus_nine_leaves_a_bank_that_goes_on(tmp_path: Path, cache: PixelCache) -> None:
    program = f"""
import time
import numpy as np
from pathlib import Path
import learner.bank
from learner.bank_build import Plan, build
from learner.data import PixelCache
from learner.encoders import HogEncoder
learner.bank.SHARD_ROWS = 8
build(Path({str(tmp_path / "bank")!r}), HogEncoder(), PixelCache({str(cache.folder)!r}, {SIZE}),
      Plan(np.arange(40), np.arange(0)), lambda done, total: time.sleep(0.1))
"""
    child = subprocess.Popen([sys.executable, "-c", program], env={**os.environ, "OMP_NUM_THREADS": "1"})
    deadline = time.monotonic() + 200  # importing torch takes long beside other programs
    while len(list((tmp_path / "bank").glob("hog-*.npy"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    left = shards(tmp_path / "bank")
    assert 2 <= len(left) < 5
    finished = build(tmp_path / "bank", HogEncoder(), cache, Plan(np.arange(40), np.arange(0)))
    assert shards(tmp_path / "bank").items() > left.items()
    straight = build(tmp_path / "straight", HogEncoder(), cache, Plan(np.arange(40), np.arange(0)))
    views = np.arange(40) % 8
    assert np.allclose(finished.gather(np.arange(40), views), straight.gather(np.arange(40), views), atol=2e-3)


def test_a_bank_grows_without_touching_what_it_has(tmp_path: Path, cache: PixelCache) -> None:
    small = Plan(np.array([3, 9, 30]), np.array([1, 40]))
    old = build(tmp_path, HogEncoder(), cache, small)
    before, feature = shards(tmp_path), old.gather(np.array([40]), np.array([0]))
    new = build(tmp_path, HogEncoder(), cache, Plan(np.array([2, 3, 40]), np.array([1, 50])))
    assert shards(tmp_path).items() > before.items()
    assert new.full_rows.tolist() == [2, 3, 9, 30, 40]
    assert np.allclose(new.gather(np.array([40]), np.array([0])), feature, atol=2e-3)
    assert new.has(np.array([1, 50])).all()
    for index, row in enumerate([3, 9, 30]):
        assert (new.gather(np.array([row]), np.array([5])) == old.gather(np.array([row]), np.array([5]))).all(), index


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 4}, "another seed"),
        ({"strong": 7}, "another strong"),
        ({"augment": AugmentConfig(cutout=0)}, "another augment"),
        ({"full": np.zeros(0, np.int64)}, "at least one row"),
        ({"weak": 0}, "weak and strong views, got 0 and 6"),
    ],
)
def test_another_bank_is_refused(
    bank: FeatureBank, cache: PixelCache, plan: Plan, change: dict[str, object], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        build(bank.folder, HogEncoder(), cache, replace(plan, **change))


def test_other_folders_are_refused(tmp_path: Path, cache: PixelCache, plan: Plan, bank: FeatureBank) -> None:
    with pytest.raises(InputError, match="python -m learner bank"):
        FeatureBank(tmp_path)
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(InputError, match="not empty"):
        build(tmp_path, HogEncoder(), cache, plan)
    with pytest.raises(InputError, match="another asked"):
        build(bank.folder, HogEncoder(32), cache, plan)
    with pytest.raises(InputError, match="made by hog:256, not by hog:32"):
        bank.encode(HogEncoder(32), cache.gather(FULL))


@given(
    have=st.lists(st.integers(0, 9), unique=True).map(sorted),
    num=st.integers(0, 200),
)
@settings(max_examples=60, deadline=None)
def test_gaps_cover_exactly_what_is_missing(have: list[int], num: int) -> None:
    kept = [(20 * n, 20 * n + 13, Path()) for n in have if 20 * n + 13 <= num]
    found = gaps(kept, num)
    covered = np.zeros(num, int)
    for start, stop in [(a, b) for a, b, _ in kept] + found:
        assert start < stop
        covered[start:stop] += 1
    assert (covered == 1).all()


def test_the_pool_is_sampled_and_labels_always_kept() -> None:
    labeled, pool = np.arange(0, 1000, 10), np.arange(1000)
    full, clean = choose_rows(labeled, pool, np.arange(1200), most=200, seed=1)
    assert len(full) == 300
    assert np.isin(labeled, full).all()
    assert np.array_equal(np.union1d(full, clean), np.arange(1200))
    assert not np.isin(full, clean).any()
    later, _ = choose_rows(labeled, np.arange(1100), np.arange(1200), most=200, seed=1)
    assert len(np.intersect1d(full, later)) > 250  # a growing pool keeps most of its sample
    assert bank_build.MAX_POOL == 50_000


def test_views_are_drawn_by_seed_step_and_row_alone(bank: FeatureBank) -> None:
    source, other = BankSource(bank, 1), BankSource(bank, 2)
    rows, steps = np.repeat(FULL, 40), np.tile(np.arange(40), len(FULL))
    order = np.random.default_rng(0).permutation(len(rows))
    allowed = {"l": (0, 3), "w": (1, 3), "w2": (1, 3), "s": (3, 9), "s2": (3, 9)}
    drawn = {name: source.choose(name, rows, steps) for name in allowed}
    for name, (low, high) in allowed.items():
        share = np.bincount(drawn[name], minlength=9) / len(rows)
        assert np.allclose(share[low:high], 1 / (high - low), atol=0.05), name
        assert share[low:high].sum() == pytest.approx(1)
        assert (source.choose(name, rows[order], steps[order]) == drawn[name][order]).all()
        assert (other.choose(name, rows, steps) != drawn[name]).any()
    assert (drawn["w"] != drawn["w2"]).all()
    assert (drawn["s"] != drawn["s2"]).all()


def test_a_source_gives_float_features_of_the_chosen_views(bank: FeatureBank) -> None:
    source, rows, steps = BankSource(bank, 1), np.array([9, 70, 9, 33]), np.array([4, 4, 5, 4])
    assert torch.equal(source.clean(rows), torch.from_numpy(bank.gather(rows, np.zeros(4, np.int64))).float())
    for name in ("l", "w", "w2", "s", "s2"):
        x = source.view(name, rows, steps)
        assert x.dtype == torch.float32
        assert torch.equal(x, torch.from_numpy(bank.gather(rows, source.choose(name, rows, steps))).float())
        assert torch.equal(x[1], source.clean(rows[1:2])[0])  # a row without views


def test_with_one_weak_view_the_second_is_the_clean_one(tmp_path: Path, cache: PixelCache) -> None:
    source = BankSource(build(tmp_path, HogEncoder(), cache, Plan(np.arange(12), np.arange(0), strong=1)), 0)
    rows, steps = np.arange(12), np.zeros(12, np.int64)
    chosen = {name: set(source.choose(name, rows, steps).tolist()) for name in ("l", "w", "w2", "s", "s2")}
    assert chosen == {"l": {0, 1}, "w": {1}, "w2": {0}, "s": {2}, "s2": {2}}


def test_a_network_encodes_in_eval_mode(tmp_path: Path, cache: PixelCache) -> None:
    torch.manual_seed(0)
    backbone, width = make_backbone(BackboneConfig(name="resnet10_small"), SIZE)
    before = {k: v.clone() for k, v in backbone.state_dict().items()}
    encoder = NetworkEncoder(backbone, "resnet10_small", SIZE)
    faces = cache.gather(np.arange(6))
    assert np.allclose(encoder(faces)[2:4], encoder(faces[2:4]), atol=1e-5)  # no statistics of the batch
    made = build(tmp_path, encoder, cache, Plan(np.arange(6), np.arange(0)))
    assert (made.dim, made.asked) == (width, encoder.asked)
    assert all(torch.equal(before[k], v) for k, v in backbone.state_dict().items())
    x = made.gather(np.arange(6), np.zeros(6, np.int64)).astype(np.float64)
    assert np.square(x).mean() == pytest.approx(1, abs=1e-2)


def test_encoders_by_name(tmp_path: Path) -> None:
    assert make_encoder("hog", SIZE).asked == "hog:256"
    with pytest.raises(InputError, match="neither hog nor a trained model"):
        make_encoder("resnet10_small", SIZE)
    with pytest.raises(InputError, match="takes no weights"):
        make_encoder("hog", SIZE, "x.safetensors")
    torch.manual_seed(0)
    backbone, _ = make_backbone(BackboneConfig(name="resnet10_small"), SIZE)
    torch.save(backbone.state_dict(), tmp_path / "w.pt")
    loaded = make_encoder("resnet10_small", SIZE, str(tmp_path / "w.pt"))
    assert loaded.asked == NetworkEncoder(backbone, "resnet10_small", SIZE).asked

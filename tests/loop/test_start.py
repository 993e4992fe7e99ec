"""The encoder that a workspace starts from: how its features are made, and when they take over."""

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from annotator import encoders
from annotator.errors import InputError
from annotator.features import FeatureShards
from annotator.ingest.demo_faces import generate
from annotator.ingest.importer import run_import
from annotator.loop import embed_network
from annotator.loop.embed import PixelShards
from annotator.loop.learn import Learner, opened
from annotator.loop.rounds import RoundRequest, build_config, make_round
from annotator.loop.serving import choose
from annotator.settings import FILE, Workspace
from annotator.store import LabelStore
from learner.pretrain.encoder import FaceEncoder
from learner.snapshot import load
from tests.loop.conftest import answer, answer_truth, current, first_order, make_workspace, tick_until
from tests.loop.encoders import SIZE, write_encoder
from tests.zygote import Child, Zygote


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Write two encoders that differ."""
    folder = tmp_path_factory.mktemp("encoders")
    made = folder / "one.safetensors", folder / "two.safetensors"
    for seed, path in enumerate(made):
        write_encoder(path, seed)
    return made


@pytest.fixture
def ready(tmp_path: Path, faces: Path, files: tuple[Path, Path]) -> Workspace:
    """Import 64 drawn faces into a workspace that starts from the first file."""
    return make_workspace(tmp_path / "ws", faces, start=str(files[0]))


def serves(learner: Learner, file: Path) -> bool:
    shards = learner.shards
    return shards is not None and shards.info.id == encoders.EncoderFile.read(file).id


def test_a_file_is_known_without_torch(files: tuple[Path, Path], tmp_path: Path) -> None:
    made = encoders.EncoderFile.read(files[0])
    loaded = FaceEncoder.load(files[0])
    assert (made.id, made.dim, made.image_size) == (loaded.id, loaded.dim, loaded.image_size)
    assert made.fits("resnet10_grid")
    assert not made.fits("resnet18")
    narrow = tmp_path / "narrow.safetensors"
    write_encoder(narrow, 3, dim=16)
    assert not encoders.EncoderFile.read(narrow).fits("resnet10_grid")
    for wrong in (tmp_path / "gone.safetensors", Path(__file__)):
        with pytest.raises(InputError, match="no encoder"):
            encoders.EncoderFile.read(wrong)


def test_hog_serves_until_the_network_has_read_every_face(ready: Workspace, files: tuple[Path, Path]) -> None:
    with opened(ready) as learner:
        first = first_order(learner)
        assert first.mode == "coverage"
        seen = set()

        def swapped() -> bool:
            assert learner.shards is not None
            seen.add((learner.shards.info.kind, learner.shards.stop))
            return learner.shards.info.kind == "network"

        tick_until(learner, swapped)
        assert seen == {("hog", 64), ("network", 64)}
        tick_until(learner, lambda: current(ready, learner.store).meta["encoder"] != "hog-1")
        scores = current(ready, learner.store)
        encoder = FaceEncoder.load(files[0])
        assert (scores.mode, scores.meta["encoder"]) == ("coverage", encoder.id)
        assert scores.order.tolist() != first.order.tolist()  # another reading of the pool, another coverage
        pixels = PixelShards(ready.folder("cache") / str(SIZE)).read(0, 64)
        assert learner.shards is not None
        np.testing.assert_allclose(learner.shards.read(scores.rows), encoder(pixels)[scores.rows], rtol=2e-3, atol=2e-3)
        assert learner.base.settled


def test_one_label_of_one_class_then_two_are_enough(ready: Workspace, files: tuple[Path, Path]) -> None:
    with opened(ready) as learner:
        first_order(learner)
        tick_until(learner, lambda: serves(learner, files[0]))
        rows = learner.pool.rows
        seq = answer(learner.store, int(rows[0]), "happiness")
        tick_until(learner, lambda: current(ready, learner.store).meta["label_seq"] >= seq, 20)
        alone = current(ready, learner.store)
        assert (alone.mode, alone.meta["encoder"]) == ("fast", encoders.EncoderFile.read(files[0]).id)
        assert (alone.probs.argmax(axis=1) == 1).all()
        assert (alone.probs > 0).all()
        seq = answer(learner.store, int(rows[1]), "sadness")
        tick_until(learner, lambda: current(ready, learner.store).meta["label_seq"] >= seq, 20)
        probs = current(ready, learner.store).probs
        assert probs[0].argmax() == 1
        assert probs[1].argmax() == 3
        assert set(probs.argmax(axis=1)) == {1, 3}


def test_a_restarted_learner_goes_on_with_the_network(ready: Workspace, tmp_path: Path) -> None:
    with opened(ready) as learner:
        tick_until(learner, lambda: learner.base.settled and bool(learner.shards))
        name = learner.shards.info.id if learner.shards is not None else ""
    with LabelStore.open(ready) as store:
        run_import(ready, store, generate(tmp_path / "more", 6, seed=99), "manifest", given_as="none")
    with opened(ready) as learner:
        assert learner.shards is not None
        assert learner.shards.info.id == name  # though there are faces that it has not read
        tick_until(learner, lambda: learner.base.settled)
        assert learner.shards.stop == 70
        assert learner.shards.read(np.array([69])).any()


def test_the_old_network_serves_until_the_new_one_is_complete(ready: Workspace, files: tuple[Path, Path]) -> None:
    with opened(ready) as learner:
        tick_until(learner, lambda: serves(learner, files[0]))
        ready.start_from(str(files[1]))
        learner.base.aim()
        assert serves(learner, files[0])
        assert not learner.base.settled
        tick_until(learner, lambda: not serves(learner, files[0]))
        assert serves(learner, files[1])
        assert learner.shards is not None
        assert learner.shards.stop == 64
        one, two = (encoders.EncoderFile.read(file).id for file in files)
        assert {one, two} <= {info.id for info in encoders.folders(ready).values()}  # the page may read it still
        ready.start_from("random")
        learner.base.aim()
        assert serves(learner, files[1])
        tick_until(learner, lambda: learner.shards is not None and learner.shards.info.kind == "hog")
    assert Workspace.open(ready.root).settings.learner.start == "random"


def test_a_workspace_from_before_encoders_moves_on_by_itself(
    small: Workspace, files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(small) as learner:
        first_order(learner)
        choose(small, learner.store, "hog")  # as it was called
    data = yaml.safe_load((small.root / FILE).read_text())
    del data["learner"]["start"]
    data["learner"]["backbone"] = "resnet10_small"
    (small.root / FILE).write_text(yaml.safe_dump(data))
    monkeypatch.setattr(encoders, "SHIPPED_FILE", files[0])
    old = Workspace.open(small.root)
    assert old.settings.learner.start == "shipped"
    assert build_config(old, RoundRequest(), 1).backbone.weights is None  # rounds go on as they were
    with opened(old) as learner:
        assert learner.shards is not None
        assert learner.shards.info.id == "hog-1"
        tick_until(learner, lambda: serves(learner, files[0]))
        assert learner.shards.stop == 64


def test_a_killed_child_is_gone_on_with(
    ready: Workspace, files: tuple[Path, Path], zygote: Zygote, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed: list[Child] = []

    def start(arguments: list[str], **options: Any) -> Child:
        child = zygote.start(arguments, **options)
        if not killed:
            os.kill(child.pid, signal.SIGKILL)
            killed.append(child)
        return child

    monkeypatch.setattr("annotator.loop.embed_network.start_child", start)
    folder = encoders.publish(ready, files[0], "before")
    half = PixelShards(ready.folder("cache") / str(SIZE)).read(0, 30)
    FeatureShards(folder).append(0, FaceEncoder.load(files[0])(half).astype(np.float16))
    with opened(ready) as learner:
        assert learner.shards is None  # half a set serves nobody
        tick_until(learner, lambda: serves(learner, files[0]))
        assert killed[0].returncode == -signal.SIGKILL
        assert learner.base.trouble is None
    assert sorted(p.name for p in folder.glob("*.npy")) == [
        "features-000000000-000000030.npy",
        "features-000000030-000000064.npy",
    ]


def test_a_child_that_fails_is_told_and_hog_serves(ready: Workspace, files: tuple[Path, Path]) -> None:
    folder = encoders.publish(ready, files[0], "before")
    (folder / encoders.WEIGHTS).write_bytes(b"no tensors")
    with opened(ready) as learner:
        tick_until(learner, lambda: learner.base.trouble is not None)
        assert "is no encoder" in (learner.base.trouble or "")
        assert first_order(learner).meta["encoder"] == "hog-1"
        learner.tick()
        assert "cannot be used" in json.loads((ready.root / "learner.json").read_text())["message"]


def test_a_missing_file_is_told_and_hog_serves(ready: Workspace) -> None:
    ready.start_from("gone.safetensors")
    with opened(ready) as learner:
        assert first_order(learner).meta["encoder"] == "hog-1"
        told = json.loads((ready.root / "learner.json").read_text())
        assert "gone.safetensors" in told["message"]
        assert learner.base.settled


def test_black_images_have_no_features(ready: Workspace, files: tuple[Path, Path]) -> None:
    from learner.data import write_shards

    folder = encoders.publish(ready, files[0], "test")
    cache = ready.root / "other"
    faces = np.random.default_rng(0).integers(0, 256, (5, SIZE, SIZE, 3), dtype=np.uint8)
    faces[2] = 0
    cache.mkdir()
    write_shards(cache, faces, 0)
    embed_network.embed(folder, cache, None, linger=0.1)
    features = np.load(folder / "features-000000000-000000005.npy")
    assert features.any(axis=1).tolist() == [True, True, False, True, True]
    assert encoders.publish(ready, files[0], "test") == folder  # once


def test_rounds_begin_with_the_start_where_it_fits(
    ready: Workspace, files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def weights(start: str) -> str | None:
        ready.start_from(start)
        return build_config(ready, RoundRequest(), 1).backbone.weights

    monkeypatch.setattr(encoders, "SHIPPED_FILE", files[1])
    assert weights(str(files[0])) == str(files[0])
    assert weights("shipped") == "shipped"
    assert weights("pool") == "shipped"
    assert weights("random") is None
    assert weights("timm:resnet18") is None  # a resnet10_grid is trained here
    monkeypatch.setenv("ANNOTATOR_LEARNER__BACKBONE", "resnet18")
    assert weights("timm:resnet18") == "timm"
    assert weights("shipped") is None


def test_another_start_begins_the_rounds_anew(ready: Workspace, files: tuple[Path, Path]) -> None:
    with opened(ready) as learner:
        answer_truth(learner.store, 12)
        learner.store.learning.file_job("retrain", {"method": "supervised"})
        tick_until(learner, lambda: bool(learner.store.learning.snapshots()) and not learner.runner.busy)
        snapshot = ready.folder("snapshots") / learner.store.learning.snapshots()[0].id
        assert load(snapshot).config.backbone.weights == str(files[0])

        def previous() -> str | None:
            run = make_round(ready, learner.store, RoundRequest("supervised"))
            found: str | None = json.loads((run / "pool.json").read_text())["previous"]
            return found

        assert previous() == str(snapshot)
        ready.start_from(str(files[1]))
        assert previous() is None


def test_wrong_starts_are_named(tmp_path: Path) -> None:
    from annotator.settings import absolute_start

    with pytest.raises(InputError, match="'hog' is no start"):
        absolute_start("hog")
    with pytest.raises(InputError, match="no encoder"):
        absolute_start(str(tmp_path / "gone.safetensors"))
    assert absolute_start("timm:resnet18") == "timm:resnet18"


def test_the_loop_never_waits_for_the_child(ready: Workspace) -> None:
    with opened(ready) as learner:
        first_order(learner)
        longest = 0.0
        while learner.shards is None or learner.shards.info.kind == "hog":
            began = time.monotonic()
            learner.base.step(quiet=True)
            longest = max(longest, time.monotonic() - began)
            time.sleep(0.005)
        assert longest < 0.5

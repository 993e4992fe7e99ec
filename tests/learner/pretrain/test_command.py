import json

import numpy as np
import pytest
from PIL import Image

from learner import hog
from learner.data import PixelCache, write_shards
from learner.errors import InputError
from learner.manifest import Manifest
from learner.pretrain.command import features, pretrain, without_copies
from tests.learner.pretrain.faces import small_config
from tests.learner.runs import patterns


@pytest.fixture
def folder(tmp_path):
    images, _ = patterns(9, size=40)
    (tmp_path / "faces" / "deep").mkdir(parents=True)
    (tmp_path / "faces" / ".hidden").mkdir()
    for index, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / "faces" / ("deep" if index % 2 else ".") / f"{index}.png")
    Image.fromarray(images[0]).save(tmp_path / "faces" / ".hidden" / "x.png")
    (tmp_path / "faces" / "broken.jpg").write_bytes(b"no image")
    (tmp_path / "faces" / "notes.txt").write_text("nothing")
    return tmp_path / "faces"


@pytest.mark.parametrize(("encoder", "dim"), [("hog", hog.dim()), ("random", 8)])
def test_features_of_every_image_under_a_folder(folder, tmp_path, encoder, dim, capsys):
    features(folder, tmp_path / "f.npz", encoder=encoder)
    with np.load(tmp_path / "f.npz", allow_pickle=False) as data:
        names, table = data["names"].tolist(), data["features"]
    assert names == sorted(names)
    assert set(names) == {f"{'deep/' if i % 2 else ''}{i}.png" for i in range(9)}
    assert table.dtype == np.float32
    assert table.shape == (9, dim)
    assert "broken.jpg" in capsys.readouterr().err


def test_a_folder_pretrains_an_encoder_that_features_reads(folder, tmp_path, capsys):
    config = small_config(steps=2, dim=6)
    config.save(tmp_path / "config.json")
    pretrain(folder, tmp_path / "run", config=tmp_path / "config.json")
    made = json.loads(capsys.readouterr().out)["encoder"]
    features(folder, tmp_path / "f.npz", encoder=made)
    with np.load(tmp_path / "f.npz", allow_pickle=False) as data:
        assert data["features"].shape == (9, 6)
    with pytest.raises(InputError, match="another configuration"):
        pretrain(folder, tmp_path / "run", config=tmp_path / "config.json", steps=3)


def test_nothing_to_read_is_an_error_that_names_the_folder(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty"):
        features(tmp_path / "empty", tmp_path / "f.npz", encoder="hog")
    with pytest.raises(InputError, match="give a file"):
        features(tmp_path / "empty", tmp_path / "f.txt", encoder="hog")
    with pytest.raises(InputError, match="no folder"):
        features(tmp_path / "none", tmp_path / "f.npz", encoder="hog")


def test_no_copy_of_a_validation_face_is_learned_from(tmp_path):
    images, label = patterns(12, size=48)
    images[10] = images[2]
    images[11] = np.clip(images[3].astype(int) + 3, 0, 255)
    write_shards(tmp_path, images)
    split = np.array([0] * 10 + [1, 2])
    found = Manifest(tmp_path, ("a", "b", "c", "d"), [str(i) for i in range(12)], label, split)
    assert without_copies(found, PixelCache(tmp_path, 48)).tolist() == [0, 1, 4, 5, 6, 7, 8, 9]

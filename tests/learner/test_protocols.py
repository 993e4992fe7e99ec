"""Split protocols and data sets against the numbers of ALGORITHMS.md 7 (d) and 13.1."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from learner.data import PixelCache, write_shards
from learner.duplicates import NEAR_BITS, find_copies, gradient_hash, nearest_distance
from learner.errors import InputError
from learner.manifest import Manifest, choose_labels, majority, plurality, write_cache
from learner.protocols import (
    RAFDB,
    LabelSplit,
    available_counts,
    even_counts,
    fear_counts,
    imbalanced_counts,
    percent_counts,
    read_dataset,
)
from tests.learner.runs import patterns

RAFDB_TRAIN = {"surprise": 1290, "fear": 281, "disgust": 717, "happiness": 4772, "sadness": 1982, "anger": 705}
RAFDB_TRAIN["neutral"] = 2524


def made_of(counts: dict[str, int], extra: int = 0) -> Manifest:
    """A manifest without images: classes with so many training images, and some without a label."""
    label = np.r_[np.repeat(np.arange(len(counts)), list(counts.values())), np.full(extra, -1)]
    label = np.random.default_rng(3).permutation(label)
    names = [str(row) for row in range(len(label))]
    return Manifest(Path("nowhere"), tuple(counts), names, label, np.zeros(len(label), np.int64))


@pytest.mark.parametrize(
    ("n1", "gamma", "counts", "total"),
    [
        (2000, 50, [2000, 1042, 542, 282, 147, 76, 40], 4129),
        (2000, 150, [2000, 867, 376, 163, 70, 30, 13], 3519),
        (500, 50, [500, 260, 135, 70, 36, 19, 10], 1030),
        (500, 150, [500, 216, 94, 40, 17, 7, 3], 877),
        (4000, 150, [4000, 1955, 955, 467, 228, 111, 54, 26], 7796),
        (1000, 150, [1000, 488, 238, 116, 57, 27, 13, 6], 1945),
    ],
)
def test_the_imbalance_sampler_has_remops_numbers(n1: int, gamma: int, counts: list[int], total: int) -> None:
    assert imbalanced_counts(n1, gamma, len(counts)) == counts
    assert sum(counts) == total


@given(st.integers(1, 5000), st.floats(1, 300), st.integers(2, 20))
def test_imbalanced_counts_fall_from_n1_to_n1_over_gamma(n1: int, gamma: float, num_classes: int) -> None:
    counts = imbalanced_counts(n1, gamma, num_classes)
    assert len(counts) == num_classes
    assert counts[0] == n1
    assert counts == sorted(counts, reverse=True)
    assert abs(counts[-1] - n1 / gamma) <= 1


@pytest.mark.parametrize(("n1", "gamma", "num_classes"), [(0, 50, 7), (10, 0.5, 7), (10, 50, 1)])
def test_imbalanced_counts_refuse_nonsense(n1: int, gamma: float, num_classes: int) -> None:
    with pytest.raises(ValueError, match="num_classes >= 2"):
        imbalanced_counts(n1, gamma, num_classes)


def test_ranks_follow_the_class_sizes_and_ties_the_class_order() -> None:
    ranked = ("happiness", "neutral", "sadness", "surprise", "disgust", "anger", "fear")
    counts = LabelSplit("imbalance", 500, 150).counts(made_of(RAFDB_TRAIN))
    by_name = dict(zip(RAFDB_TRAIN, counts, strict=True))
    assert [by_name[name] for name in ranked] == [500, 216, 94, 40, 17, 7, 3]
    tied = LabelSplit("imbalance", 8, 4).counts(made_of({"a": 9, "b": 30, "c": 9}))
    assert tied == [4, 8, 2]


def test_leaf_takes_the_floor_of_equal_shares() -> None:
    for asked, seven, eight in ((100, 98, 96), (200, 196, 200), (400, 399, 400), (500, 497, 496), (1000, 994, 1000)):
        assert (sum(even_counts(asked, 7)), sum(even_counts(asked, 8))) == (seven, eight)
    assert (sum(even_counts(2000, 7)), sum(even_counts(2000, 8))) == (1995, 2000)
    with pytest.raises(ValueError, match="fewer than 8 classes"):
        even_counts(7, 8)


def test_adacm_gives_fear_fewer() -> None:
    for total, fear, other in ((100, 10, 15), (400, 40, 60), (1000, 100, 150), (2000, 200, 300), (4000, 250, 625)):
        counts = fear_counts(total, RAFDB)
        assert sum(counts) == total
        assert [counts[1], *{c for i, c in enumerate(counts) if i != 1}] == [fear, other]
    script = LabelSplit("lion_script", 2000).counts(made_of(RAFDB_TRAIN))
    assert (sum(script), script[1], script[0]) == (2000, 182, 303)
    with pytest.raises(ValueError, match="100, 400, 1000, 2000, 4000"):
        fear_counts(300, RAFDB)


def test_ssfer_takes_percent_of_every_class() -> None:
    sizes = list(RAFDB_TRAIN.values())
    assert [sum(percent_counts(p, sizes)) for p in (5, 10, 25)] == [614, 1227, 3068]
    assert percent_counts(1, [3, 0, 1000]) == [1, 0, 10]
    with pytest.raises(ValueError, match="percent"):
        percent_counts(0, sizes)
    assert sum(LabelSplit("per_class", 25).counts(made_of(RAFDB_TRAIN))) == 175


def test_draws_are_nested_repeatable_and_never_touch_the_unlabeled() -> None:
    manifest = made_of(RAFDB_TRAIN, extra=50)
    few, many = (LabelSplit("leaf", n).draw(manifest, 4) for n in (100, 400))
    assert np.isin(few, many).all()
    assert (few == LabelSplit("leaf", 100).draw(manifest, 4)).all()
    assert (few != LabelSplit("leaf", 100).draw(manifest, 5)).any()
    assert (few == choose_labels(manifest, 14, 4)).all()
    assert np.bincount(manifest.label[many], minlength=7).tolist() == [57] * 7
    assert (np.diff(many) > 0).all()
    assert (LabelSplit("all").draw(manifest, 0) == manifest.labeled("train")).all()


def test_a_small_class_gives_all_it_has() -> None:
    manifest = made_of({"a": 100, "b": 3})
    split = LabelSplit("leaf", 40)
    assert split.counts(manifest) == [20, 20]
    assert np.bincount(manifest.label[split.draw(manifest, 0)]).tolist() == [20, 3]


def test_names_tell_splits_apart() -> None:
    splits = [LabelSplit("leaf", 96), LabelSplit("imbalance", 1000, 150), LabelSplit("percent", 2.5), LabelSplit("all")]
    assert [split.name for split in splits] == ["leaf-96", "imbalance-1000-150", "percent-2.5", "all"]


def test_vote_rules() -> None:
    def votes(**cast: int) -> np.ndarray:
        names = ("neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear", "contempt", "unknown", "NF")
        return np.array([cast.get(name, 0) for name in names], np.float64)

    for ten, most, more_than_half in (
        (votes(neutral=4, sadness=3, anger=3), 0, -1),
        (votes(neutral=5, sadness=3, anger=1, fear=1), 0, 0),  # 5 of the 8 that are left
        (votes(neutral=5, sadness=5), 0, -1),
        (votes(unknown=6, fear=4), -1, -1),
        (votes(NF=3, fear=3, disgust=4), 5, -1),
        (votes(fear=1), 6, -1),
        (votes(), -1, -1),
    ):
        assert (plurality(ten), majority(ten)) == (most, more_than_half)


FERPLUS_COUNTS = {  # the csv names three training images twice; here they count once
    "plurality": ([10308, 7528, 3562, 3514, 2466, 191, 652, 165], [1335, 899, 456, 412, 319, 34, 74, 24]),
    "majority": (None, [1182, 865, 415, 351, 287, 24, 62, 13]),
}


@pytest.mark.parametrize(("rule", "total"), [("plurality", 28_386), ("majority", 25_057)])
def test_ferplus_counts(ferplus_zip: Path, rule: str, total: int) -> None:
    manifest = read_dataset("ferplus", ferplus_zip, rule)  # type: ignore[arg-type]
    train, val = FERPLUS_COUNTS[rule]
    found = available_counts(manifest)
    assert sum(found) == total
    assert train is None or found == train
    assert np.bincount(manifest.label[manifest.labeled("val")], minlength=8).tolist() == val
    if rule == "majority":
        published = [8740, 7287, 3149, 3014, 2100, 119, 532, 119]
        assert sum(abs(a - b) for a, b in zip(found, published, strict=True)) == 3


def save(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


def test_rafdb_folders(tmp_path: Path) -> None:
    images, _ = patterns(4)
    for index, name in enumerate(("train_00001", "train_00002", "test_0001")):
        save(tmp_path / "basic" / "Image" / "aligned" / f"{name}_aligned.jpg", images[index])
    listed = tmp_path / "basic" / "EmoLabel" / "list_patition_label.txt"
    listed.parent.mkdir()
    listed.write_text("train_00001.jpg 5\ntrain_00002.jpg 1\ntest_0001.jpg 7\n")
    manifest = read_dataset("rafdb", tmp_path)
    assert manifest.classes == ("surprise", "fear", "disgust", "happiness", "sadness", "anger", "neutral")
    assert [manifest.classes[i] for i in manifest.label] == ["sadness", "surprise", "neutral"]
    assert (manifest.labeled("train").tolist(), manifest.labeled("test").tolist()) == ([0, 1], [2])
    write_cache(manifest, tmp_path / "cache", 24)
    assert PixelCache(tmp_path / "cache", 24).gather(np.array([2])).shape == (1, 24, 24, 3)
    listed.write_text("train_00001.jpg 5\ntrain_00002.jpg 8\n")
    with pytest.raises(InputError, match="line 2"):
        read_dataset("rafdb", tmp_path)
    listed.unlink()
    with pytest.raises(InputError, match="list_patition_label"):
        read_dataset("rafdb", tmp_path)


def test_affectnet_lists_cut_faces_out(tmp_path: Path) -> None:
    whole = np.zeros((40, 60, 3), np.uint8)
    whole[10:34, 20:44] = 255  # the face
    save(tmp_path / "Manually_Annotated_Images" / "1" / "a.png", whole)
    save(tmp_path / "Manually_Annotated_Images" / "1" / "b.png", whole)
    head = "subDirectory_filePath,face_x,face_y,face_width,face_height,facial_landmarks,expression,valence,arousal\n"
    (tmp_path / "training.csv").write_text(
        head + "1/a.png,20,10,24,24,,1,0,0\n1/b.png,NULL,NULL,NULL,NULL,,7,0,0\n1/a.png,20,10,24,24,,9,0,0\n"
    )
    (tmp_path / "validation.csv").write_text(head + "1/b.png,0,0,8,8,,0,0,0\n")
    eight, seven = read_dataset("affectnet8", tmp_path), read_dataset("affectnet7", tmp_path)
    assert ([eight.classes[i] for i in eight.label], len(seven.names)) == (["happiness", "contempt", "neutral"], 2)
    assert seven.classes == eight.classes[:7]
    assert (eight.labeled("train").tolist(), eight.labeled("val").tolist()) == ([0, 1], [2])
    write_cache(eight, tmp_path / "cache", 24)
    first, second, third = PixelCache(tmp_path / "cache", 24).gather(np.arange(3))
    assert (int(first.min()), int(third.max())) == (255, 0)
    assert 0 < float((second > 127).mean()) < 0.5
    (tmp_path / "validation.csv").write_text(head + "1/b.png,0,0,8,8,,happy,0,0\n")
    with pytest.raises(InputError, match="line 2"):
        read_dataset("affectnet8", tmp_path)


def test_folders_of_splits_and_classes(tmp_path: Path) -> None:
    images, _ = patterns(3)
    save(tmp_path / "train" / "happy" / "1.png", images[0])
    save(tmp_path / "train" / "angry" / "2.png", images[1])
    save(tmp_path / "val" / "happy" / "3.png", images[2])
    manifest = read_dataset("folder", tmp_path)
    assert (manifest.classes, manifest.label.tolist(), manifest.split.tolist()) == (
        ("angry", "happy"),
        [0, 1, 1],
        [0, 0, 1],
    )
    with pytest.raises(InputError, match="no data at"):
        read_dataset("folder", tmp_path / "nowhere")
    with pytest.raises(InputError, match="two are needed"):
        read_dataset("folder", tmp_path / "train")


def test_copies_are_found_exactly_and_nearly(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (40, 48, 48, 3), dtype=np.uint8)
    near = np.clip(images[3].astype(int) + rng.integers(-2, 3, images[3].shape), 0, 255).astype(np.uint8)
    everything = np.concatenate([images, images[7:8], near[None]])
    write_shards(tmp_path, everything)
    copies = find_copies(PixelCache(tmp_path, 48), np.arange(30, 42), np.arange(30))
    assert (copies.exact.tolist(), copies.near.tolist()) == ([40], [41])
    distance = nearest_distance(gradient_hash(everything), gradient_hash(everything[:0]))
    assert (distance > NEAR_BITS).all()
    hashes = gradient_hash(images)
    brute = [
        min(sum(bin(int(a) ^ int(b)).count("1") for a, b in zip(x, y, strict=True)) for y in hashes[:5]) for x in hashes
    ]
    assert nearest_distance(hashes, hashes[:5]).tolist() == brute

"""Feature shards, and neighbours and prototypes found with FAISS."""

from pathlib import Path

import numpy as np
import pytest

from annotator.errors import NotFoundError, WorkspaceError
from annotator.features import EncoderInfo, FeatureShards, unit
from annotator.loop.scores import Contents, publish
from annotator.records import Answer
from annotator.retrieval import FaceRetrieval, LabeledIndex
from annotator.settings import Workspace
from annotator.store import LabelStore
from tests.conftest import new_image


def make_shards(folder: Path, dim: int = 4) -> FeatureShards:
    return FeatureShards.create(folder, EncoderInfo(folder.name, "hog", dim, 48))


def test_shards_grow_without_gaps_and_read_in_any_order(tmp_path: Path) -> None:
    shards = make_shards(tmp_path / "hog-1")
    values = np.arange(40, dtype=np.float16).reshape(10, 4)
    shards.append(3, values[:4])
    reader = FeatureShards(tmp_path / "hog-1")
    shards.append(7, values[4:])
    assert (reader.first, reader.stop) == (3, 7)
    reader.reload()
    assert (reader.first, reader.stop) == (3, 13)
    np.testing.assert_array_equal(reader.read(np.array([12, 3, 7, 99])), [*values[[9, 0, 4]], np.zeros(4)])
    assert reader.has(np.array([2, 3, 12, 13])).tolist() == [False, True, True, False]
    with pytest.raises(ValueError, match="do not follow"):
        shards.append(14, values)
    with pytest.raises(ValueError, match="width"):
        shards.append(13, np.zeros((2, 5), dtype=np.float16))


def test_an_unfinished_shard_is_not_seen_and_a_wrong_one_is_named(tmp_path: Path) -> None:
    shards = make_shards(tmp_path / "hog-1")
    shards.append(0, np.zeros((2, 4), dtype=np.float16))
    (shards.folder / ".features-000000002-000000004.npy.77").write_bytes(b"half")
    assert FeatureShards(shards.folder).stop == 2
    np.save(shards.folder / "features-000000002-000000004.npy", np.zeros((1, 4), dtype=np.float16))
    with pytest.raises(WorkspaceError, match="000000002"):
        FeatureShards(shards.folder)
    with pytest.raises(NotFoundError, match="learner"):
        FeatureShards(tmp_path / "none")


def test_neighbours_agree_with_brute_force() -> None:
    draw = np.random.default_rng(0)
    features = draw.normal(size=(200, 16)).astype(np.float32)
    index = LabeledIndex(np.arange(200) * 3, [f"c{i % 5}" for i in range(200)], features)
    query = draw.normal(size=16).astype(np.float32)
    found = index.search(query, 7)
    cosine = unit(features) @ unit(query[None])[0]
    expected = np.argsort(-cosine)[:7]
    assert [n.row for n in found] == (expected * 3).tolist()
    assert [n.label for n in found] == [f"c{i % 5}" for i in expected]
    np.testing.assert_allclose([n.similarity for n in found], cosine[expected], atol=1e-5)
    assert next(n.row for n in index.search(features[4], 3, exclude=12)) != 12
    assert index.search(np.zeros(16, dtype=np.float32), 3) == []


def test_the_prototype_is_the_mean_direction_and_the_face_nearest_to_it() -> None:
    features = np.array([[2, 0], [1, 0.1], [1, -0.5], [0, 1], [0, 0]], dtype=np.float32)
    found = LabeledIndex(np.array([1, 2, 3, 4, 5]), ["a", "a", "a", "b", "b"], features).prototypes()
    mean = unit(unit(features[:3]).mean(axis=0, keepdims=True))[0]
    np.testing.assert_allclose(found["a"].direction, mean, atol=1e-6)
    assert found["a"].row == 1
    assert (found["b"].row, found["b"].count) == (4, 1)  # row 5 has no features


def test_retrieval_follows_labels_and_leaves_the_face_and_its_copies_out(
    workspace: Workspace, sqlite_store: LabelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("annotator.retrieval.REFRESH_SECONDS", 0.0)
    store = sqlite_store
    source = store.images.register_source("faces", "folder", "folder")
    images = store.images.add(
        source, [new_image(str(i), content_hash="same" if i in (0, 5) else f"h{i}") for i in range(6)], "none"
    )
    rows = [image.row for image in images]
    retrieval = FaceRetrieval(workspace, store)
    retrieval.refresh()
    assert retrieval.neighbours(rows[0]) == []
    shards = make_shards(workspace.folder("encoders") / "hog-1", dim=2)
    angles = np.array([0.0, 0.1, 0.5, 1.0, 1.5, 0.0])
    shards.append(rows[0], np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float16))
    empty = {
        "rows": np.zeros(0),
        "probs": np.zeros((0, 8)),
        "order": np.zeros(0),
        "arms": np.zeros(0),
        "candidates": np.zeros(0),
        "given": np.zeros(0),
        "blind": np.zeros(0),
        "seen": np.zeros(0),
    }
    contents = Contents(empty, "coverage", 0, "hog-1", "hog-1", {"classes": list(workspace.settings.taxonomy.slugs)})
    publish(store, workspace.folder("scores"), contents, keep=3)
    user = store.accounts.local_user()
    for i, slug in enumerate(("fear", "fear", "anger", "anger")):
        store.decisions.submit(user, Answer(f"client-{i:08d}", images[i].image_id, "label", (slug,)))
    retrieval.refresh()
    assert [n.row for n in retrieval.neighbours(rows[4], k=2)] == [rows[3], rows[2]]
    # the face on screen is a copy of row 0, whose label must not show
    found = retrieval.neighbours(rows[5], k=3, exclude_group=rows[0])
    assert [n.row for n in found] == [rows[1], rows[2], rows[3]]
    assert retrieval.prototypes()["fear"].count == 2
    store.decisions.submit(user, Answer("client-later", images[4].image_id, "label", ("fear",)))
    retrieval.refresh()
    assert retrieval.prototypes()["fear"].count == 3

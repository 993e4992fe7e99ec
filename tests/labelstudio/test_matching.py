"""A task's picture is found by id or by where it is; between two faces nothing is guessed."""

import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from urllib.parse import quote

import pytest

from annotator.labelstudio.linking.matching import ImageIndex, match
from annotator.records import NewImage
from annotator.settings import Workspace
from annotator.store import LabelStore
from annotator.taxonomy import FERPLUS
from tests.conftest import new_image


def at(path: str, **fields: Any) -> NewImage:
    return replace(new_image(path), path=path, **fields)


FACES = (
    "train/happy/1.png",
    "train/happy/2.png",
    "train/sad/1.png",
    "val/sad/only.png",
    "train/sad/name with spaces (3).jpg",
    "train/ünï/größe.png",
    "plus+and%20percent.png",
)
"""Rows 0 to 6, in the folder /data/faces."""


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabelStore]:
    """Make a workspace with a folder, a zip, a photo of two faces, copies, and what cannot be used."""
    with LabelStore.open(Workspace.create(tmp_path_factory.mktemp("matching") / "ws", FERPLUS)) as store:
        _fill(store)
        yield store


@pytest.fixture(scope="module")
def index(filled: LabelStore) -> ImageIndex:
    return ImageIndex(filled)


def _fill(store: LabelStore) -> None:
    images = store.images
    folder = images.register_source("/data/faces", "folder", "folder")
    images.add(folder, [at(path) for path in FACES], "none")
    archive = images.register_source("/data/more/ferplus.zip", "zip", "ferplus")
    images.add(archive, [at("FER2013Train/fer0001.png"), at("FER2013Train/fer0002.png")], "none")  # rows 7, 8
    photos = images.register_source("/data/photos", "folder", "manifest")
    crops = ("1,2,30@0", "50,2,30@0")
    images.add(photos, [at("group.jpg", crop=c, content_hash=f"face {c}") for c in crops], "none")  # rows 9, 10
    copies = [at("a/same.png", content_hash="same"), at("b/same.png", content_hash="same")]
    images.add(folder, copies, "none")  # rows 11, 12
    images.add(folder, [at("broken.png", state="quarantined", quarantine_reason="cannot be read")], "none")  # row 13
    old = images.add(folder, [at("changed.png", content_hash="before")], "none")  # row 14
    images.quarantine(old[0].row, "its picture changed")
    images.add(folder, [at("changed.png", content_hash="after")], "none")  # row 15


def local(path: str) -> str:
    return f"/data/local-files/?d={quote(path)}"


@pytest.mark.parametrize(
    ("reference", "row"),
    [
        ("/data/faces/train/happy/1.png", 0),
        ("train/sad/1.png", 2),
        ("sad/1.png", 2),
        (r"C:\exports\train\sad\1.png", 2),
        ("./train//happy/2.png", 1),
        ("2.png", 1),
        ("elsewhere/2.png", 1),
        (local("faces/train/happy/1.png"), 0),
        ("http://ls:8080/data/local-files?x=1&d=data/faces/train/sad/1.png", 2),
        ("https://host/bucket/train/sad/1.png?signature=a/b/1.png#x", 2),
        ("s3://bucket/sets/faces/train/happy/1.png", 0),
        ("https://host/name%20with%20spaces%20(3).jpg", 4),
        ("/data/upload/3/0a1b2c3d-only.png", 3),
        ("http://ls/data/upload/3/0a1b2c3d-only.png?x=1", 3),
        ("upload/12/0a1b2c3d-name_with_spaces_3.jpg", 4),
        ("/data/upload/3/0a1b2c3d-gr%C3%B6%C3%9Fe.png", 5),
        ("train/u\u0308ni\u0308/gro\u0308ße.png", 5),
        (local("faces/plus+and%20percent.png"), 6),
        ("/data/faces/plus+and%20percent.png", 6),
        ("/data/upload/1/0a1b2c3d-plusand20percent.png", 6),
        ("/data/more/ferplus.zip/FER2013Train/fer0001.png", 7),
        ("unpacked/FER2013Train/fer0002.png", 8),
        ("b/same.png", 12),
        ("same.png", 11),
        ("faces/changed.png", 15),
    ],
)
def test_a_picture_is_found_by_where_it_is(index: ImageIndex, reference: str, row: int) -> None:
    assert index.find({"image": reference}) == row
    assert index.find({"photo": reference, "image": "nothing here"}, "photo") == row


@pytest.mark.parametrize(
    ("reference", "reason"),
    [
        ("1.png", "2 images come into question for '1.png'"),
        ("other/1.png", "2 images come into question for 'other/1.png'"),
        ("/mnt/happy/1.png", "2 images are called '1.png', none is at '/mnt/happy/1.png'"),
        ("/data/upload/3/0a1b2c3d-1.png", "2 images come into question for '1.png'"),
        ("/data/upload/3/0a1b2c3d-absent.png", "no image is called 'absent.png'"),
        ("train/happy/9.png", "no image is called '9.png'"),
        ("train/happy", "no image is called 'happy'"),
        ("/data/photos/group.jpg", "shows 2 faces: only an image_id tells which"),
        ("faces/broken.png", "is quarantined: cannot be read"),
        ("data:image/png;base64,AAAA", "neither an image_id of this workspace nor a path or URL under 'image'"),
        ("", "neither an image_id"),
        ("//", "names no file"),
        ("http://[::1", "names no file"),
    ],
)
def test_what_cannot_be_told_says_why(index: ImageIndex, reference: str, reason: str) -> None:
    found = index.find({"image": reference})
    assert isinstance(found, str)
    assert reason in found


@pytest.mark.parametrize("data", [None, [], "x", {}, {"image": 3}, {"image": None, "image_id": 7}])
def test_a_task_without_a_picture(index: ImageIndex, data: object) -> None:
    assert isinstance(index.find(data), str)


def test_an_image_id_names_one_of_several_faces(index: ImageIndex, filled: LabelStore) -> None:
    records = filled.images.by_rows(range(16))
    for record in records:
        found = index.find({"image": "data:,", "image_id": record.image_id})
        assert found == record.row if record.state == "active" else "is quarantined" in str(found)
    assert index.find({"image": "/data/photos/group.jpg", "image_id": records[10].image_id}) == 10


def test_a_crop_names_one_of_several_faces(index: ImageIndex) -> None:
    data = {"image": "data:,", "image_id": "im of another workspace", "path": "/elsewhere/group.jpg"}
    assert index.find(data | {"crop": "50,2,30@0"}) == 10
    assert "no face is at '0,0,9@0'" in str(index.find(data | {"crop": "0,0,9@0"}))


def test_tasks_are_matched_in_one_go(sqlite_store: LabelStore) -> None:
    source = sqlite_store.images.register_source("/data/faces", "folder", "folder")
    sqlite_store.images.add(source, [at("a.png"), at("b.png")], "none")
    tasks = ({"id": i, "data": {"image": f"{name}.png"}} for i, name in enumerate("abc", 10))
    found = match(tasks, sqlite_store)
    assert found.rows == {10: 0, 11: 1}
    assert list(found.left_out) == [12]


def test_an_empty_workspace_knows_no_picture(sqlite_store: LabelStore) -> None:
    assert match([{"id": 1, "data": {"image": "a.png", "image_id": "im1"}}], sqlite_store).rows == {}


@pytest.mark.parametrize("seed", range(4))
def test_it_finds_what_a_look_at_every_path_finds(sqlite_store: LabelStore, seed: int) -> None:
    """The oracle: the path with the most last parts in common, when it is whole or no other has the name."""
    draw = random.Random(seed)
    paths = sorted({_drawn(draw) for _ in range(draw.randint(1, 12))})
    source = sqlite_store.images.register_source("/r", "folder", "folder")
    sqlite_store.images.add(source, [at(path) for path in paths], "none")
    index = ImageIndex(sqlite_store)
    found_some = 0
    for reference in {_drawn(draw) for _ in range(300)}:
        asked = reference.split("/")
        shared = [_shared(asked, ["r", *path.split("/")]) for path in paths]
        best = max(shared)
        longest = [row for row, count in enumerate(shared) if count == best]
        whole = best == len(asked) or any(len(paths[row].split("/")) <= best for row in longest)
        alone = sum(count > 0 for count in shared) == 1
        found = index.find({"image": reference})
        if best and len(longest) == 1 and (whole or alone):
            assert found == longest[0], reference
            found_some += 1
        else:
            assert isinstance(found, str), reference
    assert found_some


def _drawn(draw: random.Random) -> str:
    return "/".join(draw.choices(["a", "b", "c", "aa"], k=draw.randint(1, 4)))


def _shared(one: list[str], other: list[str]) -> int:
    count = 0
    while count < min(len(one), len(other)) and one[-1 - count] == other[-1 - count]:
        count += 1
    return count

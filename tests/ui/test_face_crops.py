"""Faces that were cut out of photos: cut again from the original for the page, small copies only where they must do."""

import io
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps

from annotator.face_pictures import LARGEST_SIDE, LOSSLESS_SIDE
from annotator.ingest.crops import parse_crop
from annotator.maintenance.erase import scrub
from annotator.records import ImageRecord
from annotator.settings import Workspace
from annotator.store import LabelStore
from tests.ingest.builders import write_csv
from tests.ingest.face_imports import active, imported, with_settings
from tests.ui.conftest import Running, running
from ui import crops

COPY = 48
OWNER = b"taken at home"


def smooth(seed: int, width: int, height: int) -> Image.Image:
    """Draw a picture that JPEG and resizing change little."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def photo_folder(root: Path) -> Path:
    """Make one large photo, on its side and with things to say about itself, with three faces; and a small PNG."""
    root.mkdir()
    exif = Image.Exif()
    exif[274] = 6  # turn a quarter clockwise to see it upright: 1200 x 1600
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    smooth(1, 1600, 1200).save(root / "a.jpg", quality=95, exif=exif, comment=OWNER, icc_profile=profile)
    smooth(2, 300, 300).save(root / "b.png")
    rows = [
        {"path": "a.jpg", "box": "100,100,900,900", "landmarks": ""},
        {"path": "a.jpg", "box": "500,1200,200,200", "landmarks": "540,1260,660,1300,600,1320,550,1370,650,1380"},
        {"path": "a.jpg", "box": "50,1300,150,150", "landmarks": ""},
        {"path": "b.png", "box": "60,60,80,80", "landmarks": "80,90,120,100,100,110,85,130,115,135"},
    ]
    write_csv(root / "manifest.csv", rows)
    return root


@pytest.fixture
def photos(sqlite_store: LabelStore, tmp_path: Path) -> Path:
    folder = photo_folder(tmp_path / "photos")
    imported(sqlite_store, folder, "given")
    return folder


@pytest.fixture
def served(photos: Path, workspace: Workspace, sqlite_store: LabelStore) -> Iterator[Running]:
    with running(workspace, sqlite_store) as server:
        yield server


@pytest.fixture
def client(served: Running) -> Iterator[httpx.Client]:
    with served.client() as opened:
        yield opened


def get(client: httpx.Client, record: ImageRecord, **options: object) -> httpx.Response:
    return client.get(f"/api/v1/images/{record.image_id}/file", **options)  # type: ignore[arg-type]


def picture(reply: httpx.Response) -> Image.Image:
    assert reply.status_code == 200, reply.text
    image = Image.open(io.BytesIO(reply.content))
    assert reply.headers["content-type"] == Image.MIME[str(image.format)]
    return image


def expected(folder: Path, record: ImageRecord) -> Image.Image:
    crop = parse_crop(record.crop)
    assert crop is not None
    with Image.open(folder / record.path) as image:
        return crop.cut(ImageOps.exif_transpose(image).convert("RGB"))


def difference(one: Image.Image, other: Image.Image) -> float:
    a, b = (np.asarray(image.convert("RGB"), dtype=float) for image in (one, other))
    return float(np.abs(a - b).mean())


def is_stand_in(reply: httpx.Response) -> bool:
    """Tell whether the cached copy came, which a browser may keep for a while only."""
    is_copy = picture(reply).size == (COPY, COPY)
    assert is_copy == ("immutable" not in reply.headers["cache-control"]) == ("etag" not in reply.headers)
    assert "private" in reply.headers["cache-control"]
    return is_copy


def test_a_face_has_the_pixels_of_its_photo(photos: Path, served: Running, client: httpx.Client) -> None:
    records = active(served.store)
    assert len(records) == 4
    assert any("@0" not in r.crop for r in records), "a tilted face is among them"
    for record in records:
        reply = get(client, record)
        face, whole = picture(reply), expected(photos, record)
        assert not is_stand_in(reply)
        assert max(face.size) == min(LARGEST_SIDE, max(whole.size))
        assert difference(face, whole.resize(face.size, Image.Resampling.LANCZOS)) < 2
        if max(whole.size) <= LOSSLESS_SIDE:
            assert face.format == "PNG"
            assert difference(face, whole) == 0
    sizes = {max(expected(photos, r).size) for r in records}
    assert min(sizes) <= LOSSLESS_SIDE < LARGEST_SIDE < max(sizes), "every case is among them"


def test_a_face_is_cached_for_good_and_says_nothing_of_its_photo(served: Running, client: httpx.Client) -> None:
    for record in active(served.store):
        reply = get(client, record)
        assert "immutable" in reply.headers["cache-control"]
        again = get(client, record, headers={"If-None-Match": reply.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
        face = picture(reply)
        assert OWNER not in reply.content
        assert "comment" not in face.info
        assert not face.getexif()
        assert ("icc_profile" in face.info) == (record.path == "a.jpg"), "its colours stay what they are"


def test_the_copy_stands_in_while_the_photo_is_away(photos: Path, served: Running, client: httpx.Client) -> None:
    record = active(served.store)[0]
    (photos / "a.jpg").rename(photos / "away.jpg")
    assert is_stand_in(get(client, record))
    smooth(3, 1600, 1200).save(photos / "a.jpg", quality=95)
    assert is_stand_in(get(client, record)), "another photo under the name"
    (photos / "a.jpg").write_bytes((photos / "away.jpg").read_bytes()[:5000])
    assert is_stand_in(get(client, record)), "a broken photo"
    (photos / "a.jpg").unlink()
    (photos / "away.jpg").rename(photos.parent / "outside.jpg")
    (photos / "a.jpg").symlink_to(photos.parent / "outside.jpg")
    assert is_stand_in(get(client, record)), "a link out of the source"
    (photos / "a.jpg").unlink()
    (photos.parent / "outside.jpg").rename(photos / "a.jpg")
    assert not is_stand_in(get(client, record)), "back again"


def test_no_photo_is_decoded_beyond_the_limits(photos: Path, workspace: Workspace, sqlite_store: LabelStore) -> None:
    records = active(sqlite_store)
    narrow = with_settings(workspace, max_pixels=1_000_000)
    with running(narrow, sqlite_store) as server, server.client() as client:
        assert [is_stand_in(get(client, r)) for r in records] == [r.path == "a.jpg" for r in records]


def test_a_small_face_costs_no_photo(photos: Path, served: Running, client: httpx.Client) -> None:
    record = active(served.store)[0]
    (photos / "a.jpg").unlink()
    small = get(client, record, params={"small": True})
    assert picture(small).size == (COPY, COPY)
    assert "immutable" in small.headers["cache-control"]
    assert get(client, record, headers={"If-None-Match": small.headers["etag"]}).status_code == 200, "another picture"


def test_without_a_copy_a_small_face_is_cut(served: Running, client: httpx.Client) -> None:
    record = active(served.store)[0]
    for shard in (served.workspace.root / "cache").glob("*/pixels-*.npy"):
        shard.unlink()
    assert picture(get(client, record, params={"small": True})).size == (
        LARGEST_SIDE,
        LARGEST_SIDE,
    )


def test_an_erased_face_is_gone_and_the_others_of_its_photo_stay(
    photos: Path, served: Running, client: httpx.Client
) -> None:
    gone, *mates = [r for r in active(served.store) if r.path == "a.jpg"]
    etag = get(client, gone).headers["etag"]
    before = [get(client, mate).content for mate in mates]
    assert len(mates) == 2
    (photos / "a.jpg").rename(photos / "away.jpg")
    assert not is_stand_in(get(client, gone)), "it is in the server's memory"
    served.store.erasing.erase([gone.row], "asked to")
    scrub(served.workspace, served.store.erasing.tombstones())
    for options in ({}, {"params": {"small": True}}, {"headers": {"If-None-Match": etag}}):
        reply = get(client, gone, **options)
        assert reply.status_code == 404
        assert "erased" in reply.json()["detail"]
    assert [get(client, mate).content for mate in mates] == before
    (photos / "away.jpg").rename(photos / "a.jpg")
    assert get(client, gone).status_code == 404
    with running(served.workspace, served.store) as later, later.client() as anew:
        assert get(anew, gone).status_code == 404
        assert [get(anew, mate).content for mate in mates] == before, "cut from the photo again"


def test_who_has_not_signed_in_sees_no_face(served: Running) -> None:
    record = active(served.store)[0]
    with served.account("alice") as alice, served.client() as anonymous:
        assert get(alice, record).status_code == 200
        for options in ({}, {"params": {"small": True}}, {"headers": {"If-None-Match": f'"{record.image_id}"'}}):
            assert get(anonymous, record, **options).status_code == 401


def test_only_the_latest_faces_are_kept(
    photos: Path, served: Running, client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = [r for r in active(served.store) if r.path == "a.jpg"][:2]
    sizes = [len(get(client, r).content) for r in (first, second)]
    monkeypatch.setattr(crops, "_KEPT_BYTES", max(sizes))
    with running(served.workspace, served.store) as server, server.client() as anew:
        for record in (first, second):
            assert not is_stand_in(get(anew, record))
        (photos / "a.jpg").unlink()
        assert is_stand_in(get(anew, first)), "the older one had to go"
        assert not is_stand_in(get(anew, second))

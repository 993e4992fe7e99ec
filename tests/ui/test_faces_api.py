"""The pixels of a face: originals, archives, what is missing or disguised."""

import io
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from annotator.records import NewImage
from annotator.settings import Workspace
from annotator.store import LabelStore
from tests.conftest import new_image
from tests.ui.conftest import Running, fill, running


def png(value: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.full((48, 48, 3), value, dtype=np.uint8)).save(out, "PNG")
    return out.getvalue()


def add(store: LabelStore, root: Path, kind: str, *new: NewImage) -> list[str]:
    source = store.images.register_source(str(root), kind, "folder")  # type: ignore[arg-type]
    return [record.image_id for record in store.images.add(source, new, "none")]


def cache_shard(workspace: Workspace, rows: int, value: int) -> None:
    folder = workspace.folder("cache") / "48"
    folder.mkdir(exist_ok=True)
    np.save(folder / f"pixels-{0:09d}-{rows:09d}.npy", np.full((rows, 48, 48, 3), value, dtype=np.uint8))


def pixels(data: bytes) -> int:
    return int(np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))[0, 0, 0])


def test_a_file_is_served_as_it_is_and_cached_for_good(served: Running, tmp_path: Path) -> None:
    with served.client() as client:
        item = client.get("/api/v1/next").json()["items"][0]
        reply = client.get(item["image_url"])
        record = served.store.images.by_id(item["image_id"])
        assert reply.content == (tmp_path / "pictures" / record.path).read_bytes()
        assert reply.headers["content-type"] == "image/png"
        assert "immutable" in reply.headers["cache-control"]
        assert "private" in reply.headers["cache-control"]
        again = client.get(item["image_url"], headers={"If-None-Match": reply.headers["etag"]})
        assert again.status_code == 304
        assert again.content == b""


def test_members_of_an_archive(workspace: Workspace, sqlite_store: LabelStore, tmp_path: Path) -> None:
    path = tmp_path / "faces.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/1.png", png(10))
        archive.writestr("a/2.png", png(20))
    ids = add(sqlite_store, path, "zip", new_image("1", path="a/1.png"), new_image("2", path="a/2.png"))
    with running(workspace, sqlite_store) as server, server.client() as client:
        assert [pixels(client.get(f"/api/v1/images/{i}/file").content) for i in ids] == [10, 20]


def test_what_is_not_what_it_claims_comes_from_the_cache(
    workspace: Workspace, sqlite_store: LabelStore, tmp_path: Path
) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    (tmp_path / "secret.png").write_bytes(png(99))
    (folder / "page.png").write_text("<html><script>alert(1)</script></html>")
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    new = [
        new_image("gone"),
        new_image("page"),
        new_image("link"),
        new_image("above", path="../secret.png"),
        new_image("absolute", path=str(tmp_path / "secret.png")),
        new_image("folder", path="."),
    ]
    ids = add(sqlite_store, folder, "folder", *new)
    cache_shard(workspace, 10, 7)
    with running(workspace, sqlite_store) as server, server.client() as client:
        for image_id, image in zip(ids, new, strict=True):
            reply = client.get(f"/api/v1/images/{image_id}/file")
            assert reply.status_code == 200, image.path
            assert reply.headers["content-type"] == "image/png"
            assert pixels(reply.content) == 7, image.path


def test_nothing_to_show(workspace: Workspace, sqlite_store: LabelStore, tmp_path: Path) -> None:
    [gone, bad] = add(
        sqlite_store, tmp_path / "nowhere", "folder", new_image("gone"), new_image("bad", state="quarantined")
    )
    with running(workspace, sqlite_store) as server, server.client() as client:
        for image_id in (gone, bad, "im-unknown"):
            reply = client.get(f"/api/v1/images/{image_id}/file")
            assert reply.status_code == 404
            assert image_id in reply.json()["detail"]


def test_a_face_shows_ones_own_answers_only(served: Running) -> None:
    alice, bob = served.account("alice"), served.account("bob")
    item = alice.get("/api/v1/next").json()["items"][0]
    body = {"client_id": "a", "image_id": item["image_id"], "lease_id": item["lease_id"], "kind": "unusable"}
    assert alice.post("/api/v1/annotations", json=body).status_code == 201
    mine, theirs = (c.get(f"/api/v1/images/{item['image_id']}").json() for c in (alice, bob))
    assert [a["kind"] for a in mine["answers"]] == ["unusable"]
    assert theirs["answers"] == []
    assert alice.get("/api/v1/images/im-unknown").status_code == 404
    near = bob.get(f"/api/v1/images/{item['image_id']}/neighbours")
    assert near.json() == {"neighbours": [], "prototypes": []}


def test_faces_imported_while_serving_are_asked_for(served: Running, tmp_path: Path, wait_until) -> None:  # type: ignore[no-untyped-def]
    with served.client() as client:
        assert client.get("/api/v1/live").json()["queue"]["remaining"] == 30
        fill(served.store, tmp_path / "more", 5, "more")
        wait_until(lambda: client.get("/api/v1/live").json()["queue"]["remaining"] == 35)
        ids = {i["image_id"] for _ in range(2) for i in client.get("/api/v1/next?n=20").json()["items"]}
        assert len(ids) == 35


def test_the_status_has_the_keys_of_the_command(served: Running) -> None:
    with served.client() as client:
        status = client.get("/api/v1/status").json()
    told = {"images", "faces", "annotations", "labels", "snapshots", "methods", "serving", "encoder", "queue"}
    told |= {"learner", "labelstudio", "you"}
    assert set(status) == told
    assert [m["snapshot"] for m in status["methods"].values()] == [None]
    assert {"pool", "val", "test", "quarantined", "leak", "duplicate_groups"} <= set(status["images"])
    assert {"labeled", "partial", "disputed", "unlabeled"} <= set(status["labels"])
    assert {"mode", "model", "behind"} <= set(status["queue"])
    assert status["learner"] == {"state": "off", "progress": None}
    assert status["you"] == {"today": 0, "total": 0, "per_minute": 0}

"""Labeled faces that look alike, with real features behind them, over HTTP."""

import httpx
import numpy as np

from annotator.features import EncoderInfo, FeatureShards
from annotator.records import Answer
from tests.scores import write_generation
from tests.ui.conftest import Running


def learn(served: Running, *, blind: bool) -> list[int]:
    """Give every face a feature, label the first six, and order the others by a generation; return all rows."""
    rows: list[int] = served.store.images.table().rows.tolist()
    shards = FeatureShards.create(served.workspace.folder("encoders") / "test", EncoderInfo("test", "hog", 2, 48))
    angles = np.linspace(0, 1, len(rows))
    shards.append(rows[0], np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float16))
    user = served.store.accounts.local_user()
    for record in served.store.images.by_rows(rows[:6]):
        slug = "fear" if record.row % 2 else "anger"
        served.store.decisions.submit(user, Answer(f"c{record.row}", record.image_id, "label", (slug,)))
    arms = "random" if blind else "uncertain"
    write_generation(served.workspace, served.store, rows, rows[6:], arms=arms, blind=blind)
    return rows


def first_item(client: httpx.Client) -> dict[str, str]:
    item: dict[str, str] = client.get("/api/v1/next").json()["items"][0]
    return item


def test_the_nearest_come_first_and_each_class_has_its_prototype(served: Running, wait_until) -> None:  # type: ignore[no-untyped-def]
    rows = learn(served, blind=False)
    with served.client() as client:
        wait_until(lambda: client.get("/api/v1/live").json()["queue"]["mode"] == "fast")
        item = first_item(client)
        reply = client.get(f"/api/v1/images/{item['image_id']}/neighbours").json()
        nearest = [record.image_id for record in served.store.images.by_rows(rows[5::-1])]
        assert [near["image_id"] for near in reply["neighbours"]] == nearest
        similarities = [near["similarity"] for near in reply["neighbours"]]
        assert similarities == sorted(similarities, reverse=True)
        assert sorted(p["classes"][0] for p in reply["prototypes"]) == ["anger", "fear"]
        assert client.get(reply["neighbours"][0]["image_url"]).status_code == 200
        shown = reply["neighbours"] + reply["prototypes"]
        assert all("small=true" in near["image_url"] for near in shown), "no photo is decoded for them"
        labeled = served.store.images.by_rows(rows[:1])[0].image_id
        own = client.get(f"/api/v1/images/{labeled}/neighbours").json()
        assert labeled not in {near["image_id"] for near in own["neighbours"]}


def test_a_blind_face_has_no_neighbours(served: Running, wait_until) -> None:  # type: ignore[no-untyped-def]
    learn(served, blind=True)
    with served.client() as client:
        wait_until(lambda: client.get("/api/v1/live").json()["queue"]["mode"] == "fast")
        item = first_item(client)
        assert item["blind"]
        url = f"/api/v1/images/{item['image_id']}/neighbours"
        assert client.get(url).json() == {"neighbours": [], "prototypes": []}
        body = {"client_id": "a", "image_id": item["image_id"], "lease_id": item["lease_id"], "kind": "unusable"}
        assert client.post("/api/v1/annotations", json=body).status_code == 201
        assert client.get(url).json()["neighbours"]

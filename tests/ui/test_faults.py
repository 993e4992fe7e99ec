"""What a person sees when the disk is full or the store is overwhelmed: a clear 503, and nothing lost."""

import asyncio
import uuid
from concurrent.futures import ThreadPoolExecutor

import httpx

from tests.ui.conftest import Running


def test_a_full_disk_is_a_503_and_the_same_answer_goes_through_later(served: Running) -> None:
    note = "x" * 1_900
    with served.client() as client:
        item = client.get("/api/v1/next").json()["items"][0]
        with served.store.database.write() as connection:
            pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
            connection.exec_driver_sql(f"PRAGMA max_page_count={pages}")
        sent: list[dict[str, object]] = []
        refused: list[dict[str, object]] = []
        for _ in range(40):
            body = {"client_id": str(uuid.uuid4()), "image_id": item["image_id"], "kind": "flag", "note": note}
            sent.append(body)
            reply = client.post("/api/v1/annotations", json=body)
            if reply.status_code != 201:
                assert reply.status_code == 503, reply.text
                assert "full" in reply.json()["detail"]
                assert reply.headers["retry-after"] == "1"
                refused.append(body)
        assert refused
        assert client.get("/api/v1/live").status_code == 200
        with served.store.database.write() as connection:
            connection.exec_driver_sql("PRAGMA max_page_count=1000000")
        assert [client.post("/api/v1/annotations", json=body).status_code for body in refused] == [201] * len(refused)
    stored = [annotation.client_id for annotation in served.store.decisions.list()]
    assert sorted(stored) == sorted(str(body["client_id"]) for body in sent)


def test_a_burst_of_answers_is_stored_completely(served: Running) -> None:

    ids = [record.image_id for record in served.store.images.by_rows(served.store.images.table().rows.tolist())]

    async def burst() -> list[int]:
        limits = httpx.Limits(max_connections=40)
        async with httpx.AsyncClient(base_url=served.url, limits=limits, timeout=60) as client:
            bodies = [
                {"client_id": f"c{n}", "image_id": ids[n % len(ids)], "kind": "label", "classes": ["fear"]}
                for n in range(300)
            ]
            replies = await asyncio.gather(*(client.post("/api/v1/annotations", json=body) for body in bodies))
            return [reply.status_code for reply in replies]

    # A browser test of the same session may have left its loop running in this thread.
    with ThreadPoolExecutor(1) as thread:
        assert set(thread.submit(asyncio.run, burst()).result()) == {201}
    assert served.store.decisions.count() == 300

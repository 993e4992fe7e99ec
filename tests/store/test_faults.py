"""Full disks, other writers, killed processes: nothing is half written and nothing acknowledged is lost."""

import multiprocessing
import os
import signal
import sqlite3
import threading
import time
from contextlib import closing
from multiprocessing.connection import Connection

import pytest
from sqlalchemy import text

from annotator.errors import WorkspaceError
from annotator.records import Answer, Stored
from annotator.settings import Workspace
from annotator.store import LabelStore, health
from tests.conftest import new_image

FACES = 8


def faces(store: LabelStore) -> list[str]:
    source = store.images.register_source("/faces", "folder", "folder")
    return [r.image_id for r in store.images.add(source, [new_image(str(i)) for i in range(FACES)], "none")]


def limit_pages(store: LabelStore, limit: int | None) -> None:
    """Let the database grow by no more than it has: what a full disk looks like to SQLite."""
    with store.database.write() as connection:
        pages = connection.execute(text("PRAGMA page_count")).scalar_one()
        connection.execute(text(f"PRAGMA max_page_count = {pages if limit is None else limit}"))


def test_a_full_disk_stores_nothing_of_an_answer(sqlite_store: LabelStore) -> None:
    store = sqlite_store
    images, user = faces(store), store.accounts.local_user()
    limit_pages(store, None)
    note, acknowledged = "n" * 2000, []

    def answer_until_full() -> None:
        for i in range(200):
            answer = Answer(f"c{i}", images[i % FACES], "label", ("fear",), note=note)
            acknowledged.append(store.decisions.submit(user, answer).annotation)

    with pytest.raises(WorkspaceError, match=r"is full; nothing of this was stored: free some space"):
        answer_until_full()
    stored = len(acknowledged)
    assert store.decisions.list() == acknowledged
    assert store.last_seq() == stored
    group = [(user, Answer(f"g{i}", images[0], "label", ("anger",), note=note)) for i in range(9)]
    with pytest.raises(WorkspaceError, match="is full"):
        store.decisions.submit_many(group)
    assert store.decisions.count() == stored
    assert health.problems(store.database) == []
    assert store.decisions.differing() == []
    limit_pages(store, 1_000_000)
    assert store.decisions.submit(user, Answer(f"c{stored}", images[0], "label", ("fear",), note=note)).created


def test_a_full_disk_stores_nothing_of_an_import(sqlite_store: LabelStore) -> None:
    store = sqlite_store
    source = store.images.register_source("/faces", "folder", "folder")
    limit_pages(store, None)

    def add_until_full() -> None:
        for start in range(0, 5000, 100):
            batch = [new_image(f"{start + i}", given="fear") for i in range(100)]
            store.images.add(source, batch, "annotations")

    with pytest.raises(WorkspaceError, match="is full"):
        add_until_full()
    rows = store.images.table().rows
    assert len(rows) % 100 == 0
    assert store.decisions.count() == len(rows)
    assert health.problems(store.database) == []


def test_threads_answer_at_once(store: LabelStore) -> None:
    images = faces(store)
    people = [store.accounts.add(f"p{i}", "annotator", None) for i in range(4)]
    outcomes: list[Stored] = []

    def work(number: int) -> None:
        for i in range(12):
            answer = Answer(f"{number}-{i}", images[i % FACES], "label", (("fear", "anger")[number % 2],))
            outcomes.append(store.decisions.submit(people[number], answer))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(outcomes) == 48
    assert sorted(o.annotation.seq for o in outcomes) == list(range(1, 49))
    assert store.decisions.differing() == []
    assert {r.label.state for r in store.decisions.labels()} == {"disputed"}


def test_one_client_id_from_many_threads_is_one_answer(store: LabelStore) -> None:
    images, user = faces(store), store.accounts.local_user()
    outcomes: list[Stored] = []
    barrier = threading.Barrier(6)

    def work() -> None:
        barrier.wait()
        outcomes.append(store.decisions.submit(user, Answer("same", images[0], "label", ("fear",))))

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [o.created for o in outcomes].count(True) == 1
    assert len({o.annotation.id for o in outcomes}) == 1
    assert store.decisions.count() == 1


def test_readers_neither_block_nor_see_halves(store: LabelStore) -> None:
    images, user = faces(store), store.accounts.local_user()
    store.decisions.submit(user, Answer("a", images[0], "label", ("fear",)))
    with store.database.read() as reading:
        before = reading.execute(text("SELECT count(*) FROM annotations")).scalar()
        store.decisions.submit(user, Answer("b", images[1], "label", ("fear",)))
        assert reading.execute(text("SELECT count(*) FROM annotations")).scalar() == before
    with store.database.write() as writing:
        writing.execute(text("UPDATE labels SET locked = locked"))
        began = time.monotonic()
        assert store.last_seq() == 2
        assert len(store.decisions.label_view()[1]) == 2
        assert time.monotonic() - began < 2


def test_a_reader_cannot_write(sqlite_store: LabelStore) -> None:
    with pytest.raises(WorkspaceError, match="readonly"), sqlite_store.database.read() as connection:
        connection.execute(text("DELETE FROM meta"))


def test_a_foreign_lock_is_waited_for(sqlite_store: LabelStore) -> None:
    images, user = faces(sqlite_store), sqlite_store.accounts.local_user()
    with closing(sqlite3.connect(sqlite_store.database.path or "", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        threading.Timer(0.4, other.interrupt).start()
        done = threading.Thread(
            target=sqlite_store.decisions.submit, args=(user, Answer("a", images[0], "label", ("fear",)))
        )
        done.start()
        time.sleep(0.4)
        assert sqlite_store.decisions.count() == 0
        other.execute("ROLLBACK")
        done.join(20)
    assert sqlite_store.decisions.count() == 1


def _answer_until_killed(root: str, number: int, images: list[str], pipe: "Connection[str, str]") -> None:
    with LabelStore.open(Workspace.open(root)) as store:
        user = store.accounts.get(f"p{number}")
        for i in range(100_000):
            client_id = f"{number}-{os.getpid()}-{i}"
            store.decisions.submit(user, Answer(client_id, images[i % FACES], "label", ("fear",)))
            pipe.send(client_id)


def test_kill_9_loses_no_acknowledged_answer_and_keeps_none_twice(store: LabelStore) -> None:
    images = faces(store)
    context = multiprocessing.get_context("spawn")
    acknowledged: list[str] = []
    for number in range(2):
        store.accounts.add(f"p{number}", "annotator", None)
    for _ in range(2):
        running = []
        for number in range(2):
            receiving, sending = context.Pipe(duplex=False)
            args = (str(store.workspace.root), number, images, sending)
            process = context.Process(target=_answer_until_killed, args=args)
            process.start()
            sending.close()
            running.append((process, receiving))
        for process, receiving in running:
            acknowledged.append(receiving.recv())
            time.sleep(0.05)
            os.kill(process.pid or 0, signal.SIGKILL)
            process.join()
        for _, receiving in running:
            try:
                while True:
                    acknowledged.append(receiving.recv())
            except EOFError:
                receiving.close()
    stored = [a.client_id for a in store.decisions.list()]
    assert len(acknowledged) >= 4
    assert set(acknowledged) <= set(stored)
    assert len(stored) == len(set(stored))
    assert health.problems(store.database) == []
    assert store.decisions.differing() == []
    assert store.decisions.submit(store.accounts.local_user(), Answer("after", images[0], "skip")).created

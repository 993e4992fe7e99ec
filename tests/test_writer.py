"""Group commit: durable before acknowledged, bounded, drained at the end."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from datetime import UTC, datetime, timedelta

import pytest

from annotator.errors import NotFoundError, OverloadedError
from annotator.records import Answer, Lease, Stored, User
from annotator.settings import Workspace
from annotator.store import LabelStore
from annotator.writer import DecisionWriter
from tests.conftest import new_image


@pytest.fixture
def writer(store: LabelStore) -> Iterator[DecisionWriter]:
    made = DecisionWriter(store, capacity=500)
    yield made
    made.close()


def add_images(store: LabelStore, count: int) -> list[str]:
    source = store.images.register_source("/faces", "folder", "folder")
    return [r.image_id for r in store.images.add(source, [new_image(f"{n}") for n in range(count)], "none")]


def says(number: int, image_id: str, lease_id: str | None = None) -> Answer:
    return Answer(f"client {number}", image_id, "label", ("fear",), lease_id)


def test_answers_of_many_threads_share_commits(store: LabelStore, writer: DecisionWriter) -> None:
    user = store.accounts.local_user()
    ids = add_images(store, 100)
    told: list[int] = []
    writer.listeners.append(lambda stored: told.append(stored.annotation.id))
    futures: list[Future[Stored]] = [writer.submit(user, says(n, image)) for n, image in enumerate(ids)]
    assert writer.waiting == 100
    groups: list[int] = []
    submit_many = store.decisions.submit_many

    def counted(answers: list[tuple[User, Answer]]) -> list[object]:
        groups.append(len(answers))
        return submit_many(answers)  # type: ignore[return-value]

    store.decisions.submit_many = counted  # type: ignore[method-assign, assignment]
    writer.start()
    stored = [future.result(30).annotation for future in futures]
    assert [a.client_id for a in stored] == [f"client {n}" for n in range(100)]
    assert groups == [64, 36]
    assert told == [a.id for a in stored]
    assert store.decisions.count() == 100


def test_one_wrong_answer_leaves_its_group_alone(store: LabelStore, writer: DecisionWriter) -> None:
    user = store.accounts.local_user()
    [image] = add_images(store, 1)
    wrong = writer.submit(user, says(1, "im-nowhere"))
    right = writer.submit(user, says(2, image))
    again = writer.submit(user, says(2, image))
    writer.start()
    assert right.result(30).created
    assert not again.result(30).created
    with pytest.raises(NotFoundError, match="im-nowhere"):
        wrong.result(30)


def test_a_lease_is_there_before_the_answer_that_names_it(store: LabelStore, writer: DecisionWriter) -> None:
    user = store.accounts.local_user()
    [image] = add_images(store, 1)
    row = store.images.by_id(image).row
    lease = Lease("lease", row, user.id, datetime.now(UTC) + timedelta(minutes=1), "random", "m.1", "why", False)
    answered = writer.submit(user, says(1, image, "lease"))
    opened = writer.open_leases([lease])
    writer.start()
    opened.result(30)
    annotation = answered.result(30).annotation
    assert (annotation.late, annotation.model_version, annotation.arm) == (False, "m.1", "random")


def test_too_much_is_refused_and_nothing_of_it_stored(store: LabelStore) -> None:
    writer = DecisionWriter(store, capacity=2)
    user = store.accounts.local_user()
    ids = add_images(store, 3)
    kept = [writer.submit(user, says(n, ids[n])) for n in range(2)]
    with pytest.raises(OverloadedError, match="2 answers wait"):
        writer.submit(user, says(2, ids[2]))
    writer.start()
    assert all(future.result(30).created for future in kept)
    assert writer.submit(user, says(2, ids[2])).result(30).created
    writer.close()


def test_closing_finishes_what_waits_and_takes_no_more(store: LabelStore) -> None:
    writer = DecisionWriter(store)
    user = store.accounts.local_user()
    ids = add_images(store, 200)
    futures = [writer.submit(user, says(n, image)) for n, image in enumerate(ids)]
    writer.start()
    writer.close()
    assert all(future.done() for future in futures)
    assert store.decisions.count() == 200
    with pytest.raises(OverloadedError, match="stopping"):
        writer.submit(user, says(999, ids[0]))
    writer.close()


def test_a_listener_that_fails_costs_nobody_an_answer(store: LabelStore, writer: DecisionWriter) -> None:
    user = store.accounts.local_user()
    [image] = add_images(store, 1)

    def fails(stored: Stored) -> None:
        raise RuntimeError("a listener's own trouble")

    writer.listeners.append(fails)
    writer.start()
    assert writer.submit(user, says(1, image)).result(30).created


def test_a_full_disk_reaches_everyone_who_waits_and_the_writer_goes_on(
    workspace: Workspace, sqlite_store: LabelStore
) -> None:
    store = sqlite_store
    writer = DecisionWriter(store)
    user = store.accounts.local_user()
    ids = add_images(store, 40)
    with store.database.write() as connection:
        # The connection that writes may not grow the file any more: what a full disk looks like to SQLite.
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
        connection.exec_driver_sql(f"PRAGMA max_page_count={pages}")
    long = "x" * 2_000
    futures = [writer.submit(user, Answer(f"c{n}", image, "flag", (), note=long)) for n, image in enumerate(ids)]
    writer.start()
    for future in futures:
        with pytest.raises(Exception, match=r"full|space"):
            future.result(30)
    assert store.decisions.count() == 0
    with store.database.write() as connection:
        connection.exec_driver_sql("PRAGMA max_page_count=1000000")
    futures = [writer.submit(user, Answer(f"c{n}", image, "flag", (), note=long)) for n, image in enumerate(ids)]
    assert all(future.result(30).created for future in futures)
    writer.close()


def test_waiting_never_deadlocks_with_a_stop(store: LabelStore) -> None:
    writer = DecisionWriter(store, capacity=10)
    writer.start()
    user = store.accounts.local_user()
    ids = add_images(store, 50)
    outcomes: list[str] = []

    def work(start: int) -> None:
        for n in range(start, start + 10):
            try:
                writer.submit(user, says(n, ids[n])).result(30)
                outcomes.append("stored")
            except OverloadedError:
                outcomes.append("refused")

    threads = [threading.Thread(target=work, args=(start,)) for start in range(0, 50, 10)]
    for thread in threads:
        thread.start()
    time.sleep(0.02)
    writer.close()
    for thread in threads:
        thread.join(30)
    assert len(outcomes) == 50
    assert store.decisions.count() == outcomes.count("stored")

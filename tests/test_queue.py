"""What is handed out to whom: order, leases, reviews, skips, swaps."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import count

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from annotator.follow import QueueFollower
from annotator.queue import FaceQueue, Item
from annotator.records import Annotation, Answer, Role, User
from annotator.settings import Workspace
from annotator.store import LabelStore
from annotator.store.exchange_records import LinkedTask
from annotator.writer import DecisionWriter
from tests.conftest import new_image
from tests.scores import write_generation

LATER = timedelta(hours=1)


@dataclass
class Desk:
    """A queue with everything around it, and a clock that moves when told to."""

    workspace: Workspace
    store: LabelStore
    writer: DecisionWriter
    queue: FaceQueue
    follower: QueueFollower
    ahead: list[timedelta]
    rows: list[int]
    ids: Iterator[int] = field(default_factory=count)

    def person(self, name: str, role: Role = "annotator") -> User:
        user = self.store.accounts.add(name, role, "hash")
        self.queue.know_people(self.store.accounts.list())
        return user

    def take(self, user: User, n: int = 1, have: list[str] | None = None) -> list[Item]:
        return list(self.queue.next(user, n, have).items)

    def answer(self, user: User, item: Item, slug: str = "anger", kind: str = "label") -> Annotation:
        answer = Answer(
            f"c{next(self.ids)}",
            item.image.image_id,
            kind,  # type: ignore[arg-type]
            (slug,) if kind == "label" else (),
            item.lease.id,
        )
        return self.writer.submit(user, answer).result(30).annotation

    def undo(self, user: User, annotation: Annotation) -> Item | None:
        self.writer.undo(user, f"c{next(self.ids)}", annotation.id).result(30)
        return self.queue.take_back(user, annotation)

    def publish(self, order: list[int], **columns: object) -> None:
        """Publish a generation that asks for `order`, and have the queue take it over."""
        write_generation(self.workspace, self.store, self.rows, order, **columns)  # type: ignore[arg-type]
        self.follower.poll()

    def wait(self, seconds: float) -> None:
        self.ahead[0] += timedelta(seconds=seconds)


def open_desk(workspace: Workspace, store: LabelStore, faces: int = 12) -> Desk:
    source = store.images.register_source("/faces", "folder", "folder")
    if faces:
        store.images.add(source, [new_image(f"{n}") for n in range(faces)], "none")
    ahead = [timedelta()]
    writer = DecisionWriter(store)
    queue = FaceQueue(store, workspace, writer, lambda: datetime.now(UTC) + ahead[0])
    follower = QueueFollower(store, workspace, queue, writer)
    writer.start()
    follower.start()
    return Desk(workspace, store, writer, queue, follower, ahead, store.images.table().rows.tolist())


def close(desk: Desk) -> None:
    desk.follower.close()
    desk.writer.close()


@pytest.fixture
def desk(workspace: Workspace, store: LabelStore) -> Iterator[Desk]:
    opened = open_desk(workspace, store)
    yield opened
    close(opened)


def test_without_scores_the_queue_says_import_order(desk: Desk) -> None:
    alice = desk.person("alice")
    assert desk.queue.status().mode == "import order"
    assert desk.queue.status().model is None
    items = desk.take(alice, 12)
    assert [item.lease.row for item in items] == desk.rows
    assert all(item.lease.model_version is None and not item.lease.candidates for item in items)
    assert desk.take(alice) == []
    assert "with someone" in str(desk.queue.next(alice, 1).message)


def test_no_faces_at_all(workspace: Workspace, sqlite_store: LabelStore) -> None:
    desk = open_desk(workspace, sqlite_store, faces=0)
    handout = desk.queue.next(desk.person("alice"), 3)
    assert handout.items == ()
    assert "annotator import" in str(handout.message)
    close(desk)


def test_a_new_order_takes_over_as_a_whole(desk: Desk) -> None:
    alice, bob = desk.person("alice"), desk.person("bob")
    first = desk.take(alice, 2)
    desk.answer(alice, first[0])
    assert desk.queue.status().behind == 1
    desk.publish(desk.rows[::-1], probs=(0.7, 0.2), candidates=("fear", "surprise"))
    status = desk.queue.status()
    assert (status.mode, status.behind) == ("fast", 0)
    items = desk.take(bob, 12)
    assert [item.lease.row for item in items] == [r for r in desk.rows[::-1] if r not in {i.lease.row for i in first}]
    assert {item.lease.model_version for item in items} == {status.model}
    assert [c["class"] for c in items[0].lease.candidates] == ["surprise", "fear"]
    assert items[0].question == "Surprise or fear?"
    assert items[0].lease.reason
    desk.answer(bob, items[0])
    assert desk.queue.status().behind == 1


def test_faces_that_no_model_has_read_come_last(desk: Desk) -> None:
    alice = desk.person("alice")
    known = desk.rows[:10]
    write_generation(desk.workspace, desk.store, known, known[::-1], probs=(0.5, 0.5), candidates=("fear", "anger"))
    desk.follower.poll()
    items = desk.take(alice, 12)
    assert [item.lease.row for item in items] == known[::-1] + desk.rows[10:]
    assert items[-1].lease.model_version is None
    assert items[-1].lease.candidates == ()


def test_a_damaged_generation_leaves_the_last_good_one(desk: Desk) -> None:
    alice = desk.person("alice")
    desk.publish(desk.rows[::-1])
    version = desk.queue.status().model
    folder = write_generation(desk.workspace, desk.store, desk.rows, desk.rows)
    (folder / "arms.npy").write_bytes(b"nothing")
    desk.wait(0)
    threading.Event().wait(0.4)
    assert desk.queue.status().model == version
    assert desk.take(alice)[0].lease.row == desk.rows[-1]


def test_blind_faces_suggest_nothing(desk: Desk) -> None:
    alice = desk.person("alice")
    desk.publish(desk.rows, arms="random", blind=True, probs=(0.7, 0.2), candidates=("fear", "surprise"))
    [item] = desk.take(alice)
    assert item.lease.blind
    assert item.lease.candidates == ()
    assert item.question == "Which expression?"
    assert "fear" not in item.lease.reason.lower()
    assert desk.queue.is_blind(alice, item.lease.row)
    annotation = desk.answer(alice, item)
    assert annotation.blind
    assert annotation.suggestions == ()
    assert not desk.queue.is_blind(alice, item.lease.row)
    assert desk.store.images.table().reserved.sum() == 1


def test_a_review_goes_to_someone_else_and_keeps_the_first_answer_to_itself(desk: Desk) -> None:
    alice, bob, rob = desk.person("alice"), desk.person("bob"), desk.person("rob", "reviewer")
    [item] = desk.take(alice)
    desk.answer(alice, item, "anger")
    desk.publish(desk.rows[:1], arms="review", given="anger", candidates=("fear", "anger"), probs=(0.8, 0.1))
    assert desk.take(alice) == []
    [review] = desk.take(bob)
    assert review.lease.arm == "review"
    assert review.given is None
    assert "anger" not in review.lease.reason.lower()
    desk.wait(1_000)
    [ruling] = desk.take(rob)
    assert ruling.given == "anger"
    assert "anger" in ruling.question
    assert desk.answer(rob, ruling, "fear").adjudicates
    assert desk.take(bob) == []


def test_alone_one_reviews_ones_own(desk: Desk) -> None:
    local = desk.store.accounts.local_user()
    desk.queue.know_people(desk.store.accounts.list())
    [item] = desk.take(local)
    desk.answer(local, item, "anger")
    desk.publish(desk.rows[:1], arms="review", given="anger", candidates=("fear", "anger"), probs=(0.8, 0.1))
    [review] = desk.take(local)
    assert (review.lease.row, review.given) == (item.lease.row, "anger")


def test_an_imported_label_is_reviewed_by_anyone_and_shown(desk: Desk) -> None:
    alice = desk.person("alice")
    source = desk.store.images.register_source("/given", "folder", "folder")
    [record] = desk.store.images.add(source, [new_image("given", given="anger")], "annotations")
    desk.rows.append(record.row)
    desk.follower.poll()
    desk.publish([record.row], arms="review", given="anger", candidates=("fear", "anger"), probs=(0.8, 0.1))
    [review] = desk.take(alice)
    assert (review.lease.row, review.given) == (record.row, "anger")


def test_faces_imported_with_a_label_are_not_asked_unscored(desk: Desk) -> None:
    alice = desk.person("alice")
    source = desk.store.images.register_source("/given", "folder", "folder")
    desk.store.images.add(source, [new_image("given", given="anger"), new_image("open")], "annotations")
    threading.Event().wait(1.3)
    assert len(desk.take(alice, 20)) == 13


def test_leases_run_out_and_faces_come_back(desk: Desk) -> None:
    alice, bob = desk.person("alice"), desk.person("bob")
    held = desk.take(alice, 12)
    assert desk.take(bob) == []
    desk.wait(desk.workspace.settings.queue.lease_seconds - 1)
    renewed = desk.queue.renew(alice, held[0].lease.id)
    assert renewed.expires_at > held[0].lease.expires_at
    desk.wait(2)
    assert {i.lease.row for i in desk.take(bob, 12)} == {i.lease.row for i in held[1:]}


def test_whoever_is_away_loses_faces_only_when_nothing_else_is_left(desk: Desk) -> None:
    alice, bob = desk.person("alice"), desk.person("bob")
    held = desk.take(alice, 4)
    desk.wait(119)
    for item in held:
        desk.queue.renew(alice, item.lease.id)
    desk.wait(2)  # alice's page keeps renewing, but nobody has answered for longer than a lease
    others = desk.take(bob, 12)
    assert len(others) == 8
    taken = desk.take(bob, 3)
    assert {i.lease.row for i in taken} <= {i.lease.row for i in held}
    late = desk.answer(alice, next(i for i in held if i.lease.row == taken[0].lease.row))
    assert late.late
    assert desk.answer(bob, taken[0]).duplicate


def test_who_works_keeps_the_faces(desk: Desk) -> None:
    alice, bob = desk.person("alice"), desk.person("bob")
    held = desk.take(alice, 12)
    desk.wait(100)
    desk.answer(alice, held[0])
    for item in held[1:]:
        desk.queue.renew(alice, item.lease.id)
    desk.wait(100)
    assert desk.take(bob) == []


def test_lost_pages_do_not_pile_up_leases(desk: Desk) -> None:
    alice, bob = desk.person("alice"), desk.person("bob")
    limit = 5
    desk.queue._settings = desk.queue._settings.model_copy(update={"max_leases_per_user": limit})
    kept = desk.take(alice, 2)
    for _ in range(4):
        desk.take(alice, 3, [i.image.image_id for i in kept])
    held = set(desk.rows) - {i.lease.row for i in desk.take(bob, 12)}
    assert len(held) <= limit
    assert {i.lease.row for i in kept} <= held


def test_a_quarantined_face_leaves_the_queue(desk: Desk) -> None:
    alice = desk.person("alice")
    desk.store.images.quarantine(desk.rows[0], "broken after all")
    items = desk.take(alice, 3)
    assert [item.lease.row for item in items] == desk.rows[1:4]


def test_many_faces_that_became_unusable_leave_the_queue_together(desk: Desk, wait_for: Callable[..., None]) -> None:
    alice = desk.person("alice")
    for row in desk.rows[:10]:
        desk.store.images.quarantine(row, "broken after all")
    assert [item.lease.row for item in desk.take(alice)] == [desk.rows[10]]
    wait_for(lambda: desk.queue.status().remaining == 2)


def test_faces_that_are_asked_in_a_linked_tool_come_last_of_all(desk: Desk) -> None:
    alice = desk.person("alice")
    desk.queue.put_elsewhere(np.array(desk.rows[:5]))
    items = desk.take(alice, 12)
    assert [item.lease.row for item in items] == desk.rows[5:], "they are not handed out together with others"
    for item in items[1:]:
        desk.answer(alice, item)
    desk.answer(alice, items[0], kind="skip")
    put_off = desk.queue.next(alice, 3)
    assert [item.lease.row for item in put_off.items] == [items[0].lease.row]
    assert "put off" in str(put_off.message)
    last = desk.queue.next(alice, 2)
    assert [item.lease.row for item in last.items] == desk.rows[:2]
    assert "Label Studio" in str(last.message)
    desk.answer(alice, last.items[0], kind="skip")
    rest = desk.take(alice, 3)
    assert [item.lease.row for item in rest] == desk.rows[2:5]
    assert [item.lease.row for item in desk.take(alice)] == desk.rows[:1], "put off and asked there is the very last"


def test_the_follower_learns_what_is_asked_in_a_linked_tool(desk: Desk, wait_for: Callable[..., None]) -> None:
    exchange = desk.store.exchange
    link = exchange.add_link("http://studio", 1, "Faces", {})
    alice = desk.person("alice")
    exchange.put_tasks(link.id, [LinkedTask(7, desk.rows[0]), LinkedTask(8, desk.rows[1], "answered")])

    def first() -> int:
        [item] = desk.take(alice)
        desk.queue._release(item.lease)
        return item.lease.row

    wait_for(lambda: first() == desk.rows[1])
    exchange.set_task_state(link.id, [7], "withdrawn")
    wait_for(lambda: first() == desk.rows[0])
    exchange.set_task_state(link.id, [7], "open")
    wait_for(lambda: first() == desk.rows[1])
    exchange.close_link(link.id)
    wait_for(lambda: first() == desk.rows[0])


def test_a_copy_that_is_asked_in_a_linked_tool_keeps_its_face_back(desk: Desk) -> None:
    source = desk.store.images.register_source("/more", "folder", "folder")
    [copy] = desk.store.images.add(source, [new_image("copy", content_hash="hash-0")], "none")
    assert copy.group == desk.rows[0]
    desk.queue.put_elsewhere(np.array([copy.row, 10_000]))
    desk.follower._due_rows = 0
    desk.follower.poll()
    assert desk.take(desk.person("alice"))[0].lease.row == desk.rows[1]


def test_what_other_processes_write_is_followed(desk: Desk, wait_for: Callable[..., None]) -> None:
    alice, bob = desk.person("alice"), desk.person("bob")
    images = desk.store.images.by_rows(desk.rows[:2])
    stored = [
        desk.store.decisions.submit(bob, Answer(f"elsewhere {n}", image.image_id, "label", ("fear",)))
        for n, image in enumerate(images)
    ]
    wait_for(lambda: desk.queue.book.seq >= stored[-1].annotation.seq)
    [first] = desk.take(alice)
    assert first.lease.row == desk.rows[2]
    desk.store.decisions.undo(bob, "undone elsewhere", stored[0].annotation.id)
    wait_for(lambda: desk.queue.book.answered_seq[desk.rows[0]] == 0)
    assert desk.take(alice)[0].lease.row == desk.rows[0]


def test_a_restart_knows_everything_again(desk: Desk) -> None:
    alice, bob = desk.person("alice"), desk.person("bob")
    answered, skipped, held, undone = desk.take(alice, 4)
    desk.answer(alice, answered)
    desk.answer(alice, skipped, kind="skip")
    desk.undo(alice, desk.answer(alice, undone))
    close(desk)
    writer = DecisionWriter(desk.store)
    queue = FaceQueue(desk.store, desk.workspace, writer)
    follower = QueueFollower(desk.store, desk.workspace, queue, writer)
    writer.start()
    follower.start()
    hers = {i.lease.row for i in queue.next(alice, 12).items}
    assert hers.isdisjoint({i.lease.row for i in (answered, skipped, held, undone)})
    assert [i.lease.row for i in queue.next(bob, 12).items] == [skipped.lease.row]
    follower.close()
    writer.close()


def test_many_people_and_swaps_at_once_never_share_a_face(desk: Desk) -> None:
    people = [desk.person(f"p{n}") for n in range(6)]
    source = desk.store.images.register_source("/more", "folder", "folder")
    desk.store.images.add(source, [new_image(f"more-{n}") for n in range(150)], "none")
    desk.rows = desk.store.images.table().rows.tolist()
    desk.publish(desk.rows)
    given_out: list[int] = []
    stop = threading.Event()

    def swap() -> None:
        rng = np.random.default_rng(0)
        while not stop.wait(0.01):
            desk.publish(rng.permutation(desk.rows).tolist())

    def work(user: User) -> None:
        while items := desk.take(user, 2):
            for item in items:
                given_out.append(item.lease.row)
                assert not desk.answer(user, item).duplicate

    swapper = threading.Thread(target=swap)
    swapper.start()
    try:
        with ThreadPoolExecutor(6) as pool:
            list(pool.map(work, people))
    finally:
        stop.set()
        swapper.join()
    assert sorted(given_out) == desk.rows


STEPS = st.lists(
    st.tuples(st.integers(0, 2), st.sampled_from(["take", "take", "answer", "answer", "skip", "undo", "wait", "swap"])),
    max_size=40,
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
def test_whatever_happens_a_face_is_out_once_and_never_when_answered(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[int, str]]
) -> None:
    from annotator import taxonomy

    workspace = Workspace.create(tmp_path_factory.mktemp("any") / "ws", taxonomy.FERPLUS)
    with LabelStore.open(workspace) as store:
        desk = open_desk(workspace, store, faces=8)
        people = [desk.person(f"p{n}") for n in range(3)]
        held: list[list[Item]] = [[], [], []]
        said: list[list[Annotation]] = [[], [], []]
        answered: set[int] = set()
        for who, what in steps:
            user, mine = people[who], held[who]
            if what == "take":
                fresh = desk.take(user, 2)
                out = {item.lease.row for items in held for item in items}
                assert not {i.lease.row for i in fresh} & (out | answered)
                mine += fresh
            elif what in ("answer", "skip") and mine:
                item = mine.pop(0)
                said[who].append(desk.answer(user, item, kind="label" if what == "answer" else "skip"))
                answered |= {item.lease.row} if what == "answer" else set()
            elif what == "undo" and said[who]:
                undone = said[who].pop()
                answered.discard(undone.row)
                back = desk.undo(user, undone)
                others = {item.lease.row for items in held for item in items}
                assert (back is None) == (undone.row in others)
                mine += [back] if back is not None else []
            elif what == "wait":
                desk.wait(desk.workspace.settings.queue.lease_seconds + 1)
                held = [[], [], []]
            elif what == "swap":
                desk.publish(desk.rows[::-1])
        close(desk)


@pytest.fixture
def wait_for() -> Callable[[Callable[[], bool]], None]:
    def wait(condition: Callable[[], bool]) -> None:
        for _ in range(500):
            if condition():
                return
            threading.Event().wait(0.02)
        raise AssertionError("the condition did not come to hold")

    return wait

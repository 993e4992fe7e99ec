"""What people say on our page goes out to a real Label Studio, once, whatever the network does."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from annotator import auth
from annotator.errors import RefusedError
from annotator.labelstudio.answers import outbox
from annotator.labelstudio.answers.outgoing import KINDS, enqueue_outgoing, plan_outgoing
from annotator.labelstudio.answers.sync import sync_once
from annotator.settings import Workspace
from annotator.store import LabelStore
from annotator.store.exchange_records import LinkedTask, OutboxItem
from tests.labelstudio.conftest import People
from tests.labelstudio.pair import Pair, link_pair
from tests.labelstudio.proxy import Fault, Proxy, answers, hangs_after, loses_answer, spoils_answer
from tests.labelstudio.studio import Person, Studio


@pytest.fixture
def pair(workspace: Workspace, sqlite_store: LabelStore, studio: Studio, people: People, tmp_path: Path) -> Pair:
    return link_pair(workspace, sqlite_store, studio, tmp_path / "pictures", 6, ann=people.ann, ben=people.ben)


@pytest.fixture
def shaky(pair: Pair, proxy: Proxy) -> Iterator[Pair]:
    """The same pair, with the proxy between and a second of patience."""
    pair.server = pair.studio.server(url=proxy.url, timeout=1.0)
    with pair.server:
        yield pair


def _waiting(pair: Pair) -> list[OutboxItem]:
    return pair.store.exchange.due(pair.link.id, KINDS, datetime.max.replace(tzinfo=UTC), 100)


def _hurry(pair: Pair) -> None:
    """Let everything that waits be due."""
    for item in _waiting(pair):
        pair.store.exchange.retry_later(item.id, item.error or "", datetime.now(UTC) - timedelta(seconds=1))


def test_every_kind_of_answer_goes_out_as_its_persons(pair: Pair, people: People) -> None:
    pair.answer("ann", 0, "anger")
    pair.answer("ben", 0, "fear", "disgust", kind="candidates")
    pair.answer("ann", 1, "anger", "fear", kind="not")
    pair.answer("ann", 2, kind="unusable")
    pair.answer("ann", 3, kind="skip")
    news = pair.sync()
    assert (news.sent.annotate, news.sent.dead, news.pulled.stored) == (4, 0, 0)
    assert pair.there(0) == [("ann", "anger"), ("ben", "disgust+fear")]
    assert pair.there(1)[0][1].count("+") == 5
    assert pair.there(2) == [("ann", "unusable")]
    assert pair.there(3) == []
    (made,) = (a for a in pair.studio.annotations(pair.link.project_id) if a["task"] == pair.tasks[2])
    assert (made["completed_by"], made["lead_time"], made["was_cancelled"]) == (people.ann.id, 0.9, False)
    stored = pair.store.decisions.count()
    assert not pair.sync()
    assert pair.store.decisions.count() == stored
    assert pair.differences() == []


def test_a_correction_changes_and_an_undo_deletes(pair: Pair) -> None:
    first = pair.answer("ann", 0, "anger")
    pair.sync()
    (made,) = pair.studio.annotations(pair.link.project_id)
    second = pair.answer("ann", 0, "fear", supersedes=first)
    assert pair.sync().sent.edit == 1
    (changed,) = pair.studio.annotations(pair.link.project_id)
    assert (changed["id"], pair.there(0)) == (made["id"], [("ann", "fear")])
    pair.undo("ann", second)
    pair.undo("ann", first)
    assert pair.sync().sent.retract == 1
    assert pair.there(0) == []
    assert pair.differences() == []


def test_only_answers_since_the_asking_go_out(pair: Pair) -> None:
    pair.answer("ann", 0, "anger")
    row = pair.row(0)
    pair.store.exchange.put_tasks(pair.link.id, [LinkedTask(pair.tasks[0], row, since_seq=pair.store.last_seq())])
    assert pair.sync().sent.sent == 0
    pair.answer("ann", 0, "fear")
    assert pair.sync().sent.annotate == 1
    assert pair.there(0) == [("ann", "fear")]


def test_an_answer_that_came_before_its_task_was_noted_goes_out_with_the_next_full_sync(pair: Pair) -> None:
    (task,) = pair.store.exchange.tasks_by_id(pair.link.id, [pair.tasks[0]]).values()
    pair.store.exchange.put_tasks(pair.link.id, [LinkedTask(task.task_id, pair.row(5), state="withdrawn")])
    pair.answer("ann", 0, "anger")
    assert pair.sync().sent.sent == 0
    pair.store.exchange.put_tasks(pair.link.id, [task])
    assert pair.sync(full=True).sent.annotate == 1
    assert pair.there(0) == [("ann", "anger")]
    assert pair.differences() == []


def test_a_long_outbox_does_not_keep_the_pull_waiting(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "_BATCH", 2)
    for face in range(6):
        pair.answer("ann", face, "anger")
    assert pair.sync(seconds=0).sent.annotate == 2
    assert pair.sync().sent.annotate == 4
    assert pair.differences() == []


def test_people_without_an_account_there_are_put_aside_with_the_reason(pair: Pair, people: People) -> None:
    carl = pair.store.accounts.add("carl", "annotator", auth.hash_password("correct horse"))
    pair.answer("carl", 0, "anger")
    pair.answer("ann", 1, "anger")
    news = pair.sync()
    assert (news.sent.annotate, news.sent.dead) == (1, 1)
    (dead,) = pair.store.exchange.dead(pair.link.id)
    assert dead.error is not None
    assert "'carl' has no account in Label Studio" in dead.error
    assert not pair.sync()
    # Once the person has one, the answer goes out.
    users = {people.ann.email: "ann", people.ben.email: carl.name}
    pair.store.exchange.update_link(pair.link.id, settings={**pair.link.settings, "users": users})
    pair.store.exchange.revive(pair.link.id)
    assert pair.sync().sent.annotate == 1
    ((name, said),) = pair.there(0)
    assert said == "anger"
    assert name  # the account there, whatever the old settings call it


def test_a_dry_run_sends_and_writes_nothing(pair: Pair, proxy: Proxy) -> None:
    first = pair.answer("ann", 0, "anger")
    pair.sync()
    pair.answer("ann", 0, "fear", supersedes=first)
    pair.answer("ben", 1, "sadness")
    before = (pair.store.exchange.link(), pair.store.exchange.counts(pair.link.id))
    with pair.studio.server(url=proxy.url) as server:
        planned = plan_outgoing(pair.workspace, pair.store, server, pair.link)
    assert {(p.what, p.user, p.says) for p in planned} == {("edit", "ann", "fear"), ("annotate", "ben", "sadness")}
    assert before == (pair.store.exchange.link(), pair.store.exchange.counts(pair.link.id))
    assert pair.there(1) == []
    assert enqueue_outgoing(pair.linked) == 2
    assert len(plan_outgoing(pair.workspace, pair.store, pair.server, pair.link)) == 2
    assert not proxy.count(method="POST")


@pytest.mark.parametrize(
    "fault", [answers(503), answers(429), answers(500), loses_answer(), hangs_after(), spoils_answer(504)], ids=str
)
def test_a_fault_on_the_way_makes_neither_none_nor_two(shaky: Pair, proxy: Proxy, fault: Fault) -> None:
    shaky.answer("ann", 0, "anger")
    proxy.plan(fault, method="POST", path="annotations")
    news = shaky.sync()
    assert (news.sent.annotate, news.sent.later) == (0, 1)
    (item,) = _waiting(shaky)
    assert (item.attempts, item.not_before > datetime.now(UTC)) == (1, True)
    proxy.calm()
    _hurry(shaky)
    shaky.sync()
    assert shaky.there(0) == [("ann", "anger")]
    assert (shaky.differences(), _waiting(shaky)) == ([], [])


@pytest.mark.parametrize("meanwhile", ["corrected", "taken back", "edited there"])
def test_an_arrival_that_nobody_heard_of_is_known_by_the_number_of_our_answer(
    shaky: Pair, proxy: Proxy, people: People, meanwhile: str
) -> None:
    first = shaky.answer("ann", 0, "anger")
    proxy.plan(loses_answer(), method="POST", path="annotations")
    shaky.sync()
    (made,) = shaky.studio.annotations(shaky.link.project_id)
    if meanwhile == "corrected":
        shaky.answer("ann", 0, "fear", supersedes=first)
    elif meanwhile == "taken back":
        shaky.undo("ann", first)
    else:
        shaky.edit(people.ann, made["id"], "fear")
    _hurry(shaky)
    assert shaky.sync().pulled.new == 0
    assert shaky.there(0) == shaky.says(0) == ([] if meanwhile == "taken back" else [("ann", "fear")])
    assert shaky.store.exchange.conflicts(shaky.link.id) == []
    assert (shaky.differences(), _waiting(shaky)) == ([], [])


@pytest.mark.parametrize("fault", [loses_answer(), spoils_answer(502)], ids=str)
@pytest.mark.parametrize("what", ["edit", "retract"])
def test_a_change_whose_answer_was_lost_is_known_as_done(shaky: Pair, proxy: Proxy, fault: Fault, what: str) -> None:
    first = shaky.answer("ann", 0, "anger")
    shaky.sync()
    if what == "edit":
        shaky.answer("ann", 0, "fear", supersedes=first)
    else:
        shaky.undo("ann", first)
    proxy.plan(fault, method="PATCH" if what == "edit" else "DELETE", path="annotations")
    assert shaky.sync().sent.later == 1
    stored = shaky.store.decisions.count()
    _hurry(shaky)
    shaky.sync()
    assert shaky.there(0) == ([("ann", "fear")] if what == "edit" else [])
    assert (shaky.store.decisions.count(), shaky.differences(), _waiting(shaky)) == (stored, [], [])


@pytest.mark.parametrize("edited", [False, True])
def test_a_repeated_unique_id_means_that_it_is_there(shaky: Pair, proxy: Proxy, people: People, edited: bool) -> None:
    """The annotation arrived, nobody heard of it, and no pull comes between."""
    shaky.answer("ann", 0, "anger")
    proxy.plan(loses_answer(), method="POST", path="annotations")
    shaky.sync()
    (made,) = shaky.studio.annotations(shaky.link.project_id)
    if edited:
        shaky.edit(people.ann, made["id"], "fear")
    _hurry(shaky)
    report = outbox.deliver(shaky.linked)
    assert (report.annotate, report.moved, report.dead) == (not edited, edited, 0)
    assert proxy.count("POST", "annotations") == 2
    shaky.sync()
    assert shaky.there(0) == shaky.says(0) == [("ann", "fear" if edited else "anger")]
    assert (shaky.differences(), _waiting(shaky)) == ([], [])


def test_what_changed_there_between_pull_and_sending_is_not_written_over(
    pair: Pair, people: People, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = pair.answer("ann", 0, "anger")
    pair.sync()
    (made,) = pair.studio.annotations(pair.link.project_id)
    pair.answer("ann", 0, "fear", supersedes=first)
    once = iter([True])
    deliver = outbox.deliver

    def edited_in_between(linked: object, **more: float) -> outbox.SentReport:
        if next(once, False):
            pair.edit(people.ann, made["id"], "disgust")
        return deliver(linked, **more)  # type: ignore[arg-type]

    monkeypatch.setattr("annotator.labelstudio.answers.sync.deliver", edited_in_between)
    news = pair.sync()
    assert (news.sent.moved, news.pulled.conflict) == (1, 1)
    assert pair.says(0) == pair.there(0) == [("ann", "disgust"), ("ann", "fear")]
    assert pair.label(0).state == "disputed"
    assert (pair.differences(), _waiting(pair)) == ([], [])


def test_what_is_never_taken_is_put_aside_and_holds_nobody_up(
    shaky: Pair, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox, "MAX_ATTEMPTS", 2)
    for face in range(3):
        shaky.answer("ann", face, "anger")
    path = f"tasks/{shaky.tasks[1]}/annotations"
    proxy.plan(answers(500), method="POST", path=path, times=99)
    news = shaky.sync()
    assert (news.sent.annotate, news.sent.later) == (2, 1)
    _hurry(shaky)
    assert shaky.sync().sent.dead == 1
    (dead,) = shaky.store.exchange.dead(shaky.link.id)
    assert "500" in (dead.error or "")
    proxy.calm()
    shaky.store.exchange.revive(shaky.link.id)
    assert shaky.sync().sent.annotate == 1
    assert shaky.differences() == []


def test_a_server_that_is_down_puts_nothing_aside(shaky: Pair, proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "MAX_ATTEMPTS", 1)
    shaky.answer("ann", 0, "anger")
    enqueue_outgoing(shaky.linked)
    proxy.plan(answers(503), times=99)
    report = outbox.deliver(shaky.linked)
    assert (report.later, report.dead) == (1, 0)


def test_a_key_that_is_not_accepted_any_more_puts_nothing_aside(pair: Pair) -> None:
    pair.answer("ann", 0, "anger")
    stranger = Person(9, "x@example.com", "", "f" * 40)
    with pair.studio.server(stranger) as server, pytest.raises(RefusedError, match="401"):
        sync_once(pair.workspace, pair.store, server, pair.link)
    enqueue_outgoing(pair.linked)
    pair.server = pair.studio.server(stranger)
    with pair.server, pytest.raises(RefusedError, match="401"):
        outbox.deliver(pair.linked)
    assert [item.attempts for item in _waiting(pair)] == [0]


def test_a_task_that_was_deleted_there_takes_no_answer(pair: Pair) -> None:
    pair.sync()
    pair.answer("ann", 0, "anger")
    pair.server.delete_tasks(pair.link.project_id, [pair.tasks[0]])
    news = pair.sync()
    assert (news.sent.gone, news.sent.dead, _waiting(pair)) == (1, 0, [])
    assert pair.store.exchange.tasks_by_id(pair.link.id, [pair.tasks[0]])[pair.tasks[0]].state == "gone"
    assert not pair.sync()

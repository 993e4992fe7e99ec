"""Faces become tasks exactly once, with pictures and predictions, whatever fails in between."""

import contextlib
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import numpy as np
import pytest

from annotator.errors import LabelStudioError
from annotator.labelstudio.answers.sync import sync_once
from annotator.labelstudio.tasks import inflight, sending
from annotator.labelstudio.tasks import push as pushing
from annotator.labelstudio.tasks.due import PushMemory
from annotator.labelstudio.tasks.pictures import named
from annotator.labelstudio.tasks.push import plan_push, push
from annotator.labelstudio.tasks.push_report import PushReport
from annotator.labelstudio.tasks.versions import Versions
from annotator.labelstudio.tasks.wanted import UNREAD
from annotator.settings import Workspace
from annotator.store import LabelStore
from tests.labelstudio.killed import killable, moments
from tests.labelstudio.proxy import Fault, Proxy, answers, hangs_after, loses_answer, spoils_answer
from tests.labelstudio.pushing import Bench, lease, linked, make_link, result
from tests.labelstudio.studio import Studio

EVER = datetime.max.replace(tzinfo=UTC)


@pytest.fixture
def bench(studio: Studio, workspace: Workspace, sqlite_store: LabelStore, tmp_path: Path) -> Iterator[Bench]:
    """Link a workspace of 40 faces to a project."""
    with studio.server() as server:
        yield linked(workspace, sqlite_store, server, 40, tmp_path / "faces", top_k=10)


def test_the_top_of_the_queue_becomes_tasks(bench: Bench, studio: Studio) -> None:
    order = bench.rows[::-1]
    version = bench.publish(order, candidates=("fear", "surprise"))
    report = push(bench.workspace, bench.store, bench.server, bench.link)
    assert (report.pushed, report.version, report.given_up, report.later) == (10, version, 0, 0)
    bench.check(order[:10], version)
    task = bench.there()[0]
    assert task["data"]["reason"].startswith("The model cannot decide: surprise 60 %")
    said = {item["from_name"]: item["value"]["choices"] for item in task["predictions"][0]["result"]}
    assert said == {"expression": ["surprise"], "candidates": ["surprise", "fear"]}
    scores = [task["predictions"][0]["score"] for task in bench.there()]
    assert scores == sorted(scores)
    picture = httpx.get(studio.url + task["data"]["image"], headers={"Authorization": f"Token {studio.admin.token}"})
    assert picture.content == (bench.images / f"{order[0]}.png").read_bytes()
    again = push(bench.workspace, bench.store, bench.server, bench.link)
    assert (again.pushed, again.renewed) == (0, 0)
    bench.check(order[:10], version)


def run(bench: Bench, **more: object) -> PushReport:
    return push(bench.workspace, bench.store, bench.server, bench.link, **more)  # type: ignore[arg-type]


def wait_until(true: Callable[[], bool], seconds: float = 20.0) -> None:
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until
        time.sleep(0.005)


def uploads(bench: Bench) -> list[str]:
    """Return the image ids that the project's uploads bear."""
    return sorted(str(named(str(upload["file"]))) for upload in bench.server.uploads(bench.project_id))


def ids_of(bench: Bench, rows: list[int]) -> list[str]:
    return sorted(bench.image_id(row) for row in rows)


def test_tasks_that_were_there_before_get_predictions(
    studio: Studio, workspace: Workspace, sqlite_store: LabelStore, tmp_path: Path
) -> None:
    with studio.server() as server:
        bench = linked(workspace, sqlite_store, server, 4, tmp_path / "faces", top_k=2)
        data = [{"image": "x", "reason": "", "image_id": bench.image_id(row)} for row in bench.rows[:3]]
        server.import_tasks(bench.project_id, [{"data": item} for item in data])
        make_link(workspace, sqlite_store, server, project_id=bench.project_id)
        assert not PushMemory().due(sqlite_store, bench.link), "no model has read the faces"
        version = bench.publish(bench.rows[::-1])
        assert PushMemory().due(sqlite_store, bench.link)
        report = run(bench)
        assert (report.pushed, report.renewed) == (0, 3)
        bench.check(bench.rows[:3], version)


def test_without_scores_faces_go_out_in_import_order(bench: Bench) -> None:
    report = run(bench, limit=3)
    assert (report.pushed, report.version) == (3, UNREAD)
    bench.check(bench.rows[:3], UNREAD)
    assert bench.rows_there() == bench.rows[:3]
    assert run(bench).pushed == 7
    bench.check(bench.rows[:10], UNREAD)


def test_a_dry_run_changes_nothing(bench: Bench) -> None:
    version = bench.publish(bench.rows[::-1])
    plan = plan_push(bench.workspace, bench.store, bench.server, bench.link)
    assert (plan.to_push, plan.version_now, plan.version, plan.open_tasks, plan.to_renew) == (10, None, version, 0, 0)
    assert [item.row for item in plan.first] == bench.rows[::-1][:10]
    assert bench.there() == []
    assert bench.server.uploads(bench.project_id) == []
    assert bench.store.exchange.counts(bench.link.id)["outbox"]["waiting"] == 0
    run(bench, limit=4)
    bench.publish(bench.rows)
    plan = plan_push(bench.workspace, bench.store, bench.server, bench.link)
    assert (plan.to_push, plan.to_renew, plan.open_tasks) == (6, 4, 4)
    assert run(bench).renewed == 4


def test_it_fills_up_and_leaves_out_what_is_held_or_decided(bench: Bench) -> None:
    bench.publish(bench.rows)
    run(bench)
    alice = bench.store.accounts.add("alice", "annotator", "hash")
    bench.answer(alice, bench.rows[11])
    bench.store.leases.open([lease(alice, bench.rows[10])])
    bench.server.delete_tasks(bench.project_id, [int(task["id"]) for task in bench.there()[:2]])
    sync_once(bench.workspace, bench.store, bench.server, bench.link, full=True)
    assert run(bench).pushed == 2
    bench.check(bench.rows[:10]), "what somebody deleted there is still the first to ask"
    bench.store.exchange.update_link(bench.link.id, settings=bench.link.settings | {"top_k": 12})
    assert run(bench).pushed == 2
    bench.check([*bench.rows[:10], *bench.rows[12:14]])


def test_a_face_whose_answer_is_in_quarantine_is_not_asked_again(bench: Bench, studio: Studio) -> None:
    bench.publish(bench.rows)
    run(bench)
    studio.annotate(studio.admin, int(bench.there()[0]["id"]), *result("fear"))
    sync_once(bench.workspace, bench.store, bench.server, bench.link)
    assert len(bench.store.exchange.quarantined(bench.link.id, 10)) == 1
    assert run(bench).pushed == 1
    assert sorted(bench.rows_there()) == bench.rows[:11]


def test_pictures_as_local_files(
    studio: Studio, workspace: Workspace, sqlite_store: LabelStore, tmp_path: Path
) -> None:
    folder = studio.documents / tmp_path.name
    folder.mkdir()
    settings = {"pictures": "local", "local_folder": str(folder), "document_root": str(studio.documents)}
    with studio.server() as server:
        bench = linked(workspace, sqlite_store, server, 5, tmp_path / "faces", **settings)
        assert run(bench).pushed == 5
        bench.check(bench.rows)
        assert sorted(path.stem for path in folder.iterdir()) == ids_of(bench, bench.rows)
        head = {"Authorization": f"Token {studio.admin.token}"}
        shown = [httpx.get(studio.url + task["data"]["image"], headers=head).content for task in bench.there()]
        assert shown == [(bench.images / f"{number}.png").read_bytes() for number in range(5)]


def test_a_picture_that_is_gone_does_not_hold_up_the_others(bench: Bench) -> None:
    lost = bench.images / "2.png"
    kept = lost.read_bytes()
    lost.unlink()
    report = run(bench)
    assert (report.pushed, report.given_up) == (9, 1)
    [dead] = bench.store.exchange.dead(bench.link.id)
    assert dead.payload["row"] == bench.rows[2]
    assert "its file is gone" in str(dead.error)
    again = run(bench)
    assert (again.pushed, again.given_up) == (1, 0), "the next face takes its place"
    bench.check([row for row in bench.rows[:11] if row != bench.rows[2]])
    lost.write_bytes(kept)
    assert bench.store.exchange.revive(bench.link.id) == 1
    bench.server.delete_tasks(bench.project_id, [int(bench.there()[0]["id"])])
    sync_once(bench.workspace, bench.store, bench.server, bench.link, full=True)
    bench.store.exchange.update_link(bench.link.id, settings=bench.link.settings | {"top_k": 11})
    assert run(bench).pushed == 2
    assert bench.rows[2] in bench.rows_there()


def test_small_copies_in_place_of_originals_are_told(bench: Bench) -> None:
    shards = bench.workspace.folder("cache") / "48"
    shards.mkdir()
    np.save(shards / f"pixels-{0:09d}-{40:09d}.npy", np.full((40, 48, 48, 3), 7, dtype=np.uint8))
    for number in (1, 3):
        (bench.images / f"{number}.png").unlink()
    report = run(bench)
    assert report.pushed == 10
    assert [line for line in report.warnings if line.startswith("2 of the pictures are the small cached copies")]


class Picky(Proxy):
    """Refuses imports in which one word stands."""

    word = b""
    status = 400

    def forward(
        self, method: str, path: str, headers: dict[str, str], body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        if self.word and self.word in body and "return_task_ids" in path:
            return self.status, {"Content-Type": "application/json"}, b'{"detail": "no such picture, please"}'
        return super().forward(method, path, headers, body)


def test_a_refused_task_does_not_hold_up_the_others(bench: Bench, studio: Studio) -> None:
    with Picky(studio.url) as picky, studio.server(url=picky.url) as server:
        picky.word = bench.image_id(bench.rows[3]).encode()
        bench.server = server
        report = run(bench)
        assert (report.pushed, report.given_up, report.later) == (9, 1, 0)
        [dead] = bench.store.exchange.dead(bench.link.id)
        assert "no such picture, please" in str(dead.error)
        bench.check([row for row in bench.rows[:10] if row != bench.rows[3]])


def test_a_task_on_which_the_server_fails_is_tried_again_later(
    bench: Bench, studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sending, "PAUSES", (0.01,) * 5)
    monkeypatch.setattr(inflight, "TRIES", 3)
    with Picky(studio.url) as picky, studio.server(url=picky.url) as server:
        picky.word, picky.status = bench.image_id(bench.rows[3]).encode(), 500
        bench.server = server
        report = run(bench)
        assert (report.pushed, report.given_up, report.later) == (9, 0, 1)
        [waiting] = bench.store.exchange.due(bench.link.id, ["push"], EVER, 10)
        assert waiting.attempts == 1
        assert waiting.not_before > datetime.now(UTC)
        assert run(bench).pushed == 1, "the next face takes its place meanwhile"
        for _ in range(2, inflight.TRIES + 1):
            bench.store.exchange.retry_later(waiting.id, "now", datetime.now(UTC) - timedelta(seconds=1))
            bench.store.exchange.update_link(
                bench.link.id, settings=bench.link.settings | {"top_k": 1 + len(bench.there())}
            )
            run(bench)
            waiting = next(iter(bench.store.exchange.due(bench.link.id, ["push"], EVER, 10)), waiting)
        [dead] = bench.store.exchange.dead(bench.link.id)
        assert dead.payload["row"] == bench.rows[3]


@pytest.mark.parametrize(
    ("path", "fault"),
    [
        ("return_task_ids", loses_answer()),
        ("return_task_ids", hangs_after()),
        ("return_task_ids", spoils_answer(409)),
        ("commit_to_project", loses_answer()),
        ("commit_to_project", spoils_answer(502)),
    ],
    ids=lambda value: getattr(value, "kind", value),
)
def test_a_lost_answer_doubles_nothing(bench: Bench, studio: Studio, fault: Fault, path: str) -> None:
    bench.publish(bench.rows)
    with Proxy(studio.url) as proxy, studio.server(url=proxy.url, timeout=1.0) as server:
        proxy.plan(fault, method="POST", path=path)
        report = push(bench.workspace, bench.store, server, bench.link)
        assert proxy.count(path=path, struck=True) == 1
    assert (report.pushed, report.later, report.given_up) == (10, 0, 0)
    bench.check(bench.rows[:10])
    assert uploads(bench) == ids_of(bench, bench.rows[:10])


def test_what_arrives_late_is_found_and_taken_back(bench: Bench, studio: Studio) -> None:
    """A request that is carried out after it was looked for and sent again makes every face a task twice."""
    bench.publish(bench.rows)
    with Proxy(studio.url) as proxy, studio.server(url=proxy.url) as server:
        proxy.plan(loses_answer(), method="POST", path="return_task_ids")
        push(bench.workspace, bench.store, server, bench.link)
    first = list(bench.server.iter_tasks(bench.project_id, include=("id", "data", "meta")))
    doubled = [{"data": task["data"], "meta": task["meta"]} for task in first]
    late = bench.server.import_tasks(bench.project_id, doubled)
    [theirs] = bench.server.import_tasks(bench.project_id, [{"data": first[0]["data"]}])
    studio.annotate(studio.admin, late[4], *result("fear"))
    assert run(bench).pushed == 0
    kept = [int(task["id"]) for task in bench.there()]
    assert kept == [*(int(task["id"]) for task in first), late[4], theirs], "a task that is not ours is left alone"
    assert bench.store.exchange.tasks_by_id(bench.link.id, late).keys() == {late[4]}, "an answered copy is linked"


def test_a_storm_of_faults_loses_and_doubles_nothing(
    bench: Bench, studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pushing, "BATCH", 3)
    monkeypatch.setattr(sending, "PAUSES", (0.01,) * 8)
    bench.publish(bench.rows)
    with Proxy(studio.url) as proxy, studio.server(url=proxy.url, timeout=2.0) as server:
        proxy.storm(11, 0.3, answers(503), loses_answer(), spoils_answer(502), answers(409), spoils_answer(409))
        for _ in range(12):
            with contextlib.suppress(LabelStudioError):
                push(bench.workspace, bench.store, server, bench.link)
        assert proxy.count(struck=True) > 10
    for item in bench.store.exchange.due(bench.link.id, ["push"], EVER, 100):
        bench.store.exchange.retry_later(item.id, "now", datetime.now(UTC))
    report = run(bench)
    assert bench.store.exchange.dead(bench.link.id) == []
    assert len(bench.there()) == 10, report
    bench.check(bench.rows[:10])
    assert set(uploads(bench)) == set(ids_of(bench, bench.rows[:10]))


def test_killed_at_any_moment_the_next_push_completes_it(bench: Bench, studio: Studio) -> None:
    settings = bench.link.settings | {"top_k": 40}
    bench.store.exchange.update_link(bench.link.id, settings=settings)
    killed = 0
    with killable(
        "tests.labelstudio.killed", studio.admin.token, str(bench.workspace.root), studio.url, "5"
    ) as process:
        for number, seconds in enumerate(moments(3, 20, 0.7)):
            bench.publish(bench.rows if number % 2 else bench.rows[::-1])
            killed += process.push_and_kill(seconds)
    assert killed >= 8
    version = bench.publish(bench.rows)
    run(bench)
    bench.check(bench.rows, version)
    assert uploads(bench) == ids_of(bench, bench.rows)
    counts = bench.store.exchange.counts(bench.link.id)
    assert counts["outbox"] == {"waiting": 0, "dead": 0}
    assert list(Versions(bench.store.exchange, bench.server, bench.link).ours()) == [bench.shown_version()]
    assert set(bench.server.model_versions(bench.project_id)) == {version}


def test_a_server_that_is_killed_in_mid_push(
    own_studio: Studio, workspace: Workspace, sqlite_store: LabelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pushing, "BATCH", 20)
    with own_studio.server() as server:
        bench = linked(workspace, sqlite_store, server, 200, tmp_path / "faces", top_k=200)
        bench.publish(bench.rows)

        with ThreadPoolExecutor(1) as pool:
            report = pool.submit(run, bench)
            wait_until(lambda: 20 <= len(bench.store.exchange.open_rows()) < 150)
            own_studio.kill()
            own_studio.start()
            assert report.result(60).pushed == 200
        bench.check(bench.rows)
        assert uploads(bench) == ids_of(bench, bench.rows)


def test_more_tasks_than_label_studio_serves_well_are_warned_of(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(bench).warnings == ()
    monkeypatch.setattr(pushing, "MANY_TASKS", 9)
    [warning] = run(bench).warnings
    assert "10 tasks" in warning


def test_a_watch_pushes_only_when_there_is_a_reason(bench: Bench) -> None:
    memory = PushMemory()

    def due() -> bool:
        return memory.due(bench.store, bench.link)

    bench.publish(bench.rows)
    assert due()
    run(bench, memory=memory)
    assert not due()
    gone = [int(task["id"]) for task in bench.there()[:3]]
    bench.store.exchange.set_task_state(bench.link.id, gone[:2], "gone")
    assert not due(), "four fifths are still open"
    bench.store.exchange.set_task_state(bench.link.id, gone, "gone")
    assert due()
    run(bench, memory=memory)
    bench.publish(bench.rows)
    assert not due(), "a newer generation of the same encoder can wait"
    alice = bench.store.accounts.add("alice", "annotator", "hash")
    bench.answer(alice, bench.rows[5])
    assert due(), "an open task may be decided"
    run(bench, memory=memory)
    assert not due()
    bench.store.exchange.update_link(bench.link.id, settings=bench.link.settings | {"top_k": 100})
    assert due()
    run(bench, memory=memory)
    assert not due(), "the queue has no more faces"
    bench.answer(alice, bench.rows[-1])
    assert due()

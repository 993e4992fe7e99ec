"""Newer predictions reach the project as a whole, and its order is ours before, meanwhile and afterwards."""

import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest

from annotator.errors import LabelStudioError
from annotator.labelstudio.tasks import sending, versions
from annotator.labelstudio.tasks.push import push
from annotator.labelstudio.tasks.refresh import Renewal, refresh
from annotator.labelstudio.tasks.versions import Versions
from annotator.settings import Workspace
from annotator.store import LabelStore
from annotator.store.exchange_records import Shown
from tests.labelstudio.conftest import People
from tests.labelstudio.proxy import Proxy, answers, loses_answer
from tests.labelstudio.pushing import Bench, linked, result
from tests.labelstudio.studio import Person, Studio

FACES = 45


@pytest.fixture
def bench(studio: Studio, workspace: Workspace, sqlite_store: LabelStore, tmp_path: Path) -> Iterator[Bench]:
    """Link a workspace of 45 faces to a project and push all of them."""
    folder = studio.documents / tmp_path.name
    settings = {"pictures": "local", "local_folder": str(folder), "document_root": str(studio.documents)}
    with studio.server() as server:
        made = linked(workspace, sqlite_store, server, FACES, tmp_path / "faces", **settings)
        made.publish(made.rows, candidates=("fear", "surprise"))
        push(made.workspace, made.store, made.server, made.link)
        yield made


def renew(bench: Bench) -> Renewal:
    return refresh(bench.workspace, bench.store, bench.server, bench.link)


def shuffled(bench: Bench, seed: int) -> list[int]:
    return random.Random(seed).sample(bench.rows, len(bench.rows))


def task_rows(bench: Bench) -> dict[int, int]:
    """Return the row of every task."""
    return {int(task["id"]): row for task, row in zip(bench.there(), bench.rows_there(), strict=True)}


def answer_next(bench: Bench, studio: Studio, person: Person, rows: dict[int, int]) -> int:
    """Answer the task that Label Studio shows next; return its row."""
    task = studio.next_task(person, bench.project_id)
    studio.annotate(person, int(task["id"]), *result("fear"))
    return rows[int(task["id"])]


def left(order: list[int], answered: list[int]) -> list[int]:
    return [row for row in order if row not in answered]


def test_one_annotator_follows_our_order_before_and_after_a_new_generation(bench: Bench, studio: Studio) -> None:
    rows, done = task_rows(bench), list[int]()
    for _ in range(20):
        done.append(answer_next(bench, studio, studio.admin, rows))
    assert done == bench.rows[:20]
    order = shuffled(bench, 1)
    version = bench.publish(order, candidates=("fear", "surprise"))
    assert renew(bench) == Renewal(version, renewed=FACES)
    expected = left(order, done)[:20]
    assert [answer_next(bench, studio, studio.admin, rows) for _ in range(20)] == expected


def test_two_annotators_share_our_order_before_and_after_a_new_generation(
    bench: Bench, studio: Studio, people: People
) -> None:
    """Both have a task open at the same time: Label Studio locks it, and the other one gets the next of our order."""
    rows, done = task_rows(bench), list[int]()

    def both() -> list[int]:
        open_tasks = [(p, studio.next_task(p, bench.project_id)) for p in (people.ann, people.ben)]
        for person, task in open_tasks:
            studio.annotate(person, int(task["id"]), *result("fear"))
        return [rows[int(task["id"])] for _, task in open_tasks]

    for _ in range(10):
        done += both()
    assert done == bench.rows[:20]
    order = shuffled(bench, 2)
    bench.publish(order, candidates=("fear", "surprise"))
    renew(bench)
    assert [row for _ in range(10) for row in both()] == left(order, done)[:20]


def test_a_version_that_moves_first_would_leave_the_order_to_chance(bench: Bench, studio: Studio) -> None:
    """What a naive bump does, for comparison: the new version on some task, the project moved to it, then the rest."""
    rows = task_rows(bench)
    last = max(rows, key=lambda task_id: rows[task_id])
    bench.server.import_predictions(
        bench.project_id, [{"task": last, "model_version": "naive.2", "score": 0.5, "result": []}]
    )
    bench.server.update_project(bench.project_id, model_version="naive.2")
    served = [answer_next(bench, studio, studio.admin, rows) for _ in range(10)]
    assert served[0] == rows[last]
    assert served[1:] != bench.rows[:9]
    assert len([n for n, row in enumerate(served[1:]) if row == bench.rows[n]]) < 5


def test_the_order_is_ours_wherever_a_refresh_is_cut_off(
    bench: Bench, studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sending, "PAUSES", (0.001,))
    monkeypatch.setattr(versions, "QUIET", -timedelta(minutes=1))  # old predictions are deleted at once
    rows, done, old = task_rows(bench), list[int](), bench.rows
    order = shuffled(bench, 3)
    before, after = bench.link.model_version, bench.publish(order, candidates=("fear", "surprise"))
    cut = 0
    with Proxy(studio.url) as proxy, studio.server(url=proxy.url) as server:
        while True:
            proxy.plan(answers(503), times=1000, skip=cut)
            try:
                refresh(bench.workspace, bench.store, server, bench.link)
            except LabelStudioError:
                pass
            else:
                break
            finally:
                proxy.calm()
            cut += 1
            shown = bench.shown_version()
            assert shown == before or shown.startswith(after)
            served = answer_next(bench, studio, studio.admin, rows)
            assert served == left(old if shown == before else order, done)[0]
            done.append(served)
    assert 6 <= cut < 20
    assert answer_next(bench, studio, studio.admin, rows) == left(order, done)[0]
    renew(bench)
    bench.check(bench.rows)


def test_people_who_go_on_meanwhile_always_get_our_order(bench: Bench, studio: Studio, people: People) -> None:
    rows, done = task_rows(bench), list[int]()
    order = shuffled(bench, 4)
    bench.publish(order, candidates=("fear", "surprise"))
    with ThreadPoolExecutor(1) as pool:
        renewed = pool.submit(renew, bench)
        for _ in range(20):
            served = answer_next(bench, studio, people.ann, rows)
            assert served in (left(bench.rows, done)[0], left(order, done)[0])
            done.append(served)
        renewed.result(60)
    assert answer_next(bench, studio, people.ann, rows) == left(order, done)[0]


def test_nothing_is_done_where_everything_is_current(bench: Bench, studio: Studio) -> None:
    with Proxy(studio.url) as proxy, studio.server(url=proxy.url) as server:
        done = refresh(bench.workspace, bench.store, server, bench.link)
        assert done == Renewal("test.1")
        assert proxy.count() == proxy.count("GET") <= 2


def test_a_newer_generation_is_renewed_only_with_new_tasks_or_a_new_snapshot(bench: Bench) -> None:
    bench.publish(bench.rows[::-1])
    assert push(bench.workspace, bench.store, bench.server, bench.link).renewed == 0
    bench.server.delete_tasks(bench.project_id, [int(bench.there()[0]["id"])])
    gone = bench.store.exchange.tasks(bench.link.id, limit=1)[0]
    bench.store.exchange.set_task_state(bench.link.id, [gone.task_id], "gone")
    report = push(bench.workspace, bench.store, bench.server, bench.link)
    assert (report.pushed, report.renewed) == (1, FACES - 1)
    bench.check(bench.rows, "test.2")


def test_a_lost_answer_makes_no_second_prediction(bench: Bench, studio: Studio) -> None:
    bench.publish(bench.rows[::-1])
    with Proxy(studio.url) as proxy, studio.server(url=proxy.url) as server:
        proxy.plan(loses_answer(), method="POST", path="import/predictions")
        assert refresh(bench.workspace, bench.store, server, bench.link).renewed == FACES
        assert proxy.count("POST", "import/predictions") == 1
    bench.check(bench.rows, "test.2")


class Twice(Proxy):
    """Carries the first import of predictions out twice, as a gateway does that repeats what took long."""

    times = 1

    def forward(
        self, method: str, path: str, headers: dict[str, str], body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        if "import/predictions" in path and self.times:
            self.times -= 1
            super().forward(method, path, headers, body)
        return super().forward(method, path, headers, body)


def test_predictions_that_came_twice_are_made_again(bench: Bench, studio: Studio) -> None:
    bench.publish(bench.rows[::-1])
    with Twice(studio.url) as proxy, studio.server(url=proxy.url) as server:
        assert refresh(bench.workspace, bench.store, server, bench.link).renewed == FACES
    bench.check(bench.rows, "test.2")


def test_a_version_that_is_shown_already_is_made_again_under_a_name_of_its_own(bench: Bench) -> None:
    first = bench.store.exchange.tasks(bench.link.id, limit=1)[0]
    bench.store.exchange.confirm_predictions(bench.link.id, [(first.task_id, first.shown)], "lost")  # type: ignore[list-item]
    assert renew(bench) == Renewal("test.1~2", renewed=FACES)
    bench.check(bench.rows, "test.1~2")
    assert renew(bench) == Renewal("test.1~2")


def test_old_predictions_wait_until_nobody_answers(
    bench: Bench, studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = task_rows(bench)
    before, answered = bench.shown_version(), [answer_next(bench, studio, studio.admin, rows)]
    order = shuffled(bench, 5)
    version = bench.publish(order, candidates=("anger", "fear"))
    renew(bench)
    assert bench.shown_version() == version
    kept = bench.server.model_versions(bench.project_id)
    assert kept.keys() == {before, version}, "deleting them would let whoever submits wait"
    answered += [answer_next(bench, studio, studio.admin, rows) for _ in range(5)]
    assert answered[1:] == left(order, answered[:1])[:5]
    made = Versions(bench.store.exchange, bench.server, bench.link)
    made.sweep()
    assert bench.server.model_versions(bench.project_id) == kept
    monkeypatch.setattr(versions, "QUIET", -timedelta(minutes=1))  # as if all of it were long ago
    made.sweep()
    assert bench.server.model_versions(bench.project_id).keys() == {version}
    assert bench.shown_version() == version
    assert list(made.ours()) == [version]


def test_tasks_that_somebody_deleted_there_are_left_out(bench: Bench) -> None:
    tasks = [int(task["id"]) for task in bench.there()]
    bench.server.delete_tasks(bench.project_id, tasks[:3])
    bench.publish(bench.rows[::-1])
    assert renew(bench) == Renewal("test.2", renewed=FACES - 3, gone=3)
    bench.check(bench.rows[3:], "test.2")
    assert len(bench.store.exchange.tasks(bench.link.id, states=("gone",))) == 3


def test_predictions_that_do_not_fit_the_project_still_carry_the_order(bench: Bench, studio: Studio) -> None:
    config = bench.server.project(bench.project_id)["label_config"]
    changed = "\n".join(line for line in config.splitlines() if 'alias="surprise"' not in line)
    bench.server.update_project(bench.project_id, label_config=changed)
    order = shuffled(bench, 5)
    bench.publish(order, candidates=("fear", "surprise"))
    assert renew(bench) == Renewal("test.2", renewed=FACES, plain=FACES)
    rows = task_rows(bench)
    assert [answer_next(bench, studio, studio.admin, rows) for _ in range(5)] == order[:5]


def test_predictions_of_other_models_are_left_alone(bench: Bench) -> None:
    task = int(bench.there()[0]["id"])
    other = {"task": task, "model_version": "theirs", "score": 0.5, "result": []}
    bench.server.import_predictions(bench.project_id, [other])
    bench.publish(bench.rows[::-1])
    renew(bench)
    assert bench.server.model_versions(bench.project_id) == {"test.2": FACES, "theirs": 1}


def test_what_was_asked_blind_stays_blind_and_nothing_else_becomes_it(bench: Bench) -> None:
    bench.publish(bench.rows, arms="random", blind=True, candidates=("fear", "surprise"))
    renew(bench)
    assert all(task["predictions"][0]["result"] == [] for task in bench.there())
    shown = [task.shown for task in bench.store.exchange.tasks(bench.link.id)]
    assert [(s.blind, s.candidates) for s in shown if s] == [(False, ())] * FACES
    blind = bench.store.exchange.tasks(bench.link.id)[0]
    bench.store.exchange.confirm_predictions(
        bench.link.id, [(blind.task_id, Shown("random", "test.2", True))], "test.2"
    )
    bench.publish(bench.rows, candidates=("fear", "surprise"))
    renew(bench)
    said = {int(task["id"]): task["predictions"][0]["result"] for task in bench.there()}
    assert said.pop(blind.task_id) == []
    assert all(said.values())
    assert bench.store.exchange.tasks_by_id(bench.link.id, [blind.task_id])[blind.task_id].shown == Shown(
        "uncertain", "test.3", True, ()
    )


def test_the_least_confident_first_where_the_link_says_so(bench: Bench, studio: Studio) -> None:
    bench.store.exchange.update_link(bench.link.id, settings=bench.link.settings | {"order": "confidence"})
    folder = bench.workspace.root / "scores" / "2"
    bench.publish(bench.rows)
    probs = np.load(folder / "probs.npy")
    ranks = random.Random(6).sample(range(FACES), FACES)
    for index, rank in enumerate(ranks):
        probs[index] = 0.01
        probs[index, 0] = 0.2 + rank / 100
    np.save(folder / "probs.npy", probs)
    renew(bench)
    rows = task_rows(bench)
    expected = sorted(bench.rows, key=lambda row: ranks[bench.rows.index(row)])
    assert [answer_next(bench, studio, studio.admin, rows) for _ in range(5)] == expected[:5]

"""The watch: it follows both sides, costs next to nothing while nothing happens, and outlives a server that is away."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from annotator.errors import RefusedError
from annotator.labelstudio.api.server import Server
from annotator.labelstudio.report import sync_state
from annotator.labelstudio.wake import Wake
from annotator.labelstudio.watch import Watch
from annotator.locks import only_one
from annotator.settings import Workspace
from annotator.store import LabelStore
from tests.labelstudio.conftest import People
from tests.labelstudio.pair import Pair, link_pair
from tests.labelstudio.proxy import Proxy, answers
from tests.labelstudio.studio import Studio

FACES = 3


@pytest.fixture
def pair(
    workspace: Workspace, sqlite_store: LabelStore, studio: Studio, people: People, proxy: Proxy, tmp_path: Path
) -> Pair:
    """A linked workspace whose server is reached through the proxy."""
    made = link_pair(workspace, sqlite_store, studio, tmp_path / "faces", FACES, ann=people.ann)
    made.server = studio.server(url=proxy.url)
    return made


@contextmanager
def watching(pair: Pair, seconds: float = 0.1) -> Iterator[list[str]]:
    """Run a watch in a thread, as the command does, and yield what it tells."""
    told: list[str] = []
    stopping = threading.Event()
    watch = Watch(pair.workspace, pair.store, pair.server, cycle_seconds=seconds, told=told.append)

    def run() -> None:
        with only_one(pair.workspace.root / "labelstudio.lock", "sync"):
            watch.run(stopping)

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(run)
        try:
            yield told
        finally:
            stopping.set()
            running.result(30)


def wait_for(condition: Callable[[], bool], seconds: float = 20) -> None:
    give_up = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up, "the condition did not come to hold"
        time.sleep(0.02)


def test_answers_go_both_ways(pair: Pair, people: People) -> None:
    with watching(pair) as told:
        pair.annotate(people.ann, 0, "anger")
        pair.answer("ann", 1, "fear")
        wait_for(lambda: pair.says(0) == [("ann", "anger")] and pair.there(1) == [("ann", "fear")])
    assert pair.differences() == []
    assert any("1 new" in line for line in told)


def test_a_webhook_shortens_the_wait_and_is_nothing_more_than_a_hint(pair: Pair, people: People) -> None:
    with watching(pair, seconds=600):
        wait_for(lambda: sync_state(pair.workspace)["state"] == "watching")
        pair.annotate(people.ann, 0, "anger")
        Wake(pair.workspace).ring()
        wait_for(lambda: pair.says(0) == [("ann", "anger")])
        for _ in range(5):  # doubled and late words change nothing
            Wake(pair.workspace).ring()
    assert len(pair.standing(0)) == 1


def test_an_idle_cycle_costs_one_request(pair: Pair, proxy: Proxy) -> None:
    told: list[str] = []
    watch = Watch(pair.workspace, pair.store, pair.server, told=told.append)
    watch.cycle(pair.link)  # the first compares all ids
    link = pair.store.exchange.link()
    assert link is not None
    before = proxy.count()
    for _ in range(5):
        watch.cycle(link)
    assert proxy.count() - before == 5
    assert told == []


def test_a_server_that_is_away_is_waited_for(pair: Pair, people: People, proxy: Proxy) -> None:
    with watching(pair) as told:
        wait_for(lambda: sync_state(pair.workspace)["state"] == "watching")
        proxy.storm(1, 1.0, answers(503))
        wait_for(lambda: sync_state(pair.workspace)["state"] == "waiting")
        assert "503" in str(sync_state(pair.workspace)["message"])
        pair.annotate(people.ann, 0, "anger")
        proxy.calm()
        wait_for(lambda: pair.says(0) == [("ann", "anger")])
        wait_for(lambda: sync_state(pair.workspace)["state"] == "watching")
    assert any("next try in" in line for line in told)
    after = sync_state(pair.workspace)
    assert after["state"] == "off"
    assert after["synced_at"] is not None


def test_a_deletion_is_found_although_its_webhook_came_while_the_server_was_away(
    pair: Pair, proxy: Proxy, people: People
) -> None:
    watch = Watch(pair.workspace, pair.store, pair.server)
    watch.cycle(pair.link)
    pair.studio.server().delete_tasks(pair.link.project_id, [pair.tasks[0]])
    Wake(pair.workspace).ring(full=True)
    proxy.plan(answers(502))
    with pytest.raises(Exception, match="502"):
        watch.cycle(pair.link)
    watch.cycle(pair.link)
    task = pair.store.exchange.tasks_by_id(pair.link.id, [pair.tasks[0]])[pair.tasks[0]]
    assert task.state == "gone"


def test_a_key_that_is_not_accepted_ends_the_watch(pair: Pair) -> None:
    watch = Watch(pair.workspace, pair.store, Server(pair.studio.url, "0" * 40))
    with pytest.raises(RefusedError) as refused:
        watch.run(threading.Event())
    assert refused.value.status == 401
    assert "0" * 40 not in str(refused.value)


def test_the_watch_ends_when_the_project_is_unlinked(pair: Pair) -> None:
    with watching(pair) as told:
        wait_for(lambda: sync_state(pair.workspace)["state"] == "watching")
        pair.store.exchange.close_link(pair.link.id)
        wait_for(lambda: any("unlinked" in line for line in told))
    assert sync_state(pair.workspace)["state"] == "off"

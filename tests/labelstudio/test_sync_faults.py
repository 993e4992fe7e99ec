"""Both sides change while everything between them fails: at the end nothing is lost, and nothing is there twice.

`FAULT_KILLS=20 pytest tests/labelstudio/test_sync_faults.py -s` makes the long run and prints what it counted.
"""

import os
import random
import threading
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from annotator.errors import LabelStudioError
from annotator.labelstudio.answers import changes
from annotator.labelstudio.answers.outgoing import KINDS
from annotator.labelstudio.tasks.push import push
from annotator.labelstudio.wake import Wake
from annotator.settings import Workspace
from annotator.store import LabelStore
from tests.labelstudio.busy import Busy, make_busy
from tests.labelstudio.conftest import People
from tests.labelstudio.hooks import Receiver
from tests.labelstudio.killed import killable
from tests.labelstudio.pair import report_line
from tests.labelstudio.proxy import Proxy, answers, delays, hangs, hangs_after, loses_answer, spoils_answer
from tests.labelstudio.studio import Studio

KILLS = int(os.environ.get("FAULT_KILLS", "3"))
ACTS_PER_KILL = 12


def _hurry(busy: Busy) -> None:
    """Let everything that waits for another try be due."""
    exchange, ever = busy.bench.store.exchange, datetime.max.replace(tzinfo=UTC)
    for item in exchange.due(busy.bench.link.id, [*KINDS, "push"], ever, 10_000):
        exchange.retry_later(item.id, item.error or "", datetime.now(UTC) - timedelta(seconds=1))


def _check(busy: Busy, title: str) -> None:
    _hurry(busy)
    busy.settle()
    report_line(title, busy.told())
    assert busy.wrong() == []
    assert busy.bench.store.exchange.dead(busy.bench.link.id) == []
    assert busy.bench.store.exchange.conflicts(busy.bench.link.id) == []
    assert busy.bench.store.exchange.quarantined(busy.bench.link.id) == []


def test_our_process_is_killed_at_random_moments(
    workspace: Workspace, sqlite_store: LabelStore, studio: Studio, people: People, tmp_path: Path
) -> None:
    chance = random.Random(7)
    with studio.server() as server:
        busy = make_busy(
            workspace, sqlite_store, studio, server, tmp_path / "faces", 60, ann=people.ann, ben=people.ben
        )
        with killable("tests.labelstudio.killed_sync", studio.admin.token, str(workspace.root), studio.url) as process:
            for number in range(KILLS):
                worker = threading.Thread(target=busy.work, args=(ACTS_PER_KILL,))
                worker.start()
                busy.counts["kills"] += process.push_and_kill(chance.uniform(0.0, 2.5))
                worker.join()
                if number % 4 == 3:
                    busy.bench.publish(busy.bench.rows[:: 1 if number % 8 == 3 else -1])
        assert busy.counts["kills"] == KILLS
        _check(busy, "our process killed")


def test_the_server_is_killed_in_mid_pull_and_in_mid_push(
    workspace: Workspace,
    sqlite_store: LabelStore,
    own_studio: Studio,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(changes, "PAGE", 5)
    chance = random.Random(8)
    ann, ben = own_studio.join("ann"), own_studio.join("ben")
    with own_studio.server() as server:
        busy = make_busy(workspace, sqlite_store, own_studio, server, tmp_path / "faces", 60, ann=ann, ben=ben)
        for number in range(max(1, KILLS // 3)):
            busy.work(2 * ACTS_PER_KILL)
            busy.bench.publish(busy.bench.rows[:: -1 if number % 2 else 1])
            trouble = threading.Timer(chance.uniform(0.0, 0.6), own_studio.kill)
            trouble.start()
            with suppress(LabelStudioError):
                while not trouble.finished.is_set():
                    busy.pair.sync(full=True)
                    push(workspace, sqlite_store, server, busy.bench.link)
            busy.work(3)  # some of it meets a server that is down
            trouble.join()
            own_studio.start()
            busy.counts["kills"] += 1
            with suppress(LabelStudioError):
                busy.pair.sync()
        _check(busy, "server killed")


def test_every_kind_of_network_fault(
    workspace: Workspace, sqlite_store: LabelStore, studio: Studio, people: People, proxy: Proxy, tmp_path: Path
) -> None:
    faults = [answers(status) for status in (409, 429, 500, 502, 503)]
    faults += [loses_answer(), spoils_answer(504), spoils_answer(409), delays(0.1)]
    with studio.server() as server, studio.server(url=proxy.url, timeout=0.7) as shaky:
        busy = make_busy(
            workspace, sqlite_store, studio, server, tmp_path / "faces", 40, ann=people.ann, ben=people.ben
        )
        for number in range(3 + KILLS):
            busy.work(ACTS_PER_KILL)
            proxy.storm(number, 0.35, *faults)
            proxy.plan((hangs(), hangs_after())[number % 2], method="POST", path="annotations")
            busy.bench.server = shaky
            for full in (False, True):
                with suppress(LabelStudioError):
                    busy.pair.sync(full=full)
                _hurry(busy)
            busy.bench.server = server
            proxy.calm()
        busy.counts["requests"] = proxy.count()
        busy.counts["faults"] = proxy.count(struck=True)
        assert busy.counts["faults"] > 10
        busy.bench.store.exchange.revive(busy.bench.link.id)
        _check(busy, "network faults")


def test_webhooks_that_are_lost_doubled_and_reordered_change_nothing(
    workspace: Workspace, sqlite_store: LabelStore, studio: Studio, people: People, tmp_path: Path
) -> None:
    chance = random.Random(9)
    wake = Wake(workspace)
    with studio.server() as server, Receiver() as receiver:
        busy = make_busy(
            workspace, sqlite_store, studio, server, tmp_path / "faces", 30, ann=people.ann, ben=people.ben
        )
        server.create_webhook(busy.bench.project_id, f"{receiver.url}/hook", "secret")
        for _ in range(4):
            busy.work(ACTS_PER_KILL)
            posts = [post for post in receiver.posts if chance.random() > 0.3]
            posts += [post for post in posts if chance.random() < 0.3]
            chance.shuffle(posts)
            busy.counts["webhooks sent"] += len(receiver.posts)
            busy.counts["webhooks heard"] += len(posts)
            receiver.posts.clear()
            for post in posts:
                wake.ring(full="DELETED" in post.action)
                if wake.waiting() and chance.random() < 0.3:
                    busy.pair.sync(full=wake.take().full)
        _check(busy, "webhooks")

"""Accounts, tokens, leases, snapshots, generations, jobs."""

from datetime import UTC, datetime, timedelta

import pytest

from annotator.errors import InputError, NotFoundError
from annotator.records import Generation, Lease, Snapshot
from annotator.store import LabelStore
from annotator.store.leases import KEEP

NOW = datetime.now(UTC)


def test_accounts(store: LabelStore) -> None:
    assert not store.accounts.has_people()
    local = store.accounts.local_user()
    assert (local.name, local.role) == ("local", "admin")
    assert store.accounts.local_user() == local
    assert not store.accounts.has_people(), "the local user signs in nowhere"
    robot = store.accounts.add("robot", "annotator", "hash", simulated=True)
    assert not store.accounts.has_people(), "nor do simulated people count"
    nasty = store.accounts.add(" Zoë '); DROP TABLE users;-- <b> ", "reviewer", "hash-1")
    assert nasty.name == "Zoë '); DROP TABLE users;-- <b>"
    assert store.accounts.get("zoË '); drop table users;-- <B>") == nasty
    assert store.accounts.by_id(nasty.id) == nasty
    assert store.accounts.has_people()
    assert {u.name for u in store.accounts.list()} == {"local", "robot", nasty.name}
    assert (robot.simulated, nasty.simulated) == (True, False)
    assert store.accounts.password_hash(nasty.name) == "hash-1"
    store.accounts.set_password_hash(nasty.name, "hash-2")
    assert store.accounts.password_hash(nasty.name) == "hash-2"


@pytest.mark.parametrize("name", ["", "  ", "a\nb", "x" * 121, "a\0b", "\ud800"])
def test_bad_names_are_refused(sqlite_store: LabelStore, name: str) -> None:
    with pytest.raises(InputError, match="user name"):
        sqlite_store.accounts.add(name, "annotator", None)
    assert sqlite_store.accounts.list() == []


def test_names_are_taken_whatever_their_case_or_composition(store: LabelStore) -> None:
    store.accounts.add("Jose\u0301", "annotator", None)
    for name in ("JOSÉ", "josé", " José "):
        with pytest.raises(InputError, match="already"):
            store.accounts.add(name, "annotator", None)
    with pytest.raises(InputError, match="role 'boss'"):
        store.accounts.add("x", "boss", None)  # type: ignore[arg-type]
    with pytest.raises(NotFoundError, match="no user 'nobody'"):
        store.accounts.get("nobody")
    with pytest.raises(NotFoundError, match="no user 42"):
        store.accounts.by_id(42)


def test_tokens_end_with_time_account_and_password(store: LabelStore) -> None:
    ann = store.accounts.add("ann", "annotator", "h")
    store.accounts.add_token("old", ann.id, NOW - timedelta(seconds=1))
    for digest in ("a", "b"):
        store.accounts.add_token(digest, ann.id, NOW + timedelta(days=1))
    assert store.accounts.user_of_token("a") == ann
    assert store.accounts.user_of_token("old") is None
    assert store.accounts.user_of_token("none") is None
    assert store.accounts.user_of_token("a", now=NOW + timedelta(days=2)) is None
    store.accounts.drop_token("a")
    store.accounts.drop_token("a")
    assert store.accounts.user_of_token("a") is None
    assert store.accounts.set_disabled("ann", True).disabled
    assert store.accounts.user_of_token("b") is None
    store.accounts.set_disabled("ann", False)
    assert store.accounts.user_of_token("b") is None, "closing an account ended its sessions for good"
    store.accounts.add_token("c", ann.id, NOW + timedelta(days=1))
    store.accounts.set_password_hash("ann", "new")
    assert store.accounts.user_of_token("c") is None


def test_leases(store: LabelStore) -> None:
    ann, bob = (store.accounts.add(n, "annotator", None) for n in ("ann", "bob"))
    shown = ({"class": "fear", "prob": 0.5}, {"class": "anger", "prob": 0.25})
    first = Lease("a", 3, ann.id, NOW + timedelta(seconds=60), "review", "hog.1", "why <b>", True, shown)
    second = Lease("b", 4, bob.id, NOW + timedelta(seconds=30), "random", None, "chance", False)
    store.leases.open([first, second])
    store.leases.open([])
    assert store.leases.active(NOW) == [second, first]
    assert store.leases.get("a") == first
    assert store.leases.get("c") is None
    assert store.leases.active(NOW + timedelta(seconds=45)) == [first]
    assert not store.leases.renew("a", bob.id, NOW + timedelta(seconds=90), now=NOW), "another person's"
    assert store.leases.renew("b", bob.id, NOW + timedelta(seconds=90), now=NOW)
    assert store.leases.active(NOW + timedelta(seconds=80))[0].id == "b"
    store.leases.close("b")
    store.leases.close("unknown")
    assert not store.leases.renew("b", bob.id, NOW + timedelta(seconds=99), now=NOW), "closed"
    assert [x.id for x in store.leases.active(NOW)] == ["a"]
    expired = Lease("old", 5, ann.id, NOW - timedelta(seconds=1), "coverage", None, "", False)
    store.leases.open([expired])
    assert not store.leases.renew("old", ann.id, NOW + timedelta(seconds=99), now=NOW), "expired"
    assert store.leases.sweep(NOW + KEEP) == 1
    assert store.leases.get("old") is None
    assert store.leases.get("a") is not None


def snapshot(name: str, minutes: int, serving: bool = False) -> Snapshot:
    return Snapshot(name, "lion", minutes, {"val_overall": 0.5}, NOW + timedelta(minutes=minutes), serving)


def test_snapshots(store: LabelStore) -> None:
    assert store.learning.serving() is None
    store.learning.publish_snapshot(snapshot("s1", 1, serving=True))
    store.learning.publish_snapshot(snapshot("s2", 2))
    assert store.learning.serving() == snapshot("s1", 1, serving=True)
    store.learning.serve("s2")
    assert [(s.id, s.serving) for s in store.learning.snapshots()] == [("s1", False), ("s2", True)]
    with pytest.raises(InputError, match="'s1' is published already"):
        store.learning.publish_snapshot(snapshot("s1", 3))
    with pytest.raises(NotFoundError, match="'s9'"):
        store.learning.serve("s9")
    assert store.learning.serving() == snapshot("s2", 2, serving=True), "a failed switch leaves the old one serving"
    store.learning.serve(None)
    assert store.learning.serving() is None


def test_what_a_person_chose_to_serve_is_kept(store: LabelStore) -> None:
    assert store.learning.chosen() is None
    for name in ("leaf", "lion-0003"):
        store.learning.choose(name)
        assert store.learning.chosen() == name
    store.learning.choose(None)
    assert store.learning.chosen() is None


def test_generations(store: LabelStore) -> None:
    assert store.learning.current_generation() is None
    assert store.learning.next_generation_id() == 1
    first = Generation(1, "hog.1", "coverage", 0, "hog", NOW)
    store.learning.publish_generation(first)
    assert store.learning.current_generation() == first
    assert store.learning.next_generation_id() == 2
    with pytest.raises(InputError, match="not newer than 1"):
        store.learning.publish_generation(first)


def test_jobs_are_filed_once_leased_once_and_taken_over(store: LabelStore) -> None:
    job = store.learning.file_job("retrain", {"method": "lion"})
    assert store.learning.file_job("retrain", {"method": "lion"}) == job
    other = store.learning.file_job("retrain", {"method": "fixmatch"})
    leased = store.learning.lease_job("w1", now=NOW)
    assert leased is not None
    assert (leased.id, leased.state) == (job.id, "running")
    second = store.learning.lease_job("w2", now=NOW)
    assert second is not None
    assert second.id == other.id
    assert store.learning.lease_job("w3", now=NOW) is None
    again = store.learning.lease_job("w3", now=NOW + timedelta(minutes=5))
    assert again is not None
    assert again.id == job.id, "its worker fell silent"
    assert not store.learning.heartbeat(job.id, "w1")
    assert store.learning.heartbeat(job.id, "w3", "half way")
    done = store.learning.finish_job(job.id, message="no gain")
    assert (done.state, done.message) == ("done", "no gain")
    assert store.learning.finish_job(other.id, failed=True).state == "failed"
    assert [j.state for j in store.learning.jobs()] == ["failed", "done"]
    assert store.learning.file_job("retrain", {"method": "lion"}).id not in {job.id, other.id}
    with pytest.raises(NotFoundError, match="no job 99"):
        store.learning.finish_job(99)

"""Simulated annotators: draws without replacement, and what they say when there is nobody to talk to."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from annotator import taxonomy
from annotator.errors import WorkspaceError
from annotator.settings import Workspace
from annotator.simulate import VoteUrn, crowd_votes, register, server_url
from annotator.store import LabelStore

VOTES = st.dictionaries(st.sampled_from(["fear", "surprise", "unusable"]), st.integers(1, 10), min_size=1)


@given(VOTES, st.integers(0, 2**32))
def test_an_urn_gives_every_vote_once(votes: dict[str, int], seed: int) -> None:
    urn = VoteUrn({"face": votes}, seed)
    drawn = Counter(urn.draw("face") for _ in range(sum(votes.values())))
    assert drawn == Counter(votes)
    assert urn.draw("face") is None
    assert urn.draw("another") is None


def test_threads_share_an_urn_without_repeating_a_voter() -> None:
    urn = VoteUrn({"face": {"fear": 500, "anger": 300}}, 0)
    with ThreadPoolExecutor(8) as pool:
        drawn = Counter(pool.map(lambda _: urn.draw("face"), range(900)))
    assert drawn == Counter({"fear": 500, "anger": 300, None: 100})


def test_the_same_seed_draws_the_same_votes() -> None:
    votes = {"a": {"fear": 5, "anger": 5}, "b": {"fear": 9, "unusable": 1}}
    runs = []
    for seed in (1, 1, 2):
        urn = VoteUrn(votes, seed)
        runs.append([urn.draw(image) for image in "abababab"])
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


def test_without_server_or_votes_it_says_what_to_do(tmp_path: Path) -> None:
    workspace = Workspace.create(tmp_path / "w", taxonomy.FERPLUS)
    with pytest.raises(WorkspaceError, match="annotator up"):
        server_url(workspace)
    store = LabelStore.open(workspace)
    try:
        with pytest.raises(WorkspaceError, match="--labels-as truth"):
            crowd_votes(store)
    finally:
        store.close()


def test_registering_again_reuses_the_accounts_with_new_passwords(tmp_path: Path) -> None:
    store = LabelStore.open(Workspace.create(tmp_path / "w", taxonomy.FERPLUS))
    try:
        first, second = register(store, 2), register(store, 3)
        assert [u.id for u, _ in second[:2]] == [u.id for u, _ in first]
        assert {p for _, p in first}.isdisjoint(p for _, p in second)
        assert all(u.simulated and u.role == "annotator" for u, _ in second)
        assert not store.accounts.has_people()
    finally:
        store.close()

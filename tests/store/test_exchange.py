"""The link to a project in another labeling tool: every answer exactly once, whatever is repeated."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from annotator.errors import ConflictError, InputError, NotFoundError
from annotator.records import Answer, ImageRecord, Stored, User
from annotator.store import LabelStore
from annotator.store.exchange_records import (
    ForeignAnswer,
    ForeignRetraction,
    Link,
    LinkedAnswer,
    LinkedTask,
    Shown,
)
from tests.conftest import new_image

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
SHOWN = Shown("uncertain", "resnet.7", False, ({"class": "fear", "prob": 0.4},))


@pytest.fixture
def images(store: LabelStore) -> list[ImageRecord]:
    source = store.images.register_source("/faces", "folder", "folder")
    return store.images.add(source, [new_image(str(i)) for i in range(4)], "none")


@pytest.fixture
def ann(store: LabelStore) -> User:
    return store.accounts.add("ann", "annotator", None)


@pytest.fixture
def rev(store: LabelStore) -> User:
    return store.accounts.add("rev", "reviewer", None)


@pytest.fixture
def link(store: LabelStore) -> Link:
    return store.exchange.add_link("http://studio:8080", 3, "Faces", {"top_k": 10})


def foreign(user: User, image: ImageRecord, said: str, ls_id: int = 50, **fields: object) -> ForeignAnswer:
    """Return an answer that `user` gave in the linked project; `version` counts its edits."""
    version, supersedes = fields.pop("version", 0), fields.pop("supersedes", None)
    answer = Answer(f"ls:1:{ls_id}:{version}", image.image_id, "label", (said,), supersedes=supersedes)  # type: ignore[arg-type]
    linked = LinkedAnswer(ls_id, 100 + image.row, "ann@lab.org", f"2026-03-01T12:00:0{version}Z", said)
    given = ForeignAnswer(user, answer, SHOWN, NOW, False, linked)
    return replace(given, **fields)  # type: ignore[arg-type]


def stored(outcome: object) -> Stored:
    assert isinstance(outcome, Stored), outcome
    return outcome


def test_a_foreign_answer_is_stored_as_if_a_lease_had_shown_it(
    store: LabelStore, images: list[ImageRecord], ann: User, link: Link
) -> None:
    outcome = stored(store.exchange.record(link.id, [foreign(ann, images[0], "fear")])[0])
    saved = store.decisions.get(outcome.annotation.id)
    assert outcome == Stored(saved, created=True)
    assert (saved.arm, saved.model_version, saved.blind, saved.late) == ("uncertain", "resnet.7", False, False)
    assert (saved.suggestions, saved.created_at, saved.source) == (SHOWN.candidates, NOW, "labelstudio")
    assert store.decisions.label(0).classes == ("fear",)
    assert store.exchange.answers_of_tasks(link.id, [100]) == {
        100: [LinkedAnswer(50, 100, "ann@lab.org", "2026-03-01T12:00:00Z", "fear", saved.id)]
    }

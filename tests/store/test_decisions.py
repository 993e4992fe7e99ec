"""Answers are stored once, marked instead of refused, and labels are what they amount to."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import text

from annotator.errors import InputError, NotFoundError, TaxonomyError
from annotator.records import Answer, ImageRecord, Lease, Stored, User
from annotator.store import LabelStore
from tests.conftest import new_image

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
CLASSES = ("neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear", "contempt")


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


def lease(image: ImageRecord, user: User, **fields: object) -> Lease:
    defaults: dict[str, object] = {
        "id": f"lease-{image.row}-{user.id}",
        "row": image.row,
        "user_id": user.id,
        "expires_at": NOW + timedelta(minutes=2),
        "arm": "uncertain",
        "model_version": "hog.3",
        "reason": "two classes are close",
        "blind": False,
        "candidates": ({"class": "fear", "prob": 0.4},),
    }
    return Lease(**(defaults | fields))  # type: ignore[arg-type]


def test_an_answer_is_stored_as_given_and_labels_its_face(
    store: LabelStore, images: list[ImageRecord], ann: User
) -> None:
    note = "Robert'); DROP TABLE annotations;-- <script>alert(1)</script> 😀"
    answer = Answer(
        "c-1", images[0].image_id, "candidates", ("fear", "surprise"), None, 0.25, note, 1234, None, source="api"
    )
    stored = store.decisions.submit(ann, answer, now=NOW)
    assert stored.created
    saved = store.decisions.get(stored.annotation.id)
    assert saved == stored.annotation
    assert (saved.client_id, saved.image_id, saved.kind, saved.user_name) == (
        "c-1",
        images[0].image_id,
        "candidates",
        "ann",
    )
    assert saved.classes == ("surprise", "fear"), "slugs are kept in the order of the taxonomy"
    assert (saved.confidence, saved.note, saved.duration_ms, saved.source) == (0.25, note, 1234, "api")
    assert saved.created_at == NOW
    label = store.decisions.label(0)
    assert (label.state, label.classes, label.num_annotators, label.seq) == ("partial", ("surprise", "fear"), 1, 1)


def test_a_repeated_client_id_is_one_answer(store: LabelStore, images: list[ImageRecord], ann: User, rev: User) -> None:
    answer = Answer("c-1", images[0].image_id, "label", ("fear",))
    first = store.decisions.submit(ann, answer)
    again = store.decisions.submit(ann, replace(answer, classes=("anger",), image_id=images[1].image_id))
    assert again == Stored(first.annotation, created=False)
    assert store.decisions.count() == 1
    with pytest.raises(InputError, match="another person"):
        store.decisions.submit(rev, answer)
    assert store.last_seq() == 1


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"kind": "label", "classes": ()}, "exactly one class, got none"),
        ({"kind": "label", "classes": ("fear", "anger")}, "exactly one class, got anger, fear"),
        ({"kind": "candidates", "classes": ("fear",)}, "two or more"),
        ({"kind": "candidates", "classes": ("fear", "fear")}, "two or more"),
        ({"kind": "candidates", "classes": CLASSES}, "not all"),
        ({"kind": "not", "classes": ()}, "one or more"),
        ({"kind": "not", "classes": CLASSES}, "not all"),
        ({"kind": "unusable", "classes": ("fear",)}, "no class"),
        ({"kind": "skip", "classes": ("fear",)}, "no class"),
        ({"kind": "flag"}, "wants a note"),
        ({"kind": "flag", "note": "  "}, "wants a note"),
        ({"kind": "undo"}, "not an answer"),
        ({"kind": "LABEL"}, "not an answer"),
        ({"note": "x" * 2001}, "2001 characters"),
        ({"note": "a\0b"}, "NUL"),
        ({"note": "\ud800"}, "Unicode"),
        ({"confidence": 1.01}, "outside 0 to 1"),
        ({"confidence": float("nan")}, "outside 0 to 1"),
        ({"duration_ms": -1}, "outside 0"),
        ({"duration_ms": 86_400_000}, "one day"),
        ({"client_id": ""}, "1 to 80"),
        ({"client_id": "x" * 81}, "1 to 80"),
        ({"client_id": "a\nb"}, "printable"),
        ({"client_id": "import:1"}, "belongs to imported"),
        ({"source": "import"}, "source"),
    ],
)
def test_a_malformed_answer_is_refused_and_leaves_nothing(
    sqlite_store: LabelStore, fields: dict[str, object], complaint: str
) -> None:
    store = sqlite_store
    source = store.images.register_source("/faces", "folder", "folder")
    image = store.images.add(source, [new_image("a")], "none")[0]
    good = {"client_id": "c", "image_id": image.image_id, "kind": "label"}
    if "kind" not in fields:
        good["classes"] = ("fear",)  # type: ignore[assignment]
    with pytest.raises(InputError, match=complaint):
        store.decisions.submit(store.accounts.local_user(), Answer(**(good | fields)))  # type: ignore[arg-type]
    assert store.decisions.count() == 0
    assert store.last_seq() == 0


def test_unknown_images_classes_and_predecessors(
    store: LabelStore, images: list[ImageRecord], ann: User, rev: User
) -> None:
    with pytest.raises(NotFoundError, match="'nope'"):
        store.decisions.submit(ann, Answer("a", "nope", "label", ("fear",)))
    with pytest.raises(TaxonomyError, match="unknown class 'joy'"):
        store.decisions.submit(ann, Answer("a", images[0].image_id, "label", ("joy",)))
    with pytest.raises(NotFoundError, match="annotation 99"):
        store.decisions.submit(ann, Answer("a", images[0].image_id, "label", ("fear",), supersedes=99))
    first = store.decisions.submit(ann, Answer("a", images[0].image_id, "label", ("fear",))).annotation
    with pytest.raises(InputError, match="another person"):
        store.decisions.submit(rev, Answer("b", images[0].image_id, "label", ("anger",), supersedes=first.id))
    with pytest.raises(InputError, match="another face"):
        store.decisions.submit(ann, Answer("b", images[1].image_id, "label", ("anger",), supersedes=first.id))
    undo = store.decisions.undo(ann, "u", first.id).annotation
    with pytest.raises(InputError, match="is an undo"):
        store.decisions.submit(ann, Answer("b", images[0].image_id, "label", ("anger",), supersedes=undo.id))
    assert store.decisions.count() == 2


def test_the_lease_says_what_was_shown_and_is_closed(store: LabelStore, images: list[ImageRecord], ann: User) -> None:
    store.leases.open([lease(images[0], ann)])
    said = Answer("c", images[0].image_id, "label", ("fear",), lease_id="lease-0-2")
    ours = replace(said, lease_id=lease(images[0], ann).id)
    stored = store.decisions.submit(ann, ours, now=NOW).annotation
    assert (stored.arm, stored.model_version, stored.blind) == ("uncertain", "hog.3", False)
    assert stored.suggestions == ({"class": "fear", "prob": 0.4},)
    assert not any((stored.late, stored.duplicate, stored.mismatch, stored.adjudicates))
    assert store.leases.active(NOW) == []


def test_late_answers_are_stored_and_marked(store: LabelStore, images: list[ImageRecord], ann: User, rev: User) -> None:
    expired = lease(images[0], ann, id="expired", expires_at=NOW - timedelta(seconds=1))
    taken = lease(images[1], ann, id="taken")
    others = lease(images[1], rev, id="others", expires_at=NOW + timedelta(minutes=9))
    store.leases.open([expired, taken, others])
    store.leases.close("taken")
    for client_id, image, lease_id in (("a", 0, "expired"), ("b", 1, "taken"), ("c", 2, "others"), ("d", 2, "unknown")):
        answer = Answer(client_id, images[image].image_id, "label", ("fear",), lease_id=lease_id)
        stored = store.decisions.submit(ann, answer, now=NOW).annotation
        assert stored.late, lease_id
        assert store.decisions.label(image).classes == ("fear",)
    shown = {a.client_id: a.model_version for a in store.decisions.list()}
    assert shown == {"a": "hog.3", "b": "hog.3", "c": None, "d": None}, "another person's lease says nothing"


def test_an_answer_for_another_face_than_the_leased_is_marked(
    store: LabelStore, images: list[ImageRecord], ann: User
) -> None:
    store.leases.open([lease(images[0], ann, id="l")])
    answer = Answer("c", images[1].image_id, "label", ("fear",), lease_id="l")
    stored = store.decisions.submit(ann, answer, now=NOW).annotation
    assert stored.mismatch
    assert (stored.image_id, stored.model_version, stored.suggestions) == (images[1].image_id, None, ())
    assert [x.id for x in store.leases.active(NOW)] == ["l"], "the face that was leased is still on somebody's screen"


def test_a_second_opinion_is_a_duplicate_unless_it_was_asked_for(
    store: LabelStore, images: list[ImageRecord], ann: User, rev: User
) -> None:
    store.leases.open([lease(images[1], rev, arm="review")])
    for image in images[:2]:
        store.decisions.submit(ann, Answer(f"a{image.row}", image.image_id, "label", ("fear",)))
    plain = store.decisions.submit(rev, Answer("r0", images[0].image_id, "label", ("anger",))).annotation
    asked = Answer("r1", images[1].image_id, "label", ("anger",), lease_id=lease(images[1], rev).id)
    review = store.decisions.submit(rev, asked, now=NOW).annotation
    skipped = store.decisions.submit(rev, Answer("r2", images[0].image_id, "skip")).annotation
    assert (plain.duplicate, plain.adjudicates) == (True, False)
    assert (review.duplicate, review.adjudicates) == (False, True)
    assert not skipped.duplicate
    assert store.decisions.label(0).state == "disputed"
    settled = store.decisions.label(1)
    assert (settled.state, settled.classes, settled.locked) == ("labeled", ("anger",), True)


def test_undone_answers_of_others_make_no_duplicate(
    store: LabelStore, images: list[ImageRecord], ann: User, rev: User
) -> None:
    first = store.decisions.submit(ann, Answer("a", images[0].image_id, "label", ("fear",))).annotation
    store.decisions.undo(ann, "u", first.id)
    assert not store.decisions.submit(rev, Answer("b", images[0].image_id, "label", ("anger",))).annotation.duplicate


def test_a_blind_random_answer_reserves_the_whole_group(store: LabelStore, ann: User) -> None:
    source = store.images.register_source("/faces", "folder", "folder")
    twins = store.images.add(source, [new_image(n, content_hash="same") for n in "ab"], "none")
    store.leases.open([lease(twins[0], ann, arm="random", blind=True, id="l")])
    store.decisions.submit(ann, Answer("c", twins[0].image_id, "label", ("fear",), lease_id="l"), now=NOW)
    assert store.images.table().reserved.tolist() == [True, True]
    assert store.decisions.label_view() == (1, [])
    assert [row.members for row in store.decisions.labels()] == [(0, 1)]
    copy = store.images.add(source, [new_image("c", content_hash="same")], "none")[0]
    assert store.images.table().reserved.tolist() == [True, True, True], "a copy that comes later is no way around it"
    assert copy.group == 0


def test_undo_gives_back_what_was_superseded(store: LabelStore, images: list[ImageRecord], ann: User) -> None:
    first = store.decisions.submit(ann, Answer("a", images[0].image_id, "label", ("fear",))).annotation
    second = store.decisions.submit(
        ann, Answer("b", images[0].image_id, "label", ("anger",), supersedes=first.id)
    ).annotation
    assert store.decisions.label(0).classes == ("anger",)
    undone = store.decisions.undo(ann, "u", second.id)
    assert (undone.annotation.kind, undone.annotation.supersedes) == ("undo", second.id)
    assert store.decisions.label(0).classes == ("fear",)
    assert store.decisions.undo(ann, "u", second.id) == Stored(undone.annotation, created=False)
    store.decisions.undo(ann, "v", first.id)
    assert store.decisions.label(0).state == "unlabeled"
    assert [a.client_id for a in store.decisions.list()] == ["a", "b", "u", "v"]


def test_only_ones_own_standing_answers_can_be_undone(
    store: LabelStore, images: list[ImageRecord], ann: User, rev: User
) -> None:
    first = store.decisions.submit(ann, Answer("a", images[0].image_id, "label", ("fear",))).annotation
    with pytest.raises(InputError, match="another person"):
        store.decisions.undo(rev, "u", first.id)
    undo = store.decisions.undo(ann, "u", first.id).annotation
    with pytest.raises(InputError, match="undone already"):
        store.decisions.undo(ann, "v", first.id)
    with pytest.raises(InputError, match="is an undo"):
        store.decisions.undo(ann, "v", undo.id)
    with pytest.raises(NotFoundError, match="annotation 77"):
        store.decisions.undo(ann, "v", 77)
    assert store.decisions.count() == 2


def test_group_commit_isolates_what_is_wrong(store: LabelStore, images: list[ImageRecord], ann: User) -> None:
    outcomes = store.decisions.submit_many(
        [
            (ann, Answer("a", images[0].image_id, "label", ("fear",))),
            (ann, Answer("b", "nope", "label", ("fear",))),
            (ann, Answer("c", images[1].image_id, "label", ("joy",))),
            (ann, Answer("a", images[0].image_id, "label", ("fear",))),
            (ann, Answer("d", images[1].image_id, "unusable")),
        ]
    )
    assert [type(o).__name__ for o in outcomes] == ["Stored", "NotFoundError", "TaxonomyError", "Stored", "Stored"]
    assert isinstance(outcomes[3], Stored)
    assert not outcomes[3].created
    assert [(a.client_id, a.seq) for a in store.decisions.list()] == [("a", 1), ("d", 2)]
    assert store.decisions.label(1).state == "unusable"


def test_lists_and_counts(store: LabelStore, images: list[ImageRecord], ann: User, rev: User) -> None:
    for number, (user, kind, classes) in enumerate(
        [(ann, "label", ("fear",)), (rev, "skip", ()), (ann, "not", ("fear",)), (rev, "unusable", ())]
    ):
        store.decisions.submit(user, Answer(f"c{number}", images[number].image_id, kind, classes))  # type: ignore[arg-type]
    seqs = [a.seq for a in store.decisions.list(after_seq=1, limit=2)]
    assert seqs == [2, 3]
    assert [a.seq for a in store.decisions.list(user_id=ann.id, newest=True)] == [3, 1]
    assert [a.client_id for a in store.decisions.list(row=1)] == ["c1"]
    assert store.decisions.answered_groups() == {0, 2, 3}
    assert store.decisions.answered_groups(rev.id) == {3}
    assert store.decisions.skipped_groups(rev.id) == {1}
    assert store.decisions.label_counts() == {
        "labeled": 1,
        "partial": 1,
        "disputed": 0,
        "unusable": 1,
        "unlabeled": 1,
    }
    assert [row.row for row in store.decisions.labels({"partial", "unusable"})] == [2, 3]


def test_rebuild_repairs_what_was_tampered_with(store: LabelStore, images: list[ImageRecord], ann: User) -> None:
    store.decisions.submit(ann, Answer("a", images[0].image_id, "label", ("fear",)))
    with store.database.write() as connection:
        connection.execute(text("UPDATE labels SET state = 'disputed'"))
        connection.execute(
            text(
                "INSERT INTO labels (row, state, classes, soft, locked, num_annotators, imported, seq) "
                "SELECT 3, state, classes, soft, locked, num_annotators, imported, seq FROM labels"
            )
        )
    assert store.decisions.differing() == [0, 3]
    assert store.decisions.rebuild() == 2
    assert store.decisions.label(0).state == "labeled"
    assert store.decisions.label(3).state == "unlabeled"
    assert store.decisions.rebuild() == 0

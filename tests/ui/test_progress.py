"""The Progress and Team pages: the sentences, the counts, and who may see what."""

import re
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from annotator.labelstudio.report import SyncReport
from annotator.records import Answer, NewImage, Snapshot
from annotator.settings import Workspace
from annotator.store import LabelStore
from annotator.store.exchange_records import LinkedTask
from annotator.taxonomy import FERPLUS
from ui import charts
from ui.history import History
from ui.progress import Progress, ProgressReader, adaptation, figures, linked, methods_markup, paragraphs, sentences
from ui.team import team_markup

NOW = datetime(2026, 11, 20, 15, 0, tzinfo=UTC)


def face(index: int) -> NewImage:
    return NewImage(f"{index}.png", "pool", "active", f"{index:064d}", 100, 1, width=48, height=48)


@pytest.fixture
def images(sqlite_store: LabelStore) -> list[str]:
    source = sqlite_store.images.register_source("/faces", "folder", "folder")
    return [record.image_id for record in sqlite_store.images.add(source, [face(i) for i in range(6)], "none")]


def answer(store: LabelStore, name: str, image_id: str, slug: str, when: datetime = NOW, **more: object) -> int:
    user = next((u for u in store.accounts.list() if u.name == name), None) or store.accounts.add(
        name, "annotator", None
    )
    client_id = f"{name}-{image_id}-{slug}-{when.timestamp()}"
    said = Answer(client_id, image_id, "label", (slug,), **more)  # type: ignore[arg-type]
    return store.decisions.submit(user, said, now=when).annotation.id


def snapshot(number: int, label_seq: int, overall: float) -> Snapshot:
    return Snapshot(
        f"{number:05d}", "lion", label_seq, {"val_overall": overall, "val_balanced": overall / 2}, NOW, True
    )


EMPTY = Progress(
    labels=dict.fromkeys(("labeled", "partial", "disputed", "unusable", "unlabeled"), 0),
    num_val=0,
    per_class=dict.fromkeys(FERPLUS.slugs, 0),
    shared=0,
    agreeing=0,
    disputes=Counter(),
    times=(),
    snapshots=(),
    arms={},
)


def test_an_empty_workspace_says_what_to_do() -> None:
    coverage, agreement, learning = sentences(EMPTY, FERPLUS, 16)
    assert coverage == "There are no faces yet: import some with `annotator import`."
    assert "nothing can be said about agreement" in agreement
    assert learning == "No model has been trained yet: the first round starts after 16 labeled faces."


def test_sentences_carry_the_numbers() -> None:
    progress = replace(
        EMPTY,
        labels={"labeled": 4312, "partial": 0, "disputed": 88, "unusable": 5, "unlabeled": 4405},
        num_val=400,
        shared=50,
        agreeing=48,
        disputes=Counter({("surprise", "fear"): 2}),
        snapshots=(snapshot(1, 1000, 0.40), snapshot(2, 1500, 0.45)),
    )
    coverage, agreement, learning = sentences(progress, FERPLUS, 16)
    assert coverage == "4,312 of 8,810 faces are labeled (49 %); 88 disputed, 5 unusable, 4,405 still to do."
    assert agreement == (
        "People agree on 96 % of the 50 faces that two or more of them answered; "
        "surprise and fear are confused most (2 of 2 disputes)."
    )
    # sqrt(.45 * .55 / 400 + .40 * .60 / 400) = 0.0349
    assert learning == (
        "The last 500 annotations moved accuracy by +5.0 ± 3.5 points: "
        "45.0 % of 400 validation faces are read rightly (22.5 % averaged over classes)."
    )


def test_with_several_methods_each_is_compared_with_itself() -> None:
    leaf = replace(snapshot(3, 1600, 0.20), id="leaf-0003", method="leaf", serving=False)
    progress = replace(
        EMPTY,
        num_val=400,
        snapshots=(replace(snapshot(1, 1000, 0.40), serving=False), snapshot(2, 1500, 0.45), leaf),
        methods=("lion", "leaf", "remop+<b>"),
    )
    assert sentences(progress, FERPLUS, 16)[2].startswith("The first model of leaf is there: 20.0 %")
    later = replace(progress, snapshots=(*progress.snapshots, snapshot(4, 1900, 0.50)))
    assert sentences(later, FERPLUS, 16)[2].startswith("The last 400 annotations moved accuracy of lion by +5.0")
    table = methods_markup(progress)
    lines = [re.findall("<td>(.*?)</td>", line) for line in table.split("<tr>")[2:]]
    assert lines == [
        ["lion", "00002", "2", "1,500", "45.0 %", "22.5 %", "00002 serves"],
        ["leaf", "leaf-0003", "1", "1,600", "20.0 %", "10.0 %", ""],
        ["remop+&lt;b&gt;", "–", "0", "–", "–", "–", ""],
    ]
    chart = figures(progress, FERPLUS)[1]
    assert [trace.name for trace in chart.data] == [
        "lion, overall",
        "lion, balanced",
        "leaf, overall",
        "leaf, balanced",
    ]


def test_the_reader_counts_agreement_and_disputes(
    workspace: Workspace, sqlite_store: LabelStore, images: list[str]
) -> None:
    reader = ProgressReader(workspace, sqlite_store)
    assert reader.read().shared == 0
    for name, slugs in {"ann": ("fear", "anger"), "bob": ("surprise", "anger")}.items():
        for image_id, slug in zip(images, slugs, strict=False):
            answer(sqlite_store, name, image_id, slug)
    progress = reader.read()
    assert (progress.shared, progress.agreeing) == (2, 1)
    assert progress.disputes == Counter({("surprise", "fear"): 1})
    assert progress.per_class["anger"] == 1
    assert len(progress.times) == 4
    assert len(figures(progress, FERPLUS)) == 4


def test_history_follows_undo_and_correction(sqlite_store: LabelStore, images: list[str]) -> None:
    history = History(sqlite_store)
    yesterday = NOW - timedelta(days=1)
    answer(sqlite_store, "ann", images[0], "fear", yesterday, duration_ms=3000)
    second = answer(sqlite_store, "ann", images[1], "anger", duration_ms=1000)
    third = answer(sqlite_store, "ann", images[2], "anger", duration_ms=2000)
    (person,) = history.people(NOW)
    assert (person.answers, person.today, person.seconds) == (3, 2, 2.0)
    ann = sqlite_store.accounts.get("ann")
    sqlite_store.decisions.undo(ann, "undo-1", third, now=NOW)
    answer(sqlite_store, "ann", images[1], "disgust", supersedes=second, duration_ms=9000)
    (person,) = history.people(NOW)
    assert (person.answers, person.today, person.undone) == (2, 1, 1)
    assert len(history.times()) == 2


def test_annotators_see_only_themselves_and_names_are_text(sqlite_store: LabelStore, images: list[str]) -> None:
    evil = "<script>alert(1)</script>"
    sqlite_store.accounts.add("lead", "reviewer", None)
    for name in ("ann", evil):
        answer(sqlite_store, name, images[0], "fear")
    accounts = sqlite_store.accounts
    seen = team_markup(sqlite_store, History(sqlite_store), accounts.get("lead"), NOW)
    assert "&lt;script&gt;" in seen
    assert "<script>" not in seen
    assert "Accounts" in seen
    own = team_markup(sqlite_store, History(sqlite_store), accounts.get("ann"), NOW)
    assert "ann" in own
    assert "script" not in own
    assert "lead" not in own


def test_paragraphs_escape() -> None:
    assert paragraphs(["a < b"]) == '<div class="desk-lead"><p>a &lt; b</p></div>'


def test_the_adaptation_of_the_encoder_is_told() -> None:
    assert adaptation(EMPTY) is None
    point = {"step": 500, "balanced_accuracy": 0.4213, "accuracy": 0.5, "labels": 96.0}
    running = {"state": "running", "progress": 0.25, "eta_s": 600.0, "curve": [], "measured": True}

    def said(**changes: object) -> str:
        return adaptation(replace(EMPTY, pretraining=running | changes)) or ""

    assert said() == (
        "The encoder is being adapted to these faces: 25 %, about 10 min left. Its first measurement is still to come."
    )
    assert "too few labels" in said(measured=False)
    assert "96 labels apart with a balanced accuracy of 42.1 %" in said(curve=[point])
    assert said(state="done", curve=[point]).startswith("The encoder is adapted to these faces.")
    assert "has failed" in said(state="failed")
    curve = charts.probe_curve([point, point | {"step": 1000}], "title")
    assert (curve.layout.xaxis.title.text, curve.layout.yaxis.title.text) == ("training steps", "accuracy, %")
    assert list(curve.data[0].x) == [500, 1000]
    assert curve.data[0].y[0] == pytest.approx(42.13)


def test_the_linked_project_is_named(workspace: Workspace, sqlite_store: LabelStore, images: list[str]) -> None:
    reader = ProgressReader(workspace, sqlite_store)
    assert linked(reader.read(), NOW) is None
    link = sqlite_store.exchange.add_link("http://label.example:8080", 7, "<b>Faces</b>", {"mapping": {}})
    sqlite_store.exchange.put_tasks(link.id, [LinkedTask(1, 0), LinkedTask(2, 1), LinkedTask(3, 2, "answered")])
    said = str(linked(reader.read(), NOW))
    assert "“<b>Faces</b>” at http://label.example:8080: 2 tasks are open there; nothing has been synced yet" in said
    assert "<b>" not in paragraphs([said])
    SyncReport(workspace).say("watching", synced=True)
    now = datetime.now(UTC)
    for minutes, words in ((0.5, "just now"), (1.5, "1 min ago"), (200, "3 h ago")):
        assert f"last synced {words}." in str(linked(reader.read(), now + timedelta(minutes=minutes)))
    sqlite_store.exchange.close_link(link.id)
    assert linked(reader.read(), NOW) is None

"""What was typed is what is exported; nothing is overwritten, half written or run by a spreadsheet."""

import csv
import io
import json
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from PIL import Image

from annotator import taxonomy
from annotator.commands.workspaces import ExportFormat
from annotator.commands.workspaces import export as write_command
from annotator.errors import InputError, NotFoundError
from annotator.export import FORMATS, export
from annotator.ingest.importer import run_import
from annotator.labelstudio.files.writing import export_tasks
from annotator.records import Answer, User
from annotator.settings import Workspace
from annotator.store import LabelStore
from annotator.store.exchange_records import ForeignAnswer, LinkedAnswer, LinkedTask
from annotator.store.reading import moment
from annotator.taxonomy import FERPLUS
from tests.conftest import new_image
from tests.ingest.builders import FERPLUS_COLUMNS, write_csv, write_picture

NOTES = ("=HYPERLINK(1)", '<script>"x"</script>, \n\'; DROP', "plain 😀", "-1+1", "@SUM(A1)")


@pytest.fixture
def answered(store: LabelStore, tmp_path: Path) -> LabelStore:
    """Nine faces in an image folder, one of them validation, with every kind of answer by two people."""
    root = tmp_path / "faces"
    for i in range(9):
        split = "val" if i == 8 else "train"
        write_picture(root / split / "happiness" / f"{i}.png", i)
    run_import(store.workspace, store, root, "folder", given_as="truth")
    ids = [r.image_id for r in store.images.by_rows(range(9))]
    ann, bob = (store.accounts.add(n, "annotator", None) for n in ("ann", "=bob"))
    said: list[tuple[User, str, int, str, tuple[str, ...], str | None]] = [
        (ann, "a0", 0, "label", ("fear",), NOTES[0]),
        (bob, "a1", 0, "label", ("fear",), None),
        (ann, "a2", 1, "candidates", ("fear", "surprise"), NOTES[1]),
        (ann, "a3", 2, "not", ("happiness", "neutral"), None),
        (ann, "a4", 3, "label", ("anger",), NOTES[2]),
        (bob, "a5", 3, "candidates", ("fear", "sadness"), None),
        (ann, "a6", 4, "unusable", (), NOTES[3]),
        (ann, "a7", 5, "skip", (), None),
        (bob, "a8", 5, "flag", (), NOTES[4]),
        (ann, "a9", 6, "label", ("disgust",), None),
        (bob, "a10", 8, "label", ("happiness",), None),
    ]
    for user, client_id, face, kind, classes, note in said:
        answer = Answer(client_id, ids[face], kind, classes, confidence=0.75, note=note, duration_ms=900)  # type: ignore[arg-type]
        store.decisions.submit(user, answer)
    wrong = store.decisions.list(row=6)[0]
    store.decisions.undo(ann, "u", wrong.id)
    return store


def typed(store: LabelStore) -> list[tuple[object, ...]]:
    """Return every answer as people gave it."""
    return [
        (
            a.id,
            a.image_id,
            a.user_name,
            a.kind,
            a.classes,
            a.confidence,
            a.note,
            a.duration_ms,
            a.supersedes,
            a.client_id,
        )
        for a in store.decisions.list()
    ]


def as_typed(row: dict[str, Any]) -> tuple[object, ...]:
    columns = (
        "annotation_id",
        "image_id",
        "user",
        "kind",
        "classes",
        "confidence",
        "note",
        "duration_ms",
        "supersedes",
        "client_id",
    )
    return tuple(tuple(row[c]) if c == "classes" else row[c] for c in columns)


EXPECTED = [
    # state, label, candidates, number of people
    ("labeled", "fear", ("fear",), 2),
    ("partial", None, ("surprise", "fear"), 1),
    ("partial", None, ("surprise", "sadness", "anger", "disgust", "fear", "contempt"), 1),
    ("disputed", None, ("sadness", "anger", "fear"), 2),
    ("unusable", None, (), 1),
    ("unlabeled", None, (), 0),
    ("unlabeled", None, (), 0),
    ("unlabeled", None, (), 0),
    ("labeled", "happiness", ("happiness",), 1),
]


def test_jsonl_is_what_was_typed(answered: LabelStore, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    assert export(answered.workspace, answered, out, "jsonl") == 9
    rows = [json.loads(line) for line in out.read_text("utf-8").splitlines()]
    said = [answer for row in rows for answer in row["answers"]]
    assert sorted(as_typed(a) for a in said) == sorted(typed(answered))
    assert [a["client_id"] for a in said if not a["stands"]] == ["a9", "u"]
    states = [(r["state"], r["label"], tuple(r["candidates"]), r["num_annotators"]) for r in rows]
    assert states == EXPECTED
    assert rows[3]["shares"] == {"sadness": 0.25, "anger": 0.5, "fear": 0.25}
    assert rows[1]["shares"] == {"surprise": 0.5, "fear": 0.5}
    assert rows[0]["shares"] == {"fear": 1.0}
    assert rows[4]["shares"] == {}
    assert {r["split"] for r in rows} == {"pool", "val"}
    assert rows[0]["given"] == "happiness"
    assert rows[0]["source"] == str(tmp_path / "faces")
    assert export(answered.workspace, answered, tmp_path / "bare.jsonl", "jsonl", include="labels") == 9
    assert all("answers" not in json.loads(line) for line in (tmp_path / "bare.jsonl").open())


def test_parquet_is_what_was_typed(answered: LabelStore, tmp_path: Path) -> None:
    out = tmp_path / "out.parquet"
    assert export(answered.workspace, answered, out, "parquet") == 9
    rows = pq.read_table(out).to_pylist()
    assert [(r["state"], r["label"], tuple(r["candidates"]), r["num_annotators"]) for r in rows] == EXPECTED
    for row in rows:
        shares = [row[f"share_{c}"] for c in FERPLUS.slugs]
        if row["state"] in ("unlabeled", "unusable"):
            assert shares == [None] * 8
        else:
            assert sum(shares) == pytest.approx(1)
            assert [c for c, s in zip(FERPLUS.slugs, shares, strict=True) if s] == row["candidates"]
    said = pq.read_table(tmp_path / "out.answers.parquet").to_pylist()
    assert sorted(as_typed(a) for a in said) == sorted(typed(answered))


def test_csv_is_what_was_typed_and_no_formula(answered: LabelStore, tmp_path: Path) -> None:
    out = tmp_path / "out.csv"
    assert export(answered.workspace, answered, out, "csv") == 9
    with out.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    states = [
        (r["state"], r["label"] or None, tuple(c for c in r["candidates"].split("|") if c), int(r["num_annotators"]))
        for r in rows
    ]
    assert states == EXPECTED
    assert [r["share_fear"] for r in rows[:5]] == ["1.0", "0.5", str(1 / 6), "0.25", ""]
    assert {r["locked"] for r in rows} == {"false"}
    with (tmp_path / "out.answers.csv").open(newline="", encoding="utf-8") as file:
        said = list(csv.DictReader(file))
    typed_notes = {a.client_id: a.note or "" for a in answered.decisions.list()}
    for answer in said:
        note = typed_notes[answer["client_id"]]
        guarded = f"'{note}" if note[:1] in ("=", "-", "@") else note
        assert answer["note"] == guarded
        assert not answer["user"].startswith("=")
    assert {a["client_id"] for a in said} == typed_notes.keys()


def test_csv_paths_stay_paths(sqlite_store: LabelStore, tmp_path: Path) -> None:
    source = sqlite_store.images.register_source("/faces", "folder", "folder")
    sqlite_store.images.add(source, [new_image("-a"), new_image("b", subject_id="+1")], "none")
    export(sqlite_store.workspace, sqlite_store, tmp_path / "out.csv", "csv")
    with (tmp_path / "out.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [r["path"] for r in rows] == ["./-a.png", "b.png"]
    assert [r["subject_id"] for r in rows] == ["", "'+1"]


def test_only_active_faces_are_exported_but_no_answer_is_lost(sqlite_store: LabelStore, tmp_path: Path) -> None:
    store = sqlite_store
    source = store.images.register_source("/faces", "folder", "folder")
    new = [new_image("a"), new_image("v", split="val", content_hash="hash-a"), new_image("c")]
    images = store.images.add(source, new, "none")
    for image in images:
        store.decisions.submit(store.accounts.local_user(), Answer(f"c{image.row}", image.image_id, "label", ("fear",)))
    store.images.quarantine(2, "broken after all")
    assert export(store.workspace, store, tmp_path / "a.csv", "csv") == 1
    assert export(store.workspace, store, tmp_path / "a.jsonl", "jsonl") == 1
    rows = [json.loads(line) for line in (tmp_path / "a.jsonl").open()]
    assert [(r["image_state"], len(r["answers"])) for r in rows] == [("active", 1), ("leak", 1), ("quarantined", 1)]
    assert len((tmp_path / "a.answers.csv").read_text().splitlines()) == 4


def test_imagefolder_holds_the_labeled_originals(answered: LabelStore, tmp_path: Path) -> None:
    out = tmp_path / "folder"
    out.mkdir()
    assert export(answered.workspace, answered, out, "imagefolder") == 2
    images = answered.images.by_rows(range(9))
    files = {str(p.relative_to(out)) for p in out.rglob("*") if p.is_file()}
    assert files == {
        "labels.csv",
        f"train/fear/{images[0].image_id}.png",
        f"val/happiness/{images[8].image_id}.png",
    }
    original = tmp_path / "faces" / images[0].path
    assert (out / "train" / "fear" / f"{images[0].image_id}.png").read_bytes() == original.read_bytes()
    with (out / "labels.csv").open(newline="") as file:
        assert [(r["file"].split("/")[1], r["label"]) for r in csv.DictReader(file)] == [
            ("fear", "fear"),
            ("happiness", "happiness"),
        ]


def test_a_picture_that_is_gone_or_changed_comes_from_the_cache(answered: LabelStore, tmp_path: Path) -> None:
    images = answered.images.by_rows([0, 8])
    (tmp_path / "faces" / images[0].path).unlink()
    write_picture(tmp_path / "faces" / images[1].path, 99)
    assert export(answered.workspace, answered, tmp_path / "out", "imagefolder") == 2
    for image, folder in zip(images, ("train/fear", "val/happiness"), strict=True):
        with Image.open(tmp_path / "out" / folder / f"{image.image_id}.png") as picture:
            assert picture.size == (48, 48)
    for shard in (answered.workspace.root / "cache").rglob("*.npy"):
        shard.unlink()
    with pytest.raises(NotFoundError, match=r"is gone or changed and in no cache"):
        export(answered.workspace, answered, tmp_path / "none", "imagefolder")
    assert not (tmp_path / "none").exists()


def test_crops_are_exported_as_crops(sqlite_store: LabelStore, tmp_path: Path) -> None:
    store, root = sqlite_store, tmp_path / "faces"
    write_picture(root / "a.png", 1, side=64)
    write_csv(root / "list.csv", [{"path": "a.png", "crop": "4,8,20,30", "label": "fear"}])
    run_import(store.workspace, store, root / "list.csv", "manifest", given_as="annotations")
    assert export(store.workspace, store, tmp_path / "out", "imagefolder") == 1
    with Image.open(next((tmp_path / "out").rglob("*.png"))) as crop, Image.open(root / "a.png") as whole:
        assert crop.tobytes() == whole.crop((4, 8, 24, 38)).tobytes()


def test_reserved_faces_are_kept_out_of_training(sqlite_store: LabelStore, tmp_path: Path) -> None:
    from tests.store.test_decisions import NOW, lease

    store = sqlite_store
    write_picture(tmp_path / "faces" / "a.png", 1)
    run_import(store.workspace, store, tmp_path / "faces", "folder", given_as="none")
    image, user = store.images.by_rows([0])[0], store.accounts.local_user()
    store.leases.open([lease(image, user, arm="random", blind=True, id="l")])
    store.decisions.submit(user, Answer("c", image.image_id, "label", ("fear",), lease_id="l"), now=NOW)
    export(store.workspace, store, tmp_path / "folder", "imagefolder")
    assert (tmp_path / "folder" / "reserved" / "fear" / f"{image.image_id}.png").is_file()
    export(store.workspace, store, tmp_path / "ferplus", "ferplus")
    assert (tmp_path / "ferplus" / "FER2013Valid").is_dir()
    assert not (tmp_path / "ferplus" / "FER2013Train").exists()


def ferplus_source(root: Path) -> list[dict[str, object]]:
    """Write six FER+ images whose votes are 10 in every way, two of them validation."""
    votes = [
        {"fear": 6, "surprise": 4},
        {"fear": 5, "surprise": 5},
        {"NF": 7, "unknown": 2, "anger": 1},
        {"neutral": 3, "sadness": 4, "contempt": 2, "unknown": 1},
        {"happiness": 10},
        {"disgust": 4, "anger": 6},
    ]
    rows: list[dict[str, object]] = []
    for i, cast in enumerate(votes):
        usage, folder = ("PublicTest", "FER2013Valid") if i > 3 else ("Training", "FER2013Train")
        name = f"fer{i:07d}.png"
        write_picture(root / folder / name, i, side=48)
        row: dict[str, object] = dict.fromkeys(FERPLUS_COLUMNS, 0)
        rows.append({**row, "Usage": usage, "Image name": name, **cast})
    write_csv(root / "fer2013new.csv", rows)
    return rows


def test_ferplus_comes_back_as_it_went_in(store: LabelStore, tmp_path: Path) -> None:
    rows = ferplus_source(tmp_path / "official")
    run_import(store.workspace, store, tmp_path / "official", "ferplus", given_as="annotations")
    assert export(store.workspace, store, tmp_path / "ours", "ferplus") == 6
    with (tmp_path / "ours" / "fer2013new.csv").open(newline="") as file:
        reader = csv.DictReader(file)
        written = list(reader)
    assert tuple(reader.fieldnames or ()) == FERPLUS_COLUMNS
    for row, original in zip(written, rows, strict=True):
        assert all(int(row[c]) == original[c] for c in FERPLUS.slugs)
        assert int(row["unknown"]) + int(row["NF"]) == int(str(original["unknown"])) + int(str(original["NF"]))
        assert row["Usage"] == original["Usage"]
    again = Workspace.create(tmp_path / "second", FERPLUS)
    with LabelStore.open(again) as second:
        run_import(again, second, tmp_path / "ours", "ferplus", given_as="annotations")
        contents = [
            [(r.split, r.state, r.content_hash) for r in s.images.by_rows(s.images.table().rows.tolist())]
            for s in (store, second)
        ]
        assert contents[0] == contents[1]
        assert second.images.truth("pool") != []
        for row in range(6):
            assert second.decisions.label(row).classes == store.decisions.label(row).classes
            assert second.decisions.label(row).soft == store.decisions.label(row).soft


def test_ferplus_counts_answers_as_votes(answered: LabelStore, tmp_path: Path) -> None:
    assert export(answered.workspace, answered, tmp_path / "out", "ferplus") == 5
    with (tmp_path / "out" / "fer2013new.csv").open(newline="") as file:
        rows = [{k: v for k, v in row.items() if v != "0"} for row in csv.DictReader(file)]
    votes = [{k: int(v) for k, v in r.items() if k not in ("Usage", "Image name")} for r in rows]
    assert votes == [
        {"fear": 2},
        {"surprise": 1, "fear": 1},
        {"anger": 1, "fear": 1, "sadness": 1},
        {"NF": 1},
        {"happiness": 1},
    ]


@pytest.mark.parametrize("format", ["csv", "jsonl", "parquet"])
def test_an_answer_beside_another_is_exported_as_such_and_has_a_vote(
    answered: LabelStore, tmp_path: Path, format: str
) -> None:
    exchange, ann = answered.exchange, answered.accounts.get("ann")
    link = exchange.add_link("http://studio", 1, "Faces", {})
    exchange.put_tasks(link.id, [LinkedTask(7, 0)])
    answer = Answer(f"ls:{link.id}:5:0", answered.images.by_rows([0])[0].image_id, "label", ("anger",))
    seen = LinkedAnswer(5, 7, "ann@lab.org", "2026-03-01T12:00:00Z", "anger")
    exchange.record(link.id, [ForeignAnswer(ann, answer, None, datetime.now(UTC), True, seen)])
    out = tmp_path / f"out.{format}"
    export(answered.workspace, answered, out, format)
    if format == "jsonl":
        said = [a for line in out.open() for a in json.loads(line)["answers"]]
    elif format == "csv":
        with (tmp_path / "out.answers.csv").open(newline="") as file:
            said = [{**row, "beside": {"true": True, "false": False}[row["beside"]]} for row in csv.DictReader(file)]
    else:
        said = pq.read_table(tmp_path / "out.answers.parquet").to_pylist()
    assert [a["client_id"] for a in said if a["beside"]] == [answer.client_id]
    with moment(answered.database) as everything:
        assert everything.votes()[0] == {"fear": 2, "anger": 1}


def test_ferplus_needs_its_classes(tmp_path: Path) -> None:
    workspace = Workspace.create(tmp_path / "ws", taxonomy.custom("moods", ["happiness", "boredom"]))
    with LabelStore.open(workspace) as store, pytest.raises(InputError, match="no column for boredom"):
        export(workspace, store, tmp_path / "out", "ferplus")


@pytest.mark.parametrize("format", FORMATS)
def test_nothing_is_overwritten(answered: LabelStore, tmp_path: Path, format: str) -> None:
    if format in ("imagefolder", "ferplus"):
        taken = tmp_path / "taken"
        taken.mkdir()
        (taken / "mine").write_text("mine")
    else:
        taken = tmp_path / f"taken.{format}"
        taken.write_text("mine")
    before = sorted(str(p) for p in tmp_path.rglob("*"))
    with pytest.raises(InputError, match="exists already"):
        export(answered.workspace, answered, taken, format)
    with pytest.raises(InputError, match="no folder"):
        export(answered.workspace, answered, tmp_path / "nowhere" / "x", format)
    assert sorted(str(p) for p in tmp_path.rglob("*")) == before


def test_wrong_targets_and_formats(sqlite_store: LabelStore, tmp_path: Path) -> None:
    workspace = sqlite_store.workspace
    with pytest.raises(InputError, match="is a folder"):
        export(workspace, sqlite_store, tmp_path, "csv")
    with pytest.raises(InputError, match="'xlsx' is not one of csv"):
        export(workspace, sqlite_store, tmp_path / "x", "xlsx")
    (tmp_path / "x.answers.csv").write_text("mine")
    with pytest.raises(InputError, match=r"x\.answers\.csv exists already"):
        export(workspace, sqlite_store, tmp_path / "x.csv", "csv")
    assert not (tmp_path / "x.csv").exists()
    assert export(workspace, sqlite_store, tmp_path / "empty.csv", "csv") == 0
    assert len((tmp_path / "empty.csv").read_text().splitlines()) == 1


def test_an_export_that_fails_leaves_nothing(answered: LabelStore, tmp_path: Path) -> None:
    def interrupt(done: int, total: int, note: str) -> None:
        raise KeyboardInterrupt

    for format in FORMATS:
        with pytest.raises(KeyboardInterrupt):
            export(answered.workspace, answered, tmp_path / f"x.{format}", format, progress=interrupt)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["faces", "ws"]


def test_progress_ends_at_the_total(answered: LabelStore, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    export(answered.workspace, answered, tmp_path / "x.csv", "csv", progress=lambda d, t, _: seen.append((d, t)))
    assert seen[-1] == (9, 9)


def test_jpegs_become_png_for_ferplus_and_stay_jpeg_elsewhere(sqlite_store: LabelStore, tmp_path: Path) -> None:
    store, root = sqlite_store, tmp_path / "faces"
    write_picture(root / "fear" / "a.jpg", 1, side=40, format="JPEG")
    run_import(store.workspace, store, root, "folder", given_as="annotations")
    export(store.workspace, store, tmp_path / "folder", "imagefolder")
    export(store.workspace, store, tmp_path / "ferplus", "ferplus")
    copied = next((tmp_path / "folder").rglob("*.jpg"))
    assert copied.read_bytes() == (root / "fear" / "a.jpg").read_bytes()
    with Image.open(next((tmp_path / "ferplus").rglob("*.png"))) as made:
        assert (made.format, made.size) == ("PNG", (40, 40))
        with Image.open(io.BytesIO(copied.read_bytes())) as original:
            assert made.tobytes() == original.tobytes()
    shutil.rmtree(root)


def test_the_command_writes_label_studios_json(answered: LabelStore, tmp_path: Path) -> None:
    write_command(answered.workspace.root, tmp_path / "x.json", ExportFormat.labelstudio)
    tasks = json.loads((tmp_path / "x.json").read_text("utf-8"))
    told = [(a["annotator"], len(a["result"]), a["was_cancelled"]) for task in tasks for a in task["annotations"]]
    assert len(tasks) == 9
    assert told == [
        ("ann", 3, False),
        ("=bob", 2, False),
        ("ann", 3, False),
        ("ann", 2, False),
        ("ann", 3, False),
        ("=bob", 2, False),
        ("ann", 3, False),
        ("ann", 0, True),
        ("=bob", 2, False),
        ("=bob", 2, False),
    ]
    assert not any("completed_by" in a for task in tasks for a in task["annotations"])
    assert (tmp_path / "x.config.xml").read_text("utf-8").startswith("<View>")


def test_label_studios_json_that_fails_leaves_nothing(answered: LabelStore, tmp_path: Path) -> None:
    def interrupt(done: int, total: int, note: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_tasks(answered.workspace, answered, tmp_path / "x.json", interrupt)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["faces", "ws"]

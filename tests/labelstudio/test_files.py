"""Label Studio's JSON: what is written is what people said, a real server takes it, and what comes back is the same."""

import base64
import io
import json
import zipfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from annotator.errors import InputError
from annotator.ingest.importer import run_import
from annotator.labelstudio.config.generated import generate, own_mapping
from annotator.labelstudio.config.results import Said, parse_result, to_result
from annotator.labelstudio.files.reading import FileReport, read_answers
from annotator.labelstudio.files.writing import config_path, export_tasks
from annotator.records import Annotation, Answer, User
from annotator.settings import Workspace
from annotator.store import LabelStore
from annotator.taxonomy import FERPLUS
from tests.ingest.builders import encoded, picture, write_csv, write_picture
from tests.labelstudio.conftest import People
from tests.labelstudio.studio import Studio, said
from tests.scores import write_generation

OWN = own_mapping(FERPLUS)
NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


def faces(store: LabelStore, root: Path) -> list[str]:
    """Import four files, two faces of a photo and two from a zip; return the ids of the eight images."""
    for i in range(4):
        write_picture(root / "folder" / "train" / "happiness" / f"{i} é.png", i)
    run_import(store.workspace, store, root / "folder", "folder", given_as="none")
    write_picture(root / "photos" / "group.png", 50, side=400)
    rows = [{"path": "group.png", "crop": crop} for crop in ("0,0,300,300", "10,10,200,200")]
    run_import(store.workspace, store, write_csv(root / "photos" / "list.csv", rows), "manifest", given_as="none")
    with zipfile.ZipFile(root / "more.zip", "w") as archive:
        for i in (60, 61):
            archive.writestr(f"train/happiness/z{i}.png", encoded(picture(i)))
    run_import(store.workspace, store, root / "more.zip", "folder", given_as="none")
    return [image.image_id for image in store.images.by_rows(range(8))]


def answer_everything(store: LabelStore, ids: list[str], ann: User, ben: User) -> None:
    """Give every kind of answer, one corrected, one undone, one contradicted."""
    given: list[tuple[User, int, Said]] = [
        (ann, 0, Said("label", ("fear",), 0.8, "sure <b> & ünï 😀")),
        (ben, 0, Said("label", ("fear",))),
        (ann, 1, Said("candidates", ("surprise", "fear"), 0.2)),
        (ann, 2, Said("label", ("anger",))),
        (ben, 2, Said("label", ("sadness",))),
        (ann, 3, Said("unusable", note="no face")),
        (ann, 4, Said("label", ("disgust",))),
        (ben, 5, Said("skip")),
        (ben, 5, Said("flag", note="who is that?")),
        (ann, 6, Said("label", ("contempt",))),
        (ben, 7, Said("candidates", ("anger", "disgust", "contempt"), 0.4)),
    ]
    stored = [
        store.decisions.submit(user, _answer(f"a{n}", ids[row], what), now=NOW + timedelta(seconds=n))
        for n, (user, row, what) in enumerate(given)
    ]
    corrected = _answer("again", ids[4], Said("label", ("neutral",)), supersedes=stored[6].annotation.id)
    store.decisions.submit(ann, corrected, now=NOW + timedelta(minutes=1))
    store.decisions.undo(ann, "undo", stored[9].annotation.id, now=NOW + timedelta(minutes=2))


def _answer(client_id: str, image_id: str, what: Said, supersedes: int | None = None) -> Answer:
    return Answer(client_id, image_id, what.kind, what.classes, None, what.confidence, what.note, 1500, supersedes)


def standing(store: LabelStore) -> list[tuple[Any, ...]]:
    """Return what stands: row, who, what, when."""
    found = store.exchange.standing(range(8))
    return sorted(
        (a.row, a.user_name, a.kind, a.classes, a.confidence, a.note or "", a.duration_ms, a.created_at)
        for answers in found.values()
        for a in answers
    )


def labels(store: LabelStore) -> dict[int, Any]:
    """Return state, classes and shares of every group that has a label."""
    return {r.row: (r.label.state, r.label.classes, r.label.soft) for r in store.decisions.labels()}


def two_people(store: LabelStore, ann: str = "ann", ben: str = "ben") -> tuple[User, User]:
    return store.accounts.add(ann, "annotator", None), store.accounts.add(ben, "annotator", None)


@pytest.fixture
def answered(sqlite_store: LabelStore, tmp_path: Path) -> LabelStore:
    ids = faces(sqlite_store, tmp_path)
    answer_everything(sqlite_store, ids, *two_people(sqlite_store, "ann@example.com", "ben@example.com"))
    return sqlite_store


@pytest.fixture
def other(tmp_path: Path) -> Iterator[LabelStore]:
    """Another workspace with the same pictures, from another place, and nobody's answers."""
    workspace = Workspace.create(tmp_path / "other", FERPLUS)
    with LabelStore.open(workspace) as store:
        faces(store, tmp_path / "elsewhere")
        yield store


def exported(store: LabelStore, tmp_path: Path) -> tuple[Path, list[dict[str, Any]]]:
    out = tmp_path / "labels.json"
    assert export_tasks(store.workspace, store, out) == 8
    return out, json.loads(out.read_text("utf-8"))


def test_an_export_is_what_people_said(answered: LabelStore, tmp_path: Path) -> None:
    out, tasks = exported(answered, tmp_path)
    assert config_path(out) == tmp_path / "labels.config.xml"
    assert config_path(out).read_text("utf-8") == generate(FERPLUS)
    written = [
        (
            task["id"],
            a["annotator"],
            parse_result(a["result"], a["was_cancelled"], OWN, FERPLUS),
            round(1000 * a["lead_time"]),
            datetime.fromisoformat(a["created_at"]),
        )
        for task in tasks
        for a in task["annotations"]
    ]
    flat = sorted((*w[:2], w[2].kind, w[2].classes, w[2].confidence, w[2].note or "", *w[3:]) for w in written)
    assert flat == standing(answered)
    emails = {a["completed_by"]["email"] for task in tasks for a in task["annotations"]}
    assert emails == {"ann@example.com", "ben@example.com"}
    assert all(task["predictions"] == [] and task["data"]["reason"] == "" for task in tasks)


def test_a_task_says_where_its_picture_is(
    answered: LabelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, tasks = exported(answered, tmp_path)
    data = [task["data"] for task in tasks]
    root = str(tmp_path).lstrip("/")
    assert data[0]["image"] == f"/data/local-files/?d={root}/folder/train/happiness/0%20%C3%A9.png"
    assert data[0]["path"] == f"{tmp_path}/folder/train/happiness/0 é.png"
    assert [d.get("crop") for d in data] == [None] * 4 + ["0,0,300,300", "10,10,200,200"] + [None] * 2
    assert [d["image"].split(",")[0] for d in data[4:]] == [
        "data:image/jpeg;base64",  # larger than what a task should hold
        "data:image/png;base64",
        "data:image/png;base64",
        "data:image/png;base64",
    ]
    inside = base64.b64decode(data[6]["image"].split(",")[1])
    assert inside == encoded(picture(60))
    assert Image.open(io.BytesIO(base64.b64decode(data[5]["image"].split(",")[1]))).size == (200, 200)
    monkeypatch.setenv("LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT", str(tmp_path / "folder"))
    (tmp_path / "labels.json").unlink()
    (tmp_path / "labels.config.xml").unlink()
    _, tasks = exported(answered, tmp_path)
    assert tasks[1]["data"]["image"] == "/data/local-files/?d=train/happiness/1%20%C3%A9.png"


def test_what_the_model_reads_goes_along_but_not_for_blind_faces(answered: LabelStore, tmp_path: Path) -> None:
    workspace = answered.workspace
    write_generation(workspace, answered, list(range(8)), [3, 1], candidates=("surprise", "fear"))
    _, tasks = exported(answered, tmp_path)
    told = [(task["predictions"][0]["score"], len(task["predictions"][0]["result"])) for task in tasks]
    assert told == [(1.0, 1), (pytest.approx(2 / 3), 2), (1.0, 1), (pytest.approx(1 / 3), 2), *[(1.0, 1)] * 4]
    assert tasks[3]["predictions"][0]["model_version"] == "test.1"
    assert tasks[3]["predictions"][0]["result"][1]["value"] == {"choices": ["surprise", "fear"]}
    assert tasks[3]["data"]["reason"] == "The model cannot decide: surprise 60 %, fear 30 %."
    write_generation(workspace, answered, list(range(8)), [3], candidates=("surprise", "fear"), blind=True)
    for path in (tmp_path / "labels.json", tmp_path / "labels.config.xml"):
        path.unlink()
    _, tasks = exported(answered, tmp_path)
    assert tasks[3]["predictions"] == [{"model_version": "test.2", "score": 0.5, "result": []}]


def test_a_name_that_is_taken_is_not_written_over(answered: LabelStore, tmp_path: Path) -> None:
    (tmp_path / "labels.config.xml").write_text("mine")
    with pytest.raises(InputError, match="exists already"):
        export_tasks(answered.workspace, answered, tmp_path / "labels.json")
    assert not (tmp_path / "labels.json").exists()
    assert not list(tmp_path.glob(".labels*"))


def test_a_round_trip_gives_equal_labels_and_answers(answered: LabelStore, other: LabelStore, tmp_path: Path) -> None:
    out, _ = exported(answered, tmp_path)
    two_people(other, "ann@example.com", "BEN@example.com")
    report = read_answers(other.workspace, other, out)
    assert (report.tasks, report.unmatched, report.annotations, report.stored) == (8, 0, 10, 10)
    assert (report.left_out, report.left_out_path) == ({}, None)
    assert sorted((s[0], s[1].lower(), *s[2:]) for s in standing(other)) == standing(answered)
    assert labels(other) == labels(answered)
    assert labels(other)[2][0] == "disputed"
    assert {a.source for a in other.decisions.list()} == {"labelstudio"}
    again = read_answers(other.workspace, other, out)
    assert (again.stored, again.known) == (0, 10)
    assert other.decisions.count() == 10


def test_reading_ones_own_export_adds_nothing(answered: LabelStore, tmp_path: Path) -> None:
    out, _ = exported(answered, tmp_path)
    before = answered.decisions.count()
    report = read_answers(answered.workspace, answered, out)
    assert (report.stored, report.known) == (0, 10)
    assert answered.decisions.count() == before


def test_label_studio_takes_an_export_and_gives_it_back(
    studio: Studio, people: People, answered: LabelStore, other: LabelStore, tmp_path: Path
) -> None:
    """The file goes through a real project; people are those of the server, pictures are found again elsewhere."""
    write_generation(answered.workspace, answered, list(range(8)), [3, 1], candidates=("surprise", "fear"))
    out, _ = exported(answered, tmp_path)
    with studio.server() as server:
        project = server.create_project("files", config_path(out).read_text("utf-8"))["id"]
    headers = {"Authorization": f"Token {studio.admin.token}"}
    with httpx.Client(base_url=studio.url, headers=headers, timeout=60) as page:
        taken = page.post(f"/api/projects/{project}/import", files={"file": (out.name, out.read_bytes())})
        assert taken.is_success, taken.text[:500]
        assert (taken.json()["task_count"], taken.json()["annotation_count"]) == (8, 10)
        assert taken.json()["prediction_count"] == 8
        given_back = page.get(f"/api/projects/{project}/export?exportType=JSON&download_all_tasks=true")
        small = page.get(f"/api/projects/{project}/export?exportType=JSON_MIN&download_all_tasks=true")
    back = tmp_path / "back.json"
    back.write_bytes(given_back.content)
    two_people(other)
    users = {people.ann.email: "ann", people.ben.email: "ben"}
    for person in (people.ann, people.ben):  # a server that gives numbers only
        users[str(person.id)] = users[person.email]
    report = read_answers(other.workspace, other, back, users)
    assert report.left_out == {}
    assert (report.stored, report.unmatched) == (10, 0)
    names = {"ann@example.com": "ann", "ben@example.com": "ben"}
    there = [(s[0], names[s[1]], *s[2:7]) for s in standing(answered)]
    assert [s[:7] for s in standing(other)] == sorted(there)
    assert labels(other) == labels(answered)
    assert (read_answers(other.workspace, other, back, users).known, other.decisions.count()) == (10, 10)
    home = read_answers(answered.workspace, answered, back, {k: f"{v}@example.com" for k, v in users.items()})
    assert (home.stored, home.known) == (0, 10)
    (tmp_path / "min.json").write_bytes(small.content)
    with pytest.raises(InputError, match="JSON_MIN"):
        read_answers(other.workspace, other, tmp_path / "min.json")


def write(path: Path, *tasks: Any) -> Path:
    path.write_text(json.dumps(list(tasks)), encoding="utf-8")
    return path


def task(number: int, *annotations: Any, name: str | None = None) -> dict[str, Any]:
    data = {"image": f"/x/happiness/{number} é.png" if name is None else name}
    return {"id": 100 + number, "project": 4, "data": data, "annotations": list(annotations)}


def annotation(number: int, what: Said, at: datetime = NOW, **more: Any) -> dict[str, Any]:
    made = {
        "id": number,
        "completed_by": {"id": 3, "email": "ann@example.com"},
        "result": to_result(what, OWN, FERPLUS),
        "was_cancelled": what.kind == "skip",
        "created_at": at.isoformat(),
        "updated_at": at.isoformat().replace("+00:00", "Z"),
        "lead_time": 2.5,
    }
    return made | more


FEAR, ANGER = Said("label", ("fear",)), Said("label", ("anger",))


def read(store: LabelStore, path: Path, **more: Any) -> FileReport:
    return read_answers(store.workspace, store, path, {"ann@example.com": "ann"}, **more)


def test_everything_left_out_says_why(other: LabelStore, tmp_path: Path) -> None:
    two_people(other)
    result = to_result(FEAR, OWN, FERPLUS)
    path = write(
        tmp_path / "export.json",
        task(0, annotation(1, FEAR)),
        task(1, annotation(2, FEAR, completed_by={"email": "eve@example.com"}), annotation(3, FEAR, completed_by=9)),
        task(2, annotation(4, FEAR, result=[said("expression", "joy")]), annotation(5, FEAR, result=None)),
        task(3, annotation(6, FEAR), annotation(None, FEAR), 7),  # type: ignore[arg-type]
        task(0, annotation(8, FEAR), name="absent.png"),
        task(0, annotation(9, FEAR), name="group.png"),
        task(0, {"id": 10, "completed_by": {"email": "ann@example.com"}, "result": result}),
        task(0, name="absent too.png"),
    )
    report = read(other, path)
    assert (report.tasks, report.unmatched, report.annotations, report.stored) == (8, 3, 11, 2)
    assert report.left_out == {
        "the person is not known here": 2,
        "it is not exactly one answer": 2,
        "it has no id": 2,
        "the picture is not known here": 2,
        "it has no time": 1,
    }
    assert report.left_out_path == tmp_path / "export.json.left-out.jsonl"
    lines = [json.loads(line) for line in report.left_out_path.read_text("utf-8").splitlines()]
    reasons = {line["annotation"]: line["reason"] for line in lines if line["annotation"]}
    assert "'eve@example.com', who has no account" in reasons[2]
    assert "by 9, who" in reasons[3]
    assert "'joy' of 'expression' is no class" in reasons[4]
    assert "a result is a list" in reasons[5]
    assert "no image is called 'absent.png'" in reasons[8]
    assert "shows 2 faces" in reasons[9]
    assert json.dumps(report.as_dict())
    known = read_answers(other.workspace, other, path, {"ann@example.com": "ann", "eve@example.com": "ben", "9": "ben"})
    assert (known.stored, known.known) == (2, 2)
    assert "the person is not known here" not in known.left_out


def test_people_of_the_linked_project_are_known(other: LabelStore, tmp_path: Path) -> None:
    settings = {"users": {"ann@example.com": "ann"}}
    two_people(other)
    other.exchange.add_link("http://127.0.0.1:1", 4, "linked", settings)
    path = write(tmp_path / "a.json", task(0, annotation(1, FEAR)))
    assert read_answers(other.workspace, other, path).stored == 1
    out = tmp_path / "labels.json"
    export_tasks(other.workspace, other, out)
    assert json.loads(out.read_text("utf-8"))[0]["annotations"][0]["completed_by"] == {"email": "ann@example.com"}


def test_an_edit_is_added_and_an_older_export_is_not(other: LabelStore, tmp_path: Path) -> None:
    two_people(other)
    old = write(tmp_path / "old.json", task(0, annotation(1, FEAR)))
    new = write(tmp_path / "new.json", task(0, annotation(1, ANGER, NOW + timedelta(seconds=1))))
    assert read(other, old).stored == 1
    assert read(other, new).stored == 1
    assert labels(other)[0][:2] == ("labeled", ("anger",))
    assert read(other, old).known == 1
    assert labels(other)[0][:2] == ("labeled", ("anger",))


def test_an_answer_does_not_overrule_a_later_one_of_the_same_person(other: LabelStore, tmp_path: Path) -> None:
    ann, ben = two_people(other)
    image_id = other.images.by_rows([0])[0].image_id
    other.decisions.submit(ann, _answer("here", image_id, ANGER), now=NOW + timedelta(days=1))
    other.decisions.submit(ben, _answer("hers", image_id, ANGER), now=NOW + timedelta(days=1))
    report = read(other, write(tmp_path / "a.json", task(0, annotation(1, FEAR))))
    assert (report.stored, dict(report.left_out)) == (0, {"its author answered again": 1})
    assert labels(other)[0][:2] == ("labeled", ("anger",))
    report = read(other, write(tmp_path / "b.json", task(0, annotation(2, FEAR, NOW + timedelta(days=2)))))
    assert report.stored == 1
    assert labels(other)[0][0] == "disputed"


def test_the_last_of_a_persons_annotations_counts(other: LabelStore, tmp_path: Path) -> None:
    two_people(other)
    both = task(0, annotation(2, ANGER, NOW + timedelta(seconds=5)), annotation(1, FEAR))
    path = write(tmp_path / "a.json", both)
    assert read(other, path).stored == 2
    assert labels(other)[0][:2] == ("labeled", ("anger",))
    assert (read(other, path).known, other.decisions.count()) == (2, 2)


def test_a_configuration_of_ones_own_is_read(other: LabelStore, tmp_path: Path) -> None:
    two_people(other)
    config = (
        '<View><Image name="pic" value="$photo"/><Choices name="mood" toName="pic">'
        '<Choice value="Joyful"/><Choice value="Calm"/></Choices></View>'
    )
    made = [
        {**task(n), "data": {"photo": f"{n} é.png"}, "annotations": [annotation(n, FEAR, result=[item])]}
        for n, item in enumerate([said("mood", "Joyful", to_name="pic"), said("mood", "Calm", to_name="pic")])
    ]
    path = write(tmp_path / "a.json", *made)
    report = read(other, path, config=config)
    assert (report.stored, sum(report.left_out.values())) == (1, 1)
    assert any("'Calm'" in problem for problem in report.problems)
    report = read(other, path, config=config, overrides={"Calm": "neutral"})
    assert (report.stored, report.known) == (1, 1)
    assert [labels(other)[row][1] for row in (0, 1)] == [("happiness",), ("neutral",)]


def test_times_that_cannot_be_are_not_kept(other: LabelStore, tmp_path: Path) -> None:
    two_people(other)
    ahead = datetime.now(UTC) + timedelta(days=400)
    path = write(
        tmp_path / "a.json",
        task(0, annotation(1, FEAR, ahead, lead_time=1e9)),
        task(1, annotation(2, FEAR, lead_time=-1)),
        task(2, annotation(3, FEAR, lead_time="soon")),
        task(3, annotation(4, FEAR, lead_time=0.25)),
    )
    assert read(other, path).stored == 4
    stored: list[Annotation] = other.decisions.list()
    assert [a.duration_ms for a in stored] == [None, None, None, 250]
    assert stored[0].created_at <= datetime.now(UTC)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "not a list of tasks"),
        ('{"tasks": []}', "not a list of tasks"),
        ("image,choice\n1.png,happy\n", "not a list of tasks"),
        ("[1, 2]", "holds int where"),
        ('[{"id": 1, "image": "1.png", "expression": "fear", "annotator": 1, "annotation_id": 2}]', "JSON_MIN"),
        ('[{"image": "1.png"}]', "no JSON export"),
        ('[{"data": {}, "completions": []}]', "no JSON export"),
        ('[{"id": 1, "data": {"image": "1.png"}, "annotations": [', "is damaged behind task 0"),
        ('[{"id": 1, "data": {"image": "x"}}, {"id": NaN}]', "is damaged behind task 1"),
    ],
)
def test_other_files_are_refused_in_words(other: LabelStore, tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(InputError, match=reason):
        read_answers(other.workspace, other, tmp_path / "a.json")
    assert other.decisions.count() == 0


def test_a_file_that_is_not_there_and_a_person_who_is_not(other: LabelStore, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read"):
        read_answers(other.workspace, other, tmp_path / "absent.json")
    with pytest.raises(InputError, match="there is no account 'nobody'"):
        read_answers(other.workspace, other, write(tmp_path / "a.json"), {"a@b": "nobody"})


def test_an_empty_export_and_one_with_a_byte_order_mark(other: LabelStore, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b"\xef\xbb\xbf []")
    assert read_answers(other.workspace, other, path).tasks == 0

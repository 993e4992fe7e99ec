"""Each layout yields the samples that its lists describe, and names what is wrong before any image is read."""

import zipfile
from pathlib import Path

import pytest

from annotator import taxonomy
from annotator.errors import ImportSourceError, TaxonomyError
from annotator.ingest.crops import Box
from annotator.ingest.datasets import open_dataset
from annotator.ingest.samples import ClassNames, Layout, Sample
from tests.ingest import builders

FERPLUS = ClassNames(taxonomy.FERPLUS, keep=True)
NO_LABELS = ClassNames(taxonomy.FERPLUS, keep=False)


def opened(source: Path, format: str = "auto", names: ClassNames = FERPLUS) -> Layout:
    return open_dataset(source, format, names)[1]


def listed(source: Path, format: str = "auto", names: ClassNames = FERPLUS) -> list[Sample]:
    layout = opened(source, format, names)
    samples = list(layout.samples())
    assert len(layout) == len(samples)
    return samples


def zipped(folder: Path) -> Path:
    archive = folder.with_suffix(".zip")
    with zipfile.ZipFile(archive, "w") as out:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                out.write(path, path.relative_to(folder))
    return archive


def test_an_image_folder_takes_split_and_class_from_its_folders(tmp_path: Path) -> None:
    folder = builders.image_folder(tmp_path / "faces")
    samples = listed(folder)
    assert len(samples) == 12
    assert {(s.path, s.split, s.given) for s in samples} >= {
        ("train/happiness/0.png", "pool", "happiness"),
        ("val/Sad/1.png", "val", "sadness"),
        ("test/Sad/0.png", "test", "sadness"),
    }
    assert opened(folder).findings.ignored_files == 1
    assert listed(zipped(folder)) == samples


def test_an_image_folder_needs_neither_splits_nor_classes(tmp_path: Path) -> None:
    builders.write_picture(tmp_path / "b.png", 1)
    builders.write_picture(tmp_path / "deep" / "er" / "a.png", 2)
    samples = listed(tmp_path)
    assert [(s.path, s.split, s.given) for s in samples] == [
        ("b.png", "pool", None),
        ("deep/er/a.png", "pool", None),
    ]
    assert any("no class of the workspace" in note for note in opened(tmp_path).findings.notes)


def test_a_class_folder_that_the_workspace_lacks_is_named_with_the_remedy(tmp_path: Path) -> None:
    builders.write_picture(tmp_path / "happiness" / "a.png", 1)
    builders.write_picture(tmp_path / "boredom" / "a.png", 2)
    with pytest.raises(TaxonomyError, match=r"boredom.*--labels-as none"):
        opened(tmp_path)
    assert [s.given for s in listed(tmp_path, names=NO_LABELS)] == [None, None]


def test_an_empty_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(ImportSourceError, match="holds no images"):
        opened(tmp_path)


ROWS = [
    {
        "path": "a.png",
        "label": "happiness",
        "split": "val",
        "subject_id": "s1",
        "happiness": 7,
        "unusable": 3,
        "note": "",
    },
    {"path": "b.png", "label": "", "split": "", "subject_id": "", "happiness": 0, "unusable": 0, "note": "x"},
    {"path": "c.png", "label": "", "split": "train", "subject_id": "s2", "happiness": 2, "unusable": 8, "note": ""},
]


def test_a_csv_manifest_gives_labels_votes_splits_and_subjects(tmp_path: Path) -> None:
    builders.write_csv(tmp_path / "list.csv", ROWS)
    assert listed(tmp_path / "list.csv") == [
        Sample("a.png", "val", "happiness", {"happiness": 7, "unusable": 3}, "s1"),
        Sample("b.png"),
        Sample("c.png", "pool", "unusable", {"happiness": 2, "unusable": 8}, "s2"),
    ]
    assert opened(tmp_path / "list.csv").findings.notes == ["columns not used: note"]


def test_a_jsonl_manifest_says_the_same(tmp_path: Path) -> None:
    rows = [
        ROWS[0] | {"votes": {"happiness": 7, "unusable": 3}, "crop": [1, 2, 30, 40], "subject_id": None},
        {"path": "b.png", "label": None},
    ]
    builders.write_jsonl(tmp_path / "list.jsonl", rows)
    assert listed(tmp_path / "list.jsonl", "jsonl") == [
        Sample("a.png", "val", "happiness", {"happiness": 7, "unusable": 3}, None, Box(1, 2, 30, 40)),
        Sample("b.png"),
    ]


def test_the_demo_faces_are_a_manifest(faces: Path) -> None:
    samples = listed(faces)
    assert len(samples) == 64
    assert {s.split for s in samples} == {"pool", "val"}
    assert all(sum((s.votes or {}).values()) == 10 for s in samples)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("label\nhappiness\n", "no `path`"),
        ("path,split\na.png,sideways\n", "line 2.*sideways"),
        ("path,happiness\na.png,many\n", "line 2.*many"),
        ("path,happiness\na.png,-1\n", "line 2.*-1"),
        ("path\na.png,extra\n", "line 2.*more fields"),
        ("path,crop\na.png,1\n", "line 2.*crop"),
        ("path,votes\na.png,[\n", "line 2.*votes"),
        ('path\n"a.png\n', "line"),
        ("path\n", "lists no images"),
        ("", "lists no images"),
    ],
)
def test_malformed_manifests_name_the_line(tmp_path: Path, text: str, expected: str) -> None:
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(ImportSourceError, match=expected):
        opened(tmp_path / "list.csv")


@pytest.mark.parametrize("data", [b"path\n\xff\xfe.png\n", b"path\n" + b"a" * 2_000_000])
def test_manifests_that_are_no_text_are_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "list.csv").write_bytes(data)
    with pytest.raises(ImportSourceError, match=r"UTF-8|characters|field"):
        opened(tmp_path / "list.csv")


@pytest.mark.parametrize("line", ["{", "[1]", '{"path": 3}', '{"path": "a.png", "votes": [1]}', "[" * 100_000])
def test_malformed_json_lines_are_refused(tmp_path: Path, line: str) -> None:
    (tmp_path / "list.jsonl").write_text('{"path": "ok.png"}\n' + line + "\n")
    with pytest.raises(ImportSourceError, match="line 2"):
        opened(tmp_path / "list.jsonl")


def test_an_unknown_label_in_a_manifest_is_named(tmp_path: Path) -> None:
    builders.write_csv(tmp_path / "list.csv", [{"path": "a.png", "label": "boredom"}])
    with pytest.raises(TaxonomyError, match=r"list.csv line 2: class 'boredom'"):
        opened(tmp_path / "list.csv")
    assert listed(tmp_path / "list.csv", names=NO_LABELS) == [Sample("a.png")]


def test_ferplus_maps_splits_and_keeps_ten_votes(tmp_path: Path) -> None:
    folder = builders.ferplus_folder(tmp_path / "fer")
    samples = listed(folder)
    assert len(samples) == 8
    by_path = {s.path: s for s in samples}
    assert by_path["FER2013Train/fer0.png"].votes == {"neutral": 9, "unusable": 1}
    assert by_path["FER2013Train/fer1.png"].given == "surprise"  # a tie goes to the first column
    assert by_path["FER2013Train/fer2.png"] == Sample(
        "FER2013Train/fer2.png", "pool", "unusable", {"anger": 2, "unusable": 8}
    )
    assert by_path["FER2013Valid/fer10.png"].split == "val"
    assert opened(folder).findings.notes == ["FER2013Test is not there: 1 rows of fer2013new.csv left out"]
    assert listed(zipped(folder)) == samples


def test_ferplus_needs_a_workspace_with_its_classes(tmp_path: Path) -> None:
    folder = builders.ferplus_folder(tmp_path / "fer")
    with pytest.raises(TaxonomyError, match="contempt"):
        opened(folder, names=ClassNames(taxonomy.RAFDB, keep=True))


def test_ferplus_without_its_list_or_columns_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImportSourceError, match=r"fer2013new\.csv.*missing"):
        opened(tmp_path, "ferplus")
    (tmp_path / "fer2013new.csv").write_text("Usage,Image name\nTraining,a.png\n")
    with pytest.raises(ImportSourceError, match="no column neutral"):
        opened(tmp_path, "ferplus")


def test_rafdb_counts_classes_from_one_in_its_own_order(tmp_path: Path) -> None:
    samples = listed(builders.rafdb_folder(tmp_path))
    assert [s.given for s in samples] == list(taxonomy.RAFDB.slugs)
    assert samples[0] == Sample("Image/aligned/train_00001_aligned.jpg", "pool", "surprise")
    assert samples[-1] == Sample("Image/aligned/test_0001_aligned.jpg", "test", "neutral")


@pytest.mark.parametrize("line", ["train_1.jpg 8", "train_1.jpg 0", "train_1.jpg", "train_1.jpg x", "other.jpg 1"])
def test_malformed_rafdb_lines_are_refused(tmp_path: Path, line: str) -> None:
    folder = builders.rafdb_folder(tmp_path)
    (folder / "EmoLabel" / "list_patition_label.txt").write_text(f"train_00001.jpg 1\n{line}\n")
    with pytest.raises(ImportSourceError, match="line 2"):
        opened(folder)


def test_affectnet_maps_codes_and_crops_to_the_face(tmp_path: Path) -> None:
    samples = listed(builders.affectnet_folder(tmp_path))
    prefix = "Manually_Annotated_Images/1/"
    assert samples == [
        Sample(prefix + "a.png", "pool", "happiness", crop=Box(0, 0, 30, 30)),
        Sample(prefix + "a.png", "pool", "anger", crop=Box(20, 20, 40, 40)),
        Sample(prefix + "b.png", "pool"),  # uncertain: no label
        Sample(prefix + "b.png", "pool", "unusable", crop=Box(1, 1, 20, 20)),
        Sample(prefix + "b.png", "val", "contempt", crop=Box(5, 5, 50, 50)),
    ]


def test_affectnet_needs_contempt_only_where_it_occurs(tmp_path: Path) -> None:
    folder = builders.affectnet_folder(tmp_path)
    with pytest.raises(TaxonomyError, match="contempt"):
        opened(folder, names=ClassNames(taxonomy.AFFECTNET7, keep=True))
    assert len(listed(folder / "training.csv", "affectnet", ClassNames(taxonomy.AFFECTNET7, keep=True))) == 4


def test_formats_have_the_names_people_use_and_others_are_refused(tmp_path: Path) -> None:
    folder = builders.image_folder(tmp_path / "faces")
    assert len(listed(folder, "imagefolder")) == 12
    with pytest.raises(ImportSourceError, match=r"'coco' is not one of .*ferplus"):
        opened(folder, "coco")
    with pytest.raises(ImportSourceError, match="does not exist"):
        opened(tmp_path / "none")
    with pytest.raises(ImportSourceError, match=r"holds no manifest\.csv"):
        opened(folder, "manifest")

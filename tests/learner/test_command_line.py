import csv
import io
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from learner import manifest as manifests
from learner.cli import main
from learner.errors import InputError
from learner.manifest import FERPLUS, Manifest, choose_labels
from tests.learner.runs import CLASSES, patterns


def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    """Run the command line in this process."""
    monkeypatch.setattr(sys, "argv", ["learner", *map(str, words)])
    with pytest.raises(SystemExit) as caught:
        main()
    shown = capsys.readouterr()
    return int(caught.value.code or 0), shown.out, shown.err


@pytest.fixture
def faces_csv(tmp_path: Path) -> Path:
    """Sixty patterns: forty to train on, ten of them without a label, twenty held out."""
    images, label = patterns(60)
    lines = ["path,label,split"]
    for row in range(60):
        Image.fromarray(images[row]).save(tmp_path / f"{row}.png")
        name = "" if 30 <= row < 40 else CLASSES[label[row]]
        lines.append(f"{row}.png,{name},{'train' if row < 40 else 'val'}")
    path = tmp_path / "faces.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def small(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(
        "image_size: 24\nlabeled_batch: 8\nunlabeled_batch: 8\nthreads: 1\nbackbone: {name: resnet10_small}\n"
    )
    return path


def test_train_evaluate_and_predict_without_a_workspace(
    tmp_path: Path, faces_csv: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    options = ("--config", small(tmp_path), "--method", "fixmatch", "--steps", 8, "--labels-per-class", 3, "--seed", 1)
    code, out, _ = call(monkeypatch, capsys, "train", faces_csv, run, *options)
    assert code == 0
    assert '"val"' in out
    metrics = json.loads((run / "out" / "metrics.json").read_text())
    assert (metrics["counts"]["labeled"], metrics["counts"]["unlabeled"], metrics["val"]["num"]) == (12, 28, 20)
    code, out, _ = call(monkeypatch, capsys, "evaluate", run, faces_csv)
    assert code == 0
    again = json.loads(out)
    assert again["confusion"] == metrics["val"]["confusion"]
    assert again["balanced"] == pytest.approx(metrics["val"]["balanced"])
    code, _, _ = call(monkeypatch, capsys, "predict", run, faces_csv, tmp_path / "out.parquet")
    assert code == 0
    table = pq.read_table(tmp_path / "out.parquet")
    assert table.num_rows == 60
    assert table.column("path")[0].as_py() == str(tmp_path / "0.png")
    probs = np.array(table.column("p").to_pylist())
    saved = dict(zip(np.load(run / "out" / "rows.npy").tolist(), np.load(run / "out" / "probs.npy"), strict=True))
    assert np.allclose(probs[45], saved[45], atol=1e-5)
    assert {"view_js", "entropy"} <= set(table.column_names)
    # The same command finds its own result; another one does not overwrite it.
    assert call(monkeypatch, capsys, "train", faces_csv, run, *options)[0] == 0
    code, _, err = call(monkeypatch, capsys, "train", faces_csv, run, *options[:-1], 2)
    assert code == 2
    assert "another configuration" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("train", "none.csv", "run"), "no manifest none.csv"),
        (("train", "faces.csv", "run", "--method", "magic", "--steps", "2"), "unknown method 'magic'"),
        (("train", "faces.csv", "run", "--backbone", "resnet19"), "no backbone 'resnet19'"),
        (("train", "faces.csv", "run", "--labels", "8", "--labels-per-class", "2"), "not both"),
        (("train", "faces.csv", "run", "--config", "none.yaml"), "cannot read configuration"),
        (("train", "faces.csv", "run", "--image-size", "5"), "image_size"),
        (("evaluate", "run", "faces.csv"), "no trained model"),
        (("round", "run"), "cannot read configuration"),
        (("train", "broken.csv", "run"), "line 2: split 'dev'"),
        (("train", "unknown.csv", "run", "--classes", "a,b"), "unknown class 'c'"),
        (("train", "missing.csv", "run"), "cannot read image"),
        (("train", "nocolumns.csv", "run"), "lacks the columns label, split"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    tmp_path: Path,
    faces_csv: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.chdir(faces_csv.parent)
    Path("broken.csv").write_text("path,label,split\n0.png,plain,dev\n1.png,bright,train\n")
    Path("unknown.csv").write_text("path,label,split\n0.png,a,train\n1.png,c,train\n")
    Path("missing.csv").write_text("path,label,split\n0.png,a,train\nnowhere.png,c,train\n")
    Path("nocolumns.csv").write_text("path\n0.png\n")
    code, _, err = call(monkeypatch, capsys, *words)
    assert code == 2
    told = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(told) == 1
    assert message in told[0]
    assert "Traceback" not in err


def test_an_image_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(b"<svg/>")
    with pytest.raises(InputError, match=r"cannot read image .*x\.png"):
        manifests.decode((tmp_path / "x.png").read_bytes(), 24, str(tmp_path / "x.png"))


def test_unusable_images_have_no_class(tmp_path: Path) -> None:
    path = tmp_path / "manifest.csv"
    path.write_text("path,label,split\na.png,x,train\nb.png,unusable,train\nc.png,y,val\n")
    manifest = Manifest.read(path)
    assert manifest.classes == ("x", "y")
    assert manifest.label.tolist() == [0, -1, 1]
    assert Manifest.read(path, ("x", "unusable", "y")).label.tolist() == [0, 1, 2], "asked for by name, it is one"


def test_votes_give_the_label_where_none_is_written(tmp_path: Path) -> None:
    path = tmp_path / "v.csv"
    path.write_text(
        "path,label,split,votes\na.png,,train,1;5;4\nb.png,x,train,0;9;0\nc.png,,train,\nd.png,,val,0;0;0\n"
    )
    assert Manifest.read(path, ["x", "y", "z"]).label.tolist() == [1, 0, -1, -1]
    path.write_text("path,label,split,votes\na.png,,train,1;5\n")
    with pytest.raises(InputError, match="2 votes for 3 classes"):
        Manifest.read(path, ["x", "y", "z"])


def test_ferplus_zips_follow_the_plurality_rule(tmp_path: Path) -> None:
    png = io.BytesIO()
    Image.new("L", (48, 48), 90).save(png, "PNG")
    header = ["Usage", "Image name", *FERPLUS, "unknown", "NF"]
    records = [
        ["Training", "a.png", 4, 0, 0, 1, 3, 2, 0, 0, 0, 0],
        ["Training", "a.png", 0, 9, 0, 0, 0, 0, 0, 0, 0, 0],  # named twice: the first counts
        ["Training", "b.png", 1, 0, 0, 0, 0, 0, 2, 0, 7, 0],  # unknown wins: no label
        ["PublicTest", "c.png", 0, 0, 0, 0, 0, 0, 5, 5, 0, 0],  # a tie: the first class
        ["PublicTest", "gone.png", 9, 0, 0, 0, 0, 0, 0, 0, 0, 0],  # not in the archive
    ]
    path = tmp_path / "fer.zip"
    with zipfile.ZipFile(path, "w") as archive:
        text = io.StringIO()
        csv.writer(text).writerows([header, *records])
        archive.writestr("fer2013new.csv", text.getvalue())
        for name in ("FER2013Train/a.png", "FER2013Train/b.png", "FER2013Valid/c.png"):
            archive.writestr(name, png.getvalue())
    read = Manifest.read(path)
    assert read.names == ["FER2013Train/a.png", "FER2013Train/b.png", "FER2013Valid/c.png"]
    assert read.label.tolist() == [0, -1, 6]
    assert read.rows("val").tolist() == [2]


def test_real_ferplus_counts(ferplus_zip: Path) -> None:
    read = Manifest.read(ferplus_zip)
    label = read.label[read.labeled("train")]
    assert len(label) == 28386
    assert np.bincount(label).tolist()[5:] == [191, 652, 165]
    assert len(read.labeled("val")) == 3553


def test_labels_are_drawn_evenly_and_by_their_own_seed(faces_csv: Path) -> None:
    read = Manifest.read(faces_csv)
    chosen = choose_labels(read, 4, 0)
    assert np.bincount(read.label[chosen]).tolist() == [4, 4, 4, 4]
    assert (chosen == choose_labels(read, 4, 0)).all()
    assert (chosen != choose_labels(read, 4, 1)).any()
    assert len(choose_labels(read, None, 0)) == 30


def test_the_module_runs_as_a_program() -> None:
    shown = subprocess.run([sys.executable, "-m", "learner", "--help"], capture_output=True, text=True, check=True)
    for command in ("round", "train", "evaluate", "predict"):
        assert command in shown.stdout

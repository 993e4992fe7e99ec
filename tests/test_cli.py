"""The commands, run as people run them: in a process of their own."""

import csv
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from annotator.commands.learning import parse_interval
from annotator.errors import InputError
from annotator.ingest import demo_faces
from tests.zygote import Zygote

Command = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def annotator(zygote: Zygote) -> Command:
    """Return a function that runs one command and returns its outcome."""

    def run(*arguments: str | Path, cwd: Path | None = None, **environment: str) -> "subprocess.CompletedProcess[str]":
        return zygote.run(["annotator", *map(str, arguments)], cwd, environment)

    return run


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory, annotator: Command) -> Path:
    """A workspace with forty imported demo faces."""
    root = tmp_path_factory.mktemp("cli")
    demo_faces.generate(root / "faces", 40, seed=1)
    assert annotator("init", root / "study").returncode == 0
    done = annotator("import", root / "study", root / "faces" / "manifest.csv", "--format", "manifest", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["added"] == 40
    return root / "study"


def test_status_counts_every_imported_sample(annotator: Command, study: Path) -> None:
    status = json.loads(annotator("status", study, "--json").stdout)
    images = status["images"]
    assert sum(images[k] for k in ("pool", "val", "test", "quarantined", "leak")) == 40
    assert status["annotations"] == 0
    assert set(status["labels"]) >= {"labeled", "partial", "disputed", "unlabeled"}
    assert status["snapshots"] == []
    assert set(status["queue"]) >= {"mode", "model", "behind"}
    assert set(status["learner"]) >= {"state", "progress"}


def test_a_second_import_adds_nothing(annotator: Command, study: Path) -> None:
    again = annotator("import", study, study.parent / "faces" / "manifest.csv", "--format", "manifest", "--json")
    assert json.loads(again.stdout)["added"] == 0


def test_export_has_one_row_per_face(annotator: Command, study: Path, tmp_path: Path) -> None:
    done = annotator("export", study, tmp_path / "labels.csv", "--format", "csv")
    assert done.returncode == 0, done.stderr
    with (tmp_path / "labels.csv").open(newline="") as stream:
        assert len(list(csv.DictReader(stream))) == 40


def test_backup_restore_verify(annotator: Command, study: Path, tmp_path: Path) -> None:
    assert annotator("backup", study, tmp_path / "study.tar").returncode == 0
    assert annotator("restore", tmp_path / "study.tar", tmp_path / "again").returncode == 0
    checked = annotator("verify", tmp_path / "again", "--json")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    both = [json.loads(annotator("status", root, "--json").stdout)["images"] for root in (study, tmp_path / "again")]
    assert both[0] == both[1]


def test_accounts_are_added_listed_disabled_and_reset(annotator: Command, study: Path) -> None:
    added = annotator("users", "add", study, "ada", "--role", "reviewer", ANNOTATOR_PASSWORD="long enough for ada")
    assert added.returncode == 0, added.stderr
    assert annotator("users", "disable", study, "ada").returncode == 0
    listed = {u["name"]: u for u in json.loads(annotator("users", "list", study, "--json").stdout)}
    assert listed["ada"] == {"name": "ada", "role": "reviewer", "disabled": True, "simulated": False}
    assert annotator("users", "reset", study, "ada", ANNOTATOR_PASSWORD="another long one").returncode == 0
    listed = {u["name"]: u for u in json.loads(annotator("users", "list", study, "--json").stdout)}
    assert listed["ada"]["disabled"] is False


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["status", "nowhere"], "annotator init"),
        (["init", "{study}"], "already"),
        (["init", "new", "--classes", "moods"], "moods"),
        (["init", "new", "--method", "lion", "--method", "loin"], "'loin'"),
        (["import", "{study}", "missing-folder"], "missing-folder"),
        (["import", "{study}", ".", "--format", "tarot"], "tarot"),
        (["export", "{study}", "/nonexistent/labels.csv"], "/nonexistent"),
        (["users", "disable", "{study}", "nobody"], "nobody"),
        (["users", "add", "{study}", "x" * 200], "120 characters"),
        (["retrain", "{study}", "--every", "soon"], "soon"),
        (["retrain", "{study}", "--method", "magic"], "magic"),
        (["evaluate", "{study}", "--split", "train"], "train"),
        (["restore", "missing.tar", "there"], "missing.tar"),
        (["simulate", "{study}"], "annotator up"),
        (["erase", "{study}"], "--image"),
        (["serve", "{bare}", "--host", "0.0.0.0"], "0.0.0.0"),
        (["frobnicate"], "frobnicate"),
    ],
)
def test_bad_input_is_one_clear_line_and_exit_code_2(
    annotator: Command, study: Path, tmp_path: Path, arguments: list[str], words: str
) -> None:
    if "{bare}" in arguments:
        assert annotator("init", tmp_path / "bare").returncode == 0
    filled = [a.replace("{study}", str(study)).replace("{bare}", str(tmp_path / "bare")) for a in arguments]
    done = annotator(*filled, cwd=tmp_path, ANNOTATOR_PASSWORD="long enough for anyone")
    assert done.returncode == 2, done.stdout + done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_the_program_itself_starts_and_refuses() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "annotator", "frobnicate"], capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, "frobnicate" in done.stderr) == (2, True)


@pytest.mark.parametrize(("text", "seconds"), [("45s", 45), ("30m", 1800), ("1.5h", 5400), ("1d", 86400)])
def test_intervals(text: str, seconds: float) -> None:
    assert parse_interval(text) == seconds


@pytest.mark.parametrize("text", ["", "30", "m", "-5m", "0s", "5 parsecs"])
def test_wrong_intervals_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="30m"):
        parse_interval(text)

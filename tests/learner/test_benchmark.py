"""The benchmark's runs: resumable, unchanged by being watched, honest about what was evaluated."""

import csv
import json
import os
import shutil
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from learner import checkpoint
from learner.benchmark import cell as cells
from learner.benchmark import tables
from learner.benchmark.cell import run_cell
from learner.benchmark.grid import Grid
from learner.benchmark.runner import Standing, only_one
from learner.benchmark.watch import Watcher, read_log
from learner.cli import main
from learner.errors import InputError
from learner.evaluate import evaluate
from learner.round import StoppedError, run_round
from tests.learner.grids import HELD, TRAIN, images_csv, run_all, settings


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Grid]:
    """The folder of images, a finished benchmark on them, and its grid."""
    folder = tmp_path_factory.mktemp("images")
    images_csv(folder, copies=3)
    return folder, folder / "out", run_all(settings(), folder, folder / "out")


def result(out: Path, method: str = "fixmatch", seed: int = 0) -> tuple[Path, dict[str, Any]]:
    folder = out / "cells" / "patterns" / "leaf-8" / method / f"seed{seed}"
    return folder, json.loads((folder / "results.json").read_text())


def test_every_cell_reports_the_last_averaged_model(finished: tuple[Path, Path, Grid]) -> None:
    _, out, grid = finished
    for made in grid.cells():
        folder, found = result(out, made.method.title, made.seed)
        rows, probs = np.load(folder / "out" / "rows.npy"), np.load(folder / "out" / "probs.npy")
        truth = np.load(out / "data" / "patterns" / "truth.npy")
        again = evaluate(probs, truth[rows], tuple(found["classes"]))
        assert {k: found["last"][k] for k in again.as_dict()} == json.loads(json.dumps(again.as_dict()))
        assert found["initialisation"] == "resnet10_small, random start"
        assert (found["counts"], found["steps"], found["split_seed"]) == ([2, 2, 2, 2], 12, made.seed)
        assert [v["step"] for v in found["validation"]] == [3, 6, 9, 12]
        assert (
            found["best_on_val"]["num"] + len(np.load(out / "data" / "patterns" / "evaluation.npz")["kept_out"]) == HELD
        )
        assert found["seconds"] > 0
        assert found["cpu_seconds"] > 0
        assert not (folder / "checkpoint").exists()
        assert not list(folder.glob("best-*"))
    assert result(out, "supervised")[1]["labels_hash"] == result(out)[1]["labels_hash"]
    assert result(out, seed=1)[1]["labels_hash"] != result(out)[1]["labels_hash"]
    assert result(out, "supervised")[1]["preset_hash"] != result(out)[1]["preset_hash"]
    assert result(out, seed=1)[1]["preset_hash"] == result(out)[1]["preset_hash"]


def test_copies_of_training_images_are_not_evaluated(finished: tuple[Path, Path, Grid]) -> None:
    _, out, _ = finished
    folder, found = result(out)
    copies = json.loads((out / "data" / "patterns" / "copies.json").read_text())
    assert (copies["asked"], copies["evaluated"], copies["left_out_exact"], copies["left_out_near"]) == (27, 24, 3, 0)
    assert found["last"]["num"] == HELD
    assert np.load(folder / "all.npy").tolist() == list(range(TRAIN, TRAIN + HELD))
    unlabeled = np.load(folder / "unlabeled.npy")
    assert len(unlabeled) == TRAIN - 8
    assert {40, 41} <= set(unlabeled.tolist())  # no known class: in the pool, never a label


def test_facemix_gets_the_boxes_of_its_images_and_says_when_there_are_none(
    finished: tuple[Path, Path, Grid], tmp_path: Path
) -> None:
    folder, _, _ = finished
    low = np.random.default_rng(0).random((TRAIN, 2)) / 2
    np.save(tmp_path / "boxes.npy", np.concatenate([low, low + 0.4], axis=1).astype(np.float32))
    entry = settings()["datasets"][0]
    methods = {"methods": [{"name": "mixup"}, {"name": "facemix", "host": "mixup"}], "split_seeds": [0]}
    found = {}
    for name, more in (("boxes", {"boxes": str(tmp_path / "boxes.npy")}), ("none", {})):
        data = settings(**methods, datasets=[entry | more])
        run_all(data, folder, tmp_path / name)
        found[name] = {method: result(tmp_path / name, method)[1] for method in ("mixup", "facemix")}
    assert found["boxes"]["facemix"]["logs"]["facemix/kappa"] > 0
    assert found["boxes"]["facemix"]["notes"] == found["none"]["mixup"]["notes"] == []
    assert "no face box" in found["none"]["facemix"]["notes"][0]
    assert found["none"]["facemix"]["last"] == found["none"]["mixup"]["last"], "it is Mixup, then"
    with pytest.raises(InputError, match="another boxes_hash"):
        run_all(settings(**methods), folder, tmp_path / "boxes")


def test_pseudo_labels_are_counted_only_where_the_truth_is_known(finished: tuple[Path, Path, Grid]) -> None:
    _, out, _ = finished
    folder, found = result(out)
    pseudo = [record["pseudo"] for record in read_log(folder) if "pseudo" in record]
    assert [p["steps"] for p in pseudo] == [3, 3, 3, 3]
    seen = sum(sum(p["seen"]) for p in pseudo)
    assert 12 * 8 - 2 * 4 <= seen < 12 * 8  # 96 draws of 40 rows: the two unknown ones come two or three times each
    used, right = sum(sum(p["used"]) for p in pseudo), sum(sum(p["right"]) for p in pseudo)
    assert found["pseudo"]["coverage"]["all"] == pytest.approx(used / seen)
    assert found["pseudo"]["precision"]["all"] == pytest.approx(right / used)
    assert result(out, "supervised")[1]["pseudo"] == {}


def without_times(folder: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in record.items() if k not in ("cpu", "seconds")} for record in read_log(folder)]


def test_watching_changes_no_weight(finished: tuple[Path, Path, Grid], tmp_path: Path) -> None:
    folder, _ = result(finished[1])
    alone = tmp_path / "alone"
    alone.mkdir()
    for name in ("config.json", "view.npz", "unlabeled.npy", "all.npy", "eval.npz", "pool.json"):
        shutil.copy(folder / name, alone / name)
    out = run_round(alone)
    for name in ("model.safetensors", "state.safetensors", "probs.npy"):
        assert (out / name).read_bytes() == (folder / "out" / name).read_bytes()


@pytest.mark.parametrize("at", [9, 12])
def test_a_killed_cell_goes_on_as_if_nothing_had_happened(
    finished: tuple[Path, Path, Grid], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    class PowerCutError(Exception):
        pass

    class Failing(Watcher):
        def __call__(self, trainer: Any, ctx: Any) -> None:
            super().__call__(trainer, ctx)
            if ctx.clock.step + 1 == at:
                raise PowerCutError

    folder, out, _ = finished
    other = tmp_path / "out"
    shutil.copytree(out / "data", other / "data")
    only = ("*/fixmatch/seed0",)
    monkeypatch.setattr(cells, "Watcher", Failing)
    with pytest.raises(PowerCutError):
        run_all(settings(), folder, other, only=only)
    monkeypatch.undo()
    killed = other / "cells" / "patterns" / "leaf-8" / "fixmatch" / "seed0"
    with (killed / "watch.jsonl").open("a") as file:
        file.write('{"step": 13, "va')  # cut short
    run_all(settings(), folder, other, only=only)
    (whole, first), (again, second) = result(out), result(other)
    assert (whole / "out" / "probs.npy").read_bytes() == (again / "out" / "probs.npy").read_bytes()
    assert without_times(whole) == without_times(again)
    times = {"seconds", "cpu_seconds", "steps_per_second", "validation_seconds"}
    assert {k: v for k, v in first.items() if k not in times} == {k: v for k, v in second.items() if k not in times}


def test_finished_cells_are_kept_and_others_added(finished: tuple[Path, Path, Grid], tmp_path: Path) -> None:
    folder, out, _ = finished
    copied = tmp_path / "moved"
    shutil.copytree(out, copied)
    before = {path: path.stat().st_mtime_ns for path in copied.rglob("results.json")}
    more = settings(
        methods=[*settings()["methods"], {"name": "fixmatch", "label": "eager", "options": {"threshold": 0.2}}]
    )
    run_all(more, folder, copied, only=("*/seed0",))
    assert result(copied, "eager")[1]["last"]["num"] == HELD
    assert {path: path.stat().st_mtime_ns for path in before} == before
    changed = settings(methods=[{"name": "supervised"}, {"name": "fixmatch", "options": {"threshold": 0.7}}])
    with pytest.raises(InputError, match="another options, preset_hash"):
        run_all(changed, folder, copied)


def test_a_worker_process_finds_what_this_one_finds(finished: tuple[Path, Path, Grid], tmp_path: Path) -> None:
    folder, out, _ = finished
    other = tmp_path / "out"
    shutil.copytree(out / "data", other / "data")
    run_all(settings(), folder, other, jobs=2, only=("*/fixmatch/seed0",))
    mine, theirs = result(out)[0] / "out" / "probs.npy", result(other)[0] / "out" / "probs.npy"
    assert mine.read_bytes() == theirs.read_bytes()


def test_a_diverged_cell_is_written_down_and_the_rest_runs(finished: tuple[Path, Path, Grid], tmp_path: Path) -> None:
    folder, out, _ = finished
    other = tmp_path / "out"
    shutil.copytree(out / "data", other / "data")
    wild = {"name": "supervised", "label": "wild", "run": {"optimizer": {"name": "sgd", "lr": 1e30}}}
    grid = run_all(settings(methods=[wild, {"name": "supervised"}], split_seeds=[0]), folder, other)
    cell = other / "cells/patterns/leaf-8/wild/seed0"
    assert "diverged" in json.loads((cell / "failed.json").read_text())["message"]
    groups = tables.gather(grid, other)
    assert [group.method.title for group in groups] == ["supervised"]
    assert run_cell(cell) is None  # a second try fails the same way, without a traceback
    assert not (cell / "results.json").exists()


def test_the_table_holds_means_deviations_and_what_it_was_paired_with(finished: tuple[Path, Path, Grid]) -> None:
    _, out, grid = finished
    groups = tables.gather(grid, out)
    report = tables.write(grid, groups, out).read_text()
    with (out / "table.csv").open() as file:
        rows = {row["method"]: row for row in csv.DictReader(file)}
    values = [result(out, "fixmatch", seed)[1]["last"]["balanced"] for seed in (0, 1)]
    base = [result(out, "supervised", seed)[1]["last"]["balanced"] for seed in (0, 1)]
    row = rows["fixmatch"]
    assert float(row["balanced"]) == pytest.approx(np.mean(values), abs=1e-5)
    assert float(row["balanced_std"]) == pytest.approx(np.std(values, ddof=1), abs=1e-5)
    assert float(row["host_gain_mean"]) == pytest.approx(np.mean(values) - np.mean(base), abs=1e-5)
    assert float(row["host_gain_low"]) <= float(row["host_gain_mean"]) <= float(row["host_gain_high"])
    assert (row["host"], rows["supervised"]["host"], row["seeds"], row["labels"]) == ("supervised", "", "2", "8")
    assert "resnet10_small, random start" in report
    assert "24 of 27 images are evaluated" in report
    assert "3 exact" in report
    with (out / "per_class.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 2 * 2 * 4


def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str]:
    monkeypatch.setattr(sys, "argv", ["learner", *map(str, words)])
    with pytest.raises(SystemExit) as caught:
        main()
    return int(caught.value.code or 0), capsys.readouterr().err


def test_the_command_reports_what_is_there(
    finished: tuple[Path, Path, Grid], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out, _ = finished
    config = folder / "grid.yaml"
    config.write_text(yaml.safe_dump(settings()))
    data = ("--data", f"patterns={folder / 'faces.csv'}")
    code, shown = call(monkeypatch, capsys, "benchmark", config, out, *data, "--no-figures")
    assert code == 0
    assert "report.md" in shown
    assert (out / "report.md").exists()
    with only_one(out):
        code, shown = call(monkeypatch, capsys, "benchmark", config, out, *data)
    assert code == 2
    assert "another benchmark runs" in shown
    code, shown = call(monkeypatch, capsys, "benchmark", config, folder / "empty", "--report-only")
    assert code == 2
    assert "no finished run" in shown


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"methods": [{"name": "magic"}]}, "unknown method 'magic'"),
        ({"methods": [{"name": "fixmatch", "options": {"tau": 1}}]}, "tau"),
        ({"methods": [{"name": "fixmatch"}, {"name": "fixmatch"}]}, "methods names fixmatch twice"),
        ({"methods": [{"name": "fixmatch", "host": "nobody"}]}, "host 'nobody' is none of fixmatch"),
        ({"methods": [{"name": "fixmatch", "label": "a/b"}]}, "methods.0.label"),
        ({"run": {"steps": 0}}, "steps"),
        ({"run": {"stepps": 3}}, "stepps"),
        ({"run": {"seed": 3}}, "run.seed is set by"),
        ({"run": {"log_every": 20, "checkpoint_every": 50}}, "multiple of log_every"),
        ({"splits": [{"protocol": "leaf", "amounts": []}]}, "splits.0.amounts"),
        ({"splits": [{"protocol": "guess"}]}, "splits.0.protocol"),
        ({"colour": "red"}, "colour"),
        ({"split_seeds": [1, 1]}, "split_seeds names 1 twice"),
    ],
)
def test_a_bad_grid_is_named_before_anything_runs(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Grid.parse(settings(**change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"splits": [{"protocol": "leaf", "amounts": [3]}]}, "patterns, leaf-3: 3 labels are fewer than 4 classes"),
        ({"splits": [{"protocol": "adacm", "amounts": [100]}]}, "with a class fear"),
        (
            {"datasets": [{"name": "x", "kind": "csv", "source": "no.csv"}]},
            "no data at no.csv; give its place with --data",
        ),
        ({"datasets": [{"name": "patterns", "kind": "csv", "source": "faces.csv", "evaluate": "test"}]}, "split test"),
    ],
)
def test_what_does_not_fit_the_data_is_named(
    finished: tuple[Path, Path, Grid], tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        run_all(settings(**change), finished[0], tmp_path / "out")


def test_the_estimate_knows_each_methods_pace() -> None:
    standing = Standing({"a0": 10, "a1": 10, "b0": 10, "b1": 10}, {"a0": "a", "a1": "a", "b0": "b", "b1": "b"})
    assert standing.seconds_left(1) is None
    standing.finish("a0", 2.0, failed=False)
    assert standing.seconds_left(1) == pytest.approx(3 * 10 * 2)  # nothing known of b: as long as a
    standing.note("b0", {"state": "training", "step": 5, "eta_s": 50.0})
    assert standing.seconds_left(2) == pytest.approx((10 * 2 + 5 * 10 + 10 * 10) / 2)
    assert standing.share == pytest.approx(15 / 40)


def test_a_stop_request_saves_what_the_workers_have(finished: tuple[Path, Path, Grid], tmp_path: Path) -> None:
    folder, out, _ = finished
    other = tmp_path / "out"
    shutil.copytree(out / "data", other / "data")
    endless = settings(methods=[{"name": "supervised"}], split_seeds=[0])
    endless["run"] = endless["run"] | {"steps": 1_000_000, "checkpoint_every": 3000}
    cell = other / "cells/patterns/leaf-8/supervised/seed0"

    def stop_when_it_trains() -> None:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and not (cell / "watch.jsonl").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    watching = threading.Thread(target=stop_when_it_trains)
    watching.start()
    with pytest.raises(StoppedError, match="0 of 1 runs done"):
        run_all(endless, folder, other, jobs=2)
    watching.join()
    _, meta = checkpoint.load(cell / "checkpoint" / "state.safetensors")
    assert 0 < meta["step"] < 3000
    assert not (cell / "failed.json").exists()


def test_several_jobs_need_a_thread_count(finished: tuple[Path, Path, Grid], tmp_path: Path) -> None:
    folder, out, _ = finished
    other = tmp_path / "out"
    shutil.copytree(out / "data", other / "data")
    free = settings()
    free["run"] = free["run"] | {"threads": None}
    with pytest.raises(InputError, match=r"--jobs 2 needs run\.threads"):
        run_all(free, folder, other, jobs=2)

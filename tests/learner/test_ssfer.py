"""The three stages of SSFER: each resumes on its own, hands its weights on, and is not run twice."""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from learner import checkpoint, snapshot
from learner import manifest as manifests
from learner.cli import main
from learner.data import load_view
from learner.errors import CheckpointError, InputError
from learner.manifest import Manifest
from learner.round import Reporter, Round, RunFiles, StoppedError
from learner.ssfer import AUTOENCODER, STAGES, Pipeline, SsferConfig
from learner.trainer import Trainer
from tests.learner.runs import CLASSES, patterns
from tests.learner.test_round import tensors_of

CONFIG = Path(__file__).parents[2] / "configs" / "ssfer.yaml"
VIT = {"name": "vit_tiny_patch16_224", "arguments": {"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}}
RUN = {"image_size": 24, "labeled_batch": 6, "unlabeled_batch": 6, "threads": 1, "device": "cpu", "steps": 6}
ROUND = {**RUN, "backbone": {**VIT, "dropout": 0.0}, "checkpoint_every": 3, "log_every": 3, "predict_views": "none"}
MAE = {"mask_ratio": 0.75, "decoder_dim": 16, "decoder_depth": 1, "decoder_heads": 2}


def settings() -> dict[str, Any]:
    mae = {"terms": None, "mae": MAE, "backbone": {**VIT, "dropout": 0.0}, "batch": 16, "checkpoint_every": 3}
    mae |= {key: RUN[key] for key in ("image_size", "threads", "device", "steps")}
    facemix = {**ROUND, "method": "facemix", "augment": {"crop_area": 0.5}}
    return {
        "mae": mae,
        "facemix": facemix,
        "teacher": {**ROUND, "method": "ema_teacher", "options": {"threshold": 0.3}},
    }


def write(path: Path, values: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty patterns to train on, eight held out; the box of a face differs from image to image."""
    folder = tmp_path_factory.mktemp("faces")
    images, label = patterns(48)
    lines = ["path,label,split,box"]
    for row in range(48):
        Image.fromarray(images[row]).save(folder / f"{row}.png")
        box = "" if row == 3 else f'"{row % 7},{row % 5},{10 + row % 3},12"'
        lines.append(f"{row}.png,{CLASSES[label[row]]},{'train' if row < 40 else 'val'},{box}")
    path = folder / "faces.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def pipeline(faces: Path, out: Path, values: dict[str, Any] | None = None) -> Pipeline:
    found = Manifest.read(faces)
    config = SsferConfig.model_validate(values or settings())
    made = Pipeline(found, manifests.choose_labels(found, 3, 0), config, out)
    made.prepare()
    return made


@pytest.fixture(scope="module")
def finished(faces: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which all three stages have run undisturbed."""
    out = tmp_path_factory.mktemp("whole") / "out"
    made = pipeline(faces, out)
    for stage in STAGES:
        made.run(stage)
    return out


def stop_at_once(_: dict[str, Any]) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return tensors_of(folder) if (folder / "model.safetensors").exists() else load_file(folder / AUTOENCODER)


def test_every_stage_goes_on_where_it_was_stopped(faces: Path, finished: Path, tmp_path: Path) -> None:
    made = pipeline(faces, tmp_path / "out")
    for stage in STAGES:
        with pytest.raises(StoppedError, match=r"stopped at step [1-5] of 6"):
            made.run(stage, stop_at_once)
        assert not (made.out / stage / "out").exists()
        out = made.run(stage)
        straight, resumed = weights_of(finished / stage / "out"), weights_of(out)
        assert straight.keys() == resumed.keys()
        assert all(torch.equal(value, resumed[name]) for name, value in straight.items()), stage


def test_the_second_stage_starts_from_the_masked_autoencoder_and_knows_the_boxes(finished: Path) -> None:
    files = RunFiles.read(finished / "facemix")
    started = snapshot.assemble(files.config, len(CLASSES)).network.backbone.state_dict()
    learned = load_file(finished / "mae" / "out" / AUTOENCODER)
    assert started.keys() == {name.removeprefix("encoder.") for name in learned if name.startswith("encoder.")}
    assert all(torch.equal(value, learned[f"encoder.{name}"]) for name, value in started.items())
    assert files.data.boxes is not None
    row = int(files.data.view.rows[-1])
    left, top = row % 7, row % 5
    wanted = np.array([left, top, left + 10 + row % 3, min(24, top + 12)]) / 24
    assert files.data.boxes[row] == pytest.approx(wanted, abs=1e-6)
    metrics = json.loads((finished / "facemix" / "out" / "metrics.json").read_text())
    assert metrics["notes"] == []
    assert 0 < metrics["logs"]["facemix/kappa"] < 1


def test_the_third_stage_starts_from_the_average_of_the_second_with_the_same_labels(finished: Path) -> None:
    second, third = (load_view(finished / stage / "view.npz") for stage in ("facemix", "teacher"))
    assert torch.equal(second.rows, third.rows)
    assert torch.equal(second.given, third.given)
    folder = finished.parent / "start"
    folder.mkdir()
    for name in ("config.json", "view.npz", "unlabeled.npy", "all.npy", "pool.json"):
        (folder / name).write_bytes((finished / "teacher" / name).read_bytes())
    begun = Round(RunFiles.read(folder), Reporter(folder, 6), asked=None).trainer  # type: ignore[arg-type]
    averaged = load_file(finished / "facemix" / "out" / "model.safetensors")
    for network in (begun.raw, begun.ema.network):
        assert all(torch.equal(value, averaged[name]) for name, value in network.state_dict().items())
    student = checkpoint.unpack("student", load_file(finished / "facemix" / "out" / "state.safetensors"))
    assert not torch.equal(student["head.weight"], averaged["head.weight"])


def test_a_finished_stage_is_not_run_again_and_a_changed_one_is_refused(faces: Path, finished: Path) -> None:
    before = {stage: (finished / stage / "out").stat().st_mtime_ns for stage in STAGES}
    made = pipeline(faces, finished)
    assert [made.run(stage) for stage in STAGES] == [finished / stage / "out" for stage in STAGES]
    assert {stage: (finished / stage / "out").stat().st_mtime_ns for stage in STAGES} == before
    for stage in STAGES:
        changed = settings()
        changed[stage]["seed"] = 7
        with pytest.raises(InputError, match=f"{stage} was begun with another configuration"):
            pipeline(faces, finished, changed).run(stage)
    found = Manifest.read(faces)
    other = Pipeline(found, manifests.choose_labels(found, 2, 0), SsferConfig.model_validate(settings()), finished)
    with pytest.raises(InputError, match="another manifest or choice of labels"):
        other.prepare()


def test_a_stage_needs_the_one_before(faces: Path, tmp_path: Path) -> None:
    made = pipeline(faces, tmp_path / "out")
    with pytest.raises(InputError, match=r"stage mae .* not finished"):
        made.run("facemix")
    with pytest.raises(InputError, match=r"stage facemix .* not finished"):
        made.run("teacher")


def test_a_convolutional_net_takes_stages_two_and_three_without_the_first(faces: Path, tmp_path: Path) -> None:
    values = settings() | {"mae": None}
    for stage in ("facemix", "teacher"):
        values[stage] = {**values[stage], "backbone": {"name": "resnet10_small"}, "steps": 2}
    made = pipeline(faces, tmp_path / "out", values)
    for stage in ("facemix", "teacher"):
        metrics = json.loads((made.run(stage) / "metrics.json").read_text())
        assert metrics["val"]["num"] == 8


def test_a_box_that_is_none_is_refused_with_its_line(faces: Path, tmp_path: Path) -> None:
    for box in ("1,2,3", "1,2,0,4", "1,2,x,4", "nan,2,3,4"):
        path = tmp_path / "faces.csv"
        path.write_text(f'path,label,split,box\na.png,plain,train,\nb.png,bright,train,"{box}"\n')
        with pytest.raises(InputError, match="line 3: box"):
            Manifest.read(path)
    assert Manifest.read(faces).faces is not None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v["mae"].update(image_size=48), "image_size 48"),
        (lambda v: v["teacher"].update(backbone={"name": "resnet10_small"}), "backbone.name"),
        (lambda v: v["teacher"]["backbone"].update(weights="x"), "would not be read"),
        (lambda v: v["teacher"]["options"].update(feature_norm="none"), "heads do not fit"),
        (lambda v: v["facemix"].update(method="magic"), "unknown method"),
        (lambda v: v.pop("teacher"), "teacher"),
        (lambda v: v.update(fourth={}), "fourth"),
    ],
)
def test_stages_that_do_not_fit_together_are_refused(tmp_path: Path, change: Any, message: str) -> None:
    values = yaml.safe_load(yaml.safe_dump(settings()))  # no part is shared with another's
    change(values)
    with pytest.raises(InputError, match=message) as caught:
        SsferConfig.load(write(tmp_path / "config.yaml", values))
    assert "\n" not in str(caught.value)


def test_weights_of_another_network_are_refused_where_a_stage_starts_from_them(finished: Path, tmp_path: Path) -> None:
    files = RunFiles.read(finished / "teacher")
    config = files.config.replace(backbone={"name": "resnet10_small"})
    made = snapshot.assemble(config, len(CLASSES))
    with pytest.raises(CheckpointError, match="another backbone, arguments"):
        snapshot.warm_start(Trainer(config, made.recipe, made.network, files.data), finished / "facemix" / "out", True)


def test_the_command_runs_stages_and_reports_them(
    faces: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write(tmp_path / "config.yaml", settings())

    def call(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["learner", "ssfer", str(faces), *words])
        with pytest.raises(SystemExit) as caught:
            main()
        shown = capsys.readouterr()
        return int(caught.value.code or 0), shown.out, shown.err

    code, out, _ = call(str(finished), "--config", str(config), "--labels", "12")
    assert code == 0
    assert out.count('"stage"') == 3
    assert '"val"' in out
    code, out, _ = call(str(finished), "--config", str(config), "--labels", "12", "--stage", "teacher")
    assert (code, out.count('"stage"')) == (0, 1)
    code, _, err = call(str(tmp_path / "new"), "--config", str(config), "--stage", "fourth")
    assert code == 2
    assert "no stage 'fourth'; there are mae, facemix, teacher" in err


def test_the_shipped_pipeline_fits_together_and_says_what_it_costs() -> None:
    config = SsferConfig.load(CONFIG)
    assert (config.facemix.method, config.teacher.method) == ("facemix", "ema_teacher")
    assert config.mae is not None
    assert config.mae.mae is not None
    assert config.teacher.ema.decay == 0.999
    head = [line for line in CONFIG.read_text().splitlines() if line.startswith("#")]
    for word in ("command:", "hardware:", "duration:", "expected:", "--config configs/ssfer.yaml"):
        assert any(word in line for line in head), word

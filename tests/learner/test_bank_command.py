import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from learner.bank import FeatureBank, adapt
from learner.cli import main
from learner.config import RunConfig
from learner.round import run_round
from tests.learner.runs import CLASSES, SIZE, first_labels, patterns, small_config, write_run


def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["learner", *map(str, words)])
    with pytest.raises(SystemExit) as caught:
        main()
    shown = capsys.readouterr()
    return int(caught.value.code or 0), shown.out, shown.err


def test_a_bank_of_a_manifest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    images, label = patterns(30)
    lines = ["path,label,split"]
    for row in range(30):
        Image.fromarray(images[row]).save(tmp_path / f"{row}.png")
        lines.append(f"{row}.png,{CLASSES[label[row]]},{'train' if row < 20 else 'val'}")
    (tmp_path / "faces.csv").write_text("\n".join(lines) + "\n")
    words = ("bank", tmp_path / "faces.csv", tmp_path / "bank", "--image-size", SIZE, "--strong", 2, "--pool", 15)
    code, out, _ = call(monkeypatch, capsys, *words)
    assert code == 0
    report = json.loads(out)
    assert report["rows_with_views"] == 15
    assert report["encoded_now"] == 15 * 4 + 15
    bank = FeatureBank(tmp_path / "bank")
    assert (bank.encoder, bank.dim, bank.weak, bank.strong) == (report["encoder"], 14, 1, 2)
    assert bank.has(np.arange(30)).all()
    assert (bank.full_rows < 20).all()
    assert json.loads(call(monkeypatch, capsys, *words)[1])["encoded_now"] == 0  # nothing is made twice
    code, _, err = call(monkeypatch, capsys, *words[:3], "--image-size", 32)
    assert code == 2
    assert "another manifest or image size" in err


def test_a_bank_of_a_run_by_its_own_trained_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "run", small_config(steps=4), first_labels(), num=60, held=10)
    run_round(run)
    code, out, _ = call(monkeypatch, capsys, "bank", run, tmp_path / "bank", "--encoder", run, "--pool", 30)
    assert code == 0
    assert json.loads(out)["rows_with_views"] == 50
    assert json.loads(out)["encoder"].startswith("resnet10_small-")
    config = adapt(RunConfig.load(run / "config.json"))
    later = write_run(tmp_path / "later", config, first_labels(), num=60, held=10)
    (later / "pool.json").write_text(json.dumps({"bank": str(tmp_path / "bank")}))
    assert json.loads((run_round(later) / "metrics.json").read_text())["counts"]["unlabeled"] == 30
    for words, message in (
        (("bank", run, tmp_path / "two", "--image-size", 24), "has its own configuration"),
        (("bank", run, tmp_path / "two", "--encoder", later), "trained on a feature bank itself"),
        (("bank", run, tmp_path / "two", "--encoder", "magic"), "neither hog nor a trained model"),
        (("bank", run, tmp_path / "bank", "--encoder", "hog"), "another asked"),
        (("bank", tmp_path, tmp_path / "two"), "cannot read configuration"),
        (("bank", later, tmp_path / "two"), "no complete run folder with a pixel cache"),
    ):
        code, _, err = call(monkeypatch, capsys, *words)
        assert code == 2
        assert message in " ".join(err.split())

"""Does it learn? Small patterns, short runs, bounds far from chance."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from annotator.ingest import demo_faces
from learner.cli import prepare
from learner.manifest import Manifest, choose_labels
from learner.round import run_round
from tests.learner.runs import first_labels, small_config, write_run


@pytest.mark.slow
@pytest.mark.parametrize("method", ["supervised", "fixmatch", "lion"])
def test_a_few_labels_of_easy_patterns_are_learned(tmp_path: Path, method: str) -> None:
    config = small_config(method=method, steps=90, labeled_batch=16, unlabeled_batch=16, optimizer={"lr": 2e-3})
    out = run_round(write_run(tmp_path / "run", config, first_labels(8), num=200, held=80))
    val = json.loads((out / "metrics.json").read_text())["val"]
    assert val["balanced"] > 0.6, "chance is 0.25"


@pytest.mark.slow
def test_drawn_faces_are_told_apart_better_than_by_chance(tmp_path: Path) -> None:
    """Happiness against surprise on drawn faces, by LION from 60 labels."""
    wanted = {"happiness": 0, "surprise": 1}
    images: list[np.ndarray] = []
    labels: list[int] = []
    index = 0
    while len(images) < 240 and index < 900:
        face = demo_faces.render(3, index, 96)
        index += 1
        if face.expression in wanted and labels.count(wanted[face.expression]) < 120:
            images.append(np.asarray(face.image.convert("RGB").resize((32, 32), Image.Resampling.BILINEAR)))
            labels.append(wanted[face.expression])
    assert len(images) == 240
    manifest = tmp_path / "faces.csv"
    lines = ["path,label,split"]
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        Image.fromarray(image).save(tmp_path / f"{number}.png")
        split = "val" if number % 2 else "train"
        lines.append(f"{number}.png,{'happiness' if label == 0 else 'surprise'},{split}")
    manifest.write_text("\n".join(lines))
    read = Manifest.read(manifest)
    config = small_config(
        method="lion", image_size=32, steps=150, labeled_batch=16, unlabeled_batch=16, optimizer={"lr": 2e-3}
    )
    prepare(read, config, choose_labels(read, 30, 0), tmp_path / "run")
    metrics = json.loads((run_round(tmp_path / "run") / "metrics.json").read_text())
    assert metrics["counts"]["labeled"] == 60
    assert metrics["val"]["balanced"] > 0.62, "chance is 0.5"

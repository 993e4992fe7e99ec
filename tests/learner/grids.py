"""Small benchmarks on generated images: every image is its own, so that none counts as a copy of another."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from learner.benchmark.grid import Grid
from learner.benchmark.runner import chosen_cells, prepare_grid, run_grid
from tests.learner.runs import CLASSES, SIZE, patterns

TRAIN, HELD = 48, 24


def images_csv(folder: Path, copies: int = 0) -> Path:
    """Write training images, held-out ones and `copies` of training images among these, as a manifest."""
    rng = np.random.default_rng(1)
    faces, label = patterns(TRAIN + HELD)
    shade = rng.integers(0, 255, (len(faces), SIZE, SIZE, 1))
    faces = (0.5 * faces + 0.5 * shade).astype(np.uint8)
    faces = np.concatenate([faces, faces[:copies]])
    label = np.concatenate([label, label[:copies]])
    lines = ["path,label,split"]
    for row, face in enumerate(faces):
        Image.fromarray(face).save(folder / f"{row}.png")
        name = "" if row in (40, 41) else CLASSES[label[row]]
        lines.append(f"{row}.png,{name},{'train' if row < TRAIN else 'val'}")
    path = folder / "faces.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def settings(**changes: Any) -> dict[str, Any]:
    """Return a benchmark whose runs take a second."""
    return {
        "name": "tiny",
        "datasets": [{"name": "patterns", "kind": "csv", "source": "faces.csv", "pool": "all"}],
        "splits": [{"protocol": "leaf", "amounts": [8]}],
        "methods": [{"name": "supervised"}, {"name": "fixmatch", "options": {"threshold": 0.3}}],
        "split_seeds": [0, 1],
        "validations": 4,
        "bootstrap": 100,
        "run": {
            "steps": 12,
            "image_size": SIZE,
            "labeled_batch": 8,
            "unlabeled_batch": 8,
            "threads": 1,
            "device": "cpu",
            "log_every": 3,
            "checkpoint_every": 6,
            "backbone": {"name": "resnet10_small"},
        },
    } | changes


def run_all(data: dict[str, Any], folder: Path, out: Path, jobs: int = 1, only: tuple[str, ...] = ()) -> Grid:
    """Run a benchmark whose images are in `folder`."""
    grid = Grid.parse(data)
    datasets = prepare_grid(grid, folder / "grid.yaml", out, {}, lambda what, share: None)
    run_grid(grid, chosen_cells(grid, only), datasets, out, jobs, lambda standing: None)
    return grid

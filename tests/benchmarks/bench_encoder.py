"""How much expression encoders hold: `python -m tests.benchmarks.bench_encoder FERPLUS.zip OUT [NAME=ENCODER_FILE …]`.

The probe: unit-length features, multinomial logistic regression (C 30, balanced class weights), n // 8 labels per class
of the training split, seeds 0 to 4, read on the validation split by plurality without copies of training images. Every
encoder is read out on the 3×3 grid and by global average. HOG and random weights stand beside them; differences to HOG
are paired over images and seeds. A second curve learns from n random images with one drawn crowd answer each.
Also images/s (two threads, clean, flip-averaged) and the file's size. Writes table.json and table.md to OUT.
"""

import argparse
import json
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from learner import hog
from learner.backbones import SHIPPED_NET
from learner.benchmark.bootstrap import paired_bootstrap
from learner.config import BackboneConfig
from learner.data import PixelCache
from learner.duplicates import find_copies
from learner.manifest import Manifest, read_votes, write_cache
from learner.models import SHIPPED, SHIPPED_FILE
from learner.pretrain.bodies import make_body
from learner.pretrain.config import PretrainConfig
from learner.pretrain.encoder import FaceEncoder, fit_readout
from learner.pretrain.probe import SEEDS, ProbeResult, probe, probe_votes

Features = NDArray[np.float32]
LABELS = (100, 400)
VOTES = (100, 400, 1000)
SPEED_FACES, THREADS = 2048, 2
console = Console(stderr=True)


class Faces:
    """FER+ in memory: faces, labels and votes by row; the rows to learn from and to read."""

    def __init__(self, source: Path, folder: Path) -> None:
        manifest = Manifest.read(source)
        write_cache(manifest, folder, 48)
        cache = PixelCache(folder, 48)
        self.label, self.votes, self.classes = manifest.label, read_votes(source), manifest.classes
        self.pixels = cache.gather(np.arange(len(manifest.names)))
        train, val = manifest.rows("train"), manifest.rows("val")
        copies = find_copies(cache, train, val)
        self.unlabeled = np.setdiff1d(train, np.union1d(copies.exact, copies.near))
        self.left_out = len(train) - len(self.unlabeled)
        self.train = np.intersect1d(self.unlabeled, manifest.labeled("train"))
        copies = find_copies(cache, val, train)
        left = np.setdiff1d(manifest.labeled("val"), np.union1d(copies.exact, copies.near))
        self.val = np.intersect1d(left, manifest.labeled("val"))
        self.sample = self.pixels[self.unlabeled[np.linspace(0, len(self.unlabeled) - 1, 10_000).astype(np.int64)]]


def measure(features: Features, faces: Faces) -> dict[str, Any]:
    """Probe features (n,d) of every face."""
    found: dict[str, Any] = {"dim": features.shape[1], "probe": {}, "votes": {}}
    for total in LABELS:
        found["probe"][total] = probe(features, faces.label, faces.train, faces.val, total)
    for total in VOTES:
        read = [
            probe_votes(features, faces.votes, faces.label, faces.unlabeled, faces.val, total, seed) for seed in SEEDS
        ]
        found["votes"][total] = ProbeResult(np.stack(read), faces.label[faces.val])
    return found


def read_out(encoder: FaceEncoder, faces: Faces, grid: int) -> Features:
    """Read an encoder's last map out on another grid, on the components of the training faces."""
    about = encoder.about
    backbone = BackboneConfig.model_validate(about["backbone"])
    config = PretrainConfig(image_size=encoder.image_size, grid=grid, backbone=backbone)
    return fit_readout(encoder.network.body, config, faces.sample, encoder.name)(faces.pixels)


def described(found: dict[str, Any], hog_found: dict[str, Any], faces: Faces) -> dict[str, Any]:
    """Turn probes into numbers, with the difference to HOG."""
    row: dict[str, Any] = {"dim": found["dim"]}
    for kind in ("probe", "votes"):
        for total, result in found[kind].items():
            other = hog_found[kind][total]
            better = paired_bootstrap(result.predicted == result.truth, other.predicted == other.truth, result.truth)
            row[f"{kind}_{total}"] = {
                "balanced": round(result.balanced, 4),
                "overall": round(result.overall, 4),
                "per_class": dict(zip(faces.classes, np.round(result.per_class, 3).tolist(), strict=True)),
                "over_hog": [round(v, 4) for v in (better.mean, better.low, better.high)],
            }
    return row


def speed(encoder: FaceEncoder, faces: Faces) -> dict[str, float]:
    """Time encoder and HOG on the same faces, warm, twice each in turn; the better of two."""
    torch.set_num_threads(THREADS)
    some = faces.pixels[:SPEED_FACES]
    ways = {"encoder": encoder, "hog": hog.describe}
    best = dict.fromkeys(ways, 0.0)
    for way in ways.values():
        way(some[:256])
    for _ in range(2):
        for name, way in ways.items():
            began = time.perf_counter()
            way(some)
            best[name] = max(best[name], len(some) / (time.perf_counter() - began))
    return {f"{name}_faces_per_s": round(value) for name, value in best.items()}


def as_markdown(rows: dict[str, dict[str, Any]]) -> str:
    """Lay the table out."""
    head = "| features | d | 100 labels | 400 labels | over HOG at 100 | at 400 | 400 answers | 1,000 answers |"
    lines = [head, "|---" * 8 + "|"]
    for name, row in rows.items():
        cells = [f"{row[k]['balanced']:.3f} / {row[k]['overall']:.3f}" for k in ("probe_100", "probe_400")]
        gains = ["{:+.3f} [{:+.3f}, {:+.3f}]".format(*row[k]["over_hog"]) for k in ("probe_100", "probe_400")]
        votes = [f"{row[k]['balanced']:.3f}" for k in ("votes_400", "votes_1000")]
        lines.append("| " + " | ".join([name, str(row["dim"]), *cells, *gains, *votes]) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("ferplus", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("encoders", nargs="*", help="NAME=FILE; the shipped encoder is always there")
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    files = dict(text.split("=", 1) for text in asked.encoders)
    if SHIPPED_FILE.exists():
        files[SHIPPED] = str(SHIPPED_FILE)
    with TemporaryDirectory() as scratch, console.status("reading faces"):
        faces = Faces(asked.ferplus, Path(scratch))
    torch.manual_seed(0)
    body, _ = make_body(BackboneConfig(name=SHIPPED_NET), 48)
    random = fit_readout(body, PretrainConfig(), faces.sample, "random")
    reference = measure(hog.describe(faces.pixels), faces)
    rows = {"HOG": described(reference, reference, faces)}
    made = {"random": random, **{name: FaceEncoder.load(file) for name, file in files.items()}}
    for name, encoder in track(made.items(), "probing", console=console):
        for grid in (3, 1):
            title = f"{name}, {'3×3 grid' if grid == 3 else 'global average'}"
            rows[title] = described(measure(read_out(encoder, faces, grid), faces), reference, faces)
        if name == SHIPPED:
            rows["shipped, as its file says"] = described(measure(encoder(faces.pixels), faces), reference, faces)
    report: dict[str, Any] = {"validation_faces": len(faces.val), "train_faces": len(faces.unlabeled), "rows": rows}
    report["left_out"] = faces.left_out
    if SHIPPED in made:
        report["speed"] = speed(made[SHIPPED], faces) | {"file_bytes": SHIPPED_FILE.stat().st_size}
    (asked.out / "table.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    (asked.out / "table.md").write_text(as_markdown(rows), encoding="utf-8")
    print(as_markdown(rows))
    print(json.dumps(report.get("speed", {})))


if __name__ == "__main__":
    main()

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
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from learner import hog
from learner.augment import Augmenter
from learner.backbones import GRID_DIM, SHIPPED_NET, read_grid
from learner.benchmark.bootstrap import paired_bootstrap
from learner.config import SHIPPED, SHIPPED_FILE, AugmentConfig, BackboneConfig
from learner.data import PixelCache
from learner.duplicates import find_copies
from learner.manifest import Manifest, read_votes, write_cache
from learner.pretrain.bodies import make_body
from learner.pretrain.config import PretrainConfig
from learner.pretrain.encoder import FaceEncoder, fit_readout, principal_components
from learner.pretrain.probe import SEEDS, ProbeResult, draw_per_class, probe, probe_votes

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
        self.sample = self.unlabeled[np.linspace(0, len(self.unlabeled) - 1, 10_000).astype(np.int64)]
        probed = [draw_per_class(self.label, self.train, total, seed) for total in LABELS for seed in SEEDS]
        voted = [np.random.default_rng(seed).permutation(self.unlabeled)[: max(VOTES)] for seed in SEEDS]
        self.needed = np.unique(np.concatenate([self.val, *probed, *voted]))

    def on_needed(self, encode: Callable[[NDArray[np.uint8]], Features]) -> Features:
        """Encode the rows that any probe reads; the others stay 0."""
        found = encode(self.pixels[self.needed])
        features = np.zeros((len(self.pixels), found.shape[1]), np.float32)
        features[self.needed] = found
        return features


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


def read_out(encoder: FaceEncoder, faces: Faces) -> dict[int, Features]:
    """Read an encoder's last map out on the 3×3 grid and by global average, on the components of training faces."""
    asked = np.union1d(faces.sample, faces.needed)
    found: dict[int, list[torch.Tensor]] = {3: [], 1: []}
    normaliser = Augmenter(AugmentConfig(), encoder.image_size, 0, torch.device("cpu"))
    with torch.inference_mode():
        for start in range(0, len(asked), 64):
            x = normaliser.normalise(normaliser.upload(faces.pixels[asked[start : start + 64]]))
            last = encoder.network.body(torch.cat([x, x.flip(3)])).float()
            for grid, parts in found.items():
                parts.append(read_grid(last, grid).view(2, len(x), -1).mean(dim=0))
    features = {}
    for grid, parts in found.items():
        wide = torch.cat(parts)
        fitted = wide[np.isin(asked, faces.sample)].double()
        weight, bias = principal_components(fitted, min(GRID_DIM, wide.shape[1]))
        features[grid] = np.zeros((len(faces.pixels), len(weight)), np.float32)
        features[grid][asked] = (wide @ weight.T + bias).numpy()
    return features


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
    random = fit_readout(body, PretrainConfig(), faces.pixels[faces.sample], "random")
    reference = measure(faces.on_needed(hog.describe), faces)
    rows = {"HOG": described(reference, reference, faces)}
    made = {"random": random, **{name: FaceEncoder.load(file) for name, file in files.items()}}
    for name, encoder in track(made.items(), "probing", console=console):
        for grid, features in read_out(encoder, faces).items():
            title = f"{name}, {'3×3 grid' if grid == 3 else 'global average'}"
            rows[title] = described(measure(features, faces), reference, faces)
        if name == SHIPPED:
            as_filed = measure(faces.on_needed(encoder), faces)
            rows["shipped, as its file says"] = described(as_filed, reference, faces)
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

"""One round in a run folder: start or resume, train, predict, publish. Killed at any moment, the same call goes on.

The folder's files are in `RunFiles`; progress is in `progress.json`; the result is `out/`, which appears complete.
"""

import json
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch

from learner import checkpoint, snapshot
from learner.bank import FeatureBank
from learner.boxes import load_boxes
from learner.config import RunConfig, write_json
from learner.data import PixelCache, Rows, load_view
from learner.errors import InputError, LearnerError
from learner.evaluate import evaluate
from learner.keepers.complement_bank import ComplementBank
from learner.parts import StepContext
from learner.predict import Predictions, Predictor, signals_table
from learner.trainer import Trainer, TrainingData

TRAINING_SHARE = 0.9  # of the progress bar; the rest is prediction


class StoppedError(LearnerError):
    """The round was asked to stop and has saved what it had; the same command goes on from there."""


@dataclass(frozen=True, slots=True)
class RunFiles:
    """The input of a round, checked. `truth` and `known` are for reporting only and may be absent.

    truth: of the rows to evaluate on; known: of unlabeled rows, in benchmarks.
    """

    folder: Path
    config: RunConfig
    data: TrainingData
    everything: Rows
    previous: Path | None
    from_average: bool
    truth: dict[str, Any] | None
    known: dict[str, Any] | None = None

    @classmethod
    def read(cls, folder: Path) -> "RunFiles":
        """Read `config.json`, `view.npz`, `unlabeled.npy`, `all.npy`, `pool.json`; perhaps `eval.npz`, `known.npz`.

        `boxes.npy` may say where the faces lie in the cached images (`learner.boxes`); it is not read with a bank.
        `pool.json` names a pixel cache, or a feature bank, of whose rows without views nothing is learned; perhaps the
        snapshot that the round goes on from (`previous`), and whether from its averaged weights (`from_average`).

        Raises:
            InputError: a file is missing or contradicts another.
            PixelsMissingError: the cache is missing.
        """
        config = RunConfig.load(folder / "config.json")
        view = load_view(folder / "view.npz")
        try:
            pool = json.loads((folder / "pool.json").read_text(encoding="utf-8"))
            unlabeled = np.load(folder / "unlabeled.npy", allow_pickle=False).astype(np.int64)
            everything = np.load(folder / "all.npy", allow_pickle=False).astype(np.int64)
            truth, known = (_read_truth(folder / name) for name in ("eval.npz", "known.npz"))
            bank, previous = pool.get("bank"), pool.get("previous")
            cache = None if bank else Path(pool["cache"])
        except (OSError, ValueError, KeyError) as error:
            raise InputError(f"{folder} is no complete run folder: {error}") from error
        both = np.intersect1d(unlabeled, view.rows.numpy())
        if len(both):
            raise InputError(f"{len(both)} rows are labeled and unlabeled at once, first {both[:5].tolist()}")
        if cache is None:
            features = FeatureBank(bank)
            features.check(view.rows.numpy())
            training = TrainingData(features, view, features.trainable(unlabeled))
        else:
            boxes = load_boxes(folder / "boxes.npy")
            training = TrainingData(PixelCache(cache, config.image_size), view, unlabeled, boxes)
        from_average = bool(pool.get("from_average"))
        return cls(
            folder, config, training, everything, Path(previous) if previous else None, from_average, truth, known
        )


def _read_truth(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    with np.load(path, allow_pickle=False) as data:
        return {name: data[name].astype(np.int64) for name in ("rows", "truth")}


class Reporter:
    """Writes `progress.json` about once a second, and tells `listen` the same."""

    def __init__(self, folder: Path, steps: int, listen: Callable[[dict[str, Any]], None] | None = None) -> None:
        self._path = folder / "progress.json"
        self._steps = steps
        self._listen = listen
        self.notes: list[str] = []  # what a person should know about the run
        self._last = 0.0

    def __call__(
        self, state: str, step: int, progress: float, eta_s: float | None, logs: dict[str, float], now: bool = False
    ) -> None:
        """Write the file when a second has passed, or `now`."""
        if not now and time.monotonic() - self._last < 1:
            return
        self._last = time.monotonic()
        report: dict[str, Any] = {"state": state, "step": step, "steps": self._steps, "progress": round(progress, 4)}
        report |= {"eta_s": None if eta_s is None else round(eta_s, 1), "logs": logs}
        if self.notes:
            report["notes"] = self.notes
        write_json(self._path, report)
        if self._listen is not None:
            self._listen(report)

    @contextmanager
    def running(self) -> Iterator[threading.Event]:
        """Yield what tells that SIGTERM came; write down why the block failed, if it does."""
        try:
            with stop_requests() as asked:
                yield asked
        except StoppedError:
            raise
        except LearnerError as error:
            self._failed(str(error))
            raise

    def _failed(self, message: str) -> None:
        write_json(
            self._path, {"state": "failed", "step": 0, "steps": self._steps, "progress": 0.0, "message": message}
        )


@contextmanager
def stop_requests() -> Iterator[threading.Event]:
    """Turn SIGTERM into an event while the block runs, where signals can be had (the main thread)."""
    asked = threading.Event()

    def handler(_signum: int, _frame: FrameType | None) -> None:
        asked.set()

    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = signal.signal(signal.SIGTERM, handler)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGTERM, before)


def run_round(
    folder: Path,
    listen: Callable[[dict[str, Any]], None] | None = None,
    observers: Sequence[Callable[[Trainer, StepContext], None]] = (),
) -> Path:
    """Run or resume the round in `folder`; return its `out` folder.

    `listen` hears every progress report; `observers` see every step after the optimiser has moved, and change nothing.

    Raises:
        InputError, PixelsMissingError, CheckpointError: the folder's contents.
        DivergedError: the loss is not finite.
        StoppedError: SIGTERM came; everything so far is saved.
    """
    out = folder / "out"
    if out.is_dir():
        return out
    files = RunFiles.read(folder)
    report = Reporter(folder, files.config.steps, listen)
    with report.running() as asked:
        round_ = Round(files, report, asked)
        round_.trainer.observers.extend(observers)
        report.notes = round_.trainer.notes
        for note in report.notes:
            sys.stderr.write(f"note: {note}\n")
        round_.train()
        round_.publish()
    report("done", files.config.steps, 1.0, 0.0, round_.trainer.logs, now=True)
    return out


class Round:
    """A round in progress: `train` then `publish`."""

    def __init__(self, files: RunFiles, report: Reporter, asked: threading.Event) -> None:
        self.files, self.report, self.asked = files, report, asked
        self.checkpoint = files.folder / "checkpoint" / "state.safetensors"
        resumed = self.checkpoint.exists()
        made = snapshot.assemble(
            files.config,
            len(files.data.view.classes),
            weights=not resumed and files.previous is None,
            feature_dim=files.data.faces.dim if isinstance(files.data.faces, FeatureBank) else None,
        )
        self.trainer = Trainer(files.config, made.recipe, made.network, files.data)
        self.seconds = 0.0
        if resumed:
            tensors, meta = checkpoint.load(self.checkpoint)
            self.trainer.load(tensors, meta)
            self.seconds = float(meta["seconds"])
        else:
            self._start()

    def _start(self) -> None:
        """Warm start and apply the events; the first checkpoint makes both count exactly once."""
        self.checkpoint.parent.mkdir(exist_ok=True)
        if self.files.previous is not None:
            snapshot.warm_start(self.trainer, self.files.previous, self.files.from_average)
        else:
            snapshot.begin(self.trainer)
        self.save()

    def save(self) -> None:
        """Replace the checkpoint."""
        tensors, meta = self.trainer.state()
        checkpoint.save(self.checkpoint, tensors, {**meta, "seconds": self.seconds})

    def train(self) -> None:
        """Train to the end, saving now and then.

        Raises:
            StoppedError: asked to stop; saved first.
        """
        trainer, steps = self.trainer, self.files.config.steps
        began, earlier = time.perf_counter(), self.seconds
        for step in trainer.steps():
            self.seconds = earlier + time.perf_counter() - began
            if step == steps or step % self.files.config.checkpoint_every == 0 or self.asked.is_set():
                self.save()
            self._check()
            eta = self.seconds / step * (steps - step)
            self.report("training", step, TRAINING_SHARE * step / steps, eta, trainer.logs)

    def _check(self) -> None:
        if self.asked.is_set():
            raise StoppedError(f"stopped at step {self.trainer.step} of {self.files.config.steps}; saved")

    def publish(self) -> None:
        """Predict every row and let `out` appear, complete and on the disk."""
        began = time.perf_counter()
        predictions = self._predict(began)
        elapsed = time.perf_counter() - began
        folder = self.files.folder / f".out.{os.getpid()}"
        for stale in self.files.folder.glob(".out.*"):
            shutil.rmtree(stale)
        folder.mkdir()
        trainer = self.trainer
        snapshot.write_snapshot(folder, trainer)
        for name in ("rows", "features", "probs"):
            np.save(folder / f"{name}.npy", getattr(predictions, name), allow_pickle=False)
        table = signals_table(
            predictions,
            trainer.recipe,
            trainer.data.view,
            trainer.round,
            trainer.lifetime_step,
            trainer.fabric.device,
        )
        pq.write_table(table, folder / "signals.parquet")
        write_json(folder / "metrics.json", self._metrics(predictions, elapsed))
        for path in folder.iterdir():
            checkpoint.sync(path)
        checkpoint.sync(folder)
        folder.rename(self.files.folder / "out")
        checkpoint.sync(self.files.folder)

    def _predict(self, began: float) -> Predictions:
        files, trainer = self.files, self.trainer
        predictor = Predictor(
            trainer.ema.network,
            trainer.recipe,
            trainer.source,
            trainer.fabric.device,
            files.config.predict_batch,
            trainer.lifetime_step,
        )
        num = len(files.everything)

        def on_batch(done: int) -> None:
            self._check()
            share = done / max(1, num)
            eta = (time.perf_counter() - began) / max(share, 1e-9) * (1 - share)
            progress = TRAINING_SHARE + (1 - TRAINING_SHARE) * share
            self.report("predicting", files.config.steps, progress, eta, trainer.logs)

        return predictor.predict(files.everything, files.config.predict_views, on_batch)

    def _metrics(self, predictions: Predictions, elapsed: float) -> dict[str, Any]:
        trainer, view = self.trainer, self.files.data.view
        given = view.given.numpy()
        counts = {name: int((given == index).sum()) for index, name in enumerate(view.classes)}
        metrics: dict[str, Any] = {
            "method": trainer.config.method,
            "round": trainer.round,
            "label_seq": view.label_seq,
            "lifetime_step": trainer.lifetime_step,
            "steps": trainer.step,
            "seconds": round(self.seconds, 2),
            "steps_per_second": round(trainer.step / max(self.seconds, 1e-9), 3),
            "predict_images_per_second": round(len(predictions.rows) / max(elapsed, 1e-9), 1),
            "counts": {
                "labeled": len(view.rows),
                "single_label": int((given >= 0).sum()),
                "unlabeled": len(trainer.data.unlabeled),
                "predicted": len(predictions.rows),
                "per_class": counts,
            },
            "logs": trainer.logs,
            "notes": trainer.notes,
        }
        for keeper in trainer.recipe.keepers:
            if isinstance(keeper, ComplementBank):
                metrics["complement_bank"] = self._bank_errors(keeper)
        truth = self.files.truth
        if truth is not None and len(truth["rows"]):
            metrics["val"] = report_on(predictions, truth["rows"], truth["truth"], view.classes)
        return metrics

    def _bank_errors(self, bank: ComplementBank) -> dict[str, Any]:
        """Say of how many images the bank of complementary labels holds the true class, by class and where known."""
        view, known = self.files.data.view, self.files.known
        single = view.given >= 0
        sources = {"labeled": (view.rows[single], view.given[single])}
        if known is not None:
            sources["unlabeled"] = (torch.from_numpy(known["rows"]), torch.from_numpy(known["truth"]))
        found = {}
        for name, (rows, truth) in sources.items():
            images, wrong = (counts.tolist() for counts in bank.errors(rows, truth))
            rates = [w / n if n else None for w, n in zip(wrong, images, strict=True)]
            found[name] = {
                "images": dict(zip(view.classes, images, strict=True)),
                "rate": dict(zip(view.classes, rates, strict=True)),
                "overall": sum(wrong) / sum(images) if sum(images) else None,
            }
        return found


def report_on(
    predictions: Predictions, rows: Rows, truth: np.ndarray[Any, np.dtype[np.int64]], classes: tuple[str, ...]
) -> dict[str, Any]:
    """Evaluate the predictions of some rows against their truth.

    Raises:
        InputError: a row was not predicted.
    """
    order = np.argsort(predictions.rows)
    found = np.searchsorted(predictions.rows, rows, sorter=order)
    index = order[np.minimum(found, len(order) - 1)]
    if (predictions.rows[index] != rows).any():
        raise InputError("eval.npz names rows that all.npy does not")
    return evaluate(predictions.probs[index], truth.astype(np.int64), classes).as_dict()

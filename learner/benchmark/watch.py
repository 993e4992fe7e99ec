"""An observer of training: how good pseudo-labels are where the truth is known, and the model on a validation set."""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor

from learner.data import Rows
from learner.evaluate import evaluate
from learner.parts import StepContext, Target
from learner.predict import Predictor
from learner.trainer import Trainer

LOG = "watch.jsonl"


class Watcher:
    """Counts per class between two readings of the losses, and evaluates now and then; training is not touched.

    truth (N,) int64 by row, -1 unknown; selection: rows that choose the best model. Records go to `watch.jsonl`, one a
    line; a run that resumes drops what was written after its checkpoint. ALGORITHMS.md 13.4.
    """

    def __init__(
        self, folder: Path, truth: NDArray[np.int64], selection: Rows, classes: tuple[str, ...], validate_every: int
    ) -> None:
        self.folder, self.selection, self.classes = folder, selection, classes
        self.validate_every = validate_every
        self._truth = truth
        self._known: Tensor | None = None
        self._sums: dict[str, Tensor] = {}
        self._steps = 0
        self._cpu = time.process_time()
        self._best = -1.0
        self._kept: list[Path] = []

    @torch.no_grad()
    def __call__(self, trainer: Trainer, ctx: StepContext) -> None:
        """Take note of one step."""
        if self._known is None:
            self._start(ctx)
            self._known = torch.from_numpy(self._truth).to(ctx.batch.rows.device)
        if ctx.target is not None:
            self._count(ctx.target, self._known, ctx)
        done, config = ctx.clock.step + 1, trainer.config
        if done % config.log_every == 0 or done == config.steps:
            now = time.process_time()
            record: dict[str, Any] = {"step": done, "cpu": round(now - self._cpu, 4)}
            self._write(record | ({"pseudo": self._flush()} if self._steps else {}))
            self._cpu = now
        if done % self.validate_every == 0 or done == config.steps:
            self._validate(trainer, done)

    def _start(self, ctx: StepContext) -> None:
        log = self.folder / LOG
        records = [record for record in read_log(self.folder) if record["step"] <= ctx.clock.step]
        log.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
        self._best = max((record["val"]["balanced"] for record in records if "val" in record), default=-1.0)
        self._kept = sorted(self.folder.glob("best-*.safetensors"))

    def _count(self, target: Target, known_truth: Tensor, ctx: StepContext) -> None:
        """Add one step's counts on its device: no value is read back."""
        truth = known_truth[ctx.batch.unlabeled_rows]
        known = truth >= 0
        of_truth = one_hot(truth.clamp_min(0), ctx.num_classes) * known[:, None]
        of_label = one_hot(target.hard, ctx.num_classes) * known[:, None]
        right = (target.hard == truth) & known
        used = target.subset.float()[:, None]
        counts = {
            "seen": of_truth.sum(0),
            "used": (of_truth * used).sum(0),
            "named": (of_label * used).sum(0),
            "right": (of_label * used * right[:, None]).sum(0),
            "weight": (of_truth * target.weight.float()[:, None]).sum(0),
            "right_any": (of_truth * right[:, None]).sum(0),
        }
        for name, mask in (("positive", target.positive), ("negative", target.negative)):
            if mask is not None:
                counts[f"{name}_size"] = (of_truth * mask.sum(1, keepdim=True)).sum(0)
                counts[f"{name}_truth"] = (of_truth * mask).sum(0)
        for name, value in counts.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value
        self._steps += 1

    def _flush(self) -> dict[str, Any]:
        names = sorted(self._sums)
        values = torch.stack([self._sums[name] for name in names]).tolist()
        record: dict[str, Any] = {"steps": self._steps}
        record |= {name: [round(v, 3) for v in value] for name, value in zip(names, values, strict=True)}
        self._sums, self._steps = {}, 0
        return record

    def _validate(self, trainer: Trainer, done: int) -> None:
        began, cpu = time.perf_counter(), time.process_time()
        predictor = Predictor(
            trainer.ema.network,
            trainer.recipe,
            trainer.source,
            trainer.fabric.device,
            trainer.config.predict_batch,
            trainer.lifetime_step,
        )
        predictions = predictor.predict(self.selection)
        if not np.isfinite(predictions.probs).all():
            return  # the trainer stops at its next reading of the losses
        found = evaluate(predictions.probs, self._truth[self.selection], self.classes)
        if found.balanced > self._best:
            self._best = found.balanced
            self._keep(trainer, done)
        val = {"balanced": found.balanced, "overall": found.overall, "log_loss": found.log_loss}
        self._write({"step": done, "val": val, "seconds": round(time.perf_counter() - began, 4)})
        self._cpu += time.process_time() - cpu  # validation is not training

    def _keep(self, trainer: Trainer, done: int) -> None:
        """Keep the averaged weights; the ones before stay too, for a run that resumes between the two."""
        path = self.folder / f"best-{done:09d}.safetensors"
        state = trainer.ema.network.state_dict()
        temporary = path.with_name(f".{path.name}")
        save_file({k: v.detach().cpu().contiguous() for k, v in state.items()}, temporary)
        temporary.replace(path)
        self._kept = [kept for kept in self._kept if kept != path] + [path]
        for old in self._kept[:-2]:
            old.unlink(missing_ok=True)
        self._kept = self._kept[-2:]

    def _write(self, record: dict[str, Any]) -> None:
        with (self.folder / LOG).open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")


def one_hot(index: Tensor, num_classes: int) -> Tensor:
    """Return float rows (B,K)."""
    return torch.nn.functional.one_hot(index, num_classes).float()


def read_log(folder: Path) -> list[dict[str, Any]]:
    """Read the records of a run, oldest first; a line that a kill cut short is left out."""
    path = folder / LOG
    records = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            records.append(json.loads(line))
        except ValueError:
            continue
    return records


def pseudo_quality(records: list[dict[str, Any]], classes: tuple[str, ...], last_share: float = 1.0) -> dict[str, Any]:
    """Sum the counts of the last share of the records: coverage and precision, together and per class.

    coverage: confident unlabeled images of a true class over all seen of it; precision: right ones among the confident
    of a pseudo-label; negative_error: images whose complementary set holds the truth; positive_holds and positive_size:
    the positive set's. None where nothing was counted; empty without pseudo-labels.
    """
    counted = [record["pseudo"] for record in records if "pseudo" in record]
    if not counted:
        return {}
    counted = counted[-max(1, round(last_share * len(counted))) :]
    names = sorted({name for record in counted for name in record if name != "steps"})
    zero = [0.0] * len(classes)
    sums = {name: np.array([record.get(name, zero) for record in counted]).sum(axis=0) for name in names}

    def share(top: str, bottom: str) -> dict[str, Any]:
        over = sums[bottom]
        each = [float(a / b) if b else None for a, b in zip(sums[top], over, strict=True)]
        return {
            "all": float(sums[top].sum() / over.sum()) if over.sum() else None,
            "per_class": dict(zip(classes, each, strict=True)),
        }

    quality = {
        "coverage": share("used", "seen"),
        "precision": share("right", "named"),
        "weight": share("weight", "seen"),
    }
    quality["accuracy_of_all"] = share("right_any", "seen")
    for name, top in (("positive_holds", "positive_truth"), ("positive_size", "positive_size")):
        if top in sums:
            quality[name] = share(top, "seen")
    if "negative_truth" in sums:
        quality["negative_error"] = share("negative_truth", "seen")
        quality["negative_size"] = share("negative_size", "seen")
    return quality

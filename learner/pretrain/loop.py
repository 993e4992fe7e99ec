"""One resumable loop for every way of learning from faces alone. Killed at any moment, the same call goes on.

A run folder holds `config.json`, `pool.json` (where the pixel cache is), `rows.npy` (which faces), perhaps `labels.npz`
(rows and labels for the probe curve); in work `progress.json`, `probe.jsonl`, `checkpoint/`; the result is `out/`.
"""

import json
import math
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning_fabric
import numpy as np
import torch
from torch import nn

from learner import checkpoint
from learner.augment import Augmenter
from learner.config import AugmentConfig, EmaConfig, write_json
from learner.data import Cycle, PixelCache, Rows
from learner.device import make_fabric
from learner.draws import key
from learner.errors import DivergedError, InputError
from learner.models import Ema
from learner.pretrain import targets
from learner.pretrain.bodies import make_body
from learner.pretrain.config import PretrainConfig
from learner.pretrain.encoder import MAX_FIT, FaceEncoder, fit_readout
from learner.pretrain.mae import MaskedAutoencoder, MaskedAutoencoding
from learner.pretrain.objectives import FaceTerms, Objective
from learner.pretrain.probe import cross_validate
from learner.round import Reporter, StoppedError

ENCODER = "encoder.safetensors"
CURVE = "probe.jsonl"
_ORDER = 9  # what a seed is drawn for
Listen = Callable[[dict[str, Any]], None]


def run_pretraining(folder: Path, listen: Listen | None = None) -> Path:
    """Run or resume the pre-training in `folder`; return its `out` folder, which holds the encoder.

    Raises:
        InputError, PixelsMissingError, CheckpointError: the folder's contents.
        DivergedError: the loss is not finite.
        StoppedError: SIGTERM came; everything so far is saved.
    """
    out = folder / "out"
    if out.is_dir():
        return out
    config = PretrainConfig.load(folder / "config.json")
    report = Reporter(folder, config.steps, listen)
    with report.running() as asked:
        run = Pretraining(folder, config, report, asked)
        run.train()
        run.publish()
    report("done", config.steps, 1.0, 0.0, run.logs, now=True)
    return out


class Pretraining:
    """A pre-training in progress: `train`, then `publish`."""

    def __init__(self, folder: Path, config: PretrainConfig, report: Reporter, asked: threading.Event) -> None:
        self.folder, self.config, self.report, self.asked = folder, config, report, asked
        self.cache, self.rows = _read_pool(folder, config)
        self.fabric: lightning_fabric.Fabric = make_fabric(config)
        torch.manual_seed(key(config.seed, 1))  # first weights are the only ones drawn from a generator
        self.objective = self._objective()
        self.objective.network.to(memory_format=torch.channels_last)
        optimizer = _optimizer(self.objective.network, config)
        _, self.optimizer = self.fabric.setup(self.objective.network, optimizer)
        self.ema: Ema[nn.Module] = Ema(self.objective.network, EmaConfig(decay=config.ema))
        self.cycle = Cycle(self.rows, min(config.batch, len(self.rows)), config.seed, _ORDER)
        self._upload = Augmenter(AugmentConfig(), config.image_size, config.seed, self.fabric.device).upload
        self.step, self.seconds = 0, 0.0
        self.logs: dict[str, float] = {}
        self._read_out: tuple[int, FaceEncoder] | None = None
        self.checkpoint = folder / "checkpoint" / "state.safetensors"
        if self.checkpoint.exists():
            self._load()
        self._cut_curve()

    def _objective(self) -> Objective:
        config, device = self.config, self.fabric.device
        body, channels = make_body(config.backbone, config.image_size)
        if config.mae is not None:
            vit = getattr(body, "backbone", body)
            return MaskedAutoencoding(vit, config.mae, config.seed, device, fresh=config.backbone.weights is None)
        described = None
        if config.terms is not None and "hog" in config.terms.weights:

            def told(share: float) -> None:
                self.report("describing", 0, 0.0, None, {"described": share})

            terms = config.terms
            targets.build(self.cache, self.rows, self.folder, terms.target_dim, terms.whitening, told)
            described = targets.HogTargets(self.folder)
        return FaceTerms(body, channels, config, described, device)

    def _load(self) -> None:
        tensors, meta = checkpoint.load(self.checkpoint)
        checkpoint.load_weights(self.objective.network, checkpoint.unpack("network", tensors), str(self.checkpoint))
        checkpoint.load_weights(self.ema.network, checkpoint.unpack("ema", tensors), str(self.checkpoint))
        checkpoint.load_optimizer(self.optimizer, checkpoint.unpack("optimizer", tensors))
        self.step, self.seconds = int(meta["step"]), float(meta["seconds"])

    def _cut_curve(self) -> None:
        """Forget the points after the checkpoint: they come again."""
        curve = self.folder / CURVE
        if curve.exists():
            points = curve.read_text(encoding="utf-8").splitlines(keepends=True)
            curve.write_text("".join(p for p in points if json.loads(p)["step"] <= self.step), encoding="utf-8")

    def save(self) -> None:
        """Replace the checkpoint."""
        self.checkpoint.parent.mkdir(exist_ok=True)
        tensors = checkpoint.pack("network", self.objective.network.state_dict())
        tensors |= checkpoint.pack("ema", self.ema.network.state_dict())
        tensors |= checkpoint.pack("optimizer", checkpoint.optimizer_tensors(self.optimizer))
        checkpoint.save(self.checkpoint, tensors, {"step": self.step, "seconds": self.seconds})

    def train(self) -> None:
        """Train to the end, saving and probing now and then.

        Raises:
            StoppedError: asked to stop; saved first.
            DivergedError: the loss is not finite.
        """
        config = self.config
        began, earlier = time.perf_counter(), self.seconds
        self.objective.network.train()
        while self.step < config.steps:
            self._train_step()
            self.step += 1
            self.seconds = earlier + time.perf_counter() - began
            last = self.step == config.steps
            if last or self.step % config.probe_every == 0:
                self._probe()
                self._draw()
            if last or self.step % config.checkpoint_every == 0 or self.asked.is_set():
                self.save()
            if self.asked.is_set():
                raise StoppedError(f"stopped at step {self.step} of {config.steps}; saved")
            eta = self.seconds / self.step * (config.steps - self.step)
            self.report("pretraining", self.step, self.step / config.steps, eta, self.logs)

    def _train_step(self) -> None:
        config = self.config
        for group in self.optimizer.param_groups:
            group["lr"] = rate(config, self.step)
        rows = self.cycle.at(self.step)
        faces = self._upload(self.cache.gather(rows))
        with self.fabric.autocast():
            loss, parts = self.objective.loss(faces, rows, self.step)
        self.fabric.backward(loss)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.ema.update(self.objective.network, self.step)
        if (self.step + 1) % config.log_every == 0 or self.step + 1 == config.steps:
            self.logs = {"loss": float(loss.detach()), **{name: float(value) for name, value in parts.items()}}
            if not math.isfinite(self.logs["loss"]):
                raise DivergedError(f"the loss is {self.logs['loss']} at step {self.step}; lower lr ({config.lr})")

    def encoder(self) -> FaceEncoder:
        """Read out the averaged network as it is now, once a step."""
        if self._read_out is not None and self._read_out[0] == self.step:
            return self._read_out[1]
        chosen = self.rows[np.linspace(0, len(self.rows) - 1, min(len(self.rows), MAX_FIT)).astype(np.int64)]
        body = self.objective.encoder(self.ema.network)
        made = fit_readout(body, self.config, self.cache.gather(chosen), _name(self.config), self.fabric.device)
        self._read_out = (self.step, made)
        return made

    def _probe(self) -> None:
        """Add a point to the probe curve, where there are labels to probe with."""
        if not (self.folder / "labels.npz").exists():
            return
        with np.load(self.folder / "labels.npz", allow_pickle=False) as data:
            rows, label = data["rows"].astype(np.int64), data["label"].astype(np.int64)
        found = cross_validate(self.encoder()(self.cache.gather(rows)), label)
        if found is not None:
            point = {"step": self.step, "seconds": round(self.seconds, 1), **found}
            with (self.folder / CURVE).open("a", encoding="utf-8") as file:
                file.write(json.dumps(point) + "\n")
            self.logs |= {"probe": found["balanced_accuracy"]}

    def _draw(self) -> None:
        """Add a picture of what a masked autoencoder makes of the faces that the folder keeps for it."""
        if isinstance(self.ema.network, MaskedAutoencoder):
            from learner.pretrain.pictures import draw_progress  # plotly takes a second to load

            draw_progress(self.folder, self.ema.network, self.step)

    def publish(self) -> None:
        """Write the encoder and let `out` appear, complete and on the disk."""
        folder = self.folder / f".out.{os.getpid()}"
        for stale in self.folder.glob(".out.*"):
            shutil.rmtree(stale)
        folder.mkdir()
        self.encoder().save(folder / ENCODER)
        if self.config.mae is not None:
            tensors = {k: v.contiguous() for k, v in self.ema.network.state_dict().items()}
            checkpoint.save(folder / "autoencoder.safetensors", tensors, {"mae": self.config.mae.model_dump()})
        write_json(folder / "metrics.json", {"steps": self.step, "seconds": round(self.seconds, 1), "logs": self.logs})
        self.config.save(folder / "config.json")
        checkpoint.sync(folder)
        folder.rename(self.folder / "out")
        checkpoint.sync(self.folder)


def rate(config: PretrainConfig, step: int) -> float:
    """Return the learning rate of a step: linear rise, then half a cosine to 0."""
    rise = min(1.0, (step + 1) / max(1, config.warmup_steps))
    return config.lr * rise * 0.5 * (1 + math.cos(math.pi * step / config.steps))


def _optimizer(network: nn.Module, config: PretrainConfig) -> torch.optim.Optimizer:
    trained = [p for p in network.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas)


def _read_pool(folder: Path, config: PretrainConfig) -> tuple[PixelCache, Rows]:
    try:
        pool = json.loads((folder / "pool.json").read_text(encoding="utf-8"))
        rows = np.sort(np.load(folder / "rows.npy", allow_pickle=False).astype(np.int64))
        cache = PixelCache(Path(pool["cache"]), config.image_size)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{folder} is no complete pre-training folder: {error}") from error
    if len(rows) < 2:
        raise InputError(f"{folder} names {len(rows)} faces; two or more are needed")
    return cache, rows


def _name(config: PretrainConfig) -> str:
    if config.mae is not None:
        return f"{config.backbone.name}-mae"
    assert config.terms is not None
    return "-".join([config.backbone.name, *config.terms.weights])

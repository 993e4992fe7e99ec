"""Small pre-training folders on generated patterns."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from learner.data import write_shards
from learner.pretrain.config import PretrainConfig
from tests.learner.runs import patterns

SIZE = 32


def small_config(**changes: Any) -> PretrainConfig:
    """A run of milliseconds a step; `terms` may be given as a mapping."""
    base: dict[str, Any] = {"steps": 6, "batch": 12, "image_size": SIZE, "dim": 16, "device": "cpu", "threads": 1}
    base |= {"precision": "32-true", "log_every": 2, "checkpoint_every": 3, "probe_every": 3, "warmup_steps": 2}
    return PretrainConfig.parse(base | {"terms": {"weights": {"hog": 1.0}, "target_dim": 16}} | changes)


def write_pretraining(folder: Path, config: PretrainConfig, num: int = 48, labels: int = 0) -> Path:
    """Write a run folder on `num` faces, the first `labels` of them with labels for the curve."""
    images, label = patterns(num, size=config.image_size)
    cache = folder / "cache"
    write_shards(cache, images)
    config.save(folder / "config.json")
    np.save(folder / "rows.npy", np.arange(num))
    (folder / "pool.json").write_text(json.dumps({"cache": str(cache)}), encoding="utf-8")
    if labels:
        np.savez(folder / "labels.npz", rows=np.arange(labels), label=label[:labels])
    return folder

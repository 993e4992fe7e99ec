"""What a round leaves behind, and how the next one starts from it: weights, state, events (ALGORITHMS.md 11.4-11.6).

A snapshot folder holds `model.safetensors` (the averaged network), `state.safetensors` (the student, keepers and
tables, the label view that was trained on), `state.json`, `config.json`, `metrics.json`, `signals.parquet`,
`rows.npy`, `features.npy` and `probs.npy`.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from learner import checkpoint, methods
from learner.bank import FeatureBank
from learner.config import RunConfig, write_json
from learner.data import PixelCache
from learner.device import make_fabric
from learner.errors import CheckpointError, InputError
from learner.models import FEATURES, Network, build_network, make_backbone, read_weights
from learner.parts import Event, LabelView, Recipe
from learner.predict import Predictor
from learner.sources import make_source
from learner.state import permute_classes
from learner.trainer import Trainer


@dataclass(frozen=True, slots=True)
class Assembled:
    """A recipe with fresh state and its network."""

    recipe: Recipe
    network: Network


def assemble(config: RunConfig, num_classes: int, weights: bool = True, feature_dim: int | None = None) -> Assembled:
    """Build the recipe and the network that a configuration names, seeded; `weights` False skips the weight file.

    feature_dim is the width of a feature bank, where the run reads one instead of pixels.

    Raises:
        InputError: unknown method, option or backbone.
        CheckpointError: the backbone's weights cannot be loaded.
    """
    torch.manual_seed(config.seed)
    backbone = config.backbone if weights else config.backbone.model_copy(update={"weights": None})
    made = make_backbone(backbone, config.image_size, feature_dim)
    try:
        recipe = methods.build(config.method, num_classes, made[1], config.options)
    except ValueError as error:
        raise InputError(str(error)) from error
    return Assembled(recipe, build_network(config.backbone, num_classes, recipe, made))


def shape_of(trainer: Trainer) -> dict[str, Any]:
    """Say which network a run trains, and on whose features where it reads a bank."""
    config, faces = trainer.config, trainer.data.faces
    shape = {
        "backbone": config.backbone.name,
        "arguments": config.backbone.arguments or None,  # none in snapshots from before there were any
        "feature_norm": trainer.recipe.feature_norm,
        "image_size": config.image_size,
    }
    return shape | ({"encoder": faces.encoder} if isinstance(faces, FeatureBank) else {})


def write_snapshot(folder: Path, trainer: Trainer) -> None:
    """Write weights and state of a finished round into `folder`."""
    view = trainer.data.view
    averaged = {k: v.detach().cpu().contiguous() for k, v in trainer.ema.network.state_dict().items()}
    save_file(averaged, folder / "model.safetensors")
    tensors = checkpoint.pack("student", trainer.raw.state_dict()) | trainer.keeper_state()
    tensors |= {"view/rows": view.rows, "view/stamp": view.stamp, "view/given": view.given}
    tensors["pool/rows"] = torch.from_numpy(trainer.data.unlabeled)
    checkpoint.save(folder / "state.safetensors", tensors, {})
    write_json(
        folder / "state.json",
        {
            "format": checkpoint.FORMAT,
            "method": trainer.config.method,
            "classes": list(view.classes),
            "label_seq": view.label_seq,
            "round": trainer.round,
            "lifetime_step": trainer.lifetime_step,
            **shape_of(trainer),
        },
    )
    trainer.config.save(folder / "config.json")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A snapshot loaded for prediction: the averaged network and how to read it."""

    config: RunConfig
    recipe: Recipe
    network: Network
    classes: tuple[str, ...]
    round: int
    lifetime_step: int

    def predictor(self, faces: PixelCache | FeatureBank) -> Predictor:
        """Make a predictor on the CPU or the configured device."""
        device = make_fabric(self.config).device
        source = make_source(faces, self.config, device)
        return Predictor(
            self.network.to(device), self.recipe, source, device, self.config.predict_batch, self.lifetime_step
        )


def load(folder: Path) -> Snapshot:
    """Rebuild the averaged network of a snapshot.

    Raises:
        CheckpointError: the folder is no complete snapshot.
    """
    meta = read_meta(folder)
    config = RunConfig.load(folder / "config.json")
    classes = tuple(meta["classes"])
    weights = read_weights(folder / "model.safetensors")
    width = int(weights["head.weight"].shape[1]) if config.backbone.name == FEATURES else None
    made = assemble(config, len(classes), weights=False, feature_dim=width)
    checkpoint.load_weights(made.network, weights, str(folder))
    return Snapshot(config, made.recipe, made.network, classes, int(meta["round"]), int(meta["lifetime_step"]))


def read_meta(folder: Path) -> dict[str, Any]:
    """Read `state.json` of a snapshot.

    Raises:
        CheckpointError: it is missing, damaged or of another format.
    """
    try:
        meta = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder} is no snapshot: {error}") from error
    if not isinstance(meta, dict) or meta.get("format") != checkpoint.FORMAT:
        raise CheckpointError(f"{folder} has another snapshot format; this version reads {checkpoint.FORMAT}")
    return meta


def warm_start(trainer: Trainer, folder: Path, from_average: bool = False) -> None:
    """Continue from the previous round's snapshot: weights, average, keepers, then the events since.

    Another backbone, feature form or image size starts the network and everything learned anew; another method keeps
    the backbone and the head and starts its own state, told of every label as new, and so does a keeper that the same
    method did not have then, under other options. Adapters and parts go on where they fit; keepers are told where other
    adapters than before make the features. from_average: the student starts from the averaged weights too, as a stage
    that follows a finished one does.

    Raises:
        CheckpointError: the snapshot is incomplete or does not fit; with from_average, it is of another network.
    """
    meta = read_meta(folder)
    other = [key for key, value in shape_of(trainer).items() if meta.get(key) != value]
    if other and from_average:
        raise CheckpointError(f"{folder} has another {', '.join(other)} than the run that shall start from its weights")
    if other:
        begin(trainer)
        return
    old, new = list(meta["classes"]), list(trainer.data.view.classes)
    tensors, _ = checkpoint.load(folder / "state.safetensors")
    averaged = follow(trainer.raw, read_weights(folder / "model.safetensors"), old, new)
    student = averaged if from_average else follow(trainer.raw, checkpoint.unpack("student", tensors), old, new)
    checkpoint.load_weights(trainer.ema.network, averaged, str(folder))
    checkpoint.load_weights(trainer.raw, student, str(folder))
    trainer.round, trainer.lifetime_start = int(meta["round"]) + 1, int(meta["lifetime_step"])
    everything = [*diff({}, labels_of(trainer.data.view)), Event("round_started", new=trainer.round)]
    told = dict.fromkeys((keeper.name for keeper in trainer.recipe.keepers), everything)
    if meta["method"] == trainer.config.method:
        kept: dict[str, Tensor] = {}
        for prefix in sorted({name.rsplit("/", 1)[0] for name in tensors if name.startswith(("keeper/", "table/"))}):
            kept |= checkpoint.pack(prefix, permute_classes(checkpoint.unpack(prefix, tensors), old, new))
        since = events_since(trainer, tensors, old)
        for keeper in trainer.recipe.keepers:
            prefix, fresh = f"keeper/{keeper.name}", keeper.state_dict()
            if checkpoint.unpack(prefix, kept) or not fresh:
                told[keeper.name] = since
            else:
                kept |= checkpoint.pack(prefix, fresh)
        trainer.load_keepers(kept)
    if extractor(trainer.raw.state_dict()) != extractor(checkpoint.unpack("student", tensors)):
        trainer.apply([Event("features_changed")])
        trainer.ema.copy(trainer.raw, "parts.")  # what keepers took back there
    for keeper in trainer.recipe.keepers:
        for event in told[keeper.name]:
            keeper.on_event(event)


def extractor(weights: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Describe the adapters that stand between backbone and features: their entries and shapes."""
    return {name: tuple(value.shape) for name, value in weights.items() if name.startswith("feature_adapters.")}


def begin(trainer: Trainer) -> None:
    """Start round 0: every label is news to the keepers."""
    trainer.apply([*diff({}, labels_of(trainer.data.view)), Event("round_started", new=0)])


def events_since(trainer: Trainer, tensors: dict[str, Tensor], old: list[str]) -> list[Event]:
    """Compare the snapshot's labels and pool with this round's: what happened in between, in a fixed order."""
    view = trainer.data.view
    place = [view.classes.index(name) if name in view.classes else -1 for name in old]
    given = [place[g] if g >= 0 else -1 for g in tensors["view/given"].tolist()]
    rows, stamps = tensors["view/rows"].tolist(), tensors["view/stamp"].tolist()
    before = {row: (stamp, label) for row, stamp, label in zip(rows, stamps, given, strict=True)}
    known = set(rows) | set(tensors["pool/rows"].tolist())
    now = set(view.rows.tolist()) | set(trainer.data.unlabeled.tolist())
    gone, added = sorted(known - now), sorted(now - known)
    return [
        *(Event("sample_added", row) for row in added),
        *(Event("sample_removed", row) for row in gone),
        *diff({row: label for row, label in before.items() if row in now}, labels_of(view)),
        Event("round_started", new=trainer.round),
    ]


def labels_of(view: LabelView) -> dict[int, tuple[int, int]]:
    """Return row → (stamp, class or -1)."""
    return {
        row: (stamp, label)
        for row, stamp, label in zip(view.rows.tolist(), view.stamp.tolist(), view.given.tolist(), strict=True)
    }


def diff(before: dict[int, tuple[int, int]], now: dict[int, tuple[int, int]]) -> list[Event]:
    """Turn two states of the labels into events by row; an answer that repeats a label is a change too."""
    events = []
    for row in sorted(before.keys() | now.keys()):
        if row not in before:
            events.append(Event("labelled", row, new=now[row][1]))
        elif row not in now:
            events.append(Event("label_removed", row, old=before[row][1]))
        elif before[row] != now[row]:
            events.append(Event("label_changed", row, old=before[row][1], new=now[row][1]))
    return events


def follow(network: Network, saved: dict[str, Tensor], old: list[str], new: list[str]) -> dict[str, Tensor]:
    """Bring saved weights to a network: class axes by name, entries that do not fit as the network has them.

    A class that is new starts as in the fresh network; one that is gone is dropped. The backbone must fit.
    """
    fresh, axes = network.state_dict(), network.class_axes()
    brought = {}
    for name, value in fresh.items():
        given = saved.get(name)
        if given is not None and old != new:
            for axis in axes.get(name, ()):
                given = along(given, value, axis, old, new) if given is not None else None
        fits = given is not None and given.shape == value.shape
        if not fits and name.startswith("backbone."):
            raise CheckpointError(f"the snapshot's backbone does not fit in {name}")
        brought[name] = given if given is not None and fits else value.detach().cpu().clone()
    return brought


def along(given: Tensor, fresh: Tensor, axis: int, old: list[str], new: list[str]) -> Tensor | None:
    """Reorder one class axis by name, new classes taken from `fresh`; None where the other axes differ."""
    if given.dim() != fresh.dim() or given.shape[axis] != len(old) or fresh.shape[axis] != len(new):
        return None
    moved = []
    for position, name in enumerate(new):
        source = (given, old.index(name)) if name in old else (fresh.to(given), position)
        moved.append(source[0].select(axis, source[1]))
    return torch.stack(moved, dim=axis) if len({part.shape for part in moved}) == 1 else None

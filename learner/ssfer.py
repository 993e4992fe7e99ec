"""SSFER from end to end (ALGORITHMS.md 8): a masked autoencoder, FaceMix, EMA-teacher, each resumable on its own.

OUT holds `source.json` (manifest and labels), `cache/`, and a run folder for each stage: `mae` as `learner.pretrain`
has it, `facemix` and `teacher` as `learner.round` has them. Stages 2 and 3 learn from the same labels; stage 3 starts
from the averaged weights of stage 2, teacher and student alike.
"""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import numpy as np
import typer
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from learner import manifest as manifests
from learner import methods, progress
from learner.config import RunConfig, read_yaml, write_json
from learner.data import PixelCache, Rows
from learner.errors import InputError
from learner.manifest import Manifest
from learner.pretrain.command import without_copies
from learner.pretrain.config import PretrainConfig
from learner.pretrain.loop import ENCODER, run_pretraining
from learner.round import run_round

Stage = Literal["mae", "facemix", "teacher"]
AUTOENCODER = "autoencoder.safetensors"  # in full precision, beside the encoder
STAGES: tuple[Stage, ...] = get_args(Stage)
Listen = Callable[[dict[str, Any]], None]


class SsferConfig(BaseModel):
    """The settings of the three stages. mae: null leaves it out, then stage 2 starts from its own backbone.weights.

    The stages share backbone and image size; where there is a stage 1, its network replaces backbone.weights of stage
    2. A convolutional net is pre-trained by `terms` in place of `mae`, as `python -m learner pretrain` does.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    mae: PretrainConfig | None
    facemix: RunConfig
    teacher: RunConfig

    @model_validator(mode="after")
    def _one_network(self) -> "SsferConfig":
        first = self.facemix
        for name, other in (("mae", self.mae), ("teacher", self.teacher)):
            if other is None:
                continue
            for field in ("name", "arguments"):
                mine, theirs = getattr(first.backbone, field), getattr(other.backbone, field)
                if mine != theirs:
                    raise ValueError(f"{name}.backbone.{field} {theirs!r} differs from that of facemix, {mine!r}")
            if other.image_size != first.image_size:
                raise ValueError(f"{name}.image_size {other.image_size} is not that of facemix, {first.image_size}")
        if self.teacher.backbone.weights is not None:
            raise ValueError("teacher.backbone.weights would not be read: stage 3 starts from stage 2; use null")
        norms = [methods.resolve(c.method, c.options).as_dict()["feature_norm"] for c in (first, self.teacher)]
        if norms[0] != norms[1]:
            raise ValueError(f"feature_norm is {norms[0]} in facemix and {norms[1]} in teacher; their heads do not fit")
        return self

    @classmethod
    def load(cls, path: Path) -> "SsferConfig":
        """Read one YAML file.

        Raises:
            InputError: it is missing or malformed, or its stages do not fit together.
        """
        try:
            return cls.model_validate(read_yaml(path, "configuration"))
        except ValidationError as error:
            parts = (f"{'.'.join(map(str, e['loc'])) or 'stages'}: {e['msg']}" for e in error.errors())
            raise InputError(f"{path}: " + "; ".join(parts)) from error

    def replace(self, **changes: Any) -> "SsferConfig":
        """Return the same settings but for `changes`, made in every stage."""
        mae = None if self.mae is None else self.mae.replace(**changes)
        return SsferConfig(mae=mae, facemix=self.facemix.replace(**changes), teacher=self.teacher.replace(**changes))


def ssfer(
    source: Annotated[Path, typer.Argument(metavar="MANIFEST", help="CSV path,label,split[,votes] or a FER+ zip")],
    out: Annotated[Path, typer.Argument(help="a folder per stage; the model appears in OUT/teacher/out")],
    config: Annotated[Path, typer.Option(help="YAML of the three stages; see configs/ssfer.yaml")],
    stage: Annotated[str | None, typer.Option(help=f"this one alone: {', '.join(STAGES)}")] = None,
    labels: Annotated[int | None, typer.Option(min=1, help="labels in all, shared evenly by the classes")] = None,
    split_seed: Annotated[int, typer.Option(min=0, help="of the choice of labels")] = 0,
    steps: Annotated[int | None, typer.Option(min=1, help="of every stage, to try it out")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads")] = None,
) -> None:
    """Pre-train by masking, fine-tune with FaceMix, then learn from unlabeled faces; goes on where it stopped."""
    if stage is not None and stage not in STAGES:
        raise InputError(f"no stage {stage!r}; there are {', '.join(STAGES)}")
    given = {"steps": steps, "threads": threads}
    chosen = SsferConfig.load(config).replace(**{name: value for name, value in given.items() if value is not None})
    if stage == "mae" and chosen.mae is None:
        raise InputError(f"{config} has no stage mae")
    found = Manifest.read(source)
    per_class = None if labels is None else max(1, labels // len(found.classes))
    pipeline = Pipeline(found, manifests.choose_labels(found, per_class, split_seed), chosen, out)
    pipeline.prepare()
    for name in STAGES if stage is None else (stage,):
        if name == "mae" and chosen.mae is None:
            continue
        with progress.bar(name) as advance:
            result = pipeline.run(name, lambda r: advance(r["progress"], r["state"] + progress.losses(r["logs"])))
        progress.print_json({"stage": name, "out": str(result), **pipeline.report(name)})


class Pipeline:
    """The stages of one manifest and one choice of labels in a folder."""

    def __init__(self, manifest: Manifest, labeled: Rows, config: SsferConfig, out: Path) -> None:
        self.manifest, self.labeled, self.config, self.out = manifest, labeled, config, out
        self.cache = out / "cache" / str(config.facemix.image_size)

    def prepare(self) -> None:
        """Decode the faces once, or check that OUT was made from the same manifest and labels.

        Raises:
            InputError: it was not.
        """
        note = self.out / "source.json"
        wanted = {"source": manifests.source_key(self.manifest), "labeled": self.labeled.tolist()}
        if note.exists():
            if json.loads(note.read_text(encoding="utf-8")) != wanted:
                raise InputError(f"{self.out} holds another manifest or choice of labels; choose another folder")
        elif self.out.exists() and any(path.name != "cache" for path in self.out.iterdir()):
            raise InputError(f"{self.out} is not empty; choose another folder")
        if not (self.cache / "complete").exists():
            shutil.rmtree(self.cache, ignore_errors=True)
            size = self.config.facemix.image_size
            with progress.bar("read images") as advance:
                manifests.write_cache(self.manifest, self.cache, size, lambda n, total: advance(n / total, ""))
            (self.cache / "complete").touch()
        write_json(note, wanted)

    def run(self, stage: str, listen: Listen | None = None) -> Path:
        """Run, resume or find finished one stage; return its `out` folder.

        Raises:
            InputError: the stage before is not finished, or this one was begun with another configuration.
        """
        folder = self.out / stage
        if stage == "mae":
            assert self.config.mae is not None
            self._fill(folder, self.config.mae, self._fill_mae, weights=True)
            return run_pretraining(folder, listen)
        wanted = self.config.facemix if stage == "facemix" else self.config.teacher
        before = {"facemix": None if self.config.mae is None else "mae", "teacher": "facemix"}[stage]
        if before is not None and not (self.out / before / "out").is_dir():
            raise InputError(f"stage {before} of {self.out} is not finished; run it first, or leave out --stage")
        fill = self._fill_facemix if stage == "facemix" else self._fill_teacher
        self._fill(folder, wanted, fill, weights=before is None)
        return run_round(folder, listen)

    def report(self, stage: str) -> dict[str, Any]:
        """Return what a person wants to know of a finished stage."""
        metrics = json.loads((self.out / stage / "out" / "metrics.json").read_text(encoding="utf-8"))
        return {key: metrics[key] for key in ("steps", "seconds", "logs", "notes", "val") if metrics.get(key)}

    def _fill(
        self, folder: Path, config: RunConfig | PretrainConfig, fill: Callable[[Path], None], weights: bool
    ) -> None:
        """Let a stage's folder appear complete, or check that the one there has the same settings.

        weights: whether its first weights are a setting; where they are the stage's before, their place may change.
        """
        if folder.exists():
            found = type(config).load(folder / "config.json").model_dump(mode="json")
            asked = config.model_dump(mode="json")
            if not weights:
                found["backbone"].pop("weights"), asked["backbone"].pop("weights")
            if found != asked:
                raise InputError(f"{folder} was begun with another configuration; choose another folder for OUT")
            return
        temporary = self.out / f".{folder.name}.{os.getpid()}"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        fill(temporary)
        temporary.rename(folder)

    def _fill_mae(self, folder: Path) -> None:
        config = self.config.mae
        assert config is not None
        np.save(folder / "rows.npy", without_copies(self.manifest, PixelCache(self.cache, config.image_size)))
        config.save(folder / "config.json")
        write_json(folder / "pool.json", {"cache": str(self.cache.resolve())})

    def _fill_facemix(self, folder: Path) -> None:
        config = self.config.facemix
        if self.config.mae is not None:
            file = ENCODER if self.config.mae.mae is None else AUTOENCODER
            weights = str((self.out / "mae" / "out" / file).resolve())
            config = config.replace(backbone={**config.backbone.model_dump(), "weights": weights})
        manifests.make_run(self.manifest, config, self.labeled, folder, self.cache.resolve())

    def _fill_teacher(self, folder: Path) -> None:
        manifests.make_run(self.manifest, self.config.teacher, self.labeled, folder, self.cache.resolve())
        pool = json.loads((folder / "pool.json").read_text(encoding="utf-8"))
        start = {"previous": str((self.out / "facemix" / "out").resolve()), "from_average": True}
        write_json(folder / "pool.json", pool | start)

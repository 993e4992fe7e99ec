"""What a benchmark runs: one YAML document, checked as a whole before the first step."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from learner import methods
from learner.bank import adapt
from learner.config import Part, RunConfig, read_yaml
from learner.errors import InputError
from learner.protocols import Kind, LabelSplit, Protocol

NAME = r"^[A-Za-z0-9_.+=-]+$"  # becomes a folder


class DatasetEntry(Part):
    """Where images come from.

    source: relative to the working directory, or else to the configuration. rule: FER+ votes to label. evaluate: the
    split that is reported on. pool: which unlabeled training images serve, those with a known class or all. bank: a
    feature bank of the same source (`python -m learner bank SOURCE BANK`) that runs read instead of pixels; methods are
    adapted to it. boxes: a file as a run's `boxes.npy` (`learner.boxes`), by row of the source, for FaceMix.
    """

    name: str = Field(pattern=NAME)
    kind: Kind
    source: str
    rule: Literal["plurality", "majority"] = "plurality"
    classes: tuple[str, ...] | None = None
    evaluate: Literal["val", "test"] = "val"
    pool: Literal["known", "all"] = "known"
    bank: str | None = None
    boxes: str | None = None


class SplitEntry(Part):
    """How labels are chosen: a protocol of `learner.protocols` and its amounts; gamma for imbalance only."""

    protocol: Protocol
    amounts: tuple[float, ...] = Field((0,), min_length=1)
    gamma: float = Field(1.0, ge=1)


class MethodEntry(Part):
    """A method, its options, and what it is compared with.

    label: its name in tables, by default the method's. host: the label of the entry that it is paired with; by default
    the host of a plug-in's name where that is in the list, else supervised. published: its name in the papers' tables.
    run: settings that differ from the grid's, section by section.
    """

    name: str
    label: str = Field("", pattern=NAME + "|^$")
    options: dict[str, Any] = Field(default_factory=dict)
    host: str | None = None
    published: str | None = None
    run: dict[str, Any] = Field(default_factory=dict)

    @property
    def title(self) -> str:
        """The label, or the name where none is given."""
        return self.label or self.name


class Grid(Part):
    """A benchmark, completely. `run` holds fields of `RunConfig` but method, options and seed."""

    name: str = Field(pattern=NAME)
    datasets: tuple[DatasetEntry, ...] = Field(min_length=1)
    splits: tuple[SplitEntry, ...] = Field(min_length=1)
    methods: tuple[MethodEntry, ...] = Field(min_length=1)
    split_seeds: tuple[int, ...] = Field((0, 1, 2, 3, 4), min_length=1)
    training_seed: int | None = Field(None, ge=0, description="null: the split seed")
    validations: int = Field(10, ge=1, description="evaluations during a run, for the best-on-validation column")
    bootstrap: int = Field(2000, ge=100, description="draws")
    run: dict[str, Any] = Field(default_factory=dict)

    @classmethod
    def load(cls, path: Path) -> "Grid":
        """Read and check one YAML file.

        Raises:
            InputError: it is missing or malformed, or names an unknown method, option, setting or host.
        """
        return cls.parse(read_yaml(path, "benchmark"), str(path))

    @classmethod
    def parse(cls, data: dict[str, Any], source: str = "benchmark") -> "Grid":
        """Check a mapping.

        Raises:
            InputError: see `load`.
        """
        try:
            grid = cls.model_validate(data)
            grid.check()
        except ValidationError as error:
            parts = (f"{'.'.join(map(str, e['loc']))}: {e['msg']} (given {e['input']!r})" for e in error.errors())
            raise InputError(f"{source}: " + "; ".join(parts)) from error
        except ValueError as error:
            raise InputError(f"{source}: {error}") from error
        return grid

    def check(self) -> None:
        """Refuse what no run could use.

        Raises:
            ValueError: the message names the entry.
        """
        titles = [method.title for method in self.methods]
        seeds = [str(seed) for seed in self.split_seeds]
        for what, names in (("datasets", [d.name for d in self.datasets]), ("methods", titles), ("split_seeds", seeds)):
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                raise ValueError(f"{what} names {', '.join(twice)} twice; give each its own name or label")
        taken = sorted(self.run.keys() & {"method", "options", "seed"})
        if taken:
            raise ValueError(f"run.{taken[0]} is set by methods and split_seeds; remove it")
        for method in self.methods:
            if method.host is not None and method.host not in titles:
                raise ValueError(f"methods: {method.title}: host {method.host!r} is none of {', '.join(titles)}")
            methods.resolve(method.name, method.options)
            config = self.config_of(method, 0)
            if config.checkpoint_every % config.log_every:
                raise ValueError(
                    f"run.checkpoint_every {config.checkpoint_every} must be a multiple of log_every {config.log_every}"
                )

    def config_of(self, method: MethodEntry, split_seed: int) -> RunConfig:
        """Return the settings of a run.

        Raises:
            InputError: an unknown setting or a wrong value.
        """
        chosen = dict(self.run)
        for key, value in method.run.items():
            below = chosen.get(key)
            chosen[key] = {**below, **value} if isinstance(below, dict) and isinstance(value, dict) else value
        seed = split_seed if self.training_seed is None else self.training_seed
        named = {"method": method.name, "options": method.options, "seed": seed}
        return RunConfig.parse({"predict_views": "none", "ramp_scope": "run", **chosen, **named}, "run")

    def cells(self) -> Iterator["Cell"]:
        """Yield every cell, one split seed after the other, so that an unfinished grid can be read already."""
        amounts = [(s.protocol, amount, s.gamma) for s in self.splits for amount in s.amounts]
        for seed, dataset, (protocol, amount, gamma), method in product(
            self.split_seeds, self.datasets, amounts, self.methods
        ):
            config = self.config_of(method, seed)
            chosen = adapt(config) if dataset.bank is not None else config
            yield Cell(dataset, LabelSplit(protocol, amount, gamma), method, seed, chosen)

    def host_of(self, method: MethodEntry) -> str | None:
        """Return the label that a method is paired with, None for the baseline itself."""
        titles = {entry.title: entry for entry in self.methods}
        if method.host is not None:
            return method.host
        words = method.name.split("+")
        for title, entry in titles.items():
            if len(words) > 1 and entry.name in words:
                return title
        plain = next((title for title, entry in titles.items() if entry.name == "supervised"), None)
        return None if plain == method.title else plain


@dataclass(frozen=True, slots=True)
class Cell:
    """One run of a grid."""

    dataset: DatasetEntry
    split: LabelSplit
    method: MethodEntry
    seed: int
    config: RunConfig

    @property
    def name(self) -> str:
        """Path of its folder under `cells`."""
        return f"{self.dataset.name}/{self.split.name}/{self.method.title}/seed{self.seed}"

    def describe(self) -> dict[str, Any]:
        """Return what makes this cell this cell, with the resolved options' hash (13.4)."""
        options = methods.resolve(self.config.method, self.config.options).as_dict()
        settings = self.config.model_dump(mode="json")
        for field in ("seed", "options", "device", "threads"):
            settings.pop(field)
        return {
            "dataset": self.dataset.name,
            "kind": self.dataset.kind,
            "rule": self.dataset.rule,
            "split": self.split.name,
            "method": self.config.method,
            "label": self.method.title,
            "split_seed": self.seed,
            "training_seed": self.config.seed,
            "initialisation": initialisation(self.config),
            "steps": self.config.steps,
            "preset_hash": digest({"options": options, "settings": settings}),
            "options": options,
        }


def initialisation(config: RunConfig) -> str:
    """Name the backbone and where its first weights come from."""
    weights = config.backbone.weights
    start = "random start" if weights is None else "timm weights" if weights == "timm" else f"from {Path(weights).name}"
    return f"{config.backbone.name}, {start}"


def digest(value: Any) -> str:
    """Hash plain values, whatever the order of their keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]

"""The settings of a workspace: one `workspace.yaml`, read once at start, unknown keys refused.

Every field can be overridden by an environment variable `ANNOTATOR_<SECTION>__<FIELD>`, for example
`ANNOTATOR_LEARNER__DEVICE=cuda`.
"""

import json
import os
import re
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from annotator import taxonomy
from annotator.errors import InputError, WorkspaceError

FILE = "workspace.yaml"
DEFAULT_METHODS = ("loop",)
"""What a workspace trains unless its settings say otherwise; the first is the one that a single run takes."""
SHIPPED, POOL, RANDOM, TIMM = "shipped", "pool", "random", "timm:"
"""What `learner.start` may be, beside the path of a file."""
_LONGEST_METHOD = 32  # a snapshot's id is the name and a number, and has 40 characters
_METHOD = re.compile(r"[a-z0-9_]+(\+[a-z0-9_]+)*")


def check_start(start: str) -> str:
    """Return `start` when it may be what a workspace starts from.

    Raises:
        ValueError: it is neither a known word nor the name of a safetensors file.
    """
    named = start in (SHIPPED, POOL, RANDOM) or (start.startswith(TIMM) and len(start) > len(TIMM))
    if not named and not start.endswith(".safetensors"):
        raise ValueError(f"{start!r} is no start; give shipped, pool, random, timm:NAME or an encoder's .safetensors")
    return start


def absolute_start(start: str) -> str:
    """Return a start that a person has typed, its path as it is seen from anywhere.

    Raises:
        InputError: there is no such start, or no such file.
    """
    try:
        check_start(start)
    except ValueError as error:
        raise InputError(str(error)) from error
    if start in (SHIPPED, POOL, RANDOM) or start.startswith(TIMM):
        return start
    path = Path(start).expanduser().resolve()
    if not path.is_file():
        raise InputError(f"no encoder {path}; give shipped, pool, random, timm:NAME or a file that exists")
    return str(path)


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Shares(_Section):
    """How the queue is mixed; the shares are normalised to one over the arms that have anything to offer."""

    coverage: float = Field(0.30, ge=0, le=1)
    uncertain: float = Field(0.35, ge=0, le=1)
    review: float = Field(0.15, ge=0, le=1)
    quota: float = Field(0.15, ge=0, le=1)
    random: float = Field(0.05, ge=0, le=1)

    @model_validator(mode="after")
    def _some(self) -> "Shares":
        if self.total <= 0:
            raise ValueError("at least one share must be above 0")
        return self

    @property
    def total(self) -> float:
        """The sum of the shares."""
        return self.coverage + self.uncertain + self.review + self.quota + self.random


class QueueSettings(_Section):
    """The order in which faces are asked for."""

    shares: Shares = Shares()
    lease_seconds: float = Field(120.0, gt=0)
    reserve_every: int = Field(10, ge=2, description="one in this many random-arm faces is kept for validation")
    max_leases_per_user: int = Field(50, ge=1)


class ServerSettings(_Section):
    """Where the web server listens."""

    host: str = "127.0.0.1"
    port: int = Field(7860, ge=0, le=65535)
    allowed_hosts: tuple[str, ...] = ()
    session_days: float = Field(14.0, gt=0)


class LearnerSettings(_Section):
    """What is trained, when, and with how much of the machine.

    methods: recipes that are trained in turn, each with snapshots of its own. `method: x` is read as `methods: [x]`.
    start: the encoder that the fast learner, retrieval and coverage read faces with, and that training starts from
    where it has the same backbone. shipped: the one that comes with the project. pool: the one that
    `annotator pretrain` has adapted to these faces, the shipped one until then. random: nothing learned, HOG features
    and random first weights. timm:NAME: a model of timm's hub. Else the file of an encoder; a relative path begins at
    the workspace.
    """

    methods: tuple[str, ...] = Field(DEFAULT_METHODS, min_length=1)
    start: str = SHIPPED
    backbone: str = "resnet10_grid"
    weights: str | None = Field(None, description="path of safetensors/weights_only file, 'timm', or null for `start`")
    image_size: int = Field(48, ge=16, le=512)
    device: str = "auto"
    precision: Literal["auto", "32-true", "bf16-mixed"] = Field(
        "auto", description="of the rounds; auto: bf16-mixed where the device computes bfloat16 by itself"
    )
    threads: int = Field(1, ge=1)
    round_minutes: float = Field(5.0, gt=0)
    new_labels: int = Field(50, ge=1, description="a round starts after this many new labels")
    max_wait_minutes: float = Field(30.0, gt=0, description="or after this long with at least one new label")
    min_labels: int = Field(16, ge=2, description="no round before this many labeled faces")
    keep_generations: int = Field(3, ge=2)
    keep_snapshots: int = Field(5, ge=2, description="of each method")

    @model_validator(mode="before")
    @classmethod
    def _one_method(cls, data: Any) -> Any:
        if not isinstance(data, dict) or "method" not in data:
            return data
        if "methods" in data:
            raise ValueError(f"methods and method {data['method']!r} are both given; keep methods alone")
        return {**{key: value for key, value in data.items() if key != "method"}, "methods": (data["method"],)}

    @field_validator("methods")
    @classmethod
    def _names(cls, methods: tuple[str, ...]) -> tuple[str, ...]:
        for name in methods:
            if not _METHOD.fullmatch(name) or len(name) > _LONGEST_METHOD:
                raise ValueError(f"{name!r} is no method name, such as lion or remop+fixmatch")
            if methods.count(name) > 1:
                raise ValueError(f"{name!r} is named twice")
        return methods

    @field_validator("start")
    @classmethod
    def _source(cls, start: str) -> str:
        return check_start(start)


YUNET = (
    "https://media.githubusercontent.com/media/opencv/opencv_zoo/main/models/face_detection_yunet/"
    "face_detection_yunet_2023mar.onnx",
    "8f2383e4dd3cfbb4553ea8718107fc0423210dc964f9f4280604804ed2552fa4",
)
"""Where YuNet's weights live (230 KB, MIT licence), and the SHA-256 of the file."""


class ImportSettings(_Section):
    """Limits under which images are decoded, and how faces are found in them (`annotator import --faces`).

    detector: cascade and cascade+profile come with OpenCV; yunet finds more faces and their landmarks, with the file
    `detector_model`, or with the one at `detector_url`, downloaded once.
    """

    max_bytes: int = Field(20_000_000, gt=0)
    max_pixels: int = Field(40_000_000, gt=0)
    min_side: int = Field(16, ge=1)
    detector: Literal["cascade", "cascade+profile", "yunet"] = "cascade"
    detector_model: str | None = Field(None, description="path of YuNet's ONNX file; null downloads it once")
    detector_url: str = YUNET[0]
    detector_sha256: str = Field(YUNET[1], pattern="^[0-9a-f]{64}$")
    face_margin: float = Field(0.15, ge=0, le=2, description="added on each side of a face, in shares of its side")


class Settings(BaseSettings):
    """Everything in `workspace.yaml`."""

    model_config = SettingsConfigDict(extra="forbid", frozen=True, env_prefix="ANNOTATOR_", env_nested_delimiter="__")

    name: str = "faces"
    classes: tuple[str, ...] = taxonomy.FERPLUS.slugs
    taxonomy_name: str = "ferplus"
    taxonomy_version: int = Field(1, ge=1)
    database: str | None = Field(None, description="SQLAlchemy URL; null means annotator.db in the workspace")
    queue: QueueSettings = QueueSettings()
    server: ServerSettings = ServerSettings()
    learner: LearnerSettings = LearnerSettings()
    imports: ImportSettings = ImportSettings()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Let the environment win over the file."""
        return env_settings, init_settings

    @property
    def taxonomy(self) -> taxonomy.Taxonomy:
        """The workspace's classes."""
        built = taxonomy.custom(self.taxonomy_name, list(self.classes))
        return taxonomy.Taxonomy(built.name, self.taxonomy_version, built.classes)


class Workspace:
    """A workspace folder and its settings. Holds no connection: open a `LabelStore` for that."""

    def __init__(self, root: Path, settings: Settings) -> None:
        self.root = root
        self.settings = settings

    @classmethod
    def open(cls, root: str | Path) -> "Workspace":
        """Open an existing workspace.

        Raises:
            WorkspaceError: there is no `workspace.yaml`.
            InputError: the file or an environment variable holds a wrong value.
        """
        folder = Path(root).resolve()
        path = folder / FILE
        if not path.is_file():
            raise WorkspaceError(f"{folder} is no workspace (no {FILE}); make one with: annotator init {root}")
        try:
            data = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        except yaml.YAMLError as error:
            raise InputError(f"{path} is not valid YAML: {error}") from error
        if not isinstance(data, dict):
            raise InputError(f"{path} must hold a mapping, not a {type(data).__name__}")
        return cls(folder, _validate(data, str(path)))

    @classmethod
    def create(cls, root: str | Path, classes: taxonomy.Taxonomy, **overrides: Any) -> "Workspace":
        """Make a new workspace folder with its `workspace.yaml`.

        Raises:
            WorkspaceError: a workspace or other files are there already.
        """
        folder = Path(root).resolve()
        if (folder / FILE).exists():
            raise WorkspaceError(f"{folder} is a workspace already")
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise WorkspaceError(f"{folder} exists and is not an empty folder; name a new one")
        data: dict[str, Any] = {
            "name": folder.name,
            "taxonomy_name": classes.name,
            "taxonomy_version": classes.version,
            "classes": list(classes.slugs),
            **overrides,
        }
        settings = _validate(data, FILE)
        folder.mkdir(parents=True, exist_ok=True)
        text = yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
        _replace(folder / FILE, text)
        return cls(folder, settings)

    def start_from(self, start: str) -> None:
        """Set `learner.start`, here and in `workspace.yaml`, of which the rest stays as it is written.

        Raises:
            InputError: there is no such start.
        """
        path = self.root / FILE
        text = path.read_text(encoding="utf-8")
        data = yaml.safe_load(text) or {}
        wanted = {**data, "learner": {**(data.get("learner") or {}), "start": start}}
        settings = _validate(wanted, str(path))
        line = f"start: {json.dumps(start)}"
        edited, count = re.subn(r"(?m)^(learner:\n(?:[ #].*\n|\n)*?  )start:.*$", rf"\g<1>{line}", text, count=1)
        if not count:
            edited = re.sub(r"(?m)^learner:\s*$", f"learner:\n  {line}", text, count=1)
        if yaml.safe_load(edited) != wanted:  # laid out in another way: comments go
            edited = yaml.safe_dump(wanted, sort_keys=False, allow_unicode=True)
        _replace(path, edited)
        self.settings = settings

    @property
    def database_url(self) -> str:
        """The SQLAlchemy URL of the store."""
        return self.settings.database or f"sqlite:///{self.root / 'annotator.db'}"

    def folder(self, kind: Literal["cache", "encoders", "snapshots", "scores", "runs", "backups"]) -> Path:
        """Return a subfolder of the workspace, made when missing."""
        path = self.root / kind
        path.mkdir(exist_ok=True)
        return path


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def _validate(data: dict[str, Any], where: str) -> Settings:
    try:
        return Settings(**data)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, e['loc'])) or 'settings'}: {e['msg']} (got {e.get('input')!r})"
            for e in error.errors(include_url=False)
        )
        raise InputError(f"{where}: {problems}") from error

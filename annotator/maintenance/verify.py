"""Is everything there, and does it agree?"""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from annotator import encoders
from annotator.errors import AnnotatorError
from annotator.ingest.cache import limits_of
from annotator.ingest.crops import parse_crop
from annotator.ingest.decode import Decoded, Quarantine, decode
from annotator.ingest.sources import SourceFiles, open_files
from annotator.maintenance.erase import unscrubbed
from annotator.maintenance.shards import shards
from annotator.records import ImageRecord
from annotator.settings import Workspace
from annotator.store import LabelStore, health, transfer
from annotator.store.database import Database
from annotator.store.images import STATES

SNAPSHOT_FILES = (
    "model.safetensors",
    "state.safetensors",
    "state.json",
    "config.json",
    "metrics.json",
    "signals.parquet",
)
SCORE_FILES = (
    "rows.npy",
    "probs.npy",
    "order.npy",
    "arms.npy",
    "candidates.npy",
    "given.npy",
    "blind.npy",
    "meta.json",
)
_ACTIVE, _LEAK = STATES.index("active"), STATES.index("leak")


@dataclass(slots=True)
class VerifyReport:
    """What was found. `problems` contradict a promise; `notes` are worth knowing; `digest` is that of the decisions."""

    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    rows: dict[str, int] = field(default_factory=dict)
    digest: str = ""

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def as_dict(self) -> dict[str, Any]:
        """Return the report for a script."""
        return {"ok": self.ok, **asdict(self)}

    def summary(self) -> str:
        """Return the report for people."""
        counts = ", ".join(f"{self.rows.get(k, 0)} {k}" for k in ("images", "annotations", "labels"))
        lines = [f"{'ok' if self.ok else 'NOT ok'}: {counts}", f"digest {self.digest}"]
        lines += [f"problem: {problem}" for problem in self.problems]
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join(lines)


def verify(workspace: Workspace, *, sample: int = 50) -> VerifyReport:
    """Check database, labels, caches, published folders and original files; nothing is changed but lost triggers.

    Args:
        workspace: the workspace; it may be in use.
        sample: how many originals are decoded and compared with the content they had at import; all are looked for.

    Raises:
        WorkspaceError: the database cannot be opened at all.
    """
    report = VerifyReport()
    _check_triggers(workspace, report)
    with LabelStore.open(workspace) as store:
        contents = transfer.contents(store.database)
        report.rows, report.digest = contents.rows, contents.digest
        report.problems += health.problems(store.database)
        wrong = store.decisions.differing()
        if wrong:
            report.problems.append(
                f"{len(wrong)} labels are not what the annotations amount to (rows {wrong[:5]}): run annotator rebuild"
            )
        _check_cache(workspace, store, report)
        _check_published(workspace, store, report)
        _check_originals(workspace, store, report, sample)
    return report


def _check_triggers(workspace: Workspace, report: VerifyReport) -> None:
    """Look before the store is opened, which restores them."""
    database = Database(workspace.database_url, workspace.root / "write.lock")
    try:
        if database.path is not None and not database.path.is_file():
            report.problems.append(f"{database.path} is missing; an empty one takes its place: restore a backup")
            return
        missing = health.missing_triggers(database)
    finally:
        database.close()
    if missing:
        report.problems.append(f"the append-only triggers {', '.join(missing)} were missing; they are restored")


def _check_cache(workspace: Workspace, store: LabelStore, report: VerifyReport) -> None:
    table = store.images.table()
    wanted = table.rows[np.isin(table.state, (_ACTIVE, _LEAK))]
    size = workspace.settings.learner.image_size
    covered = np.zeros(len(wanted), dtype=np.bool_)
    for path, start, stop in shards(workspace.root):
        shape = _shape(path)
        if shape is None or shape[0] != stop - start:
            report.problems.append(f"{path.relative_to(workspace.root)} is not the shard its name says: delete it")
        elif path.parent == workspace.root / "cache" / str(size):
            covered |= (wanted >= start) & (wanted < stop)
    if not covered.all():
        report.notes.append(
            f"{int((~covered).sum())} of {len(wanted)} faces are not in cache/{size} yet; annotator learn adds them"
        )
    for name in unscrubbed(workspace, store.erasing.tombstones()):
        report.problems.append(f"{name} still holds an erased face: run annotator erase for it again")


def _check_published(workspace: Workspace, store: LabelStore, report: VerifyReport) -> None:
    generation = store.learning.current_generation()
    if generation is not None:
        _check_folder(workspace.root / "scores" / str(generation.id), SCORE_FILES, report)
    snapshots = store.learning.snapshots()
    serving = {s.id for s in snapshots if s.serving}
    pruned = []
    for snapshot in snapshots:
        folder = workspace.root / "snapshots" / snapshot.id
        if folder.is_dir() or snapshot.id in serving:
            _check_folder(folder, SNAPSHOT_FILES, report)
        else:
            pruned.append(snapshot.id)
    if pruned:
        report.notes.append(f"{len(pruned)} older snapshots are recorded but pruned: {', '.join(pruned)}")
    for folder, info in encoders.folders(workspace).items():
        if info.kind == encoders.NETWORK:
            _check_encoder(folder, info.id, report)
    known = {"snapshots": {s.id for s in snapshots}}
    for kind, names in known.items():
        for folder in sorted((workspace.root / kind).glob("*")):
            if folder.name not in names:
                report.notes.append(f"{kind}/{folder.name} is not recorded (a leftover): annotator learn sweeps it")


def _check_encoder(folder: Path, name: str, report: VerifyReport) -> None:
    try:
        found = encoders.EncoderFile.read(folder / encoders.WEIGHTS).id
    except AnnotatorError as error:
        report.problems.append(f"encoders/{folder.name}: {error}")
        return
    if found != name:
        report.problems.append(
            f"encoders/{folder.name} holds the weights of {found}: delete it, the learner remakes it"
        )


def _check_folder(folder: Path, files: tuple[str, ...], report: VerifyReport) -> None:
    missing = [name for name in files if not (folder / name).is_file()]
    broken = [p.name for p in sorted(folder.glob("*.npy")) if _shape(p) is None]
    where = f"{folder.parent.name}/{folder.name}"
    if missing:
        report.problems.append(f"{where} lacks {', '.join(missing)}")
    if broken:
        report.problems.append(f"{where}: {', '.join(broken)} cannot be read")


def _shape(path: Path) -> tuple[int, ...] | None:
    try:
        return tuple(np.load(path, mmap_mode="r", allow_pickle=False).shape)
    except (OSError, ValueError):
        return None


def _check_originals(workspace: Workspace, store: LabelStore, report: VerifyReport, sample: int) -> None:
    """Look for every original; decode a spread of them. The cache serves without them, so their loss is a note."""
    table = store.images.table()
    usable = table.rows[np.isin(table.state, (_ACTIVE, _LEAK))]
    looked_at = set(_spread(usable, sample).tolist())
    for source in store.images.sources():
        try:
            files = open_files(Path(source.root))
        except AnnotatorError as error:
            report.notes.append(f"source {source.id}: {error}; its faces are served from the cache")
            continue
        gone, changed = [], []
        try:
            for record in _records(store, usable, source.id):
                if not files.exists(record.path):
                    gone.append(record.path)
                elif record.row in looked_at and not _same(workspace, files, record):
                    changed.append(record.path)
        finally:
            files.close()
        for names, what in ((gone, "gone"), (changed, "changed since the import")):
            if names:
                report.notes.append(f"{source.root}: {len(names)} originals are {what} ({', '.join(names[:5])})")


def _records(store: LabelStore, rows: NDArray[np.int64], source_id: int) -> list[ImageRecord]:
    return [record for record in store.images.by_rows(rows.tolist()) if record.source_id == source_id]


def _same(workspace: Workspace, files: SourceFiles, record: ImageRecord) -> bool:
    limits = limits_of(workspace)
    data = files.read(record.path, limits.max_bytes)
    if isinstance(data, Quarantine):
        return False
    decoded = decode(data, record.path, workspace.settings.learner.image_size, limits, parse_crop(record.crop))
    return isinstance(decoded, Decoded) and decoded.content_hash == record.content_hash


def _spread(rows: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    if len(rows) <= count:
        return rows
    return rows[np.linspace(0, len(rows) - 1, count).astype(np.int64)]

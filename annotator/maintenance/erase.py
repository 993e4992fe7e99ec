"""Erase images for good: answers, particulars, pixels, features, readings. A tombstone stays."""

import fcntl
import io
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save

from annotator.durable import write_atomically
from annotator.encoders import RUN_PREFIX
from annotator.errors import InputError, WorkspaceBusyError
from annotator.maintenance.shards import shards
from annotator.settings import Workspace
from annotator.store import LabelStore

_LOCKS = {
    "server.lock": "annotator serve",
    "learner.lock": "annotator learn",
    "labelstudio.lock": "annotator sync",
}


@dataclass(frozen=True, slots=True)
class ErasureReport:
    """What was erased, and what this program cannot erase: the original files and earlier backups.

    num_tasks: tasks in Label Studio that show erased images until the next sync.
    """

    image_ids: tuple[str, ...]
    num_annotations: int
    rewritten: tuple[str, ...]
    originals: tuple[str, ...]
    backups: tuple[str, ...]
    num_tasks: int = 0

    def summary(self) -> str:
        """Return a few lines for people."""
        lines = [
            f"erased {len(self.image_ids)} images ({', '.join(self.image_ids)}) with {self.num_annotations} answers; "
            f"{len(self.rewritten)} files rewritten"
        ]
        if self.num_tasks:
            lines.append(
                f"{self.num_tasks} tasks in Label Studio still show erased images: `annotator sync` deletes them "
                "there, with their annotations and pictures"
            )
        if self.originals:
            lines += ["the original files are not this program's to delete:", *(f"  {path}" for path in self.originals)]
        if self.backups:
            lines += ["earlier backups still hold them:", *(f"  {path}" for path in self.backups)]
        return "\n".join(lines)


def erase(
    workspace: Workspace, *, image_id: str | None = None, subject_id: str | None = None, reason: str
) -> ErasureReport:
    """Erase one image, or every image of a subject, with all copies of the same picture.

    Running it again after an interruption completes it.

    Raises:
        InputError: not exactly one of `image_id` and `subject_id`, or no reason.
        NotFoundError: no such image or subject.
        WorkspaceBusyError: the server or the learner runs; both hold faces in memory.
    """
    if (image_id is None) == (subject_id is None):
        raise InputError("name exactly one of image_id and subject_id")
    if not reason.strip():
        raise InputError("an erasure wants a reason; it is kept in the tombstone")
    with _alone(workspace), LabelStore.open(workspace) as store:
        if image_id is not None:
            rows = store.erasing.rows_of_image(image_id)
        else:
            rows = store.erasing.rows_of_subject(str(subject_id))
        erased = store.erasing.erase(rows, reason)
        num_tasks = store.exchange.num_to_erase()
        rewritten = scrub(workspace, store.erasing.tombstones())
        store.erasing.overwrite_free_space()
    backups = sorted(str(p) for p in (workspace.root / "backups").glob("*") if p.is_file())
    return ErasureReport(
        erased.image_ids,
        erased.num_annotations,
        tuple(rewritten),
        erased.originals,
        tuple(backups),
        num_tasks,
    )


def scrub(workspace: Workspace, rows: list[int]) -> list[str]:
    """Zero everything that the files of the workspace hold about `rows`; return the files that were rewritten."""
    gone = np.array(sorted(rows), dtype=np.int64)
    changed: list[Path] = []
    for folder in _folders_with_rows(workspace.root):
        changed += _zero_readings(folder, gone)
    runs = workspace.root / "runs"
    if len(gone) and runs.is_dir():
        for run in sorted(runs.iterdir()):
            if run.name.startswith(RUN_PREFIX):
                changed += _leave_out(run, gone)
            else:
                # Rounds under way were made from a view with the erased faces in it; the learner begins a new one.
                shutil.rmtree(run)
                changed.append(run)
    # Last, for `unscrubbed` looks at these alone.
    changed += [path for path, start, stop in shards(workspace.root) if _zero_shard(path, start, stop, gone)]
    return [str(path.relative_to(workspace.root)) for path in changed]


def unscrubbed(workspace: Workspace, rows: list[int]) -> list[str]:
    """Return the shards that still hold something of `rows`."""
    gone = np.array(sorted(rows), dtype=np.int64)
    found = []
    for path, start, stop in shards(workspace.root):
        inside = gone[(gone >= start) & (gone < stop)] - start
        if len(inside) and np.load(path, mmap_mode="r", allow_pickle=False)[inside].any():
            found.append(str(path.relative_to(workspace.root)))
    return found


@contextmanager
def _alone(workspace: Workspace) -> Iterator[None]:
    held = []
    try:
        for name, program in _LOCKS.items():
            file = os.open(workspace.root / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            held.append(file)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise WorkspaceBusyError(f"`{program}` runs on {workspace.root}; stop it, then erase") from error
        yield
    finally:
        for file in held:
            os.close(file)


def _zero_shard(path: Path, start: int, stop: int, gone: NDArray[np.int64]) -> bool:
    inside = gone[(gone >= start) & (gone < stop)] - start
    if not len(inside):
        return False
    values = np.load(path, allow_pickle=False)
    if not values[inside].any():
        return False
    values[inside] = 0
    write_atomically(path, _npy(values))
    return True


def _leave_out(run: Path, gone: NDArray[np.int64]) -> list[Path]:
    """Let a pre-training go on without `gone`: hours of it would be lost otherwise. With nobody left it goes."""
    try:
        rows = np.load(run / "rows.npy", allow_pickle=False)
    except (OSError, ValueError):
        rows = np.zeros(0, dtype=np.int64)
    kept = rows[~np.isin(rows, gone)]
    if len(kept) < 2:
        shutil.rmtree(run)
        return [run]
    changed = [path for path in run.glob(".*") if path.is_file()]  # half-made descriptors, a killed process's
    for path in changed:
        path.unlink()
    if len(kept) < len(rows):
        write_atomically(run / "rows.npy", _npy(kept))
        changed.append(run / "rows.npy")
    if (run / "targets-rows.npy").is_file():
        described = np.load(run / "targets-rows.npy", allow_pickle=False)
        changed += [p for p in [run / "targets.npy"] if _zero_at(p, np.flatnonzero(np.isin(described, gone)))]
    return changed + [p for p in [run / "labels.npz"] if p.is_file() and _drop_labels(p, gone)]


def _drop_labels(path: Path, gone: NDArray[np.int64]) -> bool:
    with np.load(path, allow_pickle=False) as file:
        labels = {key: file[key] for key in file.files}
    kept = ~np.isin(labels["rows"], gone)
    if kept.all():
        return False
    buffer = io.BytesIO()
    np.savez(buffer, **{key: values[kept] for key, values in labels.items()})
    write_atomically(path, buffer.getvalue())
    return True


def _folders_with_rows(root: Path) -> list[Path]:
    return sorted(p for kind in ("scores", "snapshots") for p in (root / kind).glob("*") if p.is_dir())


def _zero_readings(folder: Path, gone: NDArray[np.int64]) -> list[Path]:
    """Zero probabilities and features of `gone` beside `rows.npy`, and drop their rows from the signals."""
    changed = []
    if (folder / "rows.npy").is_file():
        hit = np.flatnonzero(np.isin(np.load(folder / "rows.npy", allow_pickle=False), gone))
        changed += [p for name in ("probs.npy", "features.npy") if _zero_at(p := folder / name, hit)]
    if (folder / "order.npy").is_file():
        hit = np.flatnonzero(np.isin(np.load(folder / "order.npy", allow_pickle=False), gone))
        changed += [
            p for name in ("candidates.npy", "arms.npy", "given.npy", "seen.npy") if _zero_at(p := folder / name, hit)
        ]
    changed += [p for p in [folder / "signals.parquet"] if p.is_file() and _drop_signals(p, gone)]
    changed += [p for p in [folder / "state.safetensors"] if p.is_file() and _drop_state(p, gone)]
    return changed


def _drop_signals(path: Path, gone: NDArray[np.int64]) -> bool:
    table = pq.read_table(path)
    if "row" not in table.column_names:
        return False
    kept = table.filter(pa.array(~np.isin(table["row"].to_numpy(), gone)))
    if len(kept) == len(table):
        return False
    buffer = io.BytesIO()
    pq.write_table(kept, buffer)
    write_atomically(path, buffer.getvalue())
    return True


def _drop_state(path: Path, gone: NDArray[np.int64]) -> bool:
    """Drop `gone` from the learner's tables: every `<table>/rows` and the tensors beside it with one entry per row."""
    with safe_open(path, framework="numpy") as file:
        metadata = file.metadata()
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    changed = False
    for key in [k for k in tensors if k.rsplit("/", 1)[-1] == "rows" and tensors[k].ndim == 1]:
        kept = ~np.isin(tensors[key], gone)
        if kept.all():
            continue
        table = key.removesuffix("rows")
        for other in [k for k in tensors if k.rpartition("/")[0] == table.rstrip("/")]:
            if tensors[other].ndim and len(tensors[other]) == len(kept):
                tensors[other] = np.ascontiguousarray(tensors[other][kept])
        changed = True
    if changed:
        write_atomically(path, save(tensors, metadata))
    return changed


def _zero_at(path: Path, positions: NDArray[np.int64]) -> bool:
    if not path.is_file() or not len(positions):
        return False
    values = np.load(path, allow_pickle=False)
    # A label under review counts from 0, so none is -1.
    blank = -1 if path.name == "given.npy" else 0
    if (values[positions] == blank).all():
        return False
    values[positions] = blank
    write_atomically(path, _npy(values))
    return True


def _npy(values: "NDArray[np.generic]") -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, values, allow_pickle=False)
    return buffer.getvalue()

"""Exports that are files of rows: csv, jsonl, parquet. Streamed, and complete before they have their name."""

import csv
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from annotator.errors import InputError, WorkspaceError
from annotator.export.rows import ANSWER_COLUMNS, FACE_COLUMNS, answer_row, csv_row, face_row, shares
from annotator.store.reading import Face

Write = Callable[[dict[str, Any]], None]
_BATCH = 2000
_TEXT, _WHOLE, _FLAG = pa.string(), pa.int64(), pa.bool_()
_TYPES = {
    "group": _WHOLE,
    "num_annotators": _WHOLE,
    "annotation_id": _WHOLE,
    "duration_ms": _WHOLE,
    "supersedes": _WHOLE,
    "confidence": pa.float64(),
    "candidates": pa.list_(_TEXT),
    "flags": pa.list_(_TEXT),
    "classes": pa.list_(_TEXT),
    **dict.fromkeys(("reserved", "locked", "imported", "stands", "late", "duplicate", "mismatch", "blind"), _FLAG),
    **dict.fromkeys(("adjudicates", "beside"), _FLAG),
}


def answers_path(out: Path) -> Path:
    """Return where the answers go that belong to the table `out`: labels.csv, labels.answers.csv."""
    return out.with_name(f"{out.stem}.answers{out.suffix}")


def write_csv(faces: Iterator[Face], out: Path, classes: Sequence[str], answers: bool) -> int:
    """Write a face table with one `share_<class>` column a class, and the answers beside it; return the face count."""
    columns = [*FACE_COLUMNS, *(f"share_{c}" for c in classes)]
    return _write_pair(faces, out, columns, answers, _csv_file)


def write_parquet(faces: Iterator[Face], out: Path, classes: Sequence[str], answers: bool) -> int:
    """Write what `write_csv` does as two Parquet files."""
    columns = [*FACE_COLUMNS, *(f"share_{c}" for c in classes)]
    return _write_pair(faces, out, columns, answers, _parquet_file)


def write_jsonl(faces: Iterator[Face], out: Path, classes: Sequence[str], answers: bool) -> int:
    """Write one object a line: the face, `shares`, and `answers` nested.

    A face that is no longer active but was answered is there too, with its `image_state`.
    """
    count = 0
    with complete(out) as path, open(path, "w", encoding="utf-8", newline="\n") as file:
        for face in faces:
            active = face.image.state == "active"
            if not active and not (answers and face.said):
                continue
            row = {**face_row(face), "image_state": face.image.state, "shares": shares(face.label)}
            if answers:
                row["answers"] = [answer_row(said, face.image.path) for said in face.said]
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            count += active
    return count


@contextmanager
def complete(out: Path) -> Iterator[Path]:
    """Yield a temporary path beside `out` that becomes `out` when the block ends well, and is deleted otherwise.

    Raises:
        InputError: `out` holds something already, or its folder does not exist.
        WorkspaceError: it cannot be written, or the disk is full.
    """
    check_target(out)
    temporary = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        temporary.replace(out)
    except OSError as error:
        raise WorkspaceError(f"cannot write {out}: {error.strerror or error}; nothing was exported") from error
    finally:
        temporary.unlink(missing_ok=True)


def check_target(out: Path) -> None:
    """Raise `InputError` when `out` is a folder, a file with something in it, or in no existing folder."""
    if out.is_dir():
        raise InputError(f"{out} is a folder; this format wants the name of a file")
    if out.exists() and out.stat().st_size:
        raise InputError(f"{out} exists already; name another file, or delete it first")
    if not out.parent.is_dir():
        raise InputError(f"there is no folder {out.parent} to write {out.name} to")


def _write_pair(
    faces: Iterator[Face], out: Path, columns: Sequence[str], answers: bool, opened: Callable[..., Any]
) -> int:
    count = 0
    with ExitStack() as stack:
        if answers:
            check_target(answers_path(out))
        path = stack.enter_context(complete(out))
        write_face: Write = stack.enter_context(opened(path, columns))
        write_answer: Write | None = None
        if answers:
            beside = stack.enter_context(complete(answers_path(out)))
            write_answer = stack.enter_context(opened(beside, ANSWER_COLUMNS))
        for face in faces:
            if face.image.state == "active":
                write_face({**face_row(face), **_share_columns(face, columns)})
                count += 1
            if write_answer is not None:
                for said in face.said:
                    write_answer(answer_row(said, face.image.path))
    return count


def _share_columns(face: Face, columns: Sequence[str]) -> dict[str, float | None]:
    known = shares(face.label)
    names = (name for name in columns if name.startswith("share_"))
    return {name: known.get(name.removeprefix("share_"), 0.0) if known else None for name in names}


@contextmanager
def _csv_file(path: Path, columns: Sequence[str]) -> Iterator[Write]:
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        yield lambda row: writer.writerow(csv_row(row, columns))


@contextmanager
def _parquet_file(path: Path, columns: Sequence[str]) -> Iterator[Write]:
    schema = pa.schema([(c, pa.float64() if c.startswith("share_") else _TYPES.get(c, _TEXT)) for c in columns])
    batch: list[dict[str, Any]] = []
    with pq.ParquetWriter(path, schema) as writer:

        def flush() -> None:
            writer.write_table(pa.Table.from_pylist(batch, schema))
            batch.clear()

        def write(row: dict[str, Any]) -> None:
            for name in ("suggestions", "votes"):
                if row.get(name) is not None:
                    row[name] = json.dumps(row[name], ensure_ascii=False)
            batch.append(row)
            if len(batch) >= _BATCH:
                flush()

        yield write
        flush()

"""The one function that exports."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, get_args

from annotator.errors import InputError
from annotator.export import folders, tables
from annotator.export.pictures import Pictures
from annotator.settings import Workspace
from annotator.store import LabelStore
from annotator.store.reading import Face, moment

Format = Literal["csv", "jsonl", "parquet", "imagefolder", "ferplus"]
FORMATS: tuple[Format, ...] = get_args(Format)
Progress = Callable[[int, int, str], None]
_TABLES = {"csv": tables.write_csv, "jsonl": tables.write_jsonl, "parquet": tables.write_parquet}
_REPORT_EVERY = 200


def export(
    workspace: Workspace,
    store: LabelStore,
    out: Path,
    format: str,
    *,
    include: Literal["labels", "answers"] = "answers",
    progress: Progress | None = None,
) -> int:
    """Write the labels of every active face to `out` and return how many faces were written.

    Everything belongs to one moment of the store, also while people label. `out` appears only when it is complete.

    Args:
        workspace: where settings and cache are.
        store: the open store.
        out: a file for csv, jsonl and parquet, a folder for imagefolder and ferplus.
        format: one of `FORMATS`.
        include: "answers" adds who said what: nested in jsonl, in `<name>.answers.<ext>` beside csv and parquet.
        progress: called with (done, total, "").

    Raises:
        InputError: an unknown format, or `out` is taken or in no folder.
        WorkspaceError: it cannot be written, or the disk is full; nothing is left behind.
        NotFoundError: imagefolder and ferplus only: a picture is gone and in no cache.
    """
    if format not in FORMATS:
        raise InputError(f"format {format!r} is not one of {', '.join(FORMATS)}")
    classes = workspace.settings.taxonomy.slugs
    if format == "ferplus":
        folders.check_ferplus_classes(classes)
    with moment(store.database) as now:
        faces = reported(now.faces(), now.count(), progress)
        if format in _TABLES:
            return _TABLES[format](faces, out, classes, include == "answers")
        pictures = Pictures(workspace)
        try:
            if format == "imagefolder":
                return folders.write_imagefolder(faces, out, pictures)
            return folders.write_ferplus(faces, out, pictures, now.votes())
        finally:
            pictures.close()


def reported(faces: Iterator[Face], total: int, progress: Progress | None) -> Iterator[Face]:
    """Yield `faces` and tell `progress` how many of `total` are done."""
    done = 0
    for done, face in enumerate(faces, 1):
        if progress is not None and done % _REPORT_EVERY == 0:
            progress(min(done, total), total, "")
        yield face
    if progress is not None:
        progress(total if done else 0, total, "")

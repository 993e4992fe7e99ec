"""Bring a source of images into a workspace: streaming, resumable, adding nothing the second time."""

import time
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from annotator.errors import ImportSourceError, WorkspaceBusyError
from annotator.ingest.batches import CHANGED, RESTORABLE, Batches, Ready
from annotator.ingest.cache import (
    PixelCacheWriter,
    Progress,
    cache_folder,
    cache_lock,
    complete_cache,
    limits_of,
    workers_for,
)
from annotator.ingest.crops import NO_FACE
from annotator.ingest.datasets import open_dataset
from annotator.ingest.decode import Decoded, Quarantine
from annotator.ingest.decode_pool import DecodePool, chunk_size
from annotator.ingest.decode_worker import Outcome, Task
from annotator.ingest.earlier import EarlierFiles
from annotator.ingest.faces.mode import FaceMode, Faces, Placed
from annotator.ingest.faces.quality import judged
from annotator.ingest.faces.search import NOT_FOUND
from annotator.ingest.files import Stamp, storable, unsafe
from annotator.ingest.report import ImportReport
from annotator.ingest.samples import ClassNames, Layout, Sample
from annotator.ingest.sources import SourceFiles
from annotator.records import KnownFace, NewImage
from annotator.settings import Workspace
from annotator.store import LabelStore
from annotator.store.images import GivenAs, KnownFile

_NO_STAMP = Stamp(0, 0)
_SEARCHED = "*"
"""Stands for the crops of a photo that is searched, where rows of the source are compared."""
_PROGRESS_SECONDS = 0.1


def run_import(
    workspace: Workspace,
    store: LabelStore,
    source: Path,
    format: str,
    *,
    given_as: GivenAs = "truth",
    faces: Faces = "none",
    progress: Progress | None = None,
    limit: int | None = None,
) -> ImportReport:
    """Import the images of `source` (a folder, a zip or a list file) laid out as `format`, at most `limit` of its rows.

    `faces` "detect" makes a sample of every face in an image, upright and square, and quarantines images without one;
    "given" does so with the faces that the list names; "none" takes images (or the crops that the list names) as they
    are, which is right for data sets of faces already cut.

    A file that was imported before and has the same size and time (CRC in a zip) is not read again, whatever the list
    now says about it. One whose content changed becomes a new sample; the old one is quarantined. Killed at any moment,
    the next import goes on.

    Raises:
        ImportSourceError: an unknown format, an unreadable source, or one that is not laid out as the format says.
        InputError: the face detector's model cannot be had.
        TaxonomyError: a label names a class that the workspace lacks; nothing was imported.
        WorkspaceBusyError: another import into this workspace is running.
        WorkspaceError: the disk is full.
    """
    names = ClassNames(workspace.settings.taxonomy, keep=given_as != "none")
    size = workspace.settings.learner.image_size
    folder = cache_folder(workspace, size)
    mode = FaceMode(faces, workspace.settings.imports)
    files, layout = open_dataset(source, format, names)
    try:
        mode.check(layout)
        with cache_lock(folder) as held:
            if not held:
                raise WorkspaceBusyError(f"another import into {workspace.root} is running; wait for it to end")
            run = _Import(workspace, store, files, layout, given_as, mode, _Ticker(progress))
            run.run(PixelCacheWriter(folder, size), size, limit)
    finally:
        files.close()
    return run.report


@dataclass(frozen=True, slots=True)
class _Found:
    """A row of the source that has to be looked at, and its samples of earlier imports by crop."""

    sample: Sample
    placed: Placed
    stamp: Stamp
    known: Mapping[str, KnownFile]
    refused: Quarantine | None = None


class _Import:
    """One import under way."""

    def __init__(
        self,
        workspace: Workspace,
        store: LabelStore,
        files: SourceFiles,
        layout: Layout,
        given_as: GivenAs,
        mode: FaceMode,
        ticker: "_Ticker",
    ) -> None:
        self._workspace, self._store, self._files, self._layout = workspace, store, files, layout
        self._given_as: GivenAs = given_as
        self._mode, self._ticker = mode, ticker
        self._rows_seen = self._listed_faces = 0
        self._images = store.images
        self._source_id = store.images.register_source(str(files.root), files.kind, layout.format)
        self.report = ImportReport(str(files.root), layout.format, faces=mode.name)

    def run(self, writer: PixelCacheWriter, size: int, limit: int | None) -> None:
        """Import; what was stored before an error or an interrupt reaches the cache too."""
        began = time.perf_counter()
        self._complete(size)
        lock = self._workspace.root / "server.lock"
        batches = Batches(self._images, self._source_id, self._given_as, writer, self.report, lock)
        total = len(self._layout) if limit is None else min(limit, len(self._layout))
        waiting: deque[list[_Found]] = deque()
        detector = self._mode.detector
        searched = detector is not None
        chunks = self._chunks(self._to_look_at(limit), chunk_size(size, searched), waiting)
        limits, workers = limits_of(self._workspace), workers_for(total, searched)
        try:
            with DecodePool(self._files, size, limits, workers, detector) as pool:
                for outcomes in pool.map(chunks):
                    self._take(waiting.popleft(), iter(outcomes), batches)
                    self._ticker.tick(min(self._rows_seen, total), total)
            batches.store()
        finally:
            writer.flush()
        self._finish(time.perf_counter() - began, batches, total)

    def _complete(self, size: int) -> None:
        try:
            self.report.rebuilt = complete_cache(self._workspace, self._store, size, self._ticker.progress)
        except ImportSourceError as error:
            self.report.notes.append(str(error))

    def _finish(self, seconds: float, batches: Batches, total: int) -> None:
        report, findings = self.report, self._layout.findings
        report.notes += findings.notes
        if self._listed_faces and self._mode.name == "none":
            report.notes.append(
                f"the list says where the face is in {self._listed_faces} images, which were taken whole: "
                "import with --faces given to cut it out"
            )
        report.ignored_files = findings.ignored_files
        report.seconds = seconds
        report.images_per_s = report.samples / seconds if seconds > 0 else 0.0
        report.longest_transaction_ms = batches.longest_seconds * 1000
        report.describe(self._images.table())
        self._ticker.tick(total, total, last=True)

    def _to_look_at(self, limit: int | None) -> Iterator[_Found]:
        """Yield the rows whose samples are not known to be as they were, each (path, crop) once."""
        earlier = EarlierFiles(self._images.known_files(self._source_id), searched=self._mode.detector is not None)
        seen: set[tuple[str, str]] = set()
        for sample in self._layout.samples():
            if limit is not None and len(seen) >= limit:
                return
            self._rows_seen += 1
            self._listed_faces += sample.face is not None
            placed = self._mode.place(sample)
            path = storable(sample.path)
            key = (path, _SEARCHED if placed.search else str(placed.crop or ""))
            if key in seen:
                self.report.repeated_rows += 1
                continue
            seen.add(key)
            known = earlier.of_photo(path) if placed.search else earlier.of_crop(*key)
            usable = [file for file in known.values() if file.state != "quarantined"]
            stamp = self._files.stamp(sample.path)
            if isinstance(stamp, Quarantine):
                if usable and unsafe(sample.path) is None:
                    self.report.samples += len(usable)
                    self.report.gone += len(usable)
                    continue
                yield _Found(sample, placed, _NO_STAMP, known, stamp)
            elif usable and all(_same(file, stamp) for file in usable):
                self.report.samples += len(usable)
                self.report.unchanged += len(usable)
            else:
                # A quarantined file is always tried again: limits, permissions, detectors change without touching it.
                yield _Found(sample, placed, stamp, known, placed.refused)

    @staticmethod
    def _chunks(found: Iterator[_Found], size: int, waiting: deque[list[_Found]]) -> Iterator[list[Task]]:
        """Yield decode tasks in chunks; `waiting` keeps what each chunk is about until its outcome is back."""
        chunk: list[_Found] = []
        for item in found:
            chunk.append(item)
            if len(chunk) >= size:
                waiting.append(chunk)
                yield _tasks(chunk)
                chunk = []
        if chunk:
            waiting.append(chunk)
            yield _tasks(chunk)

    def _take(self, chunk: list[_Found], outcomes: Iterator[Outcome], batches: Batches) -> None:
        for item in chunk:
            outcome = item.refused if item.refused is not None else next(outcomes)
            results = self._results(item, outcome)
            self.report.samples += len(results)
            if len(results) > 1:
                self.report.group_photos += 1
                self.report.unclear += bool(item.sample.given or item.sample.votes)
            if all(_is_known(item, result) for result in results):
                for result in results:
                    row = item.known[result.crop].row
                    self._images.refresh(row, item.stamp.file_bytes, item.stamp.file_stamp, RESTORABLE)
                self.report.unchanged += len(results)
                results_to_store = []
            else:
                # Faces of one photo go together, known ones too: a stamp must not be renewed before all are stored.
                results_to_store = results
            # Before the new samples: killed in between, the next import finds quarantined files and tries them again.
            self._retire(item, results)
            batches.add([_ready(item, result, alone=len(results) == 1) for result in results_to_store])

    def _results(self, item: _Found, outcome: Outcome) -> list["_Result"]:
        """Return what became of a row: one sample, or one for each face in it."""
        if isinstance(outcome, list):
            by = self._mode.found_by
            return [_Result(str(d.crop), d.image, judged(d.face, by, d.image.sharpness or 0.0)) for d in outcome]
        placed, face = item.placed, None
        if isinstance(outcome, Decoded):
            if placed.face is not None and outcome.sharpness is not None:
                face = judged(placed.face, "given", outcome.sharpness)
            return [_Result(str(placed.crop or ""), outcome, face)]
        crop = NO_FACE if outcome.reason == NOT_FOUND else str(placed.crop or "")
        return [_Result(crop, outcome)]

    def _retire(self, item: _Found, results: list["_Result"]) -> None:
        """Quarantine what is no longer there: a changed picture, faces that a photo shows no more."""
        found = {result.crop: result for result in results}
        for crop, file in item.known.items():
            result = found.get(crop)
            if result is not None and _is_known(item, result):
                continue
            # That a photo shows no face, or could not be read, is over once it shows one.
            over = file.content_hash is None and result is None and NO_FACE not in found
            if file.state in ("active", "leak") or over:
                self._images.quarantine(file.row, CHANGED)


@dataclass(frozen=True, slots=True)
class _Result:
    """What became of one sample."""

    crop: str
    outcome: Decoded | Quarantine
    face: KnownFace | None = None


class _Ticker:
    """Report progress at most ten times a second."""

    def __init__(self, progress: Progress | None) -> None:
        self.progress = progress
        self._next = 0.0

    def tick(self, done: int, total: int, *, last: bool = False) -> None:
        """Report that `done` of `total` samples are through."""
        if self.progress is not None and (last or time.monotonic() >= self._next):
            self._next = time.monotonic() + _PROGRESS_SECONDS
            self.progress(done, total, "importing")


def _same(known: KnownFile, stamp: Stamp) -> bool:
    return known.file_bytes == stamp.file_bytes and known.file_stamp == stamp.file_stamp


def _tasks(chunk: list[_Found]) -> list[Task]:
    return [(item.sample.path, item.placed.crop) for item in chunk if item.refused is None]


def _is_known(item: _Found, result: _Result) -> bool:
    """Tell whether a sample is there already, with the same picture."""
    known = item.known.get(result.crop)
    return (
        known is not None and isinstance(result.outcome, Decoded) and result.outcome.content_hash == known.content_hash
    )


def _ready(item: _Found, result: _Result, alone: bool) -> Ready:
    return Ready(_new_image(item, result, alone), result.outcome, item.known.get(result.crop))


def _new_image(item: _Found, result: _Result, alone: bool) -> NewImage:
    """Return the sample; a label of a photo with several faces is nobody's, the subject may be any of them."""
    sample, outcome = item.sample, result.outcome
    good = outcome if isinstance(outcome, Decoded) else None
    return NewImage(
        path=storable(sample.path),
        split=sample.split,
        state="active" if good else "quarantined",
        content_hash=good.content_hash if good else None,
        file_bytes=item.stamp.file_bytes,
        file_stamp=item.stamp.file_stamp,
        width=good.width if good else 0,
        height=good.height if good else 0,
        media_type=good.media_type if good else "",
        crop=result.crop,
        quarantine_reason=outcome.reason if isinstance(outcome, Quarantine) else None,
        subject_id=sample.subject_id,
        given=sample.given if alone else None,
        votes=sample.votes if alone else None,
        face=result.face,
    )

"""Bring a source of images into a workspace: streaming, resumable, adding nothing the second time."""

import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from annotator.errors import ImportSourceError, WorkspaceBusyError
from annotator.ingest.cache import (
    GONE,
    PixelCacheWriter,
    Progress,
    cache_folder,
    cache_lock,
    complete_cache,
    limits_of,
    workers_for,
)
from annotator.ingest.datasets import open_dataset
from annotator.ingest.decode import Decoded, Quarantine
from annotator.ingest.decode_pool import DecodePool, chunk_size
from annotator.ingest.decode_worker import Outcome, Task
from annotator.ingest.files import Stamp, storable, unsafe
from annotator.ingest.report import ImportReport
from annotator.ingest.samples import ClassNames, Layout, Sample
from annotator.ingest.sources import SourceFiles
from annotator.locks import lock_held
from annotator.records import ImageRecord, NewImage
from annotator.settings import Workspace
from annotator.store import LabelStore
from annotator.store.images import GivenAs, Images, KnownFile

CHANGED = "file changed since import"
RESTORABLE = (CHANGED, GONE)
"""Reasons for which a sample comes back once its file is again what it was."""
_TARGET_SECONDS = 0.010
"""Other writers wait while samples are stored: batches are sized so that a transaction takes about this long."""
# Below the smallest batch the commit itself is most of the time: more transactions would only hold up others more.
_MIN_BATCH, _FIRST_BATCH, _MAX_BATCH = 32, 48, 200
_POLITE_BATCH = 16
_POLITE_PAUSE = 3.0
"""While a page serves, an import stores a few samples at a time and then stays out of the store this many times as long
as that took: an answer that comes meets an open door three times out of four."""
_LOOK_SECONDS = 1.0
_NO_STAMP = Stamp(0, 0)
_PROGRESS_SECONDS = 0.1


def run_import(
    workspace: Workspace,
    store: LabelStore,
    source: Path,
    format: str,
    *,
    given_as: GivenAs = "truth",
    progress: Progress | None = None,
    limit: int | None = None,
) -> ImportReport:
    """Import the images of `source` (a folder, a zip or a list file) laid out as `format`, at most `limit` samples.

    A file that was imported before and has the same size and time (CRC in a zip) is not read again, whatever the list
    now says about it. One whose content changed becomes a new sample; the old one is quarantined. Killed at any moment,
    the next import goes on.

    Raises:
        ImportSourceError: an unknown format, an unreadable source, or one that is not laid out as the format says.
        TaxonomyError: a label names a class that the workspace lacks; nothing was imported.
        WorkspaceBusyError: another import into this workspace is running.
        WorkspaceError: the disk is full.
    """
    names = ClassNames(workspace.settings.taxonomy, keep=given_as != "none")
    size = workspace.settings.learner.image_size
    folder = cache_folder(workspace, size)
    files, layout = open_dataset(source, format, names)
    try:
        with cache_lock(folder) as held:
            if not held:
                raise WorkspaceBusyError(f"another import into {workspace.root} is running; wait for it to end")
            run = _Import(workspace, store, files, layout, given_as, _Ticker(progress))
            run.run(PixelCacheWriter(folder, size), size, limit)
    finally:
        files.close()
    return run.report


@dataclass(frozen=True, slots=True)
class _Found:
    """A sample that has to be looked at, and what is known of it."""

    sample: Sample
    stamp: Stamp
    known: KnownFile | None
    refused: Quarantine | None = None

    @property
    def crop(self) -> str:
        return str(self.sample.crop or "")


class _Import:
    """One import under way."""

    def __init__(
        self,
        workspace: Workspace,
        store: LabelStore,
        files: SourceFiles,
        layout: Layout,
        given_as: GivenAs,
        ticker: "_Ticker",
    ) -> None:
        self._workspace, self._store, self._files, self._layout = workspace, store, files, layout
        self._given_as: GivenAs = given_as
        self._ticker = ticker
        self._images = store.images
        self._source_id = store.images.register_source(str(files.root), files.kind, layout.format)
        self.report = ImportReport(str(files.root), layout.format)

    def run(self, writer: PixelCacheWriter, size: int, limit: int | None) -> None:
        """Import; what was stored before an error or an interrupt reaches the cache too."""
        began = time.perf_counter()
        self._complete(size)
        lock = self._workspace.root / "server.lock"
        batches = _Batches(self._images, self._source_id, self._given_as, writer, self.report, lock)
        total = len(self._layout) if limit is None else min(limit, len(self._layout))
        waiting: deque[list[_Found]] = deque()
        chunks = self._chunks(self._to_look_at(limit), chunk_size(size), waiting)
        try:
            with DecodePool(self._files, size, limits_of(self._workspace), workers_for(total)) as pool:
                for outcomes in pool.map(chunks):
                    self._take(waiting.popleft(), iter(outcomes), batches)
                    self._ticker.tick(self.report.samples + self.report.repeated_rows, total)
            batches.store()
        finally:
            writer.flush()
        self._finish(time.perf_counter() - began, batches, total)

    def _complete(self, size: int) -> None:
        try:
            self.report.rebuilt = complete_cache(self._workspace, self._store, size, self._ticker.progress)
        except ImportSourceError as error:
            self.report.notes.append(str(error))

    def _finish(self, seconds: float, batches: "_Batches", total: int) -> None:
        report, findings = self.report, self._layout.findings
        report.notes += findings.notes
        report.ignored_files = findings.ignored_files
        report.seconds = seconds
        report.images_per_s = report.samples / seconds if seconds > 0 else 0.0
        report.longest_transaction_ms = batches.longest_seconds * 1000
        report.describe(self._images.table())
        self._ticker.tick(total, total, last=True)

    def _to_look_at(self, limit: int | None) -> Iterator[_Found]:
        """Yield the samples that are not known to be as they were, each (path, crop) once."""
        known_files = self._images.known_files(self._source_id)
        seen: set[tuple[str, str]] = set()
        for sample in self._layout.samples():
            if limit is not None and len(seen) >= limit:
                return
            key = (storable(sample.path), str(sample.crop or ""))
            if key in seen:
                self.report.repeated_rows += 1
                continue
            seen.add(key)
            known = known_files.get(key)
            stamp = self._files.stamp(sample.path)
            if isinstance(stamp, Quarantine):
                if known is not None and known.state != "quarantined" and unsafe(sample.path) is None:
                    self.report.samples += 1
                    self.report.gone += 1
                    continue
                yield _Found(sample, _NO_STAMP, known, stamp)
            elif known is not None and known.state != "quarantined" and _same(known, stamp):
                self.report.samples += 1
                self.report.unchanged += 1
            else:
                # A quarantined file is always tried again: limits and permissions change without touching it.
                yield _Found(sample, stamp, known)

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

    def _take(self, chunk: list[_Found], outcomes: Iterator[Outcome], batches: "_Batches") -> None:
        for item in chunk:
            outcome = item.refused if item.refused is not None else next(outcomes)
            self.report.samples += 1
            known = item.known
            if isinstance(outcome, Decoded) and known is not None and outcome.content_hash == known.content_hash:
                self._images.refresh(known.row, item.stamp.file_bytes, item.stamp.file_stamp, RESTORABLE)
                self.report.unchanged += 1
                continue
            if known is not None and known.state in ("active", "leak"):
                # Before the new sample: killed in between, the next import finds a quarantined file and tries it again.
                self._images.quarantine(known.row, CHANGED)
            batches.add(_Ready(_new_image(item, outcome), outcome, known))


@dataclass(frozen=True, slots=True)
class _Ready:
    """A sample ready to be stored."""

    image: NewImage
    outcome: Outcome
    known: KnownFile | None


class _Batches:
    """Store samples in transactions of about `_TARGET_SECONDS` and hand their pixels to the cache."""

    def __init__(
        self,
        images: Images,
        source_id: int,
        given_as: GivenAs,
        writer: PixelCacheWriter,
        report: ImportReport,
        server_lock: Path,
    ) -> None:
        self._images, self._source_id, self._writer, self._report = images, source_id, writer, report
        self._given_as: GivenAs = given_as
        self._ready: list[_Ready] = []
        self._size = _FIRST_BATCH
        rows = images.table().rows
        self._last_row = int(rows[-1]) if len(rows) else -1
        self.longest_seconds = 0.0
        self._server_lock, self._looked_at, self._polite = server_lock, float("-inf"), False

    def add(self, ready: _Ready) -> None:
        """Take one sample; store the batch when it is full."""
        self._ready.append(ready)
        if len(self._ready) >= self._size:
            self.store()

    def store(self) -> None:
        """Store what is waiting in one transaction."""
        if not self._ready:
            return
        batch, self._ready = self._ready, []
        began = time.perf_counter()
        records = self._images.add(self._source_id, [r.image for r in batch], self._given_as)
        seconds = time.perf_counter() - began
        self.longest_seconds = max(self.longest_seconds, seconds)
        wanted = len(batch) * _TARGET_SECONDS / max(seconds, 1e-6)
        self._size = int(min(max(_MIN_BATCH, wanted), 2 * self._size, _MAX_BATCH))
        if self._people_wait():
            self._size = _POLITE_BATCH
            time.sleep(_POLITE_PAUSE * seconds)
        for ready, record in zip(batch, records, strict=True):
            if record.row > self._last_row:
                self._last_row = record.row
                self._stored(ready, record)
            else:
                self._met_again(ready, record)

    def _people_wait(self) -> bool:
        """Tell whether a page serves this workspace."""
        now = time.monotonic()
        if now - self._looked_at >= _LOOK_SECONDS:
            self._looked_at, self._polite = now, lock_held(self._server_lock)
        return self._polite

    def _stored(self, ready: _Ready, record: ImageRecord) -> None:
        outcome, report = ready.outcome, self._report
        if isinstance(outcome, Quarantine):
            self._writer.add(record.row, None)
            report.quarantine(outcome.reason)
            return
        self._writer.add(record.row, outcome.pixels)
        report.misnamed += outcome.misnamed
        report.leaks += record.state == "leak"
        if ready.known is None:
            report.added += 1
            return
        if ready.known.state == "quarantined":
            self._images.quarantine(ready.known.row, CHANGED)
        report.changed += 1

    def _met_again(self, ready: _Ready, record: ImageRecord) -> None:
        """Handle a sample that has a row already: a file that is still broken, or one that is what it once was."""
        if isinstance(ready.outcome, Decoded) and record.state == "quarantined":
            self._images.refresh(record.row, ready.image.file_bytes, ready.image.file_stamp, RESTORABLE)
            self._report.changed += 1
        else:
            self._report.unchanged += 1


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
    return [(item.sample.path, item.sample.crop) for item in chunk if item.refused is None]


def _new_image(item: _Found, outcome: Outcome) -> NewImage:
    sample, good = item.sample, outcome if isinstance(outcome, Decoded) else None
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
        crop=item.crop,
        quarantine_reason=outcome.reason if isinstance(outcome, Quarantine) else None,
        subject_id=sample.subject_id,
        given=sample.given,
        votes=sample.votes,
    )

"""Samples into the store in short transactions, and their pixels into the cache."""

import time
from dataclasses import dataclass
from pathlib import Path

from annotator.ingest.cache import GONE, PixelCacheWriter
from annotator.ingest.decode import Decoded, Quarantine
from annotator.ingest.report import ImportReport
from annotator.locks import lock_held
from annotator.records import ImageRecord, NewImage
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


@dataclass(frozen=True, slots=True)
class Ready:
    """A sample ready to be stored."""

    image: NewImage
    outcome: Decoded | Quarantine
    known: KnownFile | None


class Batches:
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
        self._ready: list[Ready] = []
        self._size = _FIRST_BATCH
        rows = images.table().rows
        self._last_row = int(rows[-1]) if len(rows) else -1
        self.longest_seconds = 0.0
        self._server_lock, self._looked_at, self._polite = server_lock, float("-inf"), False

    def add(self, ready: list[Ready]) -> None:
        """Take the samples of one photo, which are stored together or not at all; store the batch when it is full."""
        self._ready += ready
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

    def _stored(self, ready: Ready, record: ImageRecord) -> None:
        outcome, report = ready.outcome, self._report
        if isinstance(outcome, Quarantine):
            self._writer.add(record.row, None)
            report.quarantine(outcome.reason)
            return
        self._writer.add(record.row, outcome.pixels)
        report.misnamed += outcome.misnamed
        report.leaks += record.state == "leak"
        if ready.image.face is not None:
            report.flag(ready.image.face)
        if ready.known is None:
            report.added += 1
            return
        if ready.known.state == "quarantined":
            self._images.quarantine(ready.known.row, CHANGED)
        report.changed += 1

    def _met_again(self, ready: Ready, record: ImageRecord) -> None:
        """Handle a sample that has a row already: a file that is still broken, or one that is what it once was."""
        if isinstance(ready.outcome, Decoded) and record.state != "erased":
            self._images.refresh(record.row, ready.image.file_bytes, ready.image.file_stamp, RESTORABLE)
        if isinstance(ready.outcome, Decoded) and record.state == "quarantined":
            self._report.changed += 1
        else:
            self._report.unchanged += 1

"""Faces cut out of their photos again, with all the pixels that the photos have: a few at a time, the latest kept."""

import asyncio
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from annotator.face_pictures import FaceFile
from annotator.records import ImageRecord

_KEPT_BYTES = 32 * 1024 * 1024
_CUTTERS = 2
"""Photos decoded at once, each with a good deal of memory."""


class FaceCrops:
    """Cut faces out of photos, in threads of its own: photos take long, and answers must not wait for them.

    Args:
        cut: returns the face of a record, None where its photo does not show it any more.
    """

    def __init__(self, cut: Callable[[ImageRecord], FaceFile | None]) -> None:
        self._cut_one = cut
        self._cutters = ThreadPoolExecutor(_CUTTERS, "crops")
        self._kept: OrderedDict[str, FaceFile] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def close(self) -> None:
        """End the threads."""
        self._cutters.shutdown(cancel_futures=True)

    async def cut(self, record: ImageRecord) -> FaceFile | None:
        """Return the face of a record; None where the photo does not show it any more.

        What is kept is by image id, which names one picture for good; the caller makes sure that it may be shown.
        """
        with self._lock:
            kept = self._kept.get(record.image_id)
            if kept is not None:
                self._kept.move_to_end(record.image_id)
                return kept
        return await asyncio.get_running_loop().run_in_executor(self._cutters, self._cut, record)

    def _cut(self, record: ImageRecord) -> FaceFile | None:
        file = self._cut_one(record)
        if file is not None:
            self._keep(record.image_id, file)
        return file

    def _keep(self, image_id: str, file: FaceFile) -> None:
        with self._lock:
            if image_id in self._kept:
                return
            self._kept[image_id] = file
            self._bytes += len(file.data)
            while self._bytes > _KEPT_BYTES:
                self._bytes -= len(self._kept.popitem(last=False)[1].data)

"""Faces cut out of their photos again, with all the pixels that the photos have: a few at a time, the latest kept."""

import asyncio
import io
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from PIL import Image

from annotator.ingest.crops import parse_crop
from annotator.ingest.decode import Limits, Quarantine, content_hash, open_upright, part
from annotator.records import ImageRecord

LARGEST_SIDE = 512
"""Pixels; the desk shows a face no larger than its frame."""
LOSSLESS_SIDE = 128
"""Pixels up to which a crop goes as PNG: the desk enlarges it, and JPEG's blocks with it. Above, PNG has three to four
times the bytes of a JPEG that looks the same, and takes a tenth of a second to write."""
_QUALITY = 92
_KEPT_BYTES = 32 * 1024 * 1024
_CUTTERS = 2
"""Photos decoded at once. One of the largest takes 120 MB, twice that while it is turned."""


@dataclass(frozen=True, slots=True)
class FaceFile:
    """Bytes that a browser may show, and their type.

    `stands_in`: not the picture that the record names but the small copy of it, for as long as the original is away.
    """

    data: bytes
    media_type: str
    stands_in: bool = False


class FaceCrops:
    """Cut faces out of photos, in threads of its own: photos take long, and answers must not wait for them.

    Args:
        read: returns the bytes of a record's photo, None where it cannot be had.
        limits: those of the import.
    """

    def __init__(self, read: Callable[[ImageRecord], bytes | None], limits: Limits) -> None:
        self._read = read
        self._limits = limits
        self._cutters = ThreadPoolExecutor(_CUTTERS, "crops")
        self._kept: OrderedDict[str, FaceFile] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def close(self) -> None:
        """End the threads."""
        self._cutters.shutdown(cancel_futures=True)

    async def cut(self, record: ImageRecord) -> FaceFile | None:
        """Return the face at most `LARGEST_SIDE` pixels a side; None where the photo does not show it any more.

        What is kept is by image id, which names one picture for good; the caller makes sure that it may be shown.
        """
        with self._lock:
            kept = self._kept.get(record.image_id)
            if kept is not None:
                self._kept.move_to_end(record.image_id)
                return kept
        return await asyncio.get_running_loop().run_in_executor(self._cutters, self._cut, record)

    def _cut(self, record: ImageRecord) -> FaceFile | None:
        data = self._read(record)
        upright = open_upright(data, record.path, self._limits) if data is not None else None
        if upright is None or isinstance(upright, Quarantine):
            return None
        face = part(upright, self._limits, parse_crop(record.crop))
        # Of another photo under the same name the place of the face says nothing.
        if isinstance(face, Quarantine) or content_hash(face) != record.content_hash:
            return None
        file = _encoded(face, upright.image.info.get("icc_profile"))
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


def _encoded(face: Image.Image, profile: bytes | None) -> FaceFile:
    """Encode a face without what the photo says about itself (place, owner, comments), but in its colours."""
    face.thumbnail((LARGEST_SIDE, LARGEST_SIDE), Image.Resampling.LANCZOS)
    face.info.clear()
    # The profile of a photo that was gray or CMYK does not describe the RGB that was made of it.
    colours = {"icc_profile": profile} if profile is not None and profile[16:20] == b"RGB " else {}
    out = io.BytesIO()
    if max(face.size) <= LOSSLESS_SIDE:
        face.save(out, "PNG", **colours)
        return FaceFile(out.getvalue(), "image/png")
    face.save(out, "JPEG", quality=_QUALITY, subsampling="4:4:4", **colours)
    return FaceFile(out.getvalue(), "image/jpeg")

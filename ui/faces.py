"""The pictures of faces for the routes: read in threads, crops kept for a while."""

from starlette.concurrency import run_in_threadpool

from annotator.errors import NotFoundError
from annotator.face_pictures import FaceFile, FacePictures
from annotator.records import ImageRecord
from annotator.settings import Workspace
from annotator.store import LabelStore
from ui.crops import FaceCrops


class FaceFiles:
    """Read face images; thread-safe.

    Args:
        workspace: its cache and limits.
        store: where the sources are registered.
    """

    def __init__(self, workspace: Workspace, store: LabelStore) -> None:
        self._images = store.images
        self._pictures = FacePictures(workspace, store)
        self._crops = FaceCrops(self._pictures.cut)

    def close(self) -> None:
        """Finish what is being cut and close the archives."""
        self._crops.close()
        self._pictures.close()

    def record(self, image_id: str) -> ImageRecord:
        """Return the image of a public id.

        Raises:
            NotFoundError: there is none, or it was quarantined or erased.
        """
        record = self._images.by_id(image_id)
        if record.state in ("quarantined", "erased"):
            raise NotFoundError(f"image {image_id!r} is {record.state}: there is nothing to show")
        return record

    async def read(self, record: ImageRecord, *, small: bool = False) -> FaceFile:
        """Return the picture of a record: its file, or what its crop names of it.

        With `small` the cached copy of a crop will do: a row of faces costs no decoding of photos.

        Raises:
            NotFoundError: neither the original nor a cached copy is there.
        """
        if not record.crop:
            return await run_in_threadpool(self._pictures.read, record)
        copy = await run_in_threadpool(self._pictures.cached, record) if small else None
        if copy is not None:
            return FaceFile(copy, "image/png")
        face = await self._crops.cut(record)
        return face if face is not None else await run_in_threadpool(self._pictures.stand_in, record)

"""The picture of a task: uploaded to Label Studio, or a file in a folder that it serves.

Either way it bears our image id as its name, so that one that is there already is found again.
"""

import os
import re
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol
from urllib.parse import quote

from annotator.errors import InputError, NotFoundError
from annotator.face_pictures import FaceFile, FacePictures
from annotator.labelstudio.api.server import Server
from annotator.labelstudio.tasks.sending import Sent, patiently, send
from annotator.records import ImageRecord
from annotator.store.exchange_records import Link

UPLOAD, LOCAL = "upload", "local"
_SUFFIXES = {
    "image/png": ".png",
    "image/jpeg": ".jpg",
    "image/gif": ".gif",
    "image/bmp": ".bmp",
    "image/webp": ".webp",
}
_NAME = re.compile(r"(?:^|/)[0-9a-f]{8}-(im[0-9a-f]+)(?:_\w+)?\.\w+$")
_FILES, _BYTES = 50, 16 * 1024 * 1024
"""The most that goes into one request; Label Studio takes 100 files and 250 MB."""
_READERS = 2


@dataclass(frozen=True, slots=True)
class Placed:
    """Where a picture is: the address for the task, and what to remove with it (`LinkedTask.picture`)."""

    url: str
    picture: str


@dataclass(slots=True)
class Placing:
    """What became of some pictures, by image id. `gone`: there is none to be had; `later`: the server fails on it.

    stand_ins: how many are the small cached copy, because the original is away.
    """

    placed: dict[str, Placed] = field(default_factory=dict)
    gone: dict[str, str] = field(default_factory=dict)
    later: dict[str, str] = field(default_factory=dict)
    unsure: bool = False
    stand_ins: int = 0


class TaskPictures(Protocol):
    """Brings pictures to where Label Studio finds them; `by_themselves` where the server has no part in it."""

    by_themselves: bool

    def place(self, images: Sequence[ImageRecord], *, search: bool) -> Placing:
        """Place the pictures of images; with `search`, some may be there already."""

    def remove(self, pictures: Collection[str], image_ids: Collection[str]) -> None:
        """Remove pictures by what `Placed.picture` says, and whatever else bears these image ids."""


def task_pictures(link: Link, server: Server, faces: FacePictures) -> TaskPictures:
    """Return the way of pictures that the link's settings say."""
    if link.settings.get("pictures", UPLOAD) == LOCAL:
        folder, root = link.settings.get("local_folder"), link.settings.get("document_root")
        if not folder or not root:
            raise InputError(
                "the link says `pictures: local` without `local_folder` and `document_root`; link it again"
            )
        return LocalFiles(Path(folder), Path(root), faces)
    return Uploads(server, link.project_id, faces)


class Uploads:
    """Pictures in Label Studio's own storage."""

    by_themselves = False

    def __init__(self, server: Server, project_id: int, faces: FacePictures) -> None:
        self._server, self._project_id, self._faces = server, project_id, faces
        self._known: dict[str, Placed] | None = None

    def place(self, images: Sequence[ImageRecord], *, search: bool) -> Placing:
        """Upload the pictures of images, many in one request."""
        placing = Placing()
        known = patiently(self._there) if search or self._known is not None else {}
        placing.placed = {image.image_id: known[image.image_id] for image in images if image.image_id in known}
        fresh = [image for image in images if image.image_id not in placing.placed]
        outcome = send(
            self._read(fresh, placing),
            lambda files: self._upload(files, placing),
            lambda files: self._missing(files, placing),
        )
        self._note(outcome, placing)
        return placing

    def remove(self, pictures: Collection[str], image_ids: Collection[str]) -> None:
        """Delete uploads, also those that were uploaded twice because an answer was lost."""
        ids = {int(picture.partition(":")[2]) for picture in pictures if picture.startswith(f"{UPLOAD}:")}
        wanted = set(image_ids)
        ids |= {int(u["id"]) for u in self._server.uploads(self._project_id) if named(str(u["file"])) in wanted}
        for upload_id in sorted(ids):
            self._server.delete_upload(upload_id)
        self._known = None

    def _there(self) -> dict[str, Placed]:
        if self._known is None:
            self._known = {}
            for upload in sorted(
                patiently(lambda: self._server.uploads(self._project_id)), key=lambda u: -int(u["id"])
            ):
                image_id = named(str(upload["file"]))
                if image_id is not None:
                    self._known[image_id] = Placed(f"/data/{upload['file']}", f"{UPLOAD}:{upload['id']}")
        return self._known

    def _read(self, images: Sequence[ImageRecord], placing: Placing) -> Iterator[list[tuple[str, str, bytes, str]]]:
        """Yield (image id, name, content, type) in lists that fit into a request."""
        batch: list[tuple[str, str, bytes, str]] = []
        size = 0
        for image_id, file in read_faces(self._faces, images, placing):
            name, data, media_type = file
            if batch and (len(batch) == _FILES or size + len(data) > _BYTES):
                yield batch
                batch, size = [], 0
            batch.append((image_id, name, data, media_type))
            size += len(data)
        if batch:
            yield batch

    def _upload(self, files: list[tuple[str, str, bytes, str]], placing: Placing) -> None:
        made = self._server.upload(self._project_id, [file[1:] for file in files])
        for (image_id, *_), (upload_id, url) in zip(files, made, strict=True):
            self._take(image_id, Placed(url, f"{UPLOAD}:{upload_id}"), placing)

    def _missing(self, files: list[tuple[str, str, bytes, str]], placing: Placing) -> list[tuple[str, str, bytes, str]]:
        self._known = None
        there = self._there()
        for image_id, *_ in files:
            if image_id in there:
                placing.placed[image_id] = there[image_id]
        return [file for file in files if file[0] not in there]

    def _take(self, image_id: str, placed: Placed, placing: Placing) -> None:
        placing.placed[image_id] = placed
        if self._known is not None:
            self._known[image_id] = placed

    @staticmethod
    def _note(outcome: Sent[tuple[str, str, bytes, str]], placing: Placing) -> None:
        placing.gone |= {file[0]: f"the picture was refused: {error}" for file, error in outcome.refused}
        placing.later |= {file[0]: error for file, error in outcome.later}
        placing.unsure = outcome.unsure


class LocalFiles:
    """Pictures in a folder below the document root of the Label Studio server."""

    by_themselves = True

    def __init__(self, folder: Path, root: Path, faces: FacePictures) -> None:
        try:
            self._below = folder.resolve().relative_to(root.resolve())
        except ValueError:
            raise InputError(f"{folder} is not below {root}, the folder that Label Studio serves") from None
        self._folder, self._faces = folder, faces

    def place(self, images: Sequence[ImageRecord], *, search: bool) -> Placing:
        """Write the pictures of images as `<image id>.<extension>`; one that is there is left as it is."""
        placing = Placing()
        self._folder.mkdir(parents=True, exist_ok=True)
        there = {entry.name.partition(".")[0]: entry.name for entry in os.scandir(self._folder)}
        for image in images:
            if image.image_id in there:
                placing.placed[image.image_id] = self._placed(there[image.image_id])
        fresh = [image for image in images if image.image_id not in there]
        for image_id, (name, data, _) in read_faces(self._faces, fresh, placing):
            # Renamed when it is whole. Not synced one by one, which takes longer than all the rest of a push.
            temporary = self._folder / f".{name}.{os.getpid()}"
            temporary.write_bytes(data)
            temporary.replace(self._folder / name)
            placing.placed[image_id] = self._placed(name)
        if fresh:
            os.sync()
        return placing

    def remove(self, pictures: Collection[str], image_ids: Collection[str]) -> None:
        """Delete files."""
        names = {picture.partition(":")[2] for picture in pictures if picture.startswith(f"{LOCAL}:")}
        names |= {f"{image_id}{suffix}" for image_id in image_ids for suffix in _SUFFIXES.values()}
        for name in names:
            (self._folder / Path(name).name).unlink(missing_ok=True)

    def _placed(self, name: str) -> Placed:
        return Placed(f"/data/local-files/?d={quote(str(self._below / name))}", f"{LOCAL}:{name}")


def read_faces(
    faces: FacePictures, images: Sequence[ImageRecord], placing: Placing
) -> Iterator[tuple[str, tuple[str, bytes, str]]]:
    """Yield (image id, (name, content, type)) of pictures as people see them here; note those that are gone."""

    def read(image: ImageRecord) -> FaceFile | str:
        try:
            return faces.read(image)
        except NotFoundError as error:
            return str(error)

    # Cutting a face out of a photo takes as long as decoding it; for whole files threads would only be in the way.
    with ThreadPoolExecutor(_READERS, "task-pictures") as cutters:
        for start in range(0, len(images), _FILES):
            chunk = images[start : start + _FILES]
            found = cutters.map(read, chunk) if any(image.crop for image in chunk) else map(read, chunk)
            for image, file in zip(chunk, found, strict=True):
                if isinstance(file, str):
                    placing.gone[image.image_id] = file
                    continue
                placing.stand_ins += file.stands_in
                name = f"{image.image_id}{_SUFFIXES[file.media_type]}"
                yield image.image_id, (name, file.data, file.media_type)


def named(file: str) -> str | None:
    """Return the image id that an uploaded file bears in its name, None for one that is not ours."""
    found = _NAME.search(file)
    return found[1] if found else None

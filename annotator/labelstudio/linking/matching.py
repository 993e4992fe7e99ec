"""Which of our images a task of Label Studio shows.

A task says so by our `image_id`, or by where its picture is: a path, a URL, a local file, an upload. Nothing is
guessed: where two faces come into question, or none, the task is left out with the reason.
"""

import re
import sys
import unicodedata
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from collections.abc import Mapping as Pairs
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np

from annotator.records import ImageRecord
from annotator.store import LabelStore
from annotator.store.images import STATES

_BATCH = 5_000
_MANY = 1_000
USABLE = ("active", "leak")
"""States of images that can be answered: a leak is a copy of a face of another split."""
_UPLOAD = re.compile(r"(?:^|/)upload/\d+/[0-9a-f]{8}-([^/]+)$")
_LOCAL = re.compile(r"/data/local-files/?\?(?:[^#]*&)?d=([^&#]+)")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_UNKEPT = re.compile(r"[^-\w.]")


@dataclass(slots=True)
class Matches:
    """`rows`: the row of ours by task id. `left_out`: why a task has none, by task id."""

    rows: dict[int, int] = field(default_factory=dict)
    left_out: dict[int, str] = field(default_factory=dict)


def match(tasks: Iterable[Pairs[str, Any]], store: LabelStore, data_key: str = "image") -> Matches:
    """Find the image that each task shows; `tasks` have `id` and `data` and are read once."""
    index = ImageIndex(store)
    found = Matches()
    for task in tasks:
        row = index.find(task.get("data"), data_key)
        if isinstance(row, int):
            found.rows[int(task["id"])] = row
        else:
            found.left_out[int(task["id"])] = row
    return found


class ImageIndex:
    """Every image of a workspace by `image_id` and by the end of its path; about half a kilobyte an image.

    Paths are kept from their last part to their first ("1.png/train/faces/"), sorted: those that end like a given one
    lie beside each other.
    """

    def __init__(self, store: LabelStore) -> None:
        self._store = store
        keys, crops, ids = [], [], []
        columns = array("q")
        for key, image in _paths(store):
            keys.append(key)
            crops.append(sys.intern(image.crop))
            columns.extend((image.row, image.group, len(_parts(image.path)), STATES.index(image.state)))
            ids.append(image.image_id.encode())
        order = sorted(range(len(keys)), key=keys.__getitem__)
        self._keys = [keys[i] for i in order]
        self._crops = [crops[i] for i in order]
        table = np.frombuffer(columns, dtype=np.int64).reshape(-1, 4)[order]
        self._rows, self._groups, self._depths, self._states = (column.copy() for column in table.T)
        names = np.array(ids, dtype=np.bytes_)[order]
        self._by_id = np.argsort(names)
        self._ids = names[self._by_id]
        self._stored_as: dict[str, list[int]] | None = None

    def find(self, data: object, data_key: str = "image") -> int | str:
        """Return the row of the image that a task with this `data` shows, or why it cannot be told.

        Of `data` are read: `image_id`; the picture under `data_key`; and, as our files have them, `path` (where the
        picture was when it was labeled) and `crop` (which face of it).
        """
        if not isinstance(data, dict):
            return "the task has no data"
        position = self._position_of(data.get("image_id"))
        if position is not None:
            return self._usable(position)
        crop = data.get("crop")
        reasons = []
        for reference in (data.get(data_key), data.get("path")):
            if isinstance(reference, str) and reference and not reference.startswith("data:"):
                found = self._by_reference(reference, crop if isinstance(crop, str) else None)
                if isinstance(found, int):
                    return found
                reasons.append(found)
        if reasons:
            return reasons[-1]
        return f"the task has neither an image_id of this workspace nor a path or URL under {data_key!r}"

    def _position_of(self, image_id: object) -> int | None:
        if not isinstance(image_id, str) or not image_id.isascii():
            return None
        wanted = image_id.encode()
        place = int(np.searchsorted(self._ids, np.bytes_(wanted)))
        return int(self._by_id[place]) if place < len(self._ids) and self._ids[place] == wanted else None

    def _by_reference(self, reference: str, crop: str | None) -> int | str:
        upload = _UPLOAD.search(reference.split("?", 1)[0])
        if upload is not None:
            return self._uploaded(unicodedata.normalize("NFC", unquote(upload[1])), crop)
        parts = _parts(_path_of(reference))
        if not parts:
            return f"{_short(reference)} names no file"
        low, high, common = self._ending_like("".join(f"{part}/" for part in reversed(parts)))
        if not common:
            return f"no image is called {_short(parts[-1])}"
        same_name = self._range(f"{parts[-1]}/")
        whole = common == len(parts) or any(self._depths[i] <= common for i in range(low, min(high, low + 2)))
        if not whole and same_name != (low, high):
            return (
                f"{same_name[1] - same_name[0]} images are called {_short(parts[-1])}, none is at {_short(reference)}"
            )
        return self._one_of(range(low, high), reference, crop)

    def _uploaded(self, name: str, crop: str | None) -> int | str:
        """Find an uploaded file by its name, of which Label Studio keeps letters, digits, dots, - and _."""
        found: Sequence[int] = range(*self._range(f"{name}/"))
        if not found:
            if self._stored_as is None:
                self._stored_as = {}
                for position, key in enumerate(self._keys):
                    own = key.split("/", 1)[0]
                    kept = _UNKEPT.sub("", own.rstrip().replace(" ", "_"))
                    if kept != own:
                        self._stored_as.setdefault(kept, []).append(position)
            found = self._stored_as.get(name, [])
        return self._one_of(found, name, crop) if found else f"no image is called {_short(name)}"

    def _ending_like(self, key: str) -> tuple[int, int, int]:
        """Return the range of the paths that share the most last parts with `key`, and how many parts."""
        position = bisect_left(self._keys, key)
        beside = [self._keys[i] for i in (position - 1, position) if 0 <= i < len(self._keys)]
        shared = max((_shared(key, other) for other in beside), key=len, default=[])
        return (*self._range("".join(f"{part}/" for part in shared)), len(shared)) if shared else (0, 0, 0)

    def _range(self, start: str) -> tuple[int, int]:
        """Return the range of the paths that begin, from their end, with `start`."""
        return bisect_left(self._keys, start), bisect_left(self._keys, start[:-1] + "0")  # "0" follows "/"

    def _one_of(self, positions: Sequence[int], reference: str, crop: str | None) -> int | str:
        """Return the only face among the images at `positions`: copies of one picture are the same face."""
        if len(positions) > _MANY and len(np.unique(self._groups[list(positions[:_MANY])])) > 1:
            return f"{len(positions)} images come into question for {_short(reference)}"
        usable = [i for i in positions if STATES[self._states[i]] in USABLE]
        if not usable:
            return self._usable(positions[0])
        if crop is not None:
            usable = [i for i in usable if self._crops[i] == crop]
            if not usable:
                return f"no face is at {crop!r} of {_short(reference)}"
        if len({int(self._groups[i]) for i in usable}) == 1:
            return min((STATES[self._states[i]] != "active", int(self._rows[i])) for i in usable)[1]
        if len({self._keys[i] for i in usable}) == 1:
            return f"{_short(reference)} shows {len(usable)} faces: only an image_id tells which is meant"
        return f"{len(usable)} images come into question for {_short(reference)}"

    def _usable(self, position: int) -> int | str:
        row = int(self._rows[position])
        if STATES[self._states[position]] in USABLE:
            return row
        image = self._store.images.by_rows([row])[0]
        why = f": {image.quarantine_reason}" if image.quarantine_reason else ""
        return f"image {image.image_id} is {image.state}{why}"


def _paths(store: LabelStore) -> Iterator[tuple[str, ImageRecord]]:
    """Yield every image that was not erased with its path from the last part to the first."""
    roots = {s.id: "".join(f"{part}/" for part in reversed(_parts(s.root))) for s in store.images.sources()}
    rows = store.images.table().rows
    for start in range(0, len(rows), _BATCH):
        for image in store.images.by_rows(rows[start : start + _BATCH].tolist()):
            if image.state != "erased":
                own = "".join(f"{part}/" for part in reversed(_parts(image.path)))
                yield own + roots[image.source_id], image


def _path_of(reference: str) -> str:
    """Return the path in a path, a URL or a link to a local file."""
    local = _LOCAL.search(reference)
    if local is not None:
        return unquote(local[1])
    if not _URL.match(reference):
        return reference
    try:
        return unquote(urlsplit(reference).path)
    except ValueError:
        return ""


def _parts(path: str) -> list[str]:
    """Return the parts of a path, either slash, without . and empty ones."""
    text = path if path.isascii() else unicodedata.normalize("NFC", path)
    return [part for part in text.replace("\\", "/").split("/") if part not in ("", ".")]


def _shared(key: str, other: str) -> list[str]:
    """Return the parts that two paths begin with, both from their end."""
    parts = []
    for mine, theirs in zip(key.split("/"), other.split("/"), strict=False):
        if mine != theirs or not mine:
            break
        parts.append(mine)
    return parts


def _short(text: str) -> str:
    return repr(text if len(text) <= 80 else f"…{text[-79:]}")

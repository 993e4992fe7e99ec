"""RAF-DB: `EmoLabel/list_patition_label.txt` with a class number per image, beside `Image/aligned`."""

from collections.abc import Iterator

from annotator.errors import ImportSourceError
from annotator.ingest.samples import ClassNames, Findings, Sample, read_lines
from annotator.ingest.sources import SourceFiles
from annotator.records import Split
from annotator.taxonomy import RAFDB

LIST = "list_patition_label.txt"
_PLACES = ("EmoLabel", "", "basic/EmoLabel")
_IMAGES = ("Image/aligned", "Image/original", "aligned", "original")


class RafDb:
    """The images of the list, aligned ones preferred. Class numbers start at 1."""

    format = "rafdb"

    def __init__(self, files: SourceFiles, names: ClassNames) -> None:
        self.findings = Findings()
        self._files, self._names = files, names
        place = find_list(files)
        if place is None:
            raise ImportSourceError(f"{files.root} holds no {LIST} (looked in {', '.join(p or '.' for p in _PLACES)})")
        self._list = place
        base = "basic/" if place.startswith("basic/") else ""
        folder = next((f"{base}{f}" for f in _IMAGES if any(True for _ in files.walk(f"{base}{f}"))), None)
        if folder is None:
            raise ImportSourceError(f"{files.root} holds no images in {', '.join(base + f for f in _IMAGES)}")
        self._folder = folder
        self._count = sum(1 for _ in self.samples())
        if not self._count:
            raise ImportSourceError(f"{files.root}: {place} lists no images")

    def __len__(self) -> int:
        """Return the number of listed images."""
        return self._count

    def samples(self) -> Iterator[Sample]:
        """Yield the images in the order of the list."""
        for number, line in enumerate(read_lines(self._files, self._list), 1):
            if line.strip():
                yield self._sample(f"{self._list} line {number}", line.split())

    def _sample(self, where: str, fields: list[str]) -> Sample:
        if len(fields) != 2 or not fields[1].isdecimal() or not 1 <= int(fields[1]) <= len(RAFDB.slugs):
            raise ImportSourceError(
                f"{where}: {' '.join(fields)!r} is not 'name class' with a class from 1 to {len(RAFDB.slugs)}"
            )
        name, code = fields
        split: Split | None = "pool" if name.startswith("train") else "test" if name.startswith("test") else None
        if split is None:
            raise ImportSourceError(f"{where}: {name!r} starts with neither train nor test")
        stem, dot, extension = name.rpartition(".")
        aligned = f"{stem}_aligned{dot}{extension}" if self._folder.endswith("aligned") else name
        given = self._names.slug(RAFDB.slugs[int(code) - 1], where)
        return Sample(f"{self._folder}/{aligned}", split, given=given)


def find_list(files: SourceFiles) -> str | None:
    """Return where the list of labels is, or None."""
    for place in _PLACES:
        path = f"{place}/{LIST}" if place else LIST
        if files.exists(path):
            return path
    return None

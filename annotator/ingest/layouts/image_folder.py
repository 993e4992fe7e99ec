"""A folder (or zip) of images: optional train/val/test folders, below them optional class folders."""

from collections.abc import Iterator
from pathlib import PurePosixPath

from annotator.errors import ImportSourceError, TaxonomyError
from annotator.ingest.decode import EXTENSIONS, UNSUPPORTED_EXTENSIONS
from annotator.ingest.samples import ClassNames, Findings, Sample, find_split
from annotator.ingest.sources import SourceFiles
from annotator.records import Split

_IMAGE_EXTENSIONS = frozenset(EXTENSIONS) | UNSUPPORTED_EXTENSIONS


class ImageFolder:
    """Every image below the root; what is above it in the tree says split and class."""

    format = "folder"

    def __init__(self, files: SourceFiles, names: ClassNames) -> None:
        self.findings = Findings()
        self._splits = _split_folders(files)
        self._classes: dict[str, str | None] = {}
        for under in self._splits or [""]:
            self._read_classes(files, under, names)
        listed = list(files.walk())
        self._paths = [p for p in listed if PurePosixPath(p).suffix.lower() in _IMAGE_EXTENSIONS]
        self.findings.ignored_files = len(listed) - len(self._paths)
        self.findings.notes += [f"could not be read: {problem}" for problem in files.problems]
        if not self._paths:
            raise ImportSourceError(f"{files.root} holds no images ({', '.join(sorted(EXTENSIONS))})")

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._paths)

    def samples(self) -> Iterator[Sample]:
        """Yield the images in the order of their paths."""
        for path in self._paths:
            first, _, rest = path.partition("/")
            split: Split = self._splits.get(first, "pool") if rest else "pool"
            inside = f"{first}/{rest.partition('/')[0]}" if first in self._splits and rest else first
            yield Sample(path, split, given=self._classes.get(inside))

    def _read_classes(self, files: SourceFiles, under: str, names: ClassNames) -> None:
        """Take the folders in `under` for classes when at least one is; then all of them have to be.

        Raises:
            TaxonomyError: some folders are classes of the workspace and some are not.
        """
        folders = files.folders(under)
        unknown = [name for name in folders if names.find(name) is None]
        if len(unknown) == len(folders):
            if folders:
                shown = ", ".join(unknown[:5]) + (" …" if len(unknown) > 5 else "")
                self.findings.notes.append(
                    f"no class of the workspace among the folders ({shown}): no labels from them"
                )
            return
        for name in folders:
            try:
                slug = names.slug(name, f"folder {under}/{name}" if under else f"folder {name}")
            except TaxonomyError as error:
                raise TaxonomyError(f"{files.root}: {error}") from error
            self._classes[f"{under}/{name}" if under else name] = slug


def _split_folders(files: SourceFiles) -> dict[str, Split]:
    found = {name: find_split(name) for name in files.folders()}
    return {name: split for name, split in found.items() if split is not None}

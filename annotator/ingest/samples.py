"""What every layout yields, and how a data set's class names become the workspace's slugs."""

import csv
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from annotator.errors import ImportSourceError, TaxonomyError
from annotator.ingest.crops import Crop
from annotator.ingest.decode import Quarantine
from annotator.ingest.sources import SourceFiles
from annotator.records import Face, Split
from annotator.taxonomy import BUILTIN, Taxonomy

UNUSABLE = "unusable"
_MAX_LINE = 1_000_000
_MAX_REMEMBERED = 10_000
_ALIASES = {
    "happy": "happiness",
    "sad": "sadness",
    "angry": "anger",
    "surprised": "surprise",
    "disgusted": "disgust",
    "fearful": "fear",
    "afraid": "fear",
    "contemptuous": "contempt",
}
_UNUSABLE_NAMES = frozenset({"unusable", "unknown", "nf", "no-face", "noface", "not-a-face"})
_SPLITS: dict[str, Split] = {
    "pool": "pool",
    "train": "pool",
    "training": "pool",
    "unlabeled": "pool",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "publictest": "val",
    "test": "test",
    "testing": "test",
    "privatetest": "test",
}
KNOWN_SLUGS = frozenset(slug for taxonomy in BUILTIN.values() for slug in taxonomy.slugs)


@dataclass(frozen=True, slots=True)
class Sample:
    """One image of a data set as its lists describe it, before any pixel is read.

    `given` and the keys of `votes` are workspace slugs or "unusable". `crop` is to be taken as it is; `face` is where
    the list says that the face is.
    """

    path: str
    split: Split = "pool"
    given: str | None = None
    votes: dict[str, int] | None = None
    subject_id: str | None = None
    crop: Crop | None = None
    face: Face | None = None


@dataclass(slots=True)
class Findings:
    """What a layout noticed on the way and a person should know."""

    ignored_files: int = 0
    notes: list[str] = field(default_factory=list)


class Layout(Protocol):
    """A data set laid out in a known way. Its whole description is checked when it is made; nothing is decoded."""

    format: str
    findings: Findings

    def __len__(self) -> int:
        """Return how many samples `samples` yields."""

    def samples(self) -> Iterator[Sample]:
        """Yield every sample in a stable order."""


class ClassNames:
    """Map a data set's class names to the workspace's slugs.

    With `keep` False (labels are not wanted) every name maps to None and none is unknown.
    """

    def __init__(self, taxonomy: Taxonomy, keep: bool) -> None:
        self._slugs = taxonomy.slugs
        self._keep = keep
        self._found: dict[str, str | None] = {}

    def find(self, name: str) -> str | None:
        """Return the slug for `name`, "unusable", or None when the workspace has no such class."""
        if name not in self._found:
            if len(self._found) >= _MAX_REMEMBERED:
                self._found.clear()
            self._found[name] = self._look_up(name)
        return self._found[name]

    def _look_up(self, name: str) -> str | None:
        plain = name.strip().casefold().replace(" ", "-").replace("_", "-")
        for slug in (name.strip(), plain, plain.replace("-", "_"), _ALIASES.get(plain, "")):
            if slug in self._slugs:
                return slug
        return UNUSABLE if plain in _UNUSABLE_NAMES else None

    def slug(self, name: str, where: str) -> str | None:
        """Return the slug for `name`; None when labels are not wanted.

        Raises:
            TaxonomyError: the workspace has no such class.
        """
        if not self._keep:
            return None
        found = self.find(name)
        if found is None:
            raise TaxonomyError(
                f"{where}: class {name!r} is not in this workspace, which knows {', '.join(self._slugs)}; "
                "rename the class, make a workspace with --classes that has it, or import with --labels-as none"
            )
        return found

    def votes(self, counts: Mapping[str, int], where: str) -> dict[str, int] | None:
        """Return `counts` by slug without zeros, several names of "unusable" summed; None when labels are not wanted.

        Raises:
            TaxonomyError: the workspace lacks a class that somebody voted for.
        """
        if not self._keep:
            return None
        mapped: dict[str, int] = {}
        for name, count in counts.items():
            if count:
                slug = self.slug(name, where)
                if slug is not None:
                    mapped[slug] = mapped.get(slug, 0) + count
        return mapped or None


def split_of(name: str, where: str) -> Split:
    """Return the split that `name` (train, Valid, PublicTest, …) means.

    Raises:
        ImportSourceError: it is not the name of a split.
    """
    found = find_split(name)
    if found is None:
        raise ImportSourceError(f"{where}: split {name!r} is not one of pool, train, val, test")
    return found


def find_split(name: str) -> Split | None:
    """Return the split that `name` means, or None."""
    return _SPLITS.get(name.strip().casefold())


def plurality(votes: Mapping[str, int]) -> str | None:
    """Return the name with the most votes, the first of several; None without votes."""
    most = max(votes.values(), default=0)
    return next((name for name, count in votes.items() if count == most), None) if most > 0 else None


def whole_number(text: str, what: str, where: str) -> int:
    """Read a count.

    Raises:
        ImportSourceError: it is not a whole number of at least 0.
    """
    try:
        value = int(text.strip() or "0")
    except ValueError:
        value = -1
    if value < 0:
        raise ImportSourceError(f"{where}: {what} is {text!r}, not a whole number of at least 0")
    return value


def read_lines(files: SourceFiles, path: str) -> Iterator[str]:
    """Yield the lines of a list file of the source, ends kept, without holding the file in memory.

    Raises:
        ImportSourceError: it is missing, cannot be read, is not UTF-8, or has a line of more than a million characters.
    """
    opened = files.open(path)
    if isinstance(opened, Quarantine):
        raise ImportSourceError(f"{files.root}: {path}: {opened.reason}")
    with io.TextIOWrapper(opened, encoding="utf-8-sig", newline="") as text:
        try:
            while line := text.readline(_MAX_LINE):
                if len(line) == _MAX_LINE:
                    raise ImportSourceError(f"{files.root}: {path} has a line of more than {_MAX_LINE} characters")
                yield line
        except UnicodeDecodeError as error:
            raise ImportSourceError(f"{files.root}: {path} is not UTF-8 text: {error}") from error
        except OSError as error:
            raise ImportSourceError(f"{files.root}: {path} cannot be read: {error}") from error


def read_csv(files: SourceFiles, path: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield (where, row) for each row of a CSV with a header; `where` names file and line. Column names are stripped.

    Raises:
        ImportSourceError: the file cannot be read, is no CSV, or a row has more fields than the header.
    """
    reader = csv.DictReader(read_lines(files, path), strict=True)
    try:
        reader.fieldnames = [name.strip() for name in reader.fieldnames or []]
        for row in reader:
            where = f"{path} line {reader.line_num}"
            if None in row:
                raise ImportSourceError(f"{where}: more fields than the header has columns")
            yield where, {key: value or "" for key, value in row.items()}
    except csv.Error as error:
        raise ImportSourceError(f"{path} line {reader.line_num}: {error}") from error


def read_jsonl(files: SourceFiles, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (where, object) for each line of a JSONL file, empty lines left out.

    Raises:
        ImportSourceError: a line is not a JSON object.
    """
    for number, line in enumerate(read_lines(files, path), 1):
        if not line.strip():
            continue
        where = f"{path} line {number}"
        try:
            value = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise ImportSourceError(f"{where}: not JSON: {error}") from error
        if not isinstance(value, dict):
            raise ImportSourceError(f"{where}: expected an object, not {type(value).__name__}")
        yield where, value

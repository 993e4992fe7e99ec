"""FER+: `fer2013new.csv` with ten crowd votes an image, beside FER2013Train, FER2013Valid and FER2013Test."""

from collections import Counter
from collections.abc import Iterator

from annotator.errors import ImportSourceError
from annotator.ingest.samples import (
    ClassNames,
    Findings,
    Sample,
    find_split,
    plurality,
    read_csv,
    whole_number,
)
from annotator.ingest.sources import SourceFiles
from annotator.taxonomy import FERPLUS

LIST = "fer2013new.csv"
FOLDERS = {"Training": "FER2013Train", "PublicTest": "FER2013Valid", "PrivateTest": "FER2013Test"}
_UNUSABLE_COLUMNS = ("unknown", "NF")
_NEEDED = ("Usage", "Image name", *FERPLUS.slugs, *_UNUSABLE_COLUMNS)


class FerPlus:
    """The rows of the vote file whose folder is present. The given label is the plurality of the ten columns."""

    format = "ferplus"

    def __init__(self, files: SourceFiles, names: ClassNames) -> None:
        self.findings = Findings()
        self._files, self._names = files, names
        folders = set(files.folders())
        self._present = {usage for usage, folder in FOLDERS.items() if folder in folders}
        absent: Counter[str] = Counter()
        unnamed = self._count = 0
        for where, row in read_csv(files, LIST):
            _check(where, row)
            if row["Usage"] not in self._present:
                absent[FOLDERS[row["Usage"]]] += 1
            elif not row["Image name"].strip():
                unnamed += 1
            else:
                self._sample(where, row)
                self._count += 1
        for folder, count in absent.items():
            self.findings.notes.append(f"{folder} is not there: {count} rows of {LIST} left out")
        if unnamed:
            self.findings.notes.append(f"{unnamed} rows of {LIST} name no image (removed by its authors): left out")
        if not self._count:
            raise ImportSourceError(f"{files.root}: {LIST} names no image of {', '.join(FOLDERS.values())}")

    def __len__(self) -> int:
        """Return the number of rows, repeated ones included."""
        return self._count

    def samples(self) -> Iterator[Sample]:
        """Yield the rows in their order."""
        for where, row in read_csv(self._files, LIST):
            if row["Usage"] in self._present and row["Image name"].strip():
                yield self._sample(where, row)

    def _sample(self, where: str, row: dict[str, str]) -> Sample:
        counts = {c: whole_number(row[c], f"the count of {c!r}", where) for c in (*FERPLUS.slugs, *_UNUSABLE_COLUMNS)}
        named = plurality(counts)
        return Sample(
            path=f"{FOLDERS[row['Usage']]}/{row['Image name'].strip()}",
            split=find_split(row["Usage"]) or "pool",
            given=self._names.slug(named, where) if named else None,
            votes=self._names.votes(counts, where),
        )


def _check(where: str, row: dict[str, str]) -> None:
    missing = [column for column in _NEEDED if column not in row]
    if missing:
        raise ImportSourceError(f"{where}: no column {', '.join(missing)}; FER+ lists have {', '.join(_NEEDED)}")
    if row["Usage"] not in FOLDERS:
        raise ImportSourceError(f"{where}: usage {row['Usage']!r} is not one of {', '.join(FOLDERS)}")

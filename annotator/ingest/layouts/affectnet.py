"""AffectNet's manual annotations: `training.csv` and `validation.csv` with a face box and an expression code a row."""

from collections.abc import Iterator

from annotator.errors import ImportSourceError
from annotator.ingest.crops import Box
from annotator.ingest.samples import UNUSABLE, ClassNames, Findings, Sample, read_csv, whole_number
from annotator.ingest.sources import SourceFiles
from annotator.records import Split
from annotator.taxonomy import AFFECTNET8

LISTS: dict[str, Split] = {"training.csv": "pool", "validation.csv": "val"}
_IMAGES = ("Manually_Annotated_Images", "Manually_Annotated/Manually_Annotated_Images", "")
_PATH, _CODE, _BOX = "subDirectory_filePath", "expression", ("face_x", "face_y", "face_width", "face_height")
_NO_FACE = 10
_LAST_CODE = 10  # 8 none of the eight and 9 uncertain stay without a label


class AffectNet:
    """The images of the lists, cropped to the face box where a row has one."""

    format = "affectnet"

    def __init__(self, files: SourceFiles, names: ClassNames, lists: list[str] | None = None) -> None:
        self.findings = Findings()
        self._files, self._names = files, names
        self._lists = lists if lists is not None else [name for name in LISTS if files.exists(name)]
        if not self._lists:
            raise ImportSourceError(f"{files.root} holds neither {' nor '.join(LISTS)}")
        folders = [f for f in _IMAGES if f and any(True for _ in files.walk(f))]
        self._prefix = f"{folders[0]}/" if folders else ""
        self._count = sum(1 for _ in self.samples())
        if not self._count:
            raise ImportSourceError(f"{files.root}: {', '.join(self._lists)} list no images")

    def __len__(self) -> int:
        """Return the number of rows."""
        return self._count

    def samples(self) -> Iterator[Sample]:
        """Yield the rows of each list in their order."""
        for name in self._lists:
            for where, row in read_csv(self._files, name):
                yield self._sample(where, row, LISTS.get(name, "pool"))

    def _sample(self, where: str, row: dict[str, str], split: Split) -> Sample:
        missing = [column for column in (_PATH, _CODE) if not row.get(column, "").strip()]
        if missing:
            raise ImportSourceError(f"{where}: nothing in column {', '.join(missing)}")
        code = whole_number(row[_CODE], _CODE, where)
        if code > _LAST_CODE:
            raise ImportSourceError(f"{where}: expression {code} is not a code from 0 to {_LAST_CODE}")
        given: str | None = None
        if code < len(AFFECTNET8.slugs):
            given = self._names.slug(AFFECTNET8.slugs[code], where)
        elif code == _NO_FACE:
            given = self._names.slug(UNUSABLE, where)
        return Sample(self._prefix + row[_PATH].strip(), split, given=given, crop=_box(row, where))


def _box(row: dict[str, str], where: str) -> Box | None:
    texts = [row.get(column, "").strip() for column in _BOX]
    if not all(texts) or any(t.upper() == "NULL" for t in texts):
        return None
    left, top, width, height = (whole_number(t, c, where) for t, c in zip(texts, _BOX, strict=True))
    return Box(left, top, width, height) if width and height else None

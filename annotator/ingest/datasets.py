"""Find out in which layout a source comes, and open it."""

from collections.abc import Callable
from pathlib import Path

from annotator.errors import ImportSourceError
from annotator.ingest.layouts.affectnet import LISTS as AFFECTNET_LISTS
from annotator.ingest.layouts.affectnet import AffectNet
from annotator.ingest.layouts.ferplus import LIST as FERPLUS_LIST
from annotator.ingest.layouts.ferplus import FerPlus
from annotator.ingest.layouts.image_folder import ImageFolder
from annotator.ingest.layouts.manifest import Manifest
from annotator.ingest.layouts.rafdb import RafDb, find_list
from annotator.ingest.samples import ClassNames, Layout
from annotator.ingest.sources import SourceFiles, open_files

FORMATS = ("auto", "folder", "manifest", "ferplus", "rafdb", "affectnet")
_ALIASES = {
    "imagefolder": "folder",
    "csv": "manifest",
    "jsonl": "manifest",
    "fer+": "ferplus",
    "raf-db": "rafdb",
    "affectnet7": "affectnet",
    "affectnet8": "affectnet",
}
_LIST_EXTENSIONS = (".csv", ".jsonl", ".ndjson")
_MANIFESTS = ("manifest.csv", "manifest.jsonl", "manifest.ndjson")
_OPENERS: dict[str, Callable[[SourceFiles, ClassNames], Layout]] = {
    "folder": ImageFolder,
    "ferplus": FerPlus,
    "rafdb": RafDb,
    "affectnet": AffectNet,
}


def open_dataset(source: Path, format: str, names: ClassNames) -> tuple[SourceFiles, Layout]:
    """Open `source` (a folder, a zip, or a list file) in `format` and check its whole description.

    "auto" recognises FER+, RAF-DB, AffectNet and manifests by their list files and takes everything else for an image
    folder. A list file's paths are relative to its folder.

    Raises:
        ImportSourceError: an unknown format, an unreadable source, or one that is not laid out as the format says.
        TaxonomyError: a label names a class that the workspace lacks.
    """
    wanted = _ALIASES.get(format.casefold(), format.casefold())
    if wanted not in FORMATS:
        raise ImportSourceError(f"format {format!r} is not one of {', '.join(FORMATS)}")
    listed = source.is_file() and source.suffix.lower() in _LIST_EXTENSIONS
    files = open_files(source.parent if listed else source)
    try:
        return files, _open(files, source.name if listed else None, wanted, names)
    except BaseException:
        files.close()
        raise


def _open(files: SourceFiles, listed: str | None, wanted: str, names: ClassNames) -> Layout:
    if wanted == "auto":
        wanted = _recognise(files, listed)
    if wanted == "manifest":
        found = listed or next((name for name in _MANIFESTS if files.exists(name)), None)
        if found is None:
            raise ImportSourceError(f"{files.root} holds no {' or '.join(_MANIFESTS)}; name the list file itself")
        return Manifest(files, found, names)
    if wanted == "affectnet" and listed is not None:
        return AffectNet(files, names, [listed])
    return _OPENERS[wanted](files, names)


def _recognise(files: SourceFiles, listed: str | None) -> str:
    if listed is not None:
        return "ferplus" if listed == FERPLUS_LIST else "affectnet" if listed in AFFECTNET_LISTS else "manifest"
    if files.exists(FERPLUS_LIST):
        return "ferplus"
    if find_list(files) is not None:
        return "rafdb"
    if any(files.exists(name) for name in _MANIFESTS):
        return "manifest"
    return "affectnet" if any(files.exists(name) for name in AFFECTNET_LISTS) else "folder"

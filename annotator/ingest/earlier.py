"""What earlier imports made of the files of a source."""

from collections import defaultdict
from collections.abc import Mapping

from annotator.ingest.crops import NO_FACE
from annotator.store.images import KnownFile


class EarlierFiles:
    """The samples of earlier imports of a source."""

    def __init__(self, files: dict[tuple[str, str], KnownFile], searched: bool) -> None:
        self._files = files
        self._photos: dict[str, dict[str, KnownFile]] = defaultdict(dict)
        for (path, crop), file in files.items() if searched else ():
            if "@" in crop or crop == NO_FACE or (not crop and file.content_hash is None):
                self._photos[path][crop] = file

    def of_crop(self, path: str, crop: str) -> Mapping[str, KnownFile]:
        """Return the sample of a crop, if there is one."""
        known = self._files.get((path, crop))
        return {} if known is None else {crop: known}

    def of_photo(self, path: str) -> Mapping[str, KnownFile]:
        """Return what was found in a photo: its faces, that it has none, or that it could not be read."""
        return self._photos.get(path, {})

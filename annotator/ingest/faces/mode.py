"""What `--faces` asks for: pictures as they are, faces where the list says, or faces where a detector finds them."""

from dataclasses import dataclass
from typing import Literal, get_args

from annotator.errors import ImportSourceError, InputError
from annotator.ingest.crops import Box, Crop, Square
from annotator.ingest.decode import Quarantine
from annotator.ingest.faces.detector import DetectorChoice
from annotator.ingest.faces.model_file import model_file
from annotator.ingest.samples import Layout, Sample
from annotator.records import Face
from annotator.settings import ImportSettings

Faces = Literal["detect", "given", "none"]
FACES: tuple[Faces, ...] = get_args(Faces)
NOT_GIVEN = "no face given"


@dataclass(frozen=True, slots=True)
class Placed:
    """Where in its image a sample is: a crop, known `face` or not; or still to be searched for; or nowhere."""

    crop: Crop | None = None
    face: Face | None = None
    search: bool = False
    refused: Quarantine | None = None


class FaceMode:
    """How the samples of one import become faces.

    none: the picture, or the listed crop of it, as it is. given: an upright square about the listed face; a sample
    without one is quarantined. detect: the same, and images without a listed face are searched.
    """

    def __init__(self, name: Faces, settings: ImportSettings) -> None:
        """Make ready: with "detect" the detector's model is fetched where needed, and tried.

        Raises:
            InputError: no such mode, or the model cannot be had.
        """
        if name not in FACES:
            raise InputError(f"faces {name!r} is not one of {', '.join(FACES)}")
        self.name: Faces = name
        self._margin = settings.face_margin
        self.detector: DetectorChoice | None = None
        if name == "detect":
            model = model_file(settings) if settings.detector == "yunet" else None
            self.detector = DetectorChoice(settings.detector, model, settings.face_margin)
            self.detector.open()

    @property
    def found_by(self) -> str:
        """The name of the detector."""
        return self.detector.name if self.detector is not None else "given"

    def check(self, layout: Layout) -> None:
        """Raise `ImportSourceError` when faces are to be given and the source gives none."""
        if self.name == "given" and not any(s.face or s.crop for s in layout.samples()):
            raise ImportSourceError(
                f"the {layout.format} layout of this source gives no faces (columns box or crop): "
                "import with --faces detect, or none"
            )

    def place(self, sample: Sample) -> Placed:
        """Return where the face of a sample is."""
        if self.name == "none":
            return Placed(sample.crop)
        if isinstance(sample.crop, Square):  # of an earlier import, exported
            return Placed(sample.crop, sample.face)
        face = sample.face
        if face is None and isinstance(sample.crop, Box):
            left, top, width, height = sample.crop
            face = Face((float(left), float(top), float(width), float(height)))
        if face is not None:
            return Placed(Square.around(face, self._margin), face)
        return Placed(refused=Quarantine(NOT_GIVEN)) if self.name == "given" else Placed(search=True)

"""Faces in images: squares, detectors, quality, the model's file. OpenCV is real, so is the download."""

import hashlib
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFilter

from annotator.errors import InputError
from annotator.ingest.crops import Box, Square, parse_crop
from annotator.ingest.decode import Decoded, Limits, Quarantine, decode, sharpness
from annotator.ingest.faces.detector import MAX_FACES, DetectorChoice, find_faces, iou
from annotator.ingest.faces.model_file import model_file
from annotator.ingest.faces.quality import is_turned, judged
from annotator.records import Face
from annotator.settings import ImportSettings
from tests.ingest.builders import encoded, picture
from tests.ingest.group_photos import drawing, drawn_face, group_photo
from tests.ingest.tiny_yunet import EYES_DOWN, write_tiny_yunet

LIMITS = Limits(max_bytes=1_000_000, max_pixels=1_000_000, min_side=16)
SEED = 7


def points(*flat: float) -> tuple[tuple[float, float], ...]:
    return tuple(zip(flat[::2], flat[1::2], strict=True))


# Squares


@given(
    left=st.integers(-500, 5000), top=st.integers(-500, 5000), side=st.integers(1, 5000), tilt=st.integers(-1800, 1800)
)
def test_a_square_survives_its_text(left: int, top: int, side: int, tilt: int) -> None:
    square = Square(left, top, side, tilt / 10)
    assert parse_crop(str(square)) == square
    assert len(str(square)) <= 64, "the column of the store holds no more"


@pytest.mark.parametrize("text", ["1,2,3@", "1,2,0@0", "1,2@0", "a,2,3@0", "1,2,3,4@0", "1,2,3@0.55"])
def test_a_malformed_square_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match="crop"):
        parse_crop(text)


def test_a_square_has_the_margin_on_every_side_of_the_longer_side() -> None:
    # ► 40 x 60 with a quarter of 60 on each side: 90, about the middle (120, 230)
    assert Square.around(Face((100, 200, 40, 60)), margin=0.25) == Square(75, 185, 90, 0.0)


def test_the_tilt_is_that_of_the_eyes() -> None:
    # ► the eye on the right lies 10 lower and 10 further: 45 degrees
    face = Face((0, 0, 50, 50), landmarks=points(10, 10, 20, 20, 15, 15, 10, 30, 20, 30))
    assert Square.around(face, 0).tilt == 45.0
    nearly = Face((0, 0, 50, 50), landmarks=points(10, 10, 30, 10.5, 20, 20, 10, 30, 30, 30))
    assert Square.around(nearly, 0).tilt == 0.0, "it would only be softened"


def test_a_square_inside_the_image_is_the_very_pixels() -> None:
    image = picture(1, side=60)
    assert np.array_equal(np.asarray(Square(10, 20, 30).cut(image)), np.asarray(image)[20:50, 10:40])


def test_beyond_the_image_its_border_is_repeated() -> None:
    image = picture(2, side=20)
    cut = np.asarray(Square(-5, 10, 20).cut(image))
    whole = np.pad(np.asarray(image), ((0, 10), (5, 0), (0, 0)), mode="edge")
    assert np.array_equal(cut, whole[10:30, 0:20])


def test_a_tilted_face_is_set_upright() -> None:
    upright = Image.new("RGB", (200, 200), "gray")
    pen = ImageDraw.Draw(upright)
    pen.rectangle((70, 80, 90, 90), fill="white")  # eyes on one line
    pen.rectangle((110, 80, 130, 90), fill="white")
    pen.rectangle((80, 120, 120, 126), fill="black")
    angle = 20.0
    tilted = upright.rotate(-angle, Image.Resampling.BICUBIC, fillcolor="gray")  # clockwise as one sees it
    turned = np.asarray(Square(40, 40, 120, angle).cut(tilted), dtype=np.float64)
    straight = np.asarray(Square(40, 40, 120).cut(upright), dtype=np.float64)
    assert np.abs(turned - straight).mean() < 3
    assert np.abs(np.asarray(Square(40, 40, 120).cut(tilted), dtype=np.float64) - straight).mean() > 8


@given(tilt=st.sampled_from([0.0, 30.0, -75.5, 170.0]), margin=st.floats(0, 1), left=st.integers(-40, 400))
def test_the_box_of_a_face_lies_in_the_middle_of_its_square(tilt: float, margin: float, left: int) -> None:
    around = Square.around(Face((float(left), 60.0, 80.0, 50.0)), margin)
    shares = Square(*around[:3], tilt).shares((float(left), 60.0, 80.0, 50.0))
    width, height = 80 / around.side, 50 / around.side
    off = 0.5 / around.side  # the square has whole pixels
    assert shares == pytest.approx((0.5 - width / 2, 0.5 - height / 2, 0.5 + width / 2, 0.5 + height / 2), abs=2 * off)


def test_shares_never_leave_the_square() -> None:
    assert Square(0, 0, 100).shares((-50, 20, 100, 30)) == pytest.approx((0, 0.2, 0.5, 0.5))
    assert Square(0, 0, 100).shares((300, 300, 10, 10)) == (1, 1, 1, 1)


def refused(crop: Box | Square) -> str:
    outcome = decode(encoded(picture(1, side=64)), "a.png", 24, LIMITS, crop)
    assert isinstance(outcome, Quarantine)
    return outcome.reason


def test_an_impossible_square_is_refused_before_it_takes_memory() -> None:
    assert "outside" in refused(Square(60, 60, 20))
    assert "smaller than 16" in refused(Square(20, 20, 8))
    assert "limit of 1000000" in refused(Square(-60000, -60000, 120_064))


def test_equal_squares_have_equal_content_and_others_not() -> None:
    data = encoded(group_photo(2, columns=1, rows=1)[0])
    squares = [Square(20, 20, 100), Square(20, 20, 100, 12.5), Square(20, 20, 100, 12.5)]
    found = [decode(data, "a.png", 24, LIMITS, square) for square in squares]
    hashes = [d.content_hash for d in found if isinstance(d, Decoded)]
    assert len(hashes) == 3
    assert hashes[0] != hashes[1] == hashes[2]


# Quality


def test_blur_takes_away_sharpness_but_light_and_contrast_do_not() -> None:
    drawn = drawn_face(SEED, 4, 112)
    assert drawn is not None
    face = drawn[0]
    soft = face.filter(ImageFilter.GaussianBlur(4))
    faint = Image.fromarray((np.asarray(face) // 2 + 60).astype(np.uint8))
    assert judged(Face((0, 0, 112, 112)), "given", sharpness(soft)).flags == ("blurred",)
    assert judged(Face((0, 0, 112, 112)), "given", sharpness(face)).flags == ()
    assert sharpness(faint) == pytest.approx(sharpness(face), rel=0.1)
    assert sharpness(Image.new("RGB", (50, 50), "red")) == 0


def test_a_face_of_few_pixels_is_small() -> None:
    assert judged(Face((0, 0, 39, 30)), "given", 1.0).small
    assert not judged(Face((0, 0, 30, 40)), "given", 1.0).small


def test_the_nose_tells_where_the_head_looks() -> None:
    def face(nose: float) -> Face:
        return Face((0, 0, 20, 20), landmarks=points(0, 0, 10, 0, nose, 6, 2, 10, 8, 10))

    assert is_turned(face(5)) is False
    assert is_turned(face(8.5)) is True
    assert is_turned(face(1.9)) is True
    assert is_turned(Face((0, 0, 20, 20))) is None
    assert judged(Face((0, 0, 50, 50)), "cascade", 1.0).turned is None
    # ► the same straight face, tilted by 45 degrees
    assert is_turned(Face((0, 0, 9, 9), landmarks=points(0, 0, 7, 7, -0.5, 7.5, 0, 9, 4, 9))) is False


# Detectors


def test_overlap_of_boxes() -> None:
    assert iou((0, 0, 10, 10), (5, 0, 10, 10)) == pytest.approx(50 / 150)
    assert iou((0, 0, 10, 10), (20, 0, 10, 10)) == 0


@pytest.mark.parametrize("name", ["cascade", "cascade+profile"])
def test_the_cascade_finds_drawn_faces_where_they_are(name: str) -> None:
    detector = DetectorChoice(name).open()  # type: ignore[arg-type]
    photo, places = group_photo(1)
    found = find_faces(detector, np.asarray(photo), 16)
    best = [max(iou(place, face.box) for face in found) for place in places]
    assert sum(value >= 0.5 for value in best) >= len(places) - 1
    assert found == sorted(found, key=lambda face: face.box)
    assert detector.name == name


def test_the_cascade_finds_nothing_where_nothing_is() -> None:
    detector = DetectorChoice("cascade").open()
    for image in (drawing(1), drawing(2), picture(3, side=150), Image.new("RGB", (300, 200), "white")):
        assert find_faces(detector, np.asarray(image), 16) == []


def test_a_face_that_fills_the_picture_is_found_and_its_box_stays_inside() -> None:
    drawn = drawn_face(SEED, 4, 112)
    assert drawn is not None
    for image in (drawn[0].crop((14, 14, 98, 98)), drawn[0].resize((48, 48), Image.Resampling.LANCZOS)):
        found = find_faces(DetectorChoice("cascade").open(), np.asarray(image), 16)
        assert len(found) == 1
        left, top, width, height = found[0].box
        assert min(left, top) >= 0
        assert max(left + width, top + height) <= image.width


class _Told:
    """A detector that says what it is told, in pixels of the working image."""

    name = "told"

    def __init__(self, *faces: Face) -> None:
        self.faces = list(faces)

    def detect(self, image: np.ndarray, smallest: int = 1) -> list[Face]:
        return self.faces


def test_of_overlapping_boxes_the_surest_stays() -> None:
    sure, less, apart = Face((60, 60, 50, 50), 0.9), Face((64, 62, 50, 50), 0.8), Face((150, 60, 50, 50), 0.2)
    found = find_faces(_Told(less, apart, sure), np.zeros((200, 200, 3), np.uint8), 16)
    assert [face.score for face in found] == [0.9, 0.2]


@settings(deadline=None, max_examples=30)
@given(data=st.data())
def test_whatever_a_detector_says_boxes_lie_in_the_image(data: st.DataObject) -> None:
    height, width = data.draw(st.integers(20, 300)), data.draw(st.integers(20, 300))
    number = st.floats(-400, 700)
    boxes = data.draw(st.lists(st.tuples(number, number, st.floats(1, 700), st.floats(1, 700)), max_size=8))
    found = find_faces(_Told(*(Face(box, 0.5) for box in boxes)), np.zeros((height, width, 3), np.uint8), 16)
    for face in found:
        left, top, w, h = face.box
        assert left >= 0
        assert top >= 0
        assert left + w <= width + 0.2
        assert top + h <= height + 0.2
        assert min(w, h) >= 15.9
        assert Square.around(face, 0.15).refusal(width, height, 16, 10**6) is None


def test_a_photo_has_a_most_of_faces() -> None:
    boxes = [Face((48 + 30 * (k % 20), 48 + 30 * (k // 20), 25, 25), 1 - k / 1000) for k in range(MAX_FACES + 20)]
    assert len(find_faces(_Told(*boxes), np.zeros((600, 620, 3), np.uint8), 8)) == MAX_FACES


def test_yunet_reads_boxes_scores_and_landmarks_in_rgb(tmp_path: Path) -> None:
    detector = DetectorChoice("yunet", write_tiny_yunet(tmp_path / "tiny.onnx")).open()
    image = np.full((300, 410, 3), 40, np.uint8)
    image[64:96, 128:160] = (255, 0, 0)
    image[192:224, 256:288] = (0, 0, 255)  # blue: found if channels were swapped
    faces = detector.detect(image)
    assert len(faces) == 1
    assert faces[0].box == pytest.approx((112, 48, 64, 64))
    assert faces[0].score == pytest.approx(1.0)
    assert faces[0].landmarks == ((128, 68), (160, 68 + EYES_DOWN), (144, 80), (134, 96), (154, 96))
    assert Square.around(faces[0], 0.25) == Square(96, 32, 96, 7.1)  # ► atan(4 / 32)
    assert detector.detect(image, smallest=80) == []
    assert detector.detect(np.zeros((77, 33, 3), np.uint8)) == [], "of any size"


def test_landmarks_come_back_to_the_pixels_of_the_image(tmp_path: Path) -> None:
    detector = DetectorChoice("yunet", write_tiny_yunet(tmp_path / "tiny.onnx")).open()
    image = np.full((96, 96, 3), 40, np.uint8)  # doubled to 192 pixels, with a border of 48
    image[24:40, 24:40] = (255, 0, 0)  # 48..80 of the working image and 48 of border: a cell of its own
    faces = find_faces(detector, image, 16)
    assert [face.box for face in faces] == [(16.0, 16.0, 32.0, 32.0)]
    assert faces[0].landmarks is not None
    assert faces[0].landmarks[2] == pytest.approx((32, 32))


def test_a_missing_or_broken_model_is_told_with_the_remedy(tmp_path: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no model")
    for path in (None, tmp_path / "nowhere.onnx", broken):
        with pytest.raises(InputError, match=r"detector_model, or set imports.detector to cascade"):
            DetectorChoice("yunet", path).open()


# The file of the model


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, list[str]]]:
    """Serve a small file; yield its URL and the paths asked for."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            if self.path == "/moved":
                self.send_response(302)
                self.send_header("Location", "/model")
                self.end_headers()
                return
            self.send_response(200 if self.path == "/model" else 404)
            self.end_headers()
            self.wfile.write(b"weights" if self.path == "/model" else b"")

        def log_message(self, *args: object) -> None:
            pass

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()
        thread.join()


def wanted(url: str, data: bytes = b"weights") -> ImportSettings:
    return ImportSettings(detector="yunet", detector_url=url, detector_sha256=hashlib.sha256(data).hexdigest())


def test_the_model_is_downloaded_once(served: tuple[str, list[str]], tmp_path: Path) -> None:
    url, asked = served
    first = model_file(wanted(f"{url}/moved"))
    assert first.read_bytes() == b"weights"
    assert first.is_relative_to(tmp_path / "home")
    assert model_file(wanted(f"{url}/moved")) == first
    assert asked == ["/moved", "/model"]
    first.write_bytes(b"damaged")
    assert model_file(wanted(f"{url}/model")).read_bytes() == b"weights", "a kept file is checked each time"
    assert sorted(p.name for p in first.parent.iterdir()) == [first.name]


def test_another_file_than_the_model_is_refused(served: tuple[str, list[str]], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"SHA-256.*set imports.detector to cascade"):
        model_file(wanted(f"{served[0]}/model", b"other"))
    assert not list((tmp_path / "home").rglob("*.onnx"))


def test_without_a_connection_the_remedy_is_told(served: tuple[str, list[str]]) -> None:
    for url in (f"{served[0]}/nothing", "http://127.0.0.1:9/model", "nonsense"):
        with pytest.raises(InputError, match=r"cannot be downloaded.*name the file as imports.detector_model"):
            model_file(wanted(url))


def test_a_model_named_by_its_path_is_never_downloaded(served: tuple[str, list[str]], tmp_path: Path) -> None:
    settings = ImportSettings(detector="yunet", detector_model=str(tmp_path / "own.onnx"), detector_url=served[0])
    assert model_file(settings) == tmp_path / "own.onnx"
    assert served[1] == []

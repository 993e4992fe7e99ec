"""How many faces the detectors find, how many of their boxes are wrong, and how fast they are.

    python -m tests.benchmarks.bench_faces [--ferplus ../shared/data/ferplus.zip] [--images 400] [--photos 20]
                                           [--yunet face_detection_yunet_2023mar.onnx]

Prints one JSON object for each detector: the cascades, and YuNet where its ONNX file is named.

* `ferplus`: validation images (48 pixels, one face each, enlarged by the search itself). A face is found when the
  middle of a box lies in the middle half of the image, across and down; every other box is wrong.
* `group_photos`: photos of six demo faces of 112 to 180 pixels pasted at known places. A face is found when a box
  overlaps its place (a square from brows to chin) with an IoU of at least 0.5; every other box is wrong.
* `faceless`: drawings, noise and blank images; every box is wrong.

Speeds are of one thread, by processor time, decoding and cutting left out.
"""

import argparse
import io
import json
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from annotator.ingest.faces.detector import DetectorChoice, FaceDetector, find_faces, iou
from annotator.records import Face
from tests.ingest.builders import picture
from tests.ingest.group_photos import Box, drawing, group_photo

MIN_SIDE = 16


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ferplus", type=Path, default=None, help="the FER+ archive")
    parser.add_argument("--images", type=int, default=400, help="how many of its validation images")
    parser.add_argument("--photos", type=int, default=20, help="how many group photos to paste")
    parser.add_argument("--yunet", type=Path, default=None, help="the ONNX file of YuNet")
    options = parser.parse_args()
    choices = [DetectorChoice("cascade"), DetectorChoice("cascade+profile")]
    if options.yunet is not None:
        choices.append(DetectorChoice("yunet", options.yunet))
    faces = validation_faces(options.ferplus, options.images) if options.ferplus is not None else []
    photos = [group_photo(seed) for seed in range(100, 100 + options.photos)]
    faceless = [drawing(k) for k in range(10)] + [picture(k, side=160) for k in range(10)]
    faceless += [Image.new("RGB", (200, 160), (k * 60, k * 60, k * 60)) for k in range(5)]
    figures = {}
    for choice in choices:
        detector = choice.open()
        figures[choice.name] = {
            "ferplus": measure(detector, [(face, [None]) for face in faces]),
            "group_photos": measure(detector, photos),
            "faceless": measure(detector, [(image, []) for image in faceless]),
        }
    print(json.dumps(figures, indent=2))


def validation_faces(archive: Path, count: int) -> list[Image.Image]:
    """Return `count` validation images of FER+, drawn with a fixed seed."""
    with zipfile.ZipFile(archive) as files:
        names = sorted(n for n in files.namelist() if "FER2013Valid" in n and n.endswith(".png"))
        chosen = np.random.default_rng(0).choice(len(names), min(count, len(names)), replace=False)
        return [Image.open(io.BytesIO(files.read(names[k]))).convert("RGB") for k in sorted(chosen.tolist())]


def measure(detector: FaceDetector, images: Sequence[tuple[Image.Image, Sequence[Box | None]]]) -> dict[str, object]:
    """Search images whose faces are at known places; None is a face somewhere in the middle."""
    if not images:
        return {}
    there = found = boxes = right = 0
    seconds = 0.0
    for image, places in images:
        pixels = np.asarray(image)
        began = time.process_time()
        faces = find_faces(detector, pixels, MIN_SIDE)
        seconds += time.process_time() - began
        hits = [[_hit(face, place, image.size) for face in faces] for place in places]
        there, boxes = there + len(places), boxes + len(faces)
        found += sum(any(of_place) for of_place in hits)
        right += sum(any(column) for column in zip(*hits, strict=True))
    return {
        "images": len(images),
        "faces": there,
        "recall": round(found / there, 3) if there else None,
        "precision": round(right / boxes, 3) if boxes else None,
        "wrong_boxes": boxes - right,
        "ms_per_image": round(seconds / len(images) * 1e3, 1),
        "images_per_s": round(len(images) / seconds, 1),
        "faces_per_s": round(boxes / seconds, 1),
    }


def _hit(face: Face, place: Box | None, size: tuple[int, int]) -> bool:
    if place is not None:
        return iou(face.box, place) >= 0.5
    left, top, width, height = face.box
    return all(0.25 <= at / side <= 0.75 for at, side in ((left + width / 2, size[0]), (top + height / 2, size[1])))


if __name__ == "__main__":
    main()

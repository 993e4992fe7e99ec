"""Drawn faces: the same from the same seed, different across classes, long-tailed, and with an honest crowd."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.preprocessing import StandardScaler

from annotator.ingest import demo_faces, expressions
from annotator.ingest.demo_faces import generate, plurality, render
from annotator.ingest.expressions import BLOCK_SIZE, UNITS, Mood, crowd_shares, draw_mood, expression_at
from annotator.ingest.samples import read_csv
from annotator.ingest.sources import open_files
from annotator.taxonomy import FERPLUS


def book_mood(slug: str, second: str | None = None, blend: float = 0.0, intensity: float = 1.0) -> Mood:
    return Mood(slug, second or slug, blend, intensity, np.zeros(len(UNITS)))


def test_a_face_follows_from_seed_and_index_alone(tmp_path: Path) -> None:
    few = generate(tmp_path / "few", 6, seed=3)
    more = generate(tmp_path / "more", 9, seed=3)
    other = generate(tmp_path / "other", 6, seed=4)
    for index in range(6):
        name = f"images/face{index:06d}.jpg"
        assert (few.parent / name).read_bytes() == (more.parent / name).read_bytes()
        assert (few.parent / name).read_bytes() != (other.parent / name).read_bytes()
    assert more.read_text().startswith(few.read_text())


def test_processes_draw_the_same_faces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = generate(tmp_path / "alone", 20)
    monkeypatch.setattr(demo_faces, "_WORTH_PROCESSES", 1)
    together = generate(tmp_path / "together", 20)
    assert alone.read_text() == together.read_text()
    for path in sorted((alone.parent / "images").iterdir()):
        assert path.read_bytes() == (together.parent / "images" / path.name).read_bytes()


def test_faces_are_colour_pictures_of_the_size_asked_for() -> None:
    face = render(0, 5, size=96)
    pixels = np.asarray(face.image)
    assert pixels.shape == (96, 96, 3)
    assert pixels.std() > 10
    assert np.abs(pixels[..., 0].astype(int) - pixels[..., 2]).mean() > 2
    assert sum(face.votes.values()) == expressions.NUM_VOTES
    with pytest.raises(ValueError, match="at least 96"):
        render(0, 0, size=64)


def test_classes_are_long_tailed_with_a_floor() -> None:
    counts = Counter(expression_at(1, index) for index in range(10 * BLOCK_SIZE))
    assert set(counts) == set(FERPLUS.slugs)
    assert counts["neutral"] == 140
    assert min(counts.values()) == counts["contempt"] == 20
    assert all({expression_at(1, b * BLOCK_SIZE + k) for k in range(BLOCK_SIZE)} == set(counts) for b in range(3))


def test_expressions_differ_in_their_movements_more_between_classes_than_within() -> None:
    rng = np.random.default_rng(0)
    drawn = {}
    for slug in FERPLUS.slugs:
        moods = [draw_mood(rng, slug) for _ in range(60)]
        drawn[slug] = np.array([m.units for m in moods if m.blend == 0])
    centers = {slug: units.mean(axis=0) for slug, units in drawn.items()}
    for slug, units in drawn.items():
        own = np.linalg.norm(units - centers[slug], axis=1).mean()
        nearest = min(float(np.linalg.norm(centers[slug] - centers[o])) for o in centers if o != slug)
        assert nearest > 0.7 * own, slug


def _edges(pixels: np.ndarray) -> np.ndarray:
    """Return histograms of edge directions over a grid, normalised by cell."""
    dy, dx = np.gradient(pixels)
    strength, direction = np.hypot(dx, dy), (np.arctan2(dy, dx) % np.pi) / np.pi * 8
    cells = []
    for top in range(0, pixels.shape[0], 8):
        for left in range(0, pixels.shape[1], 8):
            part = np.s_[top : top + 8, left : left + 8]
            histogram = np.bincount(direction[part].astype(int).ravel() % 8, strength[part].ravel(), 8)
            cells.append(histogram / (np.linalg.norm(histogram) + 1))
    return np.concatenate(cells)


def test_expressions_can_be_learned_from_the_pictures_but_not_perfectly() -> None:
    features, labels = [], []
    for index in range(450):
        face = render(2, index, size=96)
        if face.expression != "unusable":
            features.append(_edges(np.asarray(face.image.convert("L").resize((64, 64)), dtype=float)))
            labels.append(face.expression)
    model = LogisticRegression(C=0.05, class_weight="balanced", max_iter=500)
    scaled = StandardScaler().fit_transform(np.array(features))
    predicted = model.fit(scaled[:320], labels[:320]).predict(scaled[320:])
    assert 0.3 < balanced_accuracy_score(labels[320:], predicted) < 0.9  # chance is 0.125


def test_the_crowd_confuses_what_people_confuse() -> None:
    slugs = list(FERPLUS.slugs)
    for named, mistaken in (("fear", "surprise"), ("disgust", "anger"), ("contempt", "neutral")):
        shares = crowd_shares(book_mood(named))
        assert shares.sum() == pytest.approx(1)
        assert slugs[int(shares.argmax())] == named
        assert slugs[int(np.argsort(shares)[-2])] == mistaken
    faint = crowd_shares(book_mood("happiness", intensity=0.4))
    assert faint[slugs.index("neutral")] > 0.4
    half = crowd_shares(book_mood("surprise", "happiness", blend=0.5))
    assert abs(half[slugs.index("surprise")] - half[slugs.index("happiness")]) < 0.1


def test_votes_follow_the_expression(faces: Path) -> None:
    agree = total = 0
    for index in range(64):
        face = render(7, index)
        if face.expression != "unusable":
            total += 1
            agree += plurality(face.votes) == face.expression
        else:
            assert plurality(face.votes) == "unusable"
    assert total > 55
    assert 0.65 < agree / total < 0.98
    rows = [row for _, row in read_csv(open_files(faces), "manifest.csv")]
    assert {row["split"] for row in rows} == {"pool", "val"}
    people: dict[str, set[str]] = {row["subject_id"]: set() for row in rows}
    for row in rows:
        people[row["subject_id"]].add(row["split"])
    assert all(len(splits) == 1 for splits in people.values())


@pytest.mark.parametrize("count", [0, -3])
def test_no_faces_is_an_error(tmp_path: Path, count: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        generate(tmp_path, count)

"""Expressions as muscle movements, and how a crowd would name them.

A drawn face is a vector of action units (numbered as in the Facial Action Coding System) in about [0, 1]. Because an
expression is a point in a continuous space, two of them can be blended and every one of them can be faint, which is
what makes the faces hard in the way real ones are.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from annotator.taxonomy import FERPLUS

UNITS = (
    "inner_brow_raise",  # 1
    "outer_brow_raise",  # 2
    "brow_lower",  # 4
    "lid_raise",  # 5
    "cheek_raise",  # 6
    "lid_tighten",  # 7
    "nose_wrinkle",  # 9
    "upper_lip_raise",  # 10
    "smile_left",  # 12, left half of the picture
    "smile_right",  # 12, right half
    "dimple_left",  # 14
    "dimple_right",  # 14
    "corner_depress",  # 15
    "chin_raise",  # 17
    "lip_stretch",  # 20
    "lip_press",  # 24
    "lips_part",  # 25
    "jaw_drop",  # 26
    "mouth_square",  # 22: lips drawn back from both rows of teeth
    "lid_droop",  # 43
    "one_brow",  # 2, one side only
    "gaze_down",  # 64
)
Units = NDArray[np.float64]
"""Strength of each movement in `UNITS`, (22,)."""

_VARIANTS: dict[str, tuple[dict[str, float], ...]] = {
    "neutral": ({"lips_part": 0.0}, {"lips_part": 0.25}, {"lid_droop": 0.15}),
    "happiness": (
        {"smile_left": 1, "smile_right": 1, "cheek_raise": 0.8, "lips_part": 0.9, "jaw_drop": 0.15},
        {"smile_left": 0.9, "smile_right": 0.9, "cheek_raise": 0.6},
        {"smile_left": 1.1, "smile_right": 1.1, "cheek_raise": 1, "lips_part": 1, "jaw_drop": 0.45},
    ),
    "surprise": (
        {"inner_brow_raise": 1, "outer_brow_raise": 1, "lid_raise": 0.9, "lips_part": 0.6, "jaw_drop": 0.9},
        {"inner_brow_raise": 0.9, "outer_brow_raise": 1, "lid_raise": 0.7, "lips_part": 0.5, "jaw_drop": 0.5},
    ),
    "sadness": (
        {"inner_brow_raise": 1, "brow_lower": 0.35, "corner_depress": 1, "chin_raise": 0.6, "lid_droop": 0.45},
        {"inner_brow_raise": 0.9, "brow_lower": 0.3, "corner_depress": 0.8, "lid_droop": 0.7, "gaze_down": 0.9},
        {"inner_brow_raise": 1.1, "corner_depress": 1.1, "chin_raise": 0.8, "lid_tighten": 0.3},
    ),
    "anger": (
        {"brow_lower": 1.1, "lid_raise": 0.4, "lid_tighten": 0.5, "lip_press": 1, "chin_raise": 0.3},
        {"brow_lower": 1.1, "lid_raise": 0.5, "lid_tighten": 0.4, "mouth_square": 1, "lips_part": 0.7, "jaw_drop": 0.3},
        {"brow_lower": 1, "lid_tighten": 0.7, "lip_press": 0.8, "corner_depress": 0.35, "nose_wrinkle": 0.15},
    ),
    "disgust": (
        {"nose_wrinkle": 1, "upper_lip_raise": 1, "brow_lower": 0.5, "lid_tighten": 0.7, "corner_depress": 0.4},
        {"nose_wrinkle": 0.9, "upper_lip_raise": 1.1, "lid_tighten": 0.8, "lips_part": 0.6, "cheek_raise": 0.4},
    ),
    "fear": (
        {"inner_brow_raise": 1, "outer_brow_raise": 0.5, "brow_lower": 0.5, "lid_raise": 1.1, "lip_stretch": 1,
         "lips_part": 0.8, "jaw_drop": 0.2},
        {"inner_brow_raise": 1.1, "outer_brow_raise": 0.3, "brow_lower": 0.4, "lid_raise": 1, "lip_stretch": 1.1,
         "lips_part": 0.5, "corner_depress": 0.3},
    ),
    "contempt": (
        {"smile_right": 0.8, "dimple_right": 1, "lid_droop": 0.25, "one_brow": 0.5},
        {"smile_right": 0.6, "dimple_right": 1.1, "lip_press": 0.3, "chin_raise": 0.2, "one_brow": 0.8},
    ),
}  # fmt: skip

_CONFUSION = {
    "neutral": {"neutral": 0.90, "sadness": 0.06, "contempt": 0.02, "anger": 0.02},
    "happiness": {"happiness": 0.95, "neutral": 0.03, "contempt": 0.02},
    "surprise": {"surprise": 0.84, "fear": 0.11, "happiness": 0.03, "neutral": 0.02},
    "sadness": {"sadness": 0.82, "neutral": 0.10, "fear": 0.04, "disgust": 0.02, "anger": 0.02},
    "anger": {"anger": 0.83, "disgust": 0.09, "neutral": 0.04, "sadness": 0.02, "contempt": 0.02},
    "disgust": {"disgust": 0.66, "anger": 0.24, "contempt": 0.05, "sadness": 0.05},
    "fear": {"fear": 0.66, "surprise": 0.26, "sadness": 0.08},
    "contempt": {"contempt": 0.62, "neutral": 0.20, "happiness": 0.12, "disgust": 0.06},
}
UNUSABLE = "unusable"
NUM_VOTES = 10
_BLOCK = {
    "neutral": 14, "happiness": 11, "surprise": 7, "sadness": 6, "anger": 5, "fear": 3, "disgust": 2, "contempt": 2,
}  # fmt: skip
BLOCK_SIZE = sum(_BLOCK.values())
"""Every block of this many consecutive faces holds the same long-tailed class counts."""
_NEAR = {
    "neutral": ("sadness", "contempt", "happiness"),
    "happiness": ("surprise", "contempt", "neutral"),
    "surprise": ("fear", "happiness", "anger"),
    "sadness": ("fear", "anger", "disgust"),
    "anger": ("disgust", "sadness", "surprise"),
    "disgust": ("anger", "contempt", "sadness"),
    "fear": ("surprise", "sadness", "disgust"),
    "contempt": ("happiness", "disgust", "neutral"),
}


@dataclass(frozen=True, slots=True)
class Mood:
    """What a face expresses: `blend` in [0, 0.5] is the share of `second`, `intensity` in about [0.4, 1.15]."""

    expression: str
    second: str
    blend: float
    intensity: float
    units: Units


def expression_at(seed: int, index: int) -> str:
    """Return the class of face `index`: a shuffled block of fixed long-tailed counts."""
    block, position = divmod(index, BLOCK_SIZE)
    deck = [slug for slug, count in _BLOCK.items() for _ in range(count)]
    order = np.random.default_rng([seed, 11, block]).permutation(BLOCK_SIZE)
    return deck[int(order[position])]


def draw_mood(rng: np.random.Generator, expression: str) -> Mood:
    """Draw how strongly, how purely and in which variant `expression` is shown."""
    near = _NEAR[expression]
    second = near[int(rng.choice(len(near), p=(0.6, 0.25, 0.15)))]
    blend = float(rng.uniform(0.15, 0.5)) if rng.random() < 0.3 else 0.0
    intensity = float(0.5 + 0.6 * rng.beta(2.2, 1.6))
    mixed = (1 - blend) * _variant(rng, expression) + blend * _variant(rng, second)
    units = mixed * intensity * (1 + 0.3 * blend)
    return Mood(expression, second if blend else expression, blend, intensity, np.clip(units, 0.0, 1.3))


def crowd_shares(mood: Mood) -> NDArray[np.float64]:
    """Return the probability that one person names each FER+ class for `mood`, (8,), summing to one."""
    seen = float(np.clip(1.25 * mood.intensity, 0.0, 0.97))
    shares = dict.fromkeys(FERPLUS.slugs, 0.0)
    for slug, part in ((mood.expression, 1 - mood.blend), (mood.second, mood.blend)):
        for named, probability in _CONFUSION[slug].items():
            shares[named] += part * probability * seen
    shares["neutral"] += 1 - seen
    values = np.array([shares[slug] for slug in FERPLUS.slugs])
    return np.asarray(values / values.sum())


def draw_votes(rng: np.random.Generator, mood: Mood | None) -> dict[str, int]:
    """Draw ten people's answers; `mood` None is a picture that shows no usable face. Zero counts are left out."""
    usable = 0.1 if mood is None else 0.988
    shares = np.full(len(FERPLUS.slugs), 1 / len(FERPLUS.slugs)) if mood is None else crowd_shares(mood)
    counts = rng.multinomial(NUM_VOTES, np.append(shares * usable, 1 - usable))
    return {slug: int(n) for slug, n in zip((*FERPLUS.slugs, UNUSABLE), counts, strict=True) if n}


def _variant(rng: np.random.Generator, expression: str) -> Units:
    """Draw one way of showing `expression`, with every movement a little stronger or weaker than the book has it."""
    variants = _VARIANTS[expression]
    book = variants[int(rng.integers(len(variants)))]
    units = np.array([book.get(name, 0.0) for name in UNITS])
    if expression == "contempt" and rng.random() < 0.5:
        for left, right in (("smile_left", "smile_right"), ("dimple_left", "dimple_right")):
            a, b = UNITS.index(left), UNITS.index(right)
            units[[a, b]] = units[[b, a]]
    stray = np.abs(rng.normal(0, 0.06, len(UNITS)))
    return np.asarray(units * np.clip(rng.normal(1, 0.2, len(UNITS)), 0.4, 1.5) + stray)

"""Who is drawn and how the head is turned: the person, the scene, and the projection from face to picture."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]
"""Points of the face plane, (n, 2): x to the right and y down, the head about [-0.8, 0.8] by [-1, 1]."""
Color = tuple[int, int, int]

_SKINS: tuple[Color, ...] = (
    (250, 221, 200), (240, 200, 172), (229, 184, 150), (209, 158, 120),
    (181, 128, 90), (150, 100, 68), (118, 76, 52), (88, 56, 40),
)  # fmt: skip
_HAIRS: tuple[Color, ...] = ((28, 22, 20), (58, 38, 26), (98, 62, 36), (150, 104, 58), (206, 170, 110), (128, 126, 124))
_IRISES: tuple[Color, ...] = ((66, 42, 26), (96, 64, 36), (70, 96, 120), (84, 108, 76))


@dataclass(frozen=True, slots=True)
class Person:
    """The lasting looks of one person; lengths are in face units, the rest are factors around one."""

    skin: Color
    hair: Color
    iris: Color
    width: float
    jaw: float
    eye_size: float
    eye_gap: float
    brow_weight: float
    brow_rest: float
    nose_length: float
    nose_width: float
    mouth_width: float
    mouth_rest: float
    lip_weight: float
    age: float
    hair_style: int
    beard: int
    glasses: bool


@dataclass(frozen=True, slots=True)
class Scene:
    """How the picture was taken; angles in radians, lengths as shares of the picture's side."""

    yaw: float
    pitch: float
    roll: float
    scale: float
    x: float
    y: float
    gaze: float
    light: tuple[float, float]
    light_strength: float
    brightness: float
    tint: tuple[float, float, float]
    background: tuple[Color, Color]
    shirt: Color
    blur: float
    noise: float


def draw_person(rng: np.random.Generator) -> Person:
    """Draw a person."""
    base = np.array(_SKINS[int(rng.integers(len(_SKINS)))]) + rng.normal(0, 6, 3)
    dark = base.mean() < 150
    hairs = _HAIRS[:2] if dark else _HAIRS
    return Person(
        skin=_color(base),
        hair=_color(np.array(hairs[int(rng.integers(len(hairs)))]) + rng.normal(0, 8, 3)),
        iris=_IRISES[0] if dark else _IRISES[int(rng.integers(len(_IRISES)))],
        width=float(rng.uniform(0.70, 0.82)),
        jaw=float(rng.uniform(0.62, 0.92)),
        eye_size=float(rng.uniform(0.88, 1.14)),
        eye_gap=float(rng.uniform(0.31, 0.37)),
        brow_weight=float(rng.uniform(0.65, 1.35)),
        brow_rest=float(rng.normal(0, 0.018)),
        nose_length=float(rng.uniform(0.88, 1.12)),
        nose_width=float(rng.uniform(0.85, 1.25)),
        mouth_width=float(rng.uniform(0.88, 1.12)),
        mouth_rest=float(rng.normal(0, 0.012)),
        lip_weight=float(rng.uniform(0.75, 1.3)),
        age=float(rng.beta(1.5, 2.5)),
        hair_style=int(rng.integers(5)),
        beard=int(rng.choice(3, p=(0.8, 0.1, 0.1))),
        glasses=bool(rng.random() < 0.1),
    )


def draw_scene(rng: np.random.Generator) -> Scene:
    """Draw how one picture was taken."""
    low, high = _color(rng.uniform(30, 220, 3)), _color(rng.uniform(30, 220, 3))
    return Scene(
        yaw=float(np.clip(rng.normal(0, 0.22), -0.5, 0.5)),
        pitch=float(np.clip(rng.normal(0, 0.12), -0.3, 0.3)),
        roll=float(np.clip(rng.normal(0, 0.10), -0.3, 0.3)),
        scale=float(rng.uniform(0.40, 0.47)),
        x=float(0.5 + rng.normal(0, 0.02)),
        y=float(0.52 + rng.normal(0, 0.02)),
        gaze=float(np.clip(rng.normal(0, 0.35), -1, 1)),
        light=(float(rng.uniform(-0.9, 0.9)), float(rng.uniform(-0.9, 0.3))),
        light_strength=float(rng.uniform(0.15, 0.75)),
        brightness=float(rng.uniform(0.72, 1.12)),
        tint=(float(rng.normal(1, 0.05)), 1.0, float(rng.normal(1, 0.06))),
        background=(low, high),
        shirt=_color(rng.uniform(20, 230, 3)),
        blur=float(max(0.0, rng.normal(0.25, 0.5))),
        noise=float(rng.uniform(1.5, 9)),
    )


class Head:
    """The projection of face points to pixels: an ellipsoid turned by yaw, pitch and roll."""

    def __init__(self, scene: Scene, side: int) -> None:
        self.unit = scene.scale * side
        self._origin = np.array([scene.x, scene.y]) * side
        self._yaw = (np.cos(scene.yaw), np.sin(scene.yaw))
        self._pitch = (np.cos(scene.pitch), np.sin(scene.pitch))
        self._roll = np.array([[np.cos(scene.roll), -np.sin(scene.roll)], [np.sin(scene.roll), np.cos(scene.roll)]])

    def on_face(self, points: Points, lift: float = 0.0) -> list[float]:
        """Project points on the front of the face to [x, y, x, y, ...]; `lift` raises them off it (a nose)."""
        x, y = points[:, 0], points[:, 1]
        z = 0.75 * np.sqrt(np.clip(1 - (x / 1.0) ** 2 - (y / 1.35) ** 2, 0.02, None)) + lift - 0.25
        turned = x * self._yaw[0] + z * self._yaw[1]
        tilted = y * self._pitch[0] - z * self._pitch[1]
        return self.flat(np.stack([turned, tilted], axis=1))

    def flat(self, points: Points) -> list[float]:
        """Project points of the outline, which only rolls, to [x, y, x, y, ...]."""
        placed: list[float] = ((points @ self._roll.T) * self.unit + self._origin).ravel().tolist()
        return placed

    def face_coordinates(self, side: int) -> tuple[Points, Points]:
        """Return face x and y of every pixel of a picture of `side`, each (side, side)."""
        grid = (np.arange(side) + 0.5) / side
        factor = side / self.unit
        dx = (grid[None, :] - self._origin[0] / side) * factor
        dy = (grid[:, None] - self._origin[1] / side) * factor
        c, s = self._roll[0, 0], self._roll[1, 0]
        return dx * c + dy * s, -dx * s + dy * c


def mix(a: Color, b: Color, share: float) -> Color:
    """Return `a` moved towards `b` by `share` in [0, 1]."""
    t = min(max(share, 0.0), 1.0)
    return (round(a[0] + (b[0] - a[0]) * t), round(a[1] + (b[1] - a[1]) * t), round(a[2] + (b[2] - a[2]) * t))


def scaled(color: Color, factor: float) -> Color:
    """Return `color` brighter or darker by `factor`."""
    return _color(np.array(color) * factor)


def _color(values: NDArray[np.float64]) -> Color:
    r, g, b = (round(v) for v in np.clip(values, 0, 255).tolist())
    return (r, g, b)

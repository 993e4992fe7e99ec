"""Draw one face from its person, its scene and its action units, feature by feature."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from annotator.ingest.expressions import UNITS, Units
from annotator.ingest.face_model import Color, Head, Person, Points, Scene, mix, scaled

OVERSAMPLING = 3
_T = np.linspace(-1.0, 1.0, 15)


class FaceDrawing:
    """A picture in the making: call `finished` once every part is drawn."""

    def __init__(self, person: Person, scene: Scene, units: Units, size: int) -> None:
        self.person, self.scene, self.size = person, scene, size
        self.side = size * OVERSAMPLING
        self.head = Head(scene, self.side)
        self.image = Image.new("RGB", (self.side, self.side), scene.background[0])
        self.pen = ImageDraw.Draw(self.image)
        self.unit = dict(zip(UNITS, units.tolist(), strict=True))
        self.has_head = True

    def draw(self) -> None:
        """Draw everything, back to front."""
        self._background()
        self._hair_behind()
        self._skull()
        self._wrinkles()
        self._beard()
        for side in (-1, 1):
            self._eye(side)
            self._brow(side)
        self._nose()
        self._mouth()
        self._hair_front()
        if self.person.glasses:
            self._glasses()

    def finished(self, rng: np.random.Generator) -> Image.Image:
        """Light, blur and add noise; return the picture at its final size."""
        small = self.image.reduce(OVERSAMPLING)
        if self.scene.blur > 0.3:
            small = small.filter(ImageFilter.GaussianBlur(self.scene.blur * self.size / 112))
        pixels = np.asarray(small, dtype=np.float32)
        light = self._light()[:, :, None] if self.has_head else np.float32(self.scene.brightness)
        light = light * np.array(self.scene.tint, dtype=np.float32)
        grain = rng.standard_normal((self.size, self.size, 1), dtype=np.float32)
        color_grain = rng.standard_normal((self.size, self.size, 3), dtype=np.float32)
        noisy = pixels * light + self.scene.noise * (0.8 * grain + 0.4 * color_grain)
        return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))

    def _light(self) -> NDArray[np.float32]:
        """Return the brightness of every pixel, (size, size): the head is lit as an ellipsoid."""
        x, y = Head(self.scene, self.size).face_coordinates(self.size)
        nx, ny = x / (self.person.width * 1.15), y / 1.2
        radius = np.sqrt(nx**2 + ny**2)
        over = np.maximum(radius, 1.0)
        nx, ny = nx / over, ny / over
        nz = np.sqrt(np.clip(1 - nx**2 - ny**2, 0, None))
        lx, ly = self.scene.light
        lz = np.sqrt(max(0.1, 1 - 0.6 * (lx**2 + ly**2)))
        lit = np.clip((nx * lx + ny * ly + nz * lz) / np.sqrt(lx**2 + ly**2 + lz**2), 0, 1)
        strength = self.scene.light_strength
        shade = self.scene.brightness * (1 - strength + strength * (0.25 + 0.85 * lit))
        return np.asarray(shade, dtype=np.float32)

    def _on(self, points: Points, color: Color, lift: float = 0.0) -> None:
        self.pen.polygon(self.head.on_face(points, lift), fill=color)

    def _stroke(self, points: Points, color: Color, width: float, lift: float = 0.0) -> None:
        pixels = max(1, round(width * self.head.unit))
        self.pen.line(self.head.on_face(points, lift), fill=color, width=pixels, joint="curve")

    def _background(self) -> None:
        high = self.scene.background[1]
        ramp = Image.linear_gradient("L").resize((self.side, self.side))
        if self.scene.gaze > 0:
            ramp = ramp.transpose(Image.Transpose.ROTATE_90)
        self.image.paste(Image.new("RGB", (self.side, self.side), high), (0, 0), ramp)
        neck = scaled(self.person.skin, 0.78)
        self.pen.polygon(self.head.flat(_box(-0.36, 0.6, 0.36, 1.5)), fill=neck)
        shirt = np.array([[-1.6, 2.2], [-1.25, 1.4], [-0.4, 1.18], [0, 1.4], [0.4, 1.18], [1.25, 1.4], [1.6, 2.2]])
        self.pen.polygon(self.head.flat(shirt), fill=self.scene.shirt)

    def _outline(self, grow: float = 1.0) -> Points:
        angle = np.linspace(0, 2 * np.pi, 60, endpoint=False)
        x, y = np.cos(angle), np.sin(angle)
        # The jaw widens the lower half: a superellipse whose exponent grows with the jaw factor.
        fuller = np.where(y > 0, np.abs(x) ** (1.0 / (0.6 + 0.7 * self.person.jaw)), np.abs(x))
        drop = 0.10 * self.unit["jaw_drop"]
        down = np.where(y > 0, y * (1.0 + drop), y * 1.02)
        return np.stack([np.sign(x) * fuller * self.person.width * grow, down * grow], axis=1)

    def _skull(self) -> None:
        for side in (-1, 1):
            ear = _ellipse(side * self.person.width * 1.0, 0.0, 0.10, 0.20)
            self.pen.polygon(self.head.flat(ear), fill=scaled(self.person.skin, 0.86))
        self.pen.polygon(self.head.flat(self._outline(1.012)), fill=scaled(self.person.skin, 0.80))
        self.pen.polygon(self.head.flat(self._outline()), fill=self.person.skin)
        blush = mix(self.person.skin, (205, 90, 80), 0.10 + 0.06 * self.unit["cheek_raise"])
        for side in (-1, 1):
            raised = 0.06 * (self.unit["cheek_raise"] + self.unit["nose_wrinkle"])
            self._on(_ellipse(side * 0.42, 0.27 - raised, 0.19, 0.14), blush)

    def _line_color(self, strength: float) -> Color:
        return mix(self.person.skin, scaled(self.person.skin, 0.48), strength)

    def _wrinkles(self) -> None:
        unit, age = self.unit, 0.25 + 0.75 * self.person.age
        both = min(unit["inner_brow_raise"], 1.2)
        raised = both * (0.5 + 0.5 * min(unit["outer_brow_raise"], 1)) * age
        for level in (-0.66, -0.57):
            if raised > 0.15:
                wide = 0.42 if unit["outer_brow_raise"] > 0.4 else 0.2
                arch = 0.02 * _T**2 - 0.03 * (unit["brow_lower"] > 0.3)
                self._stroke(np.stack([wide * _T, level + arch], axis=1), self._line_color(0.55 * raised), 0.022)
        frown = unit["brow_lower"] * (0.45 + 0.55 * age)
        if frown > 0.2:
            for side in (-1, 1):
                self._stroke(np.array([[0.055 * side, -0.42], [0.045 * side, -0.26]]), self._line_color(frown), 0.026)
        if unit["nose_wrinkle"] > 0.2:
            for k in range(3):
                y = -0.16 + 0.075 * k
                line = np.stack([(0.06 + 0.02 * k) * _T, y + 0.03 * (1 - _T**2) - 0.02], axis=1)
                self._stroke(line, self._line_color(0.85 * unit["nose_wrinkle"]), 0.022, 0.1)
        self._cheek_folds(age)
        if unit["chin_raise"] > 0.25:
            chin = np.stack([0.15 * _T, 0.80 + 0.03 * _T**2], axis=1)
            self._stroke(chin, self._line_color(0.6 * unit["chin_raise"]), 0.024)

    def _cheek_folds(self, age: float) -> None:
        unit = self.unit
        for side, name in ((-1, "left"), (1, "right")):
            smile = unit[f"smile_{name}"]
            lift = max(unit["nose_wrinkle"], unit["upper_lip_raise"], 0.9 * unit["mouth_square"])
            fold = max(0.75 * smile, 0.95 * lift, 0.35 * age, 0.5 * unit["lip_stretch"])
            out = 0.30 + 0.10 * smile + 0.05 * unit["lip_stretch"]
            path = _through((0.165, 0.16 - 0.04 * lift), (0.26 + 0.07 * smile, 0.32), (out, 0.50 - 0.06 * smile))
            self._stroke(path * [side, 1], self._line_color(0.85 * fold), 0.024)
            crow = unit["cheek_raise"] * (0.5 + 0.5 * age)
            if crow > 0.3:
                for slope in (-0.05, 0.0, 0.05):
                    start = np.array([side * 0.53, -0.10 + slope])
                    end = start + np.array([side * 0.09, slope])
                    self._stroke(np.stack([start, end]), self._line_color(0.6 * crow), 0.016)
                pouch = _through((0.20, 0.04), (0.34, 0.075), (0.48, 0.02))
                self._stroke(pouch * [side, 1], self._line_color(0.55 * crow), 0.018)

    def _beard(self) -> None:
        if self.person.beard == 0:
            return
        color = mix(self.person.skin, self.person.hair, 0.45)
        if self.person.beard == 1:
            outline = self._outline(0.985)
            lower = outline[outline[:, 1] > 0.38]
            self.pen.polygon(self.head.flat(lower), fill=color)
        self._on(np.array([[-0.24, 0.40], [0.0, 0.30], [0.24, 0.40], [0.2, 0.46], [-0.2, 0.46]]), color)

    def _eye(self, side: int) -> None:
        unit, person = self.unit, self.person
        opening = 1 + 0.75 * unit["lid_raise"] - 0.30 * unit["lid_tighten"] - 0.38 * unit["cheek_raise"]
        opening -= 0.55 * unit["lid_droop"] + 0.25 * unit["nose_wrinkle"]
        opening = max(0.12, opening) * 0.085 * person.eye_size
        pushed = 0.035 * max(unit["lid_tighten"], unit["cheek_raise"], 0.8 * unit["nose_wrinkle"])
        x = side * person.eye_gap
        wide = 0.155 * person.eye_size
        sad = 0.05 * max(0.0, min(1.0, unit["inner_brow_raise"] - unit["lid_raise"])) * (1 - unit["jaw_drop"])
        curve = 1 - np.abs(_T) ** 2.2
        tilt = -side * sad * _T * -1.0
        upper = np.stack([x + wide * _T, -0.10 - 1.15 * opening * curve + tilt], axis=1)
        lower = np.stack([x + wide * _T, -0.10 + (0.75 * opening - pushed) * curve + tilt], axis=1)
        lower[:, 1] = np.maximum(lower[:, 1], upper[:, 1] + 0.008)
        socket = scaled(person.skin, 0.84)
        self._on(_ellipse(x, -0.13, 0.20, 0.13), mix(person.skin, socket, 0.6))
        self._eyeball(np.concatenate([upper, lower[::-1]]), x, opening)
        lash = scaled(person.hair, 0.5)
        self._stroke(upper, lash, 0.034)
        self._stroke(lower, self._line_color(0.8), 0.016)
        crease = upper - [0, 0.045 + 0.02 * unit["lid_droop"]]
        self._stroke(crease[2:-2], self._line_color(0.65), 0.016)

    def _eyeball(self, lids: Points, x: float, opening: float) -> None:
        """Paint white, iris and pupil, clipped by the lids."""
        outline = self.head.on_face(lids)
        left, top = int(min(outline[0::2])) - 1, int(min(outline[1::2])) - 1
        right, bottom = int(max(outline[0::2])) + 2, int(max(outline[1::2])) + 2
        mask = Image.new("L", (right - left, bottom - top), 0)
        ImageDraw.Draw(mask).polygon([v - (top if k % 2 else left) for k, v in enumerate(outline)], fill=255)
        ball = Image.new("RGB", mask.size, (236, 232, 228))
        pen = ImageDraw.Draw(ball)
        down = 0.05 * self.unit["gaze_down"]
        centre = np.array([[x + 0.05 * self.scene.gaze, -0.112 + down]])
        cx, cy = self.head.on_face(centre)
        for radius, color in ((0.078, scaled(self.person.iris, 0.6)), (0.068, self.person.iris), (0.036, (12, 10, 10))):
            r = radius * self.head.unit
            pen.ellipse((cx - left - r, cy - top - r, cx - left + r, cy - top + r), fill=color)
        g = 0.016 * self.head.unit
        gx, gy = cx - left - 1.6 * g, cy - top - 1.8 * g
        pen.ellipse((gx - g, gy - g, gx + g, gy + g), fill=(250, 250, 250))
        self.image.paste(ball, (left, top), mask)

    def _brow(self, side: int) -> None:
        unit, person = self.unit, self.person
        one = unit["one_brow"] if side == 1 else 0.0
        up, out, down = unit["inner_brow_raise"], unit["outer_brow_raise"] + one, unit["brow_lower"]
        wrinkle = unit["nose_wrinkle"]
        rest = -0.335 + person.brow_rest
        inner = (0.135 - 0.045 * down, rest + 0.02 - 0.135 * up + 0.125 * down + 0.06 * wrinkle)
        middle = (0.35, rest - 0.045 - 0.06 * up - 0.105 * out + 0.075 * down + 0.03 * wrinkle)
        outer = (0.56, rest + 0.02 - 0.10 * out - 0.015 * down + 0.03 * up * (1 - min(out, 1)))
        spine = _through(inner, middle, outer) * [side, 1]
        taper = np.interp(np.linspace(0, 1, len(spine)), (0, 0.2, 0.6, 1), (0.7, 1, 0.9, 0.2))
        thick = _down(0.042 * person.brow_weight * taper)
        above, below = spine - thick, spine + thick
        self._on(np.concatenate([above, below[::-1]]), mix(person.hair, person.skin, 0.12))

    def _nose(self) -> None:
        person, unit = self.person, self.unit
        tip = 0.22 * person.nose_length - 0.045 * unit["nose_wrinkle"] - 0.02 * unit["upper_lip_raise"]
        wide = 0.135 * person.nose_width * (1 + 0.14 * unit["nose_wrinkle"] + 0.1 * unit["mouth_square"])
        dark = self._line_color(0.55)
        shaded = 1 if self.scene.light[0] < 0 else -1
        bridge = _through((0.055, -0.18), (0.065, 0.0), (wide * 0.75, tip - 0.02)) * [shaded, 1]
        self._stroke(bridge, self._line_color(0.45), 0.026, 0.12)
        self._on(_ellipse(0.0, tip - 0.04, 0.075, 0.07), mix(person.skin, (255, 255, 255), 0.14), 0.2)
        for side in (-1, 1):
            wing = _through((wide * 0.78, tip - 0.075), (wide * 1.08, tip - 0.01), (wide * 0.7, tip + 0.035))
            self._stroke(wing * [side, 1], dark, 0.024, 0.12)
            self._on(_ellipse(side * wide * 0.45, tip + 0.022, 0.034, 0.02), self._line_color(1.0), 0.14)
        self._stroke(_through((-wide * 0.4, tip + 0.03), (0, tip + 0.05), (wide * 0.4, tip + 0.03)), dark, 0.02, 0.16)

    def _lip_curves(self) -> tuple[Points, Points, Points, Points]:
        """Return the four edges of the lips, top to bottom, each (15, 2)."""
        unit, person = self.unit, self.person
        smile = np.where(_T < 0, unit["smile_left"], unit["smile_right"])
        dimple = np.where(_T < 0, unit["dimple_left"], unit["dimple_right"])
        both = 0.5 * (unit["smile_left"] + unit["smile_right"])
        drop, square, raise_ = unit["jaw_drop"], unit["mouth_square"], unit["upper_lip_raise"]
        part = min(unit["lips_part"], 1.2)
        wide = 0.265 * person.mouth_width * (1 + 0.10 * both + 0.32 * unit["lip_stretch"] - 0.30 * drop * (both < 0.3))
        wide *= 1 - 0.12 * unit["chin_raise"] - 0.08 * unit["lip_press"] + 0.05 * square
        x = _T * wide * (1 + 0.10 * smile + 0.12 * dimple)
        edge = np.abs(_T) ** 1.7
        corner = person.mouth_rest - 0.125 * smile - 0.05 * dimple + 0.125 * unit["corner_depress"]
        corner = corner + 0.04 * unit["lip_stretch"]
        base = 0.535 + corner * edge + 0.035 * both * (1 - edge) - 0.045 * unit["chin_raise"] * (1 - edge)
        base = base - 0.05 * raise_ * (1 - 0.5 * edge)
        round_ = np.sqrt(np.clip(1 - _T**2, 0, 1))
        boxy = np.clip(1 - _T**6, 0, 1)
        shape = round_ * (1 - max(min(square, 1), 0.6 * min(raise_, 1), 0.5 * unit["lip_stretch"] * 0.8))
        shape = shape + boxy * (1 - shape / np.maximum(round_, 1e-6)) * (round_ > 0)
        opened = shape * (part > 0.12)
        up = 0.020 * part + 0.045 * both * part + 0.10 * drop * (both < 0.5) + 0.06 * square + 0.055 * raise_
        down = 0.030 * part + 0.05 * both * part + 0.27 * drop + 0.075 * square + 0.025 * unit["lip_stretch"]
        thin = 1 - 0.62 * min(unit["lip_press"], 1) - 0.2 * both
        full = person.lip_weight * thin
        bow = 1 - 0.22 * np.exp(-((_T / 0.16) ** 2))
        top = np.clip(1 - _T**2, 0, 1) ** 0.8 * 0.058 * full * bow + 0.004
        bottom = np.clip(1 - _T**2, 0, 1) ** 0.6 * 0.078 * full * (1 + 0.3 * unit["chin_raise"]) + 0.004
        lifted, dropped = base - up * opened, base + down * opened
        outer_top, inner_top, inner_bottom, outer_bottom = (
            np.stack([x, y], axis=1) for y in (lifted - top, lifted, dropped, dropped + bottom)
        )
        return outer_top, inner_top, inner_bottom, outer_bottom

    def _mouth(self) -> None:
        outer_top, inner_top, inner_bottom, outer_bottom = self._lip_curves()
        lip = mix(scaled(self.person.skin, 0.82), (176, 60, 66), 0.42)
        self._on(np.concatenate([outer_top, inner_top[::-1]]), scaled(lip, 0.92), 0.04)
        self._on(np.concatenate([inner_bottom, outer_bottom[::-1]]), lip, 0.04)
        gap = float((inner_bottom - inner_top)[:, 1].max())
        if gap < 0.012:
            self._stroke(inner_top, scaled(lip, 0.42), 0.026, 0.04)
        else:
            self._open_mouth(inner_top, inner_bottom, gap)
        self._corners(inner_top, lip)

    def _open_mouth(self, top: Points, bottom: Points, gap: float) -> None:
        unit = self.unit
        self._on(np.concatenate([top, bottom[::-1]]), (52, 18, 20), 0.04)
        teeth: Color = (232, 228, 216)
        height = bottom[:, 1] - top[:, 1]
        smile = 0.5 * (unit["smile_left"] + unit["smile_right"])
        show = min(1.0, 0.25 + smile + unit["mouth_square"] + 0.8 * unit["upper_lip_raise"] + 0.6 * unit["lip_stretch"])
        upper = np.minimum(height * 0.9, 0.085 * show)
        inside = np.stack([top[:, 0] * 0.94, top[:, 1]], axis=1)
        self._on(np.concatenate([inside, (inside + _down(upper))[::-1]]), teeth, 0.04)
        if unit["mouth_square"] > 0.4 or unit["lip_stretch"] > 0.6:
            lower = np.minimum(height * 0.45, 0.06)
            floor = np.stack([bottom[:, 0] * 0.9, bottom[:, 1]], axis=1)
            self._on(np.concatenate([floor - _down(lower), floor[::-1]]), scaled(teeth, 0.9), 0.04)
        elif gap > 0.14:
            self._on(_ellipse(0.0, float(bottom[:, 1].max()) - 0.05, 0.11, 0.045), (168, 74, 78), 0.04)
        self._stroke(top, (70, 26, 28), 0.014, 0.04)

    def _corners(self, line: Points, lip: Color) -> None:
        """Mark the corners, deeper where a dimple tightens them: what tells contempt from a faint smile."""
        for index, name, side in ((0, "left", -1), (-1, "right", 1)):
            depth = max(self.unit[f"dimple_{name}"], 0.5 * self.unit["corner_depress"], 0.35)
            x, y = line[index]
            hook = np.array([[x, y], [x + side * 0.03, y - 0.015], [x + side * 0.045, y - 0.05 * depth]])
            if self.unit["corner_depress"] > 0.5:
                hook[:, 1] = y + np.array([0, 0.02, 0.05])
            self._stroke(hook, scaled(mix(self.person.skin, lip, 0.3), 1 - 0.5 * min(depth, 1)), 0.022, 0.02)

    def _hair_behind(self) -> None:
        if self.person.hair_style in (1, 3):
            wide = self.person.width
            shape = np.concatenate([_ellipse(0, -0.2, wide * 1.22, 1.0), _box(-wide * 1.2, -0.2, wide * 1.2, 1.9)])
            self.pen.polygon(self.head.flat(shape[:24]), fill=scaled(self.person.hair, 0.8))
            self.pen.polygon(self.head.flat(shape[24:]), fill=scaled(self.person.hair, 0.8))

    def _hair_front(self) -> None:
        person, style = self.person, self.person.hair_style
        if style == 4:  # bald
            return
        angle = np.linspace(np.pi * 1.0, np.pi * 2.0, 24)
        rim = np.stack([np.cos(angle) * person.width * 1.07, np.sin(angle) * 1.12 - 0.02], axis=1)
        line = {0: -0.76, 1: -0.72, 2: -0.80, 3: -0.70}[style]
        temple = np.array([[person.width * 0.98, -0.25], [person.width * 0.86, -0.45]])
        part = 0.25 if style in (1, 2) else 0.0
        fringe = np.array([[0.45, line + 0.05], [part, line - 0.07], [-0.45, line + 0.05]])
        left = (temple * [-1, 1])[::-1]
        self.pen.polygon(self.head.flat(np.concatenate([rim, temple, fringe, left])), fill=person.hair)

    def _glasses(self) -> None:
        frame = (40, 36, 40)
        for side in (-1, 1):
            ring = _ellipse(side * 0.34, -0.08, 0.215, 0.165)
            self._stroke(np.concatenate([ring, ring[:2]]), frame, 0.03, 0.05)
        self._stroke(np.array([[-0.125, -0.1], [0.125, -0.1]]), frame, 0.03, 0.1)


def _ellipse(x: float, y: float, rx: float, ry: float) -> Points:
    angle = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    return np.stack([x + rx * np.cos(angle), y + ry * np.sin(angle)], axis=1)


def _box(left: float, top: float, right: float, bottom: float) -> Points:
    return np.array([[left, top], [right, top], [right, bottom], [left, bottom]])


def _down(amount: NDArray[np.float64]) -> Points:
    """Return shifts of `amount` (n,) along y, (n, 2)."""
    return np.stack([np.zeros_like(amount), amount], axis=1)


def _through(a: tuple[float, float], b: tuple[float, float], c: tuple[float, float]) -> Points:
    """Return 11 points of the parabola that passes `a`, `b` half-way, and `c`."""
    t = np.linspace(0, 1, 11)[:, None]
    first, middle, last = np.array(a), np.array(b), np.array(c)
    return np.asarray(first * (1 - t) * (1 - 2 * t) + middle * 4 * t * (1 - t) + last * t * (2 * t - 1))

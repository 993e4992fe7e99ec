"""Class taxonomies: slugs, names, colours, keys, and the class orders of the public data sets.

A class is stored as its slug together with the taxonomy's version, never as a position. The order here is the order on
screen and the order of class axes in arrays that travel with the slugs.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import yaml

from annotator.errors import TaxonomyError

_SLUG = re.compile(r"[a-z][a-z0-9_-]{0,31}")
MAX_CLASSES = 30
"""Sets of classes travel as 64-bit masks and every class needs a key of its own."""


@dataclass(frozen=True, slots=True)
class ExpressionClass:
    """One class: `slug` is stored, `name` is shown, `color` is colour-blind safe, `key` answers on the keyboard."""

    slug: str
    name: str
    color: str
    key: str


@dataclass(frozen=True, slots=True)
class Taxonomy:
    """An ordered set of classes with a version that every answer carries."""

    name: str
    version: int
    classes: tuple[ExpressionClass, ...]

    @property
    def slugs(self) -> tuple[str, ...]:
        """The slugs in taxonomy order."""
        return tuple(c.slug for c in self.classes)

    def index(self, slug: str) -> int:
        """Return the position of `slug` in this taxonomy.

        Raises:
            TaxonomyError: the slug is not one of the classes.
        """
        for position, item in enumerate(self.classes):
            if item.slug == slug:
                return position
        raise TaxonomyError(f"unknown class {slug!r}; this workspace knows {', '.join(self.slugs)}")

    def check(self, slugs: list[str] | tuple[str, ...]) -> tuple[str, ...]:
        """Return `slugs` in taxonomy order and without repeats, or raise `TaxonomyError` for an unknown one."""
        return tuple(self.classes[i].slug for i in sorted({self.index(slug) for slug in slugs}))

    def mask(self, slugs: list[str] | tuple[str, ...]) -> int:
        """Return the bit mask with bit k set for every class k in `slugs`."""
        bits = 0
        for slug in slugs:
            bits |= 1 << self.index(slug)
        return bits


# Okabe-Ito and Tol colours: distinguishable with every common colour-vision deficiency, on light and dark.
_LOOKS = {
    "neutral": ("Neutral", "#999999"),
    "happiness": ("Happiness", "#E69F00"),
    "surprise": ("Surprise", "#F0E442"),
    "sadness": ("Sadness", "#0072B2"),
    "anger": ("Anger", "#D55E00"),
    "disgust": ("Disgust", "#009E73"),
    "fear": ("Fear", "#CC79A7"),
    "contempt": ("Contempt", "#56B4E9"),
}
_SPARE_COLORS = ("#332288", "#88CCEE", "#44AA99", "#117733", "#DDCC77", "#CC6677", "#882255", "#AA4499")
KEYS = "1234567890qwertyuiop"
"""Keys for classes by position; letters that the desk uses for actions (s, n, u, f, …) are resolved by `_keys`."""
RESERVED_KEYS = frozenset("snufz? ")
"""Keys of the desk's actions: several, none, unusable, flag, undo, help, skip."""


def _keys(count: int) -> list[str]:
    free = [k for k in KEYS + "asdghjklxcvbm" if k not in RESERVED_KEYS]
    return free[:count]


def _build(name: str, slugs: tuple[str, ...]) -> Taxonomy:
    keys = _keys(len(slugs))
    spare = iter(_SPARE_COLORS * 4)
    classes = []
    for slug, key in zip(slugs, keys, strict=True):
        title, color = _LOOKS.get(slug) or (slug.replace("_", " ").replace("-", " ").capitalize(), next(spare))
        classes.append(ExpressionClass(slug, title, color, key))
    return Taxonomy(name, 1, tuple(classes))


FERPLUS = _build("ferplus", ("neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear", "contempt"))
RAFDB = _build("rafdb", ("surprise", "fear", "disgust", "happiness", "sadness", "anger", "neutral"))
AFFECTNET7 = _build("affectnet7", ("neutral", "happiness", "sadness", "surprise", "fear", "disgust", "anger"))
AFFECTNET8 = _build(
    "affectnet8", ("neutral", "happiness", "sadness", "surprise", "fear", "disgust", "anger", "contempt")
)
BUILTIN = {t.name: t for t in (FERPLUS, RAFDB, AFFECTNET7, AFFECTNET8)}


def custom(name: str, slugs: list[str]) -> Taxonomy:
    """Build a taxonomy from slugs.

    Raises:
        TaxonomyError: fewer than two or more than `MAX_CLASSES` slugs, a repeated or malformed slug.
    """
    if not 2 <= len(slugs) <= MAX_CLASSES:
        raise TaxonomyError(f"{len(slugs)} classes given; a taxonomy needs 2 to {MAX_CLASSES}")
    for slug in slugs:
        if not isinstance(slug, str) or not _SLUG.fullmatch(slug):
            raise TaxonomyError(f"class {slug!r} is not a slug: use a-z, 0-9, - and _, starting with a letter")
    if len(set(slugs)) != len(slugs):
        repeated = sorted({s for s in slugs if slugs.count(s) > 1})
        raise TaxonomyError(f"class given twice: {', '.join(repeated)}")
    return _build(name, tuple(slugs))


def load(spec: str) -> Taxonomy:
    """Return a built-in taxonomy by name, or read one from a file.

    The file is YAML with `classes: [slug, …]`, or text with one slug a line.

    Raises:
        TaxonomyError: neither a known name nor a readable file of slugs.
    """
    if spec in BUILTIN:
        return BUILTIN[spec]
    path = Path(spec)
    if not path.is_file():
        raise TaxonomyError(f"{spec!r} is neither one of {', '.join(BUILTIN)} nor a file with one class a line")
    text = path.read_text(encoding="utf-8")
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise TaxonomyError(f"{spec}: not readable as YAML or as one class a line: {error}") from error
    slugs = data.get("classes") if isinstance(data, dict) else [line.strip() for line in text.splitlines()]
    if not isinstance(slugs, list):
        raise TaxonomyError(f"{spec}: `classes` must be a list of slugs")
    return custom(path.stem, [s for s in slugs if s])

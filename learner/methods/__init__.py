"""Methods by name. A method is one file that reads like its paper and returns a `Recipe`."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from pydantic import ValidationError

from learner.methods.fixmatch import FixMatchOptions, fixmatch
from learner.methods.lion import OFFICIAL, PAPER, LionOptions, lion
from learner.methods.options import Options
from learner.methods.supervised import SupervisedOptions, supervised
from learner.parts import Recipe

_METHODS: dict[str, tuple[type[Options], Callable[[Any, int, int], Recipe], dict[str, Any]]] = {
    "supervised": (SupervisedOptions, supervised, {}),
    "fixmatch": (FixMatchOptions, fixmatch, {}),
    "lion": (LionOptions, lion, {}),  # the annotation loop's; lion_annotation is the same by its full name
    "lion_annotation": (LionOptions, lion, {}),
    "lion_paper": (LionOptions, lion, PAPER),
    "lion_official": (LionOptions, lion, OFFICIAL),
}

MAX_CLASSES = 62  # class sets are kept as bits of an int64


def available() -> list[str]:
    """List the names that `build` knows."""
    return sorted(_METHODS)


def resolve(name: str, options: Mapping[str, Any]) -> Options:
    """Check options and fill in the method's defaults.

    Raises:
        ValueError: unknown method, unknown option, or a value out of range; the message names it.
    """
    if name not in _METHODS:
        raise ValueError(f"unknown method {name!r}; available: {', '.join(available())}")
    model, _, preset = _METHODS[name]
    try:
        return model(**_merged(preset, options))
    except ValidationError as error:
        reasons = "; ".join(
            f"{'.'.join(str(part) for part in e['loc']) or 'options'}: {e['msg']}" for e in error.errors()
        )
        raise ValueError(f"method {name!r}: {reasons}") from error


def _merged(preset: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Lay options over a preset, section by section."""
    merged = dict(preset)
    for key, value in options.items():
        below = merged.get(key)
        merged[key] = _merged(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return merged


def build(name: str, num_classes: int, feature_dim: int, options: Mapping[str, Any] | None = None) -> Recipe:
    """Build the recipe of a method, with fresh state, for K classes and features of width d.

    Raises:
        ValueError: unknown method or option, a value out of range, or a combination that makes no sense.
    """
    if not 2 <= num_classes <= MAX_CLASSES:
        raise ValueError(f"a method needs 2 to {MAX_CLASSES} classes, got {num_classes}")
    if feature_dim < 1:
        raise ValueError(f"feature_dim must be positive, got {feature_dim}")
    checked = resolve(name, options or {})
    try:
        recipe = _METHODS[name][1](checked, num_classes, feature_dim)
    except ValueError as error:
        raise ValueError(f"method {name!r}: {error}") from error
    return replace(recipe, name=name)

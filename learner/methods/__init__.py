"""Methods by name. A method is one file that reads like its paper and returns a `Recipe`."""

from collections.abc import Callable, Mapping
from typing import Any

from pydantic import ValidationError

from learner.methods.fixmatch import FixMatchOptions, fixmatch
from learner.methods.options import Options
from learner.methods.supervised import SupervisedOptions, supervised
from learner.parts import Recipe

_METHODS: dict[str, tuple[type[Options], Callable[[Any, int, int], Recipe], dict[str, Any]]] = {
    "supervised": (SupervisedOptions, supervised, {}),
    "fixmatch": (FixMatchOptions, fixmatch, {}),
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
        return model(**{**preset, **options})
    except ValidationError as error:
        reasons = "; ".join(
            f"{'.'.join(str(part) for part in e['loc']) or 'options'}: {e['msg']}" for e in error.errors()
        )
        raise ValueError(f"method {name!r}: {reasons}") from error


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
    return _METHODS[name][1](checked, num_classes, feature_dim)

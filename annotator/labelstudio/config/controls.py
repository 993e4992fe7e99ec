"""What the controls of a labeling configuration mean."""

from collections.abc import Mapping as Pairs
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Choices:
    """A `<Choices>` control.

    values: what results hold (a choice's alias, else its value) to the slug it means, or "unusable".
    titles: what people see, where that differs; results made before the choice got its alias hold it.
    others: its choices that are no class.
    """

    name: str
    to_name: str
    multiple: bool
    values: dict[str, str]
    titles: dict[str, str]
    others: tuple[str, ...] = ()

    def meaning(self, choice: str) -> str | None:
        """Return the slug, or "unusable", that a stored choice stands for; None when it is none of ours."""
        return self.values.get(choice) or self.titles.get(choice)

    def choice(self, meaning: str) -> str | None:
        """Return what to store for a slug or "unusable"; None when no choice says it."""
        return next((stored for stored, slug in self.values.items() if slug == meaning), None)


@dataclass(frozen=True, slots=True)
class TextArea:
    """A `<TextArea>` control that takes the comment."""

    name: str
    to_name: str


@dataclass(frozen=True, slots=True)
class Rating:
    """A `<Rating>` control: `max` stars are a confidence of 1."""

    name: str
    to_name: str
    max: int


@dataclass(frozen=True, slots=True)
class Mapping:
    """What the controls of a project mean.

    image: name of the image tag. data_key: the key of a task's data that holds the picture. expression: says one
    class; when it is `multiple`, `candidates` is the same control. unusable: may be the same control, too.
    others: names of controls that are none of ours. more_keys: further keys that the configuration reads from a task's
    data: a task without them cannot be imported.
    """

    image: str
    data_key: str
    expression: Choices
    candidates: Choices | None = None
    unusable: Choices | None = None
    comment: TextArea | None = None
    confidence: Rating | None = None
    others: tuple[str, ...] = ()
    more_keys: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Pairs[str, Any]) -> "Mapping":
        """Read what `as_dict` returned."""
        kinds: dict[str, Any] = {
            "expression": Choices,
            "candidates": Choices,
            "unusable": Choices,
            "comment": TextArea,
            "confidence": Rating,
        }
        parts = {name: kind(**_tuples(data[name])) if data.get(name) else None for name, kind in kinds.items()}
        lists = {name: tuple(data.get(name, ())) for name in ("others", "more_keys")}
        return cls(**{"image": data["image"], "data_key": data["data_key"], **parts, **lists})


def _tuples(fields: Pairs[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}

"""What a sync would do, as rows of a table."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Planned:
    """One line of `--dry-run`. `says` is the answer in words; `user` is the address there or the name here."""

    direction: Literal["in", "out"]
    what: str
    task_id: int
    user: str
    says: str
    annotation: str
    reason: str | None = None


def in_words(kind: str, classes: tuple[str, ...]) -> str:
    """Return an answer as a person reads it."""
    if kind == "label":
        return classes[0]
    return f"{kind}: {', '.join(classes)}" if classes else kind

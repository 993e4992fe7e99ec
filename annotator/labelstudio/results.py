"""What an annotation of Label Studio says, as an answer of ours, and back.

A result is a list with one item per control. Nothing is guessed: whatever is not exactly one answer is malformed, with
the reason in a sentence. `parse_result(to_result(said)) == said` for every answer that the project's controls can say;
`expressed` tells what is left of the others (stars for a confidence, a candidate set for a "not these").
"""

from collections.abc import Mapping as Pairs
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from annotator.errors import InputError
from annotator.labelstudio.label_config import Mapping
from annotator.records import AnswerKind
from annotator.taxonomy import Taxonomy


class MalformedResultError(InputError):
    """A result that is not exactly one answer; the message says why."""


@dataclass(frozen=True, slots=True)
class Said:
    """What an answer says. `classes` are slugs in taxonomy order, `confidence` is in [0, 1]."""

    kind: AnswerKind
    classes: tuple[str, ...] = ()
    confidence: float | None = None
    note: str | None = None


def parse_result(result: object, was_cancelled: bool, mapping: Mapping, taxonomy: Taxonomy) -> Said:
    """Return the answer that a result gives.

    A cancelled annotation is a skip, a comment alone is a flag. One choice of several classes is that class; a class
    that is given beside a candidate set wins when the set has it, too.

    Raises:
        MalformedResultError: it is no answer, or more than one.
    """
    raise NotImplementedError


def to_result(said: Said, mapping: Mapping, taxonomy: Taxonomy) -> list[dict[str, Any]]:
    """Return the result that gives an answer; a skip has none, its annotation says `was_cancelled`.

    "Not these" goes out as the classes that are left, a confidence as the nearest star.

    Raises:
        InputError: the project has no control or choice that says it.
    """
    raise NotImplementedError


def expressed(said: Said, mapping: Mapping, taxonomy: Taxonomy) -> Said:
    """Return what comes back of an answer that was sent out; compare the `canonical` of this.

    Raises:
        InputError: the project has no control or choice that says it.
    """
    return parse_result(to_result(said, mapping, taxonomy), said.kind == "skip", mapping, taxonomy)


def prediction(
    mapping: Mapping,
    taxonomy: Taxonomy,
    *,
    candidates: Sequence[Pairs[str, object]],
    score: float,
    model_version: str,
    blind: bool = False,
) -> dict[str, Any]:
    """Return a prediction for an import.

    Args:
        mapping: the project's controls.
        taxonomy: the workspace's classes.
        candidates: as in a lease: `{"class": slug, "prob": p}`, most probable first; empty without a model.
        score: orders the tasks, in [0, 1].
        model_version: of the scores.
        blind: suggest nothing, only order.
    """
    raise NotImplementedError


def canonical(said: Said) -> str:
    """Return what an answer says as JSON that is equal for equal answers."""
    raise NotImplementedError

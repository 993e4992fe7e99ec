"""What makes an answer well-formed. Everything else about it is stored and marked, never refused."""

import math
from collections.abc import Callable
from datetime import datetime
from typing import Any

from annotator.errors import InputError
from annotator.records import ANSWER_KINDS, Answer
from annotator.taxonomy import Taxonomy

MAX_NOTE = 2000
MAX_CLIENT_ID = 80
DAY_MS = 86_400_000
_RESERVED = {"import:": "imported labels", "ls:": "answers of linked projects"}

_COUNTS: dict[str, tuple[str, Callable[[int, int], bool]]] = {
    "label": ("exactly one class", lambda given, known: given == 1),
    "candidates": ("two or more classes, but not all", lambda given, known: 2 <= given < known),
    "not": ("one or more classes, but not all", lambda given, known: 1 <= given < known),
    "unusable": ("no class", lambda given, known: given == 0),
    "skip": ("no class", lambda given, known: given == 0),
    "flag": ("no class", lambda given, known: given == 0),
}


def check_answer(answer: Answer, taxonomy: Taxonomy, prefix: str = "") -> tuple[str, ...]:
    """Return the classes of a well-formed answer in taxonomy order, without repeats.

    `prefix` is that of the `client_id` of an answer from a linked project.

    Raises:
        TaxonomyError: an unknown class.
        InputError: anything else that is wrong with it; the message names the value.
    """
    if answer.kind not in ANSWER_KINDS or answer.kind == "undo":
        raise InputError(f"kind {answer.kind!r} is not an answer: use one of {', '.join(_COUNTS)}")
    check_client_id(answer.client_id, prefix)
    classes = taxonomy.check(answer.classes)
    wanted, fits = _COUNTS[answer.kind]
    if not fits(len(classes), len(taxonomy.classes)):
        given = ", ".join(classes) or "none"
        raise InputError(f"kind {answer.kind!r} takes {wanted}, got {given}")
    _check_note(answer)
    confidence = answer.confidence
    if confidence is not None and not (math.isfinite(confidence) and 0 <= confidence <= 1):
        raise InputError(f"confidence {confidence} is outside 0 to 1")
    duration = answer.duration_ms
    if duration is not None and not 0 <= duration < DAY_MS:
        raise InputError(f"duration_ms {duration} is outside 0 to one day ({DAY_MS})")
    if not 1 <= len(answer.source) <= 32 or not answer.source.isprintable() or answer.source == "import":
        raise InputError(f"source {answer.source!r} is not one an answer can come from: ui, api, simulate, labelstudio")
    return classes


def check_client_id(client_id: str, prefix: str = "") -> None:
    """Raise `InputError` unless `client_id` is 1 to 80 printable characters and not of those that the store reserves.

    With a `prefix`, that of a link, it has to begin with it.
    """
    if not 1 <= len(client_id) <= MAX_CLIENT_ID or not client_id.isprintable():
        raise InputError(f"client_id {client_id[:100]!r} must be 1 to {MAX_CLIENT_ID} printable characters")
    if prefix:
        if not client_id.startswith(prefix):
            raise InputError(f"client_id {client_id!r} of a linked project's answer must begin with {prefix}")
        return
    for reserved, owner in _RESERVED.items():
        if client_id.startswith(reserved):
            raise InputError(f"client_id {client_id!r}: the prefix {reserved} belongs to {owner}")


def check_text(value: str, what: str) -> None:
    """Raise `InputError` for text that no database stores: a NUL character or half a surrogate pair."""
    if "\0" in value:
        raise InputError(f"{what} holds a NUL character")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(f"{what} is not valid Unicode text: {error.reason}") from error


def _check_note(answer: Answer) -> None:
    note = answer.note
    if answer.kind == "flag" and not (note and note.strip()):
        raise InputError("a flag wants a note that says what is wrong")
    if note is None:
        return
    if len(note) > MAX_NOTE:
        raise InputError(f"the note has {len(note)} characters; at most {MAX_NOTE}")
    check_text(note, "the note")


def blank_values(user_id: int | None, client_id: str, row: int, now: datetime, taxonomy_version: int) -> dict[str, Any]:
    """Return the columns of an annotation with everything optional empty."""
    return {
        "client_id": client_id,
        "row": row,
        "user_id": user_id,
        "taxonomy_version": taxonomy_version,
        "confidence": None,
        "note": None,
        "duration_ms": None,
        "lease_id": None,
        "late": False,
        "duplicate": False,
        "mismatch": False,
        "blind": False,
        "adjudicates": False,
        "beside": False,
        "model_version": None,
        "arm": None,
        "suggestions": [],
        "votes": None,
        "created_at": now,
    }

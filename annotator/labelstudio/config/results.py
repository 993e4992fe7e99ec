"""What an annotation of Label Studio says, as an answer of ours, and back.

A result is a list with one item per control. Nothing is guessed: whatever is not exactly one answer is malformed, with
the reason in a sentence. `parse_result(to_result(said)) == said` for every answer that the project's controls can say;
`expressed` tells what is left of the others (stars for a confidence, a candidate set for a "not these").

Label Studio fills a form in with a prediction and notes on every item who said it: `origin` is "prediction" where the
person left it as it was, "prediction-changed" or "manual" where they did something. Both the class and the candidate
set are filled in, and someone who presses another class leaves the set behind: so what a person touched stands, and
what they left counts only where they touched nothing.
"""

import json
from collections.abc import Mapping as Pairs
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from numbers import Real
from typing import Any

from annotator.consensus import UNUSABLE
from annotator.errors import InputError, TaxonomyError
from annotator.labelstudio.config.class_names import class_of
from annotator.labelstudio.config.generated import Choices, Mapping
from annotator.records import AnswerKind
from annotator.store.answers import MAX_NOTE, check_text
from annotator.taxonomy import Taxonomy

LEFT = "prediction"
"""The origin of an item that a prediction filled in and the person did not touch."""


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

    A cancelled annotation is a skip, a comment alone is a flag. A candidate set of one class is that class; a class
    that is given beside a candidate set wins when the set has it, too.

    Raises:
        MalformedResultError: it is no answer, or more than one.
    """
    if was_cancelled:
        return Said("skip", note=_note_of_skip(result, mapping, taxonomy))
    items = _items(result, mapping, taxonomy)
    note, confidence = _note(items, mapping), _confidence(items, mapping)
    kind, classes = _claim(_meanings(items, mapping), mapping, taxonomy)
    if kind is not None:
        return Said(kind, classes, confidence, note)
    if note is None:
        raise MalformedResultError("it says nothing about the face: no class, not unusable, no comment")
    return Said("flag", (), confidence, note)


def to_result(said: Said, mapping: Mapping, taxonomy: Taxonomy) -> list[dict[str, Any]]:
    """Return the result that gives an answer; a skip's annotation must say `was_cancelled`, too.

    "Not these" goes out as the classes that are left, a confidence as the nearest star, at least one.

    Raises:
        InputError: the project has no control or choice that says it.
    """
    items = []
    if said.kind == "unusable":
        items.append(_choice_item(mapping.unusable, [UNUSABLE], "unusable"))
    elif said.kind in ("label", "candidates", "not"):
        left = said.classes if said.kind != "not" else [s for s in taxonomy.slugs if s not in said.classes]
        control = mapping.expression if len(left) == 1 else mapping.candidates
        items.append(_choice_item(control, list(left), "one class" if len(left) == 1 else "several classes"))
    elif said.kind == "flag" and (mapping.comment is None or not (said.note or "").strip()):
        raise InputError("the project has no control for a comment, and a flag is nothing else")
    if mapping.confidence is not None and said.confidence is not None and said.kind != "skip":
        stars = max(1, round(said.confidence * mapping.confidence.max))
        items.append(_item(mapping.confidence.name, mapping.confidence.to_name, "rating", {"rating": stars}))
    if mapping.comment is not None and said.note and said.note.strip():
        items.append(_item(mapping.comment.name, mapping.comment.to_name, "textarea", {"text": [said.note]}))
    return items


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
    """Return a prediction for an import: the first class, the set where it has two or more, each with its probability.

    Left out are classes that the project has no choice for, a set of all classes, and a set in a control that says the
    class, too.

    Args:
        mapping: the project's controls.
        taxonomy: the workspace's classes.
        candidates: as in a lease: `{"class": slug, "prob": p}`, most probable first; empty without a model.
        score: orders the tasks, in [0, 1].
        model_version: of the scores.
        blind: suggest nothing, only order.
    """
    shown = [] if blind else [(str(c["class"]), _unit(c["prob"])) for c in candidates]
    result = []
    first = mapping.expression.choice(shown[0][0]) if shown else None
    if first is not None:
        result.append(_choice_item(mapping.expression, [shown[0][0]], "") | {"score": shown[0][1]})
    control = mapping.candidates
    if control is not None and control.name != mapping.expression.name:
        known = [(slug, prob) for slug, prob in shown if control.choice(slug) is not None]
        if 2 <= len(known) < len(taxonomy.classes):
            total = _unit(sum(prob for _, prob in known))
            result.append(_choice_item(control, [slug for slug, _ in known], "") | {"score": total})
    for item in result:
        del item["origin"]
    return {"model_version": model_version, "score": _unit(score), "result": result}


def canonical(said: Said) -> str:
    """Return what an answer says as JSON that is equal for equal answers."""
    return json.dumps(asdict(said), ensure_ascii=False, sort_keys=True, separators=(",", ":"))


def _items(result: object, mapping: Mapping, taxonomy: Taxonomy) -> dict[str, dict[str, Any]]:
    """Return the items of our controls by name; what belongs to others is left out."""
    if not isinstance(result, list):
        raise MalformedResultError(f"a result is a list of items, not {_kind(result)}")
    ours = _our_controls(mapping)
    found: dict[str, dict[str, Any]] = {}
    for item in result:
        if not isinstance(item, dict):
            raise MalformedResultError(f"a result is a list of objects, one item is {_kind(item)}")
        name = item.get("from_name")
        if not isinstance(name, str) or name not in ours:
            if name not in mapping.others and _claims_class(item, taxonomy):
                raise MalformedResultError(f"control {_short(name)} is not one of the project's, but names a class")
            continue
        if name in found:
            raise MalformedResultError(f"control {name!r} is answered twice")
        to_name, kind = ours[name]
        if item.get("type") != kind or item.get("to_name") != to_name:
            told = f"{_short(item.get('type'))} of {_short(item.get('to_name'))}"
            raise MalformedResultError(f"control {name!r} gives {kind} of {to_name!r}, this item is {told}")
        found[name] = item
    return found


def _our_controls(mapping: Mapping) -> dict[str, tuple[str, str]]:
    """Return the image and the type of every control of ours."""
    controls = [(mapping.expression, "choices"), (mapping.candidates, "choices"), (mapping.unusable, "choices")]
    others = [(mapping.comment, "textarea"), (mapping.confidence, "rating")]
    return {c.name: (c.to_name, kind) for c, kind in (*controls, *others) if c is not None}


def _claims_class(item: Pairs[str, Any], taxonomy: Taxonomy) -> bool:
    """Tell whether an item of an unknown control names an expression."""
    value = item.get("value")
    chosen = value.get("choices") if isinstance(value, dict) else None
    words = chosen if isinstance(chosen, list) else [chosen]
    return any(isinstance(word, str) and class_of(word, taxonomy) is not None for word in words)


def _value(item: Pairs[str, Any], key: str) -> object:
    """Return the one thing that the value of an item holds."""
    value = item.get("value")
    if not isinstance(value, dict) or key not in value:
        raise MalformedResultError(f"the item of {item['from_name']!r} has no value {key!r}")
    more = [name for name in value if name != key]
    if more:
        raise MalformedResultError(f"the item of {item['from_name']!r} is about a part of the picture ({more[0]!r})")
    return value[key]


def _meanings(items: Pairs[str, dict[str, Any]], mapping: Mapping) -> dict[str, set[str]]:
    """Return what was chosen by control, the model's own suggestions left out where the person chose something."""
    touched: dict[str, set[str]] = {}
    left: dict[str, set[str]] = {}
    for control in (mapping.expression, mapping.candidates, mapping.unusable):
        if control is not None and control.name in items:
            item = items[control.name]
            chosen = _chosen(control, _value(item, "choices"), class_wanted=control.name != _only_unusable(mapping))
            if chosen:
                (left if item.get("origin") == LEFT else touched)[control.name] = chosen
    return touched or left


def _only_unusable(mapping: Mapping) -> str | None:
    """Return the name of the control that says unusable and no class: its other choices are none of ours."""
    classes = {c.name for c in (mapping.expression, mapping.candidates) if c is not None}
    return mapping.unusable.name if mapping.unusable is not None and mapping.unusable.name not in classes else None


def _chosen(control: Choices, choices: object, *, class_wanted: bool) -> set[str]:
    if not isinstance(choices, list) or not all(isinstance(c, str) for c in choices):
        raise MalformedResultError(f"the choices of {control.name!r} are not a list of words")
    found = set()
    for choice in choices:
        meaning = control.meaning(choice)
        if meaning is not None:
            found.add(meaning)
        elif class_wanted or choice not in control.others:
            raise MalformedResultError(f"choice {_short(choice)} of {control.name!r} is no class of this workspace")
    return found


def _claim(
    chosen: Pairs[str, set[str]], mapping: Mapping, taxonomy: Taxonomy
) -> tuple[AnswerKind | None, tuple[str, ...]]:
    """Return the kind and the classes that the choices amount to, or no kind when nothing was chosen."""
    unusable = any(UNUSABLE in meanings for meanings in chosen.values())
    single = set() if mapping.expression.multiple else chosen.get(mapping.expression.name, set()) - {UNUSABLE}
    several = chosen.get(mapping.candidates.name, set()) - {UNUSABLE} if mapping.candidates is not None else set()
    if unusable and (single or several):
        raise MalformedResultError(f"it is called unusable and {_listed(single | several)} at once")
    if unusable:
        return "unusable", ()
    if len(single) > 1:
        raise MalformedResultError(f"two classes in a single choice: {_listed(single)}")
    if single and several and not single <= several:
        raise MalformedResultError(f"the class is {_listed(single)}, but the set is {_listed(several)}")
    classes = single or several
    if len(classes) == len(taxonomy.classes) > 1:
        raise MalformedResultError("every class is ticked, which says nothing about the face")
    if not classes:
        return None, ()
    try:
        return ("label" if len(classes) == 1 else "candidates"), taxonomy.check(tuple(classes))
    except TaxonomyError as error:
        raise MalformedResultError(str(error)) from error


def _note(items: Pairs[str, dict[str, Any]], mapping: Mapping) -> str | None:
    if mapping.comment is None or mapping.comment.name not in items:
        return None
    text = _value(items[mapping.comment.name], "text")
    lines = [text] if isinstance(text, str) else text
    if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
        raise MalformedResultError("the comment is neither a text nor a list of texts")
    note = "\n".join(line for line in lines if line.strip())
    if len(note) > MAX_NOTE:
        raise MalformedResultError(f"the comment has {len(note)} characters; at most {MAX_NOTE} are kept: shorten it")
    try:
        check_text(note, "the comment")
    except InputError as error:
        raise MalformedResultError(str(error)) from error
    return note or None


def _note_of_skip(result: object, mapping: Mapping, taxonomy: Taxonomy) -> str | None:
    """Return the comment of a skipped face, if it is one; what else the form held does not count."""
    try:
        return _note(_items(result, mapping, taxonomy), mapping)
    except MalformedResultError:
        return None


def _confidence(items: Pairs[str, dict[str, Any]], mapping: Mapping) -> float | None:
    control = mapping.confidence
    if control is None or control.name not in items:
        return None
    stars = _value(items[control.name], "rating")
    if isinstance(stars, bool) or not isinstance(stars, int | float) or not 0 <= stars <= control.max:
        raise MalformedResultError(f"{_short(stars)} is no number of stars from 1 to {control.max}")
    if stars != int(stars):
        raise MalformedResultError(f"{stars} is no whole number of stars")
    return int(stars) / control.max if stars else None


def _choice_item(control: Choices | None, meanings: Sequence[str], what: str) -> dict[str, Any]:
    if control is None:
        raise InputError(f"the project has no control that says {what}")
    choices = [(meaning, control.choice(meaning)) for meaning in meanings]
    missing = [meaning for meaning, choice in choices if choice is None]
    if missing:
        raise InputError(f"control {control.name!r} of the project has no choice for {', '.join(missing)}")
    return _item(control.name, control.to_name, "choices", {"choices": [choice for _, choice in choices]})


def _item(name: str, to_name: str, kind: str, value: dict[str, Any]) -> dict[str, Any]:
    return {"id": name, "from_name": name, "to_name": to_name, "type": kind, "value": value, "origin": "manual"}


def _unit(value: object) -> float:
    number = float(value) if isinstance(value, Real) else 0.0
    return round(min(max(number, 0.0), 1.0), 6) if number == number else 0.0


def _kind(value: object) -> str:
    return "nothing" if value is None else type(value).__name__


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _listed(classes: set[str]) -> str:
    return " and ".join(sorted(classes))

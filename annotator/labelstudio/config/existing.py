"""Read an existing labeling configuration: what its controls can say of our answers, and what does not fit."""

import re
from collections.abc import Mapping as Pairs
from dataclasses import dataclass
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from annotator.consensus import UNUSABLE
from annotator.errors import InputError
from annotator.labelstudio.config.class_names import class_of, plain
from annotator.labelstudio.config.controls import Choices, Mapping, Rating, TextArea
from annotator.taxonomy import Taxonomy

IMAGE, REASON = "image", "reason"
"""Keys of our tasks' data."""
MAX_CONFIG_CHARS = 1_000_000
_KEY = re.compile(r"\$([A-Za-z_][A-Za-z0-9_]*)")
_COMMENT = re.compile(r"comment|note|remark|bemerk|komment", re.IGNORECASE)
_CONFIDENCE = re.compile(r"confiden|certain|sure", re.IGNORECASE)
_SENT = frozenset({REASON, "image_id", "confidence"})
"""Keys that our tasks have beside the picture."""


@dataclass(frozen=True, slots=True)
class _Found:
    """A `<Choices>` control that can be read, and the sentences about it."""

    choices: Choices
    classes: frozenset[str]
    problems: tuple[str, ...]


def read_config(xml: str, taxonomy: Taxonomy, overrides: Pairs[str, str] | None = None) -> tuple[Mapping, list[str]]:
    """Return what the controls of a configuration mean and, in sentences, what does not fit.

    Of several `<Choices>` the one with the most classes says the expression; words that mean a class are in
    `annotator.labelstudio.config.class_names`.

    Args:
        xml: the configuration.
        taxonomy: the workspace's classes.
        overrides: what a choice (its alias or value) means: a slug, or "unusable".

    Raises:
        InputError: it is no XML, holds a document type, or no control on an image says one of the classes.
    """
    root = _parse(xml)
    meant = _overrides(root, overrides or {}, taxonomy)
    images = _images(root)
    found, problems = [], []
    for element in root.iter("Choices"):
        unfit = _unfit(element, images)
        if unfit is None:
            found.append(_read_choices(element, taxonomy, meant))
        else:
            problems.append(f"control {_name(element)!r} is left alone: {unfit}")
    expression = _expression(found, taxonomy)
    candidates = _candidates(found, expression)
    unusable = _unusable(found, expression, candidates)
    image = images[expression.choices.to_name]
    used = [f for f in (expression, candidates, unusable) if f is not None]
    comment, confidence = _comment(root), _confidence(root)
    names = {f.choices.name for f in used} | {c.name for c in (comment, confidence) if c is not None}
    mapping = Mapping(
        image=expression.choices.to_name,
        data_key=image,
        expression=expression.choices,
        candidates=None if candidates is None else candidates.choices,
        unusable=None if unusable is None else unusable.choices,
        comment=comment,
        confidence=confidence,
        others=tuple(dict.fromkeys(_name(e) for e in _controls(root) if _name(e) not in names)),
        more_keys=tuple(key for key in _keys(root) if key != image),
    )
    problems += [p for f in {f.choices.name: f for f in used}.values() for p in f.problems]
    return mapping, [*problems, *_missing(mapping, taxonomy), *_surplus(root, mapping, found, images)]


def _parse(xml: str) -> Element:
    if len(xml) > MAX_CONFIG_CHARS:
        raise InputError(f"the labeling configuration has {len(xml)} characters; at most {MAX_CONFIG_CHARS}")
    # Entities (and what they may open or blow up to) can only be declared in a document type.
    if "<!DOCTYPE" in xml or "<!ENTITY" in xml:
        raise InputError("the labeling configuration has a document type (<!DOCTYPE>): take it out")
    try:
        return ElementTree.fromstring(xml)
    except (ElementTree.ParseError, ValueError) as error:
        raise InputError(f"the labeling configuration is not valid XML: {error}") from error


def _overrides(root: Element, overrides: Pairs[str, str], taxonomy: Taxonomy) -> dict[str, str]:
    known = {plain(word) for choice in root.iter("Choice") for word in _words(choice)}
    for word, slug in overrides.items():
        if slug != UNUSABLE:
            taxonomy.index(slug)
        if plain(word) not in known:
            raise InputError(f"the labeling configuration has no choice {word!r}")
    return {plain(word): slug for word, slug in overrides.items()}


def _words(choice: Element) -> list[str]:
    return [w for w in (choice.get("alias"), choice.get("value")) if w]


def _name(element: Element) -> str:
    return element.get("name", "")


def _controls(root: Element) -> list[Element]:
    return [e for e in root.iter() if e.get("name") and e.get("toName")]


def _images(root: Element) -> dict[str, str]:
    """Return the data key by name of every image tag that shows one picture of a task."""
    keys = {_name(e): _KEY.fullmatch(e.get("value", "")) for e in root.iter("Image") if _name(e)}
    return {name: key[1] for name, key in keys.items() if key is not None}


def _keys(root: Element) -> list[str]:
    values = (value for e in root.iter() if e.tag != "Style" for value in e.attrib.values())
    return list(dict.fromkeys(key[1] for key in map(_KEY.match, values) if key is not None))


def _unfit(element: Element, images: Pairs[str, str]) -> str | None:
    """Return why a `<Choices>` control cannot say what a whole picture shows, or None."""
    target = element.get("toName", "")
    if not _name(element) or not target:
        return "it has no name or names no picture"
    if target not in images:
        return f'it is about {target!r}, which is not an image with one picture of the task (value="$key")'
    if "true" in (element.get("perRegion", "").lower(), element.get("perItem", "").lower()):
        return "it is about a region or a page, not about the picture"
    if _KEY.match(element.get("value", "")):
        return "its choices come with each task"
    if any(inner is not choice for choice in element.iter("Choice") for inner in choice.iter("Choice")):
        return "its choices are nested"
    return None


def _read_choices(element: Element, taxonomy: Taxonomy, overrides: Pairs[str, str]) -> _Found:
    name = _name(element)
    stored: dict[str, set[str]] = {}
    titles: dict[str, set[str]] = {}
    problems = []
    for choice in element.iter("Choice"):
        words = _words(choice)
        given = [overrides[plain(w)] for w in words if plain(w) in overrides][:1]
        meanings = set(given or [m for m in (class_of(w, taxonomy) for w in words) if m is not None])
        for word in words[:1]:
            stored.setdefault(word, set()).update(meanings)
        for word in words[1:]:
            titles.setdefault(word, set()).update(meanings)
    values: dict[str, str] = {}
    for word, meanings in stored.items():
        if len(meanings) > 1:
            problems.append(f"choice {word!r} of {name!r} may mean {' or '.join(sorted(meanings))}: say which")
        elif meanings & set(values.values()):
            problems.append(f"{min(meanings)} has several choices in {name!r}; ours go out as the first")
        if len(meanings) == 1:
            values[word] = min(meanings)
    others = tuple(word for word in stored if word not in values)
    shown = {word: min(m) for word, m in titles.items() if len(m) == 1 and word not in stored}
    multiple = element.get("choice", "single") == "multiple"
    choices = Choices(name, element.get("toName", ""), multiple, values, shown, others)
    return _Found(choices, frozenset(values.values()) - {UNUSABLE}, tuple(problems))


def _expression(found: list[_Found], taxonomy: Taxonomy) -> _Found:
    best = max(found, key=lambda f: (len(f.classes), not f.choices.multiple), default=None)
    if best is None or not best.classes:
        raise InputError(
            "no <Choices> of the labeling configuration on an image has a choice that means one of "
            f"{', '.join(taxonomy.slugs)}; say what they mean, for example Joy={taxonomy.slugs[0]}"
        )
    return best


def _candidates(found: list[_Found], expression: _Found) -> _Found | None:
    if expression.choices.multiple:
        return expression
    same = [f for f in found if f.choices.multiple and f.choices.to_name == expression.choices.to_name]
    best = max(same, key=lambda f: len(f.classes), default=None)
    return best if best is not None and len(best.classes) >= 2 else None


def _unusable(found: list[_Found], *first: _Found | None) -> _Found | None:
    ordered = [*(f for f in first if f is not None), *found]
    return next((f for f in ordered if UNUSABLE in f.choices.values.values()), None)


def _comment(root: Element) -> TextArea | None:
    """Return the text area called a comment, or the only one there is."""
    areas = [e for e in _controls(root) if e.tag == "TextArea" and e.get("perRegion", "").lower() != "true"]
    named = [e for e in areas if _COMMENT.search(_name(e))]
    chosen = named[0] if named else areas[0] if len(areas) == 1 else None
    return None if chosen is None else TextArea(_name(chosen), chosen.get("toName", ""))


def _confidence(root: Element) -> Rating | None:
    for element in _controls(root):
        stars = element.get("maxRating", "5")
        if element.tag == "Rating" and _CONFIDENCE.search(_name(element)) and stars.isdecimal() and int(stars) > 0:
            return Rating(_name(element), element.get("toName", ""), int(stars))
    return None


def _missing(mapping: Mapping, taxonomy: Taxonomy) -> list[str]:
    """Say which answers cannot be given there, nor be sent."""
    told = []
    expression, candidates = mapping.expression, mapping.candidates
    without = [slug for slug in taxonomy.slugs if expression.choice(slug) is None]
    if without:
        told.append(f"{expression.name!r} has no choice for {', '.join(without)}: such answers cannot be given there")
    if candidates is None:
        told.append("no control takes several classes: candidate sets cannot be given there, and ours are not sent")
    elif candidates.name != expression.name:
        rest = [slug for slug in taxonomy.slugs if candidates.choice(slug) is None]
        if rest:
            told.append(
                f"{candidates.name!r} has no choice for {', '.join(rest)}: sets with them cannot be given there"
            )
    if mapping.unusable is None:
        told.append(
            "no choice says that a picture is unusable: such answers cannot be given there, and ours are not sent"
        )
    if mapping.comment is None:
        told.append("no text area takes a comment: notes are not sent, and faces cannot be flagged there")
    if mapping.confidence is None:
        told.append("no rating is called confidence: it is not asked for there")
    return told


def _surplus(root: Element, mapping: Mapping, found: list[_Found], images: Pairs[str, str]) -> list[str]:
    """Say what the configuration has that is none of ours."""
    told = []
    for control in {c.name: c for c in (mapping.expression, mapping.candidates) if c is not None}.values():
        if control.others:
            listed = ", ".join(repr(word) for word in control.others)
            told.append(f"choices of {control.name!r} are no class, answers with them are set aside: {listed}")
    told += [
        f"control {f.choices.name!r} names {len(f.classes)} classes, too, and is left alone"
        for f in found
        if f.classes and f.choices.name in mapping.others
    ]
    if len(images) > 1:
        rest = ", ".join(repr(name) for name in images if name != mapping.image)
        told.append(f"it shows several images: the face is {mapping.image!r}, and {rest} stays empty")
    told += [f"{e.tag} {_name(e)!r} is no image: it stays empty" for e in _objects(root) if e.tag != "Image"]
    told += [
        f"control {_name(e)!r} ({e.tag}) must be answered there, and what is sent from here does not answer it"
        for e in _controls(root)
        if e.get("required", "").lower() == "true" and _name(e) in mapping.others
    ]
    empty = [key for key in mapping.more_keys if key not in _SENT]
    if empty:
        told.append(f"it reads {', '.join(f'${key}' for key in empty)} from a task, which new tasks leave empty")
    return told


def _objects(root: Element) -> list[Element]:
    """Return the tags that show something of a task and that controls can be about."""
    targets = {name for e in _controls(root) for name in e.get("toName", "").split(",")}
    return [e for e in root.iter() if _name(e) in targets and not e.get("toName")]

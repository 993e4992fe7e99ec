"""Labeling configurations: one made from a taxonomy, and what an existing one can say of it.

A configuration names its controls freely; a `Mapping` tells which control says the class, the candidate set, that a
picture is unusable, the comment and the confidence, and which of its choices means which class.
"""

from collections import Counter
from xml.etree import ElementTree

from annotator.consensus import UNUSABLE
from annotator.labelstudio.config.controls import Choices, Mapping, Rating, TextArea
from annotator.labelstudio.config.existing import IMAGE, REASON, read_config
from annotator.taxonomy import Taxonomy

__all__ = ["Choices", "Mapping", "Rating", "TextArea", "generate", "own_mapping", "read_config"]

EXPRESSION, CANDIDATES, COMMENT, CONFIDENCE = "expression", "candidates", "comment", "confidence"
STARS = 5
_STYLE = (
    ".faces { display: flex; flex-wrap: wrap; gap: 24px; align-items: flex-start; } "
    ".faces-picture { flex: 0 0 auto; width: min(420px, 100%); } .faces-answer { flex: 1 1 280px; }"
)


def generate(taxonomy: Taxonomy) -> str:
    """Return the configuration for a taxonomy, as XML.

    Keys are those of our page; with Shift they tick a class of the candidate set. Results hold slugs. A task's data
    needs `image` and `reason`.
    """
    root = ElementTree.Element("View")
    ElementTree.SubElement(root, "Style").text = _STYLE
    _header(root, f"${REASON}", 5)
    columns = ElementTree.SubElement(root, "View", className="faces")
    picture = ElementTree.SubElement(columns, "View", className="faces-picture")
    shown = {"name": IMAGE, "value": f"${IMAGE}", "width": "100%", "maxWidth": "100%"}
    ElementTree.SubElement(picture, "Image", {**shown, "zoomControl": "false", "rotateControl": "false"})
    answer = ElementTree.SubElement(columns, "View", className="faces-answer")
    names = _names(taxonomy)
    classes = [(names[c.slug], c.slug, c.key) for c in taxonomy.classes]
    _header(answer, "Which expression?", 6)
    _choices(answer, EXPRESSION, "single-radio", classes)
    _header(answer, "Several are possible? Tick them", 6)
    _choices(answer, CANDIDATES, "multiple", [(name, slug, f"shift+{key}") for name, slug, key in classes])
    _choices(answer, UNUSABLE, "multiple", [("Unusable: no face, broken, not a photo", UNUSABLE, "u")])
    _header(answer, "How sure are you?", 6)
    ElementTree.SubElement(answer, "Rating", name=CONFIDENCE, toName=IMAGE, maxRating=str(STARS))
    text = {"rows": "1", "maxSubmissions": "1", "editable": "true", "placeholder": "Comment"}
    ElementTree.SubElement(answer, "TextArea", {"name": COMMENT, "toName": IMAGE, **text})
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode")


def own_mapping(taxonomy: Taxonomy) -> Mapping:
    """Return what the controls of `generate` mean."""
    return read_config(generate(taxonomy), taxonomy)[0]


def _names(taxonomy: Taxonomy) -> dict[str, str]:
    """Return what people see of every class; a name that two classes share gets the slug."""
    shared = Counter(c.name.casefold() for c in taxonomy.classes)
    return {c.slug: c.name if shared[c.name.casefold()] == 1 else f"{c.name} ({c.slug})" for c in taxonomy.classes}


def _header(parent: ElementTree.Element, value: str, size: int) -> None:
    ElementTree.SubElement(parent, "Header", value=value, size=str(size))


def _choices(parent: ElementTree.Element, name: str, choice: str, items: list[tuple[str, str, str]]) -> None:
    control = ElementTree.SubElement(parent, "Choices", name=name, toName=IMAGE, choice=choice, showInline="true")
    for value, alias, hotkey in items:
        ElementTree.SubElement(control, "Choice", value=value, alias=alias, hotkey=hotkey)

"""Which class a word means: its slug or name in any spelling, or a well-known word for the same expression."""

import re

from annotator.consensus import UNUSABLE
from annotator.taxonomy import Taxonomy

_SYNONYMS: tuple[frozenset[str], ...] = (
    frozenset({"neutral", "neutrality", "neutral face", "no expression"}),
    frozenset({"happiness", "happy", "joy", "joyful"}),
    frozenset({"surprise", "surprised"}),
    frozenset({"sadness", "sad"}),
    frozenset({"anger", "angry"}),
    frozenset({"disgust", "disgusted"}),
    frozenset({"fear", "fearful", "afraid", "scared"}),
    frozenset({"contempt", "contemptuous"}),
)
"""Words of one expression. Near ones, such as calm or excited, are left out: only a person can say what they mean."""
_UNUSABLE = frozenset({"unusable", "no face", "not a face", "nf", "noface", "bad image", "not usable"})


def plain(word: str) -> str:
    """Return a word without case, and with single spaces where it has any of space, -, _ and /."""
    return re.sub(r"[\s_/-]+", " ", word).strip().casefold()


def class_of(word: str, taxonomy: Taxonomy) -> str | None:
    """Return the slug that `word` means, "unusable", or None.

    Slugs and names of the taxonomy come first; a synonym counts when one class alone has it.
    """
    said = plain(word)
    for item in taxonomy.classes:
        if said in (plain(item.slug), plain(item.name)):
            return item.slug
    if said in _UNUSABLE:
        return UNUSABLE
    family = next((words for words in _SYNONYMS if said in words), frozenset[str]())
    meant = [item.slug for item in taxonomy.classes if {plain(item.slug), plain(item.name)} & family]
    return meant[0] if len(meant) == 1 else None

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

    A slug as it is written comes first, then slugs and names in any spelling; a spelling or a synonym counts when it is
    that of one class alone.
    """
    if word in taxonomy.slugs:
        return word
    said = plain(word)
    spelled = [c.slug for c in taxonomy.classes if said in (plain(c.slug), plain(c.name))]
    if spelled:
        return spelled[0] if len(spelled) == 1 else None
    if said in _UNUSABLE:
        return UNUSABLE
    family = next((words for words in _SYNONYMS if said in words), frozenset[str]())
    meant = [c.slug for c in taxonomy.classes if {plain(c.slug), plain(c.name)} & family]
    return meant[0] if len(meant) == 1 else None

"""Why a face is asked, in a sentence for people, and the question it puts to them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from annotator.records import Arm, Sight
from annotator.taxonomy import Taxonomy

_PLAIN = "Which expression?"


@dataclass(frozen=True, slots=True)
class Reason:
    """`sentence` says why this face is in the queue; `question` is what to decide."""

    sentence: str
    question: str


def explain(
    arm: Arm,
    taxonomy: Taxonomy,
    *,
    mode: str = "fast",
    probs: NDArray[np.float32] | None = None,
    candidates: int = 0,
    given: int = -1,
    blind: bool = False,
    seen: int = 0,
) -> Reason:
    """Explain one item of an order from what `annotator.scores` keeps about it.

    `probs` (K,) are those of the generation, `candidates` its bit mask, `given` the label under review or -1, `seen`
    bits of `Sight`. A blind item names no class.
    """
    names = [c.name.lower() for c in taxonomy.classes]
    chosen = [k for k in range(len(names)) if candidates >> k & 1]
    if blind:
        return Reason("A random face kept for validation: nothing is suggested.", _PLAIN)
    if mode == "import order":
        return Reason("Next in import order: the faces have not been read yet.", _PLAIN)
    if mode != "fast" or probs is None or not chosen:
        return Reason(_unmodelled(arm), _PLAIN)
    chosen.sort(key=lambda k: (-float(probs[k]), k))
    ranked = [names[k] for k in chosen]
    if arm == "review":
        return _review(names, probs, ranked, given, Sight(seen))
    sentence = _sentence(arm, names, probs, ranked)
    if Sight.OPEN_SET & seen and arm != "random":
        sentence = f"{sentence[:-1]}; in training several expressions stayed possible."
    return Reason(sentence, _ask(ranked))


def _unmodelled(arm: Arm) -> str:
    if arm == "random":
        return "A random face, to keep the estimates honest."
    return "Unlike the faces asked before: it covers a new part of the pool."


def _sentence(arm: Arm, names: Sequence[str], probs: NDArray[np.float32], ranked: list[str]) -> str:
    first, second = (int(k) for k in np.argsort(-probs, kind="stable")[:2])
    if arm == "uncertain":
        return (
            f"The model cannot decide: {names[first]} {_percent(probs[first])}, "
            f"{names[second]} {_percent(probs[second])}."
        )
    if arm == "quota":
        return f"Few labels so far for classes this face may show; the model reads {_listed(ranked, 'or')}."
    if arm == "random":
        return "A random face, to keep the estimates honest."
    return f"Unlike the faces labeled so far; the model reads {_listed(ranked, 'or')}."


def _review(names: Sequence[str], probs: NDArray[np.float32], ranked: list[str], given: int, seen: Sight) -> Reason:
    if given < 0:
        return Reason(f"People disagree about this face: {_listed(ranked, 'or')}.", _ask(ranked))
    others = [name for name in ranked if name != names[given]]
    picture = others[0] if others else names[int(np.argmax(probs))]
    said = [f"The label says {names[given]}; the picture looks like {picture}"]
    if Sight.TWO_READINGS in seen:
        said.append("two readings of it disagree")
    if Sight.OUTLIER in seen:
        said.append(f"it lies far from other faces of {names[given]}")
    return Reason(f"{', and '.join(said)}.", f"The label says {names[given]}. Keep?")


def _ask(ranked: list[str]) -> str:
    if len(ranked) == 1:
        return f"{ranked[0].capitalize()}?"
    return f"{_listed(ranked, 'or').capitalize()}?"


def _listed(words: list[str], last: str) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} {last} {words[-1]}"


def _percent(p: float) -> str:
    return f"{round(100 * float(p))} %"

"""The order in which faces are asked: one generation of scores, then the faces it does not know yet."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from annotator.acquisition.reasons import Reason, explain
from annotator.records import ARMS, Arm
from annotator.scores import Scores
from annotator.taxonomy import Taxonomy

_REVIEW = ARMS.index("review")
_COVERAGE = ARMS.index("coverage")
IMPORT_ORDER = "import order"


@dataclass(frozen=True, slots=True)
class FaceOrder:
    """One order, never changed: a new one takes its place as a whole.

    `rows` (M,) int64 representatives in the order to ask; `review` (M,) bool, whether the item asks about a label that
    is there. The first positions are those of `scores`; what follows are faces that were imported after it.
    """

    rows: NDArray[np.int64]
    review: NDArray[np.bool_]
    scores: Scores | None
    label_seq: int

    @classmethod
    def build(cls, scores: Scores | None, pool: NDArray[np.int64]) -> "FaceOrder":
        """Put the rows of `pool` (ascending) that `scores` does not know behind its order, in import order."""
        if scores is None:
            return cls(pool, np.zeros(len(pool), dtype=bool), None, 0)
        unknown = pool[~np.isin(pool, scores.rows, assume_unique=True)]
        rows = np.concatenate([scores.order, unknown])
        review = np.concatenate([scores.arms == _REVIEW, np.zeros(len(unknown), dtype=bool)])
        return cls(rows, review, scores, int(scores.meta["label_seq"]))

    @property
    def mode(self) -> str:
        """How the faces are ordered, for people."""
        return self.scores.mode if self.scores is not None else IMPORT_ORDER

    @property
    def model_version(self) -> str | None:
        """The generation that ordered them, None without one."""
        return self.scores.model_version if self.scores is not None else None

    def model_version_of(self, position: int) -> str | None:
        """Return the generation that put the item where it is, None for a face that no model has read."""
        return self.model_version if self._scored(position) else None

    def position(self, row: int) -> int | None:
        """Return where a row is in this order, None when it is not."""
        found = np.flatnonzero(self.rows == row)
        return int(found[0]) if len(found) else None

    def priority(self, position: int) -> float:
        """Return a position as a number in (0, 1), the first lowest; faces that are imported behind it change none."""
        scored = len(self.scores.order) if self.scores is not None else 0
        if position < scored:
            return (position + 1) / (scored + 2)
        behind = position - scored
        return (scored + 1 + behind / (behind + 1)) / (scored + 2)

    def confidence(self, position: int) -> float:
        """Return the highest class probability of an item, 1 where no model has read it."""
        if self.scores is None or not self._scored(position) or self.scores.mode != "fast":
            return 1.0
        probs = self.scores.probs_of(int(self.rows[position]))
        return 1.0 if probs is None else float(probs.max())

    def _scored(self, position: int) -> bool:
        return self.scores is not None and position < len(self.scores.order)

    def arm(self, position: int) -> Arm:
        """Return why the item is in the queue."""
        if self.scores is not None and self._scored(position):
            return self.scores.arm(position)
        return ARMS[_COVERAGE]

    def blind(self, position: int) -> bool:
        """Tell whether nothing may be suggested: a random face reserved for validation."""
        return self.scores is not None and self._scored(position) and bool(self.scores.blind[position])

    def given(self, position: int) -> str | None:
        """Return the label under review, or None."""
        if self.scores is None or not self._scored(position) or self.scores.given[position] < 0:
            return None
        return self.scores.classes[int(self.scores.given[position])]

    def candidates(self, position: int) -> tuple[dict[str, object], ...]:
        """Return the candidate set with probabilities, most probable first; empty when blind or without a model."""
        if self.scores is None or not self._scored(position) or self.blind(position):
            return ()
        probs = self.scores.probs_of(int(self.rows[position]))
        if probs is None:
            return ()
        place = {slug: k for k, slug in enumerate(self.scores.classes)}
        return tuple(
            {"class": slug, "prob": round(float(probs[place[slug]]), 4)}
            for slug in self.scores.candidate_slugs(position)
        )

    def explain(self, position: int, taxonomy: Taxonomy, *, show_given: bool) -> Reason:
        """Say why the face is asked and what to decide.

        `show_given` False keeps the label under review to itself: a second opinion is independent of the first.
        """
        scores = self.scores
        if scores is None or not self._scored(position):
            mode = IMPORT_ORDER if scores is None else "coverage"
            reason = explain(ARMS[_COVERAGE], taxonomy, mode=mode)
            return reason if scores is None else Reason("Imported a moment ago: not read yet.", reason.question)
        arm = scores.arm(position)
        given = int(scores.given[position])
        hidden = arm == "review" and given >= 0 and not show_given
        reason = explain(
            arm,
            taxonomy,
            mode=scores.mode,
            probs=scores.probs_of(int(self.rows[position])),
            candidates=int(scores.candidates[position]),
            given=-1 if hidden else given,
            blind=bool(scores.blind[position]),
            seen=int(scores.seen[position]),
        )
        return Reason("Someone has answered this face: a second opinion.", reason.question) if hidden else reason

"""From answers to labels (DESIGN 5.1), from annotations alone: no model has a say here.

Of a group's annotations these count: not undone, not superseded, of each person the latest that says something about
the face (skip and flag do not). People outrank imports. An adjudication wins and locks. Otherwise candidate sets are
intersected and `not` answers subtracted; when nothing is left, or some call the picture unusable and some do not,
people contradict each other and the label is disputed, with vote shares as its soft label.

An answer `beside` another was given at the same time as the same person's other one (in a linked tool): it does not
replace it but is a second voice, until that person answers again.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from annotator.records import Label, LabelState

COUNTING = frozenset({"label", "candidates", "not", "unusable"})
"""Kinds that say something about the face."""
UNUSABLE = "unusable"


class Opinion(Protocol):
    """What `derive` needs of an annotation: a record or a database row."""

    @property
    def id(self) -> int:
        """Primary key, which `supersedes` names."""

    @property
    def seq(self) -> int:
        """Commit order."""

    @property
    def user_id(self) -> int | None:
        """None for an import."""

    @property
    def kind(self) -> str:
        """One of `ANSWER_KINDS`."""

    @property
    def classes(self) -> Sequence[str]:
        """Slugs."""

    @property
    def supersedes(self) -> int | None:
        """The row that this one replaces (or, for an undo, takes back)."""

    @property
    def adjudicates(self) -> bool:
        """Whether a reviewer settled the face with it."""

    @property
    def votes(self) -> Mapping[str, int] | None:
        """Counts of a crowd, for imports."""

    @property
    def beside(self) -> bool:
        """Whether it does not replace the same person's other answer."""


T = TypeVar("T", bound=Opinion)


def effective(annotations: Iterable[T]) -> list[T]:
    """Return the annotations that still stand, in commit order: neither undone nor superseded.

    An undone answer gives back what it superseded. Undo rows themselves are left out.
    """
    rows = sorted(annotations, key=lambda a: a.seq)
    undone = {a.supersedes for a in rows if a.kind == "undo"}
    replaced = {a.supersedes for a in rows if a.kind != "undo" and a.id not in undone}
    return [a for a in rows if a.kind != "undo" and a.id not in undone and a.id not in replaced]


def opinions(annotations: Iterable[T]) -> dict[int, T]:
    """Return each person's latest answer that stands and says something about the face, by user id."""
    return {a.user_id: a for a in effective(annotations) if a.user_id is not None and a.kind in COUNTING}


def voices(standing: Iterable[T]) -> dict[int, list[T]]:
    """Return what each person says now, by user id: the latest answer, and those beside it that came later.

    `standing` are answers that stand and say something about the face, in commit order; imports are left out.
    """
    said: dict[int, list[T]] = {}
    for answer in standing:
        if answer.user_id is None:
            continue
        if answer.beside:
            said.setdefault(answer.user_id, []).append(answer)
        else:
            said[answer.user_id] = [answer]
    return said


def derive(annotations: Iterable[Opinion], classes: Sequence[str]) -> Label:
    """Return the label of one group.

    Args:
        annotations: all annotations of the group and its copies, in any order.
        classes: every slug of the taxonomy, in order; results follow this order.
    """
    standing = [a for a in effective(annotations) if a.kind in COUNTING]
    if not standing:
        return Label("unlabeled")
    rulings = [a for a in standing if a.adjudicates and a.user_id is not None]
    said = voices(standing)
    if rulings:
        return _ruled(rulings[-1], said, classes)
    if said:
        return _combined([answer for person in said.values() for answer in person], classes)
    if any(a.votes for a in standing):
        return _voted(standing, classes)
    return _combined(standing, classes)


def _ruled(ruling: Opinion, said: Mapping[int, Sequence[Opinion]], classes: Sequence[str]) -> Label:
    """Return what a reviewer ruled; one who said two things at once has ruled only if they agree."""
    own = said.get(ruling.user_id, ()) if ruling.user_id is not None else ()
    if len(own) > 1 and any(answer is ruling for answer in own):
        both = _combined(own, classes)
        if both.state == "disputed":
            return both
    return _combined([ruling], classes, locked=True)


def _combined(answers: Sequence[Opinion], classes: Sequence[str], *, locked: bool = False) -> Label:
    """Intersect, subtract, or find the contradiction; every answer has one voice."""
    imported = all(a.user_id is None for a in answers)
    num_annotators = 0 if imported else len({a.user_id for a in answers})
    seq = max(a.seq for a in answers)
    claims = [a for a in answers if a.kind != UNUSABLE]
    if not claims:
        return Label("unusable", (), {}, locked, num_annotators, imported, seq)
    left = set(classes)
    for answer in claims:
        left &= _possible(answer, classes)
    if left and len(claims) == len(answers):
        state: LabelState = "labeled" if len(left) == 1 else "partial"
        return Label(state, _ordered(left, classes), {}, locked, num_annotators, imported, seq)
    soft = vote_shares([_possible(answer, classes) for answer in claims], classes)
    claimed = {c for a in claims if a.kind != "not" for c in a.classes} or set(soft)
    return Label("disputed", _ordered(claimed, classes), soft, locked, num_annotators, imported, seq)


def _voted(answers: Sequence[Opinion], classes: Sequence[str]) -> Label:
    """Count a crowd's votes over the copies of a face: a clear winner above half of the usable votes, or a dispute."""
    total = tally(answers)
    seq = max(a.seq for a in answers)
    votes = {c: total[c] for c in classes if total.get(c, 0) > 0}
    usable = sum(votes.values())
    unusable = total.get(UNUSABLE, 0)
    if unusable > usable:
        return Label("unusable", imported=True, seq=seq)
    if not usable:
        return Label("unlabeled")
    winner = max(votes, key=lambda c: votes[c])
    if 2 * votes[winner] > usable:
        return Label("labeled", (winner,), imported=True, seq=seq)
    return Label("disputed", tuple(votes), {c: n / usable for c, n in votes.items()}, imported=True, seq=seq)


def tally(answers: Iterable[Opinion]) -> dict[str, float]:
    """Return the summed votes by slug and "unusable"; an answer without votes is one vote, split over its classes."""
    total: dict[str, float] = {}
    for answer in answers:
        if answer.votes:
            cast: Mapping[str, float] = answer.votes
        elif answer.kind == UNUSABLE:
            cast = {UNUSABLE: 1}
        else:
            cast = {c: 1 / len(answer.classes) for c in answer.classes}
        for name, count in cast.items():
            total[name] = total.get(name, 0) + count
    return total


def vote_shares(possible: Sequence[set[str]], classes: Sequence[str]) -> dict[str, float]:
    """Return the share of each class when every voice is spread evenly over what it holds possible; sums to one."""
    voices = [p for p in possible if p]
    shares = {c: sum(1 / len(p) for p in voices if c in p) / len(voices) for c in classes} if voices else {}
    return {c: share for c, share in shares.items() if share > 0}


def _possible(answer: Opinion, classes: Sequence[str]) -> set[str]:
    return set(classes) - set(answer.classes) if answer.kind == "not" else set(answer.classes)


def _ordered(slugs: set[str], classes: Sequence[str]) -> tuple[str, ...]:
    return tuple(c for c in classes if c in slugs)


@dataclass(frozen=True, slots=True)
class DawidSkene:
    """The outcome of `dawid_skene`.

    `posterior` (I, K): the probability of each class for each item. `confusion` (A, K, K): for each annotator the
    probability of answering j when the truth is k, at [a, k, j]. `prior` (K,): class shares. Rows sum to one.
    """

    posterior: npt.NDArray[np.float64]
    confusion: npt.NDArray[np.float64]
    prior: npt.NDArray[np.float64]
    iterations: int


def dawid_skene(
    answers: npt.ArrayLike,
    num_classes: int,
    *,
    max_iterations: int = 100,
    tolerance: float = 1e-6,
    smoothing: float = 0.01,
) -> DawidSkene:
    """Estimate true classes and annotators' confusions together by EM (Dawid and Skene 1979).

    Starts at vote shares. `smoothing` is added to every count of the M step, so that an annotator who never met a class
    is not certain about it.

    Args:
        answers: (N, 3) integers: item in [0, I), annotator in [0, A), class in [0, K); I, A are one above the largest.
        num_classes: K.
        max_iterations: bound on EM steps, at least 1.
        tolerance: stop when no posterior moves by more.
        smoothing: pseudo-count, at least 0.

    Raises:
        ValueError: `answers` is empty, not (N, 3), or holds an index out of range.
    """
    table = np.asarray(answers, dtype=np.int64)
    if table.ndim != 2 or table.shape[1] != 3 or not len(table):
        raise ValueError(f"answers must be (N, 3) with N > 0, got shape {table.shape}")
    if table.min() < 0 or table[:, 2].max() >= num_classes:
        raise ValueError(f"answers hold an index below 0 or a class outside 0..{num_classes - 1}")
    item, annotator, said = table.T
    counts = np.zeros((item.max() + 1, num_classes))
    np.add.at(counts, (item, said), 1.0)
    # An item nobody answered starts, and stays, at the prior.
    posterior = np.where(counts.any(1, keepdims=True), counts, 1.0)
    posterior /= posterior.sum(1, keepdims=True)
    iterations, moved = 0, np.inf
    while moved > tolerance and iterations < max_iterations:
        iterations += 1
        prior = posterior.sum(0) + smoothing
        prior /= prior.sum()
        confusion = np.full((annotator.max() + 1, num_classes, num_classes), float(smoothing))
        np.add.at(confusion.transpose(0, 2, 1), (annotator, said), posterior[item])
        confusion /= np.maximum(confusion.sum(2, keepdims=True), np.finfo(float).tiny)
        log_posterior = np.tile(np.log(np.maximum(prior, np.finfo(float).tiny)), (len(posterior), 1))
        np.add.at(log_posterior, item, np.log(np.maximum(confusion[annotator, :, said], np.finfo(float).tiny)))
        log_posterior -= log_posterior.max(1, keepdims=True)
        updated = np.exp(log_posterior)
        updated /= updated.sum(1, keepdims=True)
        moved = float(np.abs(updated - posterior).max())
        posterior = updated
    return DawidSkene(posterior, confusion, prior, iterations)

"""Labels and votes that came with an image: truth for reporting, or answers of the import."""

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from annotator.consensus import UNUSABLE, derive
from annotator.errors import TaxonomyError
from annotator.records import NewImage
from annotator.store.answers import blank_values
from annotator.store.labels import Opinion, label_values


def check(item: NewImage, classes: Sequence[str]) -> None:
    """Raise `TaxonomyError` when a given label or vote of `item` names an unknown class or a negative count."""
    names = [*([item.given] if item.given is not None else []), *(item.votes or {})]
    for name in names:
        if name != UNUSABLE and name not in classes:
            raise TaxonomyError(f"{item.path}: unknown class {name!r}; this workspace knows {', '.join(classes)}")
    for name, count in (item.votes or {}).items():
        if count < 0:
            raise TaxonomyError(f"{item.path}: {count} votes for {name!r}: counts start at 0")


def truth_of(item: NewImage, classes: Sequence[str]) -> tuple[str | None, dict[str, int] | None]:
    """Return the label to report against (given, or the strict plurality of the votes) and the votes."""
    votes = {k: v for k, v in item.votes.items() if v} if item.votes else None
    if item.given is not None or not votes:
        return item.given, votes
    top = _top(votes, classes)
    return (top[0] if len(top) == 1 else None), votes


def import_annotations(
    fresh: Sequence[NewImage], values: Sequence[Mapping[str, Any]], classes: Sequence[str], taxonomy_version: int
) -> list[dict[str, Any]]:
    """Return one annotation, without its seq, for every pool image that came with a label or votes."""
    now = datetime.now(UTC)
    made = []
    for item, value in zip(fresh, values, strict=True):
        if value["split"] != "pool" or value["state"] != "active":
            continue
        kind, said, votes = _said(item, classes)
        if kind is None:
            continue
        made.append(
            {
                **blank_values(None, f"import:{value['image_id']}", value["row"], now, taxonomy_version),
                "kind": kind,
                "classes": said,
                "supersedes": None,
                "source": "import",
                "votes": votes,
            }
        )
    return made


def split_lone(rows: Sequence[dict[str, Any]], group_of: Mapping[int, int]) -> tuple[list[dict[str, Any]], set[int]]:
    """Tell annotations that are the only one of a brand-new group from the groups that need a full derivation."""
    sizes = Counter(group_of.values())
    lone = [r for r in rows if group_of[r["row"]] == r["row"] and sizes[r["row"]] == 1]
    alone = {r["row"] for r in lone}
    return lone, {group_of[r["row"]] for r in rows} - alone


def lone_labels(rows: Sequence[dict[str, Any]], classes: Sequence[str]) -> list[dict[str, Any]]:
    """Return the `labels` rows of groups with one imported annotation each."""
    made = []
    for row in rows:
        opinion = Opinion(
            row["id"], row["seq"], None, row["kind"], tuple(row["classes"]), None, False, row["votes"], row["row"]
        )
        label = derive([opinion], classes)
        if label.state != "unlabeled":
            made.append(label_values(row["row"], label))
    return made


def _said(item: NewImage, classes: Sequence[str]) -> tuple[str | None, list[str], dict[str, int] | None]:
    votes = {k: v for k, v in item.votes.items() if v} if item.votes else None
    if votes:
        top = _top(votes, classes)
        named = [c for c in top if c != UNUSABLE]
        if not named:
            return "unusable", [], votes
        return ("label" if len(named) == 1 else "candidates"), named, votes
    if item.given is None:
        return None, [], None
    return ("unusable", [], None) if item.given == UNUSABLE else ("label", [item.given], None)


def _top(votes: Mapping[str, int], classes: Sequence[str]) -> list[str]:
    most = max(votes.values())
    return [name for name in (*classes, UNUSABLE) if votes.get(name, 0) == most]

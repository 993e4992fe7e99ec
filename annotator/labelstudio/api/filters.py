"""Conditions on the tasks of a Label Studio project, as its data manager writes them."""

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

Filter = dict[str, Any]
"""One condition; several are met together."""


def since(moment: datetime) -> Filter:
    """Return the condition that a task changed at `moment` or later; `moment` must carry its time zone."""
    return _condition("tasks:updated_at", "greater_or_equal", "Datetime", stamp(moment))


def above(task_id: int) -> Filter:
    """Return the condition that a task's id is above `task_id`."""
    return _condition("tasks:id", "greater", "Number", task_id)


def changed_at(moment: datetime) -> Filter:
    """Return the condition that a task changed last at exactly `moment`."""
    return _condition("tasks:updated_at", "equal", "Datetime", stamp(moment))


def among(ids: Iterable[int]) -> Filter:
    """Return the condition that a task's id is one of `ids`."""
    return _condition("tasks:id", "in_list", "Number", list(ids))


def annotated() -> Filter:
    """Return the condition that a task has at least one annotation; the server does not honour `only_annotated`."""
    return _condition("tasks:total_annotations", "greater", "Number", 0)


def skipped() -> Filter:
    """Return the condition that somebody has skipped a task."""
    return _condition("tasks:cancelled_annotations", "greater", "Number", 0)


def data_equals(field: str, value: str) -> Filter:
    """Return the condition that a field of the task's data has exactly this text."""
    return _condition(f"tasks:data.{field}", "equal", "String", value)


def stamp(moment: datetime) -> str:
    """Return a time as the server's filters read it: UTC, always with microseconds (without them it answers 500)."""
    if moment.tzinfo is None:
        raise ValueError("a time without its zone")
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _condition(field: str, operator: str, kind: str, value: Any) -> Filter:
    return {"filter": f"filter:{field}", "operator": operator, "type": kind, "value": value}

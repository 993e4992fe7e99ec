"""What a sync would do and how it stands, as tables."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.table import Table

from annotator.commands.console import out

if TYPE_CHECKING:
    from annotator.labelstudio.answers.planned import Planned
    from annotator.labelstudio.tasks.push_report import PushPlan

_ROWS = 30
"""Lines of a table that are shown; a lab's project has more than anybody reads."""


def push_json(plan: "PushPlan") -> dict[str, Any]:
    """Return a plan of a push as plain JSON values."""
    told = {name: value for name, value in asdict(plan).items() if name != "first"}
    told["first"] = [
        {"image_id": face.image.image_id, "arm": face.arm, "reason": face.reason, "priority": face.priority}
        for face in plan.first
    ]
    return told


def show_push(plan: "PushPlan") -> None:
    """Print what a push would do: the sentence, the first faces, the tasks to take back."""
    out.print(plan.summary(), markup=False)
    table = _table("would be pushed first", "face", "why", "reason")
    for face in plan.first:
        table.add_row(face.image.image_id, face.arm, face.reason)
    _print(table)
    table = _table("would be withdrawn", "task", "row", "reason")
    for task in plan.withdraw[:_ROWS]:
        table.add_row(str(task.task_id), str(task.row), task.reason)
    _print(table, len(plan.withdraw))
    for warning in plan.warnings:
        out.print(warning, markup=False)


def show_planned(planned: Sequence["Planned"]) -> None:
    """Print the annotations that would come in or go out, one a line."""
    if not planned:
        out.print("no annotation would change on either side", markup=False)
        return
    table = _table("annotations that differ", "direction", "what", "task", "user", "says", "annotation", "reason")
    for line in planned[:_ROWS]:
        table.add_row(
            line.direction, line.what, str(line.task_id), line.user, line.says, line.annotation, line.reason or ""
        )
    _print(table, len(planned))


def show_status(told: dict[str, Any]) -> None:
    """Print the state of a link."""
    if not told["linked"]:
        out.print("no project is linked", markup=False)
        return
    out.print(f"project {told['project_id']}, {told['title']!r}, of {told['url']}", markup=False)
    for name in ("model_version", "cursor", "tasks", "answers", "outbox", "sync", "server"):
        if name in told:
            value = told[name]
            said = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else value
            out.print(f"{name:>14}: {said}", markup=False)
    for name, items in told["needs_a_person"].items():
        for item in items:
            out.print(f"{name:>14}: " + ", ".join(f"{k} {v}" for k, v in item.items()), markup=False)


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", highlight=False)
    for column in columns:
        table.add_column(column)
    return table


def _print(table: Table, total: int = 0) -> None:
    if table.row_count:
        out.print(table, markup=False)
    if total > table.row_count:
        out.print(f"and {total - table.row_count} more", markup=False)

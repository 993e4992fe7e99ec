"""What every command shares: the console, progress bars, opening a workspace, printing JSON."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from annotator.settings import Workspace
from annotator.store import LabelStore

out = Console(highlight=False, soft_wrap=True)
"""Results go to standard output."""
err = Console(stderr=True, highlight=False, soft_wrap=True)
"""Progress and errors go to standard error, so that `--json` output stays readable by scripts."""

WorkspaceArg = Annotated[Path, typer.Argument(metavar="WS", help="The workspace folder.")]
JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON object for scripts.")]


@contextmanager
def opened(root: Path) -> Iterator[tuple[Workspace, LabelStore]]:
    """Open a workspace and its store, and close the store afterwards."""
    workspace = Workspace.open(root)
    store = LabelStore.open(workspace)
    try:
        yield workspace, store
    finally:
        store.close()


def print_json(data: Any) -> None:
    """Print `data` as JSON on standard output, times as ISO strings."""
    typer.echo(json.dumps(data, indent=2, default=str))


def chain_line(told: dict[str, Any]) -> str:
    """Say how far a method is, from a line of the status."""
    if told["snapshot"] is None:
        return "no snapshot yet"
    said = [told["snapshot"], f"{told['rounds']} rounds"]
    said += [
        f"{name.removeprefix('val_')} {told['metrics'][name]:.3f}"
        for name in ("val_overall", "val_balanced")
        if name in told["metrics"]
    ]
    if told["serving"] is not None:
        said.append("serves" if told["serving"] == told["snapshot"] else f"{told['serving']} serves")
    return ", ".join(said if told["trained"] else [*said, "not trained any more"])


@contextmanager
def progress_bar(title: str) -> Iterator[Callable[[int, int, str], None]]:
    """Show a bar with an estimate on standard error; the callback takes done, total (0 when unknown) and a note."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=err, transient=True) as bar:
        task = bar.add_task(title, total=None, note="")

        def update(done: int, total: int = 0, note: str = "") -> None:
            bar.update(task, completed=done, total=total or None, note=note)

        yield update

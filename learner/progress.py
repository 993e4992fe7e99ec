"""What a command shows while it works, and the JSON that it prints."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

console = Console(stderr=True)


@contextmanager
def bar(title: str) -> Iterator[Callable[[float, str], None]]:
    """Show a bar with the time left; the function takes the share done and a remark."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[remark]}"),
    )
    with Progress(*columns, console=console, transient=not console.is_terminal) as shown:
        task = shown.add_task(title, total=1.0, remark="")
        yield lambda share, remark: shown.update(task, completed=share, remark=remark)


def losses(logs: dict[str, float]) -> str:
    """Shorten the losses for one line."""
    return " " + " ".join(f"{name} {value:.3f}" for name, value in sorted(logs.items()) if "/" not in name)


def print_json(value: Any) -> None:
    """Write one JSON document to standard output."""
    sys.stdout.write(json.dumps(value, indent=1) + "\n")

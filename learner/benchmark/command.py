"""`python -m learner benchmark`: run a grid, then write its table and figures."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from learner.benchmark import tables
from learner.benchmark.grid import Grid
from learner.benchmark.runner import Standing, chosen_cells, only_one, prepare_grid, run_grid
from learner.errors import InputError, LearnerError

console = Console(stderr=True)


def benchmark(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML, see configs/benchmarks/")],
    out: Annotated[Path, typer.Argument(help="folder of the grid; the same command resumes it")],
    jobs: Annotated[int, typer.Option(min=1, help="runs at the same time, each with run.threads threads")] = 1,
    data: Annotated[list[str] | None, typer.Option(metavar="NAME=PATH", help="where a data set is; repeatable")] = None,
    only: Annotated[list[str] | None, typer.Option(metavar="PATTERN", help="cells to run, e.g. '*/leaf-96/*'")] = None,
    report_only: Annotated[bool, typer.Option(help="run nothing; report what is finished")] = False,
    figures: Annotated[bool, typer.Option(help="also draw figures (HTML)")] = True,
) -> None:
    """Run data sets × label counts × methods × seeds; write report.md, table.csv and figures."""
    grid = Grid.load(config)
    places = dict(_place(text) for text in data or [])
    failed: set[str] = set()
    some = True
    if not report_only:
        cells = chosen_cells(grid, only or [])
        with only_one(out), _bar(len(cells), jobs) as (told, tell):
            datasets = prepare_grid(grid, config, out, places, told)
            standing = run_grid(grid, cells, datasets, out, jobs, tell)
        failed, some = standing.failed, bool(standing.finished)
    if some:
        _report(grid, out, figures)
    if failed:
        raise LearnerError(f"{len(failed)} of the cells failed: {', '.join(sorted(failed)[:3])}; see their failed.json")


def _report(grid: Grid, out: Path, figures: bool) -> None:
    groups = tables.gather(grid, out)
    console.print(f"table: {tables.write(grid, groups, out)}", soft_wrap=True)
    if figures:
        from learner.benchmark.figures import draw  # plotly takes a second to load

        notes: list[str] = []
        pages = draw(groups, out / "figures", notes.append)
        for note in dict.fromkeys(notes):
            console.print(f"note: {note}", markup=False, soft_wrap=True)
        console.print(f"{len(pages)} figures: {out / 'figures'}", soft_wrap=True)


def _place(text: str) -> tuple[str, str]:
    name, equals, path = text.partition("=")
    if not equals or not name or not path:
        raise InputError(f"--data {text}: write NAME=PATH")
    return name, path


Shown = tuple["_Told", "_Tell"]


class _Told:
    """Shows what is being prepared."""

    def __init__(self, bar: Progress, task: int) -> None:
        self.bar, self.task = bar, task

    def __call__(self, what: str, share: float) -> None:
        self.bar.update(self.task, completed=share, remark=what)  # type: ignore[arg-type]


class _Tell:
    """Shows how far the grid is and how long it will take."""

    def __init__(self, bar: Progress, task: int, num: int, jobs: int) -> None:
        self.bar, self.task, self.num, self.jobs = bar, task, num, jobs

    def __call__(self, standing: Standing) -> None:
        ended = len(standing.finished) + len(standing.failed)
        failed = f", {len(standing.failed)} failed" if standing.failed else ""
        left = standing.seconds_left(self.jobs)
        remark = f"{ended} of {self.num} runs{failed}, {duration(left)}"
        self.bar.update(self.task, completed=standing.share, remark=remark)  # type: ignore[arg-type]


@contextmanager
def _bar(num: int, jobs: int) -> Iterator[Shown]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[remark]}"),
    )
    with Progress(*columns, console=console, transient=not console.is_terminal) as bar:
        task = bar.add_task("benchmark", total=1.0, remark="")
        yield _Told(bar, task), _Tell(bar, task, num, jobs)


def duration(seconds: float | None) -> str:
    """Write an estimate of the time left."""
    if seconds is None:
        return "time left unknown"
    minutes = round(seconds / 60)
    return f"about {minutes // 60} h {minutes % 60:02d} min left" if minutes >= 60 else f"about {minutes} min left"

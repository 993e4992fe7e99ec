"""Runs the cells of a grid, in this process or in several, and tells how far they are."""

import fcntl
import json
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from learner.benchmark.cell import prepare, run_cell
from learner.benchmark.faces import Dataset, Told, locate, open_dataset
from learner.benchmark.grid import Cell, Grid
from learner.boxes import load_boxes
from learner.errors import InputError, LearnerError
from learner.round import StoppedError, stop_requests

POLL_SECONDS = 1.0


@dataclass(slots=True)
class Standing:
    """How far a grid is: steps by cell, and how long a step of each method has taken."""

    steps: dict[str, int]
    method: dict[str, str]
    done: dict[str, int] = field(default_factory=dict)
    finished: set[str] = field(default_factory=set)
    failed: set[str] = field(default_factory=set)
    _pace: dict[str, list[float]] = field(default_factory=dict)

    def note(self, name: str, report: dict[str, Any]) -> None:
        """Take a progress report of a running cell."""
        step = int(report["step"])
        self.done[name] = step
        left = report.get("eta_s")
        if report["state"] == "training" and step and left is not None and step < self.steps[name]:
            self._pace[name] = [left / (self.steps[name] - step)]

    def finish(self, name: str, seconds_per_step: float | None, failed: bool) -> None:
        """Note that a cell has ended."""
        (self.failed if failed else self.finished).add(name)
        self.done[name] = self.steps[name]
        if seconds_per_step is not None:
            self._pace[name] = [seconds_per_step]

    @property
    def share(self) -> float:
        """Steps done over steps in all."""
        return sum(self.done.values()) / max(1, sum(self.steps.values()))

    def seconds_left(self, jobs: int) -> float | None:
        """Estimate the time left from the pace of each method so far; None before the first report."""
        if not self._pace:
            return None
        by_method: dict[str, list[float]] = {}
        for name, pace in self._pace.items():
            by_method.setdefault(self.method[name], []).extend(pace)
        every = [value for values in by_method.values() for value in values]
        total = 0.0
        for name, steps in self.steps.items():
            known = by_method.get(self.method[name], every)
            total += (steps - self.done.get(name, 0)) * sum(known) / len(known)
        return total / jobs


@contextmanager
def only_one(out: Path) -> Iterator[None]:
    """Hold the grid's folder.

    Raises:
        InputError: another benchmark is at work there.
    """
    out.mkdir(parents=True, exist_ok=True)
    with (out / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise InputError(f"another benchmark runs in {out}") from error
        yield


def prepare_grid(grid: Grid, config: Path, out: Path, places: dict[str, str], told: Told) -> dict[str, Dataset]:
    """Decode every data set once; `places` are given by hand and override the configuration's sources.

    Raises:
        InputError: a source is missing or malformed, or OUT was made from another.
    """
    known = {entry.name for entry in grid.datasets} | {f"{entry.name}.bank" for entry in grid.datasets if entry.bank}
    known |= {f"{entry.name}.boxes" for entry in grid.datasets}
    unknown = sorted(places.keys() - known)
    if unknown:
        raise InputError(f"no data set {unknown[0]!r}; there are {', '.join(sorted(known))}")
    sizes = sorted({cell.config.image_size for cell in grid.cells()})
    datasets = {}
    for entry in grid.datasets:
        source = locate(places.get(entry.name, entry.source), config)
        opened = open_dataset(entry, source, out / "data" / entry.name, sizes, told)
        if entry.bank is not None:
            opened = opened.on_bank(locate(places.get(f"{entry.name}.bank", entry.bank), config))
        boxes = places.get(f"{entry.name}.boxes", entry.boxes)
        datasets[entry.name] = opened if boxes is None else replace(opened, boxes=load_boxes(locate(boxes, config)))
    return datasets


def chosen_cells(grid: Grid, only: Sequence[str]) -> list[Cell]:
    """Return the cells whose name matches one of the patterns, all without patterns.

    Raises:
        InputError: none does.
    """
    cells = [cell for cell in grid.cells() if not only or any(fnmatch(cell.name, pattern) for pattern in only)]
    if not cells:
        raise InputError(f"no cell matches {', '.join(only)}; the first is {next(grid.cells()).name}")
    return cells


def run_grid(
    grid: Grid,
    cells: Sequence[Cell],
    datasets: dict[str, Dataset],
    out: Path,
    jobs: int,
    tell: Callable[[Standing], None],
) -> Standing:
    """Run what is not finished; `tell` hears the standing about once a second.

    Raises:
        InputError: OUT holds a cell of another configuration, or several jobs have no thread count.
        StoppedError: SIGTERM came; everything so far is saved.
        LearnerError: a worker died.
    """
    if jobs > 1 and any(cell.config.threads is None for cell in cells):
        raise InputError(f"--jobs {jobs} needs run.threads in the configuration, so that runs share the processor")
    folders = {cell.name: out / "cells" / cell.name for cell in cells}
    for cell in cells:
        prepare(cell, datasets[cell.dataset.name], folders[cell.name], grid.validations)
    standing = Standing({c.name: c.config.steps for c in cells}, {c.name: c.method.title for c in cells})
    waiting = []
    for name, folder in folders.items():
        if (folder / "results.json").exists():
            _finish(standing, name, folder)
        else:
            waiting.append(name)
    tell(standing)
    if jobs == 1:
        for name in waiting:
            run_cell(folders[name], _listener(standing, name, tell))
            _finish(standing, name, folders[name])
            tell(standing)
    elif waiting:
        _run_in_workers(waiting, folders, standing, jobs, tell)
    return standing


def _listener(standing: Standing, name: str, tell: Callable[[Standing], None]) -> Callable[[dict[str, Any]], None]:
    def listen(report: dict[str, Any]) -> None:
        standing.note(name, report)
        tell(standing)

    return listen


def _finish(standing: Standing, name: str, folder: Path) -> None:
    if not (folder / "results.json").exists():
        standing.finish(name, None, failed=True)
        return
    found = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    standing.finish(name, 1 / max(found["steps_per_second"], 1e-9), failed=False)


def _run_in_workers(
    waiting: list[str], folders: dict[str, Path], standing: Standing, jobs: int, tell: Callable[[Standing], None]
) -> None:
    context, before = multiprocessing.get_context("spawn"), multiprocessing.active_children()
    with (
        stop_requests() as asked,
        ProcessPoolExecutor(min(jobs, len(waiting)), context, _follow_parent, (os.getpid(),)) as pool,
    ):
        running: dict[Future[None], str] = {pool.submit(_work, folders[name]): name for name in waiting}
        try:
            while running:
                if asked.is_set():
                    raise StoppedError(f"stopped with {len(standing.finished)} of {len(folders)} runs done; saved")
                ended, _ = wait(running, POLL_SECONDS, FIRST_COMPLETED)
                for future in ended:
                    name = running.pop(future)
                    future.result()
                    _finish(standing, name, folders[name])
                for name in running.values():
                    _look(standing, name, folders[name])
                tell(standing)
        except BrokenProcessPool as error:
            raise LearnerError("a worker died; the same command goes on from its checkpoint") from error
        finally:
            if running:
                for worker in multiprocessing.active_children():
                    if worker not in before:
                        worker.terminate()  # saves and stops
            pool.shutdown(wait=True, cancel_futures=True)


def _work(folder: Path) -> None:
    try:
        run_cell(folder)
    except StoppedError:
        os._exit(1)  # or this worker would take the next cell from the queue


def _look(standing: Standing, name: str, folder: Path) -> None:
    try:
        standing.note(name, json.loads((folder / "progress.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError):
        return  # not started yet


def _follow_parent(parent: int) -> None:
    """End this worker when its parent is gone, so that a killed grid leaves nothing at work."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(POLL_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()

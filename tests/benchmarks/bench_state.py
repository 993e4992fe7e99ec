"""What per-image state costs at a million rows: `python -m tests.benchmarks.bench_state`.

LION with eight classes: memory of all its tables, and milliseconds to read and to write one batch of scattered rows.
"""

import argparse
import json
import statistics
import sys
import time

import torch

from learner.methods import build
from learner.state import SampleTable

NUM_CLASSES = 8


def tables_of(method: str) -> list[SampleTable]:
    """Return every per-image table of a method: its own and its keepers'."""
    recipe = build(method, NUM_CLASSES, 128)
    found = [value for keeper in recipe.keepers for value in vars(keeper).values() if isinstance(value, SampleTable)]
    return [*recipe.tables, *found]


def visit(tables: list[SampleTable], rows: torch.Tensor) -> None:
    """Read a batch of every table and write it back."""
    for table in tables:
        view = table.at(rows)
        for name in table.columns:
            view[name] = view[name]


def measure(rows: int, batch: int, times: int) -> dict[str, float]:
    """Visit scattered batches of LION's tables at so many rows."""
    torch.set_num_threads(1)
    tables = tables_of("lion")
    for table in tables:
        table.reserve(rows)
    draw = torch.Generator().manual_seed(0)
    took = []
    for _ in range(times):
        chosen = torch.randint(rows, (batch,), generator=draw).unique()
        began = time.perf_counter()
        visit(tables, chosen)
        took.append((time.perf_counter() - began) * 1e3)
    return {
        "rows": rows,
        "batch": batch,
        "tables": len(tables),
        "megabytes": sum(table.nbytes for table in tables) / 1e6,
        "update_ms_median": statistics.median(took),
        "update_ms_90th": statistics.quantiles(took, n=10)[-1],
    }


def main() -> None:
    """Measure and print one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--times", type=int, default=200)
    given = parser.parse_args()
    sys.stdout.write(json.dumps(measure(given.rows, given.batch, given.times), indent=1) + "\n")


if __name__ == "__main__":
    main()

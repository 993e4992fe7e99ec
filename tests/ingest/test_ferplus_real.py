"""The real FER+ archive, where it is installed: the known facts about it come out."""

from pathlib import Path

import pytest

from annotator.ingest.importer import run_import
from annotator.store import LabelStore


@pytest.mark.slow
def test_the_known_figures_of_ferplus(sqlite_store: LabelStore, ferplus_zip: Path) -> None:
    report = run_import(sqlite_store.workspace, sqlite_store, ferplus_zip, "ferplus")
    assert (report.samples, report.added, report.repeated_rows, report.quarantined) == (32_137, 32_137, 3, 0)
    assert (report.distinct, report.duplicate_groups, report.straddling) == (30_618, 1_270, 269)
    counts = sqlite_store.images.counts()
    assert counts["pool"] == 28_558
    assert counts["val"] + counts["leak"] == 3_579
    truth = [t.truth for t in sqlite_store.images.truth("pool")]
    assert sum(t != "unusable" for t in truth) == 28_386  # by plurality, the three repeated rows counted once
    again = run_import(sqlite_store.workspace, sqlite_store, ferplus_zip, "ferplus")
    assert (again.added, again.changed, again.quarantined, again.unchanged) == (0, 0, 0, 32_137)

"""What an import did, for people and for scripts."""

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from annotator.records import KnownFace
from annotator.store.images import SPLITS, STATES, PoolTable


@dataclass(slots=True)
class ImportReport:
    """The outcome of one import.

    `faces` is what was asked for. `small`, `blurred` and `turned` faces are among those added; `group_photos` hold more
    than one face, and the labels of `unclear` of these were dropped: nobody knows whose they are.

    `samples` = `added` + `changed` + `unchanged` + `quarantined` + `gone`. `added` rows are usable ones (copies across
    splits, `leaks`, included), `changed` files had other content before, `quarantined` counts files newly kept out and
    `gone` imported files that are no longer there; their answers and cached pixels stay. `distinct`, `duplicate_groups`
    and `straddling` (groups with copies in more than one split) describe the whole workspace afterwards.
    """

    source: str
    format: str
    samples: int = 0
    added: int = 0
    changed: int = 0
    unchanged: int = 0
    quarantined: int = 0
    gone: int = 0
    repeated_rows: int = 0
    leaks: int = 0
    ignored_files: int = 0
    misnamed: int = 0
    distinct: int = 0
    duplicate_groups: int = 0
    straddling: int = 0
    rebuilt: int = 0
    faces: str = "none"
    small: int = 0
    blurred: int = 0
    turned: int = 0
    group_photos: int = 0
    unclear: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0
    images_per_s: float = 0.0
    longest_transaction_ms: float = 0.0

    def quarantine(self, reason: str) -> None:
        """Count one more file kept out."""
        self.quarantined += 1
        self.reasons[reason] += 1

    def flag(self, face: KnownFace) -> None:
        """Count what makes one more face hard to read."""
        self.small += face.small
        self.blurred += face.blurred
        self.turned += bool(face.turned)

    def describe(self, table: PoolTable) -> None:
        """Fill in the figures on groups from every sample of the workspace."""
        usable = np.isin(table.state, [STATES.index("active"), STATES.index("leak")])
        groups, members = np.unique(table.group[usable], return_counts=True)
        sides = np.unique(np.stack([table.group[usable], table.split[usable]]), axis=1)[0]
        self.distinct = len(groups)
        self.duplicate_groups = int((members > 1).sum())
        self.straddling = int((np.unique(sides, return_counts=True)[1] > 1).sum())

    def as_dict(self) -> dict[str, Any]:
        """Return everything as JSON-ready values."""
        return asdict(self) | {"reasons": dict(self.reasons.most_common())}

    def summary(self) -> str:
        """Return a few lines for a terminal."""
        lines = [
            f"{self.source}: {self.samples} samples ({self.format}), {self.added} added, {self.unchanged} unchanged, "
            f"{self.changed} changed, {self.quarantined} quarantined in {self.seconds:.1f} s "
            f"({self.images_per_s:.0f} images/s)",
            f"the workspace has {self.distinct} distinct pictures, {self.duplicate_groups} of them more than once and "
            f"{self.straddling} in more than one of {', '.join(SPLITS)} ({self.leaks} copies newly left out)",
        ]
        if self.faces != "none":
            lines.append(
                f"faces ({self.faces}): {self.group_photos} photos with several; of those added {self.small} are "
                f"small, {self.blurred} blurred, {self.turned} turned away"
            )
        if self.unclear:
            lines.append(f"{self.unclear} photos came with a label and show several faces: these labels were not used")
        if self.repeated_rows:
            lines.append(f"{self.repeated_rows} repeated rows counted once")
        if self.gone:
            lines.append(f"{self.gone} imported files are no longer there; their answers stay")
        if self.misnamed:
            lines.append(f"{self.misnamed} files have the extension of another image type")
        if self.ignored_files:
            lines.append(f"{self.ignored_files} files that are no images were passed over")
        if self.rebuilt:
            lines.append(f"{self.rebuilt} rows of an interrupted import were completed in the pixel cache")
        lines += [f"quarantined {count}: {reason}" for reason, count in self.reasons.most_common(10)]
        return "\n".join(lines + self.notes)

"""One table of a grid: means over seeds, paired intervals, the papers' numbers beside ours; Markdown and CSV."""

import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from learner.benchmark.bootstrap import Difference, paired_bootstrap
from learner.benchmark.grid import Grid, MethodEntry
from learner.benchmark.published import NAMES, published
from learner.errors import InputError


@dataclass(frozen=True, slots=True)
class Run:
    """A finished cell: its results and the folder with its predictions."""

    folder: Path
    found: dict[str, Any]

    def right(self) -> tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.int64]]:
        """Return evaluated rows (N,), which are right (N,) and their true classes (N,)."""
        rows, probs = np.load(self.folder / "out" / "rows.npy"), np.load(self.folder / "out" / "probs.npy")
        with np.load(self.folder / "eval.npz", allow_pickle=False) as data:
            order = np.argsort(data["rows"])
            truth = data["truth"][order][np.searchsorted(data["rows"][order], rows)]
        return rows, probs.argmax(axis=1) == truth, truth


@dataclass(slots=True)
class Group:
    """The runs of one method on one data set and split, by split seed; what it is paired with, and gains."""

    dataset: str
    split: str
    method: MethodEntry
    runs: dict[int, Run] = field(default_factory=dict)
    host: str | None = None
    plain: str | None = None
    gains: dict[str, Difference] = field(default_factory=dict)

    def values(self, pick: Callable[[dict[str, Any]], float | None]) -> list[float]:
        """Read a number from every run that has it."""
        found = (pick(run.found) for _, run in sorted(self.runs.items()))
        return [value for value in found if value is not None]


def gather(grid: Grid, out: Path) -> list[Group]:
    """Read the finished cells of a grid, grouped, and compare each method with its host and with labels alone.

    Raises:
        InputError: nothing is finished.
    """
    groups: dict[tuple[str, str, str], Group] = {}
    for cell in grid.cells():
        path = out / "cells" / cell.name / "results.json"
        if not path.exists():
            continue
        key = (cell.dataset.name, cell.split.name, cell.method.title)
        group = groups.setdefault(key, Group(cell.dataset.name, cell.split.name, cell.method))
        group.runs[cell.seed] = Run(path.parent, json.loads(path.read_text(encoding="utf-8")))
    if not groups:
        raise InputError(f"no finished run in {out}")
    plain = next((m.title for m in grid.methods if m.name == "supervised"), None)
    for (dataset, split, title), group in groups.items():
        group.host, group.plain = grid.host_of(group.method), None if plain == title else plain
        for against in sorted({name for name in (group.host, group.plain) if name is not None}):
            other = groups.get((dataset, split, against))
            found = None if other is None else compare(group, other, grid.bootstrap)
            if found is not None:
                group.gains[against] = found
    order = {method.title: index for index, method in enumerate(grid.methods)}
    return sorted(groups.values(), key=lambda g: (g.dataset, _natural(g.split), order[g.method.title]))


def _natural(split: str) -> tuple[Any, ...]:
    return tuple((0, float(p), "") if p.replace(".", "", 1).isdigit() else (1, 0.0, p) for p in split.split("-"))


def compare(group: Group, other: Group, draws: int) -> Difference | None:
    """Bootstrap two methods over images and the seeds that both have; None without a common seed."""
    seeds = sorted(group.runs.keys() & other.runs.keys())
    if not seeds:
        return None
    mine = [group.runs[seed].right() for seed in seeds]
    theirs = [other.runs[seed].right() for seed in seeds]
    if any((a[0] != b[0]).any() or (a[0] != mine[0][0]).any() for a, b in zip(mine, theirs, strict=True)):
        raise InputError(f"{group.method.title} and {other.method.title} were evaluated on different images")
    right, left = np.stack([a[1] for a in mine]), np.stack([b[1] for b in theirs])
    return paired_bootstrap(right, left, mine[0][2], draws)


COLUMNS: tuple[tuple[str, Callable[[dict[str, Any]], float | None]], ...] = (
    ("balanced", lambda r: r["last"]["balanced"]),
    ("balanced_without_rare", lambda r: r["last"]["balanced_without_rare"]),
    ("overall", lambda r: r["last"]["overall"]),
    ("best_on_val_balanced", lambda r: (r["best_on_val"] or {}).get("balanced")),
    ("ece", lambda r: r["last"]["ece"]),
    ("log_loss", lambda r: r["last"]["log_loss"]),
    ("coverage_at_end", lambda r: r["pseudo_at_end"].get("coverage", {}).get("all")),
    ("precision_at_end", lambda r: r["pseudo_at_end"].get("precision", {}).get("all")),
    ("negative_error_at_end", lambda r: r["pseudo_at_end"].get("negative_error", {}).get("all")),
    ("seconds", lambda r: r["seconds"]),
    ("cpu_seconds", lambda r: r["cpu_seconds"]),
)


def mean_std(values: Sequence[float]) -> tuple[float | None, float | None]:
    """Return the mean and the sample standard deviation; None where too few values make one."""
    if not values:
        return None, None
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None


def row_of(group: Group) -> dict[str, Any]:
    """Return the CSV row of a group."""
    first = next(iter(group.runs.values())).found
    row: dict[str, Any] = {
        "dataset": group.dataset,
        "split": group.split,
        "method": group.method.title,
        "initialisation": first["initialisation"],
        "labels": sum(first["counts"]),
        "seeds": len(group.runs),
        "steps": first["steps"],
    }
    for name, pick in COLUMNS:
        row[name], row[f"{name}_std"] = mean_std(group.values(pick))
    for prefix, title in (("host", group.host), ("plain", group.plain)):
        found = group.gains.get(title or "")
        row[prefix] = title or ""
        row |= {f"{prefix}_gain_{part}": getattr(found, part, None) for part in ("mean", "low", "high")}
    for metric in ("balanced", "overall"):
        known = papers(group, metric)
        row[f"paper_{metric}"] = "; ".join(known)
    row["preset_hash"] = first["preset_hash"]
    row["labels_hashes"] = " ".join(run.found["labels_hash"] for _, run in sorted(group.runs.items()))
    return row


def papers(group: Group, metric: str) -> list[str]:
    """Return what the papers print for a group, with their table."""
    kind = next(iter(group.runs.values())).found["kind"]
    name = group.method.published or NAMES.get(group.method.name, group.method.title)
    found = published(kind, group.split, name, metric)
    return [f"{p.mean:.2f}" + (f" ± {p.std:.2f}" if p.std is not None else "") + f" ({p.source})" for p in found]


def write(grid: Grid, groups: list[Group], out: Path) -> Path:
    """Write `table.csv`, `per_class.csv` and `report.md` of finished runs; return the report's path."""
    rows = [row_of(group) for group in groups]
    _write_csv(out / "table.csv", rows)
    _write_csv(out / "per_class.csv", [row for group in groups for row in class_rows(group)])
    text = [f"# {grid.name}", "", *_explain(grid, groups, out)]
    for dataset, split in dict.fromkeys((g.dataset, g.split) for g in groups):
        mine = [group for group in groups if (group.dataset, group.split) == (dataset, split)]
        text += ["", f"## {dataset}, {split}", "", *_labels(mine[0]), "", *_main(mine), "", *_recalls(mine)]
        text += _pseudo(mine)
    report = out / "report.md"
    report.write_text("\n".join(text) + "\n", encoding="utf-8")
    return report


def _write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)


def _explain(grid: Grid, groups: list[Group], out: Path) -> list[str]:
    runs = [run.found for group in groups for run in group.runs.values()]
    starts = sorted({found["initialisation"] for found in runs})
    machines = sorted({f"{m['platform']}, {m['device']}, {m['threads']} threads" for m in (f["machine"] for f in runs)})
    total = sum(1 for _ in grid.cells())
    text = [
        f"{len(runs)} of {total} runs. Initialisation: {'; '.join(starts)}. Machine: {'; '.join(machines)}.",
        "",
        "Percent, mean ± standard deviation over split seeds. The reported model is the averaged one (EMA) at the "
        "last step. Balanced: mean of per-class recall. Best on validation: the model chosen on images that its number "
        "leaves out; not for comparison. Gains are in points of balanced accuracy with a 95 % interval from a paired "
        f"bootstrap over images and split seeds ({grid.bootstrap} draws).",
    ]
    for name in dict.fromkeys(group.dataset for group in groups):
        path = out / "data" / name / "copies.json"
        if path.exists():
            copies = json.loads(path.read_text(encoding="utf-8"))
            text += [
                "",
                f"{name}: {copies['evaluated']} of {copies['asked']} images are evaluated; left out as copies of "
                f"training images: {copies['left_out_exact']} exact, {copies['left_out_near']} near "
                f"({copies['near_means']}). " + ", ".join(f"{k} {v}" for k, v in copies["per_class"].items()) + ".",
            ]
    return text


def _labels(group: Group) -> list[str]:
    found = next(iter(group.runs.values())).found
    counts = ", ".join(f"{name} {n}" for name, n in zip(found["classes"], found["counts"], strict=True))
    short = [name for name, a, b in zip(found["classes"], found["counts"], found["wanted"], strict=True) if a < b]
    more = f"; the data set has fewer than asked of {', '.join(short)}" if short else ""
    return [f"{sum(found['counts'])} labels: {counts}{more}."]


def percent(mean: float | None, std: float | None = None, digits: int = 1) -> str:
    """Write a share in percent."""
    if mean is None:
        return "–"
    return f"{100 * mean:.{digits}f}" + (f" ± {100 * std:.{digits}f}" if std is not None else "")


def _main(groups: list[Group]) -> list[str]:
    rare = any(group.values(COLUMNS[1][1]) != group.values(COLUMNS[0][1]) for group in groups)
    heads = ["method", "seeds", "balanced", *(["without disgust, contempt"] if rare else []), "overall"]
    heads += [
        "best on validation",
        "gain over host",
        "gain over labels alone",
        "ECE",
        "log loss",
        "steps",
        "seconds (CPU)",
    ]
    heads += ["papers: balanced", "papers: overall"]
    text = [_line(heads), _line(["---"] * len(heads))]
    for group in groups:
        row = row_of(group)
        host = f"{_gain(group, group.host)} vs {group.host}" if group.host in group.gains else "–"
        plain = _gain(group, group.plain) if group.plain in group.gains else "–"
        shown = [group.method.title, str(row["seeds"]), percent(row["balanced"], row["balanced_std"])]
        shown += [percent(row["balanced_without_rare"], row["balanced_without_rare_std"])] if rare else []
        shown += [percent(row["overall"], row["overall_std"])]
        shown += [percent(row["best_on_val_balanced"], row["best_on_val_balanced_std"]), host, plain]
        shown += [
            f"{row['ece']:.3f}",
            f"{row['log_loss']:.3f}",
            str(row["steps"]),
            f"{row['seconds']:.0f} ({row['cpu_seconds']:.0f})",
        ]
        shown += [row["paper_balanced"] or "–", row["paper_overall"] or "–"]
        text.append(_line(shown))
    return text


def _gain(group: Group, against: str | None) -> str:
    found = group.gains[against or ""]
    return f"{100 * found.mean:+.1f} [{100 * found.low:+.1f}, {100 * found.high:+.1f}]"


def _recalls(groups: list[Group]) -> list[str]:
    found = next(iter(groups[0].runs.values())).found
    classes, support = found["classes"], found["last"]["support"]
    heads = ["recall", *(f"{name} ({support[name]})" for name in classes)]
    text = [_line(heads), _line(["---"] * len(heads))]
    for group in groups:
        means = [mean_std(group.values(lambda r, c=name: r["last"]["recall"][c])) for name in classes]  # type: ignore[misc]
        text.append(_line([group.method.title, *(percent(m, s) for m, s in means)]))
    return text


def _pseudo(groups: list[Group]) -> list[str]:
    """Write coverage and precision of pseudo-labels in the last tenth of a run, for the methods that make them."""
    mine = [group for group in groups if any(run.found["pseudo_at_end"] for run in group.runs.values())]
    if not mine:
        return []
    classes = next(iter(mine[0].runs.values())).found["classes"]
    heads = ["pseudo-labels at the end: coverage / precision", "all", *classes]
    text = ["", _line(heads), _line(["---"] * len(heads))]
    for group in mine:
        shown = [_pair(group, None), *(_pair(group, name) for name in classes)]
        text.append(_line([group.method.title, *shown]))
    return [*text, *_sets(mine)]


def _sets(groups: list[Group]) -> list[str]:
    """Write how often positive and complementary sets hold the truth, for the methods that make them."""
    text = []
    for group in groups:
        held, size, wrong, weight = (
            mean_std(group.values(lambda r, k=kind: r["pseudo_at_end"].get(k, {}).get("all")))[0]  # type: ignore[misc]
            for kind in ("positive_holds", "positive_size", "negative_error", "weight")
        )
        if held is not None and size is not None:
            text.append(
                f"{group.method.title}: positive sets of {size:.1f} classes hold the truth of {percent(held)} %."
            )
        if wrong is not None:
            text.append(f"{group.method.title}: complementary sets hold the truth of {percent(wrong)} %.")
        if weight is not None and abs(weight - (group_coverage(group) or 0)) > 0.005:
            text.append(f"{group.method.title}: mean weight of an unlabeled image {weight:.2f}, confident or not.")
    return [line for sentence in text for line in ("", sentence)]


def group_coverage(group: Group) -> float | None:
    """Return the share of unlabeled images that were confident at the end, None without pseudo-labels."""
    return mean_std(group.values(dict(COLUMNS)["coverage_at_end"]))[0]


def _pair(group: Group, name: str | None) -> str:
    def pick(kind: str) -> Callable[[dict[str, Any]], float | None]:
        def read(found: dict[str, Any]) -> float | None:
            share = found["pseudo_at_end"].get(kind)
            value: float | None = None if share is None else share["all"] if name is None else share["per_class"][name]
            return value

        return read

    coverage, precision = (mean_std(group.values(pick(kind)))[0] for kind in ("coverage", "precision"))
    return f"{percent(coverage, digits=0)} / {percent(precision, digits=0)}"


def class_rows(group: Group) -> list[dict[str, Any]]:
    """Return recall and support of every class and run, and its pseudo-labels' coverage and precision."""
    rows = []
    for seed, run in sorted(group.runs.items()):
        quality = run.found["pseudo_at_end"]
        for name, labels in zip(run.found["classes"], run.found["counts"], strict=True):
            row = {"dataset": group.dataset, "split": group.split, "method": group.method.title, "split_seed": seed}
            row |= {"class": name, "labels": labels, "images": run.found["last"]["support"][name]}
            row["recall"] = run.found["last"]["recall"][name]
            for kind in ("coverage", "precision", "negative_error"):
                row[kind] = quality[kind]["per_class"][name] if kind in quality else None
            rows.append(row)
    return rows


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"

"""Figures of a grid as offline HTML pages: one `plotly.min.js` beside them, nothing loaded from elsewhere."""

from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray
from plotly.colors import qualitative
from plotly.subplots import make_subplots

from learner.benchmark.tables import Group, Run
from learner.benchmark.watch import read_log
from learner.errors import InputError

BINS = 15
UMAP_POINTS = 2000
_METHOD_COLORS, _CLASS_COLORS = qualitative.D3, qualitative.Dark24
_Numbers = NDArray[np.float64]


def draw(groups: Sequence[Group], folder: Path, told: Callable[[str], None]) -> list[Path]:
    """Draw every figure that the finished runs allow; return the pages.

    UMAP needs the optional package umap-learn; without it the page is left out and `told` hears how to get it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pages = [_page(learning_curves(groups), folder / "learning_curves.html")]
    for (dataset, split), found in groupby(groups, lambda group: (group.dataset, group.split)):
        mine, stem = list(found), f"{dataset}_{split}"
        pages.append(_page(confusion_matrices(mine), folder / f"confusion_{stem}.html"))
        pages.append(_page(reliability(mine), folder / f"reliability_{stem}.html"))
        pseudo = pseudo_labels(mine)
        if pseudo is not None:
            pages.append(_page(pseudo, folder / f"pseudo_labels_{stem}.html"))
        try:
            pages.append(_page(feature_maps(mine), folder / f"umap_{stem}.html"))
        except InputError as error:
            told(str(error))
    return pages


def _page(figure: go.Figure, path: Path) -> Path:
    figure.write_html(path, include_plotlyjs="directory")
    return path


def _title(group: Group) -> str:
    return f"{group.dataset}, {group.split}"


def learning_curves(groups: Sequence[Group]) -> go.Figure:
    """Draw balanced accuracy over the number of labels: mean of the seeds, a band of one standard deviation."""
    panels = list(dict.fromkeys((g.dataset, g.split.split("-")[0]) for g in groups))
    figure = make_subplots(cols=len(panels), subplot_titles=[", ".join(panel) for panel in panels])
    titles = list(dict.fromkeys(g.method.title for g in groups))
    for column, panel in enumerate(panels, 1):
        for title in titles:
            mine = [g for g in groups if (g.dataset, g.split.split("-")[0]) == panel and g.method.title == title]
            points = sorted(_point(group) for group in mine)
            color = _METHOD_COLORS[titles.index(title) % len(_METHOD_COLORS)]
            _band(figure, column, title, points, color)
        figure.update_xaxes(title="labels", type="log", col=column)
    figure.update_yaxes(title="balanced accuracy, %", col=1)
    return figure.update_layout(title="Balanced accuracy of the last averaged model")


def _point(group: Group) -> tuple[float, float, float]:
    """Return labels, mean and standard deviation in percent."""
    values = np.array([run.found["last"]["balanced"] for run in group.runs.values()]) * 100
    labels = float(np.mean([sum(run.found["counts"]) for run in group.runs.values()]))
    return labels, float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else 0.0


def _band(figure: go.Figure, column: int, title: str, points: list[tuple[float, float, float]], color: str) -> None:
    if not points:
        return
    x, mean, std = (np.array(values) for values in zip(*points, strict=True))
    legend, place = {"legendgroup": title}, {"row": 1, "col": column}
    around = go.Scatter(
        x=np.r_[x, x[::-1]],
        y=np.r_[mean + std, (mean - std)[::-1]],
        fill="toself",
        fillcolor=color,
        opacity=0.15,
        line={"width": 0},
        hoverinfo="skip",
        showlegend=False,
        **legend,
    )
    line = go.Scatter(
        x=x, y=mean, mode="lines+markers", name=title, line={"color": color}, showlegend=column == 1, **legend
    )
    figure.add_trace(around, **place)
    figure.add_trace(line, **place)


def confusion_matrices(groups: Sequence[Group]) -> go.Figure:
    """Draw a matrix per method, summed over seeds: the share of each true class (row) read as each class."""
    figure = make_subplots(cols=len(groups), subplot_titles=[g.method.title for g in groups], shared_yaxes=True)
    for column, group in enumerate(groups, 1):
        total = np.sum([run.found["last"]["confusion"] for run in group.runs.values()], axis=0)
        share = 100 * total / np.maximum(total.sum(axis=1, keepdims=True), 1)
        classes = _classes(group)
        heat = go.Heatmap(
            z=share,
            x=classes,
            y=classes,
            zmin=0,
            zmax=100,
            colorscale="Blues",
            showscale=column == len(groups),
            text=np.round(share).astype(int),
            texttemplate="%{text}",
            customdata=total,
            hovertemplate="true %{y}, read as %{x}: %{z:.1f} %, %{customdata} images<extra></extra>",
        )
        figure.add_trace(heat, row=1, col=column)
        figure.update_xaxes(title="read as", col=column)
    figure.update_yaxes(title="true class", autorange="reversed", col=1)
    return figure.update_layout(title=f"Confusion, {_title(groups[0])}, percent of the true class", height=520)


def _classes(group: Group) -> list[str]:
    return list(next(iter(group.runs.values())).found["classes"])


def reliability(groups: Sequence[Group]) -> go.Figure:
    """Draw accuracy over confidence in equal bins, all seeds together; on the diagonal a model is calibrated."""
    figure = go.Figure(
        go.Scatter(x=[0, 1], y=[0, 1], mode="lines", line={"dash": "dot", "color": "gray"}, name="calibrated")
    )
    for index, group in enumerate(groups):
        conf, right = (np.concatenate(parts) for parts in zip(*map(_confidence, group.runs.values()), strict=True))
        x, y, size = reliability_bins(conf, right)
        ece = float((np.abs(x - y) * size).sum() / max(1, size.sum()))
        figure.add_scatter(
            x=x, y=y, mode="lines+markers", name=f"{group.method.title} (ECE {ece:.3f})", customdata=size,
            line={"color": _METHOD_COLORS[index % len(_METHOD_COLORS)]},
            hovertemplate="confidence %{x:.2f}, right %{y:.2f}, %{customdata} images<extra></extra>",
        )  # fmt: skip
    figure.update_xaxes(title="mean confidence", range=[0, 1]).update_yaxes(title="share right", range=[0, 1])
    return figure.update_layout(title=f"Reliability, {_title(groups[0])}", width=720, height=640)


def _confidence(run: Run) -> tuple[_Numbers, NDArray[np.bool_]]:
    probs = np.load(run.folder / "out" / "probs.npy")
    return probs.max(axis=1).astype(np.float64), run.right()[1]


def reliability_bins(conf: _Numbers, right: NDArray[np.bool_]) -> tuple[_Numbers, _Numbers, _Numbers]:
    """Return mean confidence, share right and size of every bin that is not empty."""
    index = np.minimum((conf * BINS).astype(np.int64), BINS - 1)
    size = np.bincount(index, minlength=BINS).astype(np.float64)
    some = size > 0
    mean = np.bincount(index, conf, BINS)[some] / size[some]
    return mean, np.bincount(index, right, BINS)[some] / size[some], size[some]


def pseudo_labels(groups: Sequence[Group]) -> go.Figure | None:
    """Draw coverage and precision of pseudo-labels over the steps, per class; None where no method makes any.

    The sums of all seeds are divided, so that rare classes are not averages of nothing.
    """
    curves = [(group, _counted(group)) for group in groups]
    curves = [(group, found) for group, found in curves if found]
    if not curves:
        return None
    heads = [group.method.title for group, _ in curves]
    figure = make_subplots(2, len(curves), subplot_titles=heads, shared_xaxes=True, shared_yaxes=True)
    for column, (group, found) in enumerate(curves, 1):
        steps = np.array(sorted(found))
        names = ["all", *_classes(group)]
        for row, (top, bottom) in enumerate((("used", "seen"), ("right", "named")), 1):
            over, under = (np.array([found[step][name] for step in steps]) for name in (top, bottom))
            over, under = (np.c_[values.sum(axis=1), values] for values in (over, under))
            share = np.divide(100 * over, under, out=np.full(over.shape, np.nan), where=under > 0)
            for index, name in enumerate(names):
                line = {"color": "black", "width": 3} if index == 0 else {"color": _CLASS_COLORS[index - 1], "width": 1}
                trace = go.Scatter(
                    x=steps, y=share[:, index], name=name, legendgroup=name, line=line, showlegend=row == column == 1
                )
                figure.add_trace(trace, row=row, col=column)
        figure.update_xaxes(title="step", row=2, col=column)
    figure.update_yaxes(title="coverage, %", row=1, col=1).update_yaxes(title="precision, %", row=2, col=1)
    return figure.update_layout(title=f"Pseudo-labels of images with a known class, {_title(groups[0])}", height=640)


def _counted(group: Group) -> dict[int, dict[str, _Numbers]]:
    """Sum the counts of all seeds by step."""
    found: dict[int, dict[str, _Numbers]] = {}
    for run in group.runs.values():
        for record in read_log(run.folder):
            if "pseudo" in record:
                here = found.setdefault(record["step"], {})
                for name in ("seen", "used", "named", "right"):
                    here[name] = here.get(name, 0) + np.array(record["pseudo"][name])
    return found


def feature_maps(groups: Sequence[Group]) -> go.Figure:
    """Draw each method's features of the evaluated images (first seed) in two dimensions by UMAP, colored by class.

    Raises:
        InputError: umap-learn is not installed; the message says how to get it.
    """
    figure = make_subplots(cols=len(groups), subplot_titles=[g.method.title for g in groups])
    for column, group in enumerate(groups, 1):
        run = group.runs[min(group.runs)]
        places, truth = _embedding(run)
        for index, name in enumerate(_classes(group)):
            mine = places[truth == index]
            marker = {"size": 4, "opacity": 0.6, "color": _CLASS_COLORS[index % len(_CLASS_COLORS)]}
            trace = go.Scattergl(
                x=mine[:, 0],
                y=mine[:, 1],
                mode="markers",
                name=name,
                legendgroup=name,
                marker=marker,
                showlegend=column == 1,
            )
            figure.add_trace(trace, row=1, col=column)
    figure.update_xaxes(showticklabels=False).update_yaxes(showticklabels=False)
    return figure.update_layout(title=f"UMAP of features, {_title(groups[0])}", height=560)


def _embedding(run: Run) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Embed at most 2,000 images; the result is kept beside the run, which does not change any more."""
    rows, _, truth = run.right()
    chosen: NDArray[np.int64] = np.arange(len(rows))
    if len(rows) > UMAP_POINTS:
        chosen = np.sort(np.random.default_rng(0).choice(len(rows), UMAP_POINTS, replace=False))
    kept = run.folder / "umap.npy"
    if not kept.exists():
        features = np.load(run.folder / "out" / "features.npy")[chosen].astype(np.float32)
        np.save(kept, embed(features))
    return np.load(kept), truth[chosen]


def embed(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """Place features (N,d) in the plane, the same way every time: (N,2).

    Raises:
        InputError: umap-learn is not installed.
    """
    try:
        import umap
    except ImportError as error:
        raise InputError("the map of features needs umap-learn: pip install 'annotator[benchmark]'") from error
    reducer: Any = umap.UMAP(n_neighbors=min(15, len(features) - 1), random_state=0, n_jobs=1)
    places: NDArray[np.float32] = np.asarray(reducer.fit_transform(features), np.float32)
    return places

"""The curves of the Progress page, as Plotly figures that sit on a light and on a dark page alike.

Plotly takes half a second to import, so it is imported when the first figure is drawn, not when the server starts.
"""

import html
from collections.abc import Mapping, Sequence
from datetime import datetime
from itertools import cycle
from typing import Any

ACCENT = "#2f86a8"
SECOND = "#c98a1b"
COLORS = (ACCENT, SECOND, "#7a5ea8", "#3f8f5f", "#b0506a", "#5f7d2e")
TEXT = "#777b81"
GRID = "rgba(128,128,128,0.22)"
_FONT = "system-ui, -apple-system, Segoe UI, Roboto, Noto Sans, sans-serif"
_MOST_POINTS = 400


def answers_over_time(times: Sequence[datetime]) -> Any:
    """Draw how many answers stood at each time."""
    import plotly.graph_objects as go

    step = max(1, len(times) // _MOST_POINTS)
    kept = [*range(0, len(times), step)]
    if times and kept[-1] != len(times) - 1:
        kept.append(len(times) - 1)
    figure = go.Figure(
        go.Scatter(
            x=[times[i].astimezone() for i in kept],
            y=[i + 1 for i in kept],
            mode="lines",
            line={"color": ACCENT, "width": 2, "shape": "hv"},
            hovertemplate="%{y:,} answers<br>%{x|%d %b %H:%M}<extra></extra>",
        )
    )
    return _dressed(figure, "Answers given", empty=not times)


Point = tuple[int, float | None, float | None]
"""Annotations learned from, then validation accuracy overall and balanced, shares in [0, 1]."""


def accuracy(points: Mapping[str, Sequence[Point]]) -> Any:
    """Draw the validation accuracy of each method's snapshots: overall as a line, balanced as a dotted one."""
    import plotly.graph_objects as go

    figure = go.Figure()
    colors = cycle(COLORS)
    for method, chain in points.items():
        shades = (ACCENT, SECOND) if len(points) == 1 else (next(colors),) * 2
        for name, place, dash in (("overall", 1, "solid"), ("balanced", 2, "dot")):
            known = [(p[0], 100 * float(p[place] or 0)) for p in chain if p[place] is not None]
            title = name if len(points) == 1 else f"{method}, {name}"
            figure.add_trace(
                go.Scatter(
                    x=[k[0] for k in known],
                    y=[k[1] for k in known],
                    name=title,
                    mode="lines+markers",
                    line={"color": shades[place - 1], "width": 2, "dash": dash if len(points) > 1 else "solid"},
                    hovertemplate="%{y:.1f} %<extra>" + html.escape(title) + "</extra>",
                )
            )
    figure = _dressed(figure, "Validation faces read rightly, % by annotations learned from", empty=not points)
    figure.update_yaxes(range=[0, 100])
    figure.update_layout(showlegend=bool(points), legend={"orientation": "h", "x": 1, "xanchor": "right", "y": 1.12})
    return figure


def probe_curve(points: Sequence[Mapping[str, float]], title: str) -> Any:
    """Draw how well an encoder's features tell the labels apart: {step, balanced_accuracy, accuracy} per point."""
    import plotly.graph_objects as go

    figure = go.Figure()
    for name, key, color in (("balanced", "balanced_accuracy", ACCENT), ("overall", "accuracy", SECOND)):
        figure.add_trace(
            go.Scatter(
                x=[point["step"] for point in points],
                y=[100 * point[key] for point in points],
                name=name,
                mode="lines+markers",
                line={"color": color, "width": 2},
                hovertemplate="%{y:.1f} % at step %{x:,}<extra>" + name + "</extra>",
            )
        )
    figure = _dressed(figure, title, empty=not points)
    figure.update_xaxes(title_text="training steps", rangemode="tozero")
    figure.update_yaxes(title_text="accuracy, %", range=[0, 100])
    figure.update_layout(showlegend=bool(points), legend={"orientation": "h", "x": 1, "xanchor": "right", "y": 1.12})
    return figure


def class_counts(names: Sequence[str], counts: Sequence[int]) -> Any:
    """Draw how many faces carry each label."""
    return _bars("Labeled faces per class", names, counts, "%{x:,}")


def queue_mix(names: Sequence[str], shares: Sequence[float]) -> Any:
    """Draw why the next faces are asked for, shares in [0, 1]."""
    return _bars("Why the next faces are asked, %", names, [100 * s for s in shares], "%{x:.0f}")


def _bars(title: str, names: Sequence[str], values: Sequence[float], words: str) -> Any:
    import plotly.graph_objects as go

    figure = go.Figure(
        go.Bar(
            x=list(values),
            y=list(names),
            orientation="h",
            marker={"color": ACCENT},
            width=0.56,
            texttemplate=words if any(values) else "",
            textposition="outside",
            cliponaxis=False,
            hovertemplate="%{y}: " + words + "<extra></extra>",
        )
    )
    figure = _dressed(figure, title, empty=not any(values))
    figure.update_yaxes(autorange="reversed", gridcolor="rgba(0,0,0,0)")
    figure.update_xaxes(rangemode="tozero", range=None if any(values) else [0, 1])
    return figure


def _dressed(figure: Any, title: str, empty: bool) -> Any:
    figure.update_layout(
        title={"text": title, "font": {"size": 15}, "x": 0, "xref": "container", "pad": {"l": 8}},
        font={"family": _FONT, "size": 13, "color": TEXT},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        margin={"l": 8, "r": 40, "t": 48, "b": 8},
        height=288,
        autosize=True,
        showlegend=False,
        dragmode=False,
        modebar={
            "remove": ["zoom", "pan", "select", "lasso", "zoomin", "zoomout", "autoscale", "resetscale", "toimage"]
        },
    )
    figure.update_xaxes(gridcolor=GRID, zeroline=False, automargin=True, fixedrange=True)
    figure.update_yaxes(gridcolor=GRID, zeroline=False, automargin=True, fixedrange=True, rangemode="tozero")
    if empty:
        words = {"text": "Nothing yet", "showarrow": False, "xref": "paper", "yref": "paper", "x": 0.5, "y": 0.5}
        figure.update_layout(annotations=[words]).update_xaxes(visible=False).update_yaxes(visible=False)
    return figure

"""The Progress tab: three sentences for the lab's lead, then the curves. Live while somebody looks at it."""

import html
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import combinations
from math import sqrt
from typing import Any

import gradio as gr
import numpy as np

from annotator import encoders
from annotator.chains import chains, standings
from annotator.records import ARMS, LabelRow, Snapshot
from annotator.scores import ScoresReader
from annotator.settings import Workspace
from annotator.status import link_state
from annotator.store import LabelStore
from annotator.taxonomy import Taxonomy
from ui import charts
from ui.history import History
from ui.tables import ago, section

REFRESH_SECONDS = 5.0
NEXT_FACES = 500
"""How far ahead the queue's mix is counted."""
PROBE_TITLE = "Adapting the encoder: labels told apart by its features, % by training steps"
ARM_WORDS = {
    "coverage": "unlike any labeled face",
    "uncertain": "the model is unsure",
    "review": "its label looks doubtful",
    "quota": "a rare class",
    "random": "drawn at random",
}


@dataclass(frozen=True, slots=True)
class Progress:
    """Everything the page says, in numbers.

    `labels`: pool samples per label state. `per_class`: labeled groups per slug. `shared`, `agreeing`: groups that at
    least two people answered, and those of them without a dispute. `disputes`: groups per pair of classes claimed.
    `arms`: share in [0, 1] of the next faces per reason. `methods`: those that are trained in turn. `pretraining`: what
    `annotator.encoders.pretraining` returns. `link`: what `annotator.status.link_state` returns.
    """

    labels: dict[str, int]
    num_val: int
    per_class: dict[str, int]
    shared: int
    agreeing: int
    disputes: Counter[tuple[str, str]]
    times: tuple[datetime, ...]
    snapshots: tuple[Snapshot, ...]
    arms: dict[str, float]
    methods: tuple[str, ...] = ()
    pretraining: Mapping[str, Any] = field(default_factory=lambda: {"state": "none"})
    link: Mapping[str, Any] | None = None


class ProgressReader:
    """Reads `Progress` from a workspace; what is slow is read again only when it has changed."""

    def __init__(self, workspace: Workspace, store: LabelStore) -> None:
        self._workspace = workspace
        self._store = store
        self._history = History(store)
        self._seen: tuple[int, int | None] | None = None
        self._rows: list[LabelRow] = []
        self._arms: dict[str, float] = {}

    def read(self) -> Progress:
        """Return how the workspace stands now."""
        self._refresh()
        rows, slugs = self._rows, self._workspace.settings.taxonomy.slugs
        labeled = Counter(row.label.classes[0] for row in rows if row.label.state == "labeled" and row.label.classes)
        shared = [row.label for row in rows if row.label.num_annotators >= 2]
        disputes: Counter[tuple[str, str]] = Counter()
        for label in shared:
            if label.state == "disputed":
                disputes.update(combinations([s for s in slugs if s in label.classes], 2))
        return Progress(
            labels=self._store.decisions.label_counts(),
            num_val=self._store.images.counts()["val"],
            per_class={slug: labeled.get(slug, 0) for slug in slugs},
            shared=len(shared),
            agreeing=sum(label.state != "disputed" for label in shared),
            disputes=disputes,
            times=tuple(self._history.times()),
            snapshots=tuple(self._store.learning.snapshots()),
            arms=self._arms,
            methods=self._workspace.settings.learner.methods,
            pretraining=encoders.pretraining(self._workspace),
            link=link_state(self._workspace, self._store),
        )

    def _refresh(self) -> None:
        generation = self._store.learning.current_generation()
        state = (self._store.last_seq(), generation.id if generation else None)
        if state == self._seen:
            return
        self._rows = self._store.decisions.labels()
        if generation is not None and (self._seen is None or self._seen[1] != generation.id):
            scores = ScoresReader.load(self._workspace.folder("scores") / str(generation.id))
            self._arms = _shares(scores.arms[:NEXT_FACES])
        self._seen = state


def _shares(arms: "np.typing.NDArray[np.uint8]") -> dict[str, float]:
    counts = np.bincount(arms, minlength=len(ARMS))
    return {arm: float(counts[code] / max(1, len(arms))) for code, arm in enumerate(ARMS)}


def sentences(progress: Progress, taxonomy: Taxonomy, min_labels: int) -> tuple[str, str, str]:
    """Say how far the labels are, who disagrees on what, and what the last answers did for the model."""
    return _coverage(progress), _agreement(progress, taxonomy), _learning(progress, min_labels)


def _coverage(progress: Progress) -> str:
    counts = progress.labels
    total = sum(counts.values())
    if not total:
        return "There are no faces yet: import some with `annotator import`."
    share = 100 * counts["labeled"] / total
    rest = [f"{counts[state]:,} {words}" for state, words in _STATES if counts[state]]
    return f"{counts['labeled']:,} of {total:,} faces are labeled ({share:.0f} %)" + (
        f"; {', '.join(rest)}." if rest else "."
    )


_STATES = (
    ("partial", "narrowed down to a few classes"),
    ("disputed", "disputed"),
    ("unusable", "unusable"),
    ("unlabeled", "still to do"),
)


def _agreement(progress: Progress, taxonomy: Taxonomy) -> str:
    if not progress.shared:
        return "No face has been answered by two people yet, so nothing can be said about agreement."
    share = 100 * progress.agreeing / progress.shared
    said = f"People agree on {share:.0f} % of the {progress.shared:,} faces that two or more of them answered"
    if not progress.disputes:
        return f"{said}."
    names = {c.slug: c.name.lower() for c in taxonomy.classes}
    (first, second), count = progress.disputes.most_common(1)[0]
    disputed = progress.shared - progress.agreeing
    return f"{said}; {names[first]} and {names[second]} are confused most ({count} of {disputed} disputes)."


def _learning(progress: Progress, min_labels: int) -> str:
    scored = [s for s in progress.snapshots if "val_overall" in s.metrics]
    if not scored or not progress.num_val:
        if progress.snapshots:
            return "Models are being trained, but there are no validation faces to measure them on."
        return f"No model has been trained yet: the first round starts after {min_labels} labeled faces."
    last = scored[-1]
    own = [s for s in scored if s.method == last.method]
    now = last.metrics["val_overall"]
    balanced = last.metrics.get("val_balanced")
    stands = f"{100 * now:.1f} % of {progress.num_val:,} validation faces are read rightly" + (
        f" ({100 * balanced:.1f} % averaged over classes)" if balanced is not None else ""
    )
    named = f" of {last.method}" if len({s.method for s in progress.snapshots}) > 1 else ""
    if len(own) < 2:
        return f"The first model{named} is there: {stands}."
    before = own[-2].metrics["val_overall"]
    # Both models saw the same faces, so this is an upper bound on the standard error of the difference.
    error = 100 * sqrt((now * (1 - now) + before * (1 - before)) / progress.num_val)
    answers = max(0, last.label_seq - own[-2].label_seq)
    moved = f"{100 * (now - before):+.1f} ± {error:.1f} points"
    return f"The last {answers:,} annotations moved accuracy{named} by {moved}: {stands}."


def adaptation(progress: Progress) -> str | None:
    """Say how far the encoder is adapted to these faces and what it is measured on; None when nobody has asked."""
    told = progress.pretraining
    if told["state"] == "none":
        return None
    if told["state"] == "failed":
        return "Adapting the encoder to these faces has failed; the learner's message says why."
    said = "The encoder is adapted to these faces"
    if told["state"] == "running":
        share = f"{100 * (told['progress'] or 0):.0f} %"
        left = f", about {told['eta_s'] / 60:.0f} min left" if told["eta_s"] is not None else ""
        said = f"The encoder is being adapted to these faces: {share}{left}"
    if told["curve"]:
        last = told["curve"][-1]
        return (
            f"{said}. Its features tell {last['labels']:.0f} labels apart with a balanced accuracy of "
            f"{100 * last['balanced_accuracy']:.1f} % (each fifth read by a regression on the others)."
        )
    if told["measured"]:
        return f"{said}. Its first measurement is still to come."
    return f"{said}. There were too few labels to measure it when it began: two classes with five each are needed."


def linked(progress: Progress, now: datetime) -> str | None:
    """Say which Label Studio project is linked, how much is open there and when both sides were last equal."""
    link = progress.link
    if link is None:
        return None
    count = f"{link['tasks']['open']:,} tasks are open there"
    said = f"Linked to the Label Studio project “{link['title']}” at {link['url']}: {count}"
    if link["synced_at"] is None:
        return f"{said}; nothing has been synced yet."
    return f"{said}; last synced {ago(datetime.fromisoformat(link['synced_at']), now)}."


_METHODS = ("Method", "Newest snapshot", "Rounds", "Annotations", "Overall", "Balanced", "State")


def methods_markup(progress: Progress) -> str:
    """Return a table of the methods: the newest snapshot of each, how well it reads validation faces, which serves."""
    lines = []
    for line in standings(progress.snapshots, progress.methods):
        newest, metrics = line.newest, line.newest.metrics if line.newest is not None else {}
        shares = [f"{100 * metrics[k]:.1f} %" if k in metrics else "–" for k in ("val_overall", "val_balanced")]
        said = [f"{line.serving} serves"] if line.serving is not None else []
        said += [] if line.trained else ["not trained any more"]
        learned = (newest.id, str(line.rounds), f"{newest.label_seq:,}") if newest is not None else ("–", "0", "–")
        lines.append((line.method, *learned, *shares, ", ".join(said)))
    return section("Models", _METHODS, lines, empty="No model yet.")


def figures(progress: Progress, taxonomy: Taxonomy) -> tuple[Any, Any, Any, Any]:
    """Draw answers over time, accuracy per snapshot, labels per class and the queue's mix."""
    points = {
        method: [(s.label_seq, s.metrics.get("val_overall"), s.metrics.get("val_balanced")) for s in chain]
        for method, chain in chains(progress.snapshots).items()
    }
    names = [c.name for c in taxonomy.classes]
    mix = {ARM_WORDS[arm]: share for arm, share in progress.arms.items()}
    return (
        charts.answers_over_time(progress.times),
        charts.accuracy(points),
        charts.class_counts(names, [progress.per_class[c.slug] for c in taxonomy.classes]),
        charts.queue_mix(list(mix), list(mix.values())),
    )


def paragraphs(texts: Sequence[str]) -> str:
    """Return the sentences as HTML; whatever they quote is text."""
    return '<div class="desk-lead">' + "".join(f"<p>{html.escape(text)}</p>" for text in texts) + "</div>"


def build_progress_tab(workspace: Workspace, store: LabelStore) -> None:
    """Add the Progress tab to the open `gr.Tabs`; it reads when it is opened and while it is open."""
    reader = ProgressReader(workspace, store)
    taxonomy, min_labels = workspace.settings.taxonomy, workspace.settings.learner.min_labels

    def read() -> tuple[Any, ...]:
        progress = reader.read()
        said = [*sentences(progress, taxonomy, min_labels)]
        adapted = adaptation(progress)
        said += [text for text in (adapted, linked(progress, datetime.now(UTC))) if text is not None]
        curve = charts.probe_curve(progress.pretraining.get("curve", ()), PROBE_TITLE)
        shown = gr.update(value=curve, visible=adapted is not None)
        return paragraphs(said), *figures(progress, taxonomy), shown, methods_markup(progress)

    with gr.Tab("Progress", id="progress") as tab, gr.Column(elem_classes="desk-page"):
        lead = gr.HTML(paragraphs(["Reading the answers."]), apply_default_css=False)
        with gr.Row():
            plots = [gr.Plot(show_label=False, container=False) for _ in range(2)]
        with gr.Row():
            plots += [gr.Plot(show_label=False, container=False) for _ in range(2)]
        plots.append(gr.Plot(show_label=False, container=False, visible=False))
        models = gr.HTML("", apply_default_css=False)
        timer = gr.Timer(REFRESH_SECONDS)
    outputs = [lead, *plots, models]
    # A refresh never goes through Gradio's queue: an open page must not hold a connection.
    for event in (tab.select, timer.tick):
        event(read, outputs=outputs, queue=False, show_progress="hidden", api_visibility="private")

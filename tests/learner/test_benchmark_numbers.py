"""What a benchmark computes from its runs: intervals, counts, bins, the papers' numbers, figures, shipped grids."""

import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch

from learner.bank_build import Plan, build
from learner.benchmark import figures, tables
from learner.benchmark.bootstrap import paired_bootstrap
from learner.benchmark.grid import Grid
from learner.benchmark.published import NAMES, PUBLISHED, published
from learner.benchmark.watch import Watcher, pseudo_quality, read_log
from learner.data import PixelCache
from learner.encoders import make_encoder
from learner.errors import InputError
from learner.parts import Batch, Clock, LabeledTarget, StepContext, Target
from learner.protocols import LabelSplit
from tests.learner.grids import images_csv, run_all, settings

CONFIGS = Path(__file__).parents[2] / "configs" / "benchmarks"


def balanced(right: np.ndarray, truth: np.ndarray) -> float:
    return float(np.mean([right[truth == c].mean() for c in np.unique(truth)]))


def test_the_bootstrap_repeats_a_plain_loop() -> None:
    rng = np.random.default_rng(5)
    truth = rng.integers(0, 3, 60)
    right, other = rng.random((4, 60)) < 0.7, rng.random((4, 60)) < 0.5
    found = paired_bootstrap(right, other, truth, draws=400, seed=9)
    assert found.mean == pytest.approx(
        np.mean([balanced(a, truth) - balanced(b, truth) for a, b in zip(right, other, strict=True)])
    )
    again = np.random.default_rng(9)
    weights = again.multinomial(60, np.full(60, 1 / 60), 400)
    picked = again.integers(0, 4, (400, 4))
    gains = []
    for weight, seeds in zip(weights, picked, strict=True):
        rows = np.repeat(np.arange(60), weight)
        per_seed = [balanced(right[s][rows], truth[rows]) - balanced(other[s][rows], truth[rows]) for s in seeds]
        gains.append(np.mean(per_seed))
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(gains, (0.025, 0.975))), rel=1e-5)
    assert found.low < found.mean < found.high


def test_the_bootstrap_of_equals_is_zero_and_of_overall_is_plain() -> None:
    rng = np.random.default_rng(1)
    right, truth = rng.random((3, 40)) < 0.5, rng.integers(0, 2, 40)
    same = paired_bootstrap(right, right, truth, draws=100)
    assert (same.mean, same.low, same.high) == (0, 0, 0)
    none = np.zeros_like(right)
    assert paired_bootstrap(right, none, truth, draws=100, metric="overall").mean == pytest.approx(right.mean())
    with pytest.raises(ValueError, match="cannot pair"):
        paired_bootstrap(right, right[:2], truth)


def test_an_interval_covers_the_true_difference_most_of_the_time() -> None:
    rng = np.random.default_rng(2)
    inside = 0
    for _ in range(60):
        truth = rng.integers(0, 2, 300)
        right, other = rng.random((5, 300)) < 0.6, rng.random((5, 300)) < 0.5
        found = paired_bootstrap(right, other, truth, draws=200)
        inside += found.low <= 0.1 <= found.high
    assert inside >= 52


def context(target: Target, rows: list[int], step: int) -> StepContext:
    none = torch.zeros(0)
    batch = Batch(none.long(), none, none, none, none, none, none, torch.tensor(rows), {})
    return StepContext(batch, {}, {}, Clock(step, 0, step, 10), 3, LabeledTarget(none, none), target)


class FakeTrainer:
    class config:
        log_every, steps = 2, 10


def test_counts_follow_a_plain_loop(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    truth = rng.integers(-1, 3, 30)
    watcher = Watcher(tmp_path, truth, np.zeros(0, np.int64), ("a", "b", "c"), validate_every=100)
    expected = {name: np.zeros(3) for name in ("seen", "used", "named", "right", "negative_truth", "positive_size")}
    for step in range(2):
        rows, hard, subset = rng.integers(0, 30, 12), rng.integers(0, 3, 12), rng.random(12) < 0.5
        negative, positive = rng.random((12, 3)) < 0.3, rng.random((12, 3)) < 0.6
        parts = (torch.from_numpy(a) for a in (hard, np.ones(12), subset))
        target = Target(*parts, positive=torch.from_numpy(positive), negative=torch.from_numpy(negative))
        watcher(FakeTrainer(), context(target, rows.tolist(), step))  # type: ignore[arg-type]
        for i, row in enumerate(rows):
            if truth[row] >= 0:
                expected["seen"][truth[row]] += 1
                expected["used"][truth[row]] += subset[i]
                expected["named"][hard[i]] += subset[i]
                expected["right"][hard[i]] += subset[i] and hard[i] == truth[row]
                expected["negative_truth"][truth[row]] += negative[i, truth[row]]
                expected["positive_size"][truth[row]] += positive[i].sum()
    (record,) = read_log(tmp_path)
    assert record["step"] == 2
    assert {name: record["pseudo"][name] for name in expected} == {k: v.tolist() for k, v in expected.items()}


def test_pseudo_quality_by_hand() -> None:
    def record(step: int, **counts: list[float]) -> dict[str, object]:
        base = {"seen": [4, 2], "used": [2, 0], "named": [1, 1], "right": [1, 0], "weight": [2, 0], "right_any": [2, 1]}
        return {"step": step, "pseudo": {"steps": 1, **base, **counts}}

    found = pseudo_quality([record(1, used=[0, 0], named=[0, 0], right=[0, 0]), record(2)], ("a", "b"))
    assert found["coverage"] == {"all": 2 / 12, "per_class": {"a": 2 / 8, "b": 0.0}}
    assert found["precision"] == {"all": 1 / 2, "per_class": {"a": 1.0, "b": 0.0}}
    last = pseudo_quality([record(1), record(2, named=[0, 2], right=[0, 1])], ("a", "b"), last_share=0.5)
    assert last["precision"] == {"all": 1 / 2, "per_class": {"a": None, "b": 1 / 2}}
    assert "negative_error" not in found
    assert pseudo_quality([{"step": 1, "cpu": 1.0}], ("a", "b")) == {}


def test_the_papers_numbers_are_where_they_belong() -> None:
    def mean(*key: str) -> list[tuple[float, float | None]]:
        return [(p.mean, p.std) for p in published(*key)]

    assert mean("ferplus", "leaf-96", "LEAF", "balanced") == [(52.20, None)]
    assert mean("ferplus", "leaf-400", "LION", "balanced") == [(65.27, None)]
    assert mean("affectnet8", "leaf-2000", "FixMatch", "balanced") == [(49.50, None)]
    assert mean("rafdb", "adacm-100", "LION", "overall") == [(67.83, 0.64), (67.83, 0.64)]  # table and ablation
    assert mean("rafdb", "imbalance-500-150", "FixMatch+ReMoP", "balanced") == [(64.89, 2.84)]
    assert mean("ferplus", "imbalance-1000-150", "FixMatch+ReMoP", "overall") == [(83.03, 0.46)]
    assert mean("ferplus", "imbalance-1000-150", "Vanilla", "balanced") == [(49.44, 0.79), (49.51, None)]
    assert mean("rafdb", "imbalance-2000-50", "Ada-CM+ReMoP", "balanced") == [(76.01, 0.69)]
    assert mean("ferplus", "percent-25", "SSFER", "overall") == [(85.82, None)]
    assert mean("ferplus", "leaf-96", "nobody", "balanced") == []
    known = {p.method for p in PUBLISHED}
    assert set(NAMES.values()) <= known
    for number in PUBLISHED:
        protocol, _, rest = number.split.partition("-")
        amount, _, gamma = rest.partition("-")
        split = LabelSplit(protocol, float(amount), float(gamma or 1))  # type: ignore[arg-type]
        assert split.name == number.split
        assert 20 < number.mean < 95


def test_reliability_bins_by_hand() -> None:
    conf, right = np.array([0.05, 0.5, 0.52, 1.0, 1.0]), np.array([False, True, False, True, True])
    mean, share, size = figures.reliability_bins(conf, right)
    assert mean.tolist() == pytest.approx([0.05, 0.51, 1.0])
    assert share.tolist() == [0, 0.5, 1]
    assert size.tolist() == [1, 2, 2]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Grid, Path]:
    folder = tmp_path_factory.mktemp("figures")
    images_csv(folder)
    data = settings(splits=[{"protocol": "leaf", "amounts": [8, 12]}], split_seeds=[0])
    data["run"] |= {"steps": 6}
    return run_all(data, folder, folder / "out"), folder / "out"


def test_figures_are_offline_pages(finished: tuple[Grid, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    grid, out = finished
    notes: list[str] = []
    monkeypatch.setitem(sys.modules, "umap", None)
    groups = tables.gather(grid, out)
    pages = figures.draw(groups, out / "figures", notes.append)
    names = {page.name for page in pages}
    assert {"learning_curves.html", "confusion_patterns_leaf-8.html", "reliability_patterns_leaf-12.html"} <= names
    assert "pseudo_labels_patterns_leaf-8.html" in names
    assert not any(name.startswith("umap") for name in names)
    assert set(notes) == {"the map of features needs umap-learn: pip install 'annotator[benchmark]'"}
    for page in pages:
        assert "http" not in page.read_text().split("<body>")[0]
    assert (out / "figures" / "plotly.min.js").exists()
    line = next(t for t in figures.learning_curves(groups).data if t.mode == "lines+markers")
    values = [
        100 * np.mean([run.found["last"]["balanced"] for run in g.runs.values()])
        for g in groups
        if g.method.title == line.name
    ]
    assert list(line.x) == [8, 12]
    assert list(line.y) == pytest.approx(values)
    matrix = figures.confusion_matrices(groups[:2]).data[0].z
    assert matrix.sum(axis=1).tolist() == pytest.approx([100] * 4)


def test_features_are_mapped_once(finished: tuple[Grid, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    grid, out = finished
    calls: list[tuple[int, ...]] = []

    class Map:
        def __init__(self, **options: object) -> None:
            assert options["random_state"] == 0

        def fit_transform(self, features: np.ndarray) -> np.ndarray:
            calls.append(features.shape)
            return features[:, :2]

    fake = types.ModuleType("umap")
    fake.UMAP = Map  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "umap", fake)
    groups = [group for group in tables.gather(grid, out) if group.split == "leaf-8"]
    first, second = figures.feature_maps(groups), figures.feature_maps(groups)
    assert calls == [(24, 256), (24, 256)]  # once a method
    assert sum(len(trace.x) for trace in first.data) == 2 * 24
    assert [list(t.x) for t in first.data] == [list(t.x) for t in second.data]


def test_a_grid_runs_on_a_feature_bank(finished: tuple[Grid, Path], tmp_path: Path) -> None:
    _, out = finished
    cache = PixelCache(out / "data" / "patterns" / "24", 24)
    everything = np.arange(72)
    build(tmp_path / "bank", make_encoder("hog", 24), cache, Plan(everything[:48], everything))
    data = settings(split_seeds=[0], methods=[{"name": "lion"}])
    data["datasets"][0] |= {"bank": str(tmp_path / "bank")}
    grid = run_all(data, out.parent, tmp_path / "out")
    for group in tables.gather(grid, tmp_path / "out"):
        found = group.runs[0].found
        assert found["initialisation"].startswith("frozen features: hog")
        assert found["last"]["num"] == 24
        assert found["method"] == "lion+calibrated"
    few = build(tmp_path / "few", make_encoder("hog", 24), cache, Plan(everything[:48], everything[:50]))
    data["datasets"][0] |= {"bank": str(few.folder)}
    with pytest.raises(InputError, match="lacks 22 of the evaluated images"):
        run_all(data, out.parent, tmp_path / "other")


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_benchmarks_are_valid_and_say_what_they_cost(path: Path) -> None:
    grid = Grid.load(path)
    assert grid.name == path.stem
    assert all(grid.host_of(method) in {None, *(m.title for m in grid.methods)} for method in grid.methods)
    head = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    for word in ("command:", "hardware:", "duration:"):
        assert any(word in line for line in head), word
    assert any(f"configs/benchmarks/{path.name}" in line for line in head)

"""Rounds that read a feature bank instead of pixels."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from learner import snapshot
from learner.bank import FeatureBank, adapt
from learner.bank_build import Plan, build
from learner.config import RunConfig
from learner.data import PixelCache, write_shards
from learner.encoders import HogEncoder
from learner.errors import InputError, LearnerError
from learner.parts import LabelView
from learner.round import StoppedError, run_round
from tests.learner.runs import CLASSES, SIZE, first_labels, patterns, small_config, write_run


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory) -> FeatureBank:
    folder = tmp_path_factory.mktemp("bank")
    write_shards(folder / "cache", patterns(120)[0])
    plan = Plan(np.arange(70), np.arange(120))
    return build(folder / "hog", HogEncoder(), PixelCache(folder / "cache", SIZE), plan)


def bank_run(folder: Path, bank: FeatureBank, config: RunConfig, view: LabelView, previous: Path | None = None) -> Path:
    """A run folder as for pixels, with the bank in place of the cache."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    if not (folder.parent / "cache").exists():
        shutil.copytree(bank.folder.parent / "cache", folder.parent / "cache")
    write_run(folder, config, view, previous=previous)
    pool = json.loads((folder / "pool.json").read_text())
    (folder / "pool.json").write_text(json.dumps({"bank": str(bank.folder), "previous": pool["previous"]}))
    return folder


def metrics(out: Path) -> dict[str, object]:
    return dict(json.loads((out / "metrics.json").read_text()))


@pytest.mark.parametrize("method", ["fixmatch", "lion"])
def test_a_round_on_a_bank_learns(tmp_path: Path, bank: FeatureBank, method: str) -> None:
    config = adapt(small_config(method=method, steps=80, optimizer={"lr": 0.02}))
    out = run_round(bank_run(tmp_path / "run", bank, config, first_labels()))
    found = metrics(out)
    assert found["counts"]["unlabeled"] == 50  # type: ignore[index]  # of 60: ten have no views
    assert found["val"]["balanced"] > 0.5  # type: ignore[index]
    assert np.load(out / "features.npy").shape == (120, bank.dim)


@pytest.mark.parametrize("method", ["lion+calibrated", "loop+calibrated"])
def test_a_stopped_round_ends_as_an_uninterrupted_one(tmp_path: Path, bank: FeatureBank, method: str) -> None:
    options = {"warmup_steps": 5, "calibrated": {"every": 5}}
    config = adapt(small_config(method=method, steps=20, options=options, optimizer={"lr": 0.05}))
    straight = run_round(bank_run(tmp_path / "straight", bank, config, first_labels(8)))
    cut = bank_run(tmp_path / "cut", bank, config, first_labels(8))

    def stop(report: dict[str, object]) -> None:
        if report["step"] == 1:
            raise StoppedError("enough")

    with pytest.raises(StoppedError):
        run_round(cut, stop)
    assert (np.load(run_round(cut) / "probs.npy") == np.load(straight / "probs.npy")).all()
    carried = snapshot.load(straight).network.state_dict()["parts.temperature.value"]
    assert float(carried) != 1  # what the averaged network was calibrated to


def test_the_next_round_goes_on_with_the_head_of_the_same_encoder(tmp_path: Path, bank: FeatureBank) -> None:
    config = adapt(small_config(method="lion", steps=3))
    first = run_round(bank_run(tmp_path / "one", bank, config, first_labels()))
    second = run_round(bank_run(tmp_path / "two", bank, config, first_labels(6), previous=first))
    assert metrics(second)["lifetime_step"] == 6
    other = build(
        tmp_path / "other",
        HogEncoder(),
        PixelCache(tmp_path / "cache", SIZE),
        Plan(np.arange(70), np.arange(120), seed=1, strong=2),
    )
    assert other.encoder == bank.encoder  # the same features, other draws
    narrow = build(
        tmp_path / "few", HogEncoder(30), PixelCache(tmp_path / "cache", SIZE), Plan(np.arange(70), np.arange(120))
    )
    third = run_round(bank_run(tmp_path / "three", narrow, config, first_labels(6), previous=second))
    assert metrics(third)["lifetime_step"] == 3


def test_what_a_bank_lacks_is_named(tmp_path: Path, bank: FeatureBank) -> None:
    config = adapt(small_config())
    view = first_labels(18)  # rows up to 71; 70 and 71 have no views
    with pytest.raises(InputError, match=r"2 labeled rows have no views .*\[70, 71\]"):
        run_round(bank_run(tmp_path / "labels", bank, config, view))
    with pytest.raises(LearnerError, match="reads a feature bank, all others read pixels"):
        run_round(bank_run(tmp_path / "pixels", bank, small_config(), first_labels()))
    with pytest.raises(LearnerError, match="reads a feature bank, all others read pixels"):
        run_round(write_run(tmp_path / "features", config, first_labels()))


def test_how_often_the_complementary_bank_holds_the_truth_is_reported_by_class(
    tmp_path: Path, bank: FeatureBank
) -> None:
    options = {"reliable": 1.0, "bank": {"delta": 0.24, "release_above": 0.9}}  # much is excluded, some of it wrongly
    config = adapt(small_config(method="lion", steps=40, options=options))
    view = first_labels()
    folder = bank_run(tmp_path / "run", bank, config, view)
    rows = np.arange(30, 70)
    np.savez(folder / "known.npz", rows=rows, truth=patterns(70)[1][30:])
    out = run_round(folder)
    found = json.loads((out / "metrics.json").read_text())["complement_bank"]
    table = pq.read_table(out / "signals.parquet", columns=["row", "lion_not_set"]).to_pydict()
    sets = dict(zip(table["row"], table["lion_not_set"], strict=True))
    wrong = np.array([sets[row] >> patterns(70)[1][row] & 1 for row in rows])
    assert wrong.any()
    assert not wrong.all()
    for index, name in enumerate(CLASSES):
        of_class = patterns(70)[1][rows] == index
        assert found["unlabeled"]["images"][name] == of_class.sum()
        assert found["unlabeled"]["rate"][name] == pytest.approx(wrong[of_class].mean())
    assert found["unlabeled"]["overall"] == pytest.approx(wrong.mean())
    assert found["labeled"] == {
        "images": dict.fromkeys(CLASSES, 0),
        "rate": dict.fromkeys(CLASSES, None),
        "overall": None,
    }
    # Once labeled, an image's archived set is judged by the person's answer.
    second = run_round(bank_run(tmp_path / "next", bank, config, first_labels(10), previous=out))
    archived = json.loads((second / "metrics.json").read_text())["complement_bank"]["labeled"]
    assert sum(archived["images"].values()) == 20
    truth = np.arange(20, 40) % 4
    assert archived["overall"] == pytest.approx(
        np.mean([sets[r] >> int(t) & 1 for r, t in zip(range(20, 40), truth, strict=True)])
    )

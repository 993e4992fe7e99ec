"""FaceMix: the worked numbers, symmetric kappa, images not written into, a run that says it is inactive."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from learner import facemix, losses, snapshot
from learner.boxes import FALLBACK
from learner.data import PixelCache, write_shards
from learner.facemix import Mix, Variant
from learner.methods import build
from learner.mixing import FaceMixCE, FaceMixer
from learner.parts import NetOut, Recipe, StepContext
from learner.round import run_round
from learner.trainer import Trainer, TrainingData
from tests.learner.runs import SIZE, first_labels, patterns, small_config, write_run
from tests.learner.steps import labeled_step

FAR = ([0, 0, 100, 100], [50, 50, 150, 150])
NEAR = ([30, 40, 190, 210], [50, 30, 200, 200])
LOSSES: dict[str, tuple[float, float, float, float]] = {
    "far": (1.471429, 1.385714, 2.328571, 2.314286),
    "near": (2.187129, 2.161056, 1.612871, 1.538944),
}


def box(*corners: float) -> Tensor:
    return torch.tensor([corners], dtype=torch.float64)


def joined(kappa: Tensor, variant: Variant) -> float:
    """L_v 1.2 of the pair, L_i .5 and L_j .8 of its two images."""
    real, partner = torch.tensor([0.5, 0.8], dtype=torch.float64), torch.tensor([1, 0])
    virtual = torch.tensor([1.2, 9.0], dtype=torch.float64)
    return facemix.facemix_loss(virtual, real, partner, kappa.expand(2), variant)[0].item()


@pytest.mark.parametrize(
    ("boxes", "iou", "name"), [(FAR, 0.142857, "far"), (NEAR, 0.739274, "near")], ids=["far", "near"]
)
def test_the_worked_boxes_and_the_four_variants(boxes: tuple[list[float], list[float]], iou: float, name: str) -> None:
    a, b = box(*boxes[0]), box(*boxes[1])
    assert facemix.iou(a, b).item() == pytest.approx(iou, abs=5e-7)
    kappa = facemix.kappa(a, b)
    assert kappa.item() == pytest.approx(1 - iou, abs=5e-7)
    variants: tuple[Variant, ...] = ("L1", "L2", "L3", "L4")
    assert [joined(kappa, v) for v in variants] == pytest.approx(LOSSES[name], abs=5e-7)


def test_the_same_box_leaves_the_mixed_image_alone_and_a_disjoint_one_counts_both_faces() -> None:
    a = box(10, 10, 20, 20)
    assert joined(facemix.kappa(a, a), "L4") == pytest.approx(1.2)
    assert joined(facemix.kappa(a, box(30, 30, 40, 40)), "L4") == pytest.approx(2.5)


def test_boxes_without_area_have_no_overlap_instead_of_nan() -> None:
    point, inside_out = box(5, 5, 5, 5), box(9, 9, 2, 2)
    for a, b in ((point, point), (point, box(0, 0, 9, 9)), (inside_out, inside_out)):
        assert facemix.iou(a, b).item() == 0


CORNERS = st.lists(st.floats(0, 1, width=32), min_size=8, max_size=8)


@given(CORNERS)
@settings(max_examples=60, deadline=None)
def test_kappa_is_symmetric_and_a_share(corners: list[float]) -> None:
    low = torch.tensor(corners).view(2, 2, 2).sort(dim=1).values.reshape(2, 4)
    a, b = low[:1], low[1:]
    assert facemix.kappa(a, b).item() == facemix.kappa(b, a).item()
    assert 0 <= facemix.kappa(a, b).item() <= 1
    assert facemix.kappa(a, a).item() == pytest.approx(0 if facemix.area(a).item() > 0 else 1, abs=1e-5)


def test_soft_targets_smoothing_and_cross_entropy_of_the_worked_example() -> None:
    y = F.one_hot(torch.tensor([0, 3]), 7).double()
    mixed = facemix.mix(y, facemix.opposite(2), 0.3)[:1]
    smoothed = facemix.smooth(mixed, 0.1)
    expected = torch.full((1, 7), 0.014286, dtype=torch.float64)
    expected[0, [0, 3]] = torch.tensor([0.284286, 0.644286], dtype=torch.float64)
    torch.testing.assert_close(smoothed, expected, atol=5e-7, rtol=0)
    assert smoothed.sum().item() == pytest.approx(1)
    z = torch.tensor([[2.0, 0, 0, 1, 0, 0, 0]], dtype=torch.float64)
    assert losses.soft_cross_entropy(z, smoothed).item() == pytest.approx(1.502323, abs=5e-7)
    plain = losses.soft_cross_entropy(z, mixed).item()
    assert plain == pytest.approx(1.415181, abs=5e-7)
    assert plain == pytest.approx(0.3 * 0.715181 + 0.7 * 1.715181, abs=1e-6)


@given(st.integers(1, 6), st.floats(0, 1))
@settings(max_examples=30, deadline=None)
def test_mixing_leaves_its_input_alone_and_pairs_both_ways(count: int, share: float) -> None:
    """Public code mixes in place: its real images are mixed ones."""
    x = torch.randn(count, 3, 4, 4, generator=torch.Generator().manual_seed(count))
    before, partner = x.clone(), facemix.opposite(count)
    mixed = facemix.mix(x, partner, share)
    assert torch.equal(x, before)
    assert torch.equal(partner[partner], torch.arange(count))
    torch.testing.assert_close(mixed, share * before + (1 - share) * before.flip(0))
    if count % 2:
        assert torch.equal(mixed[count // 2], before[count // 2]), "the middle of an odd batch is its own partner"


# The loss term.


def mixed_step(share: float, kappa: float, answers: dict[str, Any] | None = None, count: int = 4) -> StepContext:
    given = [index % 3 for index in range(count)]
    ctx = labeled_step(list(range(count)), torch.full((count, 3), 1 / 3), given, **(answers or {}))
    draw = torch.Generator().manual_seed(1)
    for name in ("l", "m"):
        z = torch.randn(count, 3, generator=draw).requires_grad_()
        ctx.outs[name] = NetOut(z, z, z)
    partner = facemix.opposite(count)
    ctx.batch = replace(ctx.batch, mix=Mix(ctx.batch.x, partner, share, torch.full((count,), kappa)))
    return ctx


def test_with_lambda_one_and_kappa_zero_it_is_the_plain_cross_entropy_of_the_own_answer() -> None:
    ctx = mixed_step(1.0, 0.0)
    plain = losses.cross_entropy(ctx.outs["m"].z, ctx.batch.given).mean()
    assert FaceMixCE(smoothing=0.0)(ctx).item() == pytest.approx(plain.item(), rel=1e-6)


@pytest.mark.parametrize("variant", ["L1", "L2", "L3", "L4"])
@pytest.mark.parametrize("count", [4, 5])
def test_the_term_is_the_batch_form_by_hand(variant: Variant, count: int) -> None:
    share, kappa = 0.3, 0.6
    ctx = mixed_step(share, kappa, count=count)
    y = F.one_hot(ctx.batch.given, 3).float()
    total = torch.zeros(())
    for i in range(count):
        j = count - 1 - i
        target = 0.9 * (share * y[i] + (1 - share) * y[j]) + 0.1 / 3
        virtual = -(target * ctx.outs["m"].z[i].log_softmax(0)).sum()
        pair = sum(F.cross_entropy(ctx.outs["l"].z[k : k + 1], ctx.batch.given[k : k + 1]) for k in (i, j))
        weights = {"L1": (1 - kappa, 1), "L2": (1, 1 - kappa), "L3": (kappa, 1), "L4": (1, kappa)}[variant]
        total += (weights[0] * virtual + weights[1] * pair).detach() / count
    assert FaceMixCE(variant, smoothing=0.1)(ctx).item() == pytest.approx(total.item(), rel=1e-5)
    assert ctx.logs["facemix/kappa"].item() == pytest.approx(kappa)


def test_a_candidate_set_keeps_its_own_loss_in_a_mixed_image() -> None:
    """log p(set), not the cross-entropy against a uniform guess: certainty about one of the two costs nothing."""
    allowed = torch.ones(4, 3, dtype=torch.bool)
    allowed[0] = torch.tensor([True, True, False])
    ctx = mixed_step(1.0, 0.0, {"allowed": allowed})
    ctx.batch.given[0] = -1
    ctx.labeled.soft[0] = torch.tensor([0.5, 0.5, 0.0])
    z = ctx.outs["m"].z.detach().clone()
    z[0] = torch.tensor([50.0, 0.0, 0.0])
    ctx.outs["m"] = NetOut(z, z, z)
    rest = losses.cross_entropy(z[1:], ctx.batch.given[1:]).sum().item()
    assert FaceMixCE(smoothing=0.0)(ctx).item() == pytest.approx(rest / 4, rel=1e-6)


def test_a_pair_with_an_image_that_is_left_out_does_not_count() -> None:
    ctx = mixed_step(0.4, 0.5)
    ctx.labeled.weight[0] = 0.0
    loss = FaceMixCE()(ctx)
    loss.backward()
    grad = ctx.outs["m"].z.grad
    assert grad is not None
    assert not grad[[0, 3]].any()
    assert bool(grad[[1, 2]].any(dim=1).all())
    ctx.labeled.weight[:] = 0.0
    assert FaceMixCE()(ctx).item() == 0


# The mixer.


def test_lambda_is_one_number_per_batch_and_depends_on_the_seed_alone() -> None:
    ctx = mixed_step(0.5, 0.0)
    mixer = FaceMixer()
    one, again, other = (mixer(ctx.batch, seed) for seed in (7, 7, 8))
    assert one.share == again.share != other.share
    drawn = [FaceMixer(alpha=0.05)(ctx.batch, seed).share for seed in range(200)]
    assert np.mean([share < 0.1 or share > 0.9 for share in drawn]) > 0.7
    assert 0.3 < float(np.mean(drawn)) < 0.7


def spread_boxes(num: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    low = np.random.default_rng(0).random((num, 2)) / 2
    return np.concatenate([low, low + 0.4], axis=1).astype(np.float32)


@pytest.mark.parametrize(
    ("boxes", "message"),
    [
        (None, "no face box"),
        (np.full((4, 4), np.nan, np.float32), "no face box"),
        (np.tile(np.array([0.1, 0.1, 0.9, 0.9], np.float32), (4, 1)), "same crop"),
        (spread_boxes(4), None),
    ],
)
def test_it_says_when_it_is_inactive(boxes: Any, message: str | None) -> None:
    mixer = FaceMixer()
    note = mixer.start_run(boxes)
    assert mixer.active == mixer.needs_real == (message is None)
    assert note is None if message is None else note is not None and message in note
    assert FaceMixer(overlap="none").start_run(boxes) is None, "nobody asked for kappa"
    assert not FaceMixer(overlap="none").needs_real
    assert all(FaceMixer(variant=v, overlap="none").needs_real for v in ("L1", "L2", "L3"))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> PixelCache:
    folder = tmp_path_factory.mktemp("cache")
    write_shards(folder, patterns(40)[0])
    return PixelCache(folder, SIZE)


def make_trainer(faces: PixelCache, boxes: Any = None, **changes: Any) -> Trainer:
    config = small_config(**{"method": "facemix", "steps": 3, "labeled_batch": 5, **changes})
    view = first_labels()
    made = snapshot.assemble(config, len(view.classes))
    unlabeled = np.setdiff1d(np.arange(40), view.rows.numpy())
    return Trainer(config, made.recipe, made.network, TrainingData(faces, view, unlabeled, boxes))


def test_real_images_stay_real_through_a_step_of_training(faces: PixelCache) -> None:
    trainer = make_trainer(faces, spread_boxes(40))
    seen: list[StepContext] = []
    trainer.observers.append(lambda _, ctx: seen.append(ctx))
    list(trainer.steps())
    for step, ctx in enumerate(seen):
        rows = ctx.batch.rows.numpy()
        assert torch.equal(ctx.batch.x, trainer.source.view("l", rows, np.full(len(rows), step)))
        assert ctx.batch.mix is not None
        assert ctx.outs.keys() == {"l", "m"}
        torch.testing.assert_close(
            ctx.batch.mix.x,
            ctx.batch.mix.share * ctx.batch.x + (1 - ctx.batch.mix.share) * ctx.batch.x.flip(0),
        )
        assert float(ctx.batch.mix.kappa.max()) > 0
        assert ctx.batch.mix.kappa[2] == 0, "the middle one"


def test_plain_mixup_never_reads_the_real_images_and_unknown_boxes_count_as_the_fallback(faces: PixelCache) -> None:
    some = spread_boxes(40)
    some[::2] = np.nan
    for trainer, names in (
        (make_trainer(faces, some, method="mixup"), {"m"}),
        (make_trainer(faces), {"m"}),
        (make_trainer(faces, some, options={"variant": "L2"}), {"l", "m"}),
    ):
        seen: list[StepContext] = []
        trainer.observers.append(lambda _, ctx, seen=seen: seen.append(ctx))  # type: ignore[misc]
        list(trainer.steps())
        assert all(ctx.outs.keys() == names for ctx in seen)
    boxes, rows = seen[0].batch.boxes, seen[0].batch.rows
    assert boxes is not None
    unknown = rows % 2 == 0
    assert torch.equal(boxes[unknown], torch.from_numpy(FALLBACK).expand(int(unknown.sum()), 4))
    assert not (boxes[~unknown] == torch.from_numpy(FALLBACK)).all(dim=1).any()


@pytest.mark.parametrize("layout", [{"forward_mode": "separate"}, {"batchnorm": "freeze"}], ids=str)
def test_any_layout_of_forwards_reads_both_forms(faces: PixelCache, layout: dict[str, str]) -> None:
    trainer = make_trainer(faces, spread_boxes(40), options=layout)
    seen: list[StepContext] = []
    trainer.observers.append(lambda _, ctx: seen.append(ctx))
    list(trainer.steps())
    assert all(ctx.outs.keys() == {"l", "m"} for ctx in seen)
    assert np.isfinite(trainer.logs["loss"])
    assert seen[0].batch.mix is not None
    assert seen[0].batch.mix.x.is_contiguous(memory_format=torch.channels_last)


def test_without_boxes_it_is_mixup_bit_for_bit(faces: PixelCache) -> None:
    one, other = (make_trainer(faces, method=method) for method in ("facemix", "mixup"))
    for trainer in (one, other):
        list(trainer.steps())
    theirs = other.raw.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in one.raw.state_dict().items())


def test_a_round_says_once_that_facemix_is_inactive(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = small_config(method="facemix", steps=4, labeled_batch=4)
    plain = write_run(tmp_path / "plain", config, first_labels(2), num=20, held=8)
    boxed = write_run(tmp_path / "boxed", config, first_labels(2), num=20, held=8)
    np.save(boxed / "boxes.npy", spread_boxes(20))
    for folder, active in ((plain, False), (boxed, True)):
        out = run_round(folder)
        metrics, progress = (json.loads(p.read_text()) for p in (out / "metrics.json", folder / "progress.json"))
        told = capsys.readouterr().err
        assert told.count("FaceMix is inactive") == (not active)
        assert len(metrics["notes"]) == (not active)
        assert progress.get("notes", []) == metrics["notes"]
        assert (metrics["logs"]["facemix/kappa"] > 0) == active


@pytest.mark.parametrize("plug_in", ["remop", "calibrated"])
def test_plug_ins_that_read_labeled_images_get_the_real_ones(plug_in: str) -> None:
    recipe: Recipe = build(f"mixup+{plug_in}", 4, 16)
    assert recipe.mixer is not None
    assert recipe.labeled_views == {"l", "m"}
    assert build("mixup", 4, 16).labeled_views == {"m"}

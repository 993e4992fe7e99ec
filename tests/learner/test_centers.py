"""ReMoP's centers: the module beside the head, its two losses, and the keeper that starts and follows them."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from learner.center_terms import CenterLoss, NCReg
from learner.centers import COSINE, DISTANCE, DOT, PRESENT, CenterOptions, ClassCenters
from learner.config import EmaConfig, OptimizerConfig
from learner.keepers.centers import DISTANCES, CenterKeeper, standardised
from learner.losses import etf_regularizer
from learner.methods import build
from learner.models import Ema, run
from learner.optimizer import make_optimizer
from learner.parts import Event, LabeledTarget, NetOut, Scores, StepContext, Survey, Target
from tests.learner.blobs import FEATURE_DIM, make_network
from tests.learner.steps import EARLY, LATE, labeled_step, survey_of, view_of

K, D = 3, 2


def centers_at(vectors: Any, present: Any = (True, True, True), **options: Any) -> ClassCenters:
    centers = ClassCenters(K, D, CenterOptions(**options))
    centers.place(torch.tensor(present), torch.tensor(vectors, dtype=torch.float32))
    return centers


def read(centers: ClassCenters, f: Any) -> dict[str, Tensor]:
    aux: dict[str, Tensor] = {}
    centers(torch.tensor(f, dtype=torch.float32), aux)
    return aux


def surveyed(features: Any, given: Any, pool: Any = None) -> Survey:
    f = torch.tensor(features, dtype=torch.float32)
    p = torch.full((len(f), K), 1 / K)
    return survey_of(f if pool is None else torch.tensor(pool), f, p, torch.tensor(given))


def step(
    labeled: Any, given: list[int], strong: Any = ((0.0, 0.0),), pseudo: Any = (0,), confident: Any = (False,)
) -> StepContext:
    """A step with the strong view of unlabeled rows 100, 101, …; weak features are the strong ones plus one."""
    ctx = labeled_step(list(range(len(given))), torch.full((len(given), K), 1 / K), given, labeled)
    f = torch.tensor(strong, dtype=torch.float32)
    z = torch.zeros(len(f), K)
    ctx.batch.unlabeled_rows = torch.arange(len(f)) + 100
    ctx.outs["s"], ctx.outs["w"] = NetOut(f, f, z), NetOut(f + 1, f + 1, z)
    subset = torch.tensor(confident)
    ctx.target = Target(torch.tensor(pseudo), subset.float(), subset)
    return ctx


class TestModule:
    def test_writes_what_the_worked_example_says(self) -> None:
        aux = read(centers_at([[1, 0], [0, 1], [-1, 0]], center=False), [[3.0, 4.0]])
        assert torch.allclose(aux[COSINE], torch.tensor([[0.6, 0.8, -0.6]]))
        assert torch.equal(aux[DOT], torch.tensor([[3.0, 4.0, -3.0]]))
        assert aux[PRESENT].tolist() == [[True, True, True]]
        assert DISTANCE not in aux, "training needs no distances"

    def test_distances_come_in_eval_mode(self) -> None:
        aux = read(centers_at([[0, 0], [3, 4], [1, 1]]).eval(), [[0.0, 0.0], [3.0, 4.0]])
        torch.testing.assert_close(aux[DISTANCE], torch.tensor([[0.0, 5.0, 2**0.5], [5.0, 0.0, 13**0.5]]))

    def test_cosines_are_seen_from_the_pool_mean(self) -> None:
        centers = centers_at([[11, 10], [10, 11], [9, 10]])
        centers.mean.fill_(10)
        expected = torch.tensor([[0.6, 0.8, -0.6]])
        torch.testing.assert_close(read(centers, [[13.0, 14.0]])[COSINE], expected, atol=1e-5, rtol=0)
        centers.mean.zero_()
        assert read(centers, [[13.0, 14.0]])[COSINE].min() > 0.97, "from the origin every class looks alike"

    def test_a_class_that_is_not_set_has_cosine_zero(self) -> None:
        aux = read(centers_at([[1, 0], [5, 5], [0, 1]], (True, False, True), center=False), [[1.0, 1.0]])
        assert aux[PRESENT].tolist() == [[True, False, True]]
        assert aux[COSINE][0, 1] == 0

    def test_no_gradient_passes_and_autocast_changes_nothing(self) -> None:
        centers = centers_at([[1, 0.3], [0.1, 1], [-1, 0]])
        f = torch.randn(4, D).requires_grad_()
        plain: dict[str, Tensor] = {}
        centers(f, plain)
        half: dict[str, Tensor] = {}
        with torch.autocast("cpu", dtype=torch.bfloat16):
            centers(f, half)
        assert all(torch.equal(plain[name], half[name]) for name in plain)
        assert not any(value.requires_grad for value in plain.values())

    def test_random_centers_are_all_set_and_leave_the_seed_alone(self) -> None:
        torch.manual_seed(5)
        first = ClassCenters(K, 400, CenterOptions(init="normal"))
        drawn = torch.rand(())
        torch.manual_seed(5)
        assert torch.equal(drawn, torch.rand(())), "later weights would differ from those without centers"
        torch.manual_seed(5)
        assert torch.equal(ClassCenters(K, 400, CenterOptions(init="normal")).vectors, first.vectors)
        assert first.is_set.all()
        assert float(first.vectors.detach().std()) == pytest.approx(1, abs=0.05)

    @pytest.mark.parametrize(
        ("options", "reason"),
        [
            ({"update": "ema", "lr_scale": 2.0}, "lr_scale has no effect"),
            ({"update": "ema", "pull": "own"}, "pull has no effect"),
            ({"update": "ema", "init": "normal"}, "cannot start from"),
            ({"decay": 0.9}, "decay has no effect"),
        ],
    )
    def test_options_without_meaning_are_refused(self, options: dict[str, Any], reason: str) -> None:
        with pytest.raises(ValueError, match=reason):
            ClassCenters(K, D, CenterOptions(**options))


class TestTraining:
    """What optimiser and averaged model make of the module."""

    def network(self, **options: Any) -> Any:
        return make_network(4, build("remop+fixmatch", 4, FEATURE_DIM, {"remop": {"centers": options}}))

    def test_the_rate_is_ten_times_the_heads_without_decay(self) -> None:
        network = self.network()
        groups = make_optimizer(network, OptimizerConfig(weight_decay=0.1)).param_groups
        own = next(g for g in groups if any(p is network.parts["centers"].vectors for p in g["params"]))
        assert (own["lr_scale"], own["weight_decay"], len(own["params"])) == (10.0, 0.0, 1)

    def test_an_average_has_no_gradient(self) -> None:
        network = self.network(update="ema")
        assert not [name for name, _ in network.named_parameters() if name.startswith("parts.")]
        assert "parts.centers.vectors" in network.state_dict()

    @pytest.mark.parametrize("averaged", [False, True])
    def test_the_averaged_model_takes_the_students_centers_unless_told_otherwise(self, averaged: bool) -> None:
        network = self.network(averaged=averaged)
        ema = Ema(network, EmaConfig(decay=0.9, warmup=False))
        with torch.no_grad():
            network.parts["centers"].vectors.fill_(1)
            network.parts["centers"].is_set.fill_(True)
        ema.update(network, 0)
        mine = ema.network.parts["centers"]
        assert mine.is_set.all()
        torch.testing.assert_close(mine.vectors.mean(), torch.tensor(0.1 if averaged else 1.0))


class TestTerms:
    def test_center_loss_takes_labels_and_confident_strong_views_in_one_mean(self) -> None:
        centers = centers_at([[0, 0], [1, 1], [9, 9]])
        ctx = step([[1.0, 2.0], [0.0, 0.0]], [1, 0], [[3.0, 1.0], [50.0, 0.0]], [1, 0], [True, False])
        assert float(CenterLoss(centers)(ctx).detach()) == pytest.approx(5 / 3)
        assert float(CenterLoss(centers, "separate")(ctx).detach()) == pytest.approx(1 / 2 + 4)
        assert float(CenterLoss(centers, unlabeled=False)(ctx).detach()) == pytest.approx(1 / 2)

    @pytest.mark.parametrize("reduction", ["joint", "separate"])
    def test_center_loss_of_nobody_is_zero(self, reduction: Any) -> None:
        """The public code divides by the number of confident samples: NaN at 0."""
        centers = centers_at([[0, 0], [1, 1], [9, 9]])
        ctx = step([[1.0, 2.0]], [1])
        ctx.labeled = LabeledTarget(ctx.labeled.soft, torch.zeros(1))
        loss = CenterLoss(centers, reduction)(ctx)
        loss.backward()
        assert float(loss.detach()) == 0
        assert not centers.vectors.grad.any()  # type: ignore[union-attr]

    def test_sets_votes_and_classes_without_center_are_left_out(self) -> None:
        centers = centers_at([[0, 0], [1, 1], [9, 9]], (True, True, False))
        ctx = step([[5.0, 5], [5, 5], [5, 5], [2, 0]], [0, 0, 2, 0], [[5.0, 5.0]], [2], [True])
        soft = torch.tensor([[0.5, 0.5, 0], [0.7, 0.2, 0.1], [0, 0, 1], [1, 0, 0]])
        ctx.labeled = LabeledTarget(soft, torch.ones(4))
        assert float(CenterLoss(centers)(ctx).detach()) == pytest.approx(4)

    def test_center_scale_moves_centers_alone(self) -> None:
        grads = []
        for scale in (1.0, 1e4):
            centers = centers_at([[0, 0], [1, 1], [9, 9]])
            ctx = step([[1.0, 2.0]], [1])
            f = ctx.outs["l"].f.requires_grad_()
            loss = CenterLoss(centers, center_scale=scale)(ctx)
            loss.backward()
            grads.append((loss.detach(), f.grad, centers.vectors.grad))
        assert torch.equal(grads[0][0], grads[1][0])
        assert torch.equal(grads[0][1], grads[1][1])  # type: ignore[arg-type]
        torch.testing.assert_close(1e4 * grads[0][2], grads[1][2])  # type: ignore[operator]

    def test_regularizer_reads_the_set_classes(self) -> None:
        centers = centers_at([[0, 0], [1, 0], [0, 1]])
        assert float(NCReg(centers)(step([[0.0, 0]], [0])).detach()) == pytest.approx(0.315089, abs=5e-7)
        assert float(NCReg(centers, nc2_norm=True)(step([[0.0, 0]], [0])).detach()) == pytest.approx(1.558846, abs=5e-7)
        centers.is_set.fill_(False)
        loss = NCReg(centers)(step([[0.0, 0]], [0]))
        loss.backward()
        assert float(loss.detach()) == 0
        assert not centers.vectors.grad.any()  # type: ignore[union-attr]


class TestKeeper:
    def test_asks_once_a_round_for_the_clean_view(self) -> None:
        keeper = CenterKeeper(ClassCenters(K, D))
        assert keeper.wants_survey(dataclasses.replace(LATE, step=0)) == "x"
        assert keeper.wants_survey(EARLY) is None

    def test_starts_labeled_classes_from_their_means(self) -> None:
        centers = ClassCenters(K, D)
        keeper = CenterKeeper(centers)
        keeper.survey(surveyed([[1.0, 0], [3, 0], [0, 5], [7, 7]], [0, 0, 2, -1], [[2.0, 2.0], [4.0, 0.0]]))
        assert centers.is_set.tolist() == [True, False, True]
        assert centers.vectors[0].tolist() == [2, 0]
        assert centers.vectors[2].tolist() == [0, 5]
        assert centers.mean.tolist() == [3, 1]
        expected = etf_regularizer(centers.vectors, present=centers.is_set)
        assert float(keeper.regularizer) == pytest.approx(float(expected.detach()))

    def test_a_second_survey_leaves_centers_alone_unless_many_labels_changed(self) -> None:
        centers = centers_at([[1, 1], [2, 2], [3, 3]])
        keeper = CenterKeeper(centers)
        for row in range(75):
            keeper.on_event(Event("labelled", row, new=row % 3))
        keeper.on_event(Event("label_changed", 0, old=0, new=1))
        keeper.survey(surveyed([[9.0, 9], [8, 8], [7, 7]], [0, 1, 2]))
        assert centers.vectors[:, 0].tolist() == [1, 2, 3], "one label in 25 is no reason"
        assert keeper.labels.tolist() == [24, 26, 25]
        keeper.on_event(Event("label_changed", 3, old=0, new=0))
        keeper.survey(surveyed([[9.0, 9], [8, 8], [7, 7]], [0, 1, 2]))
        assert centers.vectors[:, 0].tolist() == [9, 2, 3]
        assert keeper.changed.tolist() == [0, 1, 0]

    def test_a_class_loses_its_center_with_its_last_label(self) -> None:
        centers = ClassCenters(K, D)
        keeper = CenterKeeper(centers)
        for row, label in enumerate((0, 1)):
            keeper.on_event(Event("labelled", row, new=label))
        keeper.survey(surveyed([[1.0, 0], [0, 1]], [0, 1]))
        keeper.on_event(Event("label_removed", 1, old=1))
        keeper.survey(surveyed([[1.0, 0]], [0]))
        assert centers.is_set.tolist() == [True, False, False]

    def test_labels_that_the_survey_did_not_draw_keep_their_center(self) -> None:
        centers = centers_at([[1, 1], [2, 2], [3, 3]])
        keeper = CenterKeeper(centers)
        keeper.on_event(Event("labelled", 7, new=1))
        keeper.survey(surveyed([[1.0, 0]], [0]))
        assert centers.is_set.tolist() == [True, True, False]

    def test_random_centers_stay_where_they_are(self) -> None:
        centers = ClassCenters(K, D, CenterOptions(init="normal"))
        before = centers.vectors.detach().clone()
        CenterKeeper(centers).survey(surveyed([[1.0, 0], [3, 0]], [0, 1]))
        assert torch.equal(before, centers.vectors)
        assert centers.is_set.all()

    def test_a_class_starts_at_its_first_labeled_batch_where_no_survey_saw_it(self) -> None:
        centers = centers_at([[1, 1], [0, 0], [0, 0]], (True, False, False))
        CenterKeeper(centers).observe(step([[4.0, 0], [6, 2]], [1, 1], [[9.0, 9.0]], [2], [True]))
        assert centers.is_set.tolist() == [True, True, False], "a pseudo-label starts no center"
        assert centers.vectors.tolist() == [[1, 1], [5, 1], [0, 0]]

    def test_the_average_moves_by_decay_and_forgets_no_order(self) -> None:
        moved = []
        for order in ([0, 1, 2], [2, 0, 1]):
            centers = centers_at([[1, 0], [0, 1], [0, 0]], (True, True, False), update="ema", decay=0.9)
            ctx = step([[2.0, 0], [4, 0], [0, 3]], [0, 0, 1], [[0.0, 6.0], [8, 8]], [1, 0], [True, False])
            batch = ctx.batch
            for name in ("rows", "target", "allowed", "excluded", "given", "locked"):
                setattr(batch, name, getattr(batch, name)[order])
            ctx.labeled = LabeledTarget(ctx.labeled.soft[order], ctx.labeled.weight[order])
            ctx.outs["l"] = NetOut(*(ctx.outs["l"].f[order],) * 2, ctx.outs["l"].z[order])
            CenterKeeper(centers).observe(ctx)
            moved.append(centers.vectors.clone())
        expected = [[0.81 + 0.1 * (0.9 * 2 + 4), 0], [0, 0.81 + 0.1 * (0.9 * 3 + 6)], [0, 0]]
        torch.testing.assert_close(moved[0], torch.tensor(expected))
        torch.testing.assert_close(moved[0], moved[1])

    def test_the_pool_mean_follows_the_weak_view(self) -> None:
        centers = centers_at([[1, 0], [0, 1], [0, 0]])
        keeper = CenterKeeper(centers)
        keeper.observe(step([[0.0, 0]], [0], [[1.0, 3.0]]))
        assert centers.mean.tolist() == [2, 4]
        keeper.observe(step([[0.0, 0]], [0], [[3.0, 5.0]]))
        assert centers.mean.tolist() == [3, 5]

    def test_logs_say_how_far_each_center_went(self) -> None:
        centers = centers_at([[3, 4], [0, 2], [0, 0]], (True, True, False))
        keeper = CenterKeeper(centers)
        with torch.no_grad():
            centers.vectors[0] += torch.tensor([0.0, 1.0])
        ctx = step([[0.0, 0]], [0])
        keeper.observe(ctx)
        drifts = [float(ctx.logs[f"centers/drift/{k}"]) for k in range(K)]
        assert drifts == pytest.approx([0.2, 0, 0])
        assert float(ctx.logs["centers/set"]) == 2

    def test_state_goes_on(self) -> None:
        centers = centers_at([[3, 4], [0, 2], [1, 0]])
        keeper, other = CenterKeeper(centers), CenterKeeper(ClassCenters(K, D))
        keeper.on_event(Event("labelled", 0, new=2))
        keeper.observe(step([[0.0, 0]], [0]))
        other.load_state_dict(keeper.state_dict())
        mine, theirs = keeper.state_dict(), other.state_dict()
        assert all(torch.equal(mine[key], theirs[key]) for key in mine)
        with pytest.raises(ValueError, match="shape"):
            CenterKeeper(ClassCenters(K, D + 1)).load_state_dict(mine)


class TestOwnDistance:
    def test_is_read_from_the_readers_column_for_given_labels(self) -> None:
        keeper = CenterKeeper(ClassCenters(K, D))
        scores = Scores.of(torch.full((4, K), 1 / K))
        scores.columns = {DISTANCES: torch.arange(12.0).view(4, 3)}
        found = keeper.signals(torch.tensor([5, 1, 9, 3]), scores, view_of([1, 3, 5], [2, -1, 0], K))
        assert found["remop_own_dist"].tolist() == pytest.approx([0, 5, float("nan"), float("nan")], nan_ok=True)

    def test_without_columns_it_is_unknown(self) -> None:
        keeper = CenterKeeper(ClassCenters(K, D))
        found = keeper.signals(torch.tensor([1]), Scores.of(torch.full((1, K), 1 / K)), view_of([1], [0], K))
        assert torch.tensor(found["remop_own_dist"]).isnan().all()
        assert torch.tensor(found["remop_own_z"]).isnan().all()

    def test_is_standardised_inside_the_class(self) -> None:
        values = torch.tensor([1.0, 2, 3, 10, 12, 7, float("nan")])
        z = standardised(values, torch.tensor([0, 0, 0, 1, 1, -1, 0]), 2)
        assert z[:3].tolist() == pytest.approx([-1, 0, 1])
        assert z[3:].isnan().all(), "two images have no spread to speak of"
        assert standardised(torch.ones(3), torch.zeros(3, dtype=torch.int64), 1).tolist() == [0, 0, 0]


def test_a_network_reads_through_its_centers() -> None:
    recipe = build("remop+fixmatch", 4, FEATURE_DIM)
    out = run(make_network(4, recipe), torch.randn(5, 2))
    assert out.aux[COSINE].shape == (5, 4)
    assert recipe.scorer(out).p.sum(dim=1).allclose(torch.ones(5))

"""Prototypes (LION eq. 3): worked numbers, order of writes, centring, rebuilding."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from learner.keepers.base import Warmup
from learner.keepers.prototypes import PrototypeOptions, Prototypes, ema_write
from learner.parts import Event, Survey
from tests.learner.steps import EARLY, LATE, labeled_step, survey_of, unlabeled_step

PLAIN = PrototypeOptions(center=False)


def make(num_classes: int = 3, dim: int = 2, options: PrototypeOptions = PLAIN) -> Prototypes:
    return Prototypes(num_classes, dim, options, clear=0.8, warmup=Warmup())


def write_one(start: list[float], q: list[float]) -> Tensor:
    vectors, _ = ema_write(
        torch.tensor([start]),
        torch.ones(1, dtype=torch.bool),
        torch.tensor([q]),
        torch.zeros(1).long(),
        torch.ones(1),
        0.99,
    )
    return vectors


def test_worked_examples() -> None:
    first = F.normalize(write_one([1.0, 0], [0.0, 1]), dim=1)
    assert first[0].tolist() == pytest.approx([0.999949, 0.010100], abs=5e-7)
    second = write_one([0.6, 0.8], [1.0, 0])
    assert float(second.norm()) == pytest.approx(0.996032, abs=5e-7)
    assert F.normalize(second, dim=1)[0].tolist() == pytest.approx([0.606406, 0.795155], abs=5e-7)


def test_writes_equal_one_by_one_on_200_draws() -> None:
    rng = np.random.default_rng(5)
    for _ in range(200):
        num_classes, dim, size = int(rng.choice([2, 3, 7])), 4, int(rng.integers(0, 9))
        vectors = rng.normal(size=(num_classes, dim))
        is_set = rng.random(num_classes) < 0.5
        q, y, keep = rng.normal(size=(size, dim)), rng.integers(0, num_classes, size), rng.random(size) < 0.7
        expected, done = vectors.copy(), is_set.copy()
        for i in range(size):
            if keep[i]:
                expected[y[i]] = 0.9 * expected[y[i]] + 0.1 * q[i] if done[y[i]] else q[i]
                done[y[i]] = True
        got, count = ema_write(*(torch.from_numpy(a) for a in (vectors, is_set, q, y, keep)), 0.9)
        np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-9)
        assert count.tolist() == [int((keep & (y == c)).sum()) for c in range(num_classes)]


def test_clear_labeled_samples_first_then_reliable_ones_each_by_row() -> None:
    prototypes = make()
    step = labeled_step([7, 3], [[0.9, 0.1, 0], [0.85, 0.1, 0.05]], [0, 0], [[1, 0], [0, 1]])
    pool = unlabeled_step([5], [[0.95, 0.05, 0]], [[-1.0, 0]])
    step.batch.unlabeled_rows = pool.batch.unlabeled_rows
    step.outs["w"], step.scores["w"], step.target = pool.outs["w"], pool.scores["w"], pool.target
    prototypes.observe(step)
    first, second, third = torch.tensor([[0.0, 1]]), torch.tensor([[1.0, 0]]), torch.tensor([[-1.0, 0]])
    expected = 0.99**2 * first + 0.99 * 0.01 * second + 0.01 * third
    torch.testing.assert_close(prototypes.class_vectors()[:1], F.normalize(expected, dim=1))
    assert prototypes.counts.tolist() == [3, 0, 0]


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 1, 0, 2], [2, 3, 1, 0]])
def test_batch_order_does_not_matter(order: list[int]) -> None:
    torch.manual_seed(1)
    rows, p = [4, 9, 2, 6], torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.05, 0.95], [0.85, 0.15]])
    features = torch.rand(4, 2)
    straight, shuffled = make(2), make(2)
    straight.observe(labeled_step(rows, p, [0, 0, 1, 0], features))
    given = [[0, 0, 1, 0][i] for i in order]
    shuffled.observe(labeled_step([rows[i] for i in order], p[order], given, features[order]))
    assert torch.equal(straight.class_vectors(), shuffled.class_vectors())


def test_who_may_write() -> None:
    prototypes = make()
    p = [[0.8, 0.2, 0], [0.79, 0.21, 0], [0.9, 0.1, 0], [0.05, 0.9, 0.05]]
    step = labeled_step([1, 2, 3, 4], p, [0, 0, 1, -1], allowed=[[1] * 3, [1] * 3, [1] * 3, [0, 1, 1]])
    prototypes.observe(step)  # at the threshold, below it, against the label, a candidate set
    assert prototypes.counts.tolist() == [1, 0, 0]
    left_out = labeled_step([5], [[0.1, 0.9, 0]], [1])
    left_out.labeled.weight = torch.zeros(1)
    prototypes.observe(left_out)
    assert prototypes.counts.tolist() == [1, 0, 0]
    prototypes.observe(unlabeled_step([6, 7], [[0, 0.1, 0.9], [0.4, 0.3, 0.3]]))
    assert prototypes.counts.tolist() == [1, 0, 1]
    assert prototypes.is_set.tolist() == [True, False, True]


def test_prototypes_are_unit_vectors_without_gradient() -> None:
    prototypes = make(2, 2, PrototypeOptions())
    features = torch.rand(4, 2, requires_grad=True)
    step = labeled_step([1, 2, 3, 4], [[0.9, 0.1]] * 4, [0] * 4)
    step.outs["l"].f = features * 1.0
    for _ in range(5):
        prototypes.observe(step)
    assert not prototypes.class_vectors().requires_grad
    assert float(prototypes.class_vectors()[0].norm()) == pytest.approx(1, abs=1e-6)
    assert prototypes.class_vectors()[1].tolist() == [0, 0]


def test_centring_tells_non_negative_features_apart() -> None:
    draw = torch.Generator().manual_seed(0)
    base = torch.rand(16, generator=draw) + 2
    faces = (base + 0.3 * torch.randn(64, 16, generator=draw)).clamp(min=0)
    spread = {}
    for center in (False, True):
        prototypes = make(2, 16, PrototypeOptions(center=center))
        none = torch.empty(0, dtype=torch.int64)
        prototypes.survey(survey_of(faces, torch.empty(0, 16), torch.empty(0, 2), none))
        prototypes.observe(unlabeled_step(list(range(64)), [[0.9, 0.1], [0.1, 0.9]] * 32, faces))
        cosines = prototypes.cosines(faces)
        spread[center] = float(cosines.std())
        if not center:
            assert float(cosines.min()) > 0.95
    assert spread[True] > 10 * spread[False]


def test_pool_mean_follows_the_unlabeled_features() -> None:
    prototypes = make(2, 2, PrototypeOptions())
    for direction in ([1.0, 0], [0.0, 1]):
        prototypes.observe(unlabeled_step([1, 2], [[0.5, 0.5]] * 2, [direction] * 2))
    assert prototypes.mean.tolist() == pytest.approx([0.5, 0.5])
    prototypes.on_event(Event("round_started", new=1))  # estimated anew, the old mean counts as one batch
    prototypes.observe(unlabeled_step([1, 2], [[0.5, 0.5]] * 2, [[0.0, 1]] * 2))
    assert prototypes.mean.tolist() == pytest.approx([0.25, 0.75])


def test_public_codes_running_mean_lasts_for_the_warm_up() -> None:
    prototypes = make(1 + 1, 2, PrototypeOptions(center=False, normalise=False, start="mean"))
    for q in ([1.0, 0], [0.0, 1], [0.0, 1]):
        prototypes.observe(labeled_step([1], [[0.9, 0.1]], [0], [q], clock=EARLY))
    assert prototypes.class_vectors()[0].tolist() == pytest.approx([1 / 3, 2 / 3])
    prototypes.observe(labeled_step([1], [[0.9, 0.1]], [0], [[1.0, 0]], clock=LATE))
    assert prototypes.class_vectors()[0].tolist() == pytest.approx([0.33 + 0.01, 0.66], abs=1e-6)


def survey(given: list[int]) -> Survey:
    features = torch.tensor([[0.0, 1], [0.0, 1], [1.0, 0], [1.0, 1]])
    p = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.1, 0.9], [0.5, 0.5]])
    return survey_of(features, features, p, torch.tensor(given))


def test_survey_rebuilds_missing_and_dirty_classes_from_clear_samples() -> None:
    prototypes = make(2)
    prototypes.survey(survey([0, 0, 1, 1]))
    assert prototypes.class_vectors().tolist() == [[0, 1], [1, 0]]
    assert prototypes.counts.tolist() == [2, 1]
    prototypes.vectors = -prototypes.vectors
    prototypes.survey(survey([0, 0, 1, 1]))
    assert prototypes.class_vectors().tolist() == [[0, -1], [-1, 0]]  # neither missing nor dirty: left alone
    prototypes.on_event(Event("label_changed", 2, old=0, new=1))
    assert prototypes.dirty().tolist() == [True, True]
    prototypes.survey(survey([0, 0, 1, 1]))
    assert prototypes.class_vectors().tolist() == [[0, 1], [1, 0]]
    assert prototypes.dirty().tolist() == [False, False]


def test_few_changed_labels_are_left_to_the_average() -> None:
    prototypes = make(2)
    for row in range(40):
        prototypes.on_event(Event("labelled", row, new=0))
    prototypes.on_event(Event("label_changed", 1, old=0, new=0))
    assert prototypes.dirty().tolist() == [False, False]
    prototypes.on_event(Event("label_removed", 2, old=0))
    prototypes.on_event(Event("label_changed", 3, old=0, new=-1))
    assert prototypes.dirty().tolist() == [True, False]


def test_a_survey_of_some_labels_does_not_make_the_few_that_changed_many() -> None:
    prototypes = make(2)
    for row in range(100):
        prototypes.on_event(Event("labelled", row, new=row % 2))
    prototypes.survey(survey([0, 0, 1, 1]))
    prototypes.on_event(Event("label_changed", 0, old=0, new=1))
    assert prototypes.labels.tolist() == [49, 51]
    assert prototypes.dirty().tolist() == [False, False]


def test_state_survives_and_another_shape_is_refused() -> None:
    prototypes, other = make(2), make(2)
    prototypes.observe(labeled_step([1], [[0.9, 0.1]], [0], [[0.6, 0.8]]))
    other.load_state_dict(prototypes.state_dict())
    assert torch.equal(other.class_vectors(), prototypes.class_vectors())
    with pytest.raises(ValueError, match=r"shape \(2, 2\)"):
        make(3).load_state_dict(prototypes.state_dict())

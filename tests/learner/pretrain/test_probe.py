import numpy as np
import pytest

from learner.errors import InputError
from learner.pretrain.probe import ProbeResult, cross_validate, draw_per_class, probe, probe_votes


def separable(num: int, spread: float, seed: int = 0):
    rng = np.random.default_rng(seed)
    label = np.arange(num) % 3
    return (np.eye(3)[label] + spread * rng.normal(size=(num, 3))).astype(np.float32), label


def test_draws_are_balanced_and_nested():
    label = np.array([0] * 50 + [1] * 30 + [2] * 20)
    few, many = (draw_per_class(label, np.arange(100), total, seed=1) for total in (9, 31))
    assert np.bincount(label[few]).tolist() == [3, 3, 3]
    assert np.bincount(label[many]).tolist() == [10, 10, 10]
    assert set(few) <= set(many)
    with pytest.raises(InputError, match="fewer than 3"):
        draw_per_class(label, np.arange(100), 2, seed=0)


def test_numbers_of_a_hand_made_reading():
    result = ProbeResult(np.array([[0, 0, 1, 1], [0, 1, 1, 0]]), np.array([0, 0, 0, 1]))
    assert result.per_class.tolist() == pytest.approx([3 / 6 + 0 / 6, 1 / 2])
    assert result.balanced == pytest.approx(0.5)
    assert result.overall == pytest.approx(0.5)


def test_clear_features_are_read_and_noise_is_not():
    clear, label = separable(600, 0.05)
    rows = np.arange(600)
    assert probe(clear, label, rows[:300], rows[300:], 30).balanced > 0.99
    noise = np.random.default_rng(0).normal(size=(600, 3)).astype(np.float32)
    assert 0.2 < probe(noise, label, rows[:300], rows[300:], 30).balanced < 0.47


def test_the_length_of_a_feature_does_not_count():
    clear, label = separable(300, 0.2)
    scaled = clear * np.random.default_rng(1).uniform(0.1, 10, (300, 1)).astype(np.float32)
    rows = np.arange(300)
    one, other = (probe(x, label, rows[:150], rows[150:], 30).predicted for x in (clear, scaled))
    assert (one == other).mean() > 0.99


def test_crowd_answers_are_drawn_from_the_votes_and_others_are_skipped():
    clear, label = separable(600, 0.05)
    rows = np.arange(600)
    certain = np.concatenate([10.0 * np.eye(3)[label], np.zeros((600, 1))], axis=1)
    read = probe_votes(clear, certain, label, rows[:300], rows[300:], 60, seed=0)
    assert (read == label[300:]).mean() > 0.99
    unsure = certain * 0.5 + np.array([0, 0, 0, 5.0])
    assert (probe_votes(clear, unsure, label, rows[:300], rows[300:], 60, seed=0) < 3).all()
    turned = certain[:, [1, 2, 0, 3]]
    assert (probe_votes(clear, turned, label, rows[:300], rows[300:], 60, seed=0) == label[300:]).mean() < 0.01


def test_cross_validation_needs_two_classes_with_enough_labels():
    clear, label = separable(60, 0.05)
    assert cross_validate(clear, label)["balanced_accuracy"] > 0.99
    assert cross_validate(clear[:9], label[:9]) is None
    assert cross_validate(clear[:18], label[:18])["labels"] == 18

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from learner.evaluate import calibration_error, evaluate
from learner.predict import Predictions, as_table, generic_columns, jensen_shannon

CLASSES = ("a", "b", "c")


def one_hot(pred: list[int], num_classes: int = 3) -> np.ndarray:
    return np.eye(num_classes, dtype=np.float32)[pred]


def test_overall_and_balanced_accuracy_of_the_worked_example() -> None:
    truth = np.array([0] * 80 + [1] * 15 + [2] * 5)
    pred = [0] * 80 + [1] * 10 + [0] * 5 + [2] * 1 + [0] * 4
    found = evaluate(one_hot(pred), truth, CLASSES)
    assert found.overall == pytest.approx(0.91)
    assert found.balanced == pytest.approx(0.622222, abs=1e-6)
    assert found.recall == {"a": 1.0, "b": pytest.approx(10 / 15), "c": pytest.approx(0.2)}
    assert found.support == {"a": 80, "b": 15, "c": 5}
    assert found.confusion == [[80, 0, 0], [5, 10, 0], [4, 0, 1]]
    assert (found.num, found.correct) == (100, 91)
    assert found.ece == pytest.approx(0.09)


def test_an_absent_class_has_no_recall_and_does_not_count() -> None:
    found = evaluate(one_hot([0, 1]), np.array([0, 0]), CLASSES)
    assert found.recall == {"a": 0.5, "b": None, "c": None}
    assert found.balanced == 0.5


def test_calibration_error_by_hand() -> None:
    conf = np.array([0.95, 0.95, 0.55, 0.55], np.float32)
    right = np.array([True, False, True, True])
    assert calibration_error(conf, right) == pytest.approx((2 * 0.45 + 2 * 0.45) / 4, abs=1e-6)


def test_nothing_to_evaluate_is_an_error() -> None:
    with pytest.raises(ValueError, match="no face"):
        evaluate(np.zeros((0, 3), np.float32), np.zeros(0, np.int64), CLASSES)
    with pytest.raises(ValueError, match="do not fit"):
        evaluate(one_hot([0]), np.array([5]), CLASSES)


def test_divergence_of_two_views_by_hand() -> None:
    p, q = np.array([[0.7, 0.2, 0.1]], np.float32), np.array([[0.2, 0.7, 0.1]], np.float32)
    assert jensen_shannon(p, q)[0] == pytest.approx(0.212216, abs=1e-5)
    assert jensen_shannon(p, q)[0] * np.log(2) == pytest.approx(0.147097, abs=1e-5), "in nats"
    assert jensen_shannon(one_hot([0]), one_hot([2]))[0] == pytest.approx(1.0)
    assert jensen_shannon(p, p)[0] == 0


@given(st.integers(2, 8), st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_generic_signals_stay_in_their_ranges(num_classes: int, seed: int) -> None:
    p = torch.softmax(torch.randn(9, num_classes, generator=torch.Generator().manual_seed(seed)) * 4, dim=1).numpy()
    columns = generic_columns(Predictions(np.arange(9), np.zeros((9, 2), np.float16), p, p, p[::-1].copy()))
    assert (columns["conf"] == p.max(axis=1)).all()
    for name in ("margin", "entropy", "view_js"):
        assert ((columns[name] >= 0) & (columns[name] <= 1)).all()
    assert (columns["pred"] == p.argmax(axis=1)).all()
    assert (columns["view_disagree"] == (p.argmax(axis=1) != p[::-1].argmax(axis=1))).all()


def test_a_table_is_keyed_by_row_and_says_what_it_is() -> None:
    p = one_hot([1, 0])
    table = as_table(
        generic_columns(Predictions(np.array([7, 3]), np.zeros((2, 2), np.float16), p)),
        np.array([7, 3]),
        CLASSES,
        4,
        900,
    )
    assert table.column("row").to_pylist() == [7, 3]
    assert table.column("p").to_pylist() == [[0, 1, 0], [1, 0, 0]]
    assert "view_js" not in table.column_names
    assert table.schema.metadata == {b"classes": b"a,b,c", b"round": b"4", b"lifetime_step": b"900"}

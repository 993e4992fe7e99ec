"""People's labels as arrays."""

import numpy as np

from annotator.loop.labels import DISPUTED, LABELED, PARTIAL, LabelBook, arrays
from annotator.records import Label, LabelRow

CLASSES = ("a", "b", "c")
ROWS = [
    LabelRow(9, Label("labeled", ("b",), num_annotators=1, seq=4), (9,)),
    LabelRow(2, Label("partial", ("a", "c"), num_annotators=1, seq=5), (2, 3)),
    LabelRow(5, Label("disputed", ("a", "b"), {"a": 0.75, "b": 0.25}, num_annotators=4, seq=6), (5,)),
    LabelRow(7, Label("unusable", seq=7), (7,)),
    LabelRow(8, Label("unlabeled"), (8,)),
    LabelRow(11, Label("partial", ("a", "b", "c"), seq=8), (11,)),
]


def test_arrays_are_sorted_and_say_the_same() -> None:
    got = arrays(ROWS, CLASSES)
    assert got.rows.tolist() == [2, 5, 7, 9, 11]
    assert got.state.tolist()[:2] == [PARTIAL, DISPUTED]
    assert got.state[3] == LABELED
    assert got.given.tolist() == [-1, -1, -1, 1, -1]
    assert got.allowed[0].tolist() == [True, False, True]
    np.testing.assert_allclose(got.soft[1], [0.75, 0.25, 0])
    assert got.stamp.tolist() == [5, 6, 7, 4, 8]


def test_only_labels_that_say_something_train() -> None:
    got = arrays(ROWS, CLASSES)
    # "unusable" is no class, and a set of every class says nothing
    assert got.rows[got.trainable].tolist() == [2, 5, 9]
    np.testing.assert_allclose(got.take(got.trainable).targets(), [[0.5, 0, 0.5], [0.75, 0.25, 0], [0, 1, 0]])
    supervision = got.take(got.trainable).supervision()
    assert supervision.is_soft.tolist() == [False, True, False]
    np.testing.assert_allclose(supervision.mass(), [0.75, 1.25, 0])


def test_a_label_taken_back_is_gone() -> None:
    book = LabelBook(CLASSES)
    book.put(3, Label("labeled", ("a",)))
    book.put(3, Label("unlabeled"))
    assert len(book) == 0
    assert len(book.arrays()) == 0


def test_a_class_the_taxonomy_has_lost_does_not_train() -> None:
    got = arrays([LabelRow(1, Label("labeled", ("gone",), seq=1), (1,))], CLASSES)
    assert not got.trainable.any()

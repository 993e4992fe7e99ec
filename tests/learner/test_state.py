"""Per-row state: reads, writes, growth, tombstones, saving, class lists, and what it costs."""

import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from learner.methods import build
from learner.state import Column, SampleTable, pack_bits, permute_classes, unpack_bits, visits_in_order


def make_table(capacity: int = 4) -> SampleTable:
    return SampleTable(
        {
            "visits": Column(torch.int32),
            "label": Column(torch.int8, default=-1, role="index"),
            "sets": Column(torch.int64, role="bits"),
            "w": Column(torch.float32, width=3, role="class1"),
        },
        capacity,
    )


def rows(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int64)


def test_unknown_rows_read_as_defaults_and_reading_changes_nothing() -> None:
    table = make_table()
    view = table.at(rows(3, 900, 3))
    assert view["visits"].tolist() == [0, 0, 0]
    assert view["label"].tolist() == [-1, -1, -1]
    assert table.capacity >= 901
    assert table.rows().tolist() == []


def test_growth_keeps_what_was_written() -> None:
    table = make_table(2)
    table.at(rows(1))["label"] = 5
    table.at(rows(70000))["label"] = torch.tensor([7])
    assert table.at(rows(1, 70000, 2))["label"].tolist() == [5, 7, -1]
    assert table.rows().tolist() == [1, 70000]


def test_writes_where_asked_only() -> None:
    table = make_table()
    view = table.at(rows(4, 2))
    view.put("w", torch.tensor([[1.0, 2, 3], [4, 5, 6]]), torch.tensor([True, False]))
    view.put("visits", 9, torch.tensor([False, True]))
    assert table.at(rows(2, 4))["w"].tolist() == [[0, 0, 0], [1, 2, 3]]
    assert table.at(rows(2, 4))["visits"].tolist() == [9, 0]


def test_removed_rows_stay_at_defaults_until_restored() -> None:
    table = make_table()
    table.at(rows(1, 2))["visits"] = torch.tensor([3, 4])
    table.remove(rows(1))
    table.at(rows(1, 2))["visits"] = 8
    assert table.at(rows(1, 2))["visits"].tolist() == [0, 8]
    assert table.rows().tolist() == [2]
    table.restore(rows(1))
    table.at(rows(1))["visits"] = 1
    assert table.rows().tolist() == [1, 2]


def test_negative_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="-1"):
        make_table().at(rows(0, -1))


def test_reserved_column_names_are_refused() -> None:
    with pytest.raises(ValueError, match="rows"):
        SampleTable({"rows": Column(torch.int64)})


def test_save_and_load_in_any_order_of_rows() -> None:
    table = make_table()
    table.at(rows(5, 1, 9))["w"] = torch.arange(9.0).reshape(3, 3)
    table.remove(rows(7))
    state = table.state_dict()
    order = torch.tensor([2, 0, 1])
    shuffled = {k: v if k == "removed" else v[order] for k, v in state.items()}
    other = make_table()
    other.at(rows(3))["visits"] = 6  # must be gone after the load
    other.load_state_dict(shuffled)
    again = other.state_dict()
    assert state.keys() == again.keys()
    assert all(torch.equal(state[k], again[k]) for k in state)
    other.at(rows(7))["visits"] = 6
    assert other.at(rows(3, 7))["visits"].tolist() == [0, 0]


def test_loading_another_layout_is_refused() -> None:
    state = make_table().state_dict()
    with pytest.raises(ValueError, match="lacks"):
        SampleTable({"other": Column(torch.int8)}).load_state_dict(state)
    state["w:class1"] = torch.zeros(0, 5)
    with pytest.raises(ValueError, match="w:class1"):
        make_table().load_state_dict(state)


@given(st.lists(st.tuples(st.sampled_from(["write", "remove", "restore", "reset"]), st.integers(0, 40)), max_size=30))
@settings(max_examples=60, deadline=None)
def test_table_behaves_like_a_dictionary(actions: list[tuple[str, int]]) -> None:
    table, model, gone = make_table(1), {}, set()
    for turn, (action, row) in enumerate(actions, start=1):
        if action == "write":
            table.at(rows(row))["visits"] = turn
            if row not in gone:
                model[row] = turn
            continue
        getattr(table, action)(rows(row))
        model.pop(row, None)
        gone = gone | {row} if action == "remove" else gone - {row} if action == "restore" else gone
    assert table.rows().tolist() == sorted(model)
    everything = torch.arange(41)
    assert table.at(everything)["visits"].tolist() == [model.get(r, 0) for r in range(41)]
    copy = make_table()
    copy.load_state_dict(table.state_dict())
    assert copy.at(everything)["visits"].tolist() == [model.get(r, 0) for r in range(41)]


@given(st.lists(st.integers(0, 6), max_size=20))
@settings(max_examples=100, deadline=None)
def test_visits_take_every_position_once_and_no_row_twice(batch: list[int]) -> None:
    turns = [turn.tolist() for turn in visits_in_order(torch.tensor(batch, dtype=torch.int64))]
    assert sorted(p for turn in turns for p in turn) == list(range(len(batch)))
    seen: dict[int, int] = {}
    for turn in turns:
        assert len({batch[p] for p in turn}) == len(turn)
        for position in turn:
            assert seen.get(batch[position], -1) < position  # repeated rows in batch order
            seen[batch[position]] = position


@given(st.integers(2, 62), st.data())
@settings(max_examples=60, deadline=None)
def test_bits_round_trip(num_classes: int, data: st.DataObject) -> None:
    sets = data.draw(
        st.lists(st.lists(st.booleans(), min_size=num_classes, max_size=num_classes), min_size=1, max_size=4)
    )
    packed = pack_bits(torch.tensor(sets))
    assert packed.tolist() == [sum(1 << i for i, bit in enumerate(row) if bit) for row in sets]
    assert unpack_bits(packed, num_classes).tolist() == sets


def test_class_axes_sets_and_indices_follow_the_names() -> None:
    table = make_table()
    view = table.at(rows(0, 1))
    view["label"] = torch.tensor([2, -1])
    view["sets"] = pack_bits(torch.tensor([[True, False, True], [False, True, False]]))
    view["w"] = torch.tensor([[0.1, 0.2, 0.7], [0.5, 0.5, 0.0]])
    state = table.state_dict() | {"vectors:class0": torch.eye(3), "mean": torch.ones(2)}
    old, new = ["joy", "fear", "anger"], ["anger", "awe", "joy"]
    moved = permute_classes(state, old, new)
    assert moved["label:index"].tolist() == [0, -1]
    assert unpack_bits(moved["sets:bits"], 3).tolist() == [[True, False, True], [False, False, False]]
    assert moved["w:class1"].tolist() == [pytest.approx([0.7, 0, 0.1]), pytest.approx([0, 0, 0.5])]
    assert moved["vectors:class0"].tolist() == [[0, 0, 1], [0, 0, 0], [1, 0, 0]]
    assert moved["mean"].tolist() == [1, 1]
    assert moved["visits"].tolist() == [0, 0]
    assert permute_classes(state, old, ["fear", "anger"])["label:index"].tolist() == [1, -1]
    assert permute_classes(state, old, ["fear", "joy"])["label:index"].tolist() == [-1, -1]


def test_a_million_rows_of_lion_state_are_small_and_fast() -> None:
    recipe = build("lion", 8, 512)
    tables = [keeper.table for keeper in recipe.keepers if hasattr(keeper, "table")]
    for table in tables:
        table.reserve(1_000_000)
    assert sum(table.nbytes for table in tables) <= 200e6
    table = tables[0]
    draw = torch.Generator().manual_seed(0)
    times = []
    for _ in range(30):
        batch = torch.randint(1_000_000, (64,), generator=draw).unique()
        begun = time.perf_counter()
        view = table.at(batch)
        for name in table.columns:
            view[name] = view[name]
        times.append(time.perf_counter() - begun)
    assert min(times) <= 1e-3

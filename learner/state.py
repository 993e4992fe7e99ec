"""Per-image learner state, in columns indexed by row (ALGORITHMS.md 11.2).

A row is given to an image once and never re-used or re-ordered, so state survives every change of the labeled and
unlabeled sets. Class sets are bits of an int64; the role of every column (class axis, class set, class index) is part
of its key in a state dict, so that `permute_classes` can follow a change of the class list.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Role = Literal["plain", "bits", "class0", "class1", "index"]


@dataclass(frozen=True, slots=True)
class Column:
    """One column: `width` 0 is one number per row, else `width` numbers; `role` says what has to do with classes.

    role: plain; bits, a class set; index, a class or -1; class1, one number per class; class0, one row per class (only
    in state dicts of things that are not tables).
    """

    dtype: torch.dtype
    default: float = 0
    width: int = 0
    role: Role = "plain"


def pack_bits(sets: Tensor) -> Tensor:
    """Pack class sets (B,K) bool into bit masks (B,) int64."""
    powers = torch.ones((), dtype=torch.int64, device=sets.device) << torch.arange(sets.shape[1], device=sets.device)
    return (sets.to(torch.int64) * powers).sum(dim=1)


def unpack_bits(bits: Tensor, num_classes: int) -> Tensor:
    """Unpack bit masks (B,) int64 into class sets (B,K) bool."""
    return (bits[:, None] >> torch.arange(num_classes, device=bits.device)) & 1 == 1


def visits_in_order(rows: Tensor) -> Iterator[Tensor]:
    """Split a batch's positions into groups without a repeated row: first visits, then second ones, and so on.

    A row that occurs twice in a batch is thus visited twice, in batch order, and never written twice at once.
    """
    if not len(rows):
        return
    order = torch.argsort(rows, stable=True)
    ranked = rows[order]
    position = torch.arange(len(rows), device=rows.device)
    starts = torch.ones_like(ranked, dtype=torch.bool)
    starts[1:] = ranked[1:] != ranked[:-1]
    run = position - torch.where(starts, position, torch.zeros_like(position)).cummax(dim=0).values
    repeats = int(run.max())
    if repeats == 0:
        yield position
        return
    visit = torch.empty_like(run)
    visit[order] = run
    for turn in range(repeats + 1):
        yield (visit == turn).nonzero()[:, 0]


class SampleTable:
    """Typed columns indexed by row, growing by doubling. Reads of unknown or removed rows give the defaults."""

    def __init__(self, columns: dict[str, Column], capacity: int = 1024, device: str | torch.device = "cpu") -> None:
        """Make an empty table with room for `capacity` rows; more is made when it is needed."""
        reserved = {"rows", "removed"} & columns.keys()
        if reserved:
            raise ValueError(f"column names {sorted(reserved)} are taken by the table itself")
        self.columns = dict(columns)
        self._device = torch.device(device)
        self._data: dict[str, Tensor] = {}
        self._known = torch.zeros(0, dtype=torch.bool, device=self._device)
        self._removed = torch.zeros(0, dtype=torch.bool, device=self._device)
        self._any_removed = False  # known without asking the device; then no write needs to look
        self._grow(max(1, capacity))

    @property
    def capacity(self) -> int:
        """Rows that there is room for."""
        return len(self._known)

    @property
    def device(self) -> torch.device:
        """Where the columns live; they follow the rows that ask for them (`to`)."""
        return self._device

    @property
    def nbytes(self) -> int:
        """Memory in bytes."""
        return sum(t.numel() * t.element_size() for t in (self._known, self._removed, *self._data.values()))

    def to(self, device: str | torch.device) -> "SampleTable":
        """Move to a device; nothing happens when the table is already there."""
        device = torch.device(device)
        if device != self._device:
            self._data = {name: t.to(device) for name, t in self._data.items()}
            self._known, self._removed = self._known.to(device), self._removed.to(device)
            self._device = device
        return self

    def reserve(self, rows: int) -> None:
        """Make room for rows 0 … rows-1 at once."""
        if rows > self.capacity:
            self._grow(max(rows, 2 * self.capacity))

    def _grow(self, capacity: int) -> None:
        def longer(old: Tensor | None, dtype: torch.dtype, width: int, default: float) -> Tensor:
            shape = (capacity, width) if width else (capacity,)
            new = torch.full(shape, default, dtype=dtype, device=self._device)
            if old is not None:
                new[: len(old)] = old
            return new

        for name, column in self.columns.items():
            self._data[name] = longer(self._data.get(name), column.dtype, column.width, column.default)
        self._known = longer(self._known, torch.bool, 0, 0)
        self._removed = longer(self._removed, torch.bool, 0, 0)

    def _ready(self, rows: Tensor) -> None:
        if not len(rows):
            return
        low, high = torch.stack(rows.aminmax()).tolist()  # one wait for the device, not two
        if low < 0:
            raise ValueError(f"row {low} is negative; rows are what the import assigned")
        self.reserve(high + 1)

    def at(self, rows: Tensor) -> "RowView":
        """Open rows (B,) int64 for reading and writing; the table moves to their device.

        On a CPU it grows where needed. Elsewhere a look at the rows would wait for the device: `reserve` beforehand.

        Raises:
            ValueError: a row is negative (on a CPU).
        """
        self.to(rows.device)
        if rows.device.type == "cpu":
            self._ready(rows)
        return RowView(self, rows)

    def reset(self, rows: Tensor) -> None:
        """Give rows (B,) their defaults again, as if never seen."""
        rows = rows.to(self._device)
        self._ready(rows)
        for name, column in self.columns.items():
            self._data[name][rows] = torch.full((), column.default, dtype=column.dtype, device=self._device)
        self._known[rows] = False

    def remove(self, rows: Tensor) -> None:
        """Put a tombstone on rows (B,): they read as defaults and ignore writes until `restore`."""
        self.reset(rows)
        self._removed[rows.to(self._device)] = True
        self._any_removed = True

    def restore(self, rows: Tensor) -> None:
        """Lift the tombstones of rows (B,), which start from the defaults again."""
        self.reset(rows)
        self._removed[rows.to(self._device)] = False

    def rows(self) -> Tensor:
        """Return the rows (n,) int64, ascending, that hold anything."""
        return self._known.nonzero()[:, 0]

    def state_dict(self) -> dict[str, Tensor]:
        """Return the known rows and their values as tensors on the CPU, keys with the column's role."""
        rows = self.rows()
        state = {"rows": rows, "removed": self._removed.nonzero()[:, 0]}
        state |= {self.key(name): self._data[name][rows] for name in self.columns}
        return {key: value.cpu() for key, value in state.items()}

    def key(self, name: str) -> str:
        """Return a column's name in a state dict: with its role when that is not plain."""
        role = self.columns[name].role
        return name if role == "plain" else f"{name}:{role}"

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Replace everything; rows may come in any order, rows not in the state get defaults.

        Raises:
            ValueError: a column is missing or has another shape.
        """
        rows = state["rows"].to(self._device)
        wanted = {self.key(name): name for name in self.columns}
        if missing := wanted.keys() - state.keys():
            raise ValueError(f"saved state lacks {sorted(missing)}; it was written by another method or version")
        self._ready(rows)
        for key, name in wanted.items():
            column, values = self._data[name], state[key]
            if values.shape != (len(rows), *column.shape[1:]):
                raise ValueError(f"saved column {key!r} has shape {tuple(values.shape)}, not {len(rows)} rows of ours")
            column.fill_(self.columns[name].default)
            column[rows] = values.to(column)
        self._known.fill_(False)
        self._known[rows] = True
        self._removed.fill_(False)
        removed = state["removed"].to(self._device)
        self._ready(removed)
        self._removed[removed] = True
        self._any_removed = len(removed) > 0


class RowView:
    """Some rows of a table. Reading takes them in any number; writing wants them distinct (`visits_in_order`).

    Writes to removed rows are ignored.
    """

    __slots__ = ("_alive", "_rows", "_table", "_written")

    def __init__(self, table: SampleTable, rows: Tensor) -> None:
        """Use `SampleTable.at`, which checks the rows once for all columns."""
        self._table = table
        self._rows = rows
        self._alive = ~table._removed[rows] if table._any_removed else None
        self._written = False

    def __getitem__(self, name: str) -> Tensor:
        """Copy a column: (B,) or (B,width)."""
        return self._table._data[name][self._rows]

    def __setitem__(self, name: str, values: Tensor | float) -> None:
        """Write a column, one value for all rows or one per row."""
        self.put(name, values)

    def put(self, name: str, values: Tensor | float, where: Tensor | None = None) -> None:
        """Write a column where `where` (B,) or (B,width) bool says so."""
        column = self._table._data[name]
        if isinstance(values, Tensor):
            new = values.to(column)
        else:  # filled on the device: copying a number there would wait for it
            new = torch.full((), values, dtype=column.dtype, device=column.device)
        chosen = self._chosen(where)
        if chosen is None:
            column[self._rows] = new
        else:
            old = column[self._rows]
            column[self._rows] = torch.where(chosen[:, None] if old.dim() > chosen.dim() else chosen, new, old)
        if not self._written:
            self._table._known[self._rows] = (
                True if self._alive is None else self._table._known[self._rows] | self._alive
            )
            self._written = True

    def _chosen(self, where: Tensor | None) -> Tensor | None:
        """Return which entries may be written; None for all."""
        if where is None or self._alive is None:
            return self._alive if where is None else where
        return where & (self._alive if where.dim() == 1 else self._alive[:, None])


def permute_classes(state: dict[str, Tensor], old: Sequence[str], new: Sequence[str]) -> dict[str, Tensor]:
    """Return a state dict for another class list, matched by name: class axes, class sets and class indices.

    A class that is new starts at zero (unset), one that is gone leaves class sets and turns indices into -1.
    """
    origin = torch.tensor([old.index(name) if name in old else -1 for name in new], dtype=torch.int64)
    place = torch.tensor([new.index(name) if name in new else -1 for name in old] + [-1], dtype=torch.int64)
    fresh = origin < 0

    def follow(key: str, value: Tensor) -> Tensor:
        role = key.rpartition(":")[2] if ":" in key else "plain"
        source = origin.clamp(min=0).to(value.device)
        missing = fresh.to(value.device)
        if role == "class0":
            return value[source].masked_fill(missing.view(-1, *[1] * (value.dim() - 1)), 0)
        if role == "class1":
            return value[:, source].masked_fill(missing, 0)
        if role == "bits":
            return pack_bits(unpack_bits(value, len(old))[:, source] & ~missing)
        if role == "index":
            return place.to(value.device)[value.long()].to(value.dtype)
        return value

    return {key: follow(key, value) for key, value in state.items()}

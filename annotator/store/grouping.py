"""Duplicate groups: which samples are copies of each other, who represents them, and which copies are leaks.

A group holds the samples of one `content_hash`. It lives on one side of the split: the strongest split among its usable
members wins (pool, then val, then test), members of other splits are leaks, and the lowest row of the winning split
represents the group.

The faces of one photo are no copies of each other and share no label, but the photo's path: it gives them one split,
and what is kept for validation is kept by photo.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, bindparam, func, select, update

from annotator.records import NewImage
from annotator.store.tables import erasures, images, labels, meta

Identity = tuple[str, str, str | None]
"""Path, crop and content hash: one sample of a source."""
_STRENGTH = {"pool": 0, "val": 1, "test": 2}
_CHUNK = 500


@dataclass(frozen=True, slots=True)
class Moved:
    """Groups whose representative or membership changed for samples that were there before, old and new rows alike."""

    regrouped: set[int]


def identity(item: NewImage) -> Identity:
    """Return what makes `item` one sample of its source."""
    return item.path, item.crop, item.content_hash if item.state == "active" else None


def find_existing(connection: Connection, source_id: int, new: Sequence[NewImage]) -> dict[Identity, int]:
    """Return the rows of those samples that the source has already, or that were erased."""
    paths = sorted({item.path for item in new})
    wanted = {identity(item) for item in new}
    found: dict[Identity, int] = {}
    for start in range(0, len(paths), _CHUNK):
        query = select(images.c.path, images.c.crop, images.c.content_hash, images.c.row).where(
            images.c.source_id == source_id, images.c.path.in_(paths[start : start + _CHUNK])
        )
        for path, crop, content_hash, row in connection.execute(query):
            if (path, crop, content_hash) in wanted:
                found[path, crop, content_hash] = row
    return found | _erased(connection, source_id, [item for item in new if identity(item) not in found])


def tombstone_keys(source_id: int, path: str, crop: str, content_hash: str | None) -> list[str]:
    """Return the `meta` keys under which an erased sample is remembered, one-way, so that no import brings it back."""
    keys = [_tombstone(f"file\0{source_id}\0{path}\0{crop}")]
    if content_hash is not None:
        keys.append(_tombstone(f"content\0{content_hash}"))
    # Another detector would draw another square about the same face: the photo of an erased face yields no new sample.
    return [*keys, _photo_key(source_id, path)] if "@" in crop else keys


def _photo_key(source_id: int, path: str) -> str:
    return _tombstone(f"photo\0{source_id}\0{path}")


def _tombstone(fact: str) -> str:
    return "erased:" + hashlib.sha256(fact.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _erased(connection: Connection, source_id: int, new: Sequence[NewImage]) -> dict[Identity, int]:
    if not new or not connection.execute(select(func.count()).select_from(erasures)).scalar_one():
        return {}
    owners: dict[str, list[Identity]] = defaultdict(list)
    for item in new:
        for key in {*tombstone_keys(source_id, *identity(item)), _photo_key(source_id, item.path)}:
            owners[key].append(identity(item))
    found: dict[Identity, int] = {}
    keys = list(owners)
    for start in range(0, len(keys), _CHUNK):
        query = select(meta.c.key, meta.c.value).where(meta.c.key.in_(keys[start : start + _CHUNK]))
        for key, row in connection.execute(query):
            found.update(dict.fromkeys(owners[key], int(row)))
    return found


def assign(connection: Connection, values: list[dict[str, Any]]) -> Moved:
    """Set `group_row` and `state` of samples about to be inserted, and change those of earlier copies where needed."""
    incoming: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for value in values:
        if value["content_hash"] is not None:
            incoming[value["content_hash"]].append(value)
    earlier = _members(connection, incoming)
    changes: list[dict[str, Any]] = []
    regrouped: set[int] = set()
    for content_hash, group in incoming.items():
        before = earlier.get(content_hash, [])
        placed = _place([*before, *group])
        for value in group:
            value.update(placed[value["row"]])
        for member in before:
            new_place = placed[member["row"]]
            if new_place != {"group_row": member["group_row"], "state": member["state"]}:
                changes.append({"_row": member["row"], **new_place})
                regrouped |= {member["group_row"], new_place["group_row"]}
        if any(member["reserved"] for member in before):
            for value in group:
                value["reserved"] = True
    _apply(connection, changes)
    return Moved(regrouped)


def reserve_with_photo(connection: Connection, values: list[dict[str, Any]]) -> None:
    """Keep faces about to be inserted for validation when another face of their photo is."""
    faces = [value for value in values if "@" in value["crop"]]
    paths = sorted({value["path"] for value in faces})
    for start in range(0, len(paths), _CHUNK):
        query = select(images.c.path).where(
            images.c.source_id == faces[0]["source_id"],
            images.c.path.in_(paths[start : start + _CHUNK]),
            images.c.reserved,
        )
        kept = set(connection.execute(query).scalars())
        for value in faces:
            value["reserved"] |= value["path"] in kept


def reserve(connection: Connection, row: int) -> None:
    """Keep the group of `row` for validation, and every other face of its photo with it.

    A photo of which another face has been answered stays in training as a whole: it must not be on both sides.
    """
    photo = images.alias()
    mates = (
        select(images.c.group_row)
        .join_from(images, photo, (photo.c.source_id == images.c.source_id) & (photo.c.path == images.c.path))
        .where(photo.c.row == row, images.c.state.in_(("active", "leak")))
    )
    own = select(images.c.group_row).where(images.c.row == row).scalar_subquery()
    groups = set(connection.execute(mates).scalars()) | {connection.execute(select(own)).scalar_one()}
    answered = select(labels.c.row).where(labels.c.row.in_(groups), labels.c.row != own)
    if connection.execute(answered.limit(1)).scalar() is None:
        connection.execute(update(images).where(images.c.group_row.in_(groups)).values(reserved=True))


def regroup(connection: Connection, content_hash: str | None) -> set[int]:
    """Settle the group of one content again after a member changed; return the old and new representatives."""
    if content_hash is None:
        return set()
    members = _members(connection, [content_hash]).get(content_hash, [])
    placed = _place(members)
    _apply(connection, [{"_row": m["row"], **placed[m["row"]]} for m in members])
    return {m["group_row"] for m in members} | {p["group_row"] for p in placed.values()}


def _members(connection: Connection, content_hashes: Iterable[str]) -> dict[str, list[dict[str, Any]]]:
    hashes = list(content_hashes)
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for start in range(0, len(hashes), _CHUNK):
        query = select(
            images.c.content_hash,
            images.c.row,
            images.c.group_row,
            images.c.split,
            images.c.state,
            images.c.reserved,
        ).where(images.c.content_hash.in_(hashes[start : start + _CHUNK]))
        for row in connection.execute(query).mappings():
            found[row["content_hash"]].append(dict(row))
    return found


def _place(members: Sequence[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """Return `group_row` and `state` for each member by row."""
    usable = [m for m in members if m["state"] in ("active", "leak")]
    best = min(usable or members, key=lambda m: (_STRENGTH[m["split"]], m["row"]))
    places = {}
    for member in members:
        state = member["state"]
        if state in ("active", "leak"):
            state = "active" if member["split"] == best["split"] else "leak"
        places[member["row"]] = {"group_row": best["row"], "state": state}
    return places


def _apply(connection: Connection, changes: list[dict[str, Any]]) -> None:
    if changes:
        connection.execute(
            update(images)
            .where(images.c.row == bindparam("_row"))
            .values(group_row=bindparam("group_row"), state=bindparam("state")),
            changes,
        )

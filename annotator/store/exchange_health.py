"""What the link to another labeling tool must forget with an erased face, and what can be wrong with its tables."""

import re
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, and_, delete, func, or_, select, update

from annotator.store.exchange_records import ANSWER_STATES, OUTBOX_STATES, TASK_STATES
from annotator.store.tables import annotations, erasures, images
from annotator.store.tables import exchange_answers as answers
from annotator.store.tables import exchange_links as links
from annotator.store.tables import exchange_outbox as outbox
from annotator.store.tables import exchange_tasks as tasks

_FOREIGN = re.compile(r"ls:(\d+):(\d+):")
_OUT_THERE = ("open", "answered")


def forget(connection: Connection, rows: Sequence[int]) -> None:
    """Forget what is known of erased faces.

    Tasks that still show them stay on the list, as "erase", until they and their pictures are deleted there too.
    """
    of_rows = tasks.c.row.in_(rows)
    same_task = and_(tasks.c.link_id == outbox.c.link_id, tasks.c.task_id == outbox.c.task_id)
    about = select(tasks.c.task_id).where(same_task, of_rows).exists()
    connection.execute(delete(outbox).where(or_(outbox.c.row.in_(rows), about)))
    seen = and_(tasks.c.link_id == answers.c.link_id, tasks.c.task_id == answers.c.task_id)
    said = update(answers).where(select(tasks.c.task_id).where(seen, of_rows).exists())
    connection.execute(said.values(content="", reason=None, annotation_id=None, state="deleted"))
    connection.execute(update(tasks).where(of_rows).values(shown=None, model_version=None))
    connection.execute(update(tasks).where(of_rows, tasks.c.state.in_(_OUT_THERE)).values(state="erase"))


def problems(connection: Connection) -> list[str]:
    """Return one sentence for everything in which the tables of the link contradict each other or the answers."""
    active = connection.execute(select(func.count()).select_from(links).where(links.c.active)).scalar_one()
    found = [f"{active} projects are linked at once"] if active > 1 else []
    for table, states in ((tasks, TASK_STATES), (answers, ANSWER_STATES), (outbox, OUTBOX_STATES)):
        strange = select(table.c.state).where(table.c.state.not_in(states)).distinct().limit(10)
        found += [f"{table.name} holds the state {state!r}" for state in connection.execute(strange).scalars()]
    return found + _answers(connection) + _erased(connection) + _stored(connection)


def _answers(connection: Connection) -> list[str]:
    """Look for answers of unknown tasks, and for those that point to no annotation or to one of another face."""
    known = and_(tasks.c.link_id == answers.c.link_id, tasks.c.task_id == answers.c.task_id)
    # What was quarantined may belong to a task that shows none of our faces.
    counts = answers.c.state.in_(("linked", "conflict"))
    lost = select(answers.c.ls_id).outerjoin(tasks, known).where(tasks.c.task_id.is_(None), counts)
    found = _named(connection, lost, "of tasks that are not known")
    gone = (
        select(answers.c.ls_id)
        .outerjoin(annotations, annotations.c.id == answers.c.annotation_id)
        .where(answers.c.annotation_id.is_not(None), annotations.c.id.is_(None))
    )
    found += _named(connection, gone, "linked to annotations that do not exist")
    said_of, asked = images.alias(), images.alias()
    elsewhere = (
        select(answers.c.ls_id)
        .join(tasks, known)
        .join(annotations, annotations.c.id == answers.c.annotation_id)
        .join(said_of, said_of.c.row == annotations.c.row)
        .join(asked, asked.c.row == tasks.c.row)
        .where(said_of.c.group_row != asked.c.group_row)
    )
    return found + _named(connection, elsewhere, "linked to annotations of another face")


def _erased(connection: Connection) -> list[str]:
    erased = select(erasures.c.row)
    out_there = tasks.c.state.in_(_OUT_THERE) | tasks.c.shown.is_not(None)
    remembered = select(tasks.c.task_id).where(tasks.c.row.in_(erased), out_there)
    known = and_(tasks.c.link_id == answers.c.link_id, tasks.c.task_id == answers.c.task_id)
    said = select(answers.c.ls_id).join(tasks, known).where(tasks.c.row.in_(erased), answers.c.content != "")
    waiting = select(outbox.c.id).where(outbox.c.row.in_(erased))
    found = _named(connection, remembered, "of erased faces and not marked so", "linked tasks")
    found += _named(connection, said, "of erased faces and still say something")
    return found + _named(connection, waiting, "about erased faces", "outbox items")


def _stored(connection: Connection) -> list[str]:
    """Look for annotations that came from a linked project without a word of it in `exchange_answers`."""
    seen = {(int(link), int(ls_id)) for link, ls_id in connection.execute(select(answers.c.link_id, answers.c.ls_id))}
    query = select(annotations.c.id, annotations.c.client_id).where(annotations.c.client_id.like("ls:%"))
    lost = []
    for annotation_id, client_id in connection.execute(query):
        foreign = _FOREIGN.match(client_id)  # an answer from before links may look a little like one
        if foreign is not None and (int(foreign[1]), int(foreign[2])) not in seen:
            lost.append(str(annotation_id))
    return [f"annotations {', '.join(lost[:10])} came from a linked project that is not known"] if lost else []


def _named(connection: Connection, query: Any, what: str, things: str = "linked answers") -> list[str]:
    ids = connection.execute(query.limit(10)).scalars().all()
    return [f"{things} {', '.join(map(str, ids))} are {what}"] if ids else []

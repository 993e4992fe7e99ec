"""`annotator sync WS labelstudio status`: what is linked, what is under way, what needs a person."""

from typing import Any

from annotator.errors import LabelStudioError
from annotator.labelstudio.api.server import Server
from annotator.labelstudio.report import sync_state
from annotator.settings import Workspace
from annotator.store import LabelStore
from annotator.store.exchange_records import Link

SHOWN = 10
"""How many items of each list that needs a person are told."""


def link_status(workspace: Workspace, store: LabelStore) -> dict[str, Any]:
    """Return the state of the link from the store alone; {"linked": False} without one. Holds no secret."""
    link = store.exchange.link()
    if link is None:
        return {"linked": False}
    return {
        "linked": True,
        "url": link.url,
        "project_id": link.project_id,
        "title": link.title,
        "model_version": link.model_version,
        "cursor": link.cursor,
        **store.exchange.counts(link.id),
        "sync": sync_state(workspace),
        "needs_a_person": needs_a_person(store, link),
    }


def needs_a_person(store: LabelStore, link: Link) -> dict[str, list[dict[str, Any]]]:
    """Return the first of what the sync cannot settle alone, each with its reason."""
    exchange = store.exchange
    return {
        "quarantined": [
            {"annotation": a.ls_id, "task": a.task_id, "user": a.user, "reason": a.reason}
            for a in exchange.quarantined(link.id, SHOWN)
        ],
        "conflicts": [
            {"annotation": a.ls_id, "task": a.task_id, "user": a.user, "reason": a.reason}
            for a in exchange.conflicts(link.id, SHOWN)
        ],
        "given_up": [
            {"what": item.kind, "key": item.key, "attempts": item.attempts, "reason": item.error}
            for item in exchange.dead(link.id, SHOWN)
        ],
    }


def ask_server(server: Server, link: Link) -> dict[str, Any]:
    """Return what the server says of the project: whether it answers, its tasks, annotations and model version."""
    try:
        project = server.project(link.project_id)
        return {
            "answers": True,
            "version": server.version(),
            "tasks": project.get("task_number"),
            "annotations": project.get("total_annotations_number"),
            "model_version": project.get("model_version"),
            "predictions": server.model_versions(link.project_id),
        }
    except LabelStudioError as error:
        return {"answers": False, "reason": str(error)}

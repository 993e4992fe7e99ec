"""The project of a link: the one that is adopted, or the one that is made, once however often it is begun."""

import json
import uuid
from collections.abc import Mapping
from typing import Any

from annotator.durable import write_atomically
from annotator.errors import InputError, RefusedError
from annotator.labelstudio.api.server import PROJECT_DEFAULTS, Server
from annotator.labelstudio.config.generated import generate
from annotator.settings import Workspace

MARK = "labelstudio.linking"
"""While a project is being made: its mark, in the workspace."""
SHORTEST_TITLE, LONGEST_TITLE = 3, 50
_NOT_FOUND = 404


def existing_project(server: Server, project_id: int) -> dict[str, Any]:
    """Return a project; `InputError` when there is none of that id."""
    try:
        return server.project(project_id)
    except RefusedError as error:
        if error.status == _NOT_FOUND:
            raise InputError(f"{server.url} has no project {project_id}, or the key may not see it") from error
        raise


def make_project(workspace: Workspace, server: Server, title: str | None) -> dict[str, Any]:
    """Return the project that an earlier run of this command began, else a new one."""
    mark = _mark(workspace, server)
    for project in server.projects():
        if mark in (project["description"] or ""):
            return server.project(project["id"])
    name = workspace.settings.name[:LONGEST_TITLE]
    return server.create_project(
        title or (name if len(name) >= SHORTEST_TITLE else f"faces {name}".strip()),
        generate(workspace.settings.taxonomy),
        description=f"Faces of the annotator's workspace {workspace.settings.name!r}. [{mark}]",
    )


def _mark(workspace: Workspace, server: Server) -> str:
    """Return the mark of the project that is being made; durable before the project can exist."""
    path = workspace.root / MARK
    try:
        begun = json.loads(path.read_text(encoding="utf-8"))
        if begun["url"] == server.url:
            return str(begun["mark"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    mark = f"annotator:{uuid.uuid4()}"
    write_atomically(path, json.dumps({"url": server.url, "mark": mark}).encode())
    return mark


def unlike_ours(project: Mapping[str, Any]) -> list[str]:
    """Say which settings of an adopted project keep it from asking as ours do; they are its owner's to change."""
    told = []
    if project.get("sampling") != PROJECT_DEFAULTS["sampling"]:
        told.append(
            f"the project's sampling is {project.get('sampling')!r}: it does not ask in the order of our queue; "
            f"{PROJECT_DEFAULTS['sampling']!r} does"
        )
    if project.get("evaluate_predictions_automatically"):
        told.append(
            "the project fetches predictions whenever its tasks are listed, so every look at it asks the ML backend: "
            "switch that off"
        )
    if not project.get("show_collab_predictions"):
        told.append("the project does not show predictions to annotators")
    return told

"""Link a workspace to a project of Label Studio: make one, adopt one, or bring the link up to date.

Killed at any point and run again, it goes on with the project it began: before one is made, its mark is written into
the workspace, and the mark is looked for in the descriptions of the projects first.
"""

from collections.abc import Mapping as Pairs
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from annotator.errors import ConflictError, InputError
from annotator.labelstudio.api.server import Server
from annotator.labelstudio.config.generated import read_config
from annotator.labelstudio.linking.adopting import Adopted, adopt_tasks
from annotator.labelstudio.linking.calls import register_calls
from annotator.labelstudio.linking.joining import Joined, join_people
from annotator.labelstudio.linking.project import (
    LONGEST_TITLE,
    MARK,
    SHORTEST_TITLE,
    existing_project,
    make_project,
    unlike_ours,
)
from annotator.settings import Workspace
from annotator.store import LabelStore
from annotator.store.exchange_records import Link

_SHOWN = 10


class LinkSettings(BaseModel):
    """What a link does; kept with it in the store.

    mapping: what the project's controls mean. choices: what a person said of choices that mean nothing by themselves.
    users: email address there to user name here. order: what the score of a prediction follows. local_folder: where
    pictures are put when they are not uploaded; it lies below document_root, the folder that the server shows files of.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    mapping: dict[str, Any]
    choices: dict[str, str] = {}
    users: dict[str, str] = {}
    top_k: int = Field(1000, ge=1)
    order: Literal["queue", "confidence"] = "queue"
    pictures: Literal["upload", "local"] = "upload"
    local_folder: str | None = None
    document_root: str | None = None
    created_project: bool = False

    @model_validator(mode="after")
    def _below_the_root(self) -> "LinkSettings":
        if self.pictures == "local":
            if not self.local_folder or not self.document_root:
                raise ValueError("pictures as local files need local_folder and document_root")
            folder, root = Path(self.local_folder), Path(self.document_root)
            if not folder.is_absolute() or root not in folder.parents:
                raise ValueError(f"local_folder {folder} must be a folder below document_root {root}")
        return self


@dataclass(frozen=True, slots=True)
class LinkReport:
    """What linking did. `problems`: in sentences, what does not fit or did not work."""

    link: Link
    created: bool
    people: Joined
    tasks: Adopted
    problems: tuple[str, ...] = ()

    def summary(self) -> str:
        """Return a few lines for people."""
        link, tasks = self.link, self.tasks
        made = "made and linked" if self.created else "linked"
        lines = [f"{made} project {link.project_id}, {link.title!r}, of {link.url}"]
        lines += [f"{email} is {name} here" for email, name in sorted(self.people.users.items()) if name]
        if self.people.strangers:
            listed = ", ".join(self.people.strangers)
            lines.append(f"nobody here: {listed}; their answers wait until they are mapped or added")
        lines += [f"  if {email} is {name} here: --user {email}={name}" for email, name in self.people.alike.items()]
        if tasks.linked or tasks.known or tasks.left_out:
            lines.append(f"tasks: {tasks.linked} newly linked, {tasks.known} known, {len(tasks.left_out)} left out")
        lines += [f"  task {task_id}: {reason}" for task_id, reason in islice(tasks.left_out.items(), _SHOWN)]
        if len(tasks.left_out) > _SHOWN:
            lines.append(f"  and {len(tasks.left_out) - _SHOWN} more")
        return "\n".join([*lines, *self.problems])


def link(
    workspace: Workspace,
    store: LabelStore,
    server: Server,
    *,
    project_id: int | None = None,
    title: str | None = None,
    users: Pairs[str, str] | None = None,
    add_users: bool = False,
    choices: Pairs[str, str] | None = None,
    public_url: str | None = None,
    backend: bool = True,
    anew: bool = False,
    **settings: Any,
) -> LinkReport:
    """Link a project; the caller holds `labelstudio.lock`. Run again it updates the link and resets the pull's cursor.

    Args:
        workspace: the workspace.
        store: its open store.
        server: where the project is, or is to be.
        project_id: the project to adopt; without one the linked project is updated, or a new one made.
        title: of the new project.
        users: email address there to user name here; an empty name unmaps. Others are joined where address or username
            equals an account's name.
        add_users: make accounts, without a password, for the rest.
        choices: what a choice of an existing configuration means: a slug, or "unusable".
        public_url: where our server can be reached from Label Studio; registers the webhook and the ML backend.
        backend: register the ML backend as well.
        anew: the project is another one than the one linked earlier under the same address and number.
        settings: fields of `LinkSettings`: top_k, order, pictures, local_folder, document_root.

    Raises:
        InputError: a wrong value, or a configuration that none of our classes can be read from.
        ConflictError: another project is linked.
        UnreachableError, RefusedError: of the server; run it again later.
    """
    given = {name: value for name, value in settings.items() if value is not None}
    active = _active(store, server, project_id)
    _check(title, public_url, given)
    before: dict[str, Any] = active.settings if active else {}
    wanted_id = active.project_id if active else project_id
    project = make_project(workspace, server, title) if wanted_id is None else existing_project(server, wanted_id)
    meant = {**before.get("choices", {}), **(choices or {})}
    mapping, problems = read_config(project["label_config"], workspace.settings.taxonomy, meant)
    people = join_people(store, server.users(), users or {}, before.get("users", {}), add=add_users)
    told = {"mapping": mapping.as_dict(), "choices": meant, "users": people.users}
    created = {"created_project": wanted_id is None or before.get("created_project", False)}
    kept = _settings({**before, **given, **told, **created})
    if kept.pictures == "local":
        _prepare_folder(server, project, kept)
    active = _keep(workspace, store, server, active, project, kept, anew=anew)
    adopted = Adopted() if wanted_id is None else adopt_tasks(store, server, active, mapping.data_key)
    if not kept.created_project:
        problems = [*problems, *unlike_ours(project)]
    if public_url is not None:
        problems = [*problems, *register_calls(store, server, active, public_url, backend=backend)]
    return LinkReport(_reread(store), wanted_id is None, people, adopted, tuple(problems))


def _keep(
    workspace: Workspace,
    store: LabelStore,
    server: Server,
    active: Link | None,
    project: Pairs[str, Any],
    settings: LinkSettings,
    *,
    anew: bool,
) -> Link:
    """Put the link into the store; from here on it is found there, not by its mark."""
    title, plain = str(project["title"]), settings.model_dump()
    if active is None:
        active = store.exchange.add_link(server.url, int(project["id"]), title, plain, anew=anew)
    store.exchange.update_link(active.id, cursor=None, title=title, settings=plain)
    (workspace.root / MARK).unlink(missing_ok=True)
    return active


def _active(store: LabelStore, server: Server, project_id: int | None) -> Link | None:
    """Return the active link if it is the one that is meant."""
    active = store.exchange.link()
    if active is not None and (active.url != server.url or project_id not in (None, active.project_id)):
        raise ConflictError(
            f"project {active.project_id} of {active.url} is linked already; unlink it before you link another one"
        )
    return active


def _check(title: str | None, public_url: str | None, settings: Pairs[str, Any]) -> None:
    """Refuse what is wrong before anything is made."""
    if title is not None and not SHORTEST_TITLE <= len(title) <= LONGEST_TITLE:
        raise InputError(f"the title {title[:80]!r} must have {SHORTEST_TITLE} to {LONGEST_TITLE} characters")
    if public_url is not None:
        parts = urlsplit(public_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InputError(f"{public_url!r} is no address; give one like http://host:7860")
        if "@" in parts.netloc:
            raise InputError("the public address must not hold a name or a password")
    unknown = settings.keys() - {"top_k", "order", "pictures", "local_folder", "document_root"}
    if unknown:
        raise InputError(f"a link has no setting {', '.join(sorted(unknown))}")
    _settings({"mapping": {}, **{name: value for name, value in settings.items() if value is not None}})


def _settings(values: dict[str, Any]) -> LinkSettings:
    try:
        return LinkSettings(**values)
    except ValidationError as error:
        told = "; ".join(f"{'.'.join(map(str, e['loc']))} {e['msg']}".strip() for e in error.errors(include_url=False))
        raise InputError(f"settings of the link: {told}") from error


def _prepare_folder(server: Server, project: Pairs[str, Any], settings: LinkSettings) -> None:
    folder = Path(settings.local_folder or "")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"the pictures cannot be put into {folder}: {error.strerror}") from error
    server.local_storage(int(project["id"]), str(folder), "annotator")


def _reread(store: LabelStore) -> Link:
    link = store.exchange.link()
    if link is None:
        raise InputError("the project was unlinked while it was being linked")
    return link

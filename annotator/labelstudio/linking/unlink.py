"""End the link to a project: what Label Studio calls is taken down, every answer stays here."""

from dataclasses import dataclass
from itertools import islice
from typing import Any

from annotator.errors import InputError
from annotator.labelstudio.api.filters import annotated
from annotator.labelstudio.api.server import Server
from annotator.labelstudio.linking.calls import drop_backends
from annotator.labelstudio.linking.project import MARK
from annotator.settings import Workspace
from annotator.store import LabelStore
from annotator.store.exchange_records import Link

_PAGE = 500


@dataclass(frozen=True, slots=True)
class UnlinkReport:
    """The link that was ended; whether its project was deleted; whether Label Studio was left as it is."""

    link: Link
    deleted_project: bool
    left_alone: bool

    def summary(self) -> str:
        """Return a line for people."""
        link = self.link
        told = f"project {link.project_id}, {link.title!r}, of {link.url} is not linked any more"
        if self.deleted_project:
            return f"{told}; it was deleted there, its answers stay here"
        if self.left_alone:
            return f"{told}; its webhook and ML backend are still registered there and are not let in here"
        return f"{told}; its tasks and answers stay on both sides"


def unlink(
    workspace: Workspace,
    store: LabelStore,
    server: Server | None,
    *,
    delete_project: bool = False,
    force: bool = False,
) -> UnlinkReport:
    """End the active link; the caller holds `labelstudio.lock`. Cut off, it can be run again.

    Args:
        workspace: the workspace.
        store: its open store.
        server: the linked server; None leaves it as it is, for one that is gone.
        delete_project: delete the project there, if `link` made it.
        force: delete it even though answers in it have not been pulled.

    Raises:
        InputError: nothing is linked; the project was there before; it holds answers that are not here.
        UnreachableError, RefusedError: of the server; the link stands.
    """
    link = store.exchange.link()
    if link is None:
        raise InputError("no project is linked")
    if delete_project:
        _check_deletion(store, server, link, force=force)
    if server is not None:
        if link.webhook_id is not None:
            server.delete_webhook(link.webhook_id)
        if delete_project:
            server.delete_project(link.project_id)
        elif link.backend_id is not None:
            drop_backends(server, link)
    store.exchange.update_link(link.id, webhook_id=None, backend_id=None, secret_digest=None)
    store.exchange.close_link(link.id)
    (workspace.root / MARK).unlink(missing_ok=True)
    return UnlinkReport(link, delete_project, server is None)


def _check_deletion(store: LabelStore, server: Server | None, link: Link, *, force: bool) -> None:
    if server is None:
        raise InputError("a project cannot be deleted without its server")
    if not link.settings.get("created_project"):
        raise InputError(f"project {link.project_id} was there before it was linked: delete it in Label Studio")
    missing = 0 if force else num_not_pulled(store, server, link)
    if missing:
        raise InputError(f"{missing} answers in project {link.project_id} are not here yet: pull before you delete it")


def num_not_pulled(store: LabelStore, server: Server, link: Link) -> int:
    """Count the annotations of the linked project that are unknown here, or changed since they came in."""
    wanted = ("id", "annotations", "updated_at", "was_cancelled")
    missing = 0
    tasks = server.iter_tasks(link.project_id, include=wanted, filters=[annotated()], page_size=_PAGE)
    while page := list(islice(tasks, _PAGE)):
        known = store.exchange.answers_of_tasks(link.id, [int(task["id"]) for task in page])
        for task in page:
            times = {answer.ls_id: answer.ls_updated_at for answer in known.get(int(task["id"]), [])}
            missing += sum(_is_missing(annotation, times) for annotation in task["annotations"])
    return missing


def _is_missing(annotation: dict[str, Any], times: dict[int, str]) -> bool:
    if annotation["was_cancelled"]:
        return False
    return times.get(int(annotation["id"]), "") < str(annotation["updated_at"])

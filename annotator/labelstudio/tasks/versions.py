"""The model versions that we have made in a project: each noted before anything bears it, deleted when nobody waits.

Label Studio deletes a version in one transaction, at 250 predictions a second; on SQLite whoever submits meanwhile
waits for it (6.8 s were seen with 1,000 predictions). A version that is not shown harms nobody, so it is deleted when
nobody has answered for `QUIET`.
"""

import logging
from datetime import UTC, datetime, timedelta

from annotator.errors import LabelStudioError
from annotator.labelstudio.api.filters import annotated, since
from annotator.labelstudio.api.server import Server
from annotator.store.exchange import Exchange
from annotator.store.exchange_outbox import VERSION
from annotator.store.exchange_records import Link

log = logging.getLogger(__name__)

QUIET = timedelta(minutes=2)


class Versions:
    """The versions of one linked project."""

    def __init__(self, exchange: Exchange, server: Server, link: Link) -> None:
        self._exchange, self._server, self._link = exchange, server, link

    def ours(self) -> dict[str, int]:
        """Return every version that we have made, with the id of its note in the outbox."""
        items = self._exchange.waiting(self._link.id, [VERSION])
        return {str(item.payload["version"]): item.id for item in items}

    def count(self, version: str) -> int:
        """Return how many predictions of a version the project has."""
        return self._server.model_versions(self._link.project_id).get(version, 0)

    def make(self, wanted: str, shown: str | None) -> str:
        """Return a name that the project does not know, noted as ours: `wanted`, or `<wanted>~2` and so on."""
        taken = set(self._server.model_versions(self._link.project_id)) | {shown}
        names = (wanted if n == 1 else f"{wanted}~{n}" for n in range(1, len(taken) + 2))
        version = next(name for name in names if name not in taken)
        self._exchange.enqueue(self._link.id, [(VERSION, f"{VERSION}:{version}", {"version": version})])
        return version

    def tidy(self, keep: str | None, *, at_once: bool = False) -> list[str]:
        """Delete the versions of ours but `keep`, unless somebody is answering; return those that could not be.

        With `at_once` they are deleted whatever people do.
        """
        old = {version: item_id for version, item_id in self.ours().items() if version != keep}
        if not old or not (at_once or self.quiet()):
            return []
        left = []
        for version, item_id in old.items():
            try:
                if self.count(version):
                    self._server.delete_model_version(self._link.project_id, version)
            except LabelStudioError as error:
                log.warning("predictions of %s are left in the project: %s", version, error)
                left.append(version)
            else:
                self._exchange.done([item_id])
        return left

    def sweep(self) -> None:
        """Delete what earlier refreshes had to leave, if nobody is answering; asks nothing while there is none."""
        ours = self.ours()
        if len(ours) > 1:
            shown = self._server.project(self._link.project_id).get("model_version")
            if shown in ours:
                self.tidy(keep=shown)

    def quiet(self) -> bool:
        """Tell whether nobody has answered in the project for `QUIET`, by the server's clock."""
        now = self._server.clock or datetime.now(UTC)
        just_answered = [since(now - QUIET), annotated()]
        _, number = self._server.tasks(self._link.project_id, include=("id",), filters=just_answered, page_size=1)
        return number == 0

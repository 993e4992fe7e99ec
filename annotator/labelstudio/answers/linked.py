"""A linked project as both directions of the sync see it: the store, the server, and what the controls mean."""

from dataclasses import dataclass
from typing import Any, Self

from annotator.errors import InputError
from annotator.labelstudio.answers.people import People
from annotator.labelstudio.api.server import Server
from annotator.labelstudio.config.generated import Mapping
from annotator.labelstudio.config.results import Said, canonical, expressed, parse_result, to_result
from annotator.records import Annotation
from annotator.settings import Workspace
from annotator.store import LabelStore
from annotator.store.exchange_records import Link
from annotator.taxonomy import Taxonomy


@dataclass(frozen=True, slots=True)
class Linked:
    """What every step of the sync works on."""

    store: LabelStore
    server: Server
    link: Link
    mapping: Mapping
    taxonomy: Taxonomy
    people: People

    @classmethod
    def of(cls, workspace: Workspace, store: LabelStore, server: Server, link: Link) -> Self:
        """Join the parts; the link's cursors are read anew.

        Raises:
            InputError: `link` is not the active one any more.
        """
        active = store.exchange.link()
        if active is None or active.id != link.id:
            raise InputError(f"project {link.project_id} of {link.url} is not linked any more")
        mapping = Mapping.from_dict(active.settings["mapping"])
        people = People(store, server, active.settings.get("users", {}))
        return cls(store, server, active, mapping, workspace.settings.taxonomy, people)

    def heard(self, annotation: dict[str, Any]) -> tuple[Said, str]:
        """Return what an annotation of theirs says, and that as text to compare.

        Raises:
            MalformedResultError: it is no answer.
        """
        said = parse_result(annotation["result"], bool(annotation["was_cancelled"]), self.mapping, self.taxonomy)
        return said, canonical(said)

    def content(self, annotation: Annotation) -> str | None:
        """Return what an annotation of ours says once it is there, to compare; None if the project cannot say it."""
        try:
            return canonical(expressed(_said(annotation), self.mapping, self.taxonomy))
        except InputError:
            return None

    def result(self, annotation: Annotation) -> list[dict[str, Any]]:
        """Return an annotation of ours as a result.

        Raises:
            InputError: the project has no control or choice that says it.
        """
        return to_result(_said(annotation), self.mapping, self.taxonomy)


def _said(annotation: Annotation) -> Said:
    return Said(annotation.kind, annotation.classes, annotation.confidence, annotation.note)

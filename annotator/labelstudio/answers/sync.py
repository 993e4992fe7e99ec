"""Both sides brought together once, in an order that makes a crash at any point harmless.

1. Pull. What changed there is stored, each annotation in one commit with the link to it; the cursor follows what is
   durable. Cut off here, the next pull begins at the cursor again and knows what it stored. Coming first, it sees every
   change there before anything of ours could cover it, and finds what an earlier run has sent without hearing of it.
2. Plan. What people said here since `sent_seq` is put into the outbox, in one commit with `sent_seq`. Cut off before
   it, the next run plans the same; after it, the outbox has it.
3. Deliver. Each item is decided anew from the state of both sides, sent, then linked, then dropped from the outbox.
   Cut off between sending and linking: step 1 of the next run links a new annotation by the number of our answer that
   it carries, or step 3 finds that the annotation says so already. Cut off between linking and dropping: the item
   wants nothing any more.
4. What had changed there in the very moment of sending was left alone; then all three steps come once more.

Nothing in here depends on the order or the number of webhooks: they only say when to begin.
"""

import math
from dataclasses import asdict, dataclass, replace
from typing import TypeVar

from annotator.ingest.cache import Progress
from annotator.labelstudio.answers.linked import Linked
from annotator.labelstudio.answers.outbox import SentReport, deliver
from annotator.labelstudio.answers.outgoing import enqueue_outgoing
from annotator.labelstudio.answers.pull import PullReport, pull
from annotator.labelstudio.api.server import Server
from annotator.settings import Workspace
from annotator.store import LabelStore
from annotator.store.exchange_records import Link

_AGAIN = 2
T = TypeVar("T", PullReport, SentReport)


@dataclass(frozen=True, slots=True)
class News:
    """What a sync did; false when it found nothing to do."""

    pulled: PullReport
    sent: SentReport

    def __bool__(self) -> bool:
        return bool(
            self.pulled.stored or self.pulled.quarantined or self.pulled.gone or any(asdict(self.sent).values())
        )

    def summary(self) -> str:
        """Return it as one sentence."""
        went = {
            "made": self.sent.annotate,
            "changed": self.sent.edit,
            "deleted": self.sent.retract,
            "to try again": self.sent.later + self.sent.moved,
            "given up": self.sent.dead,
        }
        sent = ", ".join(f"{number} {what}" for what, number in went.items() if number) or "nothing new"
        return f"in: {self.pulled.summary()}; out: {sent}"


def sync_once(
    workspace: Workspace,
    store: LabelStore,
    server: Server,
    link: Link,
    *,
    full: bool = False,
    progress: Progress | None = None,
    seconds: float = math.inf,
) -> News:
    """Pull, plan and deliver; one request when nothing happened on either side.

    Args:
        workspace: the workspace.
        store: its open store.
        server: the linked server.
        link: the active link.
        full: compare all ids and go through all answered faces as well.
        progress: as for `pull`.
        seconds: how long to go on sending before the rest is left to the next time; it takes about 20 a second.

    Raises:
        UnreachableError: the server does not answer the pull; nothing is lost, try later.
        RefusedError: it refuses the pull, or the key.
        InputError: the link is not active any more.
    """
    pulled = pull(workspace, store, server, link, full=full, progress=progress)
    sent = _send(workspace, store, server, link, seconds, everything=full)
    for _ in range(_AGAIN):
        if not sent.moved:
            break
        pulled = _sum(pulled, pull(workspace, store, server, link))
        sent = _sum(sent, _send(workspace, store, server, link, seconds))
    return News(pulled, sent)


def _send(
    workspace: Workspace, store: LabelStore, server: Server, link: Link, seconds: float, *, everything: bool = False
) -> SentReport:
    linked = Linked.of(workspace, store, server, link)
    enqueue_outgoing(linked, everything=everything)
    return deliver(linked, seconds=seconds)


def _sum(one: T, other: T) -> T:
    more = asdict(other)
    return replace(one, **{name: value + more[name] for name, value in asdict(one).items()})

"""Recognising a linked Label Studio: the secret of the link, as a Basic password or in the webhooks' header."""

import base64
import binascii
import hmac
import logging
import time
from collections.abc import Callable

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers

from annotator.auth import AttemptLimiter, token_digest
from annotator.errors import AuthError, NotFoundError, TooManyAttemptsError
from annotator.labelstudio.api.server import SECRET_HEADER
from annotator.store import LabelStore
from annotator.store.exchange_records import Link

log = logging.getLogger(__name__)

LINK_SECONDS = 1.0
"""How long a link is believed without asking the store: one that was ended is out within this."""
MAX_FAILURES, WINDOW_SECONDS = 40, 60.0
_MAX_SECRET_CHARS = 500


class LinkAuth:
    """Tell whether a request carries the secret of the active link.

    The right secret is always let in: it is 32 random bytes, so no number of guesses finds it, and Label Studio must
    not be shut out by whoever else has its address. What the limit spares is the store and the log.

    Args:
        store: the open store.
        clock: monotonic seconds.
    """

    def __init__(self, store: LabelStore, clock: Callable[[], float] = time.monotonic) -> None:
        self._exchange = store.exchange
        self._clock = clock
        self._failures = AttemptLimiter(MAX_FAILURES, WINDOW_SECONDS, clock)
        self._known: tuple[float, Link | None] = (float("-inf"), None)

    async def link_of(self, headers: Headers, address: str) -> Link:
        """Return the link whose secret a request carries.

        Raises:
            NotFoundError: no project is linked, or without a secret.
            AuthError: the secret is missing or wrong.
            TooManyAttemptsError: too many such requests from this address.
        """
        digest = token_digest(_secret(headers))
        looked = self._clock() - self._known[0] >= LINK_SECONDS
        if looked:
            await self._look()
        link = self._match(digest)
        if link is not None:
            return link
        self._count(address)
        if not looked:
            # A link may have been made, or given another secret, this very moment.
            await self._look()
            link = self._match(digest)
            if link is not None:
                self._failures.forgive(address)
                return link
        if self._known[1] is None or self._known[1].secret_digest is None:
            raise NotFoundError("no Label Studio project is linked to this workspace")
        log.warning("a request from %s without the secret of the linked Label Studio project", address)
        raise AuthError("the secret of the link is missing or wrong: send it as the Basic password")

    async def _look(self) -> None:
        self._known = (self._clock(), await run_in_threadpool(self._exchange.link))

    def _count(self, address: str) -> None:
        try:
            self._failures.check(address)
        except TooManyAttemptsError:
            raise TooManyAttemptsError("too many requests without the right secret; wait a minute") from None

    def _match(self, digest: str) -> Link | None:
        link = self._known[1]
        if link is None or link.secret_digest is None or not hmac.compare_digest(digest, link.secret_digest):
            return None
        return link


def _secret(headers: Headers) -> str:
    """Return what a request offers as the secret; empty when it offers nothing that can be read."""
    if SECRET_HEADER in headers:
        return headers[SECRET_HEADER][:_MAX_SECRET_CHARS]
    scheme, _, value = headers.get("authorization", "").partition(" ")
    if scheme.lower() != "basic":
        return ""
    try:
        pair = base64.b64decode(value.strip()[: 4 * _MAX_SECRET_CHARS], validate=True).decode()
    except (binascii.Error, ValueError):
        return ""
    return pair.partition(":")[2][:_MAX_SECRET_CHARS]

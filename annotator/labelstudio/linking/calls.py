"""What Label Studio calls in our server: the webhook and the ML backend, both with the secret of the link."""

import secrets
from collections.abc import Callable

from annotator.auth import token_digest
from annotator.errors import RefusedError
from annotator.labelstudio.api.credentials import redact
from annotator.labelstudio.api.server import Server
from annotator.store import LabelStore
from annotator.store.exchange_records import Link

PATH = "/labelstudio"
BASIC_USER = "annotator"
BACKEND_TITLE = "annotator"
_NOT_FOUND = 404


def register_calls(store: LabelStore, server: Server, link: Link, public_url: str, *, backend: bool) -> list[str]:
    """Register webhook and ML backend at `public_url` with a new secret; return, in sentences, what was refused.

    Earlier ones of this link, or at this address, are replaced. Only the digest of the secret stays here.

    Raises:
        UnreachableError: the server does not answer; run it again.
    """
    base = public_url.rstrip("/") + PATH
    secret = secrets.token_urlsafe(32)
    # First the digest: Label Studio calls the backend with the secret before it answers.
    store.exchange.update_link(link.id, secret_digest=token_digest(secret))
    problems = []
    for hook in server.webhooks(link.project_id):
        if hook["id"] == link.webhook_id or hook["url"] == f"{base}/webhook":
            server.delete_webhook(hook["id"])
    webhook_id, problem = _try(
        lambda: server.create_webhook(link.project_id, f"{base}/webhook", secret),
        "the webhook was refused, changes there are seen at the next look only",
        secret,
    )
    store.exchange.update_link(link.id, webhook_id=webhook_id)
    problems += problem
    drop_backends(server, link, base)
    backend_id = None
    if backend:
        backend_id, problem = _try(
            lambda: _connect(server, link, base, secret),
            "the ML backend was refused; start `annotator serve` where Label Studio reaches it, and link again",
            secret,
        )
        problems += problem
    store.exchange.update_link(link.id, backend_id=backend_id)
    return problems


def drop_backends(server: Server, link: Link, base: str | None = None) -> None:
    """Disconnect the ML backend of a link, and any at the address `base`."""
    try:
        connected = server.backends(link.project_id)
    except RefusedError as error:
        if error.status == _NOT_FOUND:  # the project is gone, and they with it
            return
        raise
    for found in connected:
        if found["id"] == link.backend_id or (base is not None and str(found["url"]).rstrip("/") == base):
            server.delete_backend(found["id"])


def _connect(server: Server, link: Link, base: str, secret: str) -> int:
    before = server.project(link.project_id)["model_version"]
    made = server.create_backend(link.project_id, base, BASIC_USER, secret, BACKEND_TITLE)
    if not before:  # the project took the backend's title for its model version; ours is set by the first push
        server.update_project(link.project_id, model_version="")
    return made


def _try(make: Callable[[], int], otherwise: str, secret: str) -> tuple[int | None, list[str]]:
    try:
        return make(), []
    except RefusedError as error:
        return None, [f"{otherwise}: {redact(str(error), secret)}"]

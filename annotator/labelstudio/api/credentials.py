"""The API key of a Label Studio server: from the environment or the keyring, and never in a message."""

import importlib
import os
import re

from annotator.errors import InputError

VARIABLE = "LABEL_STUDIO_API_KEY"
SERVICE = "annotator-labelstudio"
_HIDDEN = "[hidden]"
_HEADER = re.compile(r"(?i)(authorization\W{1,4}\w+ )[\w.~+/=-]+")
# A JSON Web Token, the 40 hex digits of a legacy token, user:password in a URL.
_SECRETS = re.compile(r"\beyJ[\w-]+\.[\w-]+\.[\w-]*|\b[0-9a-fA-F]{40}\b|(?<=://)[^\s/@:]*:[^\s/@]+(?=@)")


def api_key(url: str) -> str:
    """Return the key for the server at `url`: `LABEL_STUDIO_API_KEY`, else the keyring's entry for that address.

    Raises:
        InputError: there is none; the message names both places.
    """
    found = os.environ.get(VARIABLE, "").strip() or _from_keyring(url)
    if not found:
        raise InputError(
            f"no API key for {redact(url)}; set {VARIABLE}, "
            f"or keep it in the keyring: keyring set {SERVICE} {redact(url)}"
        )
    return found


def _from_keyring(url: str) -> str:
    """Return the keyring's key, empty when there is none, no keyring is installed or it cannot be opened."""
    try:
        keyring = importlib.import_module("keyring")
    except ImportError:
        return ""
    try:
        return (keyring.get_password(SERVICE, url.rstrip("/")) or "").strip()
    except keyring.errors.KeyringError:  # no keyring service on this machine, or a locked one
        return ""


def redact(text: str, *secrets: str) -> str:
    """Return `text` without `secrets` and without anything that looks like a token or a password in a URL."""
    for secret in secrets:
        if secret:
            text = text.replace(secret, _HIDDEN)
    return _SECRETS.sub(_HIDDEN, _HEADER.sub(rf"\1{_HIDDEN}", text))

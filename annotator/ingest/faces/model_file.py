"""The file of a detector's weights: named by the user, or downloaded once and checked."""

import hashlib
import os
from pathlib import Path

import httpx

from annotator.durable import write_atomically
from annotator.errors import InputError
from annotator.settings import ImportSettings

_TIMEOUT = httpx.Timeout(30.0, connect=10.0)
_MAX_BYTES = 50_000_000
_REMEDY = (
    "download it by other means and name the file as imports.detector_model, or set imports.detector to cascade, "
    "which needs no download"
)


def model_file(settings: ImportSettings) -> Path:
    """Return the file with the weights of YuNet: the one named, or the one kept from its only download.

    Raises:
        InputError: it cannot be downloaded, or is not the file that it should be.
    """
    if settings.detector_model is not None:
        return Path(settings.detector_model).expanduser()
    kept = _models_folder() / f"yunet-{settings.detector_sha256[:16]}.onnx"
    if kept.is_file() and _sha256(kept.read_bytes()) == settings.detector_sha256:
        return kept
    data = _download(settings.detector_url)
    found = _sha256(data)
    if found != settings.detector_sha256:
        raise InputError(
            f"{settings.detector_url} is not the face detection model that it should be: its SHA-256 is {found}, "
            f"imports.detector_sha256 is {settings.detector_sha256}; {_REMEDY}"
        )
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(kept, data)
    except OSError as error:
        raise InputError(f"cannot keep the face detection model at {kept}: {error.strerror}; {_REMEDY}") from error
    return kept


def _models_folder() -> Path:
    """Return where models are kept for every workspace of this user."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "annotator"


def _download(url: str) -> bytes:
    data = bytearray()
    try:
        with httpx.stream("GET", url, follow_redirects=True, timeout=_TIMEOUT) as answer:
            answer.raise_for_status()
            for block in answer.iter_bytes():
                data += block
                if len(data) > _MAX_BYTES:
                    raise InputError(f"{url} sends more than {_MAX_BYTES} bytes, which no such model has; {_REMEDY}")
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        why = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(f"the face detection model cannot be downloaded from {url}: {why}; {_REMEDY}") from error
    return bytes(data)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()

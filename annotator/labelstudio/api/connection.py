"""One HTTP client to a Label Studio server, with the SDK's authentication and the project's errors.

The SDK repeats a request by itself after 408, 409, 429 and 5xx. It may not do so here: only the caller knows whether
sending the same thing twice would make it twice, so `max_retries` is 0 throughout.
"""

import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

import httpx

from annotator.errors import InputError, LabelStudioError, RefusedError, UnreachableError
from annotator.labelstudio.api.credentials import redact

_LATER = (408, 425, 429)
_LONGEST_DETAIL = 300
_NO_REPEAT = {"max_retries": 0}


class Connection:
    """An open client; `sdk` calls what the SDK offers, `request` what it lacks. Safe to use from several threads."""

    def __init__(self, url: str, api_key: str, *, timeout: float) -> None:
        """Open the client; nothing is sent yet.

        Raises:
            InputError: `url` is no address, the SDK is not installed, or the key has expired.
        """
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise InputError(f"{redact(url)!r} is no address of a Label Studio server; give one like http://host:8080")
        try:
            from label_studio_sdk.client import LabelStudio
            from label_studio_sdk.core.api_error import ApiError
        except ImportError as error:
            raise InputError(
                "the Label Studio SDK is missing; install it with: pip install annotator[labelstudio]"
            ) from error
        self.url = url.rstrip("/")
        self.timeout = timeout
        self.clock: datetime | None = None
        """The server's own time at its last answer, in whole seconds; None where it does not tell."""
        self._key = api_key
        self._api_error = ApiError
        self._http = httpx.Client(timeout=timeout)
        try:
            self._sdk = LabelStudio(base_url=f"{self.url}/", api_key=api_key, httpx_client=self._http, max_retries=0)
        except ApiError as error:
            raise InputError(f"the API key for {self.url} cannot be used: {self._detail(error.body)}") from None

    def __repr__(self) -> str:
        return f"Connection({redact(self.url)!r})"

    def close(self) -> None:
        """Close every connection; requests after this fail."""
        self._http.close()

    def sdk(self, what: str, **arguments: Any) -> Any:
        """Call one method of the SDK, such as `projects.get`, and return what it answered, as plain JSON values.

        Raises:
            UnreachableError: no answer, or one that says "later".
            RefusedError: it refused.
        """
        group, name = what.rsplit(".", 1)
        client = self._sdk
        for part in group.split("."):
            client = getattr(client, part)
        method = getattr(client.with_raw_response, name)
        return self._answer(what, lambda: method(request_options=_NO_REPEAT, **arguments).response)

    def request(
        self,
        method: str,
        path: str,
        *,
        params: dict[str, Any] | None = None,
        body: Any = None,
        files: Sequence[tuple[str, tuple[str, bytes, str]]] | None = None,
        extra_seconds: float = 0.0,
    ) -> Any:
        """Send a request that the SDK cannot, and return the JSON that came back, None for an empty answer.

        extra_seconds: added to the timeout, for requests whose work grows with what they carry.

        Raises:
            UnreachableError: no answer, or one that says "later".
            RefusedError: it refused.
        """

        def send() -> httpx.Response:
            headers = self._sdk._client_wrapper.get_headers()  # the SDK refreshes an access token in here
            content = None
            if body is not None:
                content = json.dumps(body, separators=(",", ":")).encode()
                headers["Content-Type"] = "application/json"
            return self._http.request(
                method,
                f"{self.url}/{path}",
                params=params,
                content=content,
                files=files,
                headers=headers,
                timeout=self.timeout + extra_seconds,
            )

        return self._answer(f"{method} {path}", send)

    def _answer(self, what: str, send: Callable[[], httpx.Response]) -> Any:
        try:
            response = send()
        except httpx.TimeoutException as error:
            raise UnreachableError(f"{self.url}: {what}: no answer in time ({type(error).__name__})") from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise UnreachableError(f"{self.url}: {what}: {redact(str(error), self._key)}") from None
        except self._api_error as error:
            raise self._failure(what, error.status_code or 0, error.body) from None
        except ValueError:  # the SDK read something as JSON that is none
            raise self._foreign(what) from None
        self.clock = _date(response) or self.clock
        if not response.is_success:
            raise self._failure(what, response.status_code, response.text)
        if not response.content:
            return None
        try:
            return response.json()
        except ValueError:
            raise self._foreign(what) from None

    def _foreign(self, what: str) -> UnreachableError:
        return UnreachableError(f"{self.url}: {what}: the answer is not one of Label Studio's")

    def _failure(self, what: str, status: int, body: Any) -> LabelStudioError:
        if 200 <= status < 300:  # a page where JSON belongs: a proxy's, or another program's
            return self._foreign(what)
        message = f"{self.url}: {what}: {status} {self._detail(body)}".rstrip()
        if status >= 500 or status in _LATER or status < 200:
            return UnreachableError(message)
        return RefusedError(message, status)

    def _detail(self, body: Any) -> str:
        """Return what an error answer says, in one line without secrets."""
        if isinstance(body, str):
            try:
                body = json.loads(body)
            except ValueError:
                body = "" if "<html" in body.lower() else body
        if isinstance(body, dict):
            body = body.get("validation_errors") or body.get("detail") or body
        text = body if isinstance(body, str) else json.dumps(body, default=str)
        return redact(" ".join(text.split()), self._key)[:_LONGEST_DETAIL]


def _date(response: httpx.Response) -> datetime | None:
    try:
        return parsedate_to_datetime(response.headers["date"]).astimezone(UTC)
    except (KeyError, ValueError):
        return None

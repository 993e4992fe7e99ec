"""Where the API key comes from, and that no message holds it. The keyring is real, its backend in memory."""

from collections.abc import Iterator

import keyring
import keyring.backend
import keyring.backends.fail
import keyring.errors
import pytest

from annotator.errors import InputError
from annotator.labelstudio.api.credentials import SERVICE, VARIABLE, api_key, redact

URL = "http://studio.example.com:8080"
TOKEN = "0123456789abcdef0123456789abcdef01234567"
JWT = "eyJhbGciOiJIUzI1NiJ9.eyJ0b2tlbl90eXBlIjoicmVmcmVzaCJ9.c2lnbmF0dXJl"


class MemoryKeyring(keyring.backend.KeyringBackend):
    """Keeps entries for as long as it lives."""

    priority = 1  # type: ignore[assignment]

    def __init__(self) -> None:
        super().__init__()
        self.kept: dict[tuple[str, str], str] = {}

    def get_password(self, service: str, username: str) -> str | None:
        return self.kept.get((service, username))

    def set_password(self, service: str, username: str, password: str) -> None:
        self.kept[service, username] = password


class LockedKeyring(MemoryKeyring):
    """Does not let anyone in."""

    def get_password(self, service: str, username: str) -> str | None:
        raise keyring.errors.KeyringLocked("the user said no")


@pytest.fixture(autouse=True)
def _no_variable(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv(VARIABLE, raising=False)
    before = keyring.get_keyring()
    yield
    keyring.set_keyring(before)


def test_the_environment_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    keyring.set_keyring(MemoryKeyring())
    keyring.set_password(SERVICE, URL, "from the keyring")
    monkeypatch.setenv(VARIABLE, f" {TOKEN}\n")
    assert api_key(URL) == TOKEN


def test_the_keyring_knows_the_key_of_its_address_alone() -> None:
    keyring.set_keyring(MemoryKeyring())
    keyring.set_password(SERVICE, URL, TOKEN)
    assert api_key(URL) == TOKEN
    assert api_key(f"{URL}/") == TOKEN
    with pytest.raises(InputError):
        api_key("http://other.example.com")


@pytest.mark.parametrize("ring", [keyring.backends.fail.Keyring, LockedKeyring, MemoryKeyring])
def test_without_a_key_both_places_are_named(ring: type[keyring.backend.KeyringBackend]) -> None:
    keyring.set_keyring(ring())
    with pytest.raises(InputError) as missing:
        api_key(URL)
    assert VARIABLE in str(missing.value)
    assert f"keyring set {SERVICE} {URL}" in str(missing.value)


@pytest.mark.parametrize(
    "text",
    [
        f"Authorization: Token {TOKEN}",
        f"Authorization: Bearer {JWT}",
        "Authorization: Basic YW5ub3RhdG9yOnNlY3JldA==",
        f"refused: {JWT} has expired",
        f"token={TOKEN}&next=1",
        "http://ann:hunter22@studio.example.com/api",
        "the secret is xyzzy-plugh.",
    ],
)
def test_messages_lose_their_secrets(text: str) -> None:
    told = redact(text, "xyzzy-plugh")
    assert "[hidden]" in told
    for secret in (TOKEN, JWT, "YW5ub3RhdG9yOnNlY3JldA", "hunter22", "xyzzy-plugh"):
        assert secret not in told


def test_what_holds_no_secret_stays_as_it_is() -> None:
    for text in (URL, "400 Invalid token.", "basic authentication is required", "POST api/tasks/12/annotations/", ""):
        assert redact(text, "") == text

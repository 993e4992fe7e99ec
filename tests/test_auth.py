"""Passwords, limits, tokens and the single-user mode, on both databases where it matters."""

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from annotator import auth
from annotator.auth import AttemptLimiter, Authenticator
from annotator.errors import AuthError, ForbiddenError, InputError, TooManyAttemptsError
from annotator.records import User
from annotator.settings import Workspace
from annotator.store import LabelStore


class Clock:
    """A clock that moves when told to."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


def test_a_hash_is_argon2id_salted_and_verifiable() -> None:
    first, second = auth.hash_password("secret"), auth.hash_password("secret")
    assert first.startswith("$argon2id$")
    assert first != second
    assert auth.verify_password(first, "secret")
    assert not auth.verify_password(first, "Secret")
    assert not auth.verify_password("no hash at all", "secret")
    for wrong in ("", "x" * 1_001):
        with pytest.raises(InputError):
            auth.hash_password(wrong)


@given(st.text(min_size=1, max_size=140))
def test_a_name_is_taken_as_it_is_or_refused(name: str) -> None:
    if len(name) <= 120 and name == name.strip() and all(ord(c) >= 32 and c != "\x7f" for c in name):
        assert auth.check_name(name) == name
    else:
        with pytest.raises(InputError, match="cannot be a name"):
            auth.check_name(name)


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("[::1]", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.168.1.2", False),
        ("lab.example", False),
        ("", False),
    ],
)
def test_loopback(host: str, loopback: bool) -> None:
    assert auth.is_loopback(host) is loopback


@given(st.lists(st.tuples(st.floats(0, 30), st.booleans()), max_size=60))
def test_never_more_failures_than_the_limit_in_any_window(steps: list[tuple[float, bool]]) -> None:
    clock = Clock()
    limiter = AttemptLimiter(3, 60.0, clock)
    failures: list[float] = []
    for pause, success in steps:
        clock.now += pause
        recent = [t for t in failures if t > clock.now - 60.0]
        try:
            limiter.check("k")
        except TooManyAttemptsError:
            assert len(recent) >= 3
            continue
        assert len(recent) < 3
        if success:
            limiter.forgive("k")
        else:
            failures.append(clock.now)


def test_keys_do_not_share_a_limit() -> None:
    limiter = AttemptLimiter(1, 60.0, Clock())
    limiter.check("a")
    limiter.check("b")
    with pytest.raises(TooManyAttemptsError, match="wait 61 s"):
        limiter.check("a")


def test_a_session_from_sign_in_to_sign_out(store: LabelStore, workspace: Workspace) -> None:
    clock = Clock()
    authenticator = Authenticator(store, workspace, "127.0.0.1", clock)
    store.accounts.add("Alice", "reviewer", auth.hash_password("secret"))
    user, token = authenticator.login("alice", "secret", "1.2.3.4")
    assert (user.name, user.role) == ("Alice", "reviewer")
    assert authenticator.user_of(token) == user
    assert authenticator.cached(token) == (True, user)
    assert store.accounts.user_of_token(token) is None, "the token itself must not be stored"
    assert store.accounts.user_of_token(auth.token_digest(token)) == user
    authenticator.logout(token)
    assert authenticator.cached(token) == (True, None)
    assert authenticator.user_of(token) is None


def test_what_the_cache_believes_ends_soon(store: LabelStore, workspace: Workspace) -> None:
    clock = Clock()
    authenticator = Authenticator(store, workspace, "127.0.0.1", clock)
    store.accounts.add("alice", "annotator", auth.hash_password("secret"))
    user, token = authenticator.login("alice", "secret", "a")
    assert authenticator.user_of(token) == user
    store.accounts.set_disabled("alice", True)
    clock.now += auth.CACHE_SECONDS
    assert authenticator.cached(token) == (False, None)
    assert authenticator.user_of(token) is None
    with pytest.raises(AuthError, match="wrong name or password"):
        authenticator.login("alice", "secret", "a")


def test_a_token_ends_by_itself(store: LabelStore, workspace: Workspace) -> None:
    authenticator = Authenticator(store, workspace, "127.0.0.1")
    user = store.accounts.add("alice", "annotator", auth.hash_password("secret"))
    token = authenticator.issue_token(user, timedelta(seconds=-1))
    assert authenticator.user_of(token) is None


def test_guessing_is_slowed_per_name_and_per_address(store: LabelStore, workspace: Workspace) -> None:
    clock = Clock()
    authenticator = Authenticator(store, workspace, "127.0.0.1", clock)
    store.accounts.add("alice", "annotator", auth.hash_password("secret"))
    for guess in range(8):
        with pytest.raises(AuthError, match="wrong"):
            authenticator.login("ALICE" if guess % 2 else "alice", f"{guess}", f"address {guess}")
    with pytest.raises(TooManyAttemptsError):
        authenticator.login("alice", "secret", "yet another address")
    clock.now += 61
    for _ in range(20):
        assert authenticator.login("alice", "secret", "a")[0].name == "alice"
    for number in range(40):
        with pytest.raises(AuthError):
            authenticator.login(f"name {number}", "x", "one address")
    with pytest.raises(TooManyAttemptsError):
        authenticator.login("alice", "secret", "one address")


def test_single_user_mode_ends_with_the_first_person(store: LabelStore, workspace: Workspace) -> None:
    clock = Clock()
    authenticator = Authenticator(store, workspace, "127.0.0.1", clock)
    local = authenticator.user_of(None)
    assert local is not None
    assert (local.name, local.role) == ("local", "admin")
    assert authenticator.user_of("a stale cookie") == local
    store.accounts.add("robot", "annotator", auth.hash_password("x"), simulated=True)
    clock.now += auth.CACHE_SECONDS
    assert authenticator.user_of(None) == local
    robot, token = authenticator.login("robot", "x", "a")
    assert authenticator.user_of(token) == robot
    store.accounts.add("alice", "annotator", auth.hash_password("secret"))
    clock.now += auth.CACHE_SECONDS
    assert authenticator.user_of(None) is None
    store.accounts.set_disabled("alice", True)
    clock.now += auth.CACHE_SECONDS
    assert authenticator.user_of(None) is None, "a workspace whose people are all disabled is closed, not open"


def test_the_local_account_has_no_password_to_guess(store: LabelStore, workspace: Workspace) -> None:
    authenticator = Authenticator(store, workspace, "127.0.0.1")
    authenticator.user_of(None)
    for password in ("", "local", "None"):
        with pytest.raises(AuthError, match="wrong"):
            authenticator.login("local", password, "a")


def test_other_hosts_need_accounts(store: LabelStore, workspace: Workspace) -> None:
    authenticator = Authenticator(store, workspace, "0.0.0.0")
    with pytest.raises(InputError, match=r"'0\.0\.0\.0'.*annotator users add"):
        authenticator.require_accounts("0.0.0.0")
    assert authenticator.user_of(None) is None, "not even when it is started all the same"
    store.accounts.add("alice", "admin", auth.hash_password("secret"))
    authenticator.require_accounts("0.0.0.0")


def test_roles_are_checked() -> None:
    anna = User(1, "anna", "annotator")
    auth.require_role(anna, "annotator", "admin")
    with pytest.raises(ForbiddenError, match="anna is annotator; this needs reviewer or admin"):
        auth.require_role(anna, "reviewer", "admin")

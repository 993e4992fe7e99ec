"""Who asks: passwords, sessions, API tokens, roles, and the single-user mode.

Passwords are stored as argon2id hashes, tokens as SHA-256 of 32 random bytes; neither can be read back from a backup.
While a workspace has no people's accounts, whoever reaches the loopback address is the user "local"; with the first
account everyone signs in.
"""

import hashlib
import ipaddress
import re
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from annotator.errors import AuthError, ForbiddenError, InputError, NotFoundError, TooManyAttemptsError
from annotator.records import Role, User
from annotator.settings import Workspace
from annotator.store import LabelStore

# OWASP's second argon2id setting: about 30 ms on one core and 19 MiB, so that a burst of sign-ins never slows answers.
_HASHER = PasswordHasher(time_cost=2, memory_cost=19_456, parallelism=1)
_NAME = re.compile(r"[^\x00-\x1f\x7f]{1,120}")
MAX_PASSWORD_CHARS = 1_000
CACHE_SECONDS = 2.0
"""How long a token is believed without asking the store: a disabled account loses its sessions within this."""
MAX_CACHED_TOKENS = 10_000


def check_name(name: str) -> str:
    """Return `name` when it can be an account's name.

    Raises:
        InputError: it is empty, longer than 120 characters, padded with spaces, or holds control characters.
    """
    if not _NAME.fullmatch(name) or name != name.strip():
        raise InputError(f"{name[:80]!r} cannot be a name: use 1 to 120 characters, no control characters, no padding")
    return name


def hash_password(password: str) -> str:
    """Return the argon2id hash of a password.

    Raises:
        InputError: the password is empty or longer than `MAX_PASSWORD_CHARS`.
    """
    if not password:
        raise InputError("the password is empty: choose one")
    if len(password) > MAX_PASSWORD_CHARS:
        raise InputError(f"the password has {len(password)} characters; at most {MAX_PASSWORD_CHARS} are allowed")
    return _HASHER.hash(password)


def verify_password(stored: str, password: str) -> bool:
    """Tell whether `password` is the one that was hashed."""
    try:
        return _HASHER.verify(stored, password)
    except (VerificationError, InvalidHashError):
        return False


def token_digest(token: str) -> str:
    """Return what the store keeps of a token."""
    return hashlib.sha256(token.encode("utf-8", "replace")).hexdigest()


def is_loopback(host: str) -> bool:
    """Tell whether a server on `host` is reachable from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def require_role(user: User, *roles: Role) -> None:
    """Raise `ForbiddenError` unless the user has one of the roles."""
    if user.role not in roles:
        raise ForbiddenError(f"{user.name} is {user.role}; this needs {' or '.join(roles)}")


class AttemptLimiter:
    """Count failures per key over a sliding window; thread-safe.

    Args:
        limit: failures allowed within the window.
        window_seconds: length of the window.
        clock: monotonic seconds.
    """

    def __init__(self, limit: int, window_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit = limit
        self._window = window_seconds
        self._clock = clock
        self._failures: dict[str, deque[float]] = {}
        self._lock = threading.Lock()

    def check(self, key: str) -> None:
        """Reserve an attempt for `key`.

        The attempt counts as failed until `forgive` is called, so that parallel guesses cannot slip through together.

        Raises:
            TooManyAttemptsError: the limit is reached.
        """
        now = self._clock()
        with self._lock:
            self._drop_old(now)
            times = self._failures.setdefault(key, deque())
            if len(times) >= self._limit:
                wait = max(1, int(times[0] + self._window - now) + 1)
                raise TooManyAttemptsError(f"too many failed sign-ins; wait {wait} s")
            times.append(now)

    def forgive(self, key: str) -> None:
        """Take the latest attempt back: it succeeded."""
        with self._lock:
            times = self._failures.get(key)
            if times:
                times.pop()

    def _drop_old(self, now: float) -> None:
        for key in [k for k, times in self._failures.items() if not times or times[-1] <= now - self._window]:
            del self._failures[key]
        for times in self._failures.values():
            while times and times[0] <= now - self._window:
                times.popleft()


class Authenticator:
    """Sign people in and recognise them by their tokens.

    Args:
        store: the open store.
        workspace: for the length of a session.
        host: where the server listens; decides whether it may run without accounts.
        clock: monotonic seconds.
    """

    def __init__(
        self, store: LabelStore, workspace: Workspace, host: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._accounts = store.accounts
        self._session = timedelta(days=workspace.settings.server.session_days)
        self._loopback = is_loopback(host)
        self._clock = clock
        self._names = AttemptLimiter(8, 60.0, clock)
        self._addresses = AttemptLimiter(40, 60.0, clock)
        self._hashing = threading.BoundedSemaphore(2)
        self._nobody = hash_password(secrets.token_hex(16))
        self._cache: dict[str, tuple[float, User | None]] = {}
        self._people: tuple[float, bool] | None = None
        self._local: User | None = None

    def require_accounts(self, host: str) -> None:
        """Refuse to serve on `host` when anyone could reach it without an account.

        Raises:
            InputError: there are no accounts and the host is not a loopback address.
        """
        if not is_loopback(host) and not self._accounts.has_people():
            raise InputError(
                f"host {host!r} would show the faces to everyone: this workspace has no accounts; add one with "
                "`annotator users add WS NAME --role admin`, or serve on 127.0.0.1"
            )

    def login(self, name: str, password: str, address: str) -> tuple[User, str]:
        """Check a password and open a session; return the user and the session's token.

        Raises:
            AuthError: wrong name or password, or the account is disabled: which one is not told.
            TooManyAttemptsError: too many failures for this name or from this address.
        """
        wrong = AuthError("wrong name or password")
        self._addresses.check(address)
        self._names.check(name[:120].casefold())
        stored = None
        user = None
        if name.isprintable():
            try:
                user = self._accounts.get(name)
                stored = self._accounts.password_hash(name)
            except NotFoundError:
                user = None
        # An unknown name costs one verification too, so that its answer takes as long as that of a known one.
        with self._hashing:
            right = verify_password(stored or self._nobody, password[: MAX_PASSWORD_CHARS + 1])
        if not right or stored is None or user is None or user.disabled:
            raise wrong
        self._addresses.forgive(address)
        self._names.forgive(name[:120].casefold())
        return user, self.issue_token(user)

    def issue_token(self, user: User, lifetime: timedelta | None = None) -> str:
        """Return a new token of `user`: a session, or an API token with its own lifetime."""
        token = secrets.token_urlsafe(32)
        self._accounts.add_token(token_digest(token), user.id, datetime.now(UTC) + (lifetime or self._session))
        return token

    def logout(self, token: str) -> None:
        """End a session or withdraw an API token."""
        digest = token_digest(token)
        self._accounts.drop_token(digest)
        self._cache[digest] = (self._clock() + CACHE_SECONDS, None)

    def cached(self, token: str | None) -> tuple[bool, User | None]:
        """Return (known, user) from memory alone; `known` is False when the store must be asked by `user_of`."""
        if self._single_user_known() is None:
            return False, None
        if token is None:
            return (True, self._local) if self._single_user_known() else (True, None)
        entry = self._cache.get(token_digest(token))
        if entry is None or entry[0] <= self._clock():
            return False, None
        if entry[1] is None and self._single_user_known():
            return True, self._local
        return True, entry[1]

    def user_of(self, token: str | None) -> User | None:
        """Return who a token belongs to, the local user in single-user mode, or None."""
        single = self._single_user()
        user = None
        if token:
            digest = token_digest(token)
            user = self._accounts.user_of_token(digest)
            if user is not None and user.disabled:
                user = None
            if len(self._cache) >= MAX_CACHED_TOKENS:
                self._cache.clear()
            self._cache[digest] = (self._clock() + CACHE_SECONDS, user)
        return user if user is not None or not single else self._local

    @property
    def single_user(self) -> bool:
        """Whether there are no accounts, so that requests are the local user's."""
        return self._single_user()

    def _single_user_known(self) -> bool | None:
        if self._people is None or self._people[0] <= self._clock():
            return None
        return self._loopback and not self._people[1]

    def _single_user(self) -> bool:
        known = self._single_user_known()
        if known is not None:
            return known
        people = self._accounts.has_people()
        if not people and self._loopback and self._local is None:
            self._local = self._accounts.local_user()
        self._people = (self._clock() + CACHE_SECONDS, people)
        return self._loopback and not people

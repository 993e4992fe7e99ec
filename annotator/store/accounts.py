"""Accounts and tokens. Hashing is `annotator.auth`'s: here are stored strings only."""

import unicodedata
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, delete, func, insert, select, update

from annotator.errors import InputError, NotFoundError
from annotator.records import ROLES, Role, User
from annotator.store.answers import check_text
from annotator.store.database import Database
from annotator.store.tables import tokens, users

LOCAL = "local"
"""The one user of a workspace without accounts."""
MAX_NAME = 120
Users = list[User]


class Accounts:
    """The people, and simulated people, of a workspace."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, name: str, role: Role, password_hash: str | None, simulated: bool = False) -> User:
        """Make an account.

        Raises:
            InputError: a bad name or role, or the name is taken (compared without regard to case).
        """
        name = _clean(name)
        if role not in ROLES:
            raise InputError(f"role {role!r} is not one of {', '.join(ROLES)}")
        with self._database.write() as connection:
            taken = _find(connection, name)
            if taken is not None:
                raise InputError(f"there is a user {taken.name!r} already")
            return _make(connection, name, role, password_hash, simulated)

    def local_user(self) -> User:
        """Return the user of single-user mode, made at first call: an admin without a password."""
        with self._database.read() as connection:
            known = _find(connection, LOCAL)
        if known is not None:
            return known
        with self._database.write() as connection:
            return _find(connection, LOCAL) or _make(connection, LOCAL, "admin", None, False)

    def get(self, name: str) -> User:
        """Return the user of that name, whatever its case; `NotFoundError` when there is none."""
        with self._database.read() as connection:
            return _named(connection, name)

    def by_id(self, user_id: int) -> User:
        """Return a user; `NotFoundError` when there is none of that id."""
        with self._database.read() as connection:
            row = connection.execute(select(users).where(users.c.id == user_id)).one_or_none()
        if row is None:
            raise NotFoundError(f"no user {user_id}")
        return _user(row)

    def list(self) -> Users:
        """Return all users by name."""
        with self._database.read() as connection:
            return [_user(row) for row in connection.execute(select(users).order_by(users.c.name))]

    def set_disabled(self, name: str, disabled: bool) -> User:
        """Close or reopen an account; closing ends its sessions."""
        with self._database.write() as connection:
            user = _named(connection, name)
            connection.execute(update(users).where(users.c.id == user.id).values(disabled=disabled))
            if disabled:
                connection.execute(delete(tokens).where(tokens.c.user_id == user.id))
            return _named(connection, name)

    def set_password_hash(self, name: str, password_hash: str | None) -> User:
        """Replace a password hash and end the account's sessions."""
        with self._database.write() as connection:
            user = _named(connection, name)
            connection.execute(update(users).where(users.c.id == user.id).values(password_hash=password_hash))
            connection.execute(delete(tokens).where(tokens.c.user_id == user.id))
            return user

    def password_hash(self, name: str) -> str | None:
        """Return the stored hash; `NotFoundError` when there is no such user."""
        with self._database.read() as connection:
            user = _named(connection, name)
            return connection.execute(select(users.c.password_hash).where(users.c.id == user.id)).scalar()

    def add_token(self, digest: str, user_id: int, expires_at: datetime) -> None:
        """Store the digest of a session or API token; expired ones are swept."""
        now = datetime.now(UTC)
        values = {"digest": digest, "user_id": user_id, "created_at": now, "expires_at": expires_at}
        with self._database.write() as connection:
            connection.execute(delete(tokens).where(tokens.c.expires_at <= now))
            connection.execute(insert(tokens).values(values))

    def user_of_token(self, digest: str, *, now: datetime | None = None) -> User | None:
        """Return the user of a token that has not expired and whose account is open, else None."""
        query = (
            select(users)
            .join_from(tokens, users, tokens.c.user_id == users.c.id)
            .where(tokens.c.digest == digest, tokens.c.expires_at > (now or datetime.now(UTC)), ~users.c.disabled)
        )
        with self._database.read() as connection:
            row = connection.execute(query).one_or_none()
        return None if row is None else _user(row)

    def drop_token(self, digest: str) -> None:
        """Forget a token; an unknown one is forgotten already."""
        with self._database.write() as connection:
            connection.execute(delete(tokens).where(tokens.c.digest == digest))

    def has_people(self) -> bool:
        """Return whether there is an account that a person signs in to."""
        query = select(users.c.id).where(users.c.password_hash.is_not(None), ~users.c.simulated).limit(1)
        with self._database.read() as connection:
            return connection.execute(query).scalar() is not None


def _clean(name: str) -> str:
    check_text(name, "the user name")
    cleaned = unicodedata.normalize("NFC", name).strip()
    if not 1 <= len(cleaned) <= MAX_NAME or not cleaned.isprintable():
        raise InputError(f"user name {name[:200]!r} must be 1 to {MAX_NAME} printable characters")
    return cleaned


def _find(connection: Connection, name: str) -> User | None:
    """Look a name up; SQLite folds ASCII only, so the comparison is made here on the few rows that may match."""
    wanted = unicodedata.normalize("NFC", name).strip()
    row = connection.execute(select(users).where(users.c.name == wanted)).one_or_none()
    if row is None:
        same_length = connection.execute(select(users).where(func.length(users.c.name) == len(wanted)))
        row = next((r for r in same_length if r.name.casefold() == wanted.casefold()), None)
    return None if row is None else _user(row)


def _named(connection: Connection, name: str) -> User:
    user = None if "\0" in name else _find(connection, name)
    if user is None:
        raise NotFoundError(f"no user {name!r}")
    return user


def _make(connection: Connection, name: str, role: Role, password_hash: str | None, simulated: bool) -> User:
    values = {
        "name": name,
        "role": role,
        "password_hash": password_hash,
        "disabled": False,
        "simulated": simulated,
        "created_at": datetime.now(UTC),
    }
    connection.execute(insert(users).values(values))
    return _named(connection, name)


def _user(row: Any) -> User:
    return User(row.id, row.name, row.role, row.disabled, row.simulated)

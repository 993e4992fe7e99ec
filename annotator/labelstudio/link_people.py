"""Who of a Label Studio server is who here: what a person said, else exact equality of names; never likeness."""

import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from annotator.errors import InputError, NotFoundError
from annotator.records import User
from annotator.store import LabelStore


@dataclass(frozen=True, slots=True)
class Joined:
    """users: email address there to name here, empty where a person said "nobody". added: accounts made.

    strangers: addresses that stand for nobody here.
    """

    users: dict[str, str]
    added: tuple[str, ...]
    strangers: tuple[str, ...]


def join_people(
    store: LabelStore,
    there: Sequence[Mapping[str, Any]],
    named: Mapping[str, str],
    earlier: Mapping[str, str],
    *,
    add: bool,
) -> Joined:
    """Return the accounts of Label Studio (`there`: email, username) with their names here.

    First what is `named` now (an empty name unmaps), then what was mapped `earlier`, then accounts whose name is the
    address or, if only one account there has it, the username, without regard to case.

    Raises:
        InputError: somebody is named who is not there, or as somebody who is not here.
    """
    emails = {_plain(str(user["email"])): str(user["email"]) for user in there}
    said = {_email(emails, email): _name(store, email, name) for email, name in named.items()}
    here = {_plain(user.name): user for user in store.accounts.list() if not user.simulated}
    usernames = Counter(_plain(str(user["username"])) for user in there)
    before = {_plain(email): name for email, name in earlier.items()}
    users: dict[str, str] = {}
    strangers, added = [], []
    for user in there:
        email, username = str(user["email"]), str(user["username"])
        name = said.get(email, _still(here, before.get(_plain(email))))
        if name is None:
            name = _equal(here, email, username, usernames)
        if name is None and add:
            name = store.accounts.add(email, "annotator", None).name
            added.append(name)
        if name is not None:
            users[email] = name
        if not name:
            strangers.append(email)
    return Joined(users, tuple(added), tuple(strangers))


def _email(emails: Mapping[str, str], email: str) -> str:
    found = emails.get(_plain(email))
    if found is None:
        raise InputError(f"{email!r} is not the email address of an account in Label Studio")
    return found


def _name(store: LabelStore, email: str, name: str) -> str:
    if not name:
        return ""
    try:
        user = store.accounts.get(name)
    except NotFoundError as error:
        raise InputError(
            f"{email} cannot be {name!r}: there is no such user; add one with: annotator user add"
        ) from error
    if user.simulated:
        raise InputError(f"{email} cannot be {name!r}: that is a simulated user")
    return user.name


def _still(here: Mapping[str, User], name: str | None) -> str | None:
    """Return what was mapped before, also "nobody", unless the account is gone."""
    if not name:
        return name
    user = here.get(_plain(name))
    return user.name if user else None


def _equal(here: Mapping[str, User], email: str, username: str, usernames: Counter[str]) -> str | None:
    for name, alone in ((email, True), (username, usernames[_plain(username)] == 1)):
        user = here.get(_plain(name)) if name and alone else None
        if user is not None:
            return user.name
    return None


def _plain(name: str) -> str:
    return unicodedata.normalize("NFC", name).strip().casefold()

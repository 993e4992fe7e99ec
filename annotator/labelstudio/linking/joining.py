"""Who of a Label Studio server is who here: what a person said, else an account named by the address; never likeness.

A username there does not count: Label Studio makes it of the first half of the address, and two labs have an "ann".
"""

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from annotator.errors import InputError, NotFoundError
from annotator.records import User
from annotator.store import LabelStore


@dataclass(frozen=True, slots=True)
class Joined:
    """users: email address there to name here, empty where a person said "nobody". added: accounts made.

    strangers: addresses that stand for nobody here. alike: the account here that is named as the first half of a
    stranger's address, for a person to decide about.
    """

    users: dict[str, str]
    added: tuple[str, ...]
    strangers: tuple[str, ...]
    alike: dict[str, str] = field(default_factory=dict)


def join_people(
    store: LabelStore,
    there: Sequence[Mapping[str, Any]],
    named: Mapping[str, str],
    earlier: Mapping[str, str],
    *,
    add: bool,
) -> Joined:
    """Return the accounts of Label Studio (`there`: email) with their names here.

    First what is `named` now (an empty name unmaps), then what was mapped `earlier`, then accounts whose name is the
    address, without regard to case.

    Raises:
        InputError: somebody is named who is not there, or as somebody who is not here.
    """
    emails = {_plain(str(user["email"])): str(user["email"]) for user in there}
    said = {_email(emails, email): _name(store, email, name) for email, name in named.items()}
    here = {_plain(user.name): user for user in store.accounts.list() if not user.simulated}
    before = {_plain(email): name for email, name in earlier.items()}
    users: dict[str, str] = {}
    strangers, added = [], []
    for user in there:
        email = str(user["email"])
        name = said.get(email, _still(here, before.get(_plain(email))))
        if name is None:
            name = here[_plain(email)].name if _plain(email) in here else None
        if name is None and add:
            name = store.accounts.add(email, "annotator", None).name
            added.append(name)
        if name is not None:
            users[email] = name
        if not name:
            strangers.append(email)
    first_halves = {email: _plain(email.partition("@")[0]) for email in strangers}
    alike = {email: here[half].name for email, half in first_halves.items() if half in here and email not in users}
    return Joined(users, tuple(added), tuple(strangers), alike)


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


def _plain(name: str) -> str:
    return unicodedata.normalize("NFC", name).strip().casefold()

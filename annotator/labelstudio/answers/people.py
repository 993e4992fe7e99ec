"""Who is who: the accounts of a Label Studio server and ours, joined by the link's settings and never by likeness."""

from collections.abc import Mapping

from annotator.errors import InputError, NotFoundError
from annotator.labelstudio.api.server import Server
from annotator.records import User
from annotator.store import LabelStore


class People:
    """Both directories, asked once each and again only for somebody they do not name.

    Args:
        store: the accounts of the workspace.
        server: the accounts of Label Studio.
        users: email address there to user name here.
    """

    def __init__(self, store: LabelStore, server: Server, users: Mapping[str, str]) -> None:
        self._store, self._server = store, server
        self._names = {email.casefold(): name for email, name in users.items()}
        self._emails: dict[int, str] = {}
        self._ours: dict[str, User | None] = {}
        self._asked_for: set[int] = set()

    def email(self, ls_user: object) -> str:
        """Return the address of an account there, or `#<id>` when the server no longer names it."""
        if not isinstance(ls_user, int):
            return "nobody"
        if ls_user not in self._emails and ls_user not in self._asked_for:
            self._ask()
            self._asked_for.add(ls_user)
        return self._emails.get(ls_user, f"#{ls_user}")

    def user(self, email: str) -> User:
        """Return the user here whom an address stands for.

        Raises:
            InputError: nobody, or somebody who has no account here.
        """
        name = self._names.get(email.casefold())
        if name is None:
            raise InputError(f"{email} of Label Studio stands for nobody here: name the user in the link's users")
        user = self._known(name)
        if user is None:
            raise InputError(f"{email} of Label Studio stands for {name!r}, who has no account here")
        return user

    def name(self, email: str) -> str | None:
        """Return the name here of an address, None for a stranger."""
        user = self._known(self._names.get(email.casefold(), ""))
        return user.name if user else None

    def account(self, name: str) -> tuple[int, str]:
        """Return id and address of the account there that a user here has.

        Raises:
            InputError: none is mapped, or the mapped one does not exist there.
        """
        wanted = [email for email, ours in self._names.items() if ours.casefold() == name.casefold()]
        if not wanted:
            raise InputError(f"{name!r} has no account in Label Studio: map an address to the name in the link's users")
        for _ in range(2):
            for ls_user, email in self._emails.items():
                if email.casefold() in wanted:
                    return ls_user, email
            self._ask()
        raise InputError(f"{name!r} is {' or '.join(wanted)} in Label Studio, where no such account exists")

    def _known(self, name: str) -> User | None:
        if name not in self._ours:
            try:
                self._ours[name] = self._store.accounts.get(name)
            except NotFoundError:
                self._ours[name] = None
        return self._ours[name]

    def _ask(self) -> None:
        self._emails |= {int(user["id"]): str(user["email"]) for user in self._server.users()}

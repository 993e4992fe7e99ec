"""Accounts: who may label, review and administer."""

import os
from enum import StrEnum
from typing import Annotated

import typer

from annotator import auth
from annotator.commands.console import JsonFlag, WorkspaceArg, opened, out, print_json
from annotator.errors import InputError

app = typer.Typer(help="Accounts: add, list, disable, reset a password.", rich_markup_mode=None)
NameArg = Annotated[str, typer.Argument(help="The account's name.")]


class RoleName(StrEnum):
    """What an account may do."""

    annotator = "annotator"
    reviewer = "reviewer"
    admin = "admin"


def _password(name: str) -> str:
    given = os.environ.get("ANNOTATOR_PASSWORD")
    if given is None:
        given = str(typer.prompt(f"password for {name}", hide_input=True, confirmation_prompt=True))
    if not given:
        raise InputError("the password is empty: set ANNOTATOR_PASSWORD or type one at the prompt")
    return given


@app.command("add")
def add(ws: WorkspaceArg, name: NameArg, role: Annotated[RoleName, typer.Option()] = RoleName.annotator) -> None:
    """Add an account; the password comes from ANNOTATOR_PASSWORD or a prompt."""
    with opened(ws) as (_, store):
        auth.check_name(name)
        user = store.accounts.add(name, role.value, auth.hash_password(_password(name)))
    out.print(f"added {user.name} as {user.role}", markup=False)


@app.command("list")
def list_(ws: WorkspaceArg, as_json: JsonFlag = False) -> None:
    """List the accounts."""
    with opened(ws) as (_, store):
        users = store.accounts.list()
    if as_json:
        print_json([{"name": u.name, "role": u.role, "disabled": u.disabled, "simulated": u.simulated} for u in users])
        return
    for user in users:
        marks = [mark for mark, on in (("disabled", user.disabled), ("simulated", user.simulated)) if on]
        out.print(f"{user.name}  {user.role}  {' '.join(marks)}".rstrip(), markup=False)


@app.command("disable")
def disable(ws: WorkspaceArg, name: NameArg) -> None:
    """Close an account; its answers stay, its sessions end."""
    with opened(ws) as (_, store):
        store.accounts.set_disabled(name, True)
    out.print(f"disabled {name}", markup=False)


@app.command("reset")
def reset(ws: WorkspaceArg, name: NameArg) -> None:
    """Set a new password (and open the account again when it was disabled)."""
    with opened(ws) as (_, store):
        store.accounts.get(name)
        store.accounts.set_password_hash(name, auth.hash_password(_password(name)))
        store.accounts.set_disabled(name, False)
    out.print(f"new password for {name}", markup=False)

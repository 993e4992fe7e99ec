"""Backup, restore, verify, rebuild, erase."""

import os
from pathlib import Path
from typing import Annotated

import typer

from annotator.commands.console import JsonFlag, WorkspaceArg, opened, out, print_json
from annotator.errors import InputError
from annotator.settings import Workspace


def register(app: typer.Typer) -> None:
    """Add the commands of this file to `app`."""
    app.command("backup")(backup)
    app.command("restore")(restore)
    app.command("verify")(verify)
    app.command("rebuild")(rebuild)
    app.command("erase")(erase)


def backup(
    ws: WorkspaceArg, target: Annotated[Path, typer.Argument(metavar="OUT", help="The archive to write.")]
) -> None:
    """Write a consistent archive of the workspace, also while it is in use."""
    from annotator import maintenance

    archive = maintenance.backup(Workspace.open(ws), target)
    out.print(f"wrote {archive} ({archive.stat().st_size / 1e6:.1f} MB)", markup=False)


def restore(
    archive: Annotated[Path, typer.Argument(help="An archive made by `annotator backup`.")],
    ws: Annotated[Path, typer.Argument(metavar="WS", help="The new workspace folder.")],
) -> None:
    """Make a new workspace from an archive, every file checked against its hash."""
    from annotator import maintenance

    workspace = maintenance.restore(archive, ws)
    out.print(f"restored {workspace.root}", markup=False)


def verify(ws: WorkspaceArg, as_json: JsonFlag = False) -> None:
    """Check the store, the labels against a rebuild, and the files; exit code 1 when something is wrong."""
    from annotator import maintenance

    report = maintenance.verify(Workspace.open(ws))
    if as_json:
        print_json(report.as_dict())
    else:
        out.print(report.summary(), markup=False)
    if not report.ok:
        raise typer.Exit(1)


def rebuild(ws: WorkspaceArg) -> None:
    """Derive every label anew from the annotations."""
    with opened(ws) as (_, store):
        changed = store.decisions.rebuild()
    out.print(f"labels rebuilt, {changed} changed", markup=False)


def erase(
    ws: WorkspaceArg,
    image: Annotated[str | None, typer.Option(help="The image_id to erase.")] = None,
    subject: Annotated[str | None, typer.Option(help="Erase every image of this subject_id.")] = None,
    reason: Annotated[str, typer.Option(help="Kept in the tombstone; name no person here.")] = "requested",
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Remove an image or a person's images for good: pixels, features, answers; a tombstone stays."""
    from annotator import maintenance

    if (image is None) == (subject is None):
        raise InputError("name exactly one of --image and --subject")
    if not yes and os.isatty(0):
        typer.confirm(f"erase {image or 'subject ' + str(subject)} for good?", abort=True)
    elif not yes:
        raise InputError("erasing cannot be undone: add --yes to do it without being asked")
    report = maintenance.erase(Workspace.open(ws), image_id=image, subject_id=subject, reason=reason)
    out.print(report.summary(), markup=False)

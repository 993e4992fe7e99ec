"""Make a workspace, import faces, look at it, export labels."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from annotator import taxonomy
from annotator.commands.console import JsonFlag, WorkspaceArg, chain_line, opened, out, print_json, progress_bar
from annotator.settings import Workspace, absolute_start


class ImportFormat(StrEnum):
    """Layouts that `annotator import` reads."""

    auto = "auto"
    folder = "folder"
    manifest = "manifest"
    ferplus = "ferplus"
    rafdb = "rafdb"
    affectnet = "affectnet"


class LabelsAs(StrEnum):
    """What becomes of labels that come with the images."""

    annotations = "annotations"
    truth = "truth"
    none = "none"


class FacesAs(StrEnum):
    """Where the faces in the images are."""

    detect = "detect"
    given = "given"
    none = "none"


class ExportFormat(StrEnum):
    """Formats that `annotator export` writes."""

    csv = "csv"
    jsonl = "jsonl"
    parquet = "parquet"
    imagefolder = "imagefolder"
    ferplus = "ferplus"
    labelstudio = "labelstudio"


def register(app: typer.Typer) -> None:
    """Add the commands of this file to `app`."""
    app.command("init")(init)
    app.command("import")(import_)
    app.command("status")(status)
    app.command("export")(export)


def init(
    ws: WorkspaceArg,
    classes: Annotated[
        str, typer.Option(help="ferplus, rafdb, affectnet7, affectnet8, or a file with one class a line.")
    ] = "ferplus",
    image_size: Annotated[int, typer.Option(help="Side in pixels of the faces that the learner sees.")] = 48,
    method: Annotated[
        list[str] | None, typer.Option(help="A recipe to train; given several times, they are trained in turn.")
    ] = None,
    start: Annotated[
        str,
        typer.Option(
            help="The encoder to begin with: shipped, random (HOG features, untrained weights), timm:NAME or a file; "
            "annotator pretrain makes it pool."
        ),
    ] = "shipped",
    database: Annotated[
        str | None, typer.Option(help="SQLAlchemy URL, e.g. postgresql+psycopg://…; default: SQLite in the workspace.")
    ] = None,
) -> None:
    """Make a new, empty workspace."""
    learner: dict[str, Any] = {"image_size": image_size, "start": absolute_start(start)}
    if method:
        from annotator.loop.retrain import check_method

        for name in method:
            check_method(name)
        learner["methods"] = method
    overrides: dict[str, Any] = {"learner": learner}
    if database is not None:
        overrides["database"] = database
    workspace = Workspace.create(ws, taxonomy.load(classes), **overrides)
    with opened(workspace.root):
        out.print(f"made {workspace.root} with {len(workspace.settings.classes)} classes", markup=False)
    out.print(f"next: annotator import {ws} FOLDER --format folder, then annotator up {ws}", markup=False)


def import_(
    ws: WorkspaceArg,
    source: Annotated[Path, typer.Argument(help="A folder, a zip, or a manifest (CSV or JSONL).")],
    format: Annotated[
        ImportFormat, typer.Option(help="The layout of the source; auto recognises it.")
    ] = ImportFormat.auto,
    labels_as: Annotated[
        LabelsAs,
        typer.Option(
            help="Labels that come with the images: annotations train the learner (pool images only), truth is kept "
            "for validation and simulation alone, none drops them."
        ),
    ] = LabelsAs.truth,
    faces: Annotated[
        FacesAs,
        typer.Option(
            help="none takes images (or the crops in the list) as they are, for data sets of faces already cut; detect "
            "cuts out every face in a photo, upright; given does so with the faces that the list names."
        ),
    ] = FacesAs.none,
    as_json: JsonFlag = False,
) -> None:
    """Import faces: verified, de-duplicated, resumable; a second run adds nothing."""
    from annotator.ingest.importer import run_import

    with opened(ws) as (workspace, store), progress_bar("importing") as progress:
        report = run_import(
            workspace, store, source, format.value, given_as=labels_as.value, faces=faces.value, progress=progress
        )
    if as_json:
        print_json(report.as_dict())
    else:
        out.print(report.summary(), markup=False)


def status(ws: WorkspaceArg, as_json: JsonFlag = False) -> None:
    """Show images, labels, methods, queue and learner."""
    from annotator.status import workspace_status

    with opened(ws) as (workspace, store):
        data = workspace_status(workspace, store)
    if as_json:
        print_json(data)
        return
    out.print(f"workspace {workspace.root}", markup=False)
    for key in ("images", *(["faces"] if data["faces"]["known"] else []), "labels", "queue", "encoder", "learner"):
        out.print(f"{key:>12}: " + ", ".join(f"{k} {v}" for k, v in data[key].items()), markup=False)
    out.print(f"{'annotations':>12}: {data['annotations']}", markup=False)
    for method, told in data["methods"].items():
        out.print(f"{'method':>12}: {method}: {chain_line(told)}", markup=False)
    if (link := data["labelstudio"]) is not None:
        at = f"in step at {link['synced_at']}" if link["synced_at"] else "not synced yet"
        told = (
            f"{link['title']!r} of {link['url']}, {link['tasks']['open']} tasks open there, sync {link['state']}, {at}"
        )
        out.print(f"{'labelstudio':>12}: {told}", markup=False)


def export(
    ws: WorkspaceArg,
    target: Annotated[Path, typer.Argument(metavar="OUT", help="The file or folder to write.")],
    format: Annotated[ExportFormat, typer.Option(help="What to write.")] = ExportFormat.csv,
) -> None:
    """Write the labels (and who said what) for training scripts and papers."""
    from annotator.export import export as write
    from annotator.labelstudio.files.writing import export_tasks

    with opened(ws) as (workspace, store), progress_bar("exporting") as progress:
        if format is ExportFormat.labelstudio:
            count = export_tasks(workspace, store, target, progress)
        else:
            count = write(workspace, store, target, format.value, progress=progress)
    out.print(f"wrote {count} faces to {target}", markup=False)

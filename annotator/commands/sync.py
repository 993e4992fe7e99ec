"""Keep a workspace and a Label Studio project equal: `annotator sync WS labelstudio …`."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from annotator.commands.console import JsonFlag, WorkspaceArg, err, opened, out, print_json, progress_bar
from annotator.errors import InputError

if TYPE_CHECKING:
    from annotator.labelstudio.api.server import Server
    from annotator.settings import Workspace
    from annotator.store import LabelStore
    from annotator.store.exchange_records import Link

app = typer.Typer(help="Keep the workspace and a project of another labeling tool equal.", rich_markup_mode=None)
labelstudio = typer.Typer(
    help="Two-way sync with a Label Studio project. The API key comes from LABEL_STUDIO_API_KEY or the keyring.",
    rich_markup_mode=None,
)
app.add_typer(labelstudio, name="labelstudio")

DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what would change on either side; change nothing.")]


class Order(StrEnum):
    """What the score of a prediction means; Label Studio asks the lowest first."""

    queue = "queue"
    confidence = "confidence"


class PicturesAs(StrEnum):
    """How the pictures get to Label Studio."""

    upload = "upload"
    local = "local"


@app.callback()
def choose_workspace(context: typer.Context, ws: WorkspaceArg) -> None:
    """Keep the workspace and a project of another labeling tool equal."""
    context.obj = ws


@contextmanager
def _alone(context: typer.Context) -> Iterator[tuple["Workspace", "LabelStore"]]:
    """Open the workspace as the only sync on it."""
    from annotator.labelstudio.report import LOCK
    from annotator.locks import only_one

    with opened(context.obj) as (workspace, store), only_one(workspace.root / LOCK, "sync"):
        yield workspace, store


def _server(url: str) -> "Server":
    """Return a client for a server; its key is looked up."""
    from annotator.labelstudio.api.credentials import api_key
    from annotator.labelstudio.api.server import Server

    return Server(url, api_key(url))


@contextmanager
def _linked(context: typer.Context) -> Iterator[tuple["Workspace", "LabelStore", "Server", "Link"]]:
    """Open everything that a sync of the linked project needs."""
    with _alone(context) as (workspace, store):
        active = store.exchange.link()
        if active is None:
            raise InputError(f"no project is linked; link one with: annotator sync {context.obj} labelstudio link URL")
        with _server(active.url) as server:
            yield workspace, store, server, active


def _pairs(given: list[str] | None, option: str, form: str) -> dict[str, str]:
    """Return the two sides of every given `a=b`."""
    pairs = {}
    for text in given or []:
        left, sign, right = text.partition("=")
        if not sign or not left.strip():
            raise InputError(f"{option} {text!r}: write {form}")
        pairs[left.strip()] = right.strip()
    return pairs


@labelstudio.command("link")
def link(
    context: typer.Context,
    url: Annotated[str, typer.Argument(help="The server's address, e.g. http://labels.example.org:8080.")],
    project: Annotated[
        int | None, typer.Option(help="Adopt the project of this number; default: the linked one, else a new one.")
    ] = None,
    title: Annotated[str | None, typer.Option(help="Of a new project; default: the workspace's name.")] = None,
    user: Annotated[
        list[str] | None,
        typer.Option(
            help="EMAIL=NAME: who somebody there is here; several times. Default: the account of that address."
        ),
    ] = None,
    add_users: Annotated[
        bool, typer.Option("--add-users", help="Make an account, without a password, for everyone else there.")
    ] = False,
    choice: Annotated[
        list[str] | None,
        typer.Option(help="CHOICE=CLASS: what a choice of an existing project means; several times."),
    ] = None,
    top_k: Annotated[int | None, typer.Option(min=1, help="How many tasks are kept open there (1000).")] = None,
    order: Annotated[
        Order | None,
        typer.Option(help="What scores follow, the lowest is asked first: our queue (default), or confidence."),
    ] = None,
    pictures: Annotated[
        PicturesAs | None,
        typer.Option(help="upload (default), or local: files in a folder that the server shows."),
    ] = None,
    local_folder: Annotated[Path | None, typer.Option(help="Where pictures go with --pictures local.")] = None,
    document_root: Annotated[
        Path | None, typer.Option(help="The server's LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT, above that folder.")
    ] = None,
    public_url: Annotated[
        str | None,
        typer.Option(help="Our page's address as the server sees it: connects webhook and ML backend."),
    ] = None,
    backend: Annotated[bool, typer.Option(help="Connect the ML backend too.")] = True,
    anew: Annotated[
        bool, typer.Option("--anew", help="The server was set up again: this is not the project linked before.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Make a project with our classes, adopt one, or bring the link up to date."""
    from annotator.labelstudio.linking.link import link as run

    with _alone(context) as (workspace, store), _server(url) as server:
        report = run(
            workspace,
            store,
            server,
            project_id=project,
            title=title,
            users=_pairs(user, "--user", "EMAIL=NAME"),
            add_users=add_users,
            choices=_pairs(choice, "--choice", "CHOICE=CLASS"),
            public_url=public_url,
            backend=backend,
            anew=anew,
            top_k=top_k,
            order=order and order.value,
            pictures=pictures and pictures.value,
            local_folder=local_folder and str(local_folder.resolve()),
            document_root=document_root and str(document_root.resolve()),
        )
    if as_json:
        print_json({"project_id": report.link.project_id, "url": report.link.url, "problems": report.problems})
        return
    out.print(report.summary(), markup=False)
    out.print(f"next: annotator sync {context.obj} labelstudio push, then watch", markup=False)


@labelstudio.command("push")
def push(
    context: typer.Context,
    limit: Annotated[int | None, typer.Option(min=0, help="Push at most this many new tasks.")] = None,
    again: Annotated[bool, typer.Option("--again", help="First take back up what was given up.")] = False,
    dry_run: DryRun = False,
    as_json: JsonFlag = False,
) -> None:
    """Send the top of the queue with predictions and what was answered here; withdraw what is decided.

    What changed there is taken in first, so that nothing is sent over an answer that is newer.
    """
    from annotator.commands.plans import push_json, show_planned, show_push
    from annotator.labelstudio.answers.outgoing import plan_outgoing
    from annotator.labelstudio.answers.sync import sync_once
    from annotator.labelstudio.tasks.push import plan_push
    from annotator.labelstudio.tasks.push import push as run

    with _linked(context) as (workspace, store, server, active):
        if dry_run:
            plan = plan_push(workspace, store, server, active, limit=limit)
            planned = plan_outgoing(workspace, store, server, active)
            if as_json:
                print_json({"push": push_json(plan), "annotations": [asdict(line) for line in planned]})
                return
            show_push(plan)
            show_planned(planned)
            return
        if again:
            err.print(f"given up before and tried again: {store.exchange.revive(active.id)}", markup=False)
        with progress_bar("pulling") as progress:
            news = sync_once(workspace, store, server, active, progress=progress)
        with progress_bar("pushing") as progress:
            report = run(workspace, store, server, active, limit=limit, progress=progress)
    if as_json:
        print_json({"sync": asdict(news), "push": asdict(report)})
    else:
        out.print(f"{news.summary()}\n{report.summary()}", markup=False)


@labelstudio.command("pull")
def pull(
    context: typer.Context,
    full: Annotated[bool, typer.Option("--full", help="Also compare all ids, to find what was deleted.")] = False,
    dry_run: DryRun = False,
    as_json: JsonFlag = False,
) -> None:
    """Take in what was answered, edited and deleted there."""
    from annotator.commands.plans import show_planned
    from annotator.labelstudio.answers.pull import plan_pull
    from annotator.labelstudio.answers.pull import pull as run

    with _linked(context) as (workspace, store, server, active):
        if dry_run:
            planned = plan_pull(workspace, store, server, active, full=full)
            print_json([asdict(line) for line in planned]) if as_json else show_planned(planned)
            return
        with progress_bar("pulling") as progress:
            report = run(workspace, store, server, active, full=full, progress=progress)
    if as_json:
        print_json(asdict(report))
    else:
        out.print(report.summary(), markup=False)


@labelstudio.command("watch")
def watch(
    context: typer.Context,
    every: Annotated[float, typer.Option(min=0.2, help="Seconds between two looks; a webhook shortens them.")] = 5.0,
) -> None:
    """Pull and push until stopped: one cheap request a cycle while nothing happens."""
    from annotator.labelstudio.watch import Watch

    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    with _linked(context) as (workspace, store, server, link):
        err.print(f"watching {link.title!r} at {link.url}; stop with Ctrl-C", markup=False)
        Watch(workspace, store, server, cycle_seconds=every, told=_tell).run(stopping)


@labelstudio.command("status")
def status(
    context: typer.Context,
    check: Annotated[bool, typer.Option("--check", help="Also ask the server.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Show what is linked, what is under way, and what needs a person."""
    from annotator.commands.plans import show_status
    from annotator.labelstudio.status import ask_server, link_status

    with opened(context.obj) as (workspace, store):
        told = link_status(workspace, store)
        link = store.exchange.link()
        if check and link is not None:
            with _server(link.url) as server:
                told["server"] = ask_server(server, link)
    if as_json:
        print_json(told)
    else:
        show_status(told)


@labelstudio.command("unlink")
def unlink(
    context: typer.Context,
    delete_project: Annotated[
        bool, typer.Option("--delete-project", help="Delete the project there too, if we made it.")
    ] = False,
    leave: Annotated[bool, typer.Option("--leave", help="Ask nothing of the server: it is gone for good.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Delete, also answers that were not pulled.")] = False,
) -> None:
    """End the link: webhook and ML backend are disconnected, every answer stays here."""
    from annotator.labelstudio.linking.unlink import unlink as run

    if leave:
        with _alone(context) as (workspace, store):
            report = run(workspace, store, None, delete_project=delete_project)
    else:
        with _linked(context) as (workspace, store, server, _):
            report = run(workspace, store, server, delete_project=delete_project, force=yes)
    out.print(report.summary(), markup=False)


@labelstudio.command("import")
def import_(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(help="A project's export in Label Studio's JSON format.")],
    user: Annotated[
        list[str] | None, typer.Option(help="EMAIL=NAME, or NUMBER=NAME: who somebody there is here; several times.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="The project's labeling configuration (XML); default: the one that we make.")
    ] = None,
    choice: Annotated[
        list[str] | None, typer.Option(help="CHOICE=CLASS: what a choice of the configuration means; several times.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Store the answers of an exported file, without a server; the faces are here already."""
    from annotator.labelstudio.files.reading import read_answers

    with opened(context.obj) as (workspace, store):
        report = read_answers(
            workspace,
            store,
            file,
            _pairs(user, "--user", "EMAIL=NAME"),
            config=config.read_text(encoding="utf-8") if config is not None else None,
            overrides=_pairs(choice, "--choice", "CHOICE=CLASS"),
        )
    if as_json:
        print_json(report.as_dict())
    else:
        out.print(report.summary(), markup=False)


def _tell(line: str) -> None:
    err.print(line, markup=False)

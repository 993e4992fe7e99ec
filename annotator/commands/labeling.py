"""Serve the labeling page, alone or together with the learner; the demo."""

from pathlib import Path
from typing import Annotated

import typer

from annotator.commands.console import WorkspaceArg, err, opened, out, progress_bar
from annotator.settings import Workspace

HostOption = Annotated[str | None, typer.Option(help="Address to listen on; other than loopback only with accounts.")]
PortOption = Annotated[int | None, typer.Option(help="Port to listen on; 0 takes a free one.")]


def register(app: typer.Typer) -> None:
    """Add the commands of this file to `app`."""
    app.command("up")(up)
    app.command("serve")(serve)
    app.command("demo")(demo)


def up(ws: WorkspaceArg, host: HostOption = None, port: PortOption = None) -> None:
    """Run the labeling page and the learner, and restart either when it dies."""
    from annotator.loop.supervise import supervise

    workspace = Workspace.open(ws)
    supervise(workspace, host, port)


def serve(ws: WorkspaceArg, host: HostOption = None, port: PortOption = None) -> None:
    """Run the labeling page alone."""
    from ui.app import serve as run

    workspace = Workspace.open(ws)
    server = workspace.settings.server
    run(workspace, host or server.host, server.port if port is None else port)


def demo(
    ws: Annotated[Path, typer.Argument(metavar="[WS]", help="Where to put the demo workspace.")] = Path(
        "demo-workspace"
    ),
    faces: Annotated[int, typer.Option(min=50, help="How many faces to draw.")] = 1500,
    seed: Annotated[int, typer.Option(help="The same seed draws the same faces.")] = 0,
    host: HostOption = None,
    port: PortOption = None,
    prepare_only: Annotated[bool, typer.Option(help="Make the workspace and stop.")] = False,
) -> None:
    """Draw faces, import them and open the labeling page on them: no download, no accounts."""
    from annotator.demo import prepare

    with progress_bar("drawing faces") as progress:
        workspace = prepare(ws, faces, seed, progress)
    with opened(workspace.root) as (_, store):
        out.print(f"demo workspace {workspace.root}: {store.images.counts()['pool']} faces to label", markup=False)
    if prepare_only:
        return
    from annotator.loop.supervise import supervise

    err.print("stop with Ctrl-C; your answers stay in the demo workspace", markup=False)
    supervise(workspace, host, port)

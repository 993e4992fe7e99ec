"""Simulated annotators, the stand-in for people in benchmarks."""

from typing import Annotated

import typer

from annotator.commands.console import JsonFlag, WorkspaceArg, opened, out, print_json, progress_bar


def register(app: typer.Typer) -> None:
    """Add the command of this file to `app`."""
    app.command("simulate")(simulate)


def simulate(
    ws: WorkspaceArg,
    annotators: Annotated[int, typer.Option(min=1, help="How many people to simulate.")] = 3,
    answers: Annotated[int, typer.Option(min=1, help="How many answers they give together.")] = 100,
    rate: Annotated[
        float | None, typer.Option(min=0.001, help="Answers per second and annotator; default: as fast as they can.")
    ] = None,
    seed: Annotated[int, typer.Option(help="The same seed draws the same votes.")] = 0,
    as_json: JsonFlag = False,
) -> None:
    """Answer over the HTTP API like people: each answer is one draw from the image's crowd votes."""
    from annotator.simulate import run

    with opened(ws) as (workspace, store), progress_bar("simulating") as progress:
        report = run(workspace, store, annotators, answers, rate=rate, seed=seed, progress=progress)
    if as_json:
        print_json(report.as_dict())
    else:
        out.print(report.summary(), markup=False)

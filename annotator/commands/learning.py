"""Run the learner: as a process beside the page, once for cron, or to evaluate."""

import re
import time
from pathlib import Path
from typing import Annotated

import typer

from annotator.commands.console import JsonFlag, WorkspaceArg, chain_line, err, opened, out, print_json, progress_bar
from annotator.errors import InputError
from annotator.settings import Workspace

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def register(app: typer.Typer) -> None:
    """Add the commands of this file to `app`."""
    app.command("learn")(learn)
    app.command("retrain")(retrain)
    app.command("pretrain")(pretrain)
    app.command("evaluate")(evaluate)
    app.command("models")(models)
    app.command("serve-model")(serve_model)


def learn(ws: WorkspaceArg) -> None:
    """Watch for answers: reorder the queue after each, retrain when enough are new."""
    from annotator.loop.learn import LearnerProcess

    LearnerProcess(Workspace.open(ws)).run()


def parse_interval(text: str) -> float:
    """Return the seconds of an interval such as 45s, 30m, 2h or 1d.

    Raises:
        InputError: the text has another form or is not above zero.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhd])", text.strip())
    seconds = float(match[1]) * _UNITS[match[2]] if match else 0.0
    if seconds <= 0:
        raise InputError(f"interval {text!r}: give a number above 0 with a unit, such as 45s, 30m, 2h or 1d")
    return seconds


def retrain(
    ws: WorkspaceArg,
    method: Annotated[
        str | None,
        typer.Option(help="The recipe to train, from its own last snapshot; default: the one whose turn it is."),
    ] = None,
    config: Annotated[Path | None, typer.Option(help="A YAML file that overrides the run's configuration.")] = None,
    if_new_labels: Annotated[
        int | None,
        typer.Option(min=0, help="Do nothing unless this many labels are new since the method's last round."),
    ] = None,
    every: Annotated[str | None, typer.Option(help="Repeat after this long: 45s, 30m, 2h, 1d.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Train one round now and publish it; with --every, again and again."""
    from annotator.loop.retrain import retrain_once

    pause = parse_interval(every) if every is not None else None
    while True:
        with progress_bar("training") as progress:
            result = retrain_once(
                Workspace.open(ws), method=method, config=config, if_new_labels=if_new_labels, progress=progress
            )
        if as_json:
            print_json(result.as_dict())
        else:
            out.print(result.summary(), markup=False)
        if pause is None:
            return
        err.print(f"next round in {every}", markup=False)
        time.sleep(pause)


def pretrain(
    ws: WorkspaceArg,
    start: Annotated[
        str | None,
        typer.Option(help="First weights: shipped, pool, random, timm:NAME or a file; default: learner.start."),
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Training steps; default: 1000.")] = None,
    config: Annotated[Path | None, typer.Option(help="A YAML file with other values; see configs/pretrain.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Adapt the encoder to the workspace's own faces, without labels; from then on the workspace starts from it."""
    from annotator.loop.pretrain import pretrain as adapt
    from annotator.loop.pretraining import PretrainRequest
    from annotator.settings import absolute_start

    request = PretrainRequest(
        absolute_start(start) if start is not None else None, steps, config.resolve() if config is not None else None
    )
    with progress_bar("pre-training") as progress:
        result = adapt(Workspace.open(ws), request, progress)
    if as_json:
        print_json(result.as_dict())
    else:
        out.print(result.summary(), markup=False)


def evaluate(
    ws: WorkspaceArg,
    split: Annotated[str, typer.Option(help="val, or test (look at a test split once).")] = "val",
    as_json: JsonFlag = False,
) -> None:
    """Measure the serving model and each method's newest snapshot against the truth of a split."""
    from annotator.loop.evaluate import evaluate_split

    with opened(ws) as (workspace, store), progress_bar("evaluating") as progress:
        report = evaluate_split(workspace, store, split, progress=progress)
    if as_json:
        print_json(report.as_dict())
    else:
        out.print(report.summary(), markup=False)


def models(ws: WorkspaceArg, as_json: JsonFlag = False) -> None:
    """Show each method's newest snapshot, and how it stands against the features that serve."""
    from annotator.chains import standings
    from annotator.loop.serving import stands
    from annotator.status import workspace_status

    with opened(ws) as (workspace, store):
        data = workspace_status(workspace, store)
        against = {
            line.method: stands(workspace, store, line.newest)
            for line in standings(store.learning.snapshots(), workspace.settings.learner.methods)
        }
    if as_json:
        print_json({"serving": data["serving"], "methods": data["methods"], "against": against})
        return
    serving, chosen = data["serving"]["snapshot"] or data["encoder"]["id"], data["serving"]["chosen"]
    why = f"{chosen} was chosen" if chosen else "by people's answers"
    out.print(f"{serving} serves ({why})" if serving else "no features yet: run annotator learn", markup=False)
    for method, told in data["methods"].items():
        out.print(f"{method}: {chain_line(told)}", markup=False)
        if (shown := against[method]) is not None:
            out.print(f"    against what serves: {shown['words']}", markup=False)


def serve_model(
    ws: WorkspaceArg,
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="A method (its newest snapshot, also later ones), a snapshot's id, 'start' for the encoder that the "
            "workspace starts from, or 'auto': people's answers decide.",
        ),
    ],
) -> None:
    """Choose the model whose features serve; the queue and its suggestions follow."""
    from annotator.loop.serving import choose

    with opened(ws) as (workspace, store):
        out.print(choose(workspace, store, name), markup=False)

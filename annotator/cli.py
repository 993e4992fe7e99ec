"""The command line: `annotator COMMAND`. The composition root: here, and only here, all packages meet."""

import sys
from typing import Any

import typer

from annotator.commands import labeling, learning, people, simulating, sync, upkeep, workspaces
from annotator.commands.console import err
from annotator.errors import AnnotatorError, LearnerError

app = typer.Typer(
    name="annotator",
    help="Active labeling of facial expressions with semi-supervised learning in the loop.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for commands in (workspaces, labeling, learning, simulating, upkeep):
    commands.register(app)
app.add_typer(people.app, name="users")
app.add_typer(sync.app, name="sync")

# Typer carries its own copy of click; this class of it has no public name of its own.
_UsageError: Any = typer.BadParameter.__mro__[2]


def main(arguments: list[str] | None = None) -> None:
    """Run one command; bad input ends with exit code 2 and one clear line, a failed training run with 1."""
    try:
        status = app(args=(sys.argv[1:] if arguments is None else arguments) or ["--help"], standalone_mode=False)
    except _UsageError as error:
        err.print(f"error: {error.format_message()}", markup=False)
        sys.exit(error.exit_code)
    except (typer.Abort, KeyboardInterrupt):
        err.print("interrupted", markup=False)
        sys.exit(130)
    except LearnerError as error:
        err.print(f"error: {error}", markup=False)
        sys.exit(1)
    except AnnotatorError as error:
        err.print(f"error: {error}", markup=False)
        sys.exit(2)
    sys.exit(status if isinstance(status, int) else 0)


if __name__ == "__main__":
    main()

"""The command line: `annotator COMMAND`. The composition root: here, and only here, all packages meet."""

import sys

import click
import typer

from annotator.commands import labeling, learning, people, simulating, upkeep, workspaces
from annotator.commands.console import err
from annotator.errors import AnnotatorError, LearnerError

app = typer.Typer(
    name="annotator",
    help="Active labeling of facial expressions with semi-supervised learning in the loop.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for commands in (workspaces, labeling, learning, simulating, upkeep):
    commands.register(app)
app.add_typer(people.app, name="users")


def main(arguments: list[str] | None = None) -> None:
    """Run one command; bad input ends with exit code 2 and one clear line, a failed training run with 1."""
    try:
        status = app(args=arguments, standalone_mode=False)
    except click.ClickException as error:
        err.print(f"error: {error.format_message()}", markup=False)
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
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

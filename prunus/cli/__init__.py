"""The command line: one verb, one file.  Exit codes: 0 done, 2 the user's input is wrong, 1 otherwise."""

from __future__ import annotations

import functools
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import typer

from prunus.cli import compare, cp, export, groups, ls, measure, prune, report, run, validate
from prunus.core import InputError, PrunusError, TrainingError
from prunus.core.callbacks import Ended

app = typer.Typer(
    name="prunus",
    help="Makes neural networks smaller and really faster. Start with:  prunus run quickstart",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"max_content_width": 120},
)


def _said(verb: Callable[..., None]) -> Callable[..., None]:
    """A verb in which the user's own code cannot end the program unseen (``sys.exit(0)`` in a model's file)."""

    @functools.wraps(verb)
    def called(*args: Any, **kwargs: Any) -> None:
        try:
            verb(*args, **kwargs)
        except Ended:
            raise
        except SystemExit as error:
            raise PrunusError(
                f"the user's own code ended the program (sys.exit({error.code!r})) before this was done; its traceback "
                "is above. Let it return, or raise an error."
            ) from error

    return called


for _verb in (run, prune, groups, measure, export, report, compare, ls, cp, validate):
    _name, _line = _verb.__name__.rpartition(".")[2], (_verb.command.__doc__ or "").strip().split("\n")[0]
    app.command(_name, short_help=_line, cls=getattr(_verb, "Command", None))(_said(_verb.command))


@app.callback(invoke_without_command=True)
def _version(version: bool = typer.Option(False, "--version", help="Print the version.")) -> None:
    if version:
        from prunus.version import __version__

        typer.echo(f"prunus {__version__}")
        raise typer.Exit


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; an error of the user's input, or a training that diverges, is one message and code 2.

    Args: arguments: the words behind ``prunus``; None: those that the process was called with.
    """
    try:
        app(args=None if arguments is None else list(arguments), prog_name="prunus")
    except PrunusError as error:
        if isinstance(error.__cause__, SystemExit):
            traceback.print_exception(error.__cause__)
        typer.echo(f"Error: {error}", err=True)
        sys.exit(2 if isinstance(error, (InputError, TrainingError)) else 1)
    except OSError as error:  # a full disk, no permission ...
        typer.echo(f"Error: {error}", err=True)
        sys.exit(1)


__all__ = ["app", "main"]

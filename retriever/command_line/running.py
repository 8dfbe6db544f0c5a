"""How a command runs: from its arguments to an open index, and from an error to one line and an exit code."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import typer

from retriever.command_line.display import note
from retriever.command_line.options import embedder_of, limits_of
from retriever.command_line.terminal import printable

if TYPE_CHECKING:
    from retriever import Retriever
    from retriever.example import Json

Result = TypeVar("Result")
_state = {"debug": False}


def show_tracebacks(wanted: bool) -> None:
    """Whether an error that is reported is raised as well."""
    _state["debug"] = wanted


def reported(command: Callable[..., Result]) -> Callable[..., Result]:
    """The command with its errors in one line and as exit codes; a traceback only with --debug."""

    @functools.wraps(command)
    def run(*args: object, **kwargs: object) -> Result:
        from retriever.errors import RetrieverError

        try:
            return command(*args, **kwargs)
        except KeyboardInterrupt:
            typer.echo("interrupted", err=True)
            raise typer.Exit(130) from None
        except BrokenPipeError:
            # The reader of our output has gone; Python must not complain about it while it exits.
            sys.stdout = open("/dev/null", "w", encoding="utf-8")  # noqa: PTH123, SIM115
            raise typer.Exit(0) from None
        except (RetrieverError, OSError) as error:
            if _state["debug"]:
                raise
            typer.echo(f"error: {printable(str(error))}", err=True)
            raise typer.Exit(getattr(error, "exit_code", 1)) from None

    return run


def opened(
    index: Path, embedder: Mapping[str, object], *, trust: bool = False, limits: Mapping[str, object] | None = None
) -> Retriever:
    """The index that a command works on, with the embedder and the limits that its options name."""
    from retriever import Retriever

    return Retriever.open(index, embedder=embedder_of(embedder), trust=trust, limits=limits_of(limits or {}), note=note)


def read_query(query: str) -> str | dict[str, Json]:
    """The query; on standard input a JSON object gives further fields, anything else is its text."""
    from retriever.errors import InvalidInput

    try:
        text = sys.stdin.read().strip("\n") if query == "-" else query
        text.encode()
    except UnicodeError:
        raise InvalidInput("a query that is not UTF-8", expected="text in UTF-8") from None
    if query != "-":
        return text
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, dict) else text

"""The command line `retriever`: its verbs are in `retriever.command_line`, what they do in `retriever`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from retriever.command_line import changing, improving, recipes, selecting
from retriever.command_line.interrupt import insisting
from retriever.command_line.running import open_streams, show_tracebacks, told

app = typer.Typer(
    name="retriever",
    help="Find the worked examples that help a language model most, and put them into the prompt.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Data goes to standard output, everything else to standard error. JSON when piped or with --json.",
    rich_markup_mode=None,
)
for verbs in (changing.app, selecting.app, improving.app, recipes.app):
    app.add_typer(verbs)


def _version(wanted: bool) -> None:
    if not wanted:
        return
    import sqlite3
    from importlib.metadata import version

    from indexes.generation import FORMAT_VERSION

    typer.echo(f"demonstration-retriever {version('demonstration-retriever')}, index format {FORMAT_VERSION}")
    typer.echo(f"Python {sys.version.split()[0]}, SQLite {sqlite3.sqlite_version}")
    names = ("numpy", "faiss-cpu", "sentence-transformers", "torch", "scikit-learn", "PyStemmer", "sqlite-utils")
    typer.echo(", ".join(f"{name} {version(name)}" for name in names))
    raise typer.Exit


@app.callback()
def _main(
    debug: Annotated[bool, typer.Option("--debug", help="Show a traceback with an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Show versions, of native parts too.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    show_tracebacks(debug)


def main(arguments: Sequence[str] | None = None) -> None:
    """The program `retriever`."""
    open_streams()
    for output in (sys.stdout, sys.stderr):
        if hasattr(output, "reconfigure"):
            output.reconfigure(encoding="utf-8", errors="backslashreplace")
    with insisting():
        try:
            app(args=arguments)
        except OSError as error:  # help or versions could not be written
            sys.exit(told(error))


if __name__ == "__main__":
    main()

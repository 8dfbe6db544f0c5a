"""What a command refuses before it opens an index: options that it would accept and then ignore."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path


def check_asked(
    name: str,
    queries: Path | None,
    *,
    leave_one_out: int | None,
    fields: Mapping[str, object],
    source: Mapping[str, object],
    strict: bool = False,
) -> None:
    """Refuses what says how a file of queries is read where none is named, and a sample of the pool beside a file.

    Args:
        name: What the command calls the file: QUERIES, --queries.
        queries: The file.
        leave_one_out: How many of the pool's own examples are asked.
        fields: Where the attributes of a query are.
        source: How the file is read.
        strict: Whether a bad row stops the command.

    Raises:
        InvalidInput: Such an option was given.
    """
    from retriever.errors import InvalidInput

    if queries is not None and leave_one_out is not None:
        raise InvalidInput(f"{name} together with --leave-one-out", fix="leave one out")
    given = [_named(option) for option in (*fields, *source)] + ["--strict"] * strict
    if queries is None and given:
        raise InvalidInput(f"{', '.join(given)} without {name}", expected=f"{name}, a file of queries")


def check_output(output: Path, index: Path, *sources: object) -> None:
    """Refuses to write over what the command reads.

    Args:
        output: The file to write; `-` for standard output.
        index: The index directory.
        sources: Paths of what else is read, `-` for standard input; None for what was not named.

    Raises:
        InvalidInput: The output is one of them, by this name or another, or is in the index.
    """
    from retriever.errors import InvalidInput

    if str(output) == "-":
        return
    if output.resolve().is_relative_to(index.resolve()):
        raise InvalidInput(f"{output} is in the index {index}", fix="write to a file outside it")
    for source in sources:
        if source is not None and _is_same(output, str(source)):
            read = "standard input" if str(source) == "-" else source
            raise InvalidInput(
                f"{output} is to be written and is read, too ({read})", fix="name another file to write to: -o"
            )


def check_empty(pools: Sequence[Path], index: Path) -> None:
    """Refuses to replace the examples of an index with nothing; where there are none, it says so.

    Args:
        pools: The files, none of which holds a row; `-` for standard input.
        index: The index directory, which is being written.

    Raises:
        InvalidInput: The index has examples.
    """
    from retriever import Retriever
    from retriever.command_line.display import note
    from retriever.errors import IndexMissing, InvalidInput
    from retriever.listening import silent

    named = ", ".join("standard input" if str(pool) == "-" else str(pool) for pool in pools)
    empty = f"{named} {'holds' if len(pools) == 1 else 'hold'} no example"
    try:
        with Retriever.open(index, trust=True, note=silent) as there:
            count = len(there)
    except IndexMissing:
        count = 0
    if count:
        raise InvalidInput(
            f"{empty}, and the index {index} has {count:,}",
            expected="at least one to replace them",
            fix=f"look at what made the file; for an index without examples, delete {index} first",
        )
    note(empty)


def _is_same(output: Path, source: str) -> bool:
    try:
        read = os.fstat(sys.stdin.fileno()) if source == "-" else os.stat(source)  # noqa: PTH116  as fstat is
        return os.path.samestat(read, output.stat())
    except (OSError, ValueError, AttributeError):  # one of them is not there, or is no file
        return False


def check_form(form: str | None, json_output: bool) -> None:
    """Refuses `--json` beside another form.

    Raises:
        InvalidInput: Both were asked for.
    """
    from retriever.errors import InvalidInput

    if json_output and form not in (None, "json"):
        raise InvalidInput(f"--json together with --as {form}", fix="leave one out")


def check_adapt(
    *, kind: str | None, source: str | None, strict: bool, full: bool, undo: bool, fine_tuning: Mapping[str, object]
) -> None:
    """Refuses options of `adapt` that would be ignored, and a source that is none.

    Raises:
        InvalidInput: Such an option was given.
    """
    from retriever.adaptation.supervision import SOURCES
    from retriever.errors import InvalidInput

    if strict and (source is None or source in SOURCES):
        raise InvalidInput("--strict without a log", expected="--from FILE, whose lines may be bad")
    given = {"--kind": kind, "--from": source, "--full": full, **{_named(name): 1 for name in fine_tuning}}
    if undo and any(given.values()):
        named = ", ".join(name for name, value in given.items() if value)
        raise InvalidInput(f"--undo together with {named}", fix="leave one out")
    if full and kind is not None:
        raise InvalidInput("--kind together with --full", expected="a form of the map, or the model itself")
    if fine_tuning and not full:
        raise InvalidInput(f"{_named(next(iter(fine_tuning)))} without --full")
    if source is not None and source not in (*SOURCES, "-") and not Path(source).exists():
        raise InvalidInput(
            f"--from {source}, but there is no file {source}",
            expected=f"{', '.join(SOURCES)}, or a file: a log of outcomes",
        )


def _named(option: str) -> str:
    return f"--{option.replace('_', '-')}"

"""What a command refuses before it opens an index: options that it would accept and then ignore."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


def check_asked(
    name: str,
    queries: Path | None,
    *,
    leave_one_out: int | None,
    fields: Mapping[str, object],
    format: str | None,
    strict: bool = False,
) -> None:
    """Refuses what says how a file of queries is read where none is named, and a sample of the pool beside a file.

    Args:
        name: What the command calls the file: QUERIES, --queries.
        queries: The file.
        leave_one_out: How many of the pool's own examples are asked.
        fields: Where the attributes of a query are.
        format: Of the file.
        strict: Whether a bad row stops the command.

    Raises:
        InvalidInput: Such an option was given.
    """
    from retriever.errors import InvalidInput

    if queries is not None and leave_one_out is not None:
        raise InvalidInput(f"{name} together with --leave-one-out", fix="leave one out")
    given = [_named(field) for field in fields]
    given += ["--format"] * (format is not None) + ["--strict"] * strict
    if queries is None and given:
        raise InvalidInput(f"{', '.join(given)} without {name}", expected=f"{name}, a file of queries")


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

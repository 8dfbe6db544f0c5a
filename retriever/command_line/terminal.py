"""What a person sees: text made safe for a terminal, tables, and a progress bar."""

from __future__ import annotations

import json
import shutil
import sys
import time
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


def is_inert(character: str) -> bool:
    """Whether a terminal shows the character; it obeys control, formatting and bidirectional ones (category C)."""
    return unicodedata.category(character)[0] != "C"


def printable(text: str, *, width: int | None = None) -> str:
    """Text of one line in which what a terminal would obey is shown as an escape.

    Args:
        text: Any text, such as from a pool.
        width: How many characters to keep; None for all.
    """
    shown = "".join(c if is_inert(c) else c.encode("unicode_escape").decode() for c in text)
    return shown if width is None or len(shown) <= width else f"{shown[: width - 1]}…"


def printable_lines(text: str) -> str:
    """Text of several lines, each made `printable`."""
    return "\n".join(printable(line) for line in text.split("\n"))


def inert_json(value: object, *, indent: int | None = None) -> str:
    """JSON in which what a terminal would obey is a JSON escape; the values are the same."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, indent=indent)
    return "".join(c if c == "\n" or is_inert(c) else json.dumps(c)[1:-1] for c in text)


def counted(count: int, noun: str) -> str:
    """How many there are of what has a regular plural: 1 row, 2,000 rows."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def amount(count: int) -> str:
    """A number of bytes for people, two digits exact: 640 bytes, 1.2 MB, 37 GB."""
    for power, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "KB")):
        if count >= power:
            return f"{count / power:,.{0 if count >= 10 * power else 1}f} {unit}"
    return f"{count} bytes"


def columns() -> int:
    """How wide the terminal is."""
    return shutil.get_terminal_size().columns


def table(rows: Sequence[Mapping[str, str]]) -> str:
    """Columns as wide as their content, under their names; the last one gets what is left of the line."""
    if not rows:
        return ""
    *names, last = rows[0]
    widths = {name: max(len(name), *(len(row[name]) for row in rows)) for name in names}
    room = max(20, columns() - sum(width + 2 for width in widths.values()))
    lines = [[*(name.ljust(widths[name]) for name in names), last]]
    lines += [[*(row[name].ljust(widths[name]) for name in names), printable(row[last], width=room)] for row in rows]
    return "\n".join("  ".join(line).rstrip() for line in lines)


_live: list[Progress] = []
"""The bar that is shown, if there is one."""


def say(line: str) -> None:
    """Writes a line to standard error; above the bar while one is shown."""
    if _live:
        from rich.text import Text

        _live[-1].console.print(Text(line), soft_wrap=True)
    else:
        sys.stderr.write(f"{line}\n")


@contextmanager
def progress() -> Iterator[Callable[[str, int, int], None]]:
    """A bar with rate and time left, on a terminal, for work of more than a second; silent in a pipe."""
    if not sys.stderr.isatty():
        yield lambda stage, done, total: None
        return
    bar = _bar()
    started = time.monotonic()
    tasks: dict[str, TaskID] = {}

    def show(stage: str, done: int, total: int) -> None:
        if time.monotonic() - started < 1.0:
            return
        if not _live:
            bar.start()
            _live.append(bar)
        if stage not in tasks:
            tasks[stage] = bar.add_task(stage, total=total or None)
        bar.update(tasks[stage], completed=done, total=total or None)

    try:
        yield show
    finally:
        _live.clear()
        bar.stop()


def _bar() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TimeRemainingColumn
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(f"{task.speed:,.0f}/s" if task.speed else "")

    return Progress(
        "{task.description}",
        BarColumn(),
        MofNCompleteColumn(),
        Rate(),
        "left",
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )

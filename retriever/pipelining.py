"""Two things at once: the next item is worked out while the last one is used."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def one_ahead(function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
    """The results in order, each begun in another thread while the caller uses the one before.

    A single item is worked out by the caller's own thread. What the function raises is raised where its result would
    have been given.
    """
    if len(items) < 2:
        yield from map(function, items)
        return
    with ThreadPoolExecutor(1) as worker:
        pending = worker.submit(function, items[0])
        for item in items[1:]:
            done, pending = pending, worker.submit(function, item)
            yield done.result()
        yield pending.result()

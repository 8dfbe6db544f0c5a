"""Work on all cores that the process may use, in threads: for loops that let go of Python's lock."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

Item = TypeVar("Item")


def cores() -> int:
    """How many cores this process may use: those it was given, and no more than `OMP_NUM_THREADS` says."""
    given = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    asked = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()  # a list is for nested loops
    return min(given, int(asked)) if asked.isdecimal() and int(asked) else given


def each(work: Callable[[Item], object], items: Sequence[Item]) -> None:
    """Does a piece of work for every item, in any order; side by side where there is more than one core.

    The caller works, too, and waits for no thread that has not begun: where other processes keep the cores busy, it
    takes no longer than alone.

    Args:
        work: Touches nothing that it touches for another item. An error is raised; other items may be done by then.
        items: What it is called with.
    """
    left = iter(items)  # each step of an iterator over a sequence goes to one thread

    def some() -> None:
        for item in left:
            work(item)

    others = min(cores(), len(items)) - 1
    helpers = [_pool(os.getpid()).submit(some) for _ in range(others)]
    try:
        some()
    finally:
        for helper in helpers:
            if not helper.cancel():
                helper.result()


@lru_cache(maxsize=1)
def _pool(process: int) -> ThreadPoolExecutor:
    """The threads, made when they are first needed; a process that was forked has none of its parent's."""
    from concurrent.futures import ThreadPoolExecutor

    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="retriever")

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
    """How many cores this process may use: those of its affinity mask, where the system has one."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def each(work: Callable[[Item], object], items: Sequence[Item]) -> None:
    """Does a piece of work for every item, in any order; side by side where there is more than one core.

    Args:
        work: Touches nothing that it touches for another item. The first error, in the order of items, is raised.
        items: What it is called with.
    """
    count = cores()
    if count == 1 or len(items) < 2:
        for item in items:
            work(item)
        return
    for _ in _pool(os.getpid(), count).map(work, items):
        pass


@lru_cache(maxsize=1)
def _pool(process: int, count: int) -> ThreadPoolExecutor:
    """The threads, made when they are first needed; a process that was forked has none of its parent's."""
    from concurrent.futures import ThreadPoolExecutor

    return ThreadPoolExecutor(count, thread_name_prefix="retriever")

"""What the processes of a soak test share."""

from __future__ import annotations

import mmap

READERS = 2


class Shared:
    """Numbers in memory that all processes see and that outlives each of them."""

    def __init__(self) -> None:
        self._numbers = memoryview(mmap.mmap(-1, mmap.PAGESIZE)).cast("q")

    def _number(place: int) -> property:
        def get(self: Shared) -> int:
            return self._numbers[place]

        def put(self: Shared, value: int) -> None:
            self._numbers[place] = value

        return property(get, put)

    acknowledged = _number(0)
    attempted = _number(1)
    phase = _number(2)
    stop = _number(3)

    def count_read(self, reader: int) -> None:
        """Counts a read that was verified."""
        self._numbers[8 + reader] += 1

    def reads_verified(self) -> int:
        """The reads of all readers."""
        return sum(self._numbers[8 : 8 + READERS])

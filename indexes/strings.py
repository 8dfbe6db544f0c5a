"""Strings: many strings in two flat arrays, a fraction of what as many Python objects take."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from typing import overload

import numpy as np
from numpy.typing import NDArray


class Strings(Sequence[str]):
    """Strings by their number.

    Lone surrogates are kept, as Python has them.

    Args:
        blob: The strings' UTF-8 bytes, one after the other, dtype uint8.
        offsets: Where each string begins in `blob`, and the end, dtype int64, shape (strings + 1,).
    """

    def __init__(self, blob: NDArray[np.uint8], offsets: NDArray[np.int64]) -> None:
        self.blob = blob
        self.offsets = offsets
        # Reading a number or some bytes through a memoryview takes half the time.
        self._bytes, self._starts = blob.data, offsets.data

    @classmethod
    def of(cls, strings: Iterable[str]) -> Strings:
        """From strings, of which only one is looked at at a time."""
        packed = Packer()
        for string in strings:
            packed.append(string)
        return packed.strings()

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @overload
    def __getitem__(self, number: int) -> str: ...
    @overload
    def __getitem__(self, number: slice) -> list[str]: ...
    def __getitem__(self, number: int | slice) -> str | list[str]:
        """A string by its number, from 0; or some of them, for a slice."""
        if isinstance(number, slice):
            return [self[one] for one in range(*number.indices(len(self)))]
        if not 0 <= number < len(self):
            raise IndexError(number)
        return self.encoded(number).decode("utf-8", "surrogatepass")

    def encoded(self, number: int) -> bytes:
        """The UTF-8 bytes of a string by its number."""
        return self._bytes[self._starts[number] : self._starts[number + 1]].tobytes()


class Packer:
    """Strings that are still being collected."""

    def __init__(self) -> None:
        self._blob, self._offsets = bytearray(), array("q", [0])

    def append(self, string: str) -> None:
        """Adds a string."""
        self._blob += string.encode("utf-8", "surrogatepass")
        self._offsets.append(len(self._blob))

    def strings(self) -> Strings:
        """What was collected, in place: nothing can be added any more."""
        return Strings(np.frombuffer(self._blob, dtype=np.uint8), np.frombuffer(self._offsets, dtype=np.int64))

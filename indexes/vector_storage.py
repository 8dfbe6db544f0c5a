"""VectorRows: unit vectors as they lie on the disk, in one of three types.

    float32   as they were embedded
    float16   each component rounded; half the room
    int8      each row divided by its largest component and rounded to −127 … 127, with one float32 scale; a quarter

A row stands for the float32 vector that `take` gives: this, and nothing that was there before it was rounded, is what
scores are worked out from. Rounding what `take` gives gives the same row again, so that rows may be copied from one
generation to the next without drifting. What a search needs as float32 is converted block by block; the whole is never.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from indexes.errors import InvalidInput

Vectors: TypeAlias = NDArray[np.float32]
Rows: TypeAlias = NDArray[np.int64]
Scales: TypeAlias = NDArray[np.float32]

TYPES: Mapping[str, np.dtype[np.generic]] = {name: np.dtype(name) for name in ("float32", "float16", "int8")}

_STEPS = 127
_BLOCK_BYTES = 1 << 20
"""Of a block as float32: it stays in the processor's cache between the conversion and the product."""
_MANY_BYTES = 8 << 20
"""The same for several queries: a product this large is worth the other threads that it wakes."""
_HALF_SCALE = np.float32(2.0**112)
_CHECK_ROWS = 4096
_TOLERANCE = {"float32": 1e-3, "float16": 3e-3, "int8": 1e-3}
"""Of the squared length. Rounding to float16 changes each component by up to 1 in 2,048; int8 has its scale."""


def row_bytes(kind: str, dim: int) -> int:
    """What a row takes."""
    return TYPES[kind].itemsize * dim + (4 if kind == "int8" else 0)


def gives(kind: str, wanted: str) -> bool:
    """Whether rows of a type may stand for the vectors they were made from where rows of another type are wanted."""
    return kind in ("float32", wanted)


@dataclass(frozen=True)
class VectorRows:
    """Rows of unit length, or zero.

    Attributes:
        values: float32, float16 or int8, shape (rows, dim).
        scales: For int8 what each row is multiplied by, float32, shape (rows,): one over the length of the row of whole
            numbers, and 0 for a zero row. None for the other types.
    """

    values: NDArray[np.generic]
    scales: Scales | None = None

    @classmethod
    def of(cls, vectors: Vectors, kind: str = "float32") -> VectorRows:
        """Vectors in a type; float32 without a copy.

        Args:
            vectors: Unit or zero rows, float32, shape (rows, dim).
            kind: One of `TYPES`.
        """
        if kind == "float32":
            return cls(vectors)
        rows = cls.empty(len(vectors), vectors.shape[1], kind)
        for start in range(0, len(vectors), _CHECK_ROWS):
            rows.put(slice(start, start + _CHECK_ROWS), vectors[start : start + _CHECK_ROWS])
        return rows

    @classmethod
    def empty(cls, count: int, dim: int, kind: str) -> VectorRows:
        """Room for rows that are `put` later."""
        return cls(np.empty((count, dim), TYPES[kind]), np.empty(count, np.float32) if kind == "int8" else None)

    @cached_property
    def kind(self) -> str:
        """The name of the type."""
        return self.values.dtype.name

    @property
    def dim(self) -> int:
        """Components of a vector."""
        return int(self.values.shape[1])

    def __len__(self) -> int:
        return len(self.values)

    def put(self, places: slice | list[int], vectors: Vectors) -> None:
        """Rounds vectors into some of the rows, which must be writable."""
        if self.scales is None:
            self.values[places] = vectors.astype(self.values.dtype)
        else:
            self.values[places], self.scales[places] = _whole_numbers(vectors)

    def take(self, rows: Rows) -> Vectors:
        """The vectors of some rows, copied; float32, shape (rows, dim)."""
        return self._wide(self.values[rows], None if self.scales is None else self.scales[rows])

    def stored(self, rows: Rows) -> VectorRows:
        """Some rows in the same type, copied."""
        return VectorRows(self.values[rows], None if self.scales is None else self.scales[rows])

    def blocks(self, size: int) -> Iterator[Vectors]:
        """All vectors, at most `size` at a time; float32, shape (up to size, dim)."""
        for start in range(0, len(self), size):
            here = slice(start, start + size)
            yield self._wide(self.values[here], None if self.scales is None else self.scales[here])

    @staticmethod
    def _wide(values: NDArray[np.generic], scales: Scales | None) -> Vectors:
        wide = values.astype(np.float32)
        return wide if scales is None else np.multiply(wide, scales[:, np.newaxis], out=wide)

    def products(self, queries: Vectors, out: Vectors) -> None:
        """Inner products with every row, within `error_bound(dim + 2)` of the exact ones.

        float16 becomes float32 without rounding. Whole numbers do, too; beside the rounding of the sum, the vector that
        a row stands for has one rounding in each component, and the product with the scale one more.

        Args:
            queries: float32, shape (queries, dim).
            out: Gets the products, float32, shape (queries, rows).
        """
        if self.kind == "float32":
            np.matmul(queries, self.values.T, out=out)
            return
        if self.scales is None:
            queries = queries * _HALF_SCALE
        size = max(64, (_BLOCK_BYTES if len(queries) == 1 else _MANY_BYTES) // (4 * max(self.dim, 1)))
        wide = np.empty((min(size, len(self)), self.dim), np.float32)
        for start in range(0, len(self), size):
            block = self.values[start : start + size]
            here = out[:, start : start + size]
            converted = wide[: len(block)]
            if self.scales is None:
                _widen_half(block, converted)
                np.matmul(queries, converted.T, out=here)
            else:
                np.copyto(converted, block)
                np.matmul(queries, converted.T, out=here)
                here *= self.scales[start : start + size]

    def zero_rows(self) -> Rows:
        """Which rows are zero, ascending; of most rows only the first component is looked at."""
        maybe = np.flatnonzero(self.values[:, 0] == 0)
        return maybe[~self.values[maybe].any(axis=1)]

    def check(self, name: str) -> None:
        """Refuses anything but finite rows of unit length, or zero, in the form that `of` gives.

        Raises:
            InvalidInput: Another dtype or shape, a NaN or infinity, a row of another length, or of type int8 with
                another scale or another largest component than 127.
        """
        self._check_shape(name)
        for start in range(0, len(self), _CHECK_ROWS):
            here = slice(start, start + _CHECK_ROWS)
            block = self.values[here]
            if self.scales is not None:
                self._check_whole_numbers(name, start, block, self.scales[here])
                continue
            squared = np.square(block, dtype=np.float64).sum(axis=1)
            wrong = ~((np.abs(squared - 1.0) < _TOLERANCE[self.kind]) | (squared == 0))
            if wrong.any():
                row = int(wrong.argmax())
                length = float(np.sqrt(squared[row]))
                raise InvalidInput(f"{name}: row {start + row} has length {length}", expected="1 or 0")

    def _check_shape(self, name: str) -> None:
        if self.kind not in TYPES or self.values.ndim != 2:
            seen = f"{name}: dtype {self.values.dtype}, shape {self.values.shape}"
            raise InvalidInput(seen, expected=f"{', '.join(TYPES)}; (rows, dim)")
        scales = None if self.scales is None else (self.scales.dtype.name, self.scales.shape)
        expected = ("float32", (len(self),)) if self.kind == "int8" else None
        if scales != expected:
            raise InvalidInput(f"{name} of type {self.kind} with scales {scales}", expected=f"scales {expected}")

    @staticmethod
    def _check_whole_numbers(name: str, start: int, block: NDArray[np.generic], scales: Scales) -> None:
        wide = block.astype(np.int32)
        peaks = np.abs(wide).max(axis=1, initial=0)
        wrong = (scales != _scales(wide)) | ((peaks != 0) & (peaks != _STEPS))
        if wrong.any():
            row = int(wrong.argmax())
            raise InvalidInput(
                f"{name}: row {start + row} with the scale {float(scales[row])} and components up to {int(peaks[row])}",
                expected=f"the scale that gives it length 1, and components up to {_STEPS}, or all of them 0",
            )


def _whole_numbers(vectors: Vectors) -> tuple[NDArray[np.int8], Scales]:
    """Each row in steps of a 127th of its largest component, and the scale that makes its length 1 again.

    A vector that has been through this has its largest component at 127 steps and all others within a millionth of a
    whole number of steps: it comes out as it went in.
    """
    wide = vectors.astype(np.float64)
    peaks = np.abs(wide).max(axis=1, initial=0.0, keepdims=True)
    # The product of 24 by 7 bits is exact, so the largest component is 127 exactly.
    whole = np.rint(np.divide(wide * _STEPS, peaks, out=np.zeros_like(wide), where=peaks > 0)).astype(np.int8)
    return whole, _scales(whole.astype(np.int32))


def _scales(whole: NDArray[np.int32]) -> Scales:
    lengths = np.sqrt(np.square(whole).sum(axis=1, dtype=np.int64).astype(np.float64))
    scales: Scales = np.divide(1.0, lengths, out=np.zeros_like(lengths), where=lengths > 0).astype(np.float32)
    return scales


def _widen_half(half: NDArray[np.generic], out: Vectors) -> None:
    """float16 as float32 divided by `_HALF_SCALE`, exactly; NumPy's own conversion takes eight times as long.

    Sign, exponent and significand are moved to their places in a float32, whose exponent is then too small by 112. What
    it is multiplied with makes up for it: a power of 2 changes no rounding.
    """
    bits = out.view(np.int32)
    np.left_shift(half.view(np.int16), 13, out=bits, dtype=np.int32, casting="unsafe")
    np.bitwise_and(bits, np.int32(-0x70002000), out=bits)

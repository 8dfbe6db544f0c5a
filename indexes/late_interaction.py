"""Late interaction: texts as sets of token vectors, compared token by token.

`recall` says how well each token of a query is matched by the best token of each text. Its weighted mean over the
query's tokens is `maxsim`, which is BERTScore recall with the query as reference (Zhang et al. 2020; Gupta, Gardner and
Singh 2023) and, but for the mean in place of a sum, ColBERT's MaxSim.

Components are rounded to multiples of 2⁻²⁶, which is finer than float16 ever is and than float32 is for all but the
smallest components of a unit vector. Products are then multiples of 2⁻⁵², and no partial sum exceeds |x||z| < 2, so
every one of them is a float64: no addition rounds, and a fast matrix product gives the same bits for any number of
threads, block or order of rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from indexes.dense import NO_DIRECTION
from indexes.errors import InvalidInput

Floats: TypeAlias = "NDArray[np.float16] | NDArray[np.float32]"
Reals: TypeAlias = NDArray[np.float64]
Integers: TypeAlias = NDArray[np.int64]

_GRID = 2.0**26
# float16 rounds a component by at most 1 in 2048, so a squared length by at most 1 in 1024.
_NORM_SLACK = 2e-3
_BLOCK_TOKENS = 2048
_BLOCK_TEXTS = 512


@dataclass(frozen=True)
class TokenVectors:
    """The token vectors of n texts, one text after the other.

    Attributes:
        vectors: float16 or float32, shape (tokens, d).
        offsets: Text i has vectors[offsets[i] : offsets[i + 1]], int64, shape (n + 1,); a text may have none.

    Raises:
        InvalidInput: Another dtype or shape, or offsets that do not rise from 0 to the number of tokens.
    """

    vectors: Floats
    offsets: Integers

    def __post_init__(self) -> None:
        if self.vectors.ndim != 2 or self.vectors.dtype not in (np.float16, np.float32):
            raise InvalidInput(
                f"token vectors of dtype {self.vectors.dtype}, shape {self.vectors.shape}",
                expected="float16 or float32, (tokens, dimensions)",
            )
        offsets = self.offsets
        fits = offsets.ndim == 1 and offsets.dtype == np.int64 and len(offsets) > 0
        if not fits or offsets[0] != 0 or offsets[-1] != len(self.vectors) or (np.diff(offsets) < 0).any():
            raise InvalidInput(
                f"offsets of dtype {offsets.dtype}, shape {offsets.shape}",
                expected=f"int64, rising from 0 to {len(self.vectors)}",
            )

    @classmethod
    def of(cls, texts: Sequence[Floats], dim: int, dtype: type[np.float16 | np.float32] = np.float32) -> TokenVectors:
        """From one matrix per text.

        Args:
            texts: Each of shape (its tokens, dim).
            dim: Components of a vector; needed where there is no text.
            dtype: To which the vectors are converted.
        """
        vectors: Floats = np.concatenate([np.empty((0, dim), dtype=dtype), *texts], dtype=dtype, casting="same_kind")  # type: ignore[assignment]
        return cls(vectors, np.cumsum([0, *map(len, texts)], dtype=np.int64))

    def __len__(self) -> int:
        """How many texts."""
        return len(self.offsets) - 1

    @property
    def dim(self) -> int:
        """Components of a vector."""
        return int(self.vectors.shape[1])

    def text(self, row: int) -> Floats:
        """The token vectors of one text, in place, shape (its tokens, d)."""
        return self.vectors[self.offsets[row] : self.offsets[row + 1]]

    def take(self, rows: Integers) -> TokenVectors:
        """The texts of some rows, copied, in their order; a row may come twice. Shape of rows: (m,), 0 to n - 1.

        Raises:
            InvalidInput: A row that is not there.
        """
        if len(rows) and not (rows.min() >= 0 and rows.max() < len(self)):
            raise InvalidInput(f"rows {rows.min()} to {rows.max()}", expected=f"rows from 0 to {len(self) - 1}")
        lengths = np.diff(self.offsets)[rows]
        offsets = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths, dtype=np.int64)])
        shift = np.repeat(self.offsets[:-1][rows] - offsets[:-1], lengths)
        return TokenVectors(self.vectors[np.arange(offsets[-1]) + shift], offsets)

    def run(self, start: int, stop: int) -> TokenVectors:
        """The texts from `start` to before `stop`, in place."""
        offsets = self.offsets[start : stop + 1]
        return TokenVectors(self.vectors[offsets[0] : offsets[-1]], offsets - offsets[0])


def recall(query: Floats, tokens: TokenVectors) -> Reals:
    """How well each text matches each token of the query: the largest cosine to any of the text's tokens.

    A vector without direction (all zero) is like nothing: -1 stands where the query's token is zero, and where a text
    has no token with a direction. Beyond the result, memory is bounded: tokens are widened in blocks.

    Args:
        query: Unit or zero vectors of the query's tokens, shape (q, d).
        tokens: Unit or zero vectors of the tokens of n texts.

    Returns:
        float64, shape (n, q), from -1 to 1 but for the rounding of the vectors' lengths.

    Raises:
        InvalidInput: The dimensions differ, or a vector is neither of unit length nor zero.
    """
    if query.ndim != 2 or query.shape[1] != tokens.dim:
        raise InvalidInput(f"query tokens of shape {query.shape}", expected=f"(tokens, {tokens.dim})")
    asked, silent = _on_grid(query)
    best = np.full((len(tokens), len(asked)), NO_DIRECTION)
    for start in range(0, len(tokens.vectors), _BLOCK_TOKENS):
        block, zero = _on_grid(tokens.vectors[start : start + _BLOCK_TOKENS])
        cosines = block @ asked.T
        cosines[zero] = NO_DIRECTION
        # The texts that have tokens in the block, and where in it they begin; the first may have begun before.
        first = int(np.searchsorted(tokens.offsets, start, side="right")) - 1
        last = int(np.searchsorted(tokens.offsets, start + len(block), side="left"))
        texts = first + np.flatnonzero(np.diff(tokens.offsets[first : last + 1]))
        begins = np.maximum(tokens.offsets[texts] - start, 0)
        best[texts] = np.maximum(best[texts], np.maximum.reduceat(cosines, begins, axis=0))
    best[:, silent] = NO_DIRECTION
    return best


def maxsim(query: Floats, tokens: TokenVectors, weights: Reals | None = None) -> Reals:
    """Σᵢ wᵢ maxⱼ ⟨xᵢ, zⱼ⟩ for each text: BERTScore recall with the query as reference.

    Args:
        query: See `recall`.
        tokens: See `recall`.
        weights: What each token of the query is worth, 0 or more, such as its idf, shape (q,). They are scaled to sum
            to 1. Left out or all 0: each is worth the same.

    Returns:
        float64, shape (n,). -1 for a text without tokens, and for every text where the query has none.

    Raises:
        InvalidInput: See `recall`; or a weight that is negative or not finite, or of another shape.
    """
    shares = _shares(weights, len(query))
    scores = np.full(len(tokens), NO_DIRECTION)
    for start in range(0, len(tokens) if len(query) else 0, _BLOCK_TEXTS):
        run = tokens.run(start, min(start + _BLOCK_TEXTS, len(tokens)))
        # Added up along contiguous rows, in an order that depends on the number of the query's tokens alone.
        scores[start : start + len(run)] = (recall(query, run) * shares).sum(axis=1)
    return scores


def _shares(weights: Reals | None, count: int) -> Reals:
    if weights is None:
        return np.full(count, 1.0 / max(count, 1))
    if weights.shape != (count,) or not np.isfinite(weights).all() or (weights < 0).any():
        raise InvalidInput(f"weights of shape {weights.shape}", expected=f"({count},), finite, 0 or more")
    # By the largest first: sums of very large weights, and the inverse of very small ones, stay in range.
    largest = weights.max(initial=0.0)
    relative = weights / largest if largest > 0 else np.ones(count)
    shares: Reals = relative / max(float(relative.sum()), 1.0)
    return shares


def _on_grid(vectors: Floats) -> tuple[Reals, NDArray[np.bool_]]:
    """The vectors rounded to the grid, float64, shape (m, d), and which of them are zero, shape (m,)."""
    grid = vectors.astype(np.float64, order="C")
    grid *= _GRID
    np.rint(grid, out=grid)
    grid /= _GRID
    squares = np.einsum("md,md->m", grid, grid)
    wrong = ~((np.abs(squares - 1.0) <= _NORM_SLACK) | (squares == 0.0))
    if wrong.any():
        place = int(np.argmax(wrong))
        raise InvalidInput(f"token vector {place} has squared length {squares[place]:g}", expected="1 or 0")
    return grid, squares == 0.0


def inverse_frequencies(containing: Integers, texts: int) -> Reals:
    """idf(t) = ln((1 + M) / (1 + mₜ)), where mₜ of the M texts contain token t (BERTScore's, smoothed by one).

    A token that every text contains is worth 0; one that none contains is worth ln(1 + M).

    Args:
        containing: How many texts contain each token, int64, shape (q,), 0 to `texts`.
        texts: How many there are.
    """
    idf: Reals = np.log((1.0 + texts) / (1.0 + containing))
    return idf

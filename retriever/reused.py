"""What need not be embedded again: the vectors and tokens of texts that were."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from retriever.saved_vectors import SavedVectors
from retriever.snapshot import Snapshot
from retriever.token_storage import TextTokens


class Reused:
    """The vectors and tokens of what is indexed already, and the vectors that an interrupted build has saved.

    Args:
        indexed: What is indexed; None for nothing.
        saved: What an interrupted build has saved; None where nothing is, or is to be.
    """

    def __init__(self, indexed: Snapshot | None, saved: SavedVectors | None = None) -> None:
        self._indexed = indexed
        self._saved = saved
        self._places: dict[str, int] = {}
        if indexed is not None:
            self._places = {indexed.key.text(example): place for place, example in indexed.present()}

    @cached_property
    def _with_tokens(self) -> dict[str, int]:
        """Where the generation has the tokens of a text; empty where it stores none."""
        if self._indexed is None or self._indexed.base.tokens is None:
            return {}
        of, rows = self._indexed, len(self._indexed.base.rows)
        # What was removed since the generation may be back under another row, with the same text.
        gone = [place for place in of.removed if place < rows]
        removed = {of.key.text(example): place for example, place in zip(of.examples(gone), gone, strict=True)}
        return removed | {of.key.text(example): place for place, example in of.present() if place < rows}

    def vectors(self, texts: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        """As `Known` says."""
        saved = self._saved.get if self._saved is not None else lambda text: None
        found = {text: vector for text in texts if (vector := saved(text)) is not None}
        here = [text for text in texts if text in self._places]
        if self._indexed is not None and here:
            places = np.array([self._places[text] for text in here], dtype=np.int64)
            found |= zip(here, self._indexed.embedded(places), strict=True)
        return found

    def tokens(self, text: str) -> TextTokens | None:
        """As `Known` says."""
        place = self._with_tokens.get(text)
        if place is None or self._indexed is None or self._indexed.base.tokens is None:
            return None
        return self._indexed.base.tokens.text(place)

    def save(self, texts: Sequence[str], vectors: NDArray[np.float32]) -> None:
        """As `Known` says."""
        if self._saved is not None:
            self._saved.save(texts, vectors)

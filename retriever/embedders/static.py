"""A static embedder: a vector for each token and each word of a pool, and of a text the direction of their sum.

It is distilled from a model when an index is built (`retriever.embedders.distillation`). Encoding needs numpy and the
tokenizers library alone: no model, no torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from indexes.strings import Strings
from retriever.embedders.base import Prompts, Vectors, first_line, unit_rows
from retriever.errors import EmbedderError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

State: TypeAlias = dict[str, NDArray[np.generic]]
Rows: TypeAlias = NDArray[np.float16]

PREFIX = "static:"
_REMEMBERED = 65_536
_PARTS = ("rows", "tokenizer", "vocabulary", "offsets")


class Words:
    """Text to words and words to tokens, as a model's tokenizer does it, without truncation or added tokens."""

    def __init__(self, tokenizer_json: str) -> None:
        """Takes what the tokenizers library writes.

        Raises:
            EmbedderError: It is no tokenizer.
        """
        from tokenizers import Tokenizer

        try:
            parsed = json.loads(tokenizer_json)
            self.json = json.dumps(parsed | {"padding": None, "truncation": None}, ensure_ascii=False)
            self.tokenizer: Tokenizer = Tokenizer.from_str(self.json)
        except Exception as error:  # the library raises Exception itself
            raise EmbedderError(f"no tokenizer: {first_line(error)}", fix="build again") from error

    @property
    def splits(self) -> bool:
        """Whether it knows words at all; if not, a whole text is one word."""
        return self.tokenizer.pre_tokenizer is not None

    def of(self, text: str) -> list[str]:
        """The words of a text, normalised, in order."""
        normalizer, splitter = self.tokenizer.normalizer, self.tokenizer.pre_tokenizer
        normal = text if normalizer is None else normalizer.normalize_str(text)
        return [normal] if splitter is None else [word for word, _ in splitter.pre_tokenize_str(normal)]

    def tokens(self, word: str) -> list[int]:
        """The ids of a word's tokens."""
        return [token.id for token in self.tokenizer.model.tokenize(word)]


class StaticEmbedder:
    """Sums of weighted token vectors (model2vec; SIF of Arora et al. 2017).

    A text gets the sum over its words of the row of the word, or else of the rows of its tokens; scaled to unit length,
    which makes it the same as their mean. Tokens that mean nothing, such as the one for unknown words, have a row of
    zeros. A text without anything else is all zero.

    Make one with `distill` or `from_state`. A row does not depend on the other texts.

    Attributes:
        name: `static:` and the name of the model it was distilled from.
        prompts: None on either side.
    """

    def __init__(self, name: str, words: Words, vocabulary: Sequence[str], rows: Rows) -> None:
        """Puts it together.

        Args:
            name: See the attribute.
            words: Splits texts.
            vocabulary: The words that have rows of their own, m of them.
            rows: Of the tokens, by id, and then of these words, shape (tokens + m, dim).
        """
        self.name = name
        self.prompts = Prompts()
        self._words = words
        self._vocabulary = list(vocabulary)
        first = len(rows) - len(vocabulary)
        self._place = {word: first + place for place, word in enumerate(vocabulary)}
        self._rows = rows
        self._places_of = lru_cache(_REMEMBERED)(self._look_up)

    @property
    def dim(self) -> int:
        """Components of a vector."""
        return int(self._rows.shape[1])

    def _look_up(self, word: str) -> tuple[int, ...]:
        """The rows of a word."""
        place = self._place.get(word)
        return tuple(self._words.tokens(word)) if place is None else (place,)

    def encode(self, texts: list[str]) -> Vectors:
        """One row per text, (n, dim) float32, of unit length; all zero when nothing in the text is known."""
        sums = np.zeros((len(texts), self.dim))
        for row, text in enumerate(texts):
            places = [place for word in self._words.of(text) for place in self._places_of(word)]
            # Each row once, however long the text, and in an order that no thread decides.
            known, counts = np.unique(np.array(places, dtype=np.int64), return_counts=True)
            sums[row] = (self._rows[known].astype(np.float64) * counts[:, None]).sum(axis=0)
        return unit_rows(sums)

    def state(self) -> State:
        """What was learned, as plain arrays.

        Returns:
            `rows`: (tokens + words, dim) float16; `tokenizer`: its JSON in UTF-8, uint8; `vocabulary`: the words in
            UTF-8, one after the other, uint8; `offsets`: (words + 1,) int64, where each begins and the last ends.
        """
        words = Strings.of(self._vocabulary)
        return {
            "rows": self._rows.copy(),
            "tokenizer": np.frombuffer(self._words.json.encode(), dtype=np.uint8),
            "vocabulary": words.blob,
            "offsets": words.offsets,
        }

    @classmethod
    def from_state(cls, name: str, state: Mapping[str, NDArray[np.generic]]) -> StaticEmbedder:
        """The embedder that `state` was taken from; it gives the same bytes.

        Raises:
            EmbedderError: A part is missing, or the parts do not belong together.
        """
        missing = sorted(set(_PARTS) - state.keys())
        if missing:
            raise EmbedderError(f"a static state without {', '.join(missing)}", fix="build again")
        rows, offsets = state["rows"], np.asarray(state["offsets"], dtype=np.int64)
        blob = np.frombuffer(state["vocabulary"].tobytes(), dtype=np.uint8)
        cut = offsets.ndim == 1 and offsets.size and offsets[0] == 0 and offsets[-1] == len(blob)
        if not cut or (np.diff(offsets) <= 0).any() or rows.ndim != 2 or not rows.shape[1] or rows.dtype != np.float16:
            raise EmbedderError(
                f"a static state of {len(blob)} bytes of vocabulary, offsets {offsets.shape} and rows {rows.shape}",
                expected="parts that belong together",
                fix="build again",
            )
        try:
            words = Words(state["tokenizer"].tobytes().decode())
            vocabulary = list(Strings(blob, offsets))
        except UnicodeDecodeError as error:
            raise EmbedderError("a static state that is not UTF-8", fix="build again") from error
        if len(rows) != token_count(words) + len(vocabulary) or not np.isfinite(rows).all():
            raise EmbedderError(
                f"a static state of {len(rows)} rows for {token_count(words)} tokens and {len(vocabulary)} words",
                expected="a row of finite numbers for each",
                fix="build again",
            )
        return cls(name, words, vocabulary, np.asarray(rows, dtype=np.float16))

    def __repr__(self) -> str:
        return f"StaticEmbedder({self.name!r}, dim={self.dim}, words={len(self._vocabulary)})"


def token_count(words: Words) -> int:
    """How many rows the tokens of a tokenizer take: the largest id and one."""
    return max(words.tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1

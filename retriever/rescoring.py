"""Rescoring: what reads the texts of candidates again, token by token or together with the query, over one snapshot."""

from __future__ import annotations

import threading
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from indexes.late_interaction import Reals, TokenVectors, inverse_frequencies, maxsim, recall
from retriever.errors import InvalidInput
from retriever.example import Example
from retriever.query_encoder import QueryEncoder
from retriever.ranking.cross_encoder import CrossEncoderScorer
from retriever.ranking.rerank import Cache, Rerank
from retriever.snapshot import Snapshot
from retriever.token_storage import TextTokens

_CACHE_BYTES = 256 << 20

Rows = NDArray[np.int64]


class Rescoring:
    """What all views of an index share: the models, and the tokens of examples whose tokens are not stored.

    Args:
        encoder: Embeds texts as the index was built.
    """

    def __init__(self, encoder: QueryEncoder) -> None:
        self.encoder = encoder
        # By key and the pool's row number, which together never stand for another text.
        self.tokens: Cache[TextTokens] = Cache(_CACHE_BYTES)
        self._cross_encoders: dict[str, CrossEncoderScorer] = {}
        self._loading = threading.Lock()

    def cross_encoder(self, name: str) -> CrossEncoderScorer:
        """The cross-encoder of this name or folder, loaded once.

        Raises:
            EmbedderError: It cannot be loaded.
        """
        with self._loading:
            if name not in self._cross_encoders:
                self._cross_encoders[name] = CrossEncoderScorer.load(name)
            return self._cross_encoders[name]


class Rescorer:
    """Scores rows of one snapshot.

    Args:
        snapshot: The view of the pool.
        shared: Models and tokens.
    """

    def __init__(self, snapshot: Snapshot, shared: Rescoring) -> None:
        self._snapshot = snapshot
        self._shared = shared

    def scores(self, rerank: Rerank, query: Example, rows: Rows) -> Reals:
        """The reranker's score of each row, float64, shape (m,).

        Raises:
            InvalidInput: The index has no token vectors, or has none stored where idf is asked for.
            EmbedderError: A model cannot be loaded or fails.
        """
        text = self._snapshot.key.text(query)
        if rerank.model is not None:
            return self._shared.cross_encoder(rerank.model).scores(text, self._texts(rows))
        asked = self._shared.encoder.query_tokens(text)
        return maxsim(asked, self._tokens(rows, asked.shape[1]), self._idf(text) if rerank.idf else None)

    def recall(self, query: Example, rows: Rows) -> Reals:
        """How well each row matches each token of the query, float64, shape (m, tokens); see `late_interaction.recall`.

        Raises:
            InvalidInput: The index's embedder has no token vectors.
        """
        asked = self._shared.encoder.query_tokens(self._snapshot.key.text(query))
        return recall(asked, self._tokens(rows, asked.shape[1]))

    def _idf(self, text: str) -> Reals:
        """The idf of the tokens of a query's key text over the examples of this view; see `inverse_frequencies`."""
        ids, containing = self._shared.encoder.query_token_ids(text), self._containing
        known = ids < len(containing)
        counts = np.zeros(len(ids), dtype=np.int64)  # of a token that no example has
        counts[known] = containing[ids[known]]
        return inverse_frequencies(counts, len(self._snapshot))

    @cached_property
    def _containing(self) -> NDArray[np.int64]:
        """How many examples of this view contain each token id: those of the generation, and what changed since."""
        stored = self._snapshot.base.tokens
        if stored is None:
            raise InvalidInput(
                "rerank.idf over an index without stored token vectors",
                fix="build the index with them (--token-vectors), or leave idf out",
            )
        rows = np.arange(len(stored), len(self._snapshot.rows))
        added = [row for row in rows.tolist() if row not in self._snapshot.removed]
        gone = [row for row in self._snapshot.removed if row < len(stored)]
        texts = self._texts(np.array(added, dtype=np.int64))
        more = [np.unique(ids) for ids in self._shared.encoder.example_token_ids(texts)]
        size = max([len(stored.containing), *(int(ids.max(initial=-1)) + 1 for ids in more)])
        counts = np.zeros(size, dtype=np.int64)
        counts[: len(stored.containing)] = stored.containing
        for ids in more:
            counts[ids] += 1
        for row in gone:
            counts[np.unique(stored.text(row).ids)] -= 1
        return counts

    def _texts(self, rows: Rows) -> list[str]:
        return [self._snapshot.key.text(example) for example in self._snapshot.examples(rows)]

    def _tokens(self, rows: Rows, dim: int) -> TokenVectors:
        """The tokens of rows: stored, kept from before, or embedded now."""
        stored = self._snapshot.base.tokens
        if stored is not None and len(rows) and (rows < len(stored)).all():
            return stored.vectors.take(rows)
        found = {row: self._kept(row) for row in rows.tolist()}
        missing = np.array([row for row, tokens in found.items() if tokens is None], dtype=np.int64)
        if len(missing):
            made = self._shared.encoder.example_tokens(self._texts(missing))
            for row, tokens in zip(missing.tolist(), made, strict=True):
                found[row] = tokens
                self._shared.tokens.put(self._name(row), tokens, tokens.vectors.nbytes + tokens.ids.nbytes)
        texts = [tokens.vectors for tokens in (found[row] for row in rows.tolist()) if tokens is not None]
        return TokenVectors.of(texts, dim, np.float16)

    def _kept(self, row: int) -> TextTokens | None:
        stored = self._snapshot.base.tokens
        if stored is not None and row < len(stored):
            return stored.text(row)
        return self._shared.tokens.get(self._name(row))

    def _name(self, row: int) -> tuple[str, int]:
        """What its tokens are kept under."""
        return self._snapshot.key.spec, int(self._snapshot.rows[row])

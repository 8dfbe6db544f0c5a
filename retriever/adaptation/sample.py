"""What is learned from: the examples of an index, as adaptation sees them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from indexes.channels import Query
from indexes.lexical import BM25Index, LexicalIndex
from indexes.postings import Postings
from retriever.adaptation.linear_map import Vectors
from retriever.adaptation.spaces import Frozen
from retriever.example import Example
from retriever.keys import Key
from retriever.query_encoder import QueryEncoder
from retriever.ranking.seeding import permutation
from retriever.snapshot import Snapshot
from retriever.texts import by_appearance

MOST_ROWS = 50_000
"""Rows that are learned from at most; the steps would not see more of them often enough."""


@dataclass(frozen=True)
class Sample:
    """The examples of an index, or as many of them as can be learned from.

    Attributes:
        places: Their rows of the index, ascending, int64, shape (rows,).
        examples: The examples.
        texts: Their key texts.
        copies: For each row a number that it shares with the rows of the same key text, int64, shape (rows,).
        frozen: Their vectors, and those of queries, as the embedder gives them.
        lexical: The lexical channel over the same rows.
        analyze: From text to terms.
        key: Which text of an example is indexed.
    """

    places: NDArray[np.int64]
    examples: Sequence[Example]
    texts: Sequence[str]
    copies: NDArray[np.int64]
    frozen: Frozen
    lexical: LexicalIndex
    analyze: Callable[[str], Sequence[str]]
    key: Key

    @classmethod
    def of(cls, snapshot: Snapshot, encoder: QueryEncoder, also: NDArray[np.int64] | None = None) -> Sample:
        """Reads them.

        Args:
            snapshot: The view of the index.
            encoder: Embeds queries.
            also: Rows of the index that have to be among them.
        """
        live = snapshot.live
        drawn = live[permutation(len(live), 0, "", "learned from")[:MOST_ROWS]]
        places = np.union1d(drawn, drawn[:0] if also is None else also)
        examples = snapshot.examples(places)
        texts = [snapshot.key.text(example) for example in examples]
        terms = [tuple(snapshot.analyze(text)) for text in texts]
        vectors = snapshot.embedded(places)
        prompts = encoder.stored.prompts
        known = dict(zip(texts, vectors, strict=True)) if prompts.query == prompts.example else {}
        return cls(
            places=places,
            examples=examples,
            texts=texts,
            copies=by_appearance(texts),
            frozen=Frozen(vectors, encoder.queries, known),
            lexical=BM25Index([Postings.from_documents(terms)], snapshot.base.settings.scoring()),
            analyze=snapshot.analyze,
            key=snapshot.key,
        )

    def __len__(self) -> int:
        """How many rows."""
        return len(self.places)

    def some(self, rows: Sequence[int]) -> list[Example]:
        """The examples of some rows."""
        return [self.examples[row] for row in rows]

    def asked(self, rows: Sequence[int]) -> list[str]:
        """The texts of some rows as queries, without their answers.

        Raises:
            InvalidInput: The key needs the answer.
        """
        if not self.key.names_answer:
            return [self.texts[row] for row in rows]
        return [self.key.asked_text(self.examples[row]) for row in rows]

    def queries(self, texts: Sequence[str], vectors: Vectors) -> list[Query]:
        """Queries as both channels take them."""
        return [Query(vector, tuple(self.analyze(text))) for text, vector in zip(texts, vectors, strict=True)]

"""Settings of an index: what is fixed when it is built and stored in its manifest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields

from indexes.analyzers import analyzer
from indexes.lexical import BM25, BM25Index, LexicalIndex
from indexes.postings import Postings
from indexes.reference import RankBM25Index
from indexes.vector_storage import TYPES
from retriever.errors import InvalidInput
from retriever.example import Json
from retriever.keys import Key

LEXICAL = ("bm25", "rank-bm25")


@dataclass(frozen=True)
class IndexSettings:
    """How examples are indexed.

    Attributes:
        key: Which text stands for an example; see `retriever.keys.Key`.
        analyzer: How text becomes terms; see `indexes.analyzers`.
        lexical: `bm25`, or `rank-bm25` for the slower reference implementation (Okapi only).
        bm25: The variant of BM25.
        k1: Its saturation parameter.
        b: Its length parameter.
        ann: A FAISS factory string such as `HNSW32`; None searches exactly, unless `recall` says otherwise.
        recall: The share of the ten nearest that dense search is to find, up to 1: large pools get a FAISS index that
            does, or the one that `ann` names; see `indexes.ann_choice`. None leaves the choice to `ann`.
        max_memory: With `recall`, the most bytes of memory that a build with the FAISS index may be predicted to need.
        vectors: The type that vectors are stored in: `float32`, `float16` or `int8`; see `indexes.vector_storage`.
        token_vectors: Whether the vectors of every token are stored, too, for reranking by `maxsim` and `coverage` of
            tokens; without them they are made when asked for.

    Raises:
        InvalidInput: A value is not one of those allowed.
    """

    key: str = "input"
    analyzer: str = "default"
    lexical: str = "bm25"
    bm25: str = "lucene"
    k1: float = 1.5
    b: float = 0.75
    ann: str | None = None
    token_vectors: bool = False
    vectors: str = "float32"
    recall: float | None = None
    max_memory: int | None = None

    def __post_init__(self) -> None:
        Key(self.key)
        analyzer(self.analyzer)
        if self.lexical not in LEXICAL:
            raise InvalidInput(f"lexical index {self.lexical!r}", expected=f"one of {', '.join(LEXICAL)}")
        if self.lexical == "rank-bm25" and self.bm25 != "okapi":
            raise InvalidInput(f"rank-bm25 with the variant {self.bm25!r}", expected="bm25='okapi'")
        if self.vectors not in TYPES:
            raise InvalidInput(f"vectors of type {self.vectors!r}", expected=f"one of {', '.join(TYPES)}")
        if self.recall is not None and not 0 < self.recall <= 1:
            raise InvalidInput(f"recall {self.recall}", expected="a share above 0 and up to 1")
        if self.max_memory is not None and self.recall is None:
            raise InvalidInput("settings with max_memory and without recall", fix="pass max_memory to the build itself")
        self.scoring()

    def scoring(self) -> BM25:
        """The settings of BM25."""
        return BM25(self.bm25, self.k1, self.b)

    def lexical_index(
        self, segments: Sequence[Postings], removed: Mapping[int, Sequence[str]] | None = None
    ) -> LexicalIndex:
        """The lexical channel.

        Args:
            segments: The runs of documents, in row order.
            removed: For each removed row, the terms of its document.
        """
        kind = RankBM25Index if self.lexical == "rank-bm25" else BM25Index
        return kind(segments, self.scoring(), removed)

    @classmethod
    def from_manifest(cls, stored: object) -> IndexSettings:
        """From what `to_dict` gave; a setting that did not exist then has its default.

        Raises:
            InvalidInput: It is not that.
        """
        names = {f.name for f in fields(cls)}
        if not isinstance(stored, Mapping) or not names.issuperset(stored):
            raise InvalidInput(f"stored settings {stored!r}", expected=f"the keys {', '.join(sorted(names))}")
        return cls(**stored)

    def to_dict(self) -> dict[str, Json]:
        """For the manifest."""
        return asdict(self)

"""Base: what a generation holds, its arrays checked against each other and ready to search."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from indexes.ann import AnnIndex
from indexes.dense import Segment
from indexes.errors import to_repair
from indexes.generation import Generation, Manifest
from indexes.postings import Postings, check_postings
from indexes.vector_storage import TYPES, VectorRows
from indexes.vocabulary import Vocabulary, check_vocabulary
from retriever.adaptation.stored import Adaptation, adapted_rows
from retriever.errors import IndexCorrupt, InvalidInput
from retriever.evaluation.calibration import Calibration
from retriever.example import Json
from retriever.revisions import Revision
from retriever.settings import IndexSettings
from retriever.token_storage import StoredTokens, stored_tokens

Rows: TypeAlias = NDArray[np.int64]


@dataclass(frozen=True)
class Base:
    """What a generation holds, checked and ready to search.

    Attributes:
        generation: The generation.
        settings: How it was built.
        rows: The pool's row number of each row, ascending, int64, shape (rows,).
        vectors: The dense channel's rows.
        postings: The lexical channel's.
        ids: The examples' ids, sorted.
        id_rows: For each of these ids its row, int64, shape (rows,).
        text_hashes: `text_hash` of each row's key text, uint64, shape (rows,).
        ann: The FAISS index, when there is one.
        tokens: The tokens of each row, when they are stored.
        revision: The revision of the pool that it was derived from.
        last_row: The largest row number that the pool had used by then.
        calibration: The fusion weight, and where it comes from.
        recipe: The default recipe, as it is stored: it may name a strategy of a package that is not there.
        embedded: The rows as the embedder gave them.
        adaptation: The map that made `vectors` of these, and that queries go through; None where both are the same.
    """

    generation: Generation
    settings: IndexSettings
    rows: Rows
    vectors: Segment
    postings: Postings
    ids: Vocabulary
    id_rows: Rows
    text_hashes: NDArray[np.uint64]
    ann: AnnIndex | None
    tokens: StoredTokens | None
    revision: Revision
    last_row: int
    calibration: Calibration
    recipe: Mapping[str, Json]
    embedded: VectorRows
    adaptation: Adaptation | None

    @classmethod
    def load(cls, generation: Generation, *, verify: bool = True) -> Base:
        """From a generation whose files match its manifest.

        Args:
            generation: The generation.
            verify: Whether to look at every vector and posting; `False` trusts what was published.

        Raises:
            IndexCorrupt: The files contradict each other.
        """
        try:
            base = _parse(generation)
            if verify:
                base.embedded.check("vectors")
                if base.adaptation is not None:
                    base.vectors.rows.check("mapped vectors")
                check_postings(base.postings)
                check_vocabulary(base.ids, "id")
            _check_rows(base)
        except (InvalidInput, KeyError, TypeError, ValueError, AttributeError) as error:
            fix = to_repair(generation.path.parent)
            raise IndexCorrupt(generation.path, f"contradicts itself: {error}", fix=fix) from error
        return base

    @property
    def weight(self) -> float:
        """The fusion weight."""
        return self.calibration.weight

    def moved(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """Vectors of the embedder as the dense channel takes them, float32, shape (n, dim)."""
        return vectors if self.adaptation is None else self.adaptation.moved(vectors)


def _check_rows(base: Base) -> None:
    counts = {
        "rows": len(base.rows),
        "vectors": len(base.vectors),
        "vector scales": len(base.vectors) if base.vectors.rows.scales is None else len(base.vectors.rows.scales),
        "embedded vectors": len(base.embedded),
        "documents": len(base.postings),
        "ids": len(base.ids),
        "rows of ids": len(base.id_rows),
        "text hashes": len(base.text_hashes),
    }
    if len(set(counts.values())) > 1:
        raise InvalidInput(", ".join(f"{count:,} {name}" for name, count in counts.items()), expected="as many of each")
    if len(base.rows) and not (base.rows[0] > 0 and base.rows[-1] <= base.last_row and (np.diff(base.rows) > 0).all()):
        raise InvalidInput("row numbers out of order", expected=f"ascending ones from 1 to {base.last_row}")
    if not np.array_equal(np.sort(base.id_rows), np.arange(len(base.rows))):
        raise InvalidInput("ids that do not name each row once")


def pool_revision(manifest: Manifest) -> Revision:
    """The revision of the pool that a generation was derived from."""
    pool = dict(manifest["pool"])  # type: ignore[call-overload]
    return Revision(int(pool["revision"]), str(pool["chain"]))


def embedded_rows(generation: Generation, settings: IndexSettings) -> VectorRows:
    """The rows as the embedder gave them, in place.

    Raises:
        IndexCorrupt: They are missing, or of another type than the settings say.
    """
    scales = generation.array("vector_scales", np.float32) if settings.vectors == "int8" else None
    return VectorRows(generation.array("vectors", TYPES[settings.vectors].type), scales)


def _parse(generation: Generation) -> Base:
    manifest = generation.manifest
    pool = dict(manifest["pool"])  # type: ignore[call-overload]
    settings = IndexSettings.from_manifest(manifest["settings"])
    ann = generation.buffers.get("ann.faiss")
    rows = generation.array("rows", np.int64)
    embedded = embedded_rows(generation, settings)
    adaptation = Adaptation.from_generation(generation)
    searched = embedded if adaptation is None else adapted_rows(generation, settings.vectors)
    if adaptation is not None and not len(adaptation.matrix) == searched.dim == embedded.dim:
        raise InvalidInput(f"a map of {len(adaptation.matrix)} components", expected=f"{embedded.dim}")
    return Base(
        generation=generation,
        settings=settings,
        rows=rows,
        vectors=Segment(searched),
        postings=Postings(
            vocabulary=Vocabulary(generation.array("terms", np.uint8), generation.array("term_offsets", np.int64)),
            offsets=generation.array("posting_offsets", np.int64),
            rows=generation.array("posting_rows", np.int32),
            counts=generation.array("posting_counts", np.int32),
            lengths=generation.array("lengths", np.int32),
        ),
        ids=Vocabulary(generation.array("ids", np.uint8), generation.array("id_offsets", np.int64)),
        id_rows=generation.array("id_rows", np.int64),
        text_hashes=generation.array("text_hashes", np.uint64),
        ann=None if ann is None else AnnIndex.from_bytes(ann),
        tokens=stored_tokens(generation, len(rows)) if settings.token_vectors else None,
        revision=pool_revision(manifest),
        last_row=int(pool["last_row"]),
        calibration=Calibration.from_dict(manifest["fusion"]),
        recipe=dict(manifest.get("recipe", {})),  # type: ignore[call-overload]
        embedded=embedded,
        adaptation=adaptation,
    )

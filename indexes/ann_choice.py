"""Which FAISS index suits some rows, a wanted recall and the memory there is, found out by measuring.

Recall is measured as it is used: sampled rows are asked for their nearest others, what is proposed is scored exactly,
and the best ten are compared with those of an exact search. Sample, training and every search are by one thread
and from fixed seeds, so that the same rows give the same choice.

Proposals are scored over the rows as they are stored, so a FAISS index need hold no more than what finds them.
RaBitQ's one bit for a component (Gao & Long, SIGMOD 2024) proposes nearly as well as 8 bits (`SQ8`), from a sixth of
the memory and in less time; so it comes first, and 8 bits follow where that is not enough. Inverted files of float32
(`Flat`) are no candidates: they propose no better than 8 bits. Nor are graphs (`HNSW32`): for a thousand proposals
they are no faster, hold links besides, take several times as long to build by one thread, and differ from run to run
when built by more. Nor are product quantisers (`OPQ64,PQ64`), which one thread trains for minutes. `ann` names them
where they are wanted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from indexes.ann import PROPOSALS, AnnIndex, one_thread, predicted_bytes
from indexes.dense import DenseIndex, Segment
from indexes.vector_storage import VectorRows

Rows: TypeAlias = NDArray[np.int64]

EXACT_BELOW = 200_000
"""Rows below which nothing is gained: an exact search takes some ten milliseconds."""

DEPTH = 10
SAMPLE = 200
_BLOCK_ROWS = 1 << 14
_COPY = 0.998
"""What is as like as this is a copy of the row that asks, rounded perhaps: to find it proves nothing."""
_NOTHING = -2.0


@dataclass(frozen=True)
class Attempt:
    """A FAISS index that was measured.

    Attributes:
        factory: Its factory string.
        parameters: Its search parameters by FAISS's names.
        recall: Of the ten nearest, over the sample.
    """

    factory: str
    parameters: dict[str, int]
    recall: float


@dataclass(frozen=True)
class AnnReport:
    """How dense search finds its rows, and how well.

    Attributes:
        used: The FAISS index; None for an exact search.
        recall: Of the ten nearest, over the sample; 1 for an exact search.
        sample: How many rows were asked for their neighbours; 0 where nothing was measured.
        target: The recall that was asked for; None where none was.
        tried: What was measured, in order; `used` is among it.
    """

    used: Attempt | None
    recall: float
    sample: int
    target: float | None
    tried: tuple[Attempt, ...]

    def to_dict(self) -> dict[str, object]:
        """For the manifest."""
        return {
            "factory": None if self.used is None else self.used.factory,
            "parameters": {} if self.used is None else self.used.parameters,
            "recall": self.recall,
            "at": DEPTH,
            "sample": self.sample,
            "target": self.target,
            "tried": [[one.factory, one.parameters, one.recall] for one in self.tried],
        }

    def note(self) -> str | None:
        """What a reader should know: that the target was not reached, or that the recall is low; None otherwise."""
        if self.target is not None and self.used is None and self.sample:
            measured = "; ".join(_shown(one) for one in self.tried) or "nothing fits into the memory"
            return (
                f"no FAISS index reaches a recall of {self.target:g} ({measured}): dense search is exact, which takes "
                "longer; more memory (--max-memory) or a lower --recall would help"
            )
        if self.target is None and self.used is not None and self.recall < 0.9:
            return f"{_shown(self.used)}: --recall 0.95 makes it search harder"
        return None


def _shown(attempt: Attempt) -> str:
    parameters = "".join(f", {name} {value}" for name, value in attempt.parameters.items())
    return f"{attempt.factory}{parameters}: recall {attempt.recall:.3f}"


def candidates(count: int, dim: int, room: int | None) -> list[str]:
    """Factory strings that suit so many rows and fit into so many bytes, the smallest and fastest first."""
    cells = 2 ** round(math.log2(max(count, 4)) / 2)
    able = (f"IVF{cells},RaBitQ", f"IVF{cells},SQ8")
    return [factory for factory in able if room is None or predicted_bytes(factory, count, dim) <= room]


def planned_bytes(factory: str | None, target: float | None, count: int, dim: int, room: int | None) -> int:
    """About how large the FAISS index will be that `choose` tries first; 0 for an exact search.

    Args:
        factory: A factory string, where it is given.
        target: The wanted recall; None where nothing is to be chosen.
        count: How many rows.
        dim: Their components.
        room: The most bytes that a FAISS index may take; None for any.

    Raises:
        InvalidInput: FAISS does not take the factory string for this dimension.
    """
    if factory is None and target is not None and count >= EXACT_BELOW:
        factory = next(iter(candidates(count, dim, room)), None)
    return 0 if factory is None else predicted_bytes(factory, count, dim)


def choose(
    rows: VectorRows, *, factory: str | None = None, target: float | None = None, room: int | None = None
) -> tuple[AnnIndex | None, AnnReport]:
    """The FAISS index for some rows, its search parameters set; none where an exact search is as good or the only way.

    With a target, each candidate in turn searches harder until it reaches it. Where none does, the search is exact:
    what was asked for is a recall, and that one has it.

    Args:
        rows: What is to be found.
        factory: The one candidate; None for those that suit the number of rows and the room.
        target: The wanted recall of the ten nearest; None takes `factory` with the least effort.
        room: The most bytes that the index may take; None for any. A `factory` is not held to it.

    Raises:
        InvalidInput: FAISS does not take the factory string for these rows.
    """
    if factory is None and len(rows) < EXACT_BELOW:
        return None, AnnReport(None, 1.0, 0, target, ())
    sample = Sample.of(rows)
    tried: list[Attempt] = []
    for able in candidates(len(rows), rows.dim, room) if factory is None else [factory]:
        ann = AnnIndex.build(able, rows)
        while True:
            tried.append(Attempt(able, ann.parameters, sample.recall(ann)))
            if target is None or tried[-1].recall >= target:
                return ann, AnnReport(tried[-1], tried[-1].recall, len(sample), target, tuple(tried))
            if ann.effort >= ann.most_effort:
                break
            ann.effort = min(ann.most_effort, 2 * ann.effort)
    return None, AnnReport(None, 1.0, len(sample), target, tuple(tried))


@dataclass(frozen=True)
class Sample:
    """Rows that are asked for their nearest others.

    Attributes:
        dense: All rows.
        queries: Unit vectors, float32, shape (queries, dim).
        least: The exact score that the tenth of the nearest others of each has, or the last where there are fewer, but
            for the error of a product; shape (queries,).
        wanted: How many nearest others each has, at most ten, shape (queries,).
    """

    dense: DenseIndex
    queries: NDArray[np.float32]
    least: NDArray[np.float64]
    wanted: Rows

    @classmethod
    def of(cls, rows: VectorRows) -> Sample:
        """Always the same one for as many rows; zero rows have no neighbours and do not ask."""
        order = np.random.default_rng(len(rows)).permutation(len(rows))[: 2 * SAMPLE]
        vectors = rows.take(np.sort(order)).astype(np.float64)
        vectors = vectors[vectors.any(axis=1)][:SAMPLE]
        queries = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
        dense = DenseIndex([Segment(rows)])
        best = np.full((len(queries), DEPTH), _NOTHING, np.float32)
        for start in range(0, len(rows), _BLOCK_ROWS):
            here = slice(start, start + _BLOCK_ROWS)
            part = VectorRows(rows.values[here], None if rows.scales is None else rows.scales[here])
            scores = DenseIndex([Segment(part)]).scores(queries)
            scores[scores > _COPY] = _NOTHING
            together = np.concatenate([best, scores], axis=1)
            best = np.partition(together, together.shape[1] - DEPTH, axis=1)[:, -DEPTH:]
        real = best > _NOTHING
        least = np.where(real, best, np.inf).min(axis=1, initial=np.inf) - 2 * dense.bound
        return cls(dense, queries, least.astype(np.float64), real.sum(axis=1))

    def __len__(self) -> int:
        return len(self.queries)

    def recall(self, ann: AnnIndex) -> float:
        """The share of the nearest others that are found: the mean over the queries that have any; 1 where none has."""
        with one_thread():
            found = [self._found(ann, i) / self.wanted[i] for i in range(len(self)) if self.wanted[i]]
        return round(float(np.mean(found)), 4) if found else 1.0

    def _found(self, ann: AnnIndex, i: int) -> int:
        scores = self.dense.exact(ann.propose(self.queries[i], PROPOSALS, None), self.queries[i])
        return min(int(self.wanted[i]), int(np.count_nonzero((scores >= self.least[i]) & (scores <= _COPY))))

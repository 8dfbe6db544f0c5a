"""Supervision by a log: the queries that were asked, and how the demonstrations did that they were shown.

What is learned from: where demonstrations were scored by themselves, a query's attention should be spread over them by
a softmax of their credit, as in LLM-R (Wang et al. 2024) and EPR (Rubin et al. 2022). Where whole prompts were judged,
nobody knows which demonstration helped, nor whether others would have: attention should be what the embedder gives,
times the exponential of the credit, which is what maximises the expected outcome at a price for each change
(advantage-weighted regression, Peng et al. 2019). So what was never shown is neither praised nor blamed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from indexes.channels import Fusion
from indexes.dense import DenseIndex, Segment
from indexes.hybrid import HybridIndex
from retriever.adaptation.concordance import Standings
from retriever.adaptation.evidence import Asked, Evidence, Shown
from retriever.adaptation.learner import Batch, Targets
from retriever.adaptation.linear_map import Vectors
from retriever.adaptation.sample import Sample
from retriever.adaptation.spaces import Space
from retriever.adaptation.supervision import aim_of
from retriever.adaptation.training import FinetuneSettings, Training, pairs
from retriever.adaptation.validation import FOLDS, SHARES, Fold, Learn, Measure, Verdict, judge, pool_measure
from retriever.evaluation.calibration import DEMONSTRATIONS, SAMPLE, Calibration
from retriever.evaluation.metrics import ndcg
from retriever.ranking.seeding import permutation

_SHARPNESS = 2.0
"""How much more attention a credit of one standard deviation deserves, as a logarithm."""
_PROMPT_SHARPNESS = 6.0
"""The same for the credit of a prompt, which is small (half a deviation for a query that was asked once) and shared."""
_TEMPERATURE = 0.1
"""What cosines are divided by where the embedder's own attention is asked for."""
_ERRORS = 2.0
_FEWEST_ANCHORS = 16
_BLOCK = 32


@dataclass(frozen=True)
class LogSupervision:
    """What a log says should be alike, and how spaces are judged by it.

    Attributes:
        sample: The pool.
        evidence: What the log says.
        fusion: The fusion weight of the index.
    """

    sample: Sample
    evidence: Evidence
    fusion: Calibration

    source = "feedback"

    @property
    def items(self) -> NDArray[np.int64]:
        """The queries that are learned from: those that the log praises or blames something for."""
        return np.array([n for n, one in enumerate(self.evidence.queries) if one.credit.any()], dtype=np.int64)

    def batches(self, items: NDArray[np.int64]) -> LogBatches:
        """What a map is learned from."""
        asked = [self.evidence.queries[number] for number in items.tolist()]
        return LogBatches(self.sample.frozen.queries([one.text for one in asked]), self.sample.frozen.rows(), asked)

    def training(self, items: NDArray[np.int64], settings: FinetuneSettings) -> Training:
        """What a model is fine-tuned on."""
        return pairs(self.sample, [self.evidence.queries[number] for number in items.tolist()], settings)

    def judge(
        self, learn: Learn, *, fixed: Calibration | None, tried: int = FOLDS, shares: Sequence[float] = SHARES
    ) -> Verdict:
        """Whether what is learned is worth having; what the pool itself says is alike must not get worse meanwhile.

        A gain must be above two standard errors: of several shares the best is taken, and a log may be chance.

        The log knows only what was shown, so the fusion weight is chosen by the pool where that says what is alike, and
        stays as it is elsewhere.

        Args:
            learn: From queries to the space that is learned from them; called once for each fold.
            fixed: The fusion weight when it is not to be chosen.
            tried: How many of the `FOLDS` folds are held out.
            shares: How far to go toward what was learned, to choose from.
        """
        items = self.items
        fold_of = permutation(len(items), 0, "", "logged queries") % FOLDS
        spaces = [learn(items[fold_of != number]) for number in range(tried)]
        parts = [(items[fold_of == number][:SAMPLE], space) for number, space in enumerate(spaces)]
        guarded = self._guarded(spaces)
        judged = self._judged(parts)
        fixed = self.fusion if guarded is None else fixed
        return judge(judged, guarded=guarded, weighed=guarded, fixed=fixed, shares=shares, errors=_ERRORS)

    def _judged(self, parts: Sequence[tuple[NDArray[np.int64], Space]]) -> Measure:
        telling = sum(one.tells_apart for one in self.evidence.queries)
        if 2 * telling > len({one.query for one in self.evidence.prompts}):

            def rankings(share: float, weights: Sequence[float]) -> NDArray[np.float64]:
                return np.concatenate([self._rankings(items, space, share, weights) for items, space in parts])

            return Measure(f"logged nDCG@{DEMONSTRATIONS}", "queries", rankings)

        def concordance(share: float, weights: Sequence[float]) -> NDArray[np.float64]:
            return self._standings(parts, share, weights).by_query()

        return Measure("logged concordance", "queries", concordance)

    def _guarded(self, spaces: Sequence[Space]) -> Measure | None:
        aim = aim_of(self.sample.examples)
        if aim is None:
            return None
        rows = np.flatnonzero(aim.alike.sizes > 0)
        asking = rows[permutation(len(rows), 0, "", "validation")][:SAMPLE]
        everyone = np.ones(len(self.sample), dtype=np.bool_)
        parts = [Fold(asking[n :: len(spaces)].tolist(), everyone, space) for n, space in enumerate(spaces)]
        return pool_measure(self.sample, parts, aim.judged)

    def _rankings(
        self, items: NDArray[np.int64], space: Space, share: float, weights: Sequence[float]
    ) -> NDArray[np.float64]:
        """For each held-out query the nDCG of its judged demonstrations in the order of their fused scores.

        What was not judged is left out of the order (condensed lists, Sakai 2007): the log knows nothing of it.
        """
        asked = [one for one in (self.evidence.queries[n] for n in items.tolist()) if one.tells_apart]
        fused = self._fused(asked, [one.rows for one in asked], space, share, weights)
        return np.array([[_ranked(one, scores) for scores in each] for one, each in zip(asked, fused, strict=True)])

    def _standings(
        self, parts: Sequence[tuple[NDArray[np.int64], Space]], share: float, weights: Sequence[float]
    ) -> Standings:
        """Where each held-out prompt stands at each weight, among those of its part.

        A prompt stands where the mean fused score of its demonstrations puts it, which is relative to the best one of
        the pool for its query: how much of what was shown would be shown again.
        """
        shown: list[Shown] = []
        places: list[NDArray[np.float64]] = []
        numbers: list[int] = []
        for number, (items, space) in enumerate(parts):
            here = set(items.tolist())
            prompts = [one for one in self.evidence.prompts if one.query in here]
            asked = [self.evidence.queries[one.query] for one in prompts]
            fused = self._fused(asked, [one.rows for one in prompts], space, share, weights)
            shown += prompts
            places += [each.mean(axis=1) for each in fused]
            numbers += [number] * len(prompts)
        return Standings(
            np.array([one.score for one in shown], dtype=np.float64),
            np.array([one.query for one in shown], dtype=np.int64),
            np.array(numbers, dtype=np.int64),
            np.array(places, dtype=np.float64).reshape(len(shown), len(weights)),
        )

    def _fused(
        self,
        asked: Sequence[Asked],
        rows: Sequence[NDArray[np.int64]],
        space: Space,
        share: float,
        weights: Sequence[float],
    ) -> list[NDArray[np.float64]]:
        """For each query the fused scores of some rows at each weight, shape (weights, rows)."""
        space = space if share else self.sample.frozen
        index = HybridIndex(DenseIndex([Segment.of(space.rows(share))]), self.sample.lexical)
        texts = [one.text for one in asked]
        queries = self.sample.queries(texts, space.queries(texts, share))
        found = []
        for start in range(0, len(queries), _BLOCK):
            block = slice(start, start + _BLOCK)
            for scores, wanted in zip(index.score(queries[block]), rows[block], strict=True):
                each = [index.describe(scores, wanted, Fusion(weight=weight)).fused for weight in weights]
                found.append(np.stack(each))
        return found


def _ranked(asked: Asked, fused: NDArray[np.float64]) -> float:
    order = np.lexsort((asked.rows, -fused))
    grades = dict(zip(map(str, asked.rows.tolist()), asked.gains.tolist(), strict=True))
    return ndcg([str(row) for row in asked.rows[order].tolist()], grades, DEMONSTRATIONS)


class LogBatches:
    """Batches of queries that are anchors to the demonstrations that some of them were shown.

    Args:
        queries: Their vectors, shape (queries, dim).
        rows: The vectors of the pool, shape (pool, dim).
        asked: What the log says of each query.
    """

    def __init__(self, queries: Vectors, rows: Vectors, asked: Sequence[Asked]) -> None:
        self._queries = queries
        self._rows = rows
        self._asked = asked
        self._judged = sum(len(one.rows) for one in asked)

    def __len__(self) -> int:
        return len(self._asked)

    def batch(self, step: int, size: int, seed: int) -> Batch:
        """Queries in a new order each time that all have been used; about `size` vectors with their demonstrations."""
        each = self._judged / len(self) + 1
        anchors = min(max(int(size / each), _FEWEST_ANCHORS), len(self))
        epoch, place = divmod(step, max(len(self) // anchors, 1))
        order = permutation(len(self), seed, str(epoch), "adaptation")[place * anchors : (place + 1) * anchors]
        asked = [self._asked[number] for number in order.tolist()]
        rows = np.unique(np.concatenate([one.rows for one in asked]))
        vectors = np.concatenate([self._queries[order], self._rows[rows]])
        targets = np.zeros((anchors, len(vectors)), dtype=np.float32)
        allowed = np.zeros(targets.shape, dtype=np.bool_)
        attention = self._queries[order] @ self._rows[rows].T / _TEMPERATURE
        for anchor, one in enumerate(asked):
            own = np.searchsorted(rows, one.rows)
            spread, open_ = _spread(attention[anchor], own, one)
            targets[anchor, anchors:] = spread
            allowed[anchor, anchors:] = open_
        return Batch(vectors, targets, allowed)


def _spread(attention: NDArray[np.float32], own: NDArray[np.intp], asked: Asked) -> tuple[Targets, NDArray[np.bool_]]:
    """How a query's attention should be spread over the rows of a batch, and which of them it may go to."""
    open_ = np.full(len(attention), not asked.closed)
    open_[own] = True
    logits = np.zeros(len(attention)) if asked.closed else attention.astype(np.float64)
    logits[own] += (_SHARPNESS if asked.closed else _PROMPT_SHARPNESS) * asked.credit
    weights = np.where(open_, np.exp(logits - logits[open_].max()), 0.0)
    targets: Targets = (weights / weights.sum()).astype(np.float32)
    return targets, open_

"""Validation: whether what was learned, a map or a model, helps on examples that it has not seen.

The pool is cut into folds by key text. For each, a map is learned from the other folds, and examples of the fold ask
for their neighbours among these: what a new query would get from the examples that were learned from. How far to go
from the identity toward the map is chosen so, and so is the fusion weight; a map that was fitted to the examples that
judge it would look better than it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from indexes.channels import Query
from indexes.dense import DenseIndex, Segment
from indexes.hybrid import HybridIndex
from retriever.adaptation.sample import Sample
from retriever.adaptation.spaces import Space
from retriever.errors import InvalidInput
from retriever.evaluation.calibration import GRID, SAMPLE, Calibration, Objective, best_weight, utilities
from retriever.evaluation.results import rounded
from retriever.example import Json
from retriever.ranking.seeding import permutation

Rows: TypeAlias = NDArray[np.int64]
Learn: TypeAlias = Callable[[Rows], Space]
"""From rows to the space that is learned from them."""

FOLDS = 3
SHARES = (0.25, 0.5, 0.75, 1.0)
TOLERATED = 0.005
_DENSE = (1.0,)


@dataclass(frozen=True)
class Fold:
    """A part that is held out.

    Attributes:
        rows: The examples of it that ask.
        others: Which rows answer: those that are not of it, bool, shape (pool,).
        space: What was learned from the rest.
    """

    rows: list[int]
    others: NDArray[np.bool_]
    space: Space


@dataclass(frozen=True)
class Measure:
    """Something that spaces are compared by.

    Attributes:
        name: What it is called in results.
        items: What it calls what is held out, such as `examples`.
        values: From the share of the way toward what was learned, and fusion weights, to the value of each held-out
            item at each weight, shape (items, weights); the items and their order are always the same.
    """

    name: str
    items: str
    values: Callable[[float, Sequence[float]], NDArray[np.float64]]


@dataclass(frozen=True)
class Compared:
    """A metric on the held-out examples, before and after.

    Attributes:
        metric: Its name.
        before: Its mean with the embedder's own vectors.
        after: Its mean with those of the learned map or model.
        error: The standard error of the difference, paired by example.
    """

    metric: str
    before: float
    after: float
    error: float

    @classmethod
    def of(cls, metric: str, before: NDArray[np.float64], after: NDArray[np.float64]) -> Compared:
        """From the values of each example, in the same order."""
        error = (after - before).std(ddof=1) / np.sqrt(len(before)) if len(before) > 1 else np.inf
        return cls(metric, float(before.mean()), float(after.mean()), float(error))

    def to_dict(self) -> dict[str, Json]:
        """For the manifest and JSON output; what no example could be compared by has no figures."""
        return {
            "metric": self.metric,
            "before": rounded(self.before),
            "after": rounded(self.after),
            "error": rounded(self.error),
        }

    @property
    def gain(self) -> float:
        """How much more there is after than before."""
        return self.after - self.before


def folds(sample: Sample, rows: Rows, learn: Learn, tried: int = FOLDS) -> list[Fold]:
    """Cuts the pool by key text and learns from what is outside each part.

    Args:
        sample: The pool.
        rows: Those that have something to compare.
        learn: From rows to the space that is learned from them.
        tried: How many of the `FOLDS` parts are held out, each at the price of learning once.
    """
    fold_of = permutation(int(sample.copies.max()) + 1, 0, "", "folds") % FOLDS
    asking = rows[fold_of[sample.copies[rows]] < tried]
    order = asking[permutation(len(asking), 0, "", "validation")][:SAMPLE]
    return [
        Fold(
            order[fold_of[sample.copies[order]] == number].tolist(),
            fold_of[sample.copies] != number,
            learn(rows[fold_of[sample.copies[rows]] != number]),
        )
        for number in range(tried)
    ]


def pool_measure(sample: Sample, parts: Sequence[Fold], judged: Objective) -> Measure:
    """How well what the pool's own examples retrieve matches them.

    Args:
        sample: The pool.
        parts: Who asks whom, and by what.
        judged: What a match is.
    """

    def values(share: float, weights: Sequence[float]) -> NDArray[np.float64]:
        return np.concatenate([_matches(sample, part, share, judged, weights) for part in parts])

    return Measure(judged.name, "examples", values)


def _matches(
    sample: Sample, part: Fold, share: float, judged: Objective, weights: Sequence[float]
) -> NDArray[np.float64]:
    def queries(rows: Sequence[int]) -> list[Query]:
        texts = sample.asked(rows)
        return sample.queries(texts, space.queries(texts, share))

    space = part.space if share else sample.frozen
    index = HybridIndex(DenseIndex([Segment.of(space.rows(share))]), sample.lexical, part.others)
    _, values = utilities(
        index, part.rows, judged, examples=sample.some, queries=queries, copies=sample.copies, weights=weights
    )
    return values


@dataclass(frozen=True)
class Verdict:
    """Whether what was learned is worth having.

    Attributes:
        kept: Whether it is.
        share: How far to go toward it.
        compared: What was compared at this share, the fusion calibrated before and after; the dense channel by what is
            judged comes first, the hybrid second.
        calibration: The fusion weight that goes with it.
        sample: How many items were held out.
        items: What these are.
    """

    kept: bool
    share: float
    compared: tuple[Compared, ...]
    calibration: Calibration
    sample: int
    items: str


def judge(
    judged: Measure,
    *,
    guarded: Measure | None = None,
    weighed: Measure | None = None,
    fixed: Calibration | None = None,
    shares: Sequence[float] = SHARES,
    errors: float = 1.0,
) -> Verdict:
    """Finds how far to go toward what was learned, and whether that helps.

    It helps when the hybrid, each time at its own best weight, gains more than its standard error, and no channel and
    nothing guarded loses more than is tolerated.

    One standard error is no proof: the best of several shares is judged, at its own best weight. Of 65 pools of 300
    examples with four labels drawn at random 13 got a map, and two would have at two errors. It is one all the same
    where a pool teaches, since gains of a few thousandths, as outputs of programs bring, are hardly ever beyond two.

    Args:
        judged: What is to get better.
        guarded: What must not get worse meanwhile.
        weighed: What the fusion weight is chosen by; None for `judged`.
        fixed: The fusion weight when it is not to be chosen.
        shares: How far to go, to choose from.
        errors: How many standard errors the gain has to be above.

    Raises:
        InvalidInput: Nothing that is held out can be compared.
    """
    weights = GRID if fixed is None else (fixed.weight,)
    choosing = weighed or judged
    before = _Values.of(judged, guarded, choosing, 0, weights)
    if not len(before.judged):
        raise InvalidInput(
            f"no held-out {judged.items} whose {judged.name} could be compared", expected="more outcomes that differ"
        )
    base = before.choose(before.everywhere())
    dense = judged.values(0, _DENSE)[:, 0]
    moved = {share: judged.values(share, _DENSE)[:, 0] for share in shares}
    # Stable: of equal ones the greater change comes last.
    for share in sorted(shares, key=lambda share: -float(moved[share].mean())):
        after = _Values.of(judged, guarded, choosing, share, weights)
        allowed = after.not_below(before, base)
        place = after.choose(allowed if allowed.any() else after.everywhere())
        compared = (
            Compared.of(f"dense, {judged.name}", dense, moved[share]),
            Compared.of(f"hybrid, {judged.name}", before.judged[:, base], after.judged[:, place]),
            *_costs(guarded, share),
            *after.cost(before, base, place),
        )
        helps = compared[1].gain > errors * compared[1].error
        kept = bool(allowed.any()) and helps and all(one.gain >= -TOLERATED for one in compared)
        calibration = fixed
        if calibration is None:
            means = tuple(np.round(after.weighed.mean(axis=0), 6).tolist())
            calibration = Calibration(weights[place], choosing.name, len(after.weighed), means)
        verdict = Verdict(
            kept=kept,
            share=share,
            compared=compared,
            calibration=calibration,
            sample=len(after.judged),
            items=judged.items,
        )
        if kept or guarded is None:
            break
    return verdict


def _costs(guarded: Measure | None, share: float) -> list[Compared]:
    if guarded is None:
        return []
    before, after = (guarded.values(one, _DENSE)[:, 0] for one in (0, share))
    return [Compared.of(f"dense, {guarded.name}", before, after)]


@dataclass(frozen=True)
class _Values:
    """The values at each weight, shape (items, weights)."""

    weights: Sequence[float]
    judged: NDArray[np.float64]
    guarded: NDArray[np.float64] | None
    weighed: NDArray[np.float64]
    name: str

    @classmethod
    def of(
        cls, judged: Measure, guarded: Measure | None, weighed: Measure, share: float, weights: Sequence[float]
    ) -> _Values:
        asked = {measure.name: measure for measure in (judged, guarded, weighed) if measure}
        found = {name: measure.values(share, weights) for name, measure in asked.items()}
        watched = None if guarded is None else found[guarded.name]
        return cls(
            weights=weights,
            judged=found[judged.name],
            guarded=watched,
            weighed=found[weighed.name],
            name="" if guarded is None else guarded.name,
        )

    def everywhere(self) -> NDArray[np.bool_]:
        return np.ones(len(self.weights), dtype=np.bool_)

    def choose(self, allowed: NDArray[np.bool_]) -> int:
        return 0 if len(self.weights) == 1 else GRID.index(best_weight(self.weighed, allowed))

    def not_below(self, before: _Values, base: int) -> NDArray[np.bool_]:
        """The weights at which what is guarded is not below what it was."""
        if self.guarded is None or before.guarded is None:
            return self.everywhere()
        allowed: NDArray[np.bool_] = self.guarded.mean(axis=0) >= before.guarded[:, base].mean() - TOLERATED
        return allowed

    def cost(self, before: _Values, base: int, place: int) -> list[Compared]:
        if self.guarded is None or before.guarded is None:
            return []
        return [Compared.of(f"hybrid, {self.name}", before.guarded[:, base], self.guarded[:, place])]

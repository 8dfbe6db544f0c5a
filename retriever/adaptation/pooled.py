"""Supervision by the pool itself: its labels or outputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retriever.adaptation.sample import Sample
from retriever.adaptation.supervision import Aim, OverlapBatches, aim_of
from retriever.adaptation.training import FinetuneSettings, Training, triplets
from retriever.adaptation.validation import FOLDS, SHARES, Learn, Verdict, folds, judge, pool_measure
from retriever.errors import InvalidInput
from retriever.evaluation.calibration import Calibration


@dataclass(frozen=True)
class PoolSupervision:
    """What a pool's labels or outputs say should be alike, and how spaces are judged by them.

    Attributes:
        sample: The pool.
        aim: What is alike in it.
    """

    sample: Sample
    aim: Aim

    @classmethod
    def of(cls, sample: Sample) -> PoolSupervision:
        """What the sample says.

        Raises:
            InvalidInput: It has neither labels nor outputs that differ.
        """
        aim = aim_of(sample.examples)
        if aim is None:
            raise InvalidInput(
                "a pool without labels that repeat and without outputs", expected="either, to learn from"
            )
        return cls(sample, aim)

    @property
    def source(self) -> str:
        """`labels` or `outputs`."""
        return self.aim.judged.name

    @property
    def items(self) -> NDArray[np.int64]:
        """The rows that are learned from: those that have something to compare."""
        return np.flatnonzero(self.aim.sets.sizes > 0)

    def batches(self, items: NDArray[np.int64]) -> OverlapBatches:
        """What a map is learned from."""
        return OverlapBatches(self.sample.frozen.rows(), self.aim.sets, items)

    def training(self, items: NDArray[np.int64], settings: FinetuneSettings) -> Training:
        """What a model is fine-tuned on."""
        return triplets(self.sample, self.aim.sets, items, settings)

    def judge(
        self, learn: Learn, *, fixed: Calibration | None, tried: int = FOLDS, shares: Sequence[float] = SHARES
    ) -> Verdict:
        """Whether what is learned is worth having; outputs that say more than the labels must not get worse meanwhile.

        Args:
            learn: From rows to the space that is learned from them; called once for each fold.
            fixed: The fusion weight when it is not to be chosen.
            tried: How many of the `FOLDS` folds are held out.
            shares: How far to go toward what was learned, to choose from.
        """
        parts = folds(self.sample, self.items, learn, tried)
        guarded = None if self.aim.guarded is None else pool_measure(self.sample, parts, self.aim.guarded)
        return judge(pool_measure(self.sample, parts, self.aim.judged), guarded=guarded, fixed=fixed, shares=shares)

"""Supervision by the pool itself: its labels or outputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retriever.adaptation.sample import Sample
from retriever.adaptation.supervision import Aim, Embed, OverlapBatches, aim_by, aim_of
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
    def of(cls, sample: Sample, source: str | None, embed: Embed) -> PoolSupervision:
        """What the sample says.

        Args:
            sample: The pool.
            source: What of it, one of `SOURCES`; None for labels, else outputs.
            embed: From texts to unit vectors.

        Raises:
            InvalidInput: It has not what is to be learned from, or there is no such source.
        """
        aim = aim_of(sample.examples) if source is None else aim_by(source, sample.examples, embed)
        if aim is None:
            wanted = {None: "either", "labels": "such labels"}.get(source, "outputs")
            raise InvalidInput(
                "a pool without labels that repeat and without outputs", expected=f"{wanted}, to learn from"
            )
        return cls(sample, aim)

    @property
    def source(self) -> str:
        """One of `SOURCES`."""
        return self.aim.source

    @property
    def items(self) -> NDArray[np.int64]:
        """The rows that are learned from: those that have something to compare."""
        return np.flatnonzero(self.aim.alike.sizes > 0)

    def batches(self, items: NDArray[np.int64]) -> OverlapBatches:
        """What a map is learned from."""
        return OverlapBatches(self.sample.frozen.rows(), self.aim.alike, items)

    def training(self, items: NDArray[np.int64], settings: FinetuneSettings) -> Training:
        """What a model is fine-tuned on."""
        return triplets(self.sample, self.aim.alike, items, settings)

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

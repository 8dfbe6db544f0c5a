"""Training data: what a model is fine-tuned on, as texts.

The pool gives triplets: an example as a query, one that is alike, and one that shares its words and is not alike, the
nearest by BM25 (hard negatives, as Karpukhin et al. 2020 take them). The loss also takes the other triplets of a batch
for negatives, so no batch holds two that are alike. A log gives pairs of a query and a demonstration with its credit.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from retriever.adaptation.evidence import Asked
from retriever.adaptation.sample import Sample
from retriever.adaptation.supervision import SHARPNESS, Likeness
from retriever.errors import InvalidInput
from retriever.ranking.seeding import permutation

Rows = NDArray[np.int64]

Triplet = tuple[int, int, int]

_BLOCK = 64
_FILLING = 32
"""Batches that are filled at the same time; beyond, the oldest stays short."""


@dataclass(frozen=True)
class FinetuneSettings:
    """How a model is fine-tuned.

    Attributes:
        epochs: How often each example is a query.
        examples: The most examples or pairs of an epoch.
        batch: The most triplets or pairs of a step.
        rate: The largest step size; it rises to it and falls to zero.
        warmup: The share of the steps in which it rises.
        seed: Of the data and of the dropout.

    Raises:
        InvalidInput: A number out of range.
    """

    epochs: int = 1
    examples: int = 5_000
    batch: int = 32
    rate: float = 5e-5
    warmup: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.epochs, self.examples) < 1 or self.batch < 2 or self.rate <= 0 or not 0 <= self.warmup < 1:
            raise InvalidInput(
                f"epochs {self.epochs}, examples {self.examples}, batch {self.batch}, rate {self.rate} "
                f"or warmup {self.warmup}",
                expected="at least 1, 1 and 2, more than 0, and 0 to 1",
            )


@dataclass(frozen=True)
class Training:
    """Texts to learn from.

    Attributes:
        queries: Of each entry.
        examples: Columns of the texts of examples: the alike ones and those that are not; or one column, with scores.
        batches: The entries of each step, in order.
        scores: Of each entry, more is more alike; None for triplets.
    """

    queries: Sequence[str]
    examples: Sequence[Sequence[str]]
    batches: Sequence[Sequence[int]]
    scores: Sequence[float] | None = field(default=None)


def triplets(sample: Sample, alike: Likeness, rows: Rows, settings: FinetuneSettings) -> Training:
    """What rows say of each other.

    Args:
        sample: The pool.
        alike: What is alike in it.
        rows: Those that may be used.
        settings: How many, in which batches.
    """
    found: list[Triplet] = []
    batches: list[list[int]] = []
    for epoch in range(settings.epochs):
        order = rows[permutation(len(rows), settings.seed, str(epoch), "anchors")][: settings.examples]
        first = len(found)
        for start in range(0, len(order), _BLOCK):
            found += _triplets(sample, alike, rows, order[start : start + _BLOCK], f"{settings.seed} {epoch}")
        batches += _apart(alike, found, range(first, len(found)), settings.batch)
    examples = [[sample.texts[one[place]] for one in found] for place in (1, 2)]
    return Training(sample.asked([anchor for anchor, _, _ in found]), examples, batches)


def _triplets(sample: Sample, alike: Likeness, rows: Rows, anchors: Rows, name: str) -> list[Triplet]:
    """For each anchor one that is alike and one that is not; none where there is no such."""
    overlap = alike.overlap(anchors, rows)
    lexical = sample.lexical.block([tuple(sample.analyze(text)) for text in sample.asked(anchors.tolist())])
    found = []
    for anchor, near, scores in zip(anchors.tolist(), overlap, lexical[:, rows], strict=True):
        other = sample.copies[rows] != sample.copies[anchor]
        # The Gumbel-max trick: a draw from the softmax by which a map's attention is spread.
        draw = np.where(other & (near > 0), SHARPNESS * near + _gumbel(len(rows), f"{name} {anchor}"), -np.inf)
        positive = int(draw.argmax())
        unlike = np.where(other & (near < near[positive] / 2), scores, -np.inf)
        negative = int(unlike.argmax())
        if draw[positive] > -np.inf and unlike[negative] > -np.inf:
            found.append((anchor, int(rows[positive]), int(rows[negative])))
    return found


def _gumbel(count: int, name: str) -> NDArray[np.float64]:
    digest = hashlib.blake2b(name.encode(), digest_size=16).digest()
    raw = np.random.PCG64(int.from_bytes(digest, "big")).random_raw(count)
    uniform = ((raw >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    noise: NDArray[np.float64] = -np.log(-np.log(uniform))
    return noise


def _apart(alike: Likeness, found: Sequence[Triplet], entries: Sequence[int], most: int) -> list[list[int]]:
    """Batches in which no anchor is as much alike to another as to its own positive."""
    done: list[list[int]] = []
    filling: list[list[int]] = []
    for entry in entries:
        anchor, positive, _ = found[entry]
        own = float(alike.overlap(np.array([anchor]), np.array([positive]))[0, 0])
        for batch in filling:
            others = np.array([found[one][0] for one in batch])
            if alike.overlap(np.array([anchor]), others).max() < own:
                batch.append(entry)
                break
        else:
            filling.append(batch := [entry])
        if len(batch) == most or len(filling) > _FILLING:
            full = batch if len(batch) == most else filling[0]
            filling.remove(full)
            done.append(full)
    return done + filling


def pairs(sample: Sample, asked: Sequence[Asked], settings: FinetuneSettings) -> Training:
    """What a log says of queries and demonstrations.

    Args:
        sample: The pool.
        asked: The queries of the log.
        settings: How many, in which batches.
    """
    entries = [(one.text, int(row), float(c)) for one in asked for row, c in zip(one.rows, one.credit, strict=True)]
    order: list[int] = []
    batches: list[list[int]] = []
    for epoch in range(settings.epochs):
        drawn = permutation(len(entries), settings.seed, str(epoch), "pairs")[: settings.examples].tolist()
        places = range(len(order), len(order) + len(drawn))
        batches += [list(places[start : start + settings.batch]) for start in range(0, len(drawn), settings.batch)]
        order += drawn
    chosen = [entries[number] for number in order]
    return Training(
        [text for text, _, _ in chosen],
        [[sample.texts[row] for _, row, _ in chosen]],
        batches,
        [credit for _, _, credit in chosen],
    )

"""Learning the map: gradient descent on a contrastive loss, from the identity.

Each anchor of a batch distributes its attention over the other rows by a softmax of their cosines, and the loss is the
cross entropy with how attention should be distributed (supervised contrastive learning, Khosla et al. 2020; target
similarity tuning, Poesia et al. 2022, is the precedent for outputs). The penalty pulls toward the identity, which is
what the embedder knew.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from retriever.adaptation.linear_map import Matrix, Vectors, on_grid
from retriever.errors import InvalidInput
from retriever.listening import Steps

Targets = NDArray[np.float32]

KINDS = ("linear", "low-rank", "per-dimension")
_RANK = 32
_MOMENTS = 0.9, 0.999
_EPSILON = 1e-8
_START = 0.01


@dataclass(frozen=True)
class LearnerSettings:
    """How a map is learned.

    Attributes:
        kind: `linear` (any matrix), `low-rank` (a diagonal and 32 directions) or `per-dimension` (a diagonal).
        steps: Steps of descent.
        batch: Rows of a step.
        rate: The first step size; it falls to zero along a cosine.
        temperature: What cosines are divided by in the softmax.
        penalty: Of the squared distance from the identity.
        noise: Variance of the noise on a batch's vectors, times the number of rows that are learned from: few rows
            need more of it.
        seed: Of the batches, the noise and the start of `low-rank`.

    Raises:
        InvalidInput: The kind is unknown or a number is not positive.
    """

    kind: str = "linear"
    steps: int = 600
    batch: int = 256
    rate: float = 1e-3
    temperature: float = 0.1
    penalty: float = 1e-4
    noise: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InvalidInput(f"kind {self.kind!r}", expected=f"one of {', '.join(KINDS)}")
        if min(self.steps, self.batch) < 1 or min(self.rate, self.temperature) <= 0:
            raise InvalidInput("steps, batch, rate or temperature of the learner", expected="more than 0")
        if min(self.penalty, self.noise) < 0:
            raise InvalidInput("penalty or noise of the learner", expected="0 or more")


@dataclass(frozen=True)
class Batch:
    """What one step learns from.

    Attributes:
        vectors: Unit rows, the anchors first, shape (rows, dim).
        targets: For each anchor how its attention should be spread over the rows; each row of it adds up to 1, or is
            all zero when the anchor says nothing; 0 wherever `allowed` is not. Shape (anchors, rows).
        allowed: Which rows an anchor can attend to, bool, shape (anchors, rows).
    """

    vectors: Vectors
    targets: Targets
    allowed: NDArray[np.bool_]


class Batches(Protocol):
    """Where batches come from."""

    def __len__(self) -> int:
        """How many rows there are to learn from."""

    def batch(self, step: int, size: int, seed: int) -> Batch:
        """The batch of a step, the same whenever it is asked for."""


def contrastive(matrix: Matrix, batch: Batch, temperature: float) -> tuple[float, Matrix]:
    """The loss of a batch and its gradient.

    With Z the mapped unit rows, S = Z_anchors Z^T / t and Q its softmax over the allowed rows, the loss is the mean
    over anchors that say something of - sum_j P_ij log Q_ij, and dL/dS = Q - P.

    Args:
        matrix: Shape (dim, dim).
        batch: What to learn from.
        temperature: t.

    Returns:
        The loss, and its gradient by the matrix, shape (dim, dim).
    """
    speaking = batch.targets.any(axis=1, keepdims=True)
    count = max(int(speaking.sum()), 1)
    sent = batch.vectors @ matrix.T
    lengths = np.maximum(np.linalg.norm(sent, axis=1, keepdims=True), 1e-12)
    unit = sent / lengths
    anchors = unit[: len(batch.targets)]
    scores = np.where(batch.allowed, anchors @ unit.T / temperature, -np.inf)
    scores -= scores.max(axis=1, keepdims=True, initial=-1e30)
    attention = np.exp(scores)
    totals = np.maximum(attention.sum(axis=1, keepdims=True), 1e-30)
    logarithms = np.where(batch.allowed, scores - np.log(totals), 0.0)
    loss = -float((batch.targets * logarithms).sum()) / count
    by_score = np.where(speaking, attention / totals - batch.targets, 0.0) / (count * temperature)
    by_unit = by_score.T @ anchors
    by_unit[: len(anchors)] += by_score @ unit
    by_sent = (by_unit - unit * (unit * by_unit).sum(axis=1, keepdims=True)) / lengths
    return loss, by_sent.T @ batch.vectors


def learn(batches: Batches, dim: int, settings: LearnerSettings, progress: Steps) -> Matrix:
    """Learns a map.

    One thread multiplies, so on one machine and with one NumPy the same input gives the same map, whatever number of
    threads is set; on another machine the last bits may differ.

    Args:
        batches: What to learn from.
        dim: Components of a vector.
        settings: How.
        progress: Told how many steps are done, and how many there are.

    Returns:
        Shape (dim, dim), on the grid that `mapped` needs; the identity when there is nothing to learn from.

    Raises:
        InvalidInput: The steps led to a matrix out of bounds.
    """
    if not len(batches):
        return on_grid(np.eye(dim))
    from threadpoolctl import threadpool_limits

    with threadpool_limits(limits=1, user_api="blas"):
        return on_grid(_descended(batches, dim, settings, progress))


def _descended(batches: Batches, dim: int, settings: LearnerSettings, progress: Steps) -> Matrix:
    shape = _SHAPES[settings.kind](dim, settings.seed)
    identity = np.eye(dim, dtype=np.float32)
    descent = _Adam(shape.parameters, settings)
    deviation = math.sqrt(settings.noise / len(batches))
    for step in range(settings.steps):
        batch = batches.batch(step, settings.batch, settings.seed)
        matrix = shape.matrix()
        noisy = batch.vectors + np.float32(deviation) * _noise(batch.vectors.shape, step, settings.seed)
        _, gradient = contrastive(matrix, Batch(noisy, batch.targets, batch.allowed), settings.temperature)
        descent.step(shape.pulled_back(gradient + 2 * settings.penalty * (matrix - identity)))
        progress(step + 1, settings.steps)
    return shape.matrix()


def _noise(shape: tuple[int, ...], step: int, seed: int) -> Vectors:
    """Uniform noise of variance 1; the raw stream of PCG64 is the same in every version of NumPy."""
    raw = np.random.PCG64([seed, step]).random_raw(math.prod(shape) // 2 + 1).view(np.uint32)[: math.prod(shape)]
    uniform = (raw.astype(np.float32) * np.float32(2.0**-31) - 1) * np.float32(math.sqrt(3))
    return uniform.reshape(shape)


class _Linear:
    """Any matrix."""

    def __init__(self, dim: int, seed: int) -> None:
        self.parameters = [np.eye(dim, dtype=np.float32)]

    def matrix(self) -> Matrix:
        return self.parameters[0]

    def pulled_back(self, gradient: Matrix) -> list[Matrix]:
        return [gradient]


class _PerDimension:
    """A diagonal."""

    def __init__(self, dim: int, seed: int) -> None:
        self.parameters = [np.ones(dim, dtype=np.float32)]

    def matrix(self) -> Matrix:
        return np.diag(self.parameters[0])

    def pulled_back(self, gradient: Matrix) -> list[NDArray[np.float32]]:
        return [np.diag(gradient)]


class _LowRank:
    """A diagonal d and directions: diag(d) + A B^T, with B zero and A small noise at the start."""

    def __init__(self, dim: int, seed: int) -> None:
        rank = min(_RANK, dim)
        first = np.float32(_START) * _noise((dim, rank), -1 % 2**32, seed)
        self.parameters = [np.ones(dim, np.float32), first, np.zeros((dim, rank), np.float32)]

    def matrix(self) -> Matrix:
        diagonal, left, right = self.parameters
        return np.diag(diagonal) + left @ right.T

    def pulled_back(self, gradient: Matrix) -> list[NDArray[np.float32]]:
        _, left, right = self.parameters
        return [np.diag(gradient), gradient @ right, gradient.T @ left]


class _Shape(Protocol):
    parameters: list[NDArray[np.float32]]

    def matrix(self) -> Matrix: ...

    def pulled_back(self, gradient: Matrix) -> list[NDArray[np.float32]]: ...


_SHAPES: dict[str, Callable[[int, int], _Shape]] = {
    "linear": _Linear,
    "low-rank": _LowRank,
    "per-dimension": _PerDimension,
}


class _Adam:
    """Adam (Kingma and Ba 2015) whose step size falls to zero along a cosine."""

    def __init__(self, parameters: list[NDArray[np.float32]], settings: LearnerSettings) -> None:
        self._parameters = parameters
        self._settings = settings
        self._means = [np.zeros_like(one) for one in parameters]
        self._squares = [np.zeros_like(one) for one in parameters]
        self._done = 0

    def step(self, gradients: list[NDArray[np.float32]]) -> None:
        """Changes the parameters in place."""
        first, second = _MOMENTS
        rate = self._settings.rate * 0.5 * (1 + math.cos(math.pi * self._done / self._settings.steps))
        self._done += 1
        unbiased = rate / (1 - first**self._done)
        spread = 1 / math.sqrt(1 - second**self._done)
        for parameter, mean, square, gradient in zip(
            self._parameters, self._means, self._squares, gradients, strict=True
        ):
            mean += (1 - first) * (gradient - mean)
            square += (1 - second) * (gradient * gradient - square)
            parameter -= unbiased * mean / (np.sqrt(square) * spread + _EPSILON)

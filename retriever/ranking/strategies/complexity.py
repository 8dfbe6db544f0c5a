"""Complexity as a prior: demonstrations with more reasoning steps teach more (Fu et al. 2023, "complexity-based").

It helps on arithmetic and algorithmic tasks with rationales; on commonsense tasks similarity does better. The prior is
static: it depends on the example, not on the query.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from retriever.errors import InvalidInput
from retriever.example import Example
from retriever.ranking.strategies.base import Candidates, Strategy
from retriever.ranking.strategies.picks import (
    NONE,
    Picks,
    Reals,
    check_range,
    check_relevance,
    first_best,
    picks,
    scaled,
)

# A full stop inside a number or a word (3.5, e.g) is not followed by white space.
_SENTENCE_END = re.compile(r"[.!?]+(?=\s|$)|[。！？]+")


def steps(rationale: str) -> int:
    """How many steps a rationale has: its lines that say something; its sentences where it is one line.

    A text that ends without a full stop counts as ending with one. An empty text has no steps.
    """
    lines = [line for line in rationale.splitlines() if line.strip()]
    if len(lines) != 1:
        return len(lines)
    return sum(1 for sentence in _SENTENCE_END.split(lines[0]) if sentence.strip())


def complexities(rationales: Sequence[str | None], inputs: Sequence[str]) -> Reals:
    """How complex each example is: the steps of its rationale; without any rationale among them, the input's words.

    The two are never mixed, as they do not compare: where some examples have a rationale, one without has no steps.

    Args:
        rationales: The rationale of each of the m examples, None where there is none.
        inputs: The input text of each.

    Returns:
        Float64, shape (m,).

    Raises:
        InvalidInput: There are not as many inputs as rationales.
    """
    if len(inputs) != len(rationales):
        raise InvalidInput(f"{len(inputs)} inputs", expected=f"{len(rationales)}, one for each rationale")
    if any(rationales):
        return np.array([steps(text) if text else 0 for text in rationales], dtype=np.float64)
    return np.array([len(text.split()) for text in inputs], dtype=np.float64)


def complexity(relevance: Reals, complexities: Reals, k: int, *, weight: float = 0.5) -> Picks:
    """Picks the candidates with the largest weight · complexity + (1 − weight) · relevance, both mapped to 0 … 1.

    Args:
        relevance: Shape (m,), float64.
        complexities: How complex each candidate is, shape (m,), float64.
        k: How many, at most.
        weight: The share of complexity, 0 to 1. At 1 the most complex of the candidates are chosen, as in the paper
            (there of the whole pool); at 0 the most relevant.

    Returns:
        The picks. A gain is the value above. Nothing is traded: `against` is none.

    Raises:
        InvalidInput: A shape or setting that cannot be used.
    """
    check_relevance(relevance, k, len(complexities))
    check_range("weight", weight, 0.0, 1.0)
    if not np.isfinite(complexities).all():
        raise InvalidInput("complexities that are not finite", expected="finite numbers")
    value = weight * scaled(complexities, "min-max") + (1.0 - weight) * scaled(relevance, "min-max")
    places: list[int] = []
    left = value.copy()
    for _ in range(min(k, len(value))):
        places.append(first_best(left))
        left[places[-1]] = -np.inf
    return picks(places, value[places].tolist(), [NONE] * len(places))


@dataclass(frozen=True)
class ComplexityOptions:
    """See `complexity`.

    Attributes:
        weight: The share of complexity, 0 to 1; the rest is that of relevance.
    """

    weight: float = 0.5

    def __post_init__(self) -> None:
        check_range("weight", self.weight, 0.0, 1.0)


def complexities_of(examples: Sequence[Example]) -> Reals:
    """How complex each example is; see `complexities`."""
    return complexities([example.rationale for example in examples], [example.input_text for example in examples])


def _pick(candidates: Candidates, k: int, options: ComplexityOptions) -> Picks:
    return complexity(candidates.relevance, complexities_of(candidates.examples), k, weight=options.weight)


COMPLEXITY = Strategy(pick=_pick, options=ComplexityOptions)

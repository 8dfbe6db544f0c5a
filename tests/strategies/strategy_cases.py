"""Small cases for the selection strategies: exact numbers, with copies, ties, zero vectors, and more wanted than there.

All components are multiples of 2⁻²⁰, so float32 holds them and an oracle in fractions sees the same numbers.
"""

from fractions import Fraction
from itertools import product

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st

TIE = Fraction(1, 10**6)
many = settings(max_examples=200)
some = settings(max_examples=60)

# The 24 unit quaternions of Hurwitz: cosines among them are 0, ±1/2 and ±1, so ties abound.
_AXES = [tuple(sign * (i == axis) for i in range(4)) for axis in range(4) for sign in (1.0, -1.0)]
_HALVES = list(product((0.5, -0.5), repeat=4))
ZERO = (0.0, 0.0, 0.0, 0.0)


def _unit(whole):
    array = np.array(whole, dtype=np.float64)
    return tuple((np.rint(array / np.linalg.norm(array) * 2**20) / 2**20).tolist())


_generic = st.tuples(*[st.integers(-50, 50)] * 4).filter(any).map(_unit)
vectors = st.one_of(st.sampled_from([*_AXES, *_HALVES, ZERO]), _generic)
wanted = st.integers(0, 12)
shares = st.integers(0, 8).map(lambda eighths: eighths / 8)


@st.composite
def matrices(draw, most=9):
    """Up to `most` unit or zero vectors, drawn from fewer distinct ones."""
    distinct = draw(st.lists(vectors, min_size=1, max_size=5))
    rows = draw(st.lists(st.sampled_from(distinct), max_size=most))
    return np.array(rows, dtype=np.float32).reshape(len(rows), 4)


@st.composite
def ranked(draw, most=9):
    """Candidates: relevance in eighths, best first or as it comes, and their vectors."""
    matrix = draw(matrices(most))
    relevance = draw(st.lists(st.integers(-8, 8), min_size=len(matrix), max_size=len(matrix)))
    if draw(st.booleans()):
        relevance.sort(reverse=True)
    return np.array(relevance, dtype=np.float64) / 8, matrix


def fractions(matrix):
    return [[Fraction(float(x)) for x in row] for row in matrix]


def dot(a, b):
    return sum((x * y for x, y in zip(a, b, strict=True)), Fraction(0))


def first_best(gains):
    """From {place: gain} to the lowest place that is the best or ties with it."""
    best = max(gains.values())
    return min(place for place, gain in gains.items() if gain >= best - TIE)


def is_selection(places, count, k):
    """Whether these are min(k, count) different places."""
    return len(places) == len(set(places)) == min(k, count) and set(places) <= set(range(count))


def gaussian(count, dimensions, seed=0):
    """Unit vectors in general position, float32."""
    rows = np.random.default_rng(seed).normal(size=(count, dimensions))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)

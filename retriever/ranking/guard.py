"""The leak guard: which examples would give away the query's answer.

In production an example equal to the query is the best demonstration there is; in evaluation it is the answer. Levels,
each including those before it:

    off          nothing is left out
    self         the example with the query's own id
    exact        the same input
    normalised   the same input after folding case, compatibility forms, punctuation and white space
    near         the same words in any order, or character 4-grams alike by at least the threshold (Jaccard)

`near` compares texts, not embeddings, so that it means the same whatever embedder the index was built with.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache

from indexes.analyzers import character_ngrams
from retriever.example import Example
from retriever.ranking.where import equal

LEVELS = ("off", "self", "exact", "normalised", "near")

_SPACE = re.compile(r"\s+")
_NOT_WORD = re.compile(r"[\W_]")
_SIGNS = frozenset("+<=>")


@dataclass(frozen=True)
class Guard:
    """Which examples count as giving away the query's answer.

    Attributes:
        level: `off`, `self` (the query's own id), `exact`, `normalised` or `near`; each includes those before it.
        threshold: Similarity from which an example is a near copy, 0 to 1.
        group: A field; examples that share the query's value of it are left out.
    """

    level: str = "self"
    threshold: float = 0.9
    group: str | None = None


def normalised(text: str) -> str:
    """Text without what people vary when they copy: NFKC, case, punctuation and white space.

    What says something stays: combining marks, which are the vowels of many scripts, signs of arithmetic, and symbols
    beyond ASCII, such as emoji.
    """
    kept = _NOT_WORD.sub(_speaking, unicodedata.normalize("NFKC", text).casefold())
    return _SPACE.sub(" ", kept).strip()


def _speaking(match: re.Match[str]) -> str:
    sign = match[0]
    if sign.isascii():
        return sign if sign in _SIGNS else " "
    return sign if unicodedata.category(sign)[0] in "MS" else " "


def jaccard(first: frozenset[str], second: frozenset[str]) -> float:
    """Shared elements over all elements; 1 for two empty sets."""
    union = len(first | second)
    return len(first & second) / union if union else 1.0


@lru_cache(maxsize=256)
def _fourgrams(text: str) -> frozenset[str]:
    return frozenset(character_ngrams(text, 4))


def leak(query: Example, example: Example, guard: Guard) -> str | None:
    """Why the example must not be shown for this query, or None when it may.

    Args:
        query: The query.
        example: An example of the pool.
        guard: Level, threshold and group key.
    """
    depth = LEVELS.index(guard.level)
    if guard.group is not None:
        group = query.value(guard.group)
        if group is not None and equal(example.value(guard.group), group):
            return f"same {guard.group} as the query"
    if depth >= 1 and example.id == query.id:
        return "the query itself"
    if depth < 2:
        return None
    theirs, ours = example.input_text, query.input_text
    if theirs == ours:
        return "same input as the query"
    return _leak_of_texts(normalised(ours), normalised(theirs), guard.threshold, depth) if depth >= 3 else None


def _leak_of_texts(query: str, example: str, threshold: float, depth: int) -> str | None:
    if query == example:
        return "same input as the query but for case, punctuation or white space"
    if depth < 4:
        return None
    if Counter(query.split()) == Counter(example.split()):
        return "same words as the query in another order"
    likeness = jaccard(_fourgrams(query), frozenset(character_ngrams(example, 4)))
    return f"near copy of the query ({likeness:.2f})" if likeness >= threshold else None

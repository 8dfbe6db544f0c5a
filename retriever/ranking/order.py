"""Orders: where each demonstration stands in the prompt, as permutations of ranks (0 is the best)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TypeAlias

from retriever.errors import InvalidInput
from retriever.example import Example
from retriever.ranking.seeding import permutation
from retriever.ranking.strategies.complexity import complexities_of

Order: TypeAlias = Callable[[Sequence[Example], int, str], list[int]]
"""From the examples, best first, a seed and the query's id to their ranks in prompt order."""


def best_last(examples: Sequence[Example], seed: int, query_id: str) -> list[int]:
    """The most similar next to the query, as in KATE, EPR and most that followed."""
    return list(range(len(examples)))[::-1]


def best_first(examples: Sequence[Example], seed: int, query_id: str) -> list[int]:
    """The most similar first."""
    return list(range(len(examples)))


def edges(examples: Sequence[Example], seed: int, query_id: str) -> list[int]:
    """The best last, the second best first, the third last but one, and so on: the weakest stand in the middle."""
    count = len(examples)
    return list(range(1, count, 2)) + list(range(0, count, 2))[::-1]


def random(examples: Sequence[Example], seed: int, query_id: str) -> list[int]:
    """A permutation that depends on the seed, the query's id and the number of examples alone."""
    return [int(rank) for rank in permutation(len(examples), seed, query_id, "order")]


def complexity(examples: Sequence[Example], seed: int, query_id: str) -> list[int]:
    """Easy to hard, by the steps of the rationale or the words of the input; of equals the better one stands later.

    What counts as complex is what `strategies.complexity` takes for it.
    """
    hardness = complexities_of(examples)
    return sorted(range(len(examples)), key=lambda rank: (hardness[rank], -rank))


def label_interleaved(examples: Sequence[Example], seed: int, query_id: str) -> list[int]:
    """The best last, and as few neighbours of one label as that allows; otherwise the better the later.

    From the end of the prompt backwards, each next one is the best whose label is not its neighbour's and after which
    the rest can still be kept apart. Where one label has too many for that, the label with most left comes whenever it
    can. An example of several labels counts under the first by name; those without one count as one label.
    """
    labels = [min(example.labels, default="") for example in examples]
    left = Counter(labels)
    waiting = list(range(len(examples)))
    placed: list[int] = []
    while waiting:
        rank = _next_apart(waiting, labels, left, labels[placed[-1]]) if placed else 0
        waiting.remove(rank)
        left[labels[rank]] -= 1
        placed.append(rank)
    return placed[::-1]


def _next_apart(waiting: Sequence[int], labels: Sequence[str], left: Mapping[str, int], neighbour: str) -> int:
    others = [rank for rank in waiting if labels[rank] != neighbour]
    if not others:
        return waiting[0]
    after = len(waiting) - 1
    for rank in others:
        # What is left can be kept apart beside this one if its label fills at most half of the places, and no other
        # more than every second.
        most = max((count for label, count in left.items() if label != labels[rank]), default=0)
        if left[labels[rank]] - 1 <= after // 2 and most <= (after + 1) // 2:
            return rank
    return max(others, key=lambda rank: (left[labels[rank]], -rank))


ORDERS: Mapping[str, Order] = MappingProxyType(
    {
        "best-last": best_last,
        "best-first": best_first,
        "edges": edges,
        "random": random,
        "complexity": complexity,
        "label-interleaved": label_interleaved,
    }
)
"""The orders, by the name that a recipe gives them."""


def checked(ranks: Sequence[int], count: int) -> tuple[int, ...]:
    """The ranks that a caller's own order gave.

    Raises:
        InvalidInput: They are not each of 0 to count − 1 once.
    """
    given = [int(rank) for rank in ranks]
    if sorted(given) != list(range(count)):
        raise InvalidInput(f"an order of {given}", expected=f"each of the ranks 0 to {count - 1} once")
    return tuple(given)

"""Orders: where each demonstration stands in the prompt, as permutations of ranks (0 is the best)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from retriever.ranking.seeding import permutation


def best_last(count: int, seed: int, query_id: str) -> list[int]:
    """The most similar next to the query, as in KATE, EPR and most that followed."""
    return list(range(count))[::-1]


def best_first(count: int, seed: int, query_id: str) -> list[int]:
    """The most similar first."""
    return list(range(count))


def edges(count: int, seed: int, query_id: str) -> list[int]:
    """The best last, the second best first, the third last but one, and so on: the weakest stand in the middle."""
    return list(range(1, count, 2)) + list(range(0, count, 2))[::-1]


def random(count: int, seed: int, query_id: str) -> list[int]:
    """A permutation that depends on the seed and on the query's id alone."""
    return [int(rank) for rank in permutation(count, seed, query_id, "order")]


ORDERS: Mapping[str, Callable[[int, int, str], list[int]]] = MappingProxyType(
    {"best-last": best_last, "best-first": best_first, "edges": edges, "random": random}
)
"""From (count, seed, query id) to the ranks in prompt order."""

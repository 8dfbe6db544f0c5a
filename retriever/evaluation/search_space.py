"""What `tune` tries: the index's own recipe, and that recipe with another retrieval, strategy or k.

What the own recipe says of guard, filters, constraints, budget and order stays as it is. The simplest recipes come
first: of several that the examples do not tell apart, the first is the one to take.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from retriever.errors import InvalidInput
from retriever.ranking.recipe import Options, Recipe

OWN = "own"
WEIGHTS = tuple(round(0.1 * step, 1) for step in range(1, 10))
RECIPROCAL_WEIGHTS = (0.3, 0.5, 0.7)
AROUND = (0.0, 0.5, 1.0)
"""Weights at which each strategy is tried, beside the own one."""

STRATEGIES: tuple[tuple[str, Options], ...] = (
    ("coverage 0.2", {"strategy": "coverage", "options": {"relevance_weight": 0.2}}),
    ("coverage 1", {"strategy": "coverage", "options": {"relevance_weight": 1.0}}),
    ("mmr 0.9", {"strategy": "mmr", "options": {"weight": 0.9}}),
    ("mmr 0.7", {"strategy": "mmr", "options": {"weight": 0.7}}),
    ("mmr 0.5", {"strategy": "mmr", "options": {"weight": 0.5}}),
    ("dpp 0.05", {"strategy": "dpp", "options": {"scale": 0.05}}),
    ("dpp 0.1", {"strategy": "dpp", "options": {"scale": 0.1}}),
    ("sift 1", {"strategy": "sift", "options": {"noise": 1.0}}),
    ("sift 0.1", {"strategy": "sift", "options": {"noise": 0.1}}),
    ("balanced", {"strategy": "balanced"}),
)


@dataclass(frozen=True)
class Candidate:
    """A recipe to try.

    Attributes:
        name: What it is called in the result.
        recipe: Its settings, as they would be written into the index.
    """

    name: str
    recipe: Recipe


def candidates(
    own: Recipe, calibrated: float, *, ks: Sequence[int] = (), others: Mapping[str, Recipe] | None = None
) -> tuple[list[Candidate], list[str]]:
    """What is tried, the own recipe first, the same settings once.

    Args:
        own: The recipe that the index has now.
        calibrated: The fusion weight that a recipe without one has.
        ks: Numbers of demonstrations to try beside the own one.
        others: Further recipes by name.

    Returns:
        The candidates, and in a line each what does not go together with the own recipe and is not tried.
    """
    found: dict[str, Candidate] = {}
    notes: list[str] = []
    for name, options in _changes(own, ks):
        try:
            recipe = own.with_options(options)
        except InvalidInput as error:
            notes.append(f"not tried: {name}: {error}")
            continue
        found.setdefault(_settings(recipe, calibrated), Candidate(name, recipe))
    for name, recipe in (others or {}).items():
        found.setdefault(_settings(recipe, calibrated), Candidate(name, recipe))
    return list(found.values()), notes


def _changes(own: Recipe, ks: Sequence[int]) -> Iterator[tuple[str, Options]]:
    """Names and changes to the own recipe, that of no change first."""
    sizes: list[tuple[str, Options]] = [("", {}), *((f"k {k}", Options(k=k)) for k in ks)]
    for size, of_size in sizes:
        for name, changed in ((OWN, Options()), *_retrievals(), *_strategies()):
            if size and name == OWN:
                yield size, of_size
            else:
                yield f"{name}, {size}" if size else name, {**changed, **of_size}


def _retrievals() -> Iterator[tuple[str, Options]]:
    """The most relevant ones, by either channel or both."""
    yield "lexical", {"mode": "lexical", "strategy": "top"}
    yield "dense", {"mode": "dense", "strategy": "top"}
    for weight in WEIGHTS:
        yield f"weight {weight}", {"mode": "hybrid", "fusion": "convex", "weight": weight, "strategy": "top"}
    for weight in RECIPROCAL_WEIGHTS:
        yield f"rrf {weight}", {"mode": "hybrid", "fusion": "rrf", "weight": weight, "strategy": "top"}


def _strategies() -> Iterator[tuple[str, Options]]:
    """Sets that are chosen together, from what the own retrieval or another finds."""
    for name, strategy in STRATEGIES:
        yield name, strategy
        for weight in AROUND:
            yield (
                f"{name}, weight {weight:g}",
                {**strategy, "mode": "hybrid", "fusion": "convex", "weight": weight},
            )


def _settings(recipe: Recipe, calibrated: float) -> str:
    """What two recipes share that select the same."""
    retrieve = recipe.retrieve
    weight = calibrated if retrieve.weight is None else retrieve.weight
    same = replace(recipe, retrieve=replace(retrieve, weight=weight if retrieve.mode == "hybrid" else None)).filled()
    return json.dumps(same.to_dict(), sort_keys=True)

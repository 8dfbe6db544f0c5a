"""What `tune` tries: the index's own recipe, and that recipe with another retrieval, strategy, k, order or key.

What the own recipe says of guard, filters, constraints and budget stays as it is. The order in the prompt matters to a
language model alone, and is searched where one is asked. The simplest recipes come first: of several that are as good,
the first is the one to take.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from retriever.errors import InvalidInput
from retriever.ranking.order import ORDERS
from retriever.ranking.recipe import Options, Recipe

Weights: TypeAlias = Mapping[str | None, float]
"""The keys that are tried, the index's own under None first: the fusion weight that a recipe without one has there."""

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
        key: Which text of an example is indexed; None for the one that the index has.
    """

    name: str
    recipe: Recipe
    key: str | None = None

    def by(self, key: str | None) -> Candidate:
        """The same recipe with another key; as it is for None."""
        if key is None:
            return self
        return Candidate(f"key {key}" if self.name == OWN else f"{self.name}, key {key}", self.recipe, key)


def candidates(
    own: Recipe, weights: Weights, *, ks: Sequence[int] = (), others: Mapping[str, Recipe] | None = None
) -> tuple[list[Candidate], list[str]]:
    """What is tried, the own recipe first, the same settings once; with the index's own key first, then with others.

    Args:
        own: The recipe that the index has now.
        weights: The keys that are tried.
        ks: Numbers of demonstrations to try beside the own one.
        others: Further recipes by name.

    Returns:
        The candidates, and in a line each what does not go together with the own recipe and is not tried.
    """
    changed, notes = _changed(own, _changes(own, ks))
    changed += [Candidate(name, recipe) for name, recipe in (others or {}).items()]
    return _distinct([one.by(key) for key in weights for one in changed], weights), notes


def _changed(own: Recipe, changes: Iterable[tuple[str, Options]]) -> tuple[list[Candidate], list[str]]:
    """The own recipe with each of the changes, and what does not go together with it."""
    found: list[Candidate] = []
    notes: list[str] = []
    for name, options in changes:
        try:
            found.append(Candidate(name, own.with_options(options)))
        except InvalidInput as error:
            notes.append(f"not tried: {name}: {error}")
    return found, notes


def _distinct(found: Iterable[Candidate], weights: Weights) -> list[Candidate]:
    """The same settings once, under their first name."""
    first: dict[str, Candidate] = {}
    for one in found:
        first.setdefault(_settings(one, weights), one)
    return list(first.values())


def around(
    own: Recipe, weights: Weights, recipes: Sequence[Candidate], *, most: int, ks: Sequence[int] = ()
) -> tuple[list[Candidate], list[str]]:
    """What a language model is asked about: the own recipe, with one thing changed at a time.

    Args:
        own: The recipe that the index has now.
        weights: The keys that are tried.
        recipes: Other retrievals and strategies, which something cheaper found to be the best.
        most: The most demonstrations of a selection.
        ks: Numbers of demonstrations; none for half as many as the own recipe chooses, and twice as many if a
            selection may have so many.

    Returns:
        The own recipe, the own one with every other key, `recipes`, the own one in every order that is not by chance
        and with every k; and in a line each what does not go together with it and is not tried.
    """
    k = own.select.k
    orders = [(f"order {name}", Options(order=name)) for name in ORDERS if name != "random"]
    within = ks or [size for size in (max(1, k // 2), 2 * k) if size <= most]
    changed, notes = _changed(own, [*orders, *((f"k {size}", Options(k=size)) for size in within)])
    if not ks and 2 * k > most:
        notes.append(f"not tried: k {2 * k}: a selection may have {most:,} demonstrations at most")
    by_keys = [Candidate(OWN, own).by(key) for key in weights]
    return _distinct([*by_keys, *recipes, *changed], weights), notes


def combined(own: Recipe, ranked: Sequence[Candidate]) -> Candidate | None:
    """The best recipe, the best key, the best order and the best k in one, each of which was tried alone.

    Args:
        own: The recipe that they were changed from.
        ranked: Those that are better than the own one, the best first.

    Returns:
        None where no two things change.
    """
    recipe, key, names, seen = own, None, list[str](), set[str]()
    for one in ranked:
        order, k, other = one.recipe.order != own.order, one.recipe.select.k != own.select.k, one.key is not None
        rest = replace(one.recipe, order=own.order, select=replace(one.recipe.select, k=own.select.k)) != own
        parts = {name for name, differs in (("order", order), ("k", k), ("recipe", rest), ("key", other)) if differs}
        if not parts or parts & seen:
            continue
        seen |= parts
        names.append(one.name)
        key = one.key if other else key
        recipe = replace(
            one.recipe if rest else recipe,
            order=one.recipe.order if order else recipe.order,
            select=replace((one.recipe if rest else recipe).select, k=(one.recipe if k else recipe).select.k),
        )
    return Candidate(", ".join(names), recipe, key) if len(names) > 1 else None


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


def _settings(one: Candidate, weights: Weights) -> str:
    """What two candidates share that select the same."""
    retrieve = one.recipe.retrieve
    weight = weights[one.key] if retrieve.weight is None else retrieve.weight
    same = replace(one.recipe, retrieve=replace(retrieve, weight=weight if retrieve.mode == "hybrid" else None))
    return json.dumps([one.key, same.filled().to_dict()], sort_keys=True)

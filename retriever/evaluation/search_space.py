"""What `tune` tries: the index's own recipe, and that recipe with another retrieval, strategy, k or order.

What the own recipe says of guard, filters, constraints and budget stays as it is. The order in the prompt matters to a
language model alone, and is searched where one is asked. The simplest recipes come first: of several that are as good,
the first is the one to take.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from retriever.errors import InvalidInput
from retriever.ranking.order import ORDERS
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
    found, notes = _changed(own, calibrated, _changes(own, ks))
    for name, recipe in (others or {}).items():
        found.setdefault(_settings(recipe, calibrated), Candidate(name, recipe))
    return list(found.values()), notes


def _changed(
    own: Recipe, calibrated: float, changes: Iterable[tuple[str, Options]]
) -> tuple[dict[str, Candidate], list[str]]:
    """The own recipe with each of the changes, once by their settings, and what does not go together with it."""
    found: dict[str, Candidate] = {}
    notes: list[str] = []
    for name, options in changes:
        try:
            recipe = own.with_options(options)
        except InvalidInput as error:
            notes.append(f"not tried: {name}: {error}")
            continue
        found.setdefault(_settings(recipe, calibrated), Candidate(name, recipe))
    return found, notes


def around(
    own: Recipe, calibrated: float, recipes: Sequence[Candidate], *, ks: Sequence[int] = ()
) -> tuple[list[Candidate], list[str]]:
    """What a language model is asked about: the own recipe, with one thing changed at a time.

    Args:
        own: The recipe that the index has now.
        calibrated: The fusion weight that a recipe without one has.
        recipes: Other retrievals and strategies, which something cheaper found to be the best.
        ks: Numbers of demonstrations; none for half as many as the own recipe chooses, and twice as many.

    Returns:
        The own recipe, `recipes`, the own one in every order that is not by chance and with every k; and in a line each
        what does not go together with it and is not tried.
    """
    k = own.select.k
    orders = [(f"order {name}", Options(order=name)) for name in ORDERS if name != "random"]
    sizes = [(f"k {size}", Options(k=size)) for size in (ks or (max(1, k // 2), 2 * k))]
    found, _ = _changed(own, calibrated, [(OWN, Options())])
    for one in recipes:
        found.setdefault(_settings(one.recipe, calibrated), one)
    changed, notes = _changed(own, calibrated, [*orders, *sizes])
    return list((found | {key: one for key, one in changed.items() if key not in found}).values()), notes


def combined(own: Recipe, ranked: Sequence[Candidate]) -> Candidate | None:
    """The best recipe, the best order and the best k in one, each of which was tried alone.

    Args:
        own: The recipe that they were changed from.
        ranked: Those that are better than the own one, the best first.

    Returns:
        None where no two things change.
    """
    recipe, names, seen = own, list[str](), set[str]()
    for one in ranked:
        order, k = one.recipe.order != own.order, one.recipe.select.k != own.select.k
        rest = replace(one.recipe, order=own.order, select=replace(one.recipe.select, k=own.select.k)) != own
        parts = {name for name, differs in (("order", order), ("k", k), ("recipe", rest)) if differs}
        if not parts or parts & seen:
            continue
        seen |= parts
        names.append(one.name)
        recipe = replace(
            one.recipe if rest else recipe,
            order=one.recipe.order if order else recipe.order,
            select=replace((one.recipe if rest else recipe).select, k=(one.recipe if k else recipe).select.k),
        )
    return Candidate(", ".join(names), recipe) if len(names) > 1 else None


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

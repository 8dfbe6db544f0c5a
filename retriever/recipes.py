"""Which recipe a selection goes by: the caller's, or the index's own; and what an index may have as its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TypeAlias

from retriever.embedders import Embedder
from retriever.embedders.base import token_embedder
from retriever.errors import Incompatible, InvalidInput
from retriever.example import Json, QueryLike, as_query
from retriever.formats import Limits
from retriever.ranking.recipe import Options, Recipe
from retriever.ranking.rerank import MAXSIM
from retriever.ranking.strategies.coverage import CoverageOptions
from retriever.selection import Selection
from retriever.selector import MAX_BLOCK, Selector
from retriever.settings import IndexSettings

RecipeLike: TypeAlias = "Recipe | Mapping[str, Json] | str | Path | None"


def effective(selector: Selector, recipe: RecipeLike, options: Options, limits: Limits) -> Recipe:
    """The recipe that the caller gives, or that of the view that answers, with single keys changed.

    Args:
        selector: The view that answers.
        recipe: The caller's; None for the index's own.
        options: Single keys.
        limits: Of k.

    Raises:
        InvalidInput: A recipe or option that cannot be used, an option that would be ignored, or k over its limit.
        Incompatible: It names a model that only the index has named.
    """
    chosen = selector.with_options(selector.recipe if recipe is None else Recipe.of(recipe), options)
    _check_k(chosen, limits)
    _check_used(chosen, options)
    if recipe is None and "rerank" not in options and chosen.rerank.model is not None:
        # An index may come from anybody; it names no model that a caller with an embedder of his own would load.
        raise Incompatible(
            f"the index's recipe names the model {chosen.rerank.model}, which the caller has not named",
            fix=f"pass rerank={chosen.rerank.by!r} if it is to be trusted (--rerank), or a recipe of your own",
        )
    return chosen


def select_each(
    selector: Selector,
    queries: Iterable[QueryLike],
    recipes: Sequence[RecipeLike],
    limits: Limits,
) -> Iterator[tuple[Selection, ...]]:
    """For each query its selection by each of several recipes; see `Retriever.select_each`.

    Args:
        selector: The view that answers.
        queries: Taken from the iterable in blocks.
        recipes: Each as for `effective`.
        limits: Of k.
    """
    settings = [effective(selector, recipe, {}, limits) for recipe in recipes]
    remaining = iter(queries)
    while block := [as_query(query) for query in islice(remaining, MAX_BLOCK)]:
        yield from selector.select_each(block, settings)


def check_default(recipe: Recipe, limits: Limits, settings: IndexSettings) -> None:
    """Refuses a default recipe with which no later selection would work.

    Raises:
        InvalidInput: k is over the limit, it asks for an idf that the index does not have, or it names a model.
    """
    _check_k(recipe, limits)
    if recipe.rerank.idf and not settings.token_vectors:
        raise InvalidInput("a default recipe with rerank.idf = true", expected="an index built with token vectors")
    if recipe.rerank.model is not None:
        raise InvalidInput(
            f"a default recipe with rerank.by = {recipe.rerank.by!r}",
            expected="a recipe that names no model: an index may come from anybody",
            fix="name the model with each selection: rerank=, --rerank",
        )


def check_tokens(recipe: Recipe, embedder: Callable[[], Embedder]) -> None:
    """Refuses a default recipe that needs token vectors which the index's embedder does not have.

    Args:
        recipe: The default recipe.
        embedder: Gives the embedder; asked only by a recipe that needs them.

    Raises:
        InvalidInput: It is one.
    """
    covers = [part.settings() for part in recipe.select.plan]
    tokens = any(isinstance(one, CoverageOptions) and one.of == "tokens" for one in covers)
    if recipe.rerank.by != MAXSIM and not tokens:
        return
    try:
        token_embedder(embedder())
    except InvalidInput as error:
        named = "rerank.by = 'maxsim'" if recipe.rerank.by == MAXSIM else "select.options.of = 'tokens'"
        raise InvalidInput(
            f"a default recipe with {named}, and {error.seen}", expected=error.expected, fix=error.fix
        ) from error


def _check_used(recipe: Recipe, options: Options) -> None:
    """Refuses single keys that mean nothing beside the others; a recipe may hold them for another use."""
    if options.get("reserve") and recipe.budget.tokens is None:
        raise InvalidInput(
            f"a reserve of {options['reserve']:,} tokens without a budget",
            expected="the budget, too: tokens=, --tokens",
        )
    if "threshold" in options and recipe.guard.level != "near":
        raise InvalidInput(
            f"a threshold with the guard {recipe.guard.level}, which has none",
            expected="the guard near: guard='near', --guard near",
        )


def _check_k(recipe: Recipe, limits: Limits) -> None:
    if recipe.select.k > limits.k:
        raise InvalidInput(
            f"select.k = {recipe.select.k:,}",
            expected=f"at most {limits.k:,}",
            fix="raise the limit k (--max-k) if it is meant",
        )

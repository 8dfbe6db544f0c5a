"""The search of `tune` where a language model judges: few recipes, within a budget that is planned before it starts.

Each half of the queries searches by itself. A metric that asks nobody narrows retrieval and strategy to the best few;
the model is asked about these, about the orders in the prompt and about k, one change at a time, by successive halving
that costs what it was said to cost; what is better by itself is then tried in one recipe. How many queries a budget
reaches is worked out before the first call, as if every answer were as long as it may be and nothing were kept, so that
the same command asks the same, whatever was answered before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from retriever.errors import InvalidInput
from retriever.evaluation.asking import Asking
from retriever.evaluation.comparison import Values
from retriever.evaluation.crossing import LEAST, Measured, Search, crossed, parts
from retriever.evaluation.halving import halve, ranked, schedule
from retriever.evaluation.judged import default_metrics
from retriever.evaluation.scoring import ByAnswers, ByMetric, Places
from retriever.evaluation.search_space import Candidate, around, candidates, combined
from retriever.example import Json
from retriever.ranking.recipe import Recipe

HALVES = 2
"""Parts that the queries are dealt out to: each searches by itself, and more than two would ask the model more."""

STRATEGIES = 3
"""Of how many strategies the best recipe is put to the model."""

_AFTERWARDS = 2
"""Prompts of a query after the halving: what is better by itself in one recipe, and what the other half chose."""


@dataclass(frozen=True)
class Plan:
    """What a search asks a language model at most, told before it starts.

    Attributes:
        queries: How many queries the budget reaches.
        of: How many there are.
        recipes: How many recipes they are asked with at first.
        calls: The most calls; what was answered before is not asked again.
        prompt_tokens: The most tokens of the prompts, unless a recipe that is put together later has longer ones.
        answer_tokens: The most tokens of the answers.
    """

    queries: int
    of: int
    recipes: int
    calls: int
    prompt_tokens: int
    answer_tokens: int


def search_by_answers(
    scorer: ByAnswers, others: Mapping[str, Recipe], ks: Sequence[int], on_plan: Callable[[Plan], None]
) -> Search:
    """Searches by what a language model answers.

    Args:
        scorer: The queries in a random order, the model, what judges its answers, and its budget.
        others: Recipes of the caller's by name, which are asked about in any case.
        ks: See `around`.
        on_plan: Told what will be asked at most, before the first call.

    Raises:
        InvalidInput: The budget reaches too few queries.
        BackendError: The model is given up; see `Outcomes`.
    """
    count = len(scorer.asked.queries)
    cheap, told = _cheap(scorer)
    found = [_field_of(half, scorer, cheap, others, ks) for half in parts(np.arange(count), HALVES)]
    fields, notes = [field for field, _ in found], list(dict.fromkeys(line for _, lines in found for line in lines))
    plan = planned(scorer, fields, count)
    on_plan(plan)
    measured = Measured(scorer, plan.queries, list(fields[0]), scorer.wrong)
    of_half = {
        half.tobytes(): field for half, field in zip(parts(np.arange(plan.queries), HALVES), fields, strict=True)
    }
    made = crossed(measured, lambda half: choose(measured, of_half[half.tobytes()], half), HALVES)
    if plan.queries < count:
        notes.append(f"the budget reaches {plan.queries} of {count} queries")
    return Search(
        objective=scorer.judge.name,
        measured=measured,
        crossed=made,
        notes=[*notes, *_missing(scorer, measured)],
        told=told | {"backend": scorer.asking.name},
    )


def _missing(scorer: ByAnswers, measured: Measured) -> list[str]:
    """What of the answers there is not, and against which recipes that counts."""
    notes = []
    if scorer.left_out:
        notes.append(f"the budget left out {scorer.left_out} prompts, which were longer than those that were planned")
    if scorer.failed:
        notes.append(f"{scorer.failed} calls failed, the first: {scorer.first_failure}")
    for number, one in enumerate(measured.candidates):
        if count := len(measured.held_against(number)):
            notes.append(
                f"recipe {one.name} failed on {count} of {measured.asked(number)} queries where another was answered: "
                "that counts as wrong"
            )
    return notes


def _cheap(scorer: ByAnswers) -> tuple[Measured | None, dict[str, Json]]:
    """Recipes by a metric that asks nobody, and what a reader should know of it; None where there is no such metric."""
    asked = scorer.asked
    objective = default_metrics(asked.queries, asked.qrels)[0]
    if objective.better == 0:
        return None, {}
    tried, _ = candidates(asked.retriever.recipe, asked.weights)
    measured = Measured(ByMetric(asked, objective), len(asked.queries), tried)
    return measured, {"narrowed_by": objective.name, "narrowed_from": len(tried)}


def _field_of(
    half: Places, scorer: ByAnswers, cheap: Measured | None, others: Mapping[str, Recipe], ks: Sequence[int]
) -> tuple[list[Candidate], list[str]]:
    """What the model is asked about on one half of the queries, the own recipe first, and notes."""
    own, best = scorer.asked.retriever.recipe, dict[str, Candidate]()
    most = scorer.asked.retriever.limits.k
    if cheap is not None:
        for number in halve(len(cheap.candidates), len(half), lambda some, where: cheap(some, half[where])):
            one = cheap.candidates[number]
            if number != 0:
                best.setdefault(one.recipe.select.strategy, one)
    given = [Candidate(name, recipe) for name, recipe in others.items()]
    return around(own, scorer.asked.weights, [*list(best.values())[:STRATEGIES], *given], most=most, ks=ks)


def planned(scorer: ByAnswers, fields: Sequence[Sequence[Candidate]], count: int) -> Plan:
    """As many queries as the budget reaches, from the first on.

    Args:
        scorer: The model, its budget, and the prompts.
        fields: What it is asked about on each half.
        count: How many queries there are.

    Raises:
        InvalidInput: The budget reaches too few.
    """
    asking, most = scorer.asking, count
    while most and asking.max_calls is not None and _calls(fields, most) > asking.max_calls:
        most -= 1
    longest = [
        _longest(scorer, field, half) for field, half in zip(fields, parts(np.arange(most), HALVES), strict=True)
    ]
    reached = most
    while reached and asking.max_tokens is not None and _tokens(asking, fields, longest, reached) > asking.max_tokens:
        reached -= 1
    if reached < LEAST:
        raise InvalidInput(
            f"a budget that reaches {reached} of {count} queries",
            expected=f"{_calls(fields, LEAST)} calls at least, and the tokens for them, which reach {LEAST}",
            fix="raise max_calls or max_tokens; nothing was asked",
        )
    calls = _calls(fields, reached)
    tokens = _tokens(asking, fields, longest, reached) - calls * asking.answer_tokens
    return Plan(
        queries=reached,
        of=count,
        recipes=max(map(len, fields)),
        calls=calls,
        prompt_tokens=tokens,
        answer_tokens=calls * asking.answer_tokens,
    )


def _calls(fields: Sequence[Sequence[Candidate]], count: int) -> int:
    """The most calls for so many queries."""
    total = 0
    for field, half in zip(fields, parts(np.arange(count), HALVES), strict=True):
        total += _AFTERWARDS * len(half)
        total += sum(one.candidates * (one.stop - one.start) for one in schedule(len(field), len(half)))
    return total


def _longest(scorer: ByAnswers, field: Sequence[Candidate], half: Places) -> Values:
    """The tokens of the 0, 1, 2 ... longest prompts of each query together, shape (queries, candidates + 1)."""
    prompts = scorer.prompts(field, half)
    tokens = np.array([[prompt.tokens for prompt in one] for one in prompts], np.float64).reshape(len(field), len(half))
    sums = np.cumsum(-np.sort(-tokens, axis=0), axis=0)
    return np.concatenate([np.zeros((1, len(half))), sums]).T


def _tokens(asking: Asking, fields: Sequence[Sequence[Candidate]], longest: Sequence[Values], count: int) -> int:
    """The most tokens for so many queries, prompts and answers."""
    total = float(asking.answer_tokens * _calls(fields, count))
    for field, half, sums in zip(fields, parts(np.arange(count), HALVES), longest, strict=True):
        total += _AFTERWARDS * sums[: len(half), 1].sum()
        total += sum(sums[one.start : one.stop, one.candidates].sum() for one in schedule(len(field), len(half)))
    return int(total)


def choose(measured: Measured, field: Sequence[Candidate], half: Places) -> int:
    """The number of the recipe that is the best on one half of the queries.

    Args:
        measured: By the model.
        field: What it is asked about, the own recipe first.
        half: The half.
    """
    numbers = [measured.number(one) for one in field]

    def measure(some: Sequence[int], where: slice) -> Values:
        return measured([numbers[place] for place in some], half[where])

    best = [numbers[place] for place in halve(len(field), len(half), measure, strict=True)]
    together = combined(field[0].recipe, _better(measured, numbers, half))
    if together is not None:
        best.append(measured.number(together))
    return best[ranked(measured(best, half))[0]]


def _better(measured: Measured, numbers: Sequence[int], half: Places) -> list[Candidate]:
    """Those that are better than the own recipe by more than a standard error, the best first."""
    own, gains = measured.known(numbers[0])[half], {}
    for number in numbers[1:]:
        apart = measured.known(number)[half] - own
        apart = apart[~np.isnan(apart)]
        if len(apart) > 1 and apart.mean() > apart.std(ddof=1) / np.sqrt(len(apart)):
            gains[number] = float(apart.mean())
    return [measured.candidates[number] for number in sorted(gains, key=lambda one: -gains[one])]

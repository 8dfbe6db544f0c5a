"""Which recipe an index should have, and what that gains: `tune`.

The queries, or examples of the pool held out one at a time, are split in two at random. On one half the candidates of
`search_space` are compared by successive halving; of those that it does not tell from the best, the simplest is chosen.
On the other half, which had no part in the choice, the chosen recipe is measured against the present one. Only where
the whole interval of that difference is above 0 does the index change. The best of many is flattered by chance on the
half that chose it; the other half owes it nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from retriever.errors import InvalidInput
from retriever.evaluation.evaluate import judged, known_by, questions
from retriever.evaluation.halving import Values, halve, simplest
from retriever.evaluation.intervals import Bootstrap, Interval, intervals
from retriever.evaluation.judge import is_answer_metric
from retriever.evaluation.judged import NEEDS, Metric, default_metrics, metric
from retriever.evaluation.queries import Qrels, as_asked
from retriever.evaluation.search_space import Candidate, candidates
from retriever.evaluation.tuned import Gain, Tried, Tuning
from retriever.example import Example, Json
from retriever.prompts import PromptOptions
from retriever.ranking.guard import normalised
from retriever.ranking.recipe import Recipe
from retriever.ranking.seeding import permutation
from retriever.recipes import RecipeLike, check_default
from retriever.retriever import QueryLike, Retriever
from retriever.selection import Selection
from retriever.snapshot import Snapshot

LEAVE_ONE_OUT = 2000
LEAST = 8
_FEW = 60


@dataclass(frozen=True)
class TuneSettings:
    """How recipes are searched and compared.

    Attributes:
        metric: What is to be high, such as `precision` or `ndcg@10`; None for the first that `eval` shows. Of one that
            is better when it is low, such as `tokens`, the negative counts.
        ks: Numbers of demonstrations to try beside the own one; asks for a `token_cost`.
        token_cost: What 1,000 tokens of prompt take off the metric; None where tokens do not count.
        seed: Of the sample, the split and the resamples.
        resamples: Of the bootstrap.
        level: Of the intervals.
        prompt: How prompts are put together, whose tokens are counted.

    Raises:
        InvalidInput: A value that cannot be used.
    """

    metric: str | None = None
    ks: tuple[int, ...] = ()
    token_cost: float | None = None
    seed: int = 0
    resamples: int = 10_000
    level: float = 0.95
    prompt: PromptOptions = field(default_factory=PromptOptions)

    def __post_init__(self) -> None:
        if self.token_cost is not None and not 0 <= self.token_cost < math.inf:
            raise InvalidInput(f"token_cost = {self.token_cost}", expected="0 or more")
        if self.ks and self.token_cost is None:
            raise InvalidInput(
                "several k without a token cost",
                expected="what 1,000 tokens are worth, or more demonstrations would win for nothing",
                fix="give token_cost (--token-cost), 0 if they are free",
            )
        if self.metric is not None and is_answer_metric(self.metric):
            raise InvalidInput(f"the metric {self.metric}", expected="one of a selection: tune asks no language model")
        if any(k < 1 for k in self.ks):
            raise InvalidInput(f"k = {min(self.ks)}", expected="1 or more")
        self.bootstrap  # noqa: B018  checks its values

    @property
    def bootstrap(self) -> Bootstrap:
        """How intervals are worked out."""
        return Bootstrap(self.resamples, self.level, self.seed)


def tune(
    retriever: Retriever,
    queries: Iterable[QueryLike] | None = None,
    *,
    leave_one_out: int | None = None,
    qrels: Qrels | None = None,
    recipes: Mapping[str, RecipeLike] | None = None,
    settings: TuneSettings | None = None,
    dry_run: bool = False,
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> Tuning:
    """Searches a better recipe and, if it surely is one, makes it the index's default.

    Args:
        retriever: The index.
        queries: With their true outputs and labels; of several that are the same but for case, punctuation and white
            space, the first counts.
        leave_one_out: In place of queries: how many of the pool's own examples are asked, each without itself and its
            near copies; 2,000 where neither is given.
        qrels: Relevance judgements by query id and the id of an example.
        recipes: To try beside those of `search_space`.
        settings: How they are compared; default `TuneSettings()`.
        dry_run: Whether the index stays as it is, whatever is found.
        progress: Told the round, how many queries are answered in it, and how many there are.

    Raises:
        InvalidInput: Both queries and `leave_one_out`, too few queries that the metric can judge, a recipe that cannot
            be an index's default, or an index that changed meanwhile.
        IndexLocked: Another process is writing.
        StorageError: The operating system refuses.
    """
    settings = settings or TuneSettings()
    if queries is None and leave_one_out is None:
        leave_one_out = LEAVE_ONE_OUT
    snapshot, grades = retriever.snapshot, qrels or {}
    known = known_by(snapshot)
    asked = _distinct(questions(snapshot, queries, leave_one_out, guard="near", seed=settings.seed))
    objective = _objective(settings, asked, grades)
    asked = _judgeable(asked, objective, grades, settings.seed)
    tried, notes = _candidates(retriever, settings, recipes or {}, objective)
    task = _Task(retriever, snapshot, asked, grades, objective, settings, [one.recipe for one in tried], progress)
    half = len(asked) // 2
    values = halve(len(tried), half, task.measure)
    chosen = simplest(values)
    gain = _gain(task, chosen, half, settings.bootstrap)
    if len(asked) < _FEW:
        notes.append(f"{len(asked)} queries are few: only a large gain can be told from chance")
    written = retriever.set_recipe(tried[chosen].recipe) if gain.sure and not dry_run else None
    return Tuning(
        known,
        "queries" if leave_one_out is None else "leave-one-out",
        _named(objective, settings),
        _told(settings, half, len(asked) - half),
        tuple(_tried(tried, values, chosen, settings.bootstrap)),
        gain,
        written,
        tuple(notes),
    )


def _distinct(asked: Sequence[Example]) -> list[Example]:
    """The queries without repeats: one in both halves would let the choice see what it is measured on."""
    first: dict[str, Example] = {}
    for query in asked:
        first.setdefault(normalised(query.input_text), query)
    return list(first.values())


def _objective(settings: TuneSettings, asked: Sequence[Example], grades: Qrels) -> Metric:
    found = default_metrics(asked, grades)[0] if settings.metric is None else metric(settings.metric)
    if found.better == 0:
        raise InvalidInput(
            f"the metric {found.name}, of which neither more nor less is better"
            if settings.metric
            else "queries without labels, outputs or judgements",
            expected="something that a selection can be better by",
            fix="name the field of the output or label, or another metric",
        )
    return found


def _judgeable(asked: Sequence[Example], objective: Metric, grades: Qrels, seed: int) -> list[Example]:
    """The queries that the metric can judge, in a random order."""
    kept = [query for query in asked if objective.judges(query, grades.get(query.id, {}))]
    if len(kept) < LEAST:
        raise InvalidInput(
            f"{len(kept)} queries with {NEEDS[objective.needs]}, which {objective.name} judges by",
            expected=f"at least {LEAST} different ones",
        )
    return [kept[place] for place in permutation(len(kept), seed, "", "tuning").tolist()]


def _candidates(
    retriever: Retriever, settings: TuneSettings, recipes: Mapping[str, RecipeLike], objective: Metric
) -> tuple[list[Candidate], list[str]]:
    """What is tried; the own recipe comes first."""
    base = retriever.snapshot.base
    others = {name: Recipe.of(recipe) for name, recipe in recipes.items()}
    for recipe in others.values():
        check_default(recipe, retriever.limits, base.settings)
    tried, notes = candidates(retriever.recipe, base.weight, ks=settings.ks, others=others)
    for one in tried:
        if (objective.depth or 0) > one.recipe.select.k:
            raise InvalidInput(f"the metric {objective.name} of the recipe {one.name}, which chooses fewer")
    return tried, notes


@dataclass(frozen=True)
class _Task:
    """What all candidates are judged by."""

    retriever: Retriever
    snapshot: Snapshot
    queries: Sequence[Example]
    qrels: Qrels
    objective: Metric
    settings: TuneSettings
    recipes: Sequence[Recipe]
    progress: Callable[[str, int, int], None]

    def measure(self, chosen: Sequence[int], where: slice) -> Values:
        """What some of the recipes are worth on some of the queries, shape (recipes, queries)."""
        asked = self.queries[where]
        followed = [self.recipes[number].with_options({"guard": "near"}) for number in chosen]
        values = np.empty((len(chosen), len(asked)))
        hidden = (as_asked(query, judged=bool(self.qrels)) for query in asked)
        selections = self.retriever.select_each(hidden, followed)
        for place, (truth, made) in enumerate(zip(asked, selections, strict=True)):
            values[:, place] = [self._value(selection, truth) for selection in made]
            self.progress(f"{len(chosen)} recipes", place + 1, len(asked))
        return values

    def _value(self, selection: Selection, truth: Example) -> float:
        cost, tokens = self.settings.token_cost, None
        if cost is not None or self.objective.name == "tokens":
            tokens = self.retriever.prompt(selection, prompt_options=self.settings.prompt).tokens
        seen = judged(self.snapshot, selection, truth, tokens, self.qrels.get(truth.id, {}))
        return self.objective.better * self.objective(seen) - (cost or 0.0) * (tokens or 0) / 1000


def _gain(task: _Task, chosen: int, half: int, bootstrap: Bootstrap) -> Gain:
    """The chosen recipe against the own one on the queries from `half` on."""
    own, other = task.measure([0, chosen], slice(half, None))
    apart = other - own
    return Gain(len(own), _mean(own), _mean(other), _mean(apart), intervals(apart[:, np.newaxis], bootstrap)[0])


def _tried(tried: Sequence[Candidate], values: Values, chosen: int, bootstrap: Bootstrap) -> list[Tried]:
    """Each candidate on the queries that it was measured on, against the chosen one on the same."""
    found: dict[int, Tried] = {}
    counts = (~np.isnan(values)).sum(axis=1)
    for count in np.unique(counts).tolist():
        numbers = np.flatnonzero(counts == count).tolist()
        rows = values[numbers, :count]
        apart = rows - values[chosen, :count]
        ends = intervals(np.concatenate([rows, apart]).T, bootstrap)
        for place, number in enumerate(numbers):
            one, difference, interval = tried[number], _mean(apart[place]), ends[len(numbers) + place]
            verdict = "chosen" if number == chosen else _verdict(difference, interval)
            mean = _mean(rows[place])
            found[number] = Tried(one.name, one.recipe, count, mean, ends[place], difference, interval, verdict)
    return [found[number] for number in range(len(tried))]


def _verdict(difference: float, interval: Interval | None) -> str:
    if interval is None or interval.holds(0.0):
        return "tied"
    return "better" if difference > 0 else "worse"


def _mean(values: Values) -> float:
    return math.fsum(values.tolist()) / len(values)


def _named(objective: Metric, settings: TuneSettings) -> str:
    """What is to be as high as possible, in words."""
    name = objective.name if objective.better > 0 else f"-{objective.name}"
    return f"{name} - {settings.token_cost:g} per 1,000 tokens" if settings.token_cost else name


def _told(settings: TuneSettings, searched: int, measured: int) -> dict[str, Json]:
    """The settings that decide the figures."""
    return {
        "guard": "near",
        "seed": settings.seed,
        "resamples": settings.resamples,
        "level": settings.level,
        "queries_to_choose": searched,
        "queries_to_measure": measured,
    }

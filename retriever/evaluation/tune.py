"""Which recipe and key an index should have, and what that gains: `tune`.

The queries, or examples of the pool held out one at a time, are dealt out to parts at random. Each part is answered by
the recipe that the other parts choose among the candidates of `search_space`, and by the present one. The best of many
is flattered by chance on the queries that chose it; the others owe it nothing. Only where the whole interval of that
gain is above 0 does the index change.

Keys that are to be tried are indexed in a temporary directory and searched beside the own one: what is compared is a
recipe together with a key; see `key_search`.

Without a language model a recipe is worth what a metric says of its selections. With one it is worth what the model
answers, and the order in the prompt and k are searched as well; see `model_search`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeAlias

import numpy as np

from retriever.errors import InvalidInput
from retriever.evaluation.asking import Asking
from retriever.evaluation.comparison import Values
from retriever.evaluation.crossing import LEAST, Measured, Search, crossed, judgeable
from retriever.evaluation.evaluate import choices_of, known_by, questions
from retriever.evaluation.halving import halve
from retriever.evaluation.intervals import Bootstrap, Interval, intervals
from retriever.evaluation.judge import ANSWER_METRICS, answer_metric, is_answer_metric
from retriever.evaluation.judged import NEEDS, Metric, default_metrics, metric
from retriever.evaluation.key_search import Trial
from retriever.evaluation.model_search import Plan, search_by_answers
from retriever.evaluation.queries import Qrels, judgement_notes
from retriever.evaluation.scoring import Asked, ByAnswers, ByMetric, Places
from retriever.evaluation.search_space import Candidate, candidates
from retriever.evaluation.tuned import Gain, Tried, Tuning
from retriever.example import Example, Json, QueryLike
from retriever.keys import Key
from retriever.listening import Progress, silent
from retriever.prompts import PromptOptions
from retriever.ranking.guard import normalised
from retriever.ranking.recipe import Recipe
from retriever.recipes import RecipeLike, check_default
from retriever.retriever import Retriever
from retriever.snapshot import Snapshot

Trials: TypeAlias = Mapping[str, Trial]
"""The same examples by other keys."""

LEAVE_ONE_OUT = 2000
WITH_A_MODEL = 200
"""Examples that are asked where a language model answers and nobody says how many."""

PARTS = 5
"""Parts that the queries are dealt out to where selections are what is judged, and no call is paid for."""

DEALS = 20
"""How often they are dealt out."""

_FEW = 60


@dataclass(frozen=True)
class TuneSettings:
    """How recipes are searched and compared.

    Attributes:
        metric: What is to be high, such as `precision` or `ndcg@10`; None for the first that `eval` shows. Of one that
            is better when it is low, such as `tokens`, the negative counts. With a language model a metric of its
            answers; None for `exact`.
        ks: Numbers of demonstrations to try beside the own one; without a language model they ask for a `token_cost`,
            with one none is for half and twice the own k.
        token_cost: What 1,000 tokens of prompt take off the metric; None where tokens do not count.
        seed: Of the sample, the split and the resamples.
        resamples: Of the bootstrap.
        level: Of the intervals. At 0.8 about one in seven pools without a better recipe gets another one that is as
            good; see `crossing`.
        prompt: How prompts are put together, whose tokens are counted.

    Raises:
        InvalidInput: A value that cannot be used.
    """

    metric: str | None = None
    ks: tuple[int, ...] = ()
    token_cost: float | None = None
    seed: int = 0
    resamples: int = 10_000
    level: float = 0.8
    prompt: PromptOptions = field(default_factory=PromptOptions)

    def __post_init__(self) -> None:
        if self.token_cost is not None and not 0 <= self.token_cost < math.inf:
            raise InvalidInput(f"token_cost = {self.token_cost}", expected="0 or more")
        if any(k < 1 for k in self.ks):
            raise InvalidInput(f"k = {min(self.ks)}", expected="1 or more")
        self.bootstrap  # noqa: B018  checks its values

    @property
    def bootstrap(self) -> Bootstrap:
        """How intervals are worked out."""
        return Bootstrap(self.resamples, self.level, self.seed)

    def check(self, asking: Asking | None) -> None:
        """Whether they go together with a language model, or with none.

        Raises:
            InvalidInput: They do not.
        """
        of_answers = self.metric is not None and is_answer_metric(self.metric)
        if asking is None and of_answers:
            raise InvalidInput(f"the metric {self.metric} without a language model", fix="name one: --backend, asking=")
        if asking is not None and self.metric is not None and not of_answers:
            raise InvalidInput(
                f"a language model and {self.metric}, which is no metric of its answers",
                expected=f"one of {', '.join(ANSWER_METRICS)}",
            )
        if self.ks and self.token_cost is None and asking is None:
            raise InvalidInput(
                "several k without a token cost",
                expected="what 1,000 tokens are worth, or more demonstrations would win for nothing",
                fix="give token_cost (--token-cost), 0 if they are free",
            )


def tune(
    retriever: Retriever,
    queries: Iterable[QueryLike] | None = None,
    *,
    leave_one_out: int | None = None,
    qrels: Qrels | None = None,
    recipes: Mapping[str, RecipeLike] | None = None,
    keys: Sequence[str] = (),
    settings: TuneSettings | None = None,
    asking: Asking | None = None,
    dry_run: bool = False,
    on_plan: Callable[[Plan], None] = silent,
    progress: Progress = silent,
) -> Tuning:
    """Searches a better recipe and, if its gain is above chance, makes it the index's default, and its key the key.

    Args:
        retriever: The index.
        queries: With their true outputs and labels; of several that are the same but for case, punctuation and white
            space, the first counts.
        leave_one_out: In place of queries: how many of the pool's own examples are asked, each without itself and its
            near copies; where neither is given 2,000, and 200 where a language model answers. Not on an index that is
            adapted: it has learned from them. Tune first, or undo the adaptation for as long as it is tuned.
        qrels: Relevance judgements by query id and the id of an example.
        recipes: To try beside those of `search_space`.
        keys: To try beside the index's own, each with every recipe; see `Retriever.try_keys`.
        settings: How they are compared; default `TuneSettings()`.
        asking: A language model, whose judged answers are what counts, and how much may be asked of it. The budget is
            never exceeded; what was answered before is not asked again.
        dry_run: Whether the index stays as it is, whatever is found.
        on_plan: Told what the model will be asked at most, before it is.
        progress: Told the stage, how much of it is done, and how much there is.

    Raises:
        InvalidInput: Both queries and `leave_one_out`, an adapted index without queries, too few queries that the
            metric can judge or that the budget reaches, a recipe that cannot be an index's default, a key that cannot
            be tried, judgements none of whose examples is in the pool, or an index that changed meanwhile.
        EmbedderError: The embedder cannot be loaded or fails.
        BackendError: The language model answers nothing, or nothing any more: it failed for many queries in a row.
        IndexLocked: Another process is writing.
        StorageError: The operating system refuses.
    """
    settings = settings or TuneSettings()
    settings.check(asking)
    keys = (keys,) if isinstance(keys, str) else tuple(keys)
    if queries is None and leave_one_out is None:
        leave_one_out = LEAVE_ONE_OUT if asking is None else WITH_A_MODEL
    snapshot, grades = retriever.snapshot, qrels or {}
    if queries is None:
        _check_unlearned(snapshot, retriever.path)
    known = known_by(snapshot)
    given = _distinct(questions(snapshot, queries, leave_one_out, guard="near", seed=settings.seed))
    lacking = judgement_notes(snapshot, [grades.get(query.id, {}) for query in given])
    asked = Asked(
        retriever=retriever,
        snapshot=snapshot,
        queries=given,
        qrels=grades,
        prompt=settings.prompt if asking is None else asking.fitting(settings.prompt),
        token_cost=settings.token_cost,
        progress=progress,
    )
    others = {name: Recipe.of(recipe) for name, recipe in (recipes or {}).items()}
    for recipe in others.values():
        check_default(recipe, retriever.limits, snapshot.base.settings)
    # What cannot be searched is refused before the pool is embedded by another key.
    search = (
        _by_metric(asked, settings, others) if asking is None else _by_answers(asked, settings, others, asking, on_plan)
    )
    with retriever.try_keys(keys, progress=progress) as trials:
        found = search(trials)
        gain, chosen = _gain(found, settings.bootstrap), found.crossed.chosen
        changes = gain.sure and chosen != 0 and not dry_run
        written = _kept(retriever, trials, found.measured.candidates[chosen], progress) if changes else None
    return Tuning(
        index=known,
        asked="queries" if leave_one_out is None else "leave-one-out",
        objective=_named(found.objective, settings),
        settings=_told(settings, len(found.crossed.own)) | dict(found.told),
        tried=tuple(_tried(found.measured, chosen, settings.bootstrap, snapshot.key)),
        gain=gain,
        written=written,
        notes=(*lacking, *found.notes, *_few(gain), *([] if leave_one_out is None else _lent(keys))),
    )


def _check_unlearned(snapshot: Snapshot, path: Path) -> None:
    """Refuses to choose by examples that the space was learned from: it would choose what trusts the space most."""
    if snapshot.is_adapted:
        raise InvalidInput(
            "leave-one-out on an index that was adapted on these very examples",
            expected="queries that it has not learned from, or an index that is not adapted",
            fix=f"name a file of queries, or undo it (retriever adapt {path} --undo), tune, and adapt again afterwards",
        )


def _kept(retriever: Retriever, trials: Trials, chosen: Candidate, progress: Progress) -> str:
    """The generation that has the recipe, and its key, as the index's own."""
    if chosen.key is None:
        return retriever.set_recipe(chosen.recipe)
    return trials[chosen.key].keep(chosen.recipe, progress)


def _by_metric(asked: Asked, settings: TuneSettings, others: Mapping[str, Recipe]) -> Callable[[Trials], Search]:
    """The search without a language model: every recipe with every key, by a metric of its selections."""
    objective = _objective(settings, asked)
    kept = judgeable(
        asked,
        lambda query: objective.judges(query, asked.qrels.get(query.id, {})),
        f"{NEEDS[objective.needs]}, which {objective.name} judges by",
        settings.seed,
    )
    tried, _ = candidates(asked.retriever.recipe, asked.weights, ks=settings.ks, others=others)
    for one in tried:
        if (objective.depth or 0) > one.recipe.select.k:
            raise InvalidInput(f"the metric {objective.name} of the recipe {one.name}, which chooses fewer")
    return lambda trials: _searched(replace(kept, trials=trials), objective, settings, others)


def _searched(asked: Asked, objective: Metric, settings: TuneSettings, others: Mapping[str, Recipe]) -> Search:
    tried, notes = candidates(asked.retriever.recipe, asked.weights, ks=settings.ks, others=others)
    measured = Measured(ByMetric(asked, objective), len(asked.queries), tried)

    def choose(places: Places) -> int:
        return halve(len(tried), len(places), lambda some, where: measured(some, places[where]))[0]

    found = crossed(measured, choose, PARTS, deals=DEALS)
    return Search(objective.name if objective.better > 0 else f"-{objective.name}", measured, found, notes)


def _by_answers(
    asked: Asked,
    settings: TuneSettings,
    others: Mapping[str, Recipe],
    asking: Asking,
    on_plan: Callable[[Plan], None],
) -> Callable[[Trials], Search]:
    """The search with a language model: few recipes, the orders and k, by what is answered."""
    judge = answer_metric(settings.metric or "exact", lambda: choices_of(asked.snapshot))
    kept = judgeable(asked, judge.judges, f"a true answer, which {judge.name} judges by", settings.seed)

    def search(trials: Trials) -> Search:
        scorer = ByAnswers(replace(kept, trials=trials), judge, asking)
        return search_by_answers(scorer, others, settings.ks, on_plan)

    return search


def _distinct(asked: Sequence[Example]) -> list[Example]:
    """The queries without repeats: one in both halves would let the choice see what it is measured on."""
    first: dict[str, Example] = {}
    for query in asked:
        first.setdefault(normalised(query.input_text), query)
    return list(first.values())


def _objective(settings: TuneSettings, asked: Asked) -> Metric:
    found = default_metrics(asked.queries, asked.qrels)[0] if settings.metric is None else metric(settings.metric)
    if found.better == 0:
        raise InvalidInput(
            f"the metric {found.name}, of which neither more nor less is better"
            if settings.metric
            else "queries without labels, outputs or judgements",
            expected="something that a selection can be better by",
            fix="name the field of the output or label, or another metric",
        )
    return found


def _gain(found: Search, bootstrap: Bootstrap) -> Gain:
    """The recipes that the parts chose for each other against the own one, where both can be told.

    Where one failed and another was answered, that counts as wrong: see `Measured`. Left out are queries that the model
    failed on under every recipe, and those that the budget did not reach.
    """
    both = ~np.isnan(found.crossed.own) & ~np.isnan(found.crossed.other)
    own, other = found.crossed.own[both], found.crossed.other[both]
    if len(own) < LEAST:
        raise InvalidInput(
            f"{len(own)} queries that were answered under both recipes: {'; '.join(found.notes)}",
            expected=f"at least {LEAST}",
            fix="raise the budget, or see why calls failed; what was answered is kept",
        )
    apart = other - own
    interval = intervals(apart[:, np.newaxis], bootstrap)[0]
    return Gain(queries=len(own), own=_mean(own), chosen=_mean(other), difference=_mean(apart), interval=interval)


def _few(gain: Gain) -> list[str]:
    if gain.queries >= _FEW:
        return []
    return [f"{gain.queries} queries are few: only a large gain can be told from chance"]


def _lent(keys: Sequence[str]) -> list[str]:
    """What held-out examples were asked with that the queries to come may lack."""
    names = list(dict.fromkeys(name for key in keys for name in Key(key).further))
    if not names:
        return []
    listed = ", ".join(names)
    return [f"the examples were asked with their own {listed}: what that gains holds for queries that come with it"]


def _tried(measured: Measured, chosen: int, bootstrap: Bootstrap, key: Key) -> list[Tried]:
    """Each candidate on the queries that it was measured on, against the chosen one on the same."""
    best, found = measured.known(chosen), {}
    together: dict[bytes, list[int]] = {}
    for number in range(len(measured.candidates)):
        together.setdefault(np.isnan(measured.known(number) + best).tobytes(), []).append(number)
    for mask, numbers in together.items():
        there = ~np.frombuffer(mask, dtype=np.bool_)
        rows = np.stack([measured.known(number)[there] for number in numbers])
        apart = rows - best[there]
        ends = intervals(np.concatenate([rows, apart]).T, bootstrap)
        for place, number in enumerate(numbers):
            one, difference, interval = measured.candidates[number], _mean(apart[place]), ends[len(numbers) + place]
            verdict = "chosen" if number == chosen else _verdict(difference, interval)
            count, mean = int(there.sum()), _mean(rows[place])
            of_key = one.key or key.spec
            found[number] = Tried(
                name=one.name,
                recipe=one.recipe,
                key=of_key,
                queries=count,
                mean=mean,
                interval=ends[place],
                difference=difference,
                difference_interval=interval,
                verdict=verdict,
            )
    return [found[number] for number in sorted(found)]


def _verdict(difference: float, interval: Interval | None) -> str:
    if interval is None or interval.holds(0.0):
        return "tied"
    return "better" if difference > 0 else "worse"


def _mean(values: Values) -> float:
    return math.fsum(values.tolist()) / len(values) if len(values) else math.nan


def _named(objective: str, settings: TuneSettings) -> str:
    """What is to be as high as possible, in words."""
    return f"{objective} - {settings.token_cost:g} per 1,000 tokens" if settings.token_cost else objective


def _told(settings: TuneSettings, queries: int) -> dict[str, Json]:
    """The settings that decide the figures."""
    return {
        "guard": "near",
        "seed": settings.seed,
        "resamples": settings.resamples,
        "level": settings.level,
        "queries": queries,
    }

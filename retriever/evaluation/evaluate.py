"""Which recipe is best for a pool, and by how much: `evaluate`.

Each query is answered by every recipe, and each metric is the mean over the queries that have what it needs. Beside a
mean stands its bootstrap interval, and the difference to the best recipe with an interval of its own, paired by query;
where that holds 0, the two are tied. A selection never sees the query's output, rationale or labels, and the leak
guard's level `near` keeps copies of the query out, so that the figure is about queries that the pool does not know.
With a language model its answers are judged as well, over the queries that it answered under every recipe.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from indexes.channels import MODES
from retriever.errors import InvalidInput
from retriever.evaluation.asking import Asking, Cost, ask, missing, values_of
from retriever.evaluation.comparison import Values, by_label, by_query, compared
from retriever.evaluation.intervals import Bootstrap
from retriever.evaluation.judge import ANSWER_METRICS, MOST_CHOICES, AnswerMetric, answer_metric, is_answer_metric
from retriever.evaluation.judged import NEEDS, Grades, Judged, Metric, default_metrics, metric
from retriever.evaluation.outcomes import Outcomes
from retriever.evaluation.queries import Qrels, as_asked, flattered, held_out, judgement_notes
from retriever.evaluation.results import Evaluated, Evaluation
from retriever.example import Example, Json, QueryLike, as_query
from retriever.listening import Progress, silent
from retriever.prompting import Prompt
from retriever.prompts import PromptOptions
from retriever.ranking.guard import LEVELS, normalised
from retriever.ranking.recipe import Options, Recipe
from retriever.recipes import RecipeLike
from retriever.retriever import Retriever
from retriever.selection import Selection
from retriever.snapshot import Snapshot

_FEW = 30


@dataclass(frozen=True)
class EvalSettings:
    """How recipes are compared.

    Attributes:
        metrics: Names of metrics, such as `precision` or `ndcg@10`; none for those that suit the queries.
        k: How many demonstrations; None for what each recipe says.
        guard: The level of the leak guard, whatever the recipes say; `near` where examples are held out.
        seed: Of the resamples, and of the sample that is held out.
        resamples: Of the bootstrap.
        level: Of the intervals.
        worst: How many of the worst queries are told.
        prompt: How prompts are put together, whose tokens are counted.

    Raises:
        InvalidInput: A value that cannot be used.
    """

    metrics: tuple[str, ...] = ()
    k: int | None = None
    guard: str = "near"
    seed: int = 0
    resamples: int = 10_000
    level: float = 0.95
    worst: int = 10
    prompt: PromptOptions = field(default_factory=PromptOptions)

    def __post_init__(self) -> None:
        if self.worst < 0:
            raise InvalidInput(f"worst = {self.worst}", expected="0 or more")
        if self.guard not in LEVELS:
            raise InvalidInput(f"guard = {self.guard!r}", expected=f"one of {', '.join(LEVELS)}")
        self.bootstrap  # noqa: B018  checks its values

    @property
    def bootstrap(self) -> Bootstrap:
        """How intervals are worked out."""
        return Bootstrap(self.resamples, self.level, self.seed)


def evaluate(
    retriever: Retriever,
    recipes: Mapping[str, RecipeLike] | None = None,
    queries: Iterable[QueryLike] | None = None,
    *,
    leave_one_out: int | None = None,
    qrels: Qrels | None = None,
    settings: EvalSettings | None = None,
    asking: Asking | None = None,
    on_cost: Callable[[Cost], None] = silent,
    progress: Progress = silent,
) -> Evaluation:
    """Compares recipes on queries whose answers are known.

    Args:
        retriever: The index.
        recipes: By the names that the result gives them; None for what `recipes_of` gives.
        queries: With their true outputs and labels.
        leave_one_out: In place of queries: how many of the pool's own examples are asked, each without itself and its
            near copies. An index that is adapted has learned from them, and a note of the result says so.
        qrels: Relevance judgements by query id and the id of an example.
        settings: How they are compared; default `EvalSettings()`.
        asking: A language model, whose answers are judged as well.
        on_cost: Told what the model will be asked, before it is.
        progress: Told the recipe, how many queries are answered, and how many there are.

    Raises:
        InvalidInput: Both queries and `leave_one_out` or neither, no query, a metric that no query can be judged by, a
            recipe or option that cannot be used, judgements none of whose examples is in the pool, an index that
            another thread changed meanwhile, or not one query that the model answered under every recipe.
        BackendError: Nothing but failures came from the language model, or for many queries in a row.
    """
    settings = settings or EvalSettings()
    snapshot = retriever.snapshot
    asked, grades = questions(snapshot, queries, leave_one_out, guard=settings.guard, seed=settings.seed), qrels or {}
    judges, metrics = _metrics(settings, asked, grades, asking, lambda: choices_of(snapshot))
    notes = judgement_notes(snapshot, [grades.get(query.id, {}) for query in asked])
    effective = _recipes(retriever, recipes, metrics, settings)
    task = _Task(
        retriever=retriever,
        snapshot=snapshot,
        queries=asked,
        qrels=grades,
        metrics=metrics,
        prompt=settings.prompt if asking is None else asking.fitting(settings.prompt),
        keep_prompts=asking is not None,
        progress=progress,
    )
    measured = {name: task.measure(name, recipe) for name, recipe in effective.items()}
    values = np.stack([one.values for one in measured.values()], axis=1)
    notes = [*flattered(snapshot, leave_one_out), *notes, *_notes(task, measured, leave_one_out is None)]
    answers = None
    if asking is not None:
        prompts = {name: one.prompts for name, one in measured.items()}
        outcomes = Outcomes()
        answers = ask(asking, prompts, outcomes, on_cost=on_cost, progress=progress)
        outcomes.check()
        values = np.concatenate([values_of(answers, judges, asked), values])
        notes += missing(answers)
    named = [(one.name, 1) for one in judges] + [(one.name, one.better) for one in metrics]
    results = [
        compared(name, better, list(measured), values[place], settings.bootstrap)
        for place, (name, better) in enumerate(named)
    ]
    texts = {} if answers is None else answers.texts
    ordered = by_query(results[0], asked, values[0], {name: one.ids for name, one in measured.items()}, texts)
    return Evaluation(
        index=known_by(snapshot),
        asked="queries" if leave_one_out is None else "leave-one-out",
        queries=len(asked),
        settings=_told(settings, asking),
        recipes=tuple(Evaluated(name, one.recipe, one.milliseconds) for name, one in measured.items()),
        metrics=tuple(results),
        labels=by_label(results[0], ordered),
        worst=tuple(ordered[: settings.worst]),
        notes=tuple(notes),
    )


def _told(settings: EvalSettings, asking: Asking | None) -> dict[str, Json]:
    """The settings that decide the figures."""
    told: dict[str, Json] = {
        "guard": settings.guard,
        "seed": settings.seed,
        "resamples": settings.resamples,
        "level": settings.level,
    }
    return told if asking is None else {**told, "backend": asking.name}


def recipes_of(retriever: Retriever, files: Sequence[Path] = ()) -> dict[str, Recipe]:
    """The index's own recipe and those of files; without files the own one in every mode.

    Raises:
        InvalidInput: A recipe that cannot be used.
        Incompatible: The index's own recipe names a model that the caller has not named.
    """
    own = retriever.effective_recipe()
    found = {f"own ({own.retrieve.mode})": own}
    if not files:
        return found | {mode: own.with_options({"mode": mode}) for mode in MODES if mode != own.retrieve.mode}
    names = Counter(file.stem for file in files)
    return found | {file.stem if names[file.stem] == 1 else str(file): Recipe.of(file) for file in files}


def questions(
    snapshot: Snapshot, queries: Iterable[QueryLike] | None, leave_one_out: int | None, *, guard: str, seed: int
) -> list[Example]:
    """What is asked: the given queries, or a sample of the pool.

    Raises:
        InvalidInput: Both or neither, no query, or a held-out example whose near copies would answer.
    """
    if (queries is None) == (leave_one_out is None):
        raise InvalidInput(
            "neither queries nor leave_one_out" if queries is None else "both queries and leave_one_out",
            expected="one of them",
        )
    if leave_one_out is not None and guard != "near":
        raise InvalidInput(
            f"guard = {guard!r} with leave-one-out",
            expected="near: a copy of the held-out example would give its answer away",
        )
    asked = list(map(as_query, queries)) if queries is not None else held_out(snapshot, leave_one_out or 0, seed)
    if not asked:
        raise InvalidInput("no query", expected="at least one")
    return asked


def _metrics(
    settings: EvalSettings,
    queries: Sequence[Example],
    grades: Qrels,
    asking: Asking | None,
    choices: Callable[[], Collection[str]],
) -> tuple[list[AnswerMetric], list[Metric]]:
    """The metrics of answers and of selections: those named, once each, or those that suit the queries.

    Each can be asked of some query.
    """
    names = list(dict.fromkeys(settings.metrics))
    of_answers = [name for name in names if is_answer_metric(name)]
    if asking is None and of_answers:
        raise InvalidInput(f"the metric {of_answers[0]} without a language model", fix="name one: --backend, asking=")
    if asking is not None and names and not of_answers:
        raise InvalidInput(
            "a language model and no metric of its answers", expected=f"one of {', '.join(ANSWER_METRICS)}"
        )
    judges = [answer_metric(name, choices) for name in (of_answers if names or asking is None else ["exact", "f1"])]
    chosen = [metric(name) for name in names if name not in of_answers] if names else default_metrics(queries, grades)
    needs = {
        one.name: NEEDS[one.needs] for one in chosen if not any(one.judges(q, grades.get(q.id, {})) for q in queries)
    }
    needs |= {one.name: "a true answer" for one in judges if not any(map(one.judges, queries))}
    for name, what in needs.items():
        raise InvalidInput(f"the metric {name} where no query has {what}", fix="name the field, or another metric")
    return judges, chosen


def choices_of(snapshot: Snapshot) -> set[str]:
    """The outputs and labels of the pool, normalised; of more than can be a choice, as many as show it."""
    found: set[str] = set()
    for _, example in snapshot.present():
        found.update(map(normalised, (example.output_text, *example.labels)))
        if len(found) > MOST_CHOICES + 1:  # the empty text is none
            break
    return found - {""}


def _recipes(
    retriever: Retriever, recipes: Mapping[str, RecipeLike] | None, metrics: Sequence[Metric], settings: EvalSettings
) -> dict[str, Recipe]:
    """The recipes as they are followed: with the guard's level and, if it is given, k."""
    options: Options = {"guard": settings.guard}
    if settings.k is not None:
        options["k"] = settings.k
    given = recipes_of(retriever) if recipes is None else recipes
    if not given:
        raise InvalidInput("no recipe", expected="at least one")
    effective = {name: retriever.effective_recipe(recipe, **options) for name, recipe in given.items()}
    for name, recipe in effective.items():
        deep = [one.name for one in metrics if (one.depth or 0) > recipe.select.k]
        if deep:
            raise InvalidInput(
                f"the metric {deep[0]} of the recipe {name}, which chooses {recipe.select.k}",
                expected="no more demonstrations than a recipe chooses",
                fix="raise its k: -k, EvalSettings(k=...), or name a smaller number",
            )
    return effective


@dataclass(frozen=True)
class _Measured:
    """What one recipe did.

    Attributes:
        values: Of each metric for each query, NaN where it cannot be asked; shape (metrics, queries).
        ids: The demonstrations of each query, best first; where prompts are made, those that stand in the prompt.
        short: How many queries got fewer demonstrations than k.
        recipe: The settings, with every default filled in.
        prompts: The prompt of each query; empty where nothing asks for it.
        milliseconds: The mean time of a selection.
    """

    values: Values
    ids: Sequence[tuple[str, ...]]
    short: int
    recipe: Recipe
    prompts: Sequence[Prompt]
    milliseconds: float


@dataclass(frozen=True)
class _Task:
    """What all recipes are judged by."""

    retriever: Retriever
    snapshot: Snapshot
    queries: Sequence[Example]
    qrels: Qrels
    metrics: Sequence[Metric]
    prompt: PromptOptions
    keep_prompts: bool
    progress: Progress

    def measure(self, name: str, recipe: Recipe) -> _Measured:
        """Answers every query by one recipe and judges the answers."""
        values = np.full((len(self.metrics), len(self.queries)), np.nan)
        ids: list[tuple[str, ...]] = []
        prompts: list[Prompt] = []
        counted = any(one.name == "tokens" for one in self.metrics)
        asked = [as_asked(query, judged=bool(self.qrels)) for query in self.queries]
        # A model that is loaded for the first query is no part of what a query takes.
        next(self.retriever.select_many(asked[:1], recipe=recipe))
        took, short, started = 0.0, 0, time.perf_counter()
        for place, selection in enumerate(self.retriever.select_many(asked, recipe=recipe)):
            took += time.perf_counter() - started
            made = (
                self.retriever.prompt(selection, prompt_options=self.prompt) if counted or self.keep_prompts else None
            )
            if made is not None and self.keep_prompts:
                prompts.append(made)
            truth, tokens = self.queries[place], None if made is None else made.tokens
            seen = judged(self.snapshot, selection, truth, tokens, self.qrels.get(truth.id, {}))
            for number, one in enumerate(self.metrics):
                if one.judges(seen.truth, seen.grades):
                    values[number, place] = one(seen)
            ids.append(selection.ids if made is None else _standing(selection, made))
            short += len(selection.ids) < selection.recipe.select.k
            self.progress(name, place + 1, len(self.queries))
            started = time.perf_counter()
        return _Measured(
            values=values,
            ids=ids,
            short=short,
            recipe=selection.recipe,
            prompts=prompts,
            milliseconds=1e3 * took / len(self.queries),
        )


def _standing(selection: Selection, prompt: Prompt) -> tuple[str, ...]:
    """The demonstrations that stand in a prompt, best first: a budget may leave some of a selection out."""
    standing = {one.id for one in prompt.demonstrations}
    return tuple(identity for identity in selection.ids if identity in standing)


def judged(
    snapshot: Snapshot,
    selection: Selection,
    truth: Example,
    tokens: int | None,
    grades: Grades,
    *,
    view: Snapshot | None = None,
) -> Judged:
    """A selection with what is known of its query.

    Args:
        snapshot: The view of the pool that the selection is to come from, and whose vectors tell what is alike.
        selection: The selection.
        truth: The query with its true output and labels.
        tokens: The length of the prompt, where something asks for it.
        grades: Relevance judgements of the query.
        view: The view that the selection is to come from, where it is another one of the same examples.

    Raises:
        InvalidInput: The selection comes from another view.
    """
    if (selection.generation, selection.revision) != _state(view or snapshot):
        raise InvalidInput("the index changed while it was evaluated", fix="evaluate it again")
    places = snapshot.places_of(selection.ids)
    rows = np.array([places[identity] for identity in selection.ids], dtype=np.int64)
    return Judged(
        truth=truth,
        chosen=tuple(demonstration.example for demonstration in selection),
        scores=tuple(demonstration.score for demonstration in selection),
        vectors=snapshot.index.dense.vectors(rows),
        k=selection.recipe.select.k,
        tokens=tokens,
        grades=grades,
    )


def _state(snapshot: Snapshot) -> tuple[str, int]:
    return snapshot.base.generation.name, snapshot.revision.number


def known_by(snapshot: Snapshot) -> dict[str, Json]:
    """What an index is known by, wherever it lies; the chain tells its content."""
    generation, revision = _state(snapshot)
    chain = snapshot.revision.chain
    return {"examples": len(snapshot), "generation": generation, "revision": revision, "chain": chain}


def _notes(task: _Task, measured: Mapping[str, _Measured], given: bool) -> list[str]:
    """What a reader of the figures should know."""
    count, notes = len(task.queries), []
    for name, one in measured.items():
        if one.short:
            notes.append(f"{name}: {one.short} of {count} queries got fewer than {one.recipe.select.k} demonstrations")
    if count < _FEW:
        notes.append(f"{count} queries are few: intervals of fewer than {_FEW} are rough")
    if given and not task.qrels and (same := len(task.snapshot.places_of([query.id for query in task.queries]))):
        notes.append(
            f"{same} queries have ids of examples in the pool, which the guard takes for the queries themselves"
        )
    return notes

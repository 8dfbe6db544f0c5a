"""What an evaluation found: means with intervals, what is told apart and what is not, labels, and the worst queries."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from retriever.evaluation.intervals import Interval
from retriever.example import Example, Json
from retriever.ranking.recipe import Recipe


@dataclass(frozen=True)
class Evaluated:
    """A recipe that was evaluated.

    Attributes:
        name: What it is called in the result.
        recipe: Its settings, those that the evaluation imposes included.
        milliseconds: The mean time of a selection in blocks, the embedding of the query included. It is no part of what
            is compared or written unless that is asked for: no two runs take the same.
    """

    name: str
    recipe: Recipe
    milliseconds: float = field(compare=False)


@dataclass(frozen=True)
class Score:
    """A recipe on a metric.

    Attributes:
        recipe: The recipe's name.
        mean: The mean over the queries.
        interval: Where the mean lies; None for fewer than two queries.
        difference: This mean less that of the reference.
        difference_interval: Where the difference lies, paired by query.
        verdict: `best` (the highest mean, or the lowest where less is better), `tied` with the best (the interval of
            the difference holds 0) or `worse`. Where neither more nor less is better: `first`, `tied` with it, or
            `differs`.
    """

    recipe: str
    mean: float
    interval: Interval | None
    difference: float
    difference_interval: Interval | None
    verdict: str

    def to_dict(self) -> dict[str, Json]:
        """For JSON output and, with the metric's name, a row of a table."""
        return {
            "recipe": self.recipe,
            "mean": rounded(self.mean),
            **ends("", self.interval),
            "difference": rounded(self.difference),
            **ends("difference_", self.difference_interval),
            "verdict": self.verdict,
        }


@dataclass(frozen=True)
class MetricResult:
    """All recipes on a metric.

    Attributes:
        metric: Its name.
        better: 1 where more is better, -1 where less is, 0 where neither is by itself.
        queries: How many queries it was asked of, the same for all recipes.
        scores: In the order of the recipes.
    """

    metric: str
    better: int
    queries: int
    scores: tuple[Score, ...]

    @property
    def reference(self) -> str:
        """The recipe that the others are compared to: the best, or the first where none can be."""
        return next(score.recipe for score in self.scores if score.verdict in ("best", "first"))


@dataclass(frozen=True)
class LabelResult:
    """The queries of one label.

    Attributes:
        label: The label; a query with several counts for each.
        queries: How many.
        means: The mean of the first metric by recipe.
    """

    label: str
    queries: int
    means: Mapping[str, float]


@dataclass(frozen=True)
class QueryResult:
    """One query.

    Attributes:
        query: With its true output and labels.
        values: The first metric by recipe.
        demonstrations: Their ids by recipe, best first; where prompts are made (for a language model, or to count
            tokens) without those that a budget left out of the prompt.
        answers: What a language model answered, by recipe; empty without one.
    """

    query: Example
    values: Mapping[str, float]
    demonstrations: Mapping[str, tuple[str, ...]]
    answers: Mapping[str, str]


@dataclass(frozen=True)
class Evaluation:
    """Recipes compared by metrics.

    Attributes:
        index: What the index is known by: examples, generation, revision and chain.
        asked: `leave-one-out` or `queries`.
        queries: How many queries.
        settings: Guard, seed, resamples and level, and the language model if there is one.
        recipes: What was compared.
        metrics: By what; the first is what labels and worst queries are broken down by.
        labels: Each label, the worst of the first metric's reference recipe first.
        worst: The worst queries of that recipe, the worst first.
        notes: What a reader should know.
    """

    index: Mapping[str, Json]
    asked: str
    queries: int
    settings: Mapping[str, Json]
    recipes: tuple[Evaluated, ...]
    metrics: tuple[MetricResult, ...]
    labels: tuple[LabelResult, ...]
    worst: tuple[QueryResult, ...]
    notes: tuple[str, ...] = ()

    def __getitem__(self, metric: str) -> MetricResult:
        """A metric by its name.

        Raises:
            KeyError: It was not asked for.
        """
        return next((one for one in self.metrics if one.metric == metric), None) or _missing(metric)

    def to_dict(self, *, times: bool = False) -> dict[str, Json]:
        """For JSON output; the same evaluation gives the same, unless times are asked for."""
        return {
            "index": dict(self.index),
            "asked": self.asked,
            "queries": self.queries,
            "settings": dict(self.settings),
            "recipes": [_recipe(one, times) for one in self.recipes],
            "metrics": [
                {
                    "metric": one.metric,
                    "better": {1: "more", -1: "less", 0: None}[one.better],
                    "queries": one.queries,
                    "reference": one.reference,
                    "scores": [score.to_dict() for score in one.scores],
                }
                for one in self.metrics
            ],
            "labels": [
                {"label": one.label, "queries": one.queries, "means": _rounded(one.means)} for one in self.labels
            ],
            "worst": [
                {
                    "query": one.query.to_dict(),
                    "values": _rounded(one.values),
                    "demonstrations": {name: list(ids) for name, ids in one.demonstrations.items()},
                    **({"answers": dict(one.answers)} if one.answers else {}),
                }
                for one in self.worst
            ],
            "notes": list(self.notes),
        }

    def rows(self, *, times: bool = False) -> list[dict[str, Json]]:
        """One flat record for each metric and recipe, for CSV and data frames."""
        took = {one.name: one.milliseconds for one in self.recipes}
        return [
            {
                "metric": one.metric,
                "queries": one.queries,
                **score.to_dict(),
                **({"milliseconds": rounded(took[score.recipe])} if times else {}),
            }
            for one in self.metrics
            for score in one.scores
        ]


def _missing(metric: str) -> MetricResult:
    raise KeyError(metric)


def _recipe(one: Evaluated, times: bool) -> Json:
    took: dict[str, Json] = {"milliseconds": rounded(one.milliseconds)} if times else {}
    return {"name": one.name, **took, "recipe": one.recipe.to_dict()}


def rounded(value: float) -> float | None:
    """A figure as it is written: six digits after the point; None for what is no number, which JSON cannot say."""
    return round(value, 6) if math.isfinite(value) else None


def _rounded(values: Mapping[str, float]) -> dict[str, Json]:
    return {name: rounded(value) for name, value in values.items()}


def ends(name: str, interval: Interval | None) -> dict[str, Json]:
    """An interval as it is written, under names that begin with `name`."""
    if interval is None:
        return {f"{name}low": None, f"{name}high": None}
    return {f"{name}low": rounded(interval.low), f"{name}high": rounded(interval.high)}

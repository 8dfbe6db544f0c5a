"""From the values of recipes on queries to what can be said of them: means, ties, labels and worst queries."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from retriever.evaluation.intervals import Bootstrap, intervals
from retriever.evaluation.results import LabelResult, MetricResult, QueryResult, Score
from retriever.example import Example

Values: TypeAlias = NDArray[np.float64]
"""NaN stands where a query was not judged."""


def compared(metric: str, better: int, names: Sequence[str], values: Values, bootstrap: Bootstrap) -> MetricResult:
    """The recipes on one metric, over the queries that all of them were judged on.

    Args:
        metric: Its name.
        better: 1 where more is better, -1 where less is, 0 where neither is by itself.
        names: The recipes.
        values: Shape (recipes, queries), NaN where a query was not judged.
        bootstrap: How intervals are worked out.
    """
    complete = values[:, ~np.isnan(values).any(axis=0)]
    means = [math.fsum(row.tolist()) / len(row) for row in complete]
    best = max(range(len(names)), key=lambda place: better * means[place])  # the first of equals
    differences = complete - complete[best]
    found = intervals(np.concatenate([complete, differences]).T, bootstrap)
    scores = []
    for place, name in enumerate(names):
        apart = found[len(names) + place]
        tied = apart is None or apart.holds(0.0)
        if place == best:
            verdict = "best" if better else "first"
        elif tied:
            verdict = "tied"
        else:
            verdict = "worse" if better else "differs"
        difference = math.fsum(differences[place].tolist()) / len(differences[place])
        scores.append(
            Score(
                recipe=name,
                mean=means[place],
                interval=found[place],
                difference=difference,
                difference_interval=apart,
                verdict=verdict,
            )
        )
    return MetricResult(metric, better, complete.shape[1], tuple(scores))


def by_query(
    first: MetricResult,
    queries: Sequence[Example],
    values: Values,
    ids: Mapping[str, Sequence[tuple[str, ...]]],
    answers: Mapping[str, Sequence[str | None]],
) -> list[QueryResult]:
    """The queries that the first metric judges, the worst of its reference recipe first, else in their order."""
    place = list(ids).index(first.reference)
    judged = np.flatnonzero(~np.isnan(values).any(axis=0))
    sign = first.better or 1
    ordered = judged[np.argsort(sign * values[place, judged], kind="stable")]
    return [
        QueryResult(
            queries[query],
            dict(zip(ids, values[:, query].tolist(), strict=True)),
            {name: chosen[query] for name, chosen in ids.items()},
            {name: text for name, texts in answers.items() if (text := texts[query]) is not None},
        )
        for query in ordered.tolist()
    ]


def by_label(first: MetricResult, queries: Sequence[QueryResult]) -> tuple[LabelResult, ...]:
    """Each label's mean, the worst of the reference recipe first, equals by name."""
    of_label: dict[str, list[Mapping[str, float]]] = {}
    for one in queries:
        for label in one.query.labels:
            of_label.setdefault(label, []).append(one.values)
    found = [
        LabelResult(label, len(rows), {name: math.fsum(row[name] for row in rows) / len(rows) for name in rows[0]})
        for label, rows in of_label.items()
    ]
    sign = first.better or 1
    return tuple(sorted(found, key=lambda one: (sign * one.means[first.reference], one.label)))

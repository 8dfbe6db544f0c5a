"""What the plots show, as plain data that plotly's script draws; colours are names of the page's style.

Texts that stand in a plot (names of labels and recipes) are escaped here, for plotly reads markup in them; those that
are shown on hover are not, for the page's own script shows them as text.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from retriever.evaluation.report.gathering import Report
from retriever.evaluation.report.text import shown
from retriever.evaluation.results import MetricResult
from retriever.example import Example, Json

_BARS = 24
_CLASSES = 20
_FOREST = 4
_TICK = 26


@dataclass(frozen=True)
class Figure:
    """A plot.

    Attributes:
        name: Its id in the page.
        summary: What it shows, for those who cannot see it.
        data: Traces, as plotly takes them.
        layout: What is special of its layout; the page's script fills in the rest.
        height: In pixels.
    """

    name: str
    summary: str
    data: list[Json]
    layout: dict[str, Json]
    height: int = 240

    def to_dict(self) -> dict[str, Json]:
        """For the page's script."""
        return {"name": self.name, "data": self.data, "layout": self.layout}


def histogram(name: str, title: str, values: Sequence[float], *, whole: bool, fixed: bool = False) -> Figure:
    """How often values lie in each of equal intervals; the longest two hundredths share the last bar.

    Args:
        name: The figure's id.
        title: Of the horizontal axis.
        values: At least one.
        whole: Whether they are whole numbers.
        fixed: Whether the largest are as important as the others.
    """
    numbers = np.asarray(values, dtype=np.float64)
    low = float(numbers.min())
    high = float(numbers.max() if fixed else np.quantile(numbers, 0.98, method="higher"))
    width = max((high - low) / _BARS, 1.0 if whole else 0.005)
    if whole:
        width = math.ceil(width)
    bars = math.floor((high - low) / width) + 1 if whole else max(1, math.ceil((high - low) / width - 1e-9))
    counts = np.bincount(np.clip((numbers - low) // width, 0, bars - 1).astype(np.int64), minlength=bars)
    starts = [low + place * width for place in range(bars)]
    texts = [
        f"{_number(whole, a)} to {_number(whole, a + width)}: {n:,}"
        for a, n in zip(starts, counts.tolist(), strict=True)
    ]
    if not fixed and float(numbers.max()) > starts[-1] + width:
        texts[-1] = f"{_number(whole, starts[-1])} and more: {int(counts[-1]):,}"
    median = float(np.median(numbers))
    return Figure(
        name=name,
        summary=f"Histogram of {title}: {len(numbers):,} values from {_number(whole, low)} to "
        f"{_number(whole, float(numbers.max()))}, median {_number(whole, median)}.",
        data=[
            {
                "type": "bar",
                "x": [round(a + width / 2, 4) for a in starts],
                "y": counts.tolist(),
                "width": [round(width * 0.92, 4)] * bars,
                "customdata": list(texts),
                "marker": {"color": "--accent"},
            }
        ],
        layout={"xaxis": {"title": {"text": title}}, "yaxis": {"nticks": 4}, "bargap": 0},
        height=200,
    )


def _number(whole: bool, value: float) -> str:
    return f"{value:,.0f}" if whole else f"{value:.2f}"


def classes(report: Report) -> Figure:
    """The most frequent labels."""
    top = list(report.pool.classes[:_CLASSES])
    what = report.pool.classes_are
    return Figure(
        name="labels",
        summary=f"Bar chart of examples per {what}. Most: {top[0][0][:80]} with {top[0][1]:,}. "
        "The table has the same figures.",
        data=[
            {
                "type": "bar",
                "orientation": "h",
                "x": [count for _, count in top],
                "y": list(range(len(top))),
                "customdata": [f"{shown(name, 80)}: {count:,}" for name, count in top],
                "marker": {"color": "--accent"},
            }
        ],
        layout={
            "yaxis": _rows([name for name, _ in top]),
            "xaxis": {"title": {"text": "examples"}, "rangemode": "tozero"},
        },
        height=90 + 20 * len(top),
    )


def _rows(names: Sequence[str]) -> dict[str, Json]:
    """An axis of names, the first on top."""
    return {
        "tickvals": list(range(len(names))),
        "ticktext": [html.escape(shown(name, _TICK)) for name in names],
        "range": [len(names) - 0.5, -0.5],
        "showgrid": False,
        "automargin": True,
    }


def forests(report: Report) -> list[Figure]:
    """Means with intervals of every recipe, a figure for each of the metrics that have a better end."""
    judged = [one for one in report.evaluation.metrics if one.better] or list(report.evaluation.metrics)
    return [_forest(number, one) for number, one in enumerate(judged[:_FOREST])]


def _forest(number: int, metric: MetricResult) -> Figure:
    names = [score.recipe for score in metric.scores]
    means = [round(score.mean, 6) for score in metric.scores]
    ends = [
        (m, m) if s.interval is None else (s.interval.low, s.interval.high)
        for m, s in zip(means, metric.scores, strict=True)
    ]
    texts = [
        f"{shown(name, 60)}: {figure(mean)}, {figure(low)} to {figure(high)}"
        for name, mean, (low, high) in zip(names, means, ends, strict=True)
    ]
    return Figure(
        name=f"forest-{number}",
        summary=f"Mean {metric.metric} with its interval. {'. '.join(texts)}.",
        data=[
            {
                "type": "scatter",
                "mode": "markers",
                "x": list(means),
                "y": list(range(len(names))),
                "customdata": list(texts),
                "marker": {
                    "size": 10,
                    "color": [
                        "--accent" if s.verdict in ("best", "first", "tied") else "--muted" for s in metric.scores
                    ],
                },
                "error_x": {
                    "type": "data",
                    "symmetric": False,
                    "array": [round(high - mean, 6) for mean, (_, high) in zip(means, ends, strict=True)],
                    "arrayminus": [round(mean - low, 6) for mean, (low, _) in zip(means, ends, strict=True)],
                    "color": "--muted",
                    "thickness": 1.5,
                    "width": 5,
                },
            }
        ],
        layout={"yaxis": _rows(names), "xaxis": {"title": {"text": metric.metric}, "nticks": 6}},
        height=90 + 34 * len(names),
    )


def cloud(report: Report) -> Figure:
    """The map; the script draws lines from a query to its choices when it is hovered."""
    of = report.map
    points: list[Json] = [
        {**_told(example), "times": times} for example, times in zip(of.examples, of.chosen, strict=True)
    ]
    queries: list[Json] = [{**_told(one.query), "picks": list(one.picks)} for one in of.queries]
    first, second = of.shares
    how, axes = (
        (
            f"by the first two principal components of their vectors, which hold {first + second:.0%} of the variance",
            (f"component 1 ({first:.0%})", f"component 2 ({second:.0%})"),
        )
        if of.method == "pca"
        else ("as UMAP lays out their vectors", ("UMAP 1", "UMAP 2"))
    )
    return Figure(
        name="map",
        summary=f"Scatter plot of {len(of.examples):,} examples and {len(of.queries):,} queries {how}.",
        data=[
            {
                "type": "scatter",
                "mode": "markers",
                "name": "example",
                "x": np.round(of.places[:, 0], 4).tolist(),
                "y": np.round(of.places[:, 1], 4).tolist(),
                "customdata": points,
                "marker": {"size": 5, "color": "--point", "opacity": 0.55},
            },
            {
                "type": "scatter",
                "mode": "lines",
                "x": [],
                "y": [],
                "hoverinfo": "skip",
                "showlegend": False,
                "line": {"color": "--accent", "width": 1},
            },
            {
                "type": "scatter",
                "mode": "markers",
                "name": "highlighted",
                "x": [],
                "y": [],
                "hoverinfo": "skip",
                "showlegend": False,
                "marker": {"size": 8, "color": "--accent", "symbol": "circle-open", "line": {"width": 2}},
            },
            {
                "type": "scatter",
                "mode": "markers",
                "name": "query",
                "x": [round(one.place[0], 4) for one in of.queries],
                "y": [round(one.place[1], 4) for one in of.queries],
                "customdata": queries,
                "marker": {
                    "size": 8,
                    "color": "--accent",
                    "symbol": "diamond",
                    "line": {"color": "--card", "width": 1},
                },
            },
        ],
        layout={
            "xaxis": {"title": {"text": axes[0]}, "nticks": 5, "zeroline": False},
            "yaxis": {"title": {"text": axes[1]}, "nticks": 5, "zeroline": False},
            "showlegend": True,
            "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        },
        height=520,
    )


def _told(example: Example) -> dict[str, Json]:
    label = " + ".join(sorted(example.labels))
    return {
        "id": shown(example.id, 60),
        "input": shown(example.input_text, 160),
        "output": shown(example.output_text, 100),
        "label": shown(label, 60),
    }


def figure(value: float) -> str:
    """A figure in three digits after the point; large ones in one."""
    if math.isnan(value):
        return "–"
    return (f"{value:.3f}" if abs(value) < 100 else f"{value:,.1f}").replace("-", "−")

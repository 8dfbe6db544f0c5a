"""The page: one HTML document with its style, its script and plotly's inside.

Every text goes through Jinja's escaping. The document's policy allows these two scripts by their hashes and no others,
and forbids every request: a text that slipped through could neither run nor fetch anything.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from importlib.resources import files

import numpy as np

from retriever.errors import MissingDependency
from retriever.evaluation.report.figures import Figure, classes, cloud, figure, forests, histogram
from retriever.evaluation.report.gathering import Report
from retriever.evaluation.report.text import shown
from retriever.example import Example, Json

_LISTED_LABELS = 200
_AT_CHARACTER = str.maketrans(
    {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}
)

KINDS = {
    "conflict": "the same input with different labels or outputs",
    "copies": "inputs that are near copies of each other",
    "leak": "queries that are in the pool, as they are or nearly",
    "outlier-label": "examples whose nearest all have one label, and not their own",
    "outlier-far": "examples much farther from all others than is usual",
    "suspicious": "role markers, invisible characters, blank outputs, extreme lengths",
}


def plot_library() -> str:
    """Plotly's script.

    Raises:
        MissingDependency: plotly or Jinja is not installed.
    """
    try:
        import jinja2  # noqa: F401
    except ImportError as error:
        raise MissingDependency("jinja2", "report", purpose="a report") from error
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise MissingDependency("plotly", "report", purpose="a report") from error
    return str(get_plotlyjs())


def page(report: Report, library: str) -> str:
    """The document.

    Args:
        report: What it says.
        library: Plotly's script.
    """
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    figures = _figures(report)
    script = _part("page.js")
    environment = Environment(autoescape=True, undefined=StrictUndefined, lstrip_blocks=True)
    environment.filters.update(
        shown=shown, figure=figure, percent=lambda share: f"{share:.1%}", whole=lambda n: f"{n:,}", labels=_labels
    )
    environment.tests["agreeing"] = lambda example, query: bool(example.labels & query.labels)
    made = environment.from_string(_part("page.html")).render(
        report=report,
        figures={one.name: one for one in figures},
        forests=[one for one in figures if one.name.startswith("forest-")],
        lengths={name: _summary(values) for name, values in report.pool.lengths.items()},
        kinds=KINDS,
        listed_labels=_LISTED_LABELS,
        nearest=_nearest(report),
        data=Markup(_inert([one.to_dict() for one in figures])),
        style=Markup(_part("page.css")),
        library=Markup(library),
        script=Markup(script),
        policy="default-src 'none'; "
        f"script-src '{_digest(library)}' '{_digest(script)}'; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'",
    )
    return made.lstrip()  # without the lines that the macros leave


def _figures(report: Report) -> list[Figure]:
    found = [
        histogram(f"lengths-{name}", f"{name}, characters", values, whole=True)
        for name, values in report.pool.lengths.items()
    ]
    if report.pool.classes:
        found.append(classes(report))
    found += [cloud(report), *forests(report)]
    cosines = _cosines(report)
    if cosines:
        found.append(histogram("coverage", "cosine of the nearest example", cosines, whole=False, fixed=True))
    return found


def _cosines(report: Report) -> list[float]:
    return [one.cosine for one in report.covered if not np.isnan(one.cosine)]


def _nearest(report: Report) -> dict[str, float]:
    """Quantiles of the cosines of the nearest examples, and how much of the queries' words the pool has."""
    cosines = _cosines(report) or [float("nan")]
    low, middle, high = (float(v) for v in np.quantile(cosines, [0.1, 0.5, 0.9]))
    terms = sum(one.terms for one in report.covered)
    unknown = sum(len(one.unknown) for one in report.covered)
    return {
        "low": low,
        "median": middle,
        "high": high,
        "terms": 1 - unknown / terms if terms else 1.0,
        "whole": sum(not one.unknown for one in report.covered) / len(report.covered),
    }


def _summary(values: Sequence[int]) -> dict[str, int]:
    numbers = np.asarray(values)
    points = np.quantile(numbers, [0, 0.5, 0.95, 1], method="higher")
    names = ("shortest", "median", "95 % up to", "longest")
    return {**dict(zip(names, points.astype(int).tolist(), strict=True)), "empty": int((numbers == 0).sum())}


def _labels(example: Example, width: int) -> str:
    return shown(" + ".join(sorted(example.labels)), width)


def _inert(value: Json) -> str:
    """JSON that cannot end the element it stands in; the values are the same."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).translate(_AT_CHARACTER)


def _part(name: str) -> str:
    return (files(__package__) / name).read_text(encoding="utf-8")


def _digest(script: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()

"""Metrics of a language model's answer: one pure function each, and what they are asked for by.

    exact               the true output, but for white space
    f1                  the words of both, as SQuAD compares them
    contains            the true output stands in the answer, as whole words
    choice              of all outputs and labels of the pool, the answer names a true one
    python:MODULE.FN    a function of yours, from the answer and the query (an `Example` with its truth) to a number

All but `exact` look past case, punctuation and white space, as the leak guard's level `normalised` does.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass
from importlib import import_module
from numbers import Real

import numpy as np

from retriever.errors import InvalidInput
from retriever.example import Example
from retriever.ranking.guard import normalised

ANSWER_METRICS = ("exact", "f1", "contains", "choice")
MOST_CHOICES = 1000
_OWN = "python:"


@dataclass(frozen=True)
class AnswerMetric:
    """A metric of an answer; more is better.

    Attributes:
        name: What it is asked for by.
        value: From an answer and the query with its truth.
        judges: Whether what it needs is known of the query.
    """

    name: str
    value: Callable[[str, Example], float]
    judges: Callable[[Example], bool]


def exact(answer: str, output: str) -> float:
    """1 when both are the same but for white space, else 0."""
    return float(answer.split() == output.split())


def f1(answer: str, output: str) -> float:
    """The harmonic mean of the shares of words that answer and output have in common (Rajpurkar et al. 2016).

    Words count as often as they stand there; articles, which SQuAD leaves out, count.
    """
    ours, theirs = Counter(normalised(answer).split()), Counter(normalised(output).split())
    if not ours or not theirs:
        return exact(answer, output)
    shared = (ours & theirs).total()
    return 2 * shared / (ours.total() + theirs.total())


def contains(answer: str, output: str) -> float:
    """1 when the output stands in the answer as whole words, else 0."""
    wanted = normalised(output)
    return float(f" {wanted} " in f" {normalised(answer)} ") if wanted else exact(answer, output)


def chosen(answer: str, choices: Collection[str]) -> str | None:
    """The choice that an answer names.

    Args:
        answer: The answer.
        choices: Normalised.

    Returns:
        The one that is the whole answer, else the one that stands first in it, the longest of those that begin there;
        None when it names none.
    """
    text = normalised(answer)
    if text in choices:
        return text
    padded = f" {text} "
    places = {choice: padded.find(f" {choice} ") for choice in choices if choice}
    named = [choice for choice, place in places.items() if place >= 0]
    return min(named, key=lambda choice: (places[choice], -len(choice), choice), default=None)


def is_answer_metric(name: str) -> bool:
    """Whether a name is that of a metric that needs a language model."""
    return name in ANSWER_METRICS or name.startswith(_OWN)


def answer_metric(name: str, choices: Callable[[], Collection[str]]) -> AnswerMetric:
    """The metric of a name.

    Args:
        name: One for which `is_answer_metric` holds.
        choices: Gives the outputs and labels of the pool, should the metric ask for them.

    Raises:
        InvalidInput: A function of yours that is none, or more choices than `MOST_CHOICES`.
    """
    if name.startswith(_OWN):
        return AnswerMetric(name, _checked(name, _function(name)), lambda truth: True)
    if name == "choice":
        return AnswerMetric(name, _choice(choices()), lambda truth: bool(_truths(truth)))
    compare = {"exact": exact, "f1": f1, "contains": contains}[name]
    return AnswerMetric(
        name, lambda answer, truth: compare(answer, truth.output_text), lambda truth: bool(truth.output_text.strip())
    )


def _choice(texts: Collection[str]) -> Callable[[str, Example], float]:
    choices = frozenset(map(normalised, texts))
    if len(choices) > MOST_CHOICES:
        raise InvalidInput(
            f"the metric choice where the pool has more than {MOST_CHOICES:,} different outputs and labels",
            fix="take exact, f1 or contains for outputs that are no choice",
        )
    return lambda answer, truth: float(chosen(answer, choices | _truths(truth)) in _truths(truth))


def _truths(truth: Example) -> frozenset[str]:
    return frozenset(filter(None, map(normalised, (truth.output_text, *truth.labels))))


def _function(name: str) -> Callable[[str, Example], object]:
    module, dot, function = name.removeprefix(_OWN).rpartition(".")
    try:
        found = getattr(import_module(module), function) if dot and module else None
    except Exception as error:  # whatever a module of somebody else's raises while it is imported
        raise InvalidInput(
            f"the metric {name!r}: {_said(error)}",
            expected="python:MODULE.FUNCTION",
            fix="put its folder on PYTHONPATH, and see that it can be imported",
        ) from error
    if not callable(found):
        raise InvalidInput(f"the metric {name!r}", expected="python:MODULE.FUNCTION, a function of answer and query")
    return found  # type: ignore[no-any-return]


def _checked(name: str, function: Callable[[str, Example], object]) -> Callable[[str, Example], float]:
    def value(answer: str, truth: Example) -> float:
        try:
            found = function(answer, truth)
            # Python's and NumPy's integers and floats are Real; NumPy's truth values are not.
            number = float(found) if isinstance(found, Real | np.bool_) else math.nan
        except Exception as error:  # whatever a function of somebody else's raises
            raise InvalidInput(
                f"the metric {name} failed for the query {truth.id!r}: {_said(error)}",
                expected="a finite number for any answer, be it empty",
                fix="mend the function and run again: what was answered is kept, and costs nothing",
            ) from error
        if not math.isfinite(number):
            raise InvalidInput(f"{name} gave {found!r} for the query {truth.id!r}", expected="a finite number")
        return number

    return value


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"

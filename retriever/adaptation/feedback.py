"""Feedback: logged outcomes of prompts and of demonstrations, as a file holds them.

A line says one of three things of a query:

    {"query": "...", "demonstrations": ["id", ...], "right": true}     the whole prompt led to the right answer, or not
    {"query": "...", "demonstrations": ["id", ...], "score": 0.7}      how well it did; more is better
    {"query": "...", "scores": {"id": -1.2, ...}}                      how well each demonstration does by itself

The last is what EPR trains on (Rubin et al. 2022): the log-likelihood of the true answer given each candidate. A query
is a text, or an object with the fields that the index's key needs. A demonstration is its id, a text or a whole number,
or an object that holds it: a line of `retriever export`, with an outcome put in, is a line of feedback. Further fields
are left alone.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from retriever.errors import InvalidInput
from retriever.example import Example, Json, as_query, render
from retriever.formats import BadRow, BadRowLog, Fields, Limits, Source, read_queries
from retriever.listening import silent

_FIELDS = Fields(input="query", output=None, rationale=None, label=None, id=None, task=None, meta=None)
_LARGEST = 1e100
"""What is beyond would overflow when it is squared."""
_FORMS = '"demonstrations" with "right" or "score", or "scores"'


@dataclass(frozen=True)
class Outcome:
    """How a whole prompt did.

    Attributes:
        query: The query.
        ids: The demonstrations that were shown.
        score: More is better; 1 and 0 for right and wrong.
    """

    query: Example
    ids: tuple[str, ...]
    score: float


@dataclass(frozen=True)
class Scored:
    """How well demonstrations do for a query, each by itself.

    Attributes:
        query: The query.
        scores: By id; more is better.
    """

    query: Example
    scores: Mapping[str, float]


@dataclass(frozen=True)
class Feedback:
    """What was logged.

    Attributes:
        name: What messages and the index call the log: the name of its file, or the type of the data.
        lines: Each outcome, in order.
        bad: How many further lines could not be used.
        first_bad: The first of them.
    """

    name: str
    lines: tuple[Outcome | Scored, ...]
    bad: int = 0
    first_bad: BadRow | None = None

    @property
    def digest(self) -> str:
        """What tells it from other feedback: a SHA-256, in hexadecimal."""
        return hashlib.sha256(repr([_facts(line) for line in self.lines]).encode("utf-8", "replace")).hexdigest()

    def check_lines(self) -> None:
        """Refuses a log without a line that can be used.

        Raises:
            InvalidInput: It has none.
        """
        if not self.lines:
            bad = f": {self.bad} bad, first {self.first_bad}" if self.bad else ""
            raise InvalidInput(f"{self.name} has no line that can be used{bad}", expected=f"a query with {_FORMS}")


def _facts(line: Outcome | Scored) -> tuple[object, ...]:
    if isinstance(line, Outcome):
        return line.query.to_dict(), line.ids, line.score
    return line.query.to_dict(), sorted(line.scores.items())


def read_feedback(
    source: Source,
    *,
    usable: Callable[[Example], object] = lambda query: None,
    format: str | None = None,
    encoding: str = "utf-8",
    limits: Limits | None = None,
    strict: bool = False,
    on_bad: Callable[[BadRow], None] = silent,
) -> Feedback:
    """Reads a log.

    Args:
        source: A path, `-` for standard input, or an iterable of mappings; any format that queries come in.
        usable: Called with each query; a line for which it raises `InvalidInput` is set aside.
        format: The format of a file; None tells it from the suffix.
        encoding: Of a text file.
        limits: How large a line may be; default `Limits()`.
        strict: Whether a bad line is an error; otherwise bad lines are set aside.
        on_bad: Called with each line that was set aside.

    Raises:
        InvalidInput: The source cannot be read.
        BadRows: A bad line under `strict`.
    """
    lines: list[Outcome | Scored] = []
    log = BadRowLog()

    def take(row: Example) -> None:
        line = as_line(row.input, row.meta)
        usable(line.query)
        lines.append(line)

    def bad(row: BadRow) -> None:
        log(row)
        on_bad(row)

    bounds = limits or Limits()
    read = read_queries(
        source, fields=_FIELDS, format=format, encoding=encoding, limits=bounds, usable=take, on_bad=bad
    )
    for _ in read:
        pass
    if strict:
        log.raise_if_any()
    named = Path(source).name if isinstance(source, str | os.PathLike) else type(source).__name__
    return Feedback(named, tuple(lines), log.count, log.rows[0] if log.rows else None)


def as_line(query: Json, fields: Mapping[str, Json]) -> Outcome | Scored:
    """A line of a log.

    Args:
        query: A text, or an object with `input` and perhaps further fields.
        fields: What stands beside it.

    Raises:
        InvalidInput: It says no outcome, says several, or says it in another form.
    """
    if not isinstance(query, str | dict):
        raise InvalidInput(f"a query that is {query!r}", expected="a text, or an object with 'input'")
    asked = as_query(query)
    given = [name for name in ("right", "score", "scores") if fields.get(name) is not None]
    if len(given) != 1:
        raise InvalidInput(f"{' and '.join(given) or 'no outcome'} beside the query", expected=_FORMS)
    if given == ["scores"]:
        return Scored(asked, _scores(fields["scores"]))
    ids = _ids(fields.get("demonstrations"))
    value = fields[given[0]]
    if given == ["right"]:
        if not isinstance(value, bool):
            raise InvalidInput(f"right is {value!r}", expected="true or false; a number is a score")
        return Outcome(asked, ids, float(value))
    return Outcome(asked, ids, _number(value, "score"))


def _ids(value: Json) -> tuple[str, ...]:
    found = [one.get("id") if isinstance(one, dict) else one for one in value] if isinstance(value, list) else []
    if not found:
        raise InvalidInput("no demonstrations", expected="the ids of those that were shown, or objects that hold them")
    for one in found:
        if isinstance(one, bool) or not isinstance(one, str | int) or one == "":
            raise InvalidInput(f"a demonstration {one!r}", expected="an id, or an object that holds one")
    # As the ids of a pool are read: 17 is "17".
    return tuple(dict.fromkeys(map(render, found)))


def _scores(value: Json) -> dict[str, float]:
    if not isinstance(value, dict) or not value:
        raise InvalidInput(f"scores are {value!r}", expected='an object from ids to numbers: {"id": -1.2}')
    return {identity: _number(one, f"the score of {identity!r}") for identity, one in value.items()}


def _number(value: Json, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidInput(f"{what} is {value!r}", expected='a finite number; right and wrong are "right"')
    if not abs(value) <= _LARGEST:
        raise InvalidInput(f"{what} is not within ±{_LARGEST:g}", expected="a finite number of that size at most")
    return float(value)


def known_ids(feedback: Feedback, known: Callable[[Sequence[str]], Mapping[str, int]]) -> tuple[dict[str, int], int]:
    """The rows of the demonstrations that the log names, and how many of them are not there.

    Args:
        feedback: The log.
        known: From ids to rows, of those that are in the pool.
    """
    ids = dict.fromkeys(
        identity for line in feedback.lines for identity in (line.ids if isinstance(line, Outcome) else line.scores)
    )
    found = dict(known(list(ids)))
    return found, len(ids) - len(found)

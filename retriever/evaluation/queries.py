"""What an evaluation asks: examples of the pool held out one at a time, or queries whose answers are known."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

import numpy as np

from retriever.errors import BadRow, BadRows, InvalidInput
from retriever.evaluation.judged import Grades
from retriever.example import Example, unanswered
from retriever.ranking.seeding import permutation
from retriever.snapshot import Snapshot

Qrels: TypeAlias = Mapping[str, Grades]
"""Relevance by query id and document id."""


def held_out(snapshot: Snapshot, count: int, seed: int) -> list[Example]:
    """A seeded sample of the pool's own examples, in the order of the pool; all of them when there are no more.

    Args:
        snapshot: The view of the pool; what was removed is not asked.
        count: How many, at least 1.
        seed: Of the sample.

    Raises:
        InvalidInput: The count is below 1.
    """
    if count < 1:
        raise InvalidInput(f"leave_one_out = {count}", expected="1 or more")
    places = snapshot.live
    chosen = places[permutation(len(places), seed, "", "evaluation")[:count]]
    return snapshot.examples(np.sort(chosen))


def flattered(snapshot: Snapshot, leave_one_out: int | None) -> list[str]:
    """What a reader must know of figures by leave-one-out where the index has learned from what is held out.

    Args:
        snapshot: The view of the pool.
        leave_one_out: How many of its own examples are asked; None for given queries, which it may not have seen.
    """
    if leave_one_out is None or not snapshot.is_adapted:
        return []
    return [
        "the index was adapted on these very examples, or on a log of what they did: by leave-one-out its figures are "
        "flattered, even where there is nothing to learn; name queries that it has not learned from"
    ]


def as_asked(query: Example, *, judged: bool) -> Example:
    """The query as a user would ask it.

    Args:
        query: With its true output and labels. What it is judged by must not help to choose, by `match` or otherwise.
        judged: Whether there are relevance judgements, where queries and documents may be numbered alike; the guard
            takes equal ids for the same example.
    """
    identity = f"query {query.id}" if judged else query.id
    return replace(unanswered(query), id=identity)


def read_qrels(path: Path) -> Qrels:
    """Relevance judgements from a file.

    Tab-separated query id, document id and grade (BEIR), where a first line whose grade is no number is a header; or
    TREC's four columns, the second of which is not used, separated by white space.

    Raises:
        InvalidInput: There is no such file, or it is no text.
        BadRows: A line has other columns, a grade that is no number, or a pair that an earlier line has.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeError) as error:
        raise InvalidInput(f"judgements {path}: {error}", expected="a text file in UTF-8") from error
    grades: dict[str, dict[str, float]] = {}
    bad: list[BadRow] = []
    for number, line in enumerate(text.split("\n"), start=1):
        cells = _cells(line)
        if cells is None or (number == 1 and cells[2] and _number(cells[2]) is None):
            continue
        query, document, grade = cells
        value = _number(grade)
        if value is None:
            bad.append(BadRow(str(path), number, f"no grade in {line.strip()!r}"))
        elif document in grades.setdefault(query, {}):
            bad.append(BadRow(str(path), number, f"{query!r} and {document!r} have a grade already"))
        else:
            grades[query][document] = value
    if bad:
        raise BadRows(bad, seen=f"{'1 bad line:' if len(bad) == 1 else f'{len(bad)} bad lines, first'} {bad[0]}")
    if not grades:
        raise InvalidInput(f"judgements {path} without a line", expected="query id, document id, grade")
    return grades


def judgement_notes(snapshot: Snapshot, judgements: Iterable[Grades]) -> list[str]:
    """What a reader should know of judgements: how many relevant examples the pool lacks, which nothing can find.

    Args:
        snapshot: The view of the pool.
        judgements: Of the queries.

    Raises:
        InvalidInput: The pool lacks them all.
    """
    relevant = list(dict.fromkeys(one for grades in judgements for one, grade in grades.items() if grade > 0))
    known = len(snapshot.places_of(relevant))
    if relevant and not known:
        raise InvalidInput(
            f"judgements by which {len(relevant):,} examples are relevant, the first {relevant[0]!r}, none of them in "
            "the pool",
            expected="ids of its examples",
            fix="build the index with the field that holds these ids: --id, Fields(id=...)",
        )
    lacking = len(relevant) - known
    return [f"{lacking:,} of {len(relevant):,} relevant examples are not in the pool"] if lacking else []


def _cells(line: str) -> tuple[str, str, str] | None:
    """Query, document and grade; without a grade where there are other columns, None for a line of white space."""
    words, cells = line.split(), line.rstrip("\r").split("\t")
    if not words:
        return None
    if len(cells) == 3:
        return cells[0], cells[1], cells[2]
    return (words[0], words[2], words[3]) if len(words) == 4 else ("", "", "")


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None

"""What is wrong with a pool of examples: `audit`.

The kinds of findings, in the order in which they are given:

    conflict        the same input (but for case, punctuation and white space) with different labels or outputs
    copies          inputs that are near copies of each other, and whether their outputs agree
    leak            a query whose input, a near copy of it or whose id is in the pool
    outlier-label   an example whose nearest all have one and the same label, which is not its own
    outlier-far     an example that is much farther from its nearest than is usual in the pool
    suspicious      what a single example is suspected of, see `retriever.curation.suspicious`

Near copies are what the leak guard's level `near` says they are. Nearest is by cosine of the index's vectors, exactly.
Each finding is a hint for a person to look at, not a verdict: nothing is changed. Rows that were removed are not
looked at.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import takewhile
from typing import TypeVar

import numpy as np

from retriever.curation.neighbours import nearest_rows
from retriever.curation.similar import Cluster, check_threshold, clusters, near_matches, said
from retriever.curation.suspicious import BLANK_OUTPUT, SUSPICIONS, far_above, far_lengths
from retriever.errors import InvalidInput
from retriever.example import Example, Json, canonical
from retriever.keys import text_hash
from retriever.listening import Progress, Steps, silent
from retriever.ranking.guard import normalised
from retriever.ranking.strategies.exact import exact_vectors
from retriever.ranking.strategies.picks import Integers, Reals
from retriever.snapshot import Snapshot

_Value = TypeVar("_Value", bound=Hashable)

KINDS = ("conflict", "copies", "leak", "outlier-label", "outlier-far", "suspicious")
"""The kinds of findings, in their order."""

_FEWEST_FOR_FAR = 50
_CHANCE = 0.01
LONGEST_CLASS = 100
"""Characters that an output has at most where it is taken for the name of a class."""

_LISTED = 5
_SHOWN = 60
_CONTEXT = 10
_SAME = "the same input"
_RETYPED = "the same input but for case, punctuation or white space"
_REORDERED = "the same words in another order"
_NEAR = "nearly the same input"
_WAYS = (_SAME, _RETYPED, _REORDERED, _NEAR)


@dataclass(frozen=True)
class AuditSettings:
    """What counts as a finding.

    Attributes:
        threshold: Likeness from which inputs are near copies, over 0 and up to 1.
        neighbours: How many of the nearest must agree against a label, at least 1.
        most: How many findings of each kind are given, the first; None for all.

    Raises:
        InvalidInput: A value is not one of those.
    """

    threshold: float = 0.9
    neighbours: int = 10
    most: int | None = None

    def __post_init__(self) -> None:
        check_threshold(self.threshold)
        if self.neighbours < 1:
            raise InvalidInput(f"neighbours = {self.neighbours}", expected="1 or more")
        if self.most is not None and self.most < 0:
            raise InvalidInput(f"most = {self.most}", expected="0 or more, or None for all")


@dataclass(frozen=True)
class Finding:
    """Something to look at.

    Attributes:
        kind: One of `KINDS`.
        ids: The examples, in the order of the pool.
        reason: What was seen, in a sentence.
        query: The query that leaks; None for the other kinds.
    """

    kind: str
    ids: tuple[str, ...]
    reason: str
    query: str | None = None

    def to_dict(self) -> dict[str, Json]:
        """For JSON output."""
        return {"kind": self.kind, "ids": list(self.ids), "reason": self.reason, "query": self.query}


@dataclass(frozen=True)
class Audit:
    """What was found.

    Attributes:
        examples: How many examples were looked at.
        queries: How many queries.
        findings: By kind, in the order of `KINDS`, then by the row of their first example.
        counts: For each kind how many there are, those beyond `most` included.
    """

    examples: int
    queries: int
    findings: tuple[Finding, ...]
    counts: Mapping[str, int]

    def __iter__(self) -> Iterator[Finding]:
        return iter(self.findings)

    def to_dict(self) -> dict[str, Json]:
        """For JSON output."""
        return {
            "examples": self.examples,
            "queries": self.queries,
            "counts": dict(self.counts),
            "findings": [finding.to_dict() for finding in self.findings],
        }


@dataclass(frozen=True)
class _Columns:
    """What is kept of each example, so that outputs and rationales need not be.

    Attributes:
        ids: The ids.
        places: The rows of the index.
        inputs: The inputs as text.
        lengths: How long input and output are, in characters, each without white space at its ends.
        outputs: A number for each output that differs, 0 for none.
        labels: The labels.
        classes: What neighbours are compared by: the labels, or a short output where the example has none.
        suspicions: The places of the examples by what they are suspected of.
    """

    ids: list[str] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    inputs: list[str] = field(default_factory=list)
    lengths: dict[str, list[int]] = field(default_factory=lambda: {"input": [], "output": []})
    outputs: list[int] = field(default_factory=list)
    labels: list[frozenset[str]] = field(default_factory=list)
    classes: list[frozenset[str]] = field(default_factory=list)
    suspicions: dict[str, list[int]] = field(default_factory=dict)

    def take(self, place: int, example: Example) -> None:
        """Adds an example."""
        row = len(self.ids)
        self.ids.append(example.id)
        self.places.append(place)
        self.inputs.append(example.input_text)
        self.lengths["input"].append(len(example.input_text.strip()))
        self.lengths["output"].append(len(example.output_text.strip()))
        self.outputs.append(text_hash(_canonical(example.output)) if example.output_text.strip() else 0)
        self.labels.append(example.labels)
        self.classes.append(_classes(example))
        for suspicion in SUSPICIONS:
            for reason in suspicion(example):
                self.suspicions.setdefault(reason, []).append(row)

    def ids_of(self, rows: Iterable[int]) -> tuple[str, ...]:
        """The ids of some examples."""
        return tuple(self.ids[row] for row in rows)

    def row_of(self) -> dict[str, int]:
        """The number of each example by its id."""
        return {identity: row for row, identity in enumerate(self.ids)}


def audit(
    snapshot: Snapshot,
    queries: Iterable[Example] = (),
    settings: AuditSettings = AuditSettings(),
    progress: Progress = silent,
) -> Audit:
    """What is wrong with a pool, for a person to look at.

    Deterministic. Time O(n² · d) for the neighbours and mostly less for the copies; memory O(n · (d + text)).

    Args:
        snapshot: The view of the pool.
        queries: Queries that must not be in the pool, such as those of a test set.
        settings: What counts as a finding.
        progress: Told the stage, how much of it is done, and how much there is.

    Raises:
        IndexCorrupt: The pool does not hold the examples that the index has.
    """
    columns = _Columns()
    for place, example in snapshot.present():
        columns.take(place, example)
        progress("reading", len(columns.ids), len(snapshot))
    asked = list(queries)
    grid, squares = exact_vectors(snapshot.embedded(np.array(columns.places, dtype=np.int64)))
    rows, cosines = nearest_rows(grid, settings.neighbours, partial(progress, "neighbours"))
    copies = clusters(columns.inputs, settings.threshold, partial(progress, "copies"))
    conflicts = list(_conflicts(columns, lambda row: snapshot.examples([columns.places[row]])[0]))
    found = {
        "conflict": conflicts,
        "copies": list(_copies(columns, copies, known={finding.ids for finding in conflicts})),
        "leak": list(_leaks(columns, asked, settings.threshold, partial(progress, "leaks"))),
        "outlier-label": list(_label_outliers(columns, rows, cosines, settings.neighbours)),
        "outlier-far": list(_far_outliers(columns, rows, cosines, squares)),
        "suspicious": list(_suspicious(columns)),
    }
    row_of = columns.row_of()
    given = (one for kind in KINDS for one in sorted(found[kind], key=lambda f: row_of[f.ids[0]])[: settings.most])
    return Audit(len(columns.ids), len(asked), tuple(given), {kind: len(found[kind]) for kind in KINDS})


def _conflicts(columns: _Columns, fetch: Callable[[int], Example]) -> Iterator[Finding]:
    """Examples of one input whose labels, or else whose outputs, are not one."""
    for rows in _grouped(range(len(columns.ids)), lambda row: said(columns.inputs[row])).values():
        by_label = _grouped(rows, columns.labels.__getitem__)
        by_output = _grouped(rows, columns.outputs.__getitem__)
        if len(by_label) > 1:
            ranked = _ranked(by_label.values())
            reason = _conflict(columns, "labels", ranked, [_listed(columns.labels[one[0]]) for one in ranked[:_LISTED]])
        elif len(by_output) > 1:
            ranked = _ranked(by_output.values())
            texts = [fetch(one[0]).output_text for one in ranked[:_LISTED]]
            reason = _conflict(columns, "outputs", ranked, _told_apart(texts))
        else:
            continue
        yield Finding("conflict", columns.ids_of(rows), reason)


def _ranked(answers: Iterable[list[int]]) -> list[list[int]]:
    """The rows of each answer, the most frequent answer first."""
    return sorted(answers, key=lambda rows: -len(rows))


def _conflict(columns: _Columns, what: str, ranked: list[list[int]], names: list[str]) -> str:
    rows = [row for answer in ranked for row in answer]
    seen = ", ".join(f"{name} ({len(answer)})" for answer, name in zip(ranked, names, strict=False))
    more = f" and {len(ranked) - len(names)} more" if len(ranked) > len(names) else ""
    same = _sameness((columns.inputs[row] for row in rows), 1.0)
    reason = f"{len(rows)} examples have {same} and {len(ranked)} different {what}: {seen}{more}"
    odd = sorted(rows[len(ranked[0]) :])
    # Two against one is no majority to trust; three against one is.
    if len(ranked[0]) < 3 * len(odd):
        return reason
    return f"{reason}; the odd {'one is' if len(odd) == 1 else 'ones are'} {', '.join(columns.ids_of(odd))}"


def _copies(columns: _Columns, copies: Iterable[Cluster], known: set[tuple[str, ...]]) -> Iterator[Finding]:
    """Clusters of near copies, but for those that are told as a conflict already."""
    for cluster in copies:
        ids = columns.ids_of(cluster.members)
        if ids in known:
            continue
        same = _sameness((columns.inputs[row] for row in cluster.members), cluster.likeness)
        if cluster.likeness < 1:
            same += f" (likeness {cluster.likeness:.2f} or more)"
        reason = f"{len(ids)} examples have {same}{_agreement(columns, cluster.members)}"
        yield Finding("copies", ids, reason)


def _sameness(texts: Iterable[str], likeness: float) -> str:
    """What inputs that are near copies have in common."""
    different = set(texts)
    if likeness < 1:
        return _NEAR
    if len(different) == 1:
        return _SAME
    return _RETYPED if len({normalised(text) for text in different}) == 1 else _REORDERED


def _agreement(columns: _Columns, rows: tuple[int, ...]) -> str:
    labels = len(_grouped(rows, columns.labels.__getitem__))
    outputs = len(_grouped(rows, columns.outputs.__getitem__))
    if labels > 1:
        return f" and {labels} different labels"
    if outputs > 1:
        return f" and {outputs} different outputs"
    return " and the same output" if outputs else " and the same label" if labels else ""


def _leaks(columns: _Columns, queries: list[Example], threshold: float, progress: Steps) -> Iterator[Finding]:
    """For each query that is in the pool all examples by which it is, and how."""
    row_of = columns.row_of()
    matches = near_matches([query.input_text for query in queries], columns.inputs, threshold, progress)
    for query, pairs in zip(queries, matches, strict=True):
        own = row_of.get(query.id)
        rows = sorted({*(pair.second for pair in pairs), *([] if own is None else [own])})
        if rows:
            ways = Counter(_sameness([query.input_text, columns.inputs[pair.second]], pair.likeness) for pair in pairs)
            seen = [f"{ways[way]} with {way}" for way in _WAYS if way in ways]
            if _NEAR in ways:
                likeness = max(pair.likeness for pair in pairs if pair.likeness < 1)
                seen[-1] += f" (likeness up to {likeness:.2f})"
            if own is not None:
                seen.append("1 with the query's own id")
            reason = f"the query is in the pool: {', '.join(seen)}"
            yield Finding("leak", columns.ids_of(rows), reason, query.id)


def _label_outliers(columns: _Columns, rows: Integers, cosines: Reals, neighbours: int) -> Iterator[Finding]:
    """Examples whose nearest have one and the same label set that shares nothing with their own.

    Where one label is so frequent that as many random examples would all have it with a chance of one in a hundred,
    it says nothing that the nearest have it.
    """
    if rows.shape[1] < neighbours:
        return
    numbers: dict[frozenset[str], int] = {}
    kinds = np.array([numbers.setdefault(one, len(numbers)) for one in columns.classes], dtype=np.int64)
    names = list(numbers)
    shares = np.bincount(kinds) / len(kinds)
    around = kinds[rows]
    agree = (around == around[:, :1]).all(axis=1) & (around[:, 0] != kinds) & (cosines[:, -1] > 0)
    for row in np.flatnonzero(agree & (shares[around[:, 0]] ** neighbours <= _CHANCE)).tolist():
        own, theirs = columns.classes[row], names[int(around[row, 0])]
        if not own or not theirs or own & theirs:
            continue
        reason = (
            f"its {neighbours} nearest (cosine {cosines[row, 0]:.2f} to {cosines[row, -1]:.2f}) "
            f"all have {_listed(theirs)}, it has {_listed(own)}; the nearest is {columns.ids[int(rows[row, 0])]}"
        )
        yield Finding("outlier-label", columns.ids_of([row]), reason)


def _far_outliers(columns: _Columns, rows: Integers, cosines: Reals, squares: Reals) -> Iterator[Finding]:
    """Examples whose nearest is much farther than is usual; a text without a vector has no nearest."""
    places = np.flatnonzero(squares > 0)
    if len(places) < _FEWEST_FOR_FAR:
        return
    nearest = cosines[places, 0]
    usual = float(np.median(nearest))
    for place in far_above(-nearest, deviations=3.5, floor=0.02, share=0.02).tolist():
        row = int(places[place])
        reason = (
            f"its nearest, {columns.ids[int(rows[row, 0])]}, has cosine {cosines[row, 0]:.2f}; "
            f"the median of the pool is {usual:.2f}"
        )
        yield Finding("outlier-far", columns.ids_of([row]), reason)


def _suspicious(columns: _Columns) -> Iterator[Finding]:
    """What single examples are suspected of; those of which the same can be said share a finding."""
    found = dict(columns.suspicions)
    if not any(columns.lengths["output"]):
        found.pop(BLANK_OUTPUT, None)
    for name, lengths in columns.lengths.items():
        for row, reason in far_lengths(name, lengths):
            found.setdefault(reason, []).append(row)
    for reason, rows in found.items():
        yield Finding("suspicious", columns.ids_of(rows), reason)


def _classes(example: Example) -> frozenset[str]:
    """What an example is an instance of: its labels, else an output short enough to be the name of a class."""
    output = " ".join(example.output_text.split())
    return example.labels or (frozenset({output}) if 0 < len(output) <= LONGEST_CLASS else frozenset())


def _canonical(value: Json) -> str:
    """The same for values that differ in white space, or in the order of keys, only."""
    return " ".join(value.split()) if isinstance(value, str) else canonical(value)


def _grouped(rows: Iterable[int], value: Callable[[int], _Value]) -> dict[_Value, list[int]]:
    """The rows by a value, in the order of the first; those whose value is empty are left out."""
    groups: dict[_Value, list[int]] = {}
    for row in rows:
        if value(row):
            groups.setdefault(value(row), []).append(row)
    return groups


def _listed(labels: frozenset[str]) -> str:
    return " + ".join(_quoted(label) for label in sorted(labels))


def _told_apart(texts: list[str]) -> list[str]:
    """The texts in quotes, short; of what all begin with only the end, where they differ after that."""
    texts = [" ".join(text.split()) for text in texts]
    shared = sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, zip(*texts, strict=False)))
    start = shared - _CONTEXT if max(len(text) for text in texts) > _SHOWN and shared > _CONTEXT else 0
    return [_quoted(f"…{text[start:]}" if start else text) for text in texts]


def _quoted(text: str) -> str:
    return json.dumps(text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…", ensure_ascii=False)

"""What the report says of an index: the pool's shape, its faults, its map, and how it answers queries."""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version

import numpy as np

from retriever.curation.audit import LONGEST_CLASS, Audit, AuditSettings, audit
from retriever.errors import InvalidInput
from retriever.evaluation.evaluate import EvalSettings, evaluate, recipes_of
from retriever.evaluation.queries import as_asked, flattered, held_out
from retriever.evaluation.report.mapping import Map, map_of
from retriever.evaluation.report.projection import METHODS
from retriever.evaluation.results import Evaluation, QueryResult
from retriever.example import Example, Json, QueryLike, as_query
from retriever.keys import text_hash
from retriever.listening import Progress
from retriever.ranking.recipe import Recipe
from retriever.recipes import RecipeLike
from retriever.retriever import Retriever
from retriever.selection import Selection
from retriever.snapshot import Snapshot

_FINDINGS = 5


@dataclass(frozen=True)
class ReportSettings:
    """How much a report looks at.

    Attributes:
        leave_one_out: Without queries, how many of the pool's own examples are asked.
        k: How many demonstrations; None for what each recipe says.
        seed: Of samples and resamples.
        listed: Rows of each list: worst queries, least covered, most chosen, labels.
        map_examples: Examples on the map; of a larger pool a sample.
        map_queries: Queries on the map.
        map: How the map is made: `pca`, or `umap`, which needs the extra `umap` and vectors that are not all equal.
        audit: Whether the pool is searched for conflicts, copies and outliers, which takes time that grows with the
            square of its size.

    Raises:
        InvalidInput: A value is below 1 (`seed`: below 0), or no such map.
    """

    leave_one_out: int = 300
    k: int | None = None
    seed: int = 0
    listed: int = 10
    map_examples: int = 1500
    map_queries: int = 100
    map: str = "pca"
    audit: bool = True

    def __post_init__(self) -> None:
        for name in ("leave_one_out", "listed", "map_examples", "map_queries"):
            if getattr(self, name) < 1:
                raise InvalidInput(f"{name} = {getattr(self, name)}", expected="1 or more")
        if self.map not in METHODS:
            raise InvalidInput(f"map = {self.map!r}", expected=f"one of {', '.join(METHODS)}")


@dataclass(frozen=True)
class Pool:
    """What the examples are like.

    Attributes:
        examples: How many.
        lengths: Characters of each example's field, by field; fields that no example has are left out.
        classes: Each label with its number of examples, the most frequent first; outputs where no example has a label
            and outputs are few. Empty for neither.
        classes_are: `label` or `output`.
        unlabelled: Examples without one.
        several: Examples with more than one label.
        outputs: How many different outputs.
    """

    examples: int
    lengths: Mapping[str, Sequence[int]]
    classes: Sequence[tuple[str, int]]
    classes_are: str
    unlabelled: int
    several: int
    outputs: int

    @property
    def effective_classes(self) -> float:
        """2 to the entropy of the classes in bits: as many of equal size would be as mixed."""
        total = sum(count for _, count in self.classes)
        return 2 ** math.fsum(count / total * math.log2(total / count) for _, count in self.classes) if total else 0.0


@dataclass(frozen=True)
class Covered:
    """How near the pool comes to a query.

    Attributes:
        query: The query.
        cosine: Of the nearest example that the guard lets through; NaN where the text has no vector.
        nearest: That example; None for none.
        unknown: Terms of the query that no example has.
        terms: How many different terms it has.
    """

    query: Example
    cosine: float
    nearest: Example | None
    unknown: tuple[str, ...]
    terms: int


@dataclass(frozen=True)
class Usage:
    """Which examples are chosen.

    Attributes:
        picks: Choices of all queries.
        most: The examples that are chosen most, each with how often.
        chosen: How many examples are chosen at all.
        never: The first examples of the pool that never are.
        never_classes: Labels none of whose examples is ever chosen, each with its number of examples.
    """

    picks: int
    most: Sequence[tuple[Example, int]]
    chosen: int
    never: Sequence[Example]
    never_classes: Sequence[tuple[str, int]]


@dataclass(frozen=True)
class Worst:
    """A query that the main recipe answers badly.

    Attributes:
        result: Its figures.
        selection: What was chosen for it.
    """

    result: QueryResult
    selection: Selection


@dataclass(frozen=True)
class Report:
    """What a report says.

    Attributes:
        name: The index's directory, without what leads to it.
        info: What the index is.
        version: Of the program.
        settings: How much was looked at.
        pool: What the examples are like.
        audit: What is wrong with them; None where that was not asked.
        involved: The examples that its findings name, by id.
        evaluation: The recipes compared.
        main: The name of the recipe whose choices are shown.
        covered: Each query, the least covered first.
        missing_labels: Labels of queries that no example has, with how many queries.
        usage: Which examples are chosen.
        worst: The worst queries of the main recipe.
        map: The pool in two dimensions.
        warnings: What must be known before any figure is read.
    """

    name: str
    info: Mapping[str, Json]
    version: str
    settings: ReportSettings
    pool: Pool
    audit: Audit | None
    involved: Mapping[str, Example]
    evaluation: Evaluation
    main: str
    covered: Sequence[Covered]
    missing_labels: Sequence[tuple[str, int]]
    usage: Usage
    worst: Sequence[Worst]
    map: Map = field(repr=False)
    warnings: Sequence[str] = ()


def gather(
    retriever: Retriever,
    queries: Iterable[QueryLike] | None,
    recipes: Mapping[str, RecipeLike] | None,
    settings: ReportSettings,
    progress: Progress,
) -> Report:
    """Looks at the pool and asks it the queries; arguments and errors as of `write_report`."""
    snapshot = retriever.snapshot
    if not len(snapshot):
        raise InvalidInput("an index without an example", expected="at least one")
    asked = None if queries is None else list(map(as_query, queries))
    compared = recipes_of(retriever) if recipes is None else recipes
    held = settings.leave_one_out if asked is None else None
    own = EvalSettings(k=settings.k, seed=settings.seed, worst=settings.leave_one_out if asked is None else len(asked))
    found = evaluate(
        retriever,
        compared,
        asked,
        leave_one_out=held,
        settings=own,
        progress=progress,
    )
    main = found.recipes[0]
    given = held_out(snapshot, settings.leave_one_out, settings.seed) if asked is None else asked
    hidden = [as_asked(query, judged=False) for query in given]
    selections = list(retriever.select_many(hidden, recipe=main.recipe))
    pool = _pool(snapshot, progress)
    looked = (
        audit(snapshot, () if asked is None else asked, AuditSettings(most=_FINDINGS), progress)
        if settings.audit
        else None
    )
    return Report(
        name=retriever.path.resolve().name,
        info=retriever.info(),
        version=version("demonstration-retriever"),
        settings=settings,
        pool=pool,
        audit=looked,
        involved={} if looked is None else _involved(snapshot, looked),
        evaluation=found,
        main=main.name,
        covered=_covered(retriever, given, hidden),
        missing_labels=_missing_labels(pool, given),
        usage=_usage(snapshot, selections, pool, settings.listed),
        worst=_worst(found, main.name, given, selections, settings.listed),
        map=map_of(
            retriever, given, selections, settings.map_examples, settings.map_queries, settings.seed, settings.map
        ),
        warnings=flattered(snapshot, held),
    )


def _pool(snapshot: Snapshot, progress: Progress) -> Pool:
    lengths = {name: array("q") for name in ("input", "output", "rationale")}
    labels: Counter[str] = Counter()
    outputs: Counter[int] = Counter()
    short: dict[int, str] = {}
    unlabelled = several = 0
    for number, (_, example) in enumerate(snapshot.present(), start=1):
        for name, text in (
            ("input", example.input_text),
            ("output", example.output_text),
            ("rationale", example.rationale or ""),
        ):
            lengths[name].append(len(text))
        labels.update(example.labels)
        unlabelled += not example.labels
        several += len(example.labels) > 1
        if example.output_text.strip():
            mark = text_hash(example.output_text)
            outputs[mark] += 1
            if len(example.output_text) <= LONGEST_CLASS:
                short[mark] = example.output_text
        progress("reading", number, len(snapshot))
    # Outputs are classes where they repeat: a tenth as many as examples at most, and all of them short.
    few = not labels and outputs and len(short) == len(outputs) and 10 * len(outputs) <= len(snapshot)
    counts = Counter({short[mark]: count for mark, count in outputs.items()}) if few else labels
    return Pool(
        examples=len(snapshot),
        lengths={name: of for name, of in lengths.items() if any(of)},
        classes=sorted(counts.items(), key=lambda one: (-one[1], one[0])),
        classes_are="output" if few else "label",
        unlabelled=len(snapshot) - outputs.total() if few else unlabelled,
        several=several,
        outputs=len(outputs),
    )


def classes_of(example: Example, pool: Pool) -> frozenset[str]:
    """The classes of an example as the pool counts them."""
    return example.labels if pool.classes_are == "label" else frozenset(filter(None, [example.output_text]))


def _involved(snapshot: Snapshot, found: Audit) -> dict[str, Example]:
    ids = dict.fromkeys(identity for finding in found for identity in finding.ids[:_FINDINGS])
    places = snapshot.places_of(list(ids))
    return {example.id: example for example in snapshot.examples(list(places.values()))}


def _covered(retriever: Retriever, given: Sequence[Example], hidden: Sequence[Example]) -> list[Covered]:
    snapshot = retriever.snapshot
    nearest = Recipe().with_options({"mode": "dense", "k": 1, "guard": "near"})
    found = []
    for query, one in zip(given, retriever.select_many(hidden, recipe=nearest), strict=True):
        best = one[0] if len(one) else None
        terms = sorted(set(snapshot.analyze(snapshot.key.text(one.query))))
        lexical = snapshot.index.lexical
        found.append(
            Covered(
                query=query,
                cosine=math.nan if best is None else best.channels.get("dense", math.nan),
                nearest=None if best is None else best.example,
                unknown=tuple(term for term in terms if not lexical.knows([term])),
                terms=len(terms),
            )
        )
    order = np.argsort([-2.0 if math.isnan(one.cosine) else one.cosine for one in found], kind="stable")
    return [found[place] for place in order.tolist()]


def _missing_labels(pool: Pool, given: Sequence[Example]) -> list[tuple[str, int]]:
    known = {name for name, _ in pool.classes} if pool.classes_are == "label" else set()
    counts = Counter(label for query in given for label in query.labels if label not in known)
    return sorted(counts.items(), key=lambda one: (-one[1], one[0]))


def _usage(snapshot: Snapshot, selections: Sequence[Selection], pool: Pool, listed: int) -> Usage:
    counts = Counter(identity for one in selections for identity in one.ids)
    examples = {demonstration.example.id: demonstration.example for one in selections for demonstration in one}
    most = sorted(counts.items(), key=lambda one: (-one[1], one[0]))[:listed]
    never: list[Example] = []
    used: set[str] = set()
    for identity in counts:
        used.update(classes_of(examples[identity], pool))
    if len(counts) < len(snapshot):
        for _, example in snapshot.present():
            if example.id not in counts:
                never.append(example)
            if len(never) == listed:
                break
    return Usage(
        picks=counts.total(),
        most=[(examples[identity], count) for identity, count in most],
        chosen=len(counts),
        never=never,
        never_classes=[one for one in pool.classes if one[0] not in used],
    )


def _worst(
    found: Evaluation, main: str, given: Sequence[Example], selections: Sequence[Selection], listed: int
) -> list[Worst]:
    of_query = {id(query): one for query, one in zip(given, selections, strict=True)}
    by_id = {query.id: one for query, one in zip(given, selections, strict=True)}
    sign = found.metrics[0].better or 1
    ordered = sorted(found.worst, key=lambda one: sign * one.values[main])
    return [Worst(one, of_query.get(id(one.query)) or by_id[one.query.id]) for one in ordered[:listed]]

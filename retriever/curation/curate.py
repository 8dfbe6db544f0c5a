"""Curation: which examples of a pool to annotate, or to keep as the block that all prompts share.

    curate(snapshot, CurateSettings("votek", budget=100))

Every text is looked at once: an example whose key text is that of one chosen before comes only after all others, since
to annotate or to show the same input twice is waste. The choice depends on the pool, its order and the settings alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from retriever.curation.chosen import Chosen
from retriever.curation.facility import facility
from retriever.curation.kcenter import kcenter
from retriever.curation.spread import spread
from retriever.curation.votek import check_votes, votek
from retriever.errors import InvalidInput
from retriever.example import Example, Json
from retriever.filters import Filters
from retriever.listening import Progress, silent
from retriever.ranking.recipe import Filter, Where
from retriever.ranking.strategies.cluster import cluster
from retriever.ranking.strategies.exact import exact_vectors
from retriever.ranking.strategies.kmeans import kmeans
from retriever.ranking.strategies.picks import Integers, check_range
from retriever.ranking.typed import section
from retriever.snapshot import Snapshot

MOST_COMPARED = 100_000
"""Texts that may be compared each with each: minutes on two cores, and four times that for twice as many."""

MOST_STEPS = 1_000_000_000
"""Texts times choices, where every choice looks at every text: minutes on two cores."""

MOST_CELLS = 100_000_000
"""Texts times choices, where these are the sides of a matrix that is held in memory: 800 MB."""

Vectors = NDArray[np.float32]


class _Method(Protocol):
    """The options of a strategy, which know how to choose."""

    def choose(self, vectors: Vectors, budget: int, held: Sequence[int], progress: Progress) -> Chosen:
        """Rows of the vectors, unit or zero ones of distinct texts, that complement the held ones."""
        ...

    def check_size(self, rows: int, choices: int, dim: int) -> None:
        """Refuses what would take hours, or more memory than there is.

        Args:
            rows: How many vectors there are.
            choices: How many rows are chosen, held ones included.
            dim: Components of a vector.

        Raises:
            InvalidInput: It would.
        """
        ...


@dataclass(frozen=True)
class VotekOptions:
    """See `retriever.curation.votek`.

    Attributes:
        neighbours: For how many others each example votes, at least 1; None for 150, or a tenth of a pool of less than
            1,500.
        rho: How much less a vote is worth with every neighbour that is chosen, 1 or more.
    """

    neighbours: int | None = None
    rho: float = 10.0

    def __post_init__(self) -> None:
        check_votes(self.neighbours, self.rho)

    def choose(self, vectors: Vectors, budget: int, held: Sequence[int], progress: Progress) -> Chosen:
        """By vote-k."""
        return votek(vectors, budget, neighbours=self.neighbours, rho=self.rho, held=held, progress=progress)

    def check_size(self, rows: int, choices: int, dim: int) -> None:
        """Time grows with the square of the rows, and with rows times choices."""
        _check_compared("votek", rows)
        _check_product("votek", rows, choices, MOST_STEPS)


@dataclass(frozen=True)
class KcenterOptions:
    """`retriever.curation.kcenter` has no settings."""

    def choose(self, vectors: Vectors, budget: int, held: Sequence[int], progress: Progress) -> Chosen:
        """By k-center."""
        return kcenter(vectors, budget, held=held, progress=progress)

    def check_size(self, rows: int, choices: int, dim: int) -> None:
        """Time grows with rows times choices."""
        _check_product("kcenter", rows, choices, MOST_STEPS)


@dataclass(frozen=True)
class FacilityOptions:
    """`retriever.curation.facility` has no settings."""

    def choose(self, vectors: Vectors, budget: int, held: Sequence[int], progress: Progress) -> Chosen:
        """By facility location."""
        return facility(vectors, budget, held=held, progress=progress)

    def check_size(self, rows: int, choices: int, dim: int) -> None:
        """Time grows with the square of the rows, and with rows times choices."""
        _check_compared("facility", rows)
        _check_product("facility", rows, choices, MOST_STEPS)


@dataclass(frozen=True)
class DppOptions:
    """`retriever.curation.spread` has no settings."""

    def choose(self, vectors: Vectors, budget: int, held: Sequence[int], progress: Progress) -> Chosen:
        """By greedy log-determinant."""
        return spread(vectors, budget, held=held, progress=progress)

    def check_size(self, rows: int, choices: int, dim: int) -> None:
        """The factor of the kernel has a row for each choice, up to its rank."""
        _check_product("dpp", rows, min(choices, dim + 1), MOST_CELLS)


@dataclass(frozen=True)
class ClusterOptions:
    """See `retriever.ranking.strategies.cluster`.

    Attributes:
        seed: Seeds the clustering, 0 or more.
    """

    seed: int = 0

    def __post_init__(self) -> None:
        check_range("seed", self.seed, 0, 2**128 - 1)

    def choose(self, vectors: Vectors, budget: int, held: Sequence[int], progress: Progress) -> Chosen:
        """The nearest to the centre of each of as many clusters as there are choices, those that are held included.

        Clusters with a held row are served once all others are empty. A gain is minus the squared distance to the
        centre.
        """
        progress("clustering", 0, len(vectors))
        count = min(budget + len(held), len(vectors))
        fresh = None
        if held and count:
            members = kmeans(*exact_vectors(vectors), count, self.seed).members
            fresh = ~np.isin(members, members[list(held)])
        picks = cluster(vectors, count, seed=self.seed, eligible=fresh)
        free = np.flatnonzero(~np.isin(picks.places, list(held)))[:budget]
        progress("clustering", len(vectors), len(vectors))
        return Chosen(picks.places[free], picks.gains[free])

    def check_size(self, rows: int, choices: int, dim: int) -> None:
        """Every row has a distance to every centre."""
        _check_product("cluster", rows, choices, MOST_CELLS)


def _check_compared(strategy: str, rows: int) -> None:
    if rows > MOST_COMPARED:
        raise InvalidInput(
            f"{strategy} over {rows:,} different texts",
            expected=f"at most {MOST_COMPARED:,}, for it compares each with each",
            fix="choose from fewer with a filter, or with kcenter, dpp or cluster",
        )


def _check_product(strategy: str, rows: int, choices: int, most: int) -> None:
    if rows * choices > most:
        raise InvalidInput(
            f"{strategy} of {choices:,} among {rows:,} different texts, held ones included",
            expected=f"at most {most // rows:,} of so many",
            fix="take a smaller budget, or choose from fewer with a filter",
        )


_METHODS: Mapping[str, type[_Method]] = MappingProxyType(
    {
        "votek": VotekOptions,
        "kcenter": KcenterOptions,
        "facility": FacilityOptions,
        "dpp": DppOptions,
        "cluster": ClusterOptions,
    }
)

CURATION_STRATEGIES: tuple[str, ...] = tuple(_METHODS)
"""The strategies by name."""


@dataclass(frozen=True)
class CurateSettings:
    """What is to be chosen, and how.

    Attributes:
        strategy: `votek` (what many others are near to), `kcenter` (far from one another), `facility` (what stands for
            the others), `dpp` (what spans most), `cluster` (one of each kind).
        budget: How many, at most.
        where: Which examples may be chosen; all when None.
        held: Ids of examples that count as chosen already; they are not chosen again.
        options: The strategy's own settings: `neighbours` and `rho` of votek, `seed` of cluster.

    Raises:
        InvalidInput: An unknown strategy or option, or a value that cannot be used.
    """

    strategy: str = "votek"
    budget: int = 50
    where: Where = None
    held: tuple[str, ...] = ()
    options: Mapping[str, Json] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.budget < 0:
            raise InvalidInput(f"budget = {self.budget}", expected="0 or more")
        self.method()

    def method(self) -> _Method:
        """The strategy with its options."""
        if self.strategy not in _METHODS:
            raise InvalidInput(
                f"curation strategy {self.strategy!r}", expected=f"one of {', '.join(CURATION_STRATEGIES)}"
            )
        return section(_METHODS[self.strategy], self.options, f"{self.strategy}.options")


@dataclass(frozen=True)
class Curated:
    """An example that was chosen.

    Attributes:
        example: The example.
        rank: When it was chosen; 1 is the first.
        gain: What it was worth at that moment, in the strategy's own unit: votes (`votek`), distance to the nearest
            choice before (`kcenter`), growth of the cover (`facility`) or of the log-determinant (`dpp`), minus the
            squared distance to its cluster's centre (`cluster`). None where that is no number: for the first choice of
            `kcenter`, for what adds nothing to the span, and for a text that was chosen before.
    """

    example: Example
    rank: int
    gain: float | None

    def to_dict(self) -> dict[str, Json]:
        """For JSON output."""
        return {"id": self.example.id, "rank": self.rank, "gain": self.gain, "example": self.example.to_dict()}


@dataclass(frozen=True)
class Curation:
    """What was chosen from a pool.

    Attributes:
        strategy: By which strategy.
        budget: How many were asked for.
        picks: In the order of the choice; the first ones are what a smaller budget gives, but for `cluster`.
        eligible: How many examples there were to choose from.
        notes: What a reader should know, such as fewer examples than asked for.
    """

    strategy: str
    budget: int
    picks: tuple[Curated, ...]
    eligible: int
    notes: tuple[str, ...]

    @property
    def ids(self) -> tuple[str, ...]:
        """The ids of the choices, in their order."""
        return tuple(pick.example.id for pick in self.picks)

    def to_dict(self) -> dict[str, Json]:
        """For JSON output."""
        return {
            "strategy": self.strategy,
            "budget": self.budget,
            "picks": [pick.to_dict() for pick in self.picks],
            "eligible": self.eligible,
            "notes": list(self.notes),
        }


def curate(snapshot: Snapshot, settings: CurateSettings, progress: Progress = silent) -> Curation:
    """Chooses examples of a pool.

    On two cores, 50 of 20,000 examples with 384 components take a second or two by `kcenter`, `dpp` and `cluster`, and
    some ten to thirty by `votek` and `facility`.

    Args:
        snapshot: The view of the pool.
        settings: What is to be chosen, and how.
        progress: Told what is being done, how much of it is done, and how much there is.

    Raises:
        InvalidInput: A filter that is wrong, a held id that is not in the pool, or more texts than is practical.
    """
    held = _held_rows(snapshot, settings.held)
    eligible = _eligible_rows(snapshot, settings.where, held)
    known = _first_of_each_text(snapshot, held)
    new = _first_of_each_text(snapshot, eligible)
    new = new[~np.isin(snapshot.text_hashes[new], snapshot.text_hashes[known])]
    rows = np.sort(np.concatenate([known, new]))
    method = settings.method()
    method.check_size(len(rows), min(settings.budget + len(known), len(rows)), snapshot.dim)
    vectors = snapshot.index.dense.vectors(rows)
    found = method.choose(vectors, settings.budget, np.searchsorted(rows, known).tolist(), progress)
    repeated = np.setdiff1d(eligible, new)[: settings.budget - len(found)]
    gains = [*(gain if np.isfinite(gain) else None for gain in found.gains.tolist()), *([None] * len(repeated))]
    examples = snapshot.examples(np.concatenate([rows[found.places], repeated]))
    picks = [
        Curated(example, rank, gain) for rank, (example, gain) in enumerate(zip(examples, gains, strict=True), start=1)
    ]
    notes = _notes(settings, found, len(repeated))
    return Curation(
        strategy=settings.strategy, budget=settings.budget, picks=tuple(picks), eligible=len(eligible), notes=notes
    )


def _held_rows(snapshot: Snapshot, ids: Sequence[str]) -> Integers:
    """The rows of the index of held examples, ascending.

    Raises:
        InvalidInput: One is not in the pool.
    """
    places = snapshot.places_of(ids)
    for identity in ids:
        if identity not in places:
            raise InvalidInput(f"held example {identity!r}", expected="the id of an example in the pool")
    return np.array(sorted(places.values()), dtype=np.int64)


def _eligible_rows(snapshot: Snapshot, where: Where, held: Integers) -> Integers:
    """The rows of the index that may be chosen, ascending."""
    mask = Filters(snapshot).eligible(Example(id="", input=""), Filter(where=where), held.tolist())
    eligible = np.ones(len(snapshot.rows), dtype=np.bool_) if mask is None else mask
    if snapshot.alive is not None:
        eligible = eligible & snapshot.alive
    return np.flatnonzero(eligible)


def _first_of_each_text(snapshot: Snapshot, rows: Integers) -> Integers:
    """Of rows with the same key text the first, ascending."""
    return rows[np.sort(np.unique(snapshot.text_hashes[rows], return_index=True)[1])]


def _notes(settings: CurateSettings, found: Chosen, repeated: int) -> tuple[str, ...]:
    notes = []
    chosen = len(found) + repeated
    if chosen < settings.budget:
        notes.append(f"{chosen} of {settings.budget}: the pool and the filter leave no more")
    flat = int(np.isneginf(found.gains).sum())
    if flat:
        notes.append(
            f"{flat} of {chosen} add nothing to what the others span, for the vectors have no more independent"
            " directions: these come in pool order"
        )
    if repeated:
        notes.append(f"{repeated} of {chosen} repeat a text that was chosen before or held: nothing else was left")
    return tuple(notes)

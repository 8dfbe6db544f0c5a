"""What tuning found: every recipe that was tried, the one chosen, and what it gains where it was not chosen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from retriever.evaluation.intervals import Interval
from retriever.evaluation.results import ends, rounded
from retriever.example import Json
from retriever.ranking.recipe import Recipe


@dataclass(frozen=True)
class Tried:
    """A recipe that was tried.

    Attributes:
        name: What it is called: `own`, or how it differs.
        recipe: Its settings.
        key: Which text of an example is indexed for it.
        queries: How many queries it was measured on; a recipe that was told from the best early saw fewer.
        mean: The mean over these.
        interval: Where the mean lies; None for fewer than two.
        difference: This mean less that of the chosen recipe on the same queries.
        difference_interval: Where the difference lies, paired by query.
        verdict: `chosen`, `tied` with it (the interval of the difference holds 0), `worse` or `better`.
    """

    name: str
    recipe: Recipe
    key: str
    queries: int
    mean: float
    interval: Interval | None
    difference: float
    difference_interval: Interval | None
    verdict: str

    def to_dict(self) -> dict[str, Json]:
        """For JSON output."""
        return {
            "recipe": self.name,
            "key": self.key,
            "queries": self.queries,
            "mean": rounded(self.mean),
            **ends("", self.interval),
            "difference": rounded(self.difference),
            **ends("difference_", self.difference_interval),
            "verdict": self.verdict,
        }


@dataclass(frozen=True)
class Gain:
    """The chosen recipe against the own one, on queries that had no part in the choice.

    Attributes:
        queries: How many.
        own: The mean of the own recipe.
        chosen: The mean of the chosen one.
        difference: What the chosen one has more.
        interval: Where the difference lies, paired by query; None for fewer than two queries.
    """

    queries: int
    own: float
    chosen: float
    difference: float
    interval: Interval | None

    @property
    def sure(self) -> bool:
        """Whether the whole interval is above 0."""
        return self.interval is not None and self.interval.low > 0

    def to_dict(self) -> dict[str, Json]:
        """For JSON output."""
        return {
            "queries": self.queries,
            "own": rounded(self.own),
            "chosen": rounded(self.chosen),
            "difference": rounded(self.difference),
            **ends("", self.interval),
            "sure": self.sure,
        }


@dataclass(frozen=True)
class Tuning:
    """What tuning found and did.

    Attributes:
        index: What the index was known by: examples, generation, revision and chain.
        asked: `leave-one-out` or `queries`.
        objective: What was to be as high as possible.
        settings: What decides the figures.
        tried: The recipes, the own one first.
        gain: The chosen one against the own one.
        written: The generation that has the chosen recipe as its default, and its key; None where nothing was changed.
        notes: What a reader should know.
    """

    index: Mapping[str, Json]
    asked: str
    objective: str
    settings: Mapping[str, Json]
    tried: tuple[Tried, ...]
    gain: Gain
    written: str | None
    notes: tuple[str, ...] = ()

    @property
    def chosen(self) -> Tried:
        """The recipe that was chosen."""
        return next(one for one in self.tried if one.verdict == "chosen")

    def to_dict(self) -> dict[str, Json]:
        """For JSON output; the same index and settings give the same."""
        return {
            "index": dict(self.index),
            "asked": self.asked,
            "objective": self.objective,
            "settings": dict(self.settings),
            "tried": [one.to_dict() for one in self.tried],
            "chosen": {"name": self.chosen.name, "key": self.chosen.key, "recipe": self.chosen.recipe.to_dict()},
            "gain": self.gain.to_dict(),
            "written": self.written,
            "notes": list(self.notes),
        }

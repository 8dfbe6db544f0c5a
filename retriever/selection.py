"""Selection: what was chosen for a query, with scores, ranks and reasons."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from indexes.channels import Hits
from retriever.example import Example, Json
from retriever.ranking.order import ORDERS, checked
from retriever.ranking.recipe import Recipe


@dataclass(frozen=True)
class Demonstration:
    """An example that was chosen.

    Attributes:
        example: The example.
        rank: Its place by relevance to this selection; 1 is the best.
        score: What it was ranked by: the fused score, the channel's own in a single-channel mode, or the relevance
            that a reranker gave it.
        channels: Cosine (`dense`), BM25 (`lexical`), `fused`, and a reranker's own score (`rerank`); a channel that had
            nothing to say is left out.
        origin: How it came in: `fixed`, or the name of the strategy.
        gain: What it was worth to the strategy at the moment it was chosen; None where the strategy weighs nothing.
        against: The id of the earlier choice that it was most traded against; None for none.
        shared: Whether it belongs to the block that all queries share.
        breaks: The constraints that it breaks: it fills up to k where nothing else is left.
    """

    example: Example
    rank: int
    score: float
    channels: Mapping[str, float]
    origin: str
    gain: float | None = None
    against: str | None = None
    shared: bool = False
    breaks: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Json]:
        """For JSON output."""
        return {
            "id": self.example.id,
            "rank": self.rank,
            "score": self.score,
            "channels": dict(self.channels),
            "origin": self.origin,
            "gain": self.gain,
            "against": self.against,
            "shared": self.shared,
            "breaks": list(self.breaks),
            "example": self.example.to_dict(),
        }


@dataclass(frozen=True)
class Dropped:
    """An example that was not chosen, or not put into the prompt, for a reason worth telling.

    Attributes:
        id: The example.
        reason: Why.
    """

    id: str
    reason: str


@dataclass(frozen=True)
class Selection:
    """The demonstrations for a query, best first; `in_prompt_order` gives them as they stand in the prompt.

    Attributes:
        query: The query.
        demonstrations: Best first.
        dropped: What the guard, an exclusion or a lack of candidates kept out.
        eligible: How many examples the filters left to choose from.
        recipe: The settings, with every default filled in.
        generation: The generation of the index that answered, such as `gen-000007`.
        revision: The revision of the pool that was seen.
        notes: What a reader should know, such as a channel that had nothing to say.
        confidence: The share of the query's variance that the demonstrations explain, 0 to 1, where the strategy tells
            (`sift`).
        arrangement: The ranks, from 0, in the order of a caller's own; None where the recipe's order holds.
    """

    query: Example
    demonstrations: tuple[Demonstration, ...]
    dropped: tuple[Dropped, ...]
    eligible: int
    recipe: Recipe
    generation: str
    revision: int
    notes: tuple[str, ...] = field(default=())
    confidence: float | None = None
    arrangement: tuple[int, ...] | None = None

    def __len__(self) -> int:
        return len(self.demonstrations)

    def __iter__(self) -> Iterator[Demonstration]:
        return iter(self.demonstrations)

    def __getitem__(self, place: int) -> Demonstration:
        return self.demonstrations[place]

    @property
    def ids(self) -> tuple[str, ...]:
        """The ids of the demonstrations, best first."""
        return tuple(demonstration.example.id for demonstration in self.demonstrations)

    @property
    def in_prompt_order(self) -> tuple[Demonstration, ...]:
        """The demonstrations as they stand in the prompt.

        Those that all queries share come first, as they were chosen, so that the prompt begins the same for every
        query; the recipe's order is that of the others. An order of the caller's own rules over all.
        """
        if self.arrangement is not None:
            return tuple(self.demonstrations[rank] for rank in self.arrangement)
        shared = [one for one in self.demonstrations if one.shared]
        others = [one for one in self.demonstrations if not one.shared]
        order = self.recipe.order
        ranks = ORDERS[order.by]([one.example for one in others], order.seed, self.query.id)
        return (*shared, *(others[rank] for rank in ranks))

    def arranged(self, order: Callable[[Sequence[Demonstration]], Sequence[int]]) -> Selection:
        """The same selection in an order of the caller's own, which `in_prompt_order` and prompts then follow.

        Args:
            order: From the demonstrations, best first, to their ranks, from 0, in prompt order.

        Raises:
            InvalidInput: It does not give each rank once.
        """
        return replace(self, arrangement=checked(order(self.demonstrations), len(self)))

    def to_dict(self) -> dict[str, Json]:
        """For JSON output; the demonstrations stand in prompt order."""
        return {
            "query": self.query.to_dict(),
            "demonstrations": [demonstration.to_dict() for demonstration in self.in_prompt_order],
            "dropped": [{"id": dropped.id, "reason": dropped.reason} for dropped in self.dropped],
            "eligible": self.eligible,
            "recipe": self.recipe.to_dict(),
            "generation": self.generation,
            "revision": self.revision,
            "notes": list(self.notes),
            "confidence": self.confidence,
        }


def channel_scores(hits: Hits, rescored: Sequence[float | None]) -> list[dict[str, float]]:
    """The scores of every hit by channel name; NaN and None stand for what had nothing to say and is left out.

    Args:
        hits: The hits.
        rescored: The reranker's own score of each.
    """
    columns = hits.dense.tolist(), hits.lexical.tolist(), hits.fused.tolist(), rescored
    return [
        {name: score for name, score in zip(_CHANNELS, row, strict=True) if score is not None and score == score}
        for row in zip(*columns, strict=True)
    ]


_CHANNELS = ("dense", "lexical", "fused", "rerank")

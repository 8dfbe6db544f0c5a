"""Fitting demonstrations into a token budget: which ones, and how short.

By `order` the most important come first, and one that does not fit is passed over for the next. By `density` those with
the highest score for each token come first; if the one best demonstration that fits alone is worth more than all that
were taken so, it is taken first instead. That is worth at least half of the best choice there is (0/1 knapsack), as
scores below 0 count as 0. In the text form, where tokens may join across blocks, it holds but for those.

Either way what remains is then filled, with exact lengths, until nothing that was passed over would fit.

Demonstrations that all queries share are part of the prefix, as the system message is: they are taken first and as they
are, and only what they leave is filled. To shorten or leave out one where a query is long would change the prefix.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

from retriever.errors import DelimiterCollision
from retriever.example import Example
from retriever.prompting.shortening import pruned


@dataclass(frozen=True)
class Plan:
    """What the budget needs to know about the demonstrations of one prompt.

    Attributes:
        demonstrations: In prompt order.
        cost: The tokens that a demonstration adds; of text an approximation, for tokens may join across blocks.
        base: The tokens of the rest, beside at least one demonstration.
        tokens: The exact length of the prompt with demonstrations by their positions.
        refused: The positions of those that cannot be used, with the reason and the tokens that they would have added.
        shared: The positions of those that stand in every prompt, as far as they can be used.
    """

    demonstrations: Sequence[Example]
    cost: Callable[[Example], int]
    base: int
    tokens: Callable[[Mapping[int, Example]], int]
    refused: Mapping[int, tuple[str, int]] = field(default_factory=dict)
    shared: Collection[int] = frozenset()

    @property
    def usable(self) -> list[int]:
        """The positions of those that can be used."""
        return [i for i in range(len(self.demonstrations)) if i not in self.refused]

    @property
    def block(self) -> dict[int, Example]:
        """The demonstrations that stand in every prompt, by position."""
        return self.all_of([i for i in self.usable if i in self.shared])

    @property
    def used(self) -> int:
        """The tokens of all that is in the prompt anyway, beside at least one more demonstration."""
        block = self.block
        return self.tokens(block) if block else self.base

    def all_of(self, positions: Sequence[int]) -> dict[int, Example]:
        """Demonstrations as they are, by position."""
        return {i: self.demonstrations[i] for i in positions}


def fit(plan: Plan, order: Sequence[int], limit: int, stages: Sequence[str]) -> dict[int, Example]:
    """The demonstrations that fit, shortened where stages allow and it must be.

    Args:
        plan: The prompt.
        order: Positions, the most important first, none of them shared.
        limit: The most tokens.
        stages: See `retriever.prompting.shortening.pruned`.

    Returns:
        By position, the shared ones first. The length is at most the limit if that of the prompt with no others is, and
        no position of the order that is missing would fit, as it is or after all stages.
    """
    used, chosen = plan.used, plan.block
    shared = len(chosen)
    for i in order:
        room = limit - used
        if (found := _shortened(plan, i, stages, plan.cost, room)) is not None:
            used += plan.cost(found)
            chosen[i] = found
    while len(chosen) > shared and plan.tokens(chosen) > limit:
        chosen.popitem()
    grew = True
    while grew:
        grew = False
        for i in order:
            if i not in chosen and (found := _shortened(plan, i, stages, _exact(plan, chosen, i), limit)) is not None:
                chosen[i] = found
                grew = True
    return chosen


def _exact(plan: Plan, chosen: Mapping[int, Example], position: int) -> Callable[[Example], int]:
    """From a demonstration to the length of the prompt with it at a position."""
    return lambda example: plan.tokens({**chosen, position: example})


def _shortened(
    plan: Plan, position: int, stages: Sequence[str], length: Callable[[Example], int], limit: int
) -> Example | None:
    """A demonstration as it fits, or None; one that makes a delimiter of the text form when shortened does not."""

    def fits(example: Example) -> bool:
        try:
            return length(example) <= limit
        except DelimiterCollision:
            return False

    return pruned(plan.demonstrations[position], stages, fits)


def by_density(plan: Plan, order: Sequence[int], scores: Sequence[float], limit: int) -> list[int]:
    """The order in which `fit` takes at least half of the best total score.

    Args:
        plan: The prompt.
        order: Positions, the most important first, which is how equals go; none of them shared.
        scores: Of each position; below 0 as 0.
        limit: The most tokens.
    """
    room = limit - plan.used
    worth = {i: max(scores[i], 0.0) for i in order}
    costs = {i: plan.cost(plan.demonstrations[i]) for i in order}
    dense = sorted(order, key=lambda i: -worth[i] / max(costs[i], 1))
    taken, left = 0.0, room
    for i in dense:
        if costs[i] <= left:
            left -= costs[i]
            taken += worth[i]
    alone = [i for i in order if costs[i] <= room]
    best = max(alone, key=lambda i: worth[i], default=None)
    if best is None or worth[best] <= taken:
        return dense
    return [best, *(i for i in dense if i != best)]

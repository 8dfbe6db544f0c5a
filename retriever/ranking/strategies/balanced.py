"""Label balance: quotas over the labels that the candidates carry.

    soft           every label gets its least number, the rest goes by relevance
    strict         no label gets more than its quota, as long as the candidates allow
    round-robin    labels take turns, in the order of their best candidates

Which labels are shown weighs more than how evenly: the share of demonstrations with the query's own label goes with
accuracy, so strict balance costs where retrieval is right (self-adaptive in-context learning, Wu et al. 2023). `soft`
is therefore the default: one of each label, and only where k is enough for all.

A candidate with several labels counts for each of them; one without labels only fills up. Everything is counted, no
sum decides.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from retriever.errors import InvalidInput
from retriever.ranking.strategies.base import Candidates, Strategy
from retriever.ranking.strategies.picks import NONE, Picks, Reals, check_relevance, picks

Mode: TypeAlias = Literal["soft", "strict", "round-robin"]
_Labels: TypeAlias = Sequence[Collection[str]]


def balanced(
    labels: _Labels, relevance: Reals, k: int, *, mode: Mode = "soft", quotas: Mapping[str, int] | None = None
) -> Picks:
    """Picks whose labels are balanced.

    Args:
        labels: The labels of each of the m candidates, best candidate first.
        relevance: Shape (m,), float64; reported as gains. Places decide.
        k: How many, at most.
        mode: `soft`, `strict` or `round-robin`.
        quotas: By label, the least number under `soft`, the largest under `strict`; labels left out have 0 there and
            no bound under `round-robin`, which stops serving a label at its quota. None takes, under `soft`, 1 for
            each label if there are at most k of them, else 0; under `strict`, k shared equally, one more for the
            labels with the best candidates where it does not come out even; under `round-robin`, no bounds.

    Returns:
        The picks: those within the quotas first (under `round-robin` in the order of the turns, else best first), then
        what fills up to k, best first. Under `soft` the two are not told apart: all are best first. A gain is the
        relevance. `against` is the first pick that shares a label, none where the labels are new.

    Raises:
        InvalidInput: A shape, quota or setting that cannot be used.
    """
    check_relevance(relevance, k, len(labels))
    if quotas is not None and min(quotas.values(), default=0) < 0:
        raise InvalidInput(f"quotas {dict(quotas)}", expected="numbers from 0")
    if any(isinstance(mine, str) for mine in labels):
        raise InvalidInput("a text for labels", expected="a collection of labels for each candidate")
    if mode not in _MODES:
        raise InvalidInput(f"mode {mode!r}", expected=f"one of {', '.join(get_args(Mode))}")
    count = min(k, len(labels))
    chosen = _MODES[mode](labels, count, quotas)
    taken = set(chosen)
    chosen += [place for place in range(len(labels)) if place not in taken][: count - len(chosen)]
    if mode == "soft":
        chosen.sort()
    return picks(chosen, relevance[chosen].tolist(), _against(labels, chosen))


def _in_order(labels: _Labels) -> list[str]:
    """All labels, in the order of their best candidates; those of one candidate by name."""
    return list(dict.fromkeys(label for mine in labels for label in sorted(mine)))


def _soft(labels: _Labels, count: int, quotas: Mapping[str, int] | None) -> list[int]:
    """The best candidates that bring every label to its least number."""
    if quotas is None:
        every = _in_order(labels)
        quotas = dict.fromkeys(every, 1) if len(every) <= count else {}
    lacking = Counter(quotas)
    chosen: list[int] = []
    for place, mine in enumerate(labels):
        if len(chosen) < count and any(lacking[label] > 0 for label in mine):
            chosen.append(place)
            lacking.subtract(set(mine))
    return chosen


def _strict(labels: _Labels, count: int, quotas: Mapping[str, int] | None) -> list[int]:
    """The best candidates that take no label beyond its quota."""
    if quotas is None:
        every = _in_order(labels)
        share, over = divmod(count, max(len(every), 1))
        quotas = {label: share + (number < over) for number, label in enumerate(every)}
    left = Counter(quotas)
    chosen: list[int] = []
    for place, mine in enumerate(labels):
        if len(chosen) < count and mine and all(left[label] > 0 for label in mine):
            chosen.append(place)
            left.subtract(set(mine))
    return chosen


def _round_robin(labels: _Labels, count: int, quotas: Mapping[str, int] | None) -> list[int]:
    """In turn each label's best candidate that is not yet chosen, until none is left or all quotas are met."""
    queues: dict[str, list[int]] = {label: [] for label in _in_order(labels)}
    for place, mine in enumerate(labels):
        for label in set(mine):
            queues[label].append(place)
    turns = {label: iter(queue) for label, queue in queues.items()}
    served: Counter[str] = Counter()
    chosen: dict[int, None] = {}
    while turns and len(chosen) < count:
        for label in list(turns):
            if len(chosen) == count:
                break
            full = quotas is not None and label in quotas and served[label] >= quotas[label]
            place = NONE if full else next((one for one in turns[label] if one not in chosen), NONE)
            if place == NONE:
                del turns[label]
            else:
                chosen[place] = None
                served.update(set(labels[place]))
    return list(chosen)


_MODES: Mapping[str, Callable[[_Labels, int, Mapping[str, int] | None], list[int]]] = {
    "soft": _soft,
    "strict": _strict,
    "round-robin": _round_robin,
}


def _against(labels: _Labels, chosen: Sequence[int]) -> list[int]:
    """For each pick, the first one that shares a label."""
    first: dict[str, int] = {}
    against = []
    for step, place in enumerate(chosen):
        rivals = [first[label] for label in labels[place] if label in first]
        against.append(chosen[min(rivals)] if rivals else NONE)
        for label in labels[place]:
            first.setdefault(label, step)
    return against


@dataclass(frozen=True)
class BalancedOptions:
    """See `balanced`.

    Attributes:
        mode: `soft`, `strict` or `round-robin`.
        quotas: By label, the least number under `soft`, the largest otherwise; None for the mode's own.
    """

    mode: Mode = "soft"
    quotas: Mapping[str, int] | None = None

    def __post_init__(self) -> None:
        if self.quotas is not None and min(self.quotas.values(), default=0) < 0:
            raise InvalidInput(f"quotas {dict(self.quotas)}", expected="numbers from 0")


def _pick(candidates: Candidates, k: int, options: BalancedOptions) -> Picks:
    return balanced(candidates.labels, candidates.relevance, k, mode=options.mode, quotas=options.quotas)


BALANCED = Strategy(pick=_pick, options=BalancedOptions)

"""What a candidate is worth on a query: by a metric of its selection, or by what a language model answers to it.

A token cost, where there is one, is taken off either.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from retriever.evaluation.asking import Asking, Cost, ask
from retriever.evaluation.comparison import Values
from retriever.evaluation.evaluate import judged
from retriever.evaluation.judge import AnswerMetric
from retriever.evaluation.judged import Metric
from retriever.evaluation.key_search import Trial
from retriever.evaluation.outcomes import Outcomes
from retriever.evaluation.queries import Qrels, as_asked
from retriever.evaluation.search_space import Candidate, Weights
from retriever.example import Example
from retriever.listening import Progress
from retriever.prompting import Prompt
from retriever.prompts import PromptOptions
from retriever.retriever import Retriever
from retriever.selection import Selection
from retriever.snapshot import Snapshot

Places = NDArray[np.int64]


@dataclass(frozen=True)
class Asked:
    """The queries, and how they are put to an index.

    Attributes:
        retriever: The index.
        snapshot: The view that all selections must come from.
        queries: With their true outputs and labels.
        qrels: Relevance judgements.
        prompt: How prompts are put together.
        token_cost: What 1,000 tokens of prompt take off the score; None where they do not count.
        progress: Told the stage, how much of it is done, and how much there is.
        trials: The same examples by other keys.
    """

    retriever: Retriever
    snapshot: Snapshot
    queries: Sequence[Example]
    qrels: Qrels
    prompt: PromptOptions
    token_cost: float | None
    progress: Progress
    trials: Mapping[str, Trial] = field(default_factory=dict)

    @property
    def weights(self) -> Weights:
        """The keys, and the calibrated fusion weight of each."""
        return {None: self.snapshot.base.weight, **{key: one.calibration.weight for key, one in self.trials.items()}}

    def view(self, key: str | None) -> Snapshot:
        """The view that answers by a key."""
        return self.snapshot if key is None else self.trials[key].snapshot

    def selections(self, tried: Sequence[Candidate], places: Places) -> Iterator[tuple[Selection, ...]]:
        """For each of some queries its selection by each candidate; what a query is judged by is hidden from it."""
        hidden = [as_asked(self.queries[place], judged=bool(self.qrels)) for place in places.tolist()]
        of_key: dict[str | None, list[int]] = {}
        for number, one in enumerate(tried):
            of_key.setdefault(one.key, []).append(number)
        made_by = []
        for key, numbers in of_key.items():
            index = self.retriever if key is None else self.trials[key]
            followed = [tried[number].recipe.with_options({"guard": "near"}) for number in numbers]
            made_by.append(index.select_each(hidden, followed))
        order = np.argsort(np.concatenate(list(of_key.values())))
        for done, made in enumerate(zip(*made_by, strict=True), start=1):
            together = list(chain.from_iterable(made))
            yield tuple(together[place] for place in order.tolist())
            self.progress(f"{len(tried)} recipes", done, len(places))

    def prompt_of(self, selection: Selection) -> Prompt:
        """The prompt of a selection."""
        return self.retriever.prompt(selection, prompt_options=self.prompt)

    def less(self, score: float, tokens: int | None) -> float:
        """A score less what its prompt costs."""
        return score - (self.token_cost or 0.0) * (tokens or 0) / 1000


class Scorer(Protocol):
    """What candidates are compared by."""

    def __call__(self, tried: Sequence[Candidate], places: Places) -> Values:
        """What each is worth on some of the queries, shape (candidates, queries), NaN where it cannot be told."""


@dataclass(frozen=True)
class ByMetric:
    """Scores by a metric of selections; less counts as more where less is better.

    Attributes:
        asked: The queries.
        objective: The metric.
    """

    asked: Asked
    objective: Metric

    def __call__(self, tried: Sequence[Candidate], places: Places) -> Values:
        """As `Scorer` says."""
        values = np.empty((len(tried), len(places)))
        for column, made in enumerate(self.asked.selections(tried, places)):
            place = int(places[column])
            values[:, column] = [self._value(one, chosen, place) for one, chosen in zip(tried, made, strict=True)]
        return values

    def _value(self, one: Candidate, selection: Selection, place: int) -> float:
        asked, truth, tokens = self.asked, self.asked.queries[place], None
        if not self.objective.judges(truth, asked.qrels.get(truth.id, {})):
            return np.nan
        if asked.token_cost is not None or self.objective.name == "tokens":
            tokens = asked.prompt_of(selection).tokens
        grades, view = asked.qrels.get(truth.id, {}), asked.view(one.key)
        seen = judged(asked.snapshot, selection, truth, tokens, grades, view=view)
        return asked.less(self.objective.better * self.objective(seen), tokens)


@dataclass
class ByAnswers:
    """Scores by a language model's answers, within what is left of a budget.

    Attributes:
        asked: The queries.
        judge: What answers are judged by.
        asking: The model, with the budget of the whole run.
        calls: How many calls were made.
        tokens: The most tokens that they took.
        failed: How many of them failed.
        first_failure: What the first of these said; empty for none.
        left_out: How many prompts the budget left out.
        outcomes: What came of all calls; the model is given up over the whole search, not over a part of it.
    """

    asked: Asked
    judge: AnswerMetric
    asking: Asking
    calls: int = 0
    tokens: int = 0
    failed: int = 0
    first_failure: str = ""
    left_out: int = 0
    outcomes: Outcomes = field(default_factory=Outcomes)
    _known: dict[tuple[str, int], Prompt] = field(default_factory=dict)
    _failed: set[tuple[str, int]] = field(default_factory=set)
    _lowest: float = 0.0

    def prompts(self, tried: Sequence[Candidate], places: Places) -> list[list[Prompt]]:
        """The prompt of each candidate for each of some queries."""
        keys = [_settings(one) for one in tried]
        new = np.array([p for p in places.tolist() if any((key, p) not in self._known for key in keys)], np.int64)
        for place, made in zip(new.tolist(), self.asked.selections(tried, new), strict=True):
            self._known.update(
                {(key, place): self.asked.prompt_of(selection) for key, selection in zip(keys, made, strict=True)}
            )
        return [[self._known[key, place] for place in places.tolist()] for key in keys]

    def __call__(self, tried: Sequence[Candidate], places: Places) -> Values:
        """As `Scorer` says."""
        prompts = {str(number): one for number, one in enumerate(self.prompts(tried, places))}
        answers = ask(self._left(), prompts, self.outcomes, on_cost=self._spent, progress=self.asked.progress)
        self.failed += answers.failed
        self.first_failure = self.first_failure or answers.first_failure
        values = np.full((len(tried), len(places)), np.nan)
        for row, (name, texts) in enumerate(answers.texts.items()):
            key = _settings(tried[row])
            for column, (place, text) in enumerate(zip(places.tolist(), texts, strict=True)):
                if text is not None:
                    score = self.judge.value(text, self.asked.queries[place])
                    self._lowest = min(self._lowest, score)
                    values[row, column] = self.asked.less(score, prompts[name][column].tokens)
                elif answers.refused[name][column]:
                    self._failed.add((key, place))
        return values

    def wrong(self, one: Candidate, places: Places) -> Values:
        """What the failures of a candidate count as on some of the queries, NaN where there is none.

        That is 0, or the lowest that an answer got where answers got less, and the tokens of the prompt as ever.
        """
        key, values = _settings(one), np.full(len(places), np.nan)
        for column, place in enumerate(places.tolist()):
            if (key, place) in self._failed:
                values[column] = self.asked.less(self._lowest, self._known[key, place].tokens)
        return values

    def _left(self) -> Asking:
        calls, tokens = self.asking.max_calls, self.asking.max_tokens
        return replace(
            self.asking,
            max_calls=None if calls is None else calls - self.calls,
            max_tokens=None if tokens is None else tokens - self.tokens,
        )

    def _spent(self, cost: Cost) -> None:
        self.calls += cost.calls
        self.tokens += cost.prompt_tokens + cost.answer_tokens
        self.left_out += cost.left_out


def _settings(one: Candidate) -> str:
    """What two candidates share that make the same prompts."""
    return json.dumps([one.key, one.recipe.to_dict()], sort_keys=True)

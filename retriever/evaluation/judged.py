"""What a user can ask for by name of a selection, and what each metric needs to know.

    precision, hit                  labels: share of demonstrations that share one with the query; whether any does
    majority-vote, weighted-vote    labels: whether the demonstrations' vote is right, each counting 1 or its score
    label-entropy                   labels: how mixed the demonstrations' are, in bits
    label-coverage                  labels: share of the query's (entity or slot types) that some demonstration has
    best-overlap, union-overlap     outputs: their tokens against those of the true output, the best or all together
    best-ngrams, union-ngrams       outputs: their n-grams of up to 4 tokens
    best-template, union-template   outputs: the n-grams left when numbers, quotes and words of the input are masked
    template-hit                    outputs: whether one has the very template of the true output
    redundancy, diversity           mean cosine of two demonstrations; share of their n-grams that no other one has
    tokens                          the length of the prompt
    ndcg, recall, mrr               relevance judgements

`NAME@N` looks at the first N demonstrations alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from retriever.errors import InvalidInput
from retriever.evaluation import metrics
from retriever.evaluation.metrics import TokenSet
from retriever.example import Example
from retriever.ranking.template_key import template_key

Grades: TypeAlias = Mapping[str, float]
"""The relevance of documents by their ids."""

NEEDS = {"labels": "a label", "outputs": "an output", "qrels": "a relevance judgement", "": "anything"}


@dataclass(frozen=True)
class Judged:
    """A selection and what is known of its query.

    Attributes:
        truth: The query with its true output and labels.
        chosen: The demonstrations' examples, best first.
        scores: Their scores.
        vectors: Their vectors, float32, shape (demonstrations, dim).
        k: How many were asked for.
        tokens: The length of the prompt; None where nothing asks for it.
        grades: Relevance judgements of the query; empty for none.
    """

    truth: Example
    chosen: tuple[Example, ...]
    scores: tuple[float, ...]
    vectors: NDArray[np.float32]
    k: int
    tokens: int | None
    grades: Grades

    def first(self, count: int) -> Judged:
        """The same of the first demonstrations alone."""
        return replace(
            self,
            chosen=self.chosen[:count],
            scores=self.scores[:count],
            vectors=self.vectors[:count],
            k=min(count, self.k),
        )

    @property
    def labels(self) -> list[TokenSet]:
        """The labels of each demonstration."""
        return [example.labels for example in self.chosen]

    @property
    def ids(self) -> list[str]:
        """The ids of the demonstrations."""
        return [example.id for example in self.chosen]


@dataclass(frozen=True)
class Metric:
    """A metric of a selection.

    Attributes:
        name: What it is asked for by, `@N` included.
        needs: What must be known of a query: `labels`, `outputs`, `qrels`, or nothing.
        better: 1 where more is better, -1 where less is, 0 where neither is by itself.
        value: Of a selection.
        depth: How many demonstrations it looks at; None for all.
    """

    name: str
    needs: str
    better: int
    value: Callable[[Judged], float]
    depth: int | None = None

    def judges(self, truth: Example, grades: Grades) -> bool:
        """Whether what the metric needs is known of the query."""
        if self.needs == "labels":
            return bool(truth.labels)
        if self.needs == "qrels":
            return any(grade > 0 for grade in grades.values())
        return self.needs == "" or bool(truth.output_text.strip())

    def __call__(self, judged: Judged) -> float:
        """The value, of the first `depth` demonstrations."""
        return self.value(judged if self.depth is None else judged.first(self.depth))


_tokens = lru_cache(maxsize=4096)(metrics.output_tokens)
_ngrams = lru_cache(maxsize=4096)(metrics.ngrams)


@lru_cache(maxsize=4096)
def _template(output: str, input: str) -> str:
    return template_key(output, input)


def _output_tokens(example: Example) -> TokenSet:
    """Of an output without any identifier the signs themselves, so that it has something to compare."""
    return _tokens(example.output_text) or _ngrams(example.output_text, 1)


def _output_ngrams(example: Example) -> TokenSet:
    return _ngrams(example.output_text)


def _output_template(example: Example) -> TokenSet:
    return _ngrams(_template(example.output_text, example.input_text))


def _whole_template(example: Example) -> TokenSet:
    return frozenset([_template(example.output_text, example.input_text)])


def _own_ngrams(example: Example) -> TokenSet:
    return _ngrams(f"{example.input_text}\n{example.output_text}")


def _of(
    compare: Callable[[TokenSet, Sequence[TokenSet]], float], part: Callable[[Example], TokenSet]
) -> Callable[[Judged], float]:
    """A metric that compares a part of the truth with the same part of each demonstration."""
    return lambda judged: compare(part(judged.truth), [part(example) for example in judged.chosen])


def _labels(example: Example) -> TokenSet:
    return example.labels


def _prompt_tokens(judged: Judged) -> float:
    assert judged.tokens is not None
    return float(judged.tokens)


_ALL = (
    Metric("ndcg", "qrels", 1, lambda j: metrics.ndcg(j.ids, j.grades, j.k)),
    Metric("recall", "qrels", 1, lambda j: metrics.recall(j.ids, j.grades, j.k)),
    Metric("mrr", "qrels", 1, lambda j: metrics.reciprocal_rank(j.ids, j.grades, j.k)),
    Metric("precision", "labels", 1, _of(metrics.precision, _labels)),
    Metric("hit", "labels", 1, _of(metrics.hit, _labels)),
    Metric("majority-vote", "labels", 1, _of(metrics.majority_vote, _labels)),
    Metric("weighted-vote", "labels", 1, lambda j: metrics.weighted_vote(j.truth.labels, j.labels, j.scores)),
    Metric("label-entropy", "labels", 0, lambda j: metrics.label_entropy(j.labels)),
    Metric("label-coverage", "labels", 1, _of(metrics.union_overlap, _labels)),
    Metric("best-overlap", "outputs", 1, _of(metrics.best_overlap, _output_tokens)),
    Metric("union-overlap", "outputs", 1, _of(metrics.union_overlap, _output_tokens)),
    Metric("best-ngrams", "outputs", 1, _of(metrics.best_overlap, _output_ngrams)),
    Metric("union-ngrams", "outputs", 1, _of(metrics.union_overlap, _output_ngrams)),
    Metric("best-template", "outputs", 1, _of(metrics.best_overlap, _output_template)),
    Metric("union-template", "outputs", 1, _of(metrics.union_overlap, _output_template)),
    Metric("template-hit", "outputs", 1, _of(metrics.hit, _whole_template)),
    Metric("redundancy", "", 0, lambda j: metrics.redundancy(j.vectors)),
    Metric("diversity", "", 0, lambda j: metrics.diversity([_own_ngrams(example) for example in j.chosen])),
    Metric("tokens", "", -1, _prompt_tokens),
)
METRICS: Mapping[str, Metric] = {metric.name: metric for metric in _ALL}
"""The metrics that need no language model, by name."""


def metric(name: str) -> Metric:
    """The metric of a name such as `precision` or `precision@4`.

    Raises:
        InvalidInput: There is none, or it cannot be cut to a number of demonstrations.
    """
    base, at, depth = name.partition("@")
    if base not in METRICS:
        raise InvalidInput(f"the metric {name!r}", expected=f"one of {', '.join(METRICS)}")
    found = METRICS[base]
    if not at:
        return found
    if base == "tokens" or not (depth.isascii() and depth.isdigit() and int(depth) > 0):
        raise InvalidInput(f"the metric {name!r}", expected="NAME@N, N from 1, of any metric but tokens")
    return replace(found, name=f"{base}@{int(depth)}", depth=int(depth))


def default_metrics(queries: Sequence[Example], grades: Mapping[str, Grades]) -> list[Metric]:
    """What queries are judged by where nobody says: the metric that their data is about first.

    Judgements before all; labels where they repeat and each query has one at most; else outputs, and of several labels
    how many are covered. Redundancy and the length of the prompt stand beside them.

    Args:
        queries: With what is known of them.
        grades: The judgements by query id.
    """
    labels = [label for query in queries for label in query.labels]
    outputs = any(query.output_text.strip() for query in queries)
    repeat = len(set(labels)) < len(labels)
    single = repeat and all(len(query.labels) <= 1 for query in queries)
    chosen = ["ndcg", "recall", "mrr"] if grades else []
    if single:
        chosen += ["precision", "hit", "majority-vote"]
    if outputs and not single:
        chosen += ["best-overlap", "union-ngrams", "template-hit"]
    if repeat and not single:
        chosen += ["label-coverage"]
    chosen += ["redundancy", "tokens"] if outputs else ["redundancy"]  # without outputs there are no prompts
    return [METRICS[name] for name in chosen]

"""Scores of demonstrations by a language model, as a log: how likely the true answer is after each of them alone.

This is the supervision of EPR (Rubin, Herzig and Berant, "Learning To Retrieve Prompts for In-Context Learning", NAACL
2022), with the index's own selection for candidates. Each costs one pass of the model and no generation.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Protocol, Unpack

from retriever.errors import InvalidInput
from retriever.evaluation.queries import as_asked
from retriever.example import Example, Json
from retriever.listening import Progress, silent
from retriever.prompting import Prompt
from retriever.prompts import PromptOptions
from retriever.ranking.recipe import Options
from retriever.recipes import RecipeLike
from retriever.retriever import Retriever

CANDIDATES = 30


class Likelihood(Protocol):
    """A language model that tells how likely an answer is, such as a `transformers:` backend."""

    def log_likelihood(self, prompt: Prompt, answer: str) -> float:
        """The logarithm of the probability of an answer after a prompt."""


def score_demonstrations(
    retriever: Retriever,
    queries: Iterable[Example],
    model: Likelihood,
    *,
    recipe: RecipeLike = None,
    prompt_options: PromptOptions | None = None,
    progress: Progress = silent,
    **options: Unpack[Options],
) -> Iterator[dict[str, Json]]:
    """A line of feedback for each query: the log-likelihood of its true output given each candidate alone.

    Args:
        retriever: The index.
        queries: With their true outputs. Examples of the pool will do: the guard keeps each from its own candidates.
        model: What scores.
        recipe: How candidates are chosen; see `Retriever.select`.
        prompt_options: How prompts are put together.
        progress: Told how many queries are done; the total is 0 for unknown.
        **options: Single keys of the recipe; `k` is 30 where it is not given.

    Raises:
        InvalidInput: A query without an output.
        BackendError: The model fails.
    """
    options.setdefault("k", CANDIDATES)
    for number, query in enumerate(queries, start=1):
        if not query.output_text:
            raise InvalidInput(f"query {query.id!r} without an output", expected="the true answer, to be scored")
        asked = as_asked(query, judged=False)
        chosen = retriever.select(asked, recipe=recipe, **options)
        scores: dict[str, Json] = {}
        for one in chosen:
            prompt = retriever.prompt(replace(chosen, demonstrations=(one,)), prompt_options=prompt_options)
            scores[one.example.id] = model.log_likelihood(prompt, query.output_text)
        if scores:
            yield {"query": asked.to_dict(), "scores": scores}
        progress("scoring demonstrations", number, 0)

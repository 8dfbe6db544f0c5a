"""What came of a run's calls so far, and when a language model that fails is given up.

A model fails for the reasons of a question (its content is refused, a recipe's prompts are too long) or for its own (it
is down, the quota is spent). Only the latter ends a run, and what tells them apart is that it fails whatever it is
asked. So queries are counted, not calls: those in a row without an answer. What was answered before stands in the row
as well, so that the same run ends as it did when only its failures are left to ask; and a query that was answered under
one recipe says nothing against the model when it fails under another.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping

from retriever.errors import BackendError
from retriever.prompting import Prompt

MOST_FAILURES = 10
"""Queries in a row without an answer after which a model is given up; calls, where it never answered anything."""

SEVERAL = 3
"""Queries that must have failed at least: one that is refused is refused under every recipe."""


class Outcomes:
    """The prompts of a run in their order, however many times it asks, and what came of each; several threads may tell.

    Attributes:
        given_up: Why no more is to be asked; None while the model may still answer.
    """

    def __init__(self) -> None:
        self.given_up: BackendError | None = None
        self._first: BackendError | None = None
        self._queries: list[str] = []
        self._has_failed: list[bool] = []
        self._places: dict[str, int] = {}
        self._answered: set[str] = set()
        self._lock = threading.Lock()

    def begin(self, prompts: Mapping[str, Prompt], known: Collection[str]) -> None:
        """Puts prompts at the end of the row.

        Args:
            prompts: By key, in the order in which they are asked.
            known: The keys of those that have an answer already.
        """
        with self._lock:
            for key, prompt in prompts.items():
                self._places[key] = len(self._queries)
                self._queries.append(prompt.query.input_text)
                self._has_failed.append(False)
                if key in known:
                    self._answered.add(prompt.query.input_text)

    def answered(self, key: str) -> None:
        """A prompt has an answer."""
        with self._lock:
            self._answered.add(self._queries[self._places[key]])

    def failed(self, key: str, error: BackendError) -> None:
        """The call of a prompt failed."""
        with self._lock:
            place = self._places[key]
            self._has_failed[place] = True
            self._first = self._first or error
            calls = self._row(place)
            if self.given_up is None and self._hopeless(calls):
                self.given_up = BackendError(f"{len(calls)} calls in a row failed, the last: {error}")

    def check(self) -> None:
        """Whether anything came back at all.

        Raises:
            BackendError: Every call failed, and nothing was known before.
        """
        if self._first is not None and not self._answered:
            raise self._first

    def _row(self, place: int) -> range:
        """The failures around one that have nothing else between them."""
        start = stop = place
        while start and self._has_failed[start - 1]:
            start -= 1
        while stop + 1 < len(self._has_failed) and self._has_failed[stop + 1]:
            stop += 1
        return range(start, stop + 1)

    def _hopeless(self, calls: range) -> bool:
        queries = {self._queries[place] for place in calls} - self._answered
        if self._answered:
            return len(queries) >= MOST_FAILURES
        return len(calls) >= MOST_FAILURES and len(queries) >= SEVERAL

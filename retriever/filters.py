"""Filters over a snapshot: from conditions on examples to masks over rows."""

from __future__ import annotations

import json
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from retriever.errors import InvalidInput
from retriever.example import Example
from retriever.ranking.recipe import Filter, Where
from retriever.ranking.where import equal_text, named_paths, predicate
from retriever.snapshot import Snapshot

Mask: TypeAlias = NDArray[np.bool_]

_KEPT = 64


class Filters:
    """Works out which rows a query may be answered from.

    The first use of a condition reads every example; its mask is then kept for as long as the snapshot lives.

    Args:
        snapshot: The view of the pool.
    """

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self._masks: dict[str, tuple[Mask, tuple[str, ...]]] = {}
        self._rows_by_value: dict[str, dict[str, list[int]]] = {}

    def eligible(self, query: Example, settings: Filter, excluded: list[int]) -> Mask | None:
        """The rows that may be chosen, bool, shape (rows,); None when all may.

        Args:
            query: Whose values `match` asks for.
            settings: The conditions.
            excluded: Rows that must not be chosen whatever the conditions say.

        Raises:
            InvalidInput: The query has no value for a field to match, or the expression is wrong.
        """
        masks = [] if settings.where is None else [self._where(settings.where)]
        masks += [self._matching(field, query) for field in settings.match]
        if not masks and not excluded:
            return None
        mask = np.logical_and.reduce(masks) if masks else np.ones(len(self._snapshot.rows), dtype=np.bool_)
        mask[excluded] = False
        return mask

    def unknown(self, where: Where) -> tuple[str, ...]:
        """The fields that the expression names and no example has, as after a slip of the pen."""
        return () if where is None else self._read(where)[1]

    def _where(self, where: Where) -> Mask:
        return self._read(where)[0]

    def _read(self, where: Where) -> tuple[Mask, tuple[str, ...]]:
        """The mask of an expression, and the fields that no example has."""
        name = json.dumps(where, sort_keys=True)
        found = self._masks.get(name)
        if found is None:
            assert where is not None
            test, unseen = predicate(where), list(named_paths(where))
            mask = np.zeros(len(self._snapshot.rows), dtype=np.bool_)
            for place, example in self._snapshot.present():
                mask[place] = test(example)
                unseen = [path for path in unseen if example.value(path) is None] if unseen else unseen
            if len(self._masks) >= _KEPT:
                self._masks = {}  # replaced as a whole: another thread may be reading it
            found = self._masks[name] = mask, tuple(unseen)
        return found

    def _matching(self, field: str, query: Example) -> Mask:
        wanted = query.value(field)
        if wanted is None:
            raise InvalidInput(f"query {query.id!r} has no {field!r} to match", expected="a value for it in the query")
        if field not in self._rows_by_value:
            rows: dict[str, list[int]] = {}
            for place, example in self._snapshot.present():
                rows.setdefault(equal_text(example.value(field)), []).append(place)
            self._rows_by_value[field] = rows
        mask = np.zeros(len(self._snapshot.rows), dtype=np.bool_)
        mask[self._rows_by_value[field].get(equal_text(wanted), [])] = True
        return mask

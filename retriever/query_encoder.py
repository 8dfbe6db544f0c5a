"""The query encoder: the embedder an index was built with, loaded when first needed and checked against the index."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import fields, replace

import numpy as np
from numpy.typing import NDArray

from indexes.late_interaction import Floats
from retriever.embedders import (
    Embedder,
    EmbedderSettings,
    EmbedderSource,
    encode_checked,
    fingerprint,
    fitted_name,
    load_embedder,
    prompts_of,
    same_space,
)
from retriever.embedders.base import encode_tokens, token_embedder
from retriever.errors import Incompatible, InvalidInput
from retriever.listening import Note
from retriever.stored_embedder import StoredEmbedder
from retriever.token_storage import TextTokens, token_ids, tokens_of


class QueryEncoder:
    """Encodes queries and new examples as the index was built.

    Args:
        stored: Which embedder that was.
        given: The caller's embedder, in place of loading it by name; settings for `auto` mean the index's own, run as
            they say.
        note: Told in one line what a reader should know.
    """

    def __init__(self, stored: StoredEmbedder, given: EmbedderSource | None, note: Note) -> None:
        self.stored = stored
        self._prompts = stored.prompts
        # The word means the same as settings that name nothing.
        self._given = EmbedderSettings() if isinstance(given, str) and given == "auto" else given
        self._note = note
        self._lock = threading.Lock()
        self._loaded: Embedder | None = None

    @property
    def embedder(self) -> Embedder:
        """The embedder.

        Raises:
            Incompatible: It is not the one the index was built with.
            EmbedderError: It cannot be loaded.
        """
        with self._lock:
            if self._loaded is None:
                embedder = self._load()
                self._check(embedder)
                self._loaded = embedder
            return self._loaded

    def queries(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """The vectors of queries' key texts, float32, shape (texts, dim)."""
        return encode_checked(self.embedder, texts, prefix=self._prompts.query)

    def examples(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """The vectors of examples' key texts, float32, shape (texts, dim)."""
        return encode_checked(self.embedder, texts, prefix=self._prompts.example)

    def query_tokens(self, text: str) -> Floats:
        """The vectors of the tokens of a query's key text, of unit length or zero, shape (tokens, d).

        Raises:
            InvalidInput: The embedder has no token vectors.
        """
        return encode_tokens(token_embedder(self.embedder), [text], prefix=self._prompts.query).text(0)

    def query_token_ids(self, text: str) -> NDArray[np.int64]:
        """The ids of these tokens, shape (tokens,).

        Raises:
            InvalidInput: The embedder has no token vectors.
        """
        return next(token_ids(token_embedder(self.embedder), [text], self._prompts.query))

    def example_tokens(self, texts: Sequence[str]) -> list[TextTokens]:
        """The tokens of examples' key texts, as an index stores them.

        Raises:
            InvalidInput: The embedder has no token vectors.
        """
        return list(tokens_of(self.embedder, texts, self._prompts.example))

    def example_token_ids(self, texts: Sequence[str]) -> list[NDArray[np.int64]]:
        """The ids of the tokens of examples' key texts; nothing is embedded.

        Raises:
            InvalidInput: The embedder has no token vectors.
        """
        return list(token_ids(token_embedder(self.embedder), texts, self._prompts.example)) if texts else []

    def _load(self) -> Embedder:
        if isinstance(self._given, EmbedderSettings) and self._given.name == "auto":
            return self._stored_one(self._given)
        asked = self._fitted_name_asked_for()
        if asked is not None:
            if asked != self.stored.name:
                raise Incompatible(f"embedder {asked}", expected=f"{self.stored.name}, which built the index")
            return self.stored.fitted(self._note)
        return load_embedder(self.stored.source if self._given is None else self._given, note=self._note)

    def _stored_one(self, asked: EmbedderSettings) -> Embedder:
        """The index's own, run in another way: on another device, by another engine."""
        other = {
            f.name: value for f in fields(asked) if f.name != "name" and (value := getattr(asked, f.name)) is not None
        }
        if not self.stored.is_fitted:
            return load_embedder(replace(self.stored.source, **other), note=self._note)
        if self.stored.is_tuned:
            return self.stored.fitted(self._note, replace(self.stored.source, **other))
        if other:
            raise InvalidInput(
                f"embedder {self.stored.name} does not use {', '.join(sorted(other))}", fix="leave it out"
            )
        return self.stored.fitted(self._note)

    def _fitted_name_asked_for(self) -> str | None:
        """The name of the embedder if it is one that was fitted on a pool, which only the index holds."""
        if self._given is None:
            return fitted_name(self.stored.name)
        name = self._given.name if isinstance(self._given, EmbedderSettings) else self._given
        return fitted_name(name) if isinstance(name, str) else None

    def _check(self, embedder: Embedder) -> None:
        mark = fingerprint(embedder)
        if not same_space(mark, self.stored.fingerprint):
            raise Incompatible(
                f"embedder {embedder.name} ({_shown(mark)})",
                expected=f"{self.stored.name} ({_shown(self.stored.fingerprint)}), which built the index",
                fix="use that embedder, or build the index again",
            )
        if embedder.name == self.stored.name and prompts_of(embedder) != self._prompts:
            self._note(f"the index keeps the prompts it was built with, {self._prompts}")


def _shown(mark: str) -> str:
    dim, _, digits = mark.partition(":")
    return f"{dim} dimensions, fingerprint {digits[:12]}…"

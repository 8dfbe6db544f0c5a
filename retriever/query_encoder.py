"""The query encoder: the embedder an index was built with, loaded when first needed and checked against the index."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from indexes.generation import Generation
from retriever.embedders import (
    Embedder,
    EmbedderSettings,
    EmbedderSource,
    LatentSemanticEmbedder,
    Prompts,
    encode_checked,
    fingerprint,
    load_embedder,
    prompts_of,
    same_space,
)
from retriever.errors import Incompatible, IndexCorrupt

_LATENT = "latent-semantic"


class QueryEncoder:
    """Encodes queries and new examples as the index was built.

    Args:
        generation: Its manifest says which embedder that was.
        given: The caller's embedder, in place of loading it by name.
        note: Told in one line what a reader should know.
    """

    def __init__(self, generation: Generation, given: EmbedderSource | None, note: Callable[[str], None]) -> None:
        stored = generation.manifest["embedder"]
        if not isinstance(stored, dict):
            raise IndexCorrupt(generation.path, "names no embedder", fix="build it again")
        self.stored: dict[str, object] = stored
        prompts = stored["prompts"]
        assert isinstance(prompts, dict)
        self._prompts = Prompts(str(prompts["query"]), str(prompts["example"]))
        self._generation = generation
        self._given = given
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

    def _load(self) -> Embedder:
        if self._asks_for_latent():
            if self.stored["name"] != _LATENT:
                raise Incompatible(f"embedder {_LATENT}", expected=f"{self.stored['name']}, which built the index")
            return latent_embedder(self._generation)
        if self._given is not None:
            return load_embedder(self._given, note=self._note)
        settings = self.stored["settings"]
        if not isinstance(settings, dict):
            raise Incompatible(
                f"{self._generation.path.parent} was built with {self.stored['name']}, which only its owner can bring",
                fix="pass the same object: Retriever.open(path, embedder=...)",
            )
        wanted = EmbedderSettings(**settings)
        if wanted.base_url is not None and wanted.base_url != os.environ.get("OPENAI_BASE_URL"):
            # An index may come from anybody; the key in the environment goes to no address that only an index names.
            raise Incompatible(
                f"the index names the endpoint {wanted.base_url}, which the caller has not named",
                fix=f"set OPENAI_BASE_URL={wanted.base_url} if it is to be trusted, or pass embedder=",
            )
        return load_embedder(wanted, note=self._note)

    def _asks_for_latent(self) -> bool:
        """Whether the embedder is the one that was fitted on the pool, which only the index holds."""
        if self._given is None:
            return self.stored["name"] == _LATENT
        name = self._given.name if isinstance(self._given, EmbedderSettings) else self._given
        return isinstance(name, str) and name in ("latent", _LATENT)

    def _check(self, embedder: Embedder) -> None:
        mark = fingerprint(embedder)
        if not same_space(mark, str(self.stored["fingerprint"])):
            raise Incompatible(
                f"embedder {embedder.name} ({_shown(mark)})",
                expected=f"{self.stored['name']} ({_shown(str(self.stored['fingerprint']))}), which built the index",
                fix="use that embedder, or build the index again",
            )
        if embedder.name == self.stored["name"] and prompts_of(embedder) != self._prompts:
            self._note(f"the index keeps the prompts it was built with, {self._prompts}")


def latent_embedder(generation: Generation) -> LatentSemanticEmbedder:
    """The latent-semantic embedder that a generation holds."""
    return LatentSemanticEmbedder.from_state(
        {
            "vocabulary": generation.array("embedder_vocabulary", np.uint8),
            "offsets": generation.array("embedder_offsets", np.int64),
            "idf": generation.array("embedder_idf", np.float64),
            "components": generation.array("embedder_components", np.float32),
        }
    )


def _shown(mark: str) -> str:
    dim, _, digits = mark.partition(":")
    return f"{dim} dimensions, fingerprint {digits[:12]}…"

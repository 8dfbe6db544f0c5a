"""What an index stores of the embedder it was built with: enough to load it again, and to refuse another one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
from numpy.typing import NDArray

from indexes.arrays import npy, parse_npy
from indexes.files import Buffer
from indexes.generation import Generation
from retriever.embedders import (
    Embedder,
    EmbedderSettings,
    EmbedderSource,
    LatentSemanticEmbedder,
    Prompts,
    StaticEmbedder,
    TunedModel,
    fingerprint,
    fitted_name,
    is_tuned,
    load_embedder,
    prompts_of,
)
from retriever.embedders.sentence_transformer import ROUNDED
from retriever.errors import Incompatible, IndexCorrupt
from retriever.keys import Key
from retriever.listening import Note, silent
from retriever.openai_access import URL_VARIABLE, environment_url
from retriever.pool import Pool
from retriever.revisions import Revision

_EMBEDDER_FILE = "embedder_"


@dataclass(frozen=True)
class StoredEmbedder:
    """What a generation stores of its embedder: enough to load it again, and to refuse another one.

    Attributes:
        manifest: Name, engine, dimension, fingerprint, prompts, and the settings it was loaded from; the settings are
            None for an object of the caller's, who must bring it again. Of a fine-tuned one `tuned` says what it was
            learned from, and its `base` is the manifest of the embedder before.
        files: What an embedder that was fitted on the pool has learned, by file name.
    """

    manifest: Mapping[str, object]
    files: Mapping[str, Sequence[Buffer]]

    @property
    def dim(self) -> int:
        """Components of a vector."""
        return int(str(self.manifest["dim"]))

    @property
    def bytes(self) -> int:
        """How many bytes its files have together."""
        return sum(memoryview(chunk).nbytes for chunks in self.files.values() for chunk in chunks)

    @property
    def source(self) -> EmbedderSettings:
        """The settings it is loaded from, for queries and additions: in float32, whatever the pool was embedded in.

        Raises:
            Incompatible: It was an object of the caller's, or is an endpoint that the caller has not named.
        """
        settings = self.manifest["settings"]
        if not isinstance(settings, dict):
            raise Incompatible(
                f"the index was built with {self.name}, which only its owner can bring",
                fix="pass the same object: Retriever.open(path, embedder=...)",
            )
        wanted = replace(EmbedderSettings(**settings), precision=None)
        if wanted.base_url is not None and wanted.base_url != environment_url():
            # An index may come from anybody; the key in the environment goes to no address that only an index names.
            raise Incompatible(
                f"the index names the endpoint {wanted.base_url}, which the caller has not named",
                fix=f"set {URL_VARIABLE}={wanted.base_url} if it is to be trusted, or pass embedder=",
            )
        return wanted

    @property
    def pool_source(self) -> EmbedderSettings:
        """The settings it is loaded from to embed the pool again: in the precision that the pool was embedded in.

        Raises:
            Incompatible: As `source`.
        """
        return replace(self.source, precision="bfloat16") if self.is_rounded else self.source

    @property
    def is_rounded(self) -> bool:
        """Whether the pool was embedded in less precision than queries and additions are."""
        return self.manifest["engine"] == ROUNDED

    @property
    def is_fitted(self) -> bool:
        """Whether it was fitted on the pool and cannot work without its files."""
        return fitted_name(self.name) is not None

    @property
    def is_tuned(self) -> bool:
        """Whether it was fine-tuned for the index."""
        return is_tuned(self.name)

    @property
    def base(self) -> StoredEmbedder | None:
        """The embedder that this one was fine-tuned from; None when it was not.

        Raises:
            Incompatible: It is not said which that was.
        """
        if not self.is_tuned:
            return None
        tuned = self.manifest.get("tuned")
        if not isinstance(tuned, dict) or not isinstance(tuned.get("base"), dict):
            raise Incompatible(f"embedder {self.name}, of which the index does not say what it was made from")
        return StoredEmbedder(tuned["base"], {})

    @property
    def name(self) -> str:
        """Its canonical name."""
        return str(self.manifest["name"])

    @property
    def fingerprint(self) -> str:
        """What tells its vector space; see `retriever.embedders.fingerprint`."""
        return str(self.manifest["fingerprint"])

    @property
    def prompts(self) -> Prompts:
        """What is put before texts."""
        prompts = self.manifest["prompts"]
        assert isinstance(prompts, dict)
        return Prompts(str(prompts["query"]), str(prompts["example"]))

    @property
    def space(self) -> str:
        """What tells the vectors of its examples from those of any other.

        What one engine has embedded is equal to the bit, in bfloat16 on one kind of processor; what another engine has
        added since the build, as every addition to a pool in bfloat16 is, differs by rounding.
        """
        facts = [
            self.name,
            self.manifest["engine"],
            self.fingerprint,
            asdict(self.prompts),
            self.manifest.get("learned"),
        ]
        return json.dumps(facts, sort_keys=True)

    @classmethod
    def of(
        cls, embedder: Embedder, settings: EmbedderSettings | None, tuned: TunedModel | None = None
    ) -> StoredEmbedder:
        """For an embedder that was just loaded.

        Args:
            embedder: The embedder.
            settings: What it was loaded from; None for an object of the caller's.
            tuned: The files that it was loaded from, when they are in no folder of the user's.
        """
        fitted = embedder if isinstance(embedder, LatentSemanticEmbedder | StaticEmbedder) else tuned
        state = {} if fitted is None else fitted.state()
        learned = {f"{_EMBEDDER_FILE}{name}.npy": npy(array) for name, array in state.items()}
        manifest = {
            "name": embedder.name,
            "engine": getattr(embedder, "engine", None),
            "fingerprint": fingerprint(embedder),
            "dim": embedder.dim,
            "prompts": asdict(prompts_of(embedder)),
            "settings": None if settings is None else asdict(settings),
            # Embedders fitted on two pools may be so alike that the fingerprint does not tell them apart.
            "learned": _digest(learned) if learned else None,
        }
        return cls(manifest, learned)

    @classmethod
    def from_generation(cls, generation: Generation) -> StoredEmbedder:
        """As a generation stores it."""
        manifest = generation.manifest["embedder"]
        if not isinstance(manifest, dict):
            raise IndexCorrupt(generation.path, "names no embedder", fix="build it again")
        return cls(
            manifest,
            {name: [buffer] for name, buffer in generation.buffers.items() if name.startswith(_EMBEDDER_FILE)},
        )

    def fitted(self, note: Note, settings: EmbedderSettings | None = None) -> Embedder:
        """The embedder that was fitted on the pool, as it was.

        Args:
            note: Told in one line why a fine-tuned model is run by torch when nobody asked for that.
            settings: How a fine-tuned model is run; None for how it was when the index was built.

        Raises:
            EmbedderError: Its files are not there, or do not belong together.
        """
        state = self._state()
        if self.name == LatentSemanticEmbedder.NAME:
            return LatentSemanticEmbedder.from_state(state)
        if self.is_tuned:
            return TunedModel.from_state(self.name, state).load(settings or self.source, note)
        return StaticEmbedder.from_state(self.name, state)

    def check_files(self) -> None:
        """Refuses files that are not those of the embedder, without loading a large model.

        Raises:
            EmbedderError: They are not there, or do not belong together.
        """
        if self.is_tuned:
            TunedModel.from_state(self.name, self._state())
        else:
            self.fitted(silent)

    def _state(self) -> dict[str, NDArray[np.generic]]:
        return {
            name.removeprefix(_EMBEDDER_FILE).removesuffix(".npy"): parse_npy(b"".join(chunks))
            for name, chunks in self.files.items()
        }


def load_for(
    key: Key, source: EmbedderSource, pool: Pool, revision: Revision, note: Note
) -> tuple[Embedder, StoredEmbedder]:
    """The embedder for the texts of a revision, fitted on them if it is of that kind, and what the manifest says of it.

    Raises:
        EmbedderError: It cannot be loaded.
    """
    embedder = load_embedder(
        source,
        note=note,
        pool_texts=lambda: (key.text(pool_row.example) for pool_row in pool.examples(revision.number)),
    )
    if not isinstance(source, str | EmbedderSettings):
        return embedder, StoredEmbedder.of(embedder, None)
    asked = EmbedderSettings(source) if isinstance(source, str) else source
    # `auto` may mean another model on another machine or day; what it meant here is what the index needs.
    named = replace(asked, name=embedder.name) if asked.name in ("auto", "static:auto") else asked
    return embedder, StoredEmbedder.of(embedder, named)


def _digest(parts: Mapping[str, Sequence[Buffer]]) -> str:
    digest = hashlib.sha256()
    for name, chunks in sorted(parts.items()):
        digest.update(f"{name}\n".encode())
        for chunk in chunks:
            digest.update(chunk)
    return digest.hexdigest()

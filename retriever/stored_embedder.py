"""What an index stores of the embedder it was built with: enough to load it again, and to refuse another one."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from indexes.arrays import npy, parse_npy
from indexes.files import Buffer
from indexes.generation import Generation
from retriever.embedders import (
    Embedder,
    EmbedderSettings,
    LatentSemanticEmbedder,
    Prompts,
    StaticEmbedder,
    fingerprint,
    fitted_name,
    prompts_of,
)
from retriever.errors import Incompatible, IndexCorrupt

_EMBEDDER_FILE = "embedder_"


@dataclass(frozen=True)
class StoredEmbedder:
    """What a generation stores of its embedder: enough to load it again, and to refuse another one.

    Attributes:
        manifest: Name, engine, dimension, fingerprint, prompts, and the settings it was loaded from; the settings are
            None for an object of the caller's, who must bring it again.
        files: What an embedder that was fitted on the pool has learned, by file name.
    """

    manifest: Mapping[str, object]
    files: Mapping[str, Sequence[Buffer]]

    @property
    def dim(self) -> int:
        """Components of a vector."""
        return int(str(self.manifest["dim"]))

    @property
    def source(self) -> EmbedderSettings:
        """The settings it is loaded from.

        Raises:
            Incompatible: It was an object of the caller's, or is an endpoint that the caller has not named.
        """
        settings = self.manifest["settings"]
        if not isinstance(settings, dict):
            raise Incompatible(
                f"the index was built with {self.name}, which only its owner can bring",
                fix="pass the same object: Retriever.open(path, embedder=...)",
            )
        wanted = EmbedderSettings(**settings)
        if wanted.base_url is not None and wanted.base_url != os.environ.get("OPENAI_BASE_URL"):
            # An index may come from anybody; the key in the environment goes to no address that only an index names.
            raise Incompatible(
                f"the index names the endpoint {wanted.base_url}, which the caller has not named",
                fix=f"set OPENAI_BASE_URL={wanted.base_url} if it is to be trusted, or pass embedder=",
            )
        return wanted

    @property
    def is_fitted(self) -> bool:
        """Whether it was fitted on the pool and cannot work without its files."""
        return fitted_name(self.name) is not None

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

        Of one engine they are equal to the bit; what another engine has added since the build is so to rounding only.
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
    def of(cls, embedder: Embedder, settings: EmbedderSettings | None) -> StoredEmbedder:
        """For an embedder that was just loaded from these settings."""
        state = embedder.state() if isinstance(embedder, LatentSemanticEmbedder | StaticEmbedder) else {}
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

    def fitted(self) -> Embedder:
        """The embedder that was fitted on the pool, as it was.

        Raises:
            EmbedderError: Its files are not there, or do not belong together.
        """
        state = {
            name.removeprefix(_EMBEDDER_FILE).removesuffix(".npy"): parse_npy(b"".join(chunks))
            for name, chunks in self.files.items()
        }
        if self.name == LatentSemanticEmbedder.NAME:
            return LatentSemanticEmbedder.from_state(state)
        return StaticEmbedder.from_state(self.name, state)


def _digest(parts: Mapping[str, Sequence[Buffer]]) -> str:
    digest = hashlib.sha256()
    for name, chunks in sorted(parts.items()):
        digest.update(f"{name}\n".encode())
        for chunk in chunks:
            digest.update(chunk)
    return digest.hexdigest()

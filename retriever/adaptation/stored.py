"""The adaptation of an index: the map that its vectors and its queries go through, as a generation holds it.

`vectors.npy` stays what the embedder said. The map stands in `adaptation.npy`, and what it makes of the rows, stored in
the same type, in `adapted.npy`: these are searched.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from indexes.generation import Generation, Manifest
from indexes.vector_storage import TYPES, VectorRows
from retriever.adaptation.linear_map import Matrix, Vectors, check_matrix, mapped
from retriever.embedders import is_tuned
from retriever.errors import IndexCorrupt, InvalidInput
from retriever.example import Json

FILE = "adaptation"
RECIPE_WEIGHT = "recipe_weight"
"""In what a manifest says of what was learned: the fusion weight that the default recipe had for the former vectors."""
ROWS_FILE = "adapted"
SCALES_FILE = "adapted_scales"
_BLOCK_ROWS = 4096


@dataclass(frozen=True)
class Adaptation:
    """A map, and where it comes from.

    Attributes:
        matrix: From `on_grid`, float32, shape (dim, dim).
        about: What the manifest says of it, its fingerprint included.
    """

    matrix: Matrix
    about: Mapping[str, Json]

    @classmethod
    def learned(cls, matrix: Matrix, about: Mapping[str, Json]) -> Adaptation:
        """A map that was just learned."""
        return cls(matrix, {**about, "fingerprint": fingerprint(matrix)})

    @classmethod
    def from_generation(cls, generation: Generation) -> Adaptation | None:
        """The adaptation that a generation holds; None when it has none.

        Raises:
            IndexCorrupt: Its file is missing, or is not the map that the manifest speaks of.
        """
        about = generation.manifest.get(FILE)
        if about is None:
            return None
        path = generation.path / f"{FILE}.npy"
        matrix = generation.array(FILE, np.float32)
        try:
            check_matrix(matrix)
        except InvalidInput as error:
            raise IndexCorrupt(path, str(error)) from error
        if not isinstance(about, dict) or about.get("fingerprint") != fingerprint(matrix):
            raise IndexCorrupt(path, "is not the map that the manifest speaks of")
        return cls(matrix, about)

    def moved(self, vectors: Vectors) -> Vectors:
        """Vectors as they are searched, or asked; see `mapped`."""
        return mapped(self.matrix, vectors)

    def moved_rows(self, rows: VectorRows) -> VectorRows:
        """Stored rows as they are searched, of the same type; each is what it would be alone."""
        moved = VectorRows.empty(len(rows), rows.dim, rows.kind)
        for number, block in enumerate(rows.blocks(_BLOCK_ROWS)):
            start = number * _BLOCK_ROWS
            moved.put(slice(start, start + len(block)), self.moved(block))
        return moved

    def arrays(self, moved: VectorRows) -> dict[str, NDArray[np.generic]]:
        """What a generation holds of it, by name.

        Args:
            moved: From `moved_rows`.
        """
        scales = {} if moved.scales is None else {SCALES_FILE: moved.scales}
        return {FILE: self.matrix, ROWS_FILE: moved.values, **scales}


def is_adapted(manifest: Manifest) -> bool:
    """Whether what an index searches was learned from what examples or a log say is alike.

    That is by a map, or in the model itself.
    """
    embedder = dict(manifest["embedder"])  # type: ignore[call-overload]
    return manifest.get(FILE) is not None or is_tuned(str(embedder["name"]))


def fingerprint(matrix: Matrix) -> str:
    """The SHA-256 of a map's numbers, in hexadecimal."""
    return hashlib.sha256(np.ascontiguousarray(matrix, dtype="<f4").tobytes()).hexdigest()


def adapted_rows(generation: Generation, kind: str) -> VectorRows:
    """The mapped rows of a generation, in place.

    Args:
        generation: One that holds an adaptation.
        kind: The type of its vectors.

    Raises:
        IndexCorrupt: They are missing, or of another type.
    """
    scales = generation.array(SCALES_FILE, np.float32) if kind == "int8" else None
    return VectorRows(generation.array(ROWS_FILE, TYPES[kind].type), scales)

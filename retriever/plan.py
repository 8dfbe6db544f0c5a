"""What a build will need, predicted from the size of its pool before anything large is allocated."""

from __future__ import annotations

from dataclasses import dataclass

from indexes.vector_storage import row_bytes

# How often the vectors are in memory at the same time: by distinct text, by row, and a half for blocks on their way.
_VECTOR_COPIES = 2.5
# By text, and one after the other as they are written.
_TOKEN_COPIES = 2
# A text as a Python string, its terms while they are counted, and its postings while they are sorted.
_BYTES_PER_CHARACTER = 14
# Row number, id, hash, and the dictionary entry of a text.
_BYTES_PER_EXAMPLE = 500
_DISK_BYTES_PER_CHARACTER = 3
_DISK_BYTES_PER_EXAMPLE = 250


@dataclass(frozen=True)
class BuildPlan:
    """What a build is predicted to need beyond the program and its model.

    Attributes:
        examples: Of the pool.
        characters: Of their stored form, all together.
        dim: Components of a vector.
        vectors: The type that vectors are stored in.
        ann: Whether a FAISS index is built, too.
        token_bytes: Of the token vectors that are stored, all together.
    """

    examples: int
    characters: int
    dim: int
    vectors: str
    ann: bool
    token_bytes: int = 0

    @property
    def memory_bytes(self) -> int:
        """The most memory that is in use at once: an estimate from above for texts of the Latin script."""
        return int(
            self.examples * (_BYTES_PER_EXAMPLE + self._vector_bytes * (_VECTOR_COPIES + 2 * self.ann))
            + self.characters * _BYTES_PER_CHARACTER
            + self.token_bytes * _TOKEN_COPIES
        )

    @property
    def disk_bytes(self) -> int:
        """Room for the pool and one generation; an update needs room for a second one beside the first."""
        return int(
            self.examples * (_DISK_BYTES_PER_EXAMPLE + self._vector_bytes * (1 + self.ann))
            + self.characters * _DISK_BYTES_PER_CHARACTER
            + self.token_bytes
        )

    @property
    def _vector_bytes(self) -> int:
        return row_bytes(self.vectors, self.dim)

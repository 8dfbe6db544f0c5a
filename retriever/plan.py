"""What a build will need, predicted from the size of its pool before anything large is allocated."""

from __future__ import annotations

from dataclasses import dataclass, replace

from indexes.ann import TRAIN_ROWS
from indexes.vector_storage import row_bytes

# How often the vectors are in memory at the same time: by distinct text, by row, and a half for blocks on their way.
_VECTOR_COPIES = 2.5
# By text, and one after the other as they are written.
_TOKEN_COPIES = 2
# As FAISS holds it, and as it is written; rows to train on come twice, as float32.
_ANN_COPIES = 2
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
        ann_bytes: Of the FAISS index that is built, too.
        token_bytes: Of the token vectors that are stored, all together.
        embedder_bytes: Of the files of an embedder that is stored with the index; in memory it counts as the model.
    """

    examples: int
    characters: int
    dim: int
    vectors: str
    ann_bytes: int = 0
    token_bytes: int = 0
    embedder_bytes: int = 0

    @property
    def memory_bytes(self) -> int:
        """The most memory that is in use at once: an estimate from above for texts of the Latin script."""
        return int(
            self.examples * (_BYTES_PER_EXAMPLE + self._vector_bytes * _VECTOR_COPIES)
            + self.characters * _BYTES_PER_CHARACTER
            + self.token_bytes * _TOKEN_COPIES
            + (self.ann_bytes * _ANN_COPIES + self._train_bytes if self.ann_bytes else 0)
        )

    @property
    def disk_bytes(self) -> int:
        """Room for the pool and one generation; an update needs room for a second one beside the first."""
        return int(
            self.examples * (_DISK_BYTES_PER_EXAMPLE + self._vector_bytes)
            + self.characters * _DISK_BYTES_PER_CHARACTER
            + self.token_bytes
            + self.ann_bytes
            + self.embedder_bytes
        )

    def ann_room(self, memory: int) -> int:
        """How large a FAISS index could be for `memory_bytes` to be no more than some memory; 0 or less for none."""
        return int((memory - replace(self, ann_bytes=0).memory_bytes - self._train_bytes) // _ANN_COPIES)

    @property
    def _train_bytes(self) -> int:
        return 2 * min(self.examples, TRAIN_ROWS) * self.dim * 4

    @property
    def _vector_bytes(self) -> int:
        return row_bytes(self.vectors, self.dim)

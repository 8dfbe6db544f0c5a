"""Saved vectors: what an interrupted build has embedded already, block by block, so that nothing is embedded twice."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from indexes import files
from indexes.errors import IndexCorrupt

Vectors = NDArray[np.float32]

_DIRECTORY = "partial"
_BLOCK = re.compile(r"block-(\d{6,})")
_DIGEST_BYTES = 32
_MAX_HEADER_BYTES = 1000


def saved_directory(root: Path) -> Path:
    """Where an index keeps what its unfinished build has embedded."""
    return root / _DIRECTORY


class SavedVectors:
    """The blocks of one vector space that lie in an index; a block that is damaged, or of another space, is ignored.

    A block is a line of JSON (`space`, `texts`, `dim`, and the `sha256` of what follows), then the SHA-256 of each text
    and the vector of each, float32. The caller holds the lock of the index.

    Args:
        root: The index directory.
        space: What tells the vector space and the way in which texts are put to it.
    """

    def __init__(self, root: Path, space: str) -> None:
        self._directory = saved_directory(root)
        self._space = hashlib.sha256(space.encode()).hexdigest()
        self._vectors: dict[bytes, NDArray[np.float32]] = {}
        self._next, self._saved = 1, 0
        for name in files.list_directory(self._directory):
            match = _BLOCK.fullmatch(name)
            if match is not None:
                self._next = max(self._next, int(match[1]) + 1)
                self._take(self._directory / name)

    def __len__(self) -> int:
        """How many texts the next build will have a vector of."""
        return len(self._vectors) + self._saved

    def get(self, text: str) -> NDArray[np.float32] | None:
        """The vector of a text, shape (dim,); None when there is none."""
        return self._vectors.get(_digest(text))

    def save(self, texts: Sequence[str], vectors: Vectors) -> None:
        """Keeps the vectors of a block of texts for the next build; durable when it returns.

        This object does not give them: nobody embeds a text twice in one build, and those of a large pool would fill
        the memory.

        Raises:
            StorageError: The disk is full or failed.
        """
        digests = [_digest(text) for text in texts]
        body = b"".join(digests) + np.ascontiguousarray(vectors).tobytes()
        header = {
            "space": self._space,
            "texts": len(texts),
            "dim": vectors.shape[1],
            "sha256": hashlib.sha256(body).hexdigest(),
        }
        files.make_directory(self._directory)
        files.write_bytes(self._directory / f"block-{self._next:06d}", [json.dumps(header).encode() + b"\n", body])
        files.sync_directory(self._directory)
        self._next += 1
        self._saved += len(texts)

    def _take(self, path: Path) -> None:
        try:
            content = files.read_bytes(path)
        except IndexCorrupt:
            return  # a link or a pipe: no block of ours
        head, _, _ = bytes(content[:_MAX_HEADER_BYTES]).partition(b"\n")
        body = content[len(head) + 1 :]
        try:
            header = json.loads(head)
            texts, dim = int(header["texts"]), int(header["dim"])
            intact = header["sha256"] == hashlib.sha256(body).hexdigest() and header["space"] == self._space
        except (ValueError, TypeError, KeyError, OverflowError):
            return
        if not intact or min(texts, dim) < 0 or len(body) != texts * (_DIGEST_BYTES + 4 * dim):
            return
        vectors = np.frombuffer(body, np.float32, texts * dim, texts * _DIGEST_BYTES).reshape(texts, dim)
        for place, vector in enumerate(vectors):
            self._vectors[bytes(body[place * _DIGEST_BYTES : (place + 1) * _DIGEST_BYTES])] = vector


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()

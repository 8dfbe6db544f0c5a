"""Token vectors in a generation: one text per row, in three files.

`token_vectors.npy` (float16), `token_offsets.npy` (where each row's tokens begin) and `token_ids.npy` (which token each
vector is of). float16 moves a MaxSim by less than 0.001 and halves the space: about 15 KB for 20 tokens of 384
components.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from indexes.arrays import npy
from indexes.errors import to_repair
from indexes.files import Buffer
from indexes.generation import Generation
from indexes.late_interaction import TokenVectors
from retriever.embedders import Embedder
from retriever.embedders.base import TokenEmbedder, encode_tokens, sendable, token_embedder
from retriever.errors import IndexCorrupt, InvalidInput
from retriever.listening import Progress

VECTORS = "token_vectors"
OFFSETS = "token_offsets"
IDS = "token_ids"

_BLOCK = 512
_HEADER_BYTES = 128  # of a file in npy format with a shape of up to two numbers


@dataclass(frozen=True)
class TextTokens:
    """The tokens of one text.

    Attributes:
        vectors: float16, shape (tokens, d).
        ids: Of each token, int32, shape (tokens,).
    """

    vectors: NDArray[np.float16]
    ids: NDArray[np.int32]


@dataclass(frozen=True)
class StoredTokens:
    """The tokens of every row of a generation.

    Attributes:
        vectors: One text per row, float16.
        ids: Of each token, int32, shape (tokens,).
    """

    vectors: TokenVectors
    ids: NDArray[np.int32]

    def __len__(self) -> int:
        """How many rows."""
        return len(self.vectors)

    def text(self, row: int) -> TextTokens:
        """The tokens of one row, in place."""
        start, stop = self.vectors.offsets[row : row + 2]
        return TextTokens(self.vectors.vectors[start:stop], self.ids[start:stop])  # type: ignore[arg-type]

    @cached_property
    def containing(self) -> NDArray[np.int64]:
        """How many rows contain each token id, shape (largest id + 1,)."""
        rows = np.repeat(np.arange(len(self)), np.diff(self.vectors.offsets))
        distinct = np.unique(np.stack([rows, self.ids.astype(np.int64)]), axis=1)
        return np.bincount(distinct[1], minlength=int(self.ids.max(initial=-1)) + 1)


def predicted_bytes(embedder: Embedder, texts: Sequence[str], number: NDArray[np.int64], *, prefix: str = "") -> int:
    """The size of the files, exactly; texts are tokenized, none is embedded.

    Args:
        embedder: One that has token vectors.
        texts: Distinct key texts of examples.
        number: For each row the place of its text, int64, shape (rows,).
        prefix: Put before every text.

    Raises:
        InvalidInput: The embedder has no token vectors.
    """
    model = token_embedder(embedder)
    tokens = np.zeros(len(texts), dtype=np.int64)
    for start in range(0, len(texts), _BLOCK):
        tokens[start : start + _BLOCK] = [len(ids) for ids in token_ids(model, texts[start : start + _BLOCK], prefix)]
    each = model.token_dim * np.dtype(np.float16).itemsize + np.dtype(np.int32).itemsize
    return int(tokens[number].sum()) * each + (len(number) + 1) * np.dtype(np.int64).itemsize + 3 * _HEADER_BYTES


def token_files(
    embedder: Callable[[], Embedder],
    texts: Sequence[str],
    number: NDArray[np.int64],
    *,
    prefix: str = "",
    known: Callable[[str], TextTokens | None] = lambda text: None,
    progress: Progress,
) -> Mapping[str, Sequence[Buffer]]:
    """The files, by name, in pieces. For a moment all vectors are in memory twice, as float16.

    Args:
        embedder: Gives what embeds; not called when every text is known.
        texts: Distinct key texts of examples; each is embedded once.
        number: For each row the place of its text, int64, shape (rows,).
        prefix: Put before every text.
        known: The tokens of a text, where they are at hand; None for those that have to be embedded.
        progress: Told how far the work is.

    Raises:
        InvalidInput: The embedder has no token vectors.
        EmbedderError: The model failed, or gave NaN or infinity.
    """
    found = [known(text) for text in texts]
    missing = sorted((i for i, tokens in enumerate(found) if tokens is None), key=lambda i: len(texts[i]))
    for start in range(0, len(missing), _BLOCK):
        progress("embedding tokens", start, len(missing))
        block = missing[start : start + _BLOCK]
        for i, tokens in zip(block, tokens_of(embedder(), [texts[i] for i in block], prefix), strict=True):
            found[i] = tokens
        progress("embedding tokens", start + len(block), len(missing))
    rows = [tokens for tokens in (found[i] for i in number.tolist()) if tokens is not None]
    vectors = TokenVectors.of([row.vectors for row in rows], rows[0].vectors.shape[1] if rows else 0, np.float16)
    ids = np.concatenate([np.empty(0, dtype=np.int32), *(row.ids for row in rows)])
    arrays = {VECTORS: vectors.vectors, OFFSETS: vectors.offsets, IDS: ids}
    return {f"{name}.npy": npy(array) for name, array in arrays.items()}


def tokens_of(embedder: Embedder, texts: Sequence[str], prefix: str) -> Iterator[TextTokens]:
    """The tokens of key texts, as they are stored.

    Raises:
        InvalidInput: The embedder has no token vectors.
        EmbedderError: The model failed, or gave NaN or infinity.
    """
    model = token_embedder(embedder)
    encoded = encode_tokens(model, texts, prefix=prefix)
    for row, ids in enumerate(token_ids(model, texts, prefix)):
        yield TextTokens(encoded.text(row).astype(np.float16), ids.astype(np.int32))


def token_ids(model: TokenEmbedder, texts: Sequence[str], prefix: str) -> Iterator[NDArray[np.int64]]:
    """The ids of the tokens of each key text that have a vector; a blank text has none."""
    ids = iter(model.token_ids([sendable(prefix + text) for text in texts if text.strip()]))
    for text in texts:
        yield next(ids) if text.strip() else np.empty(0, dtype=np.int64)


def stored_tokens(generation: Generation, rows: int) -> StoredTokens:
    """The tokens of a generation that has them, in place.

    Args:
        generation: A verified generation.
        rows: How many rows it has.

    Raises:
        IndexCorrupt: A file is not there, or they do not belong together.
    """
    vectors = generation.array(VECTORS, np.float16)
    offsets, ids = generation.array(OFFSETS, np.int64), generation.array(IDS, np.int32)
    fix = to_repair(generation.path.parent)
    path = generation.path / f"{OFFSETS}.npy"
    try:
        tokens = TokenVectors(vectors, offsets)
    except InvalidInput as error:
        raise IndexCorrupt(path, f"contradicts the vectors: {error}", fix=fix) from error
    if len(tokens) != rows or ids.shape != (len(vectors),) or ids.min(initial=0) < 0:
        raise IndexCorrupt(
            path, f"{len(tokens):,} texts, {ids.size:,} ids", expected=f"{rows:,} and {len(vectors):,}", fix=fix
        )
    return StoredTokens(tokens, ids)

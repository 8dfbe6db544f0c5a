"""Distilling a static embedder from a model: once, for a pool, in seconds.

The method is that of model2vec (Tulkens and van Dongen 2024): each token and each word goes through the model alone;
the vectors are centred and turned to their principal components, of which 256 are kept; each is weighted down by how
common it is taken to be, a / (a + p), with a = 1e-4 and p by Zipf's law from its place in the vocabulary, which
tokenizers order by frequency (Arora et al. 2017). The weights of the pool's own frequencies were tried and find less.

What is spent on the tokens does not depend on the pool. It is kept in the user's cache directory beside the export of
the model, so that a further pool costs its new words alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from indexes.arrays import npy, parse_npy
from retriever.embedders.base import TokenEmbedder, Vectors, sendable
from retriever.embedders.onnx_export import export_folder
from retriever.embedders.static import PREFIX, StaticEmbedder, Words, token_count
from retriever.listening import Note

MOST_WORDS = 32_768
DIMENSIONS = 256
_SIF = 1e-4


class Teacher(TokenEmbedder, Protocol):
    """A model that takes token ids, as both engines do.

    Attributes:
        tokenizer_json: Its tokenizer, as the tokenizers library writes it.
        identity: Tells its vectors from those of any other, to the bit; None where that cannot be told.
    """

    @property
    def tokenizer_json(self) -> str: ...  # noqa: D102

    @property
    def identity(self) -> str | None: ...  # noqa: D102

    def encode_ids(self, ids: Sequence[NDArray[np.int64]]) -> Vectors:
        """One unit row for each text of token ids, those around the text included."""
        ...


def distill(teacher: Teacher, texts: Iterable[str], note: Note) -> StaticEmbedder:
    """The static embedder of a model over a pool's words.

    Words that are one token have that token's row. Of the others the most frequent have a row of their own, equally
    frequent ones in the order of the alphabet.

    Args:
        teacher: The model.
        texts: The texts of the pool, read once.
        note: Told in one line what a reader should know.
    """
    words = Words(teacher.tokenizer_json)
    found: Counter[str] = Counter()
    if words.splits:
        for text in texts:
            found.update(words.of(sendable(text)))
    pieces = {word: words.tokens(word) for word in found}
    several = sorted((word for word in found if len(pieces[word]) > 1), key=lambda word: (-found[word], word))
    vocabulary = several[:MOST_WORDS]
    before, after = _around(words)
    tokens = _token_vectors(teacher, words, note)
    own = teacher.encode_ids([np.array([*before, *pieces[word], *after], dtype=np.int64) for word in vocabulary])
    rows = weighted(principal(np.concatenate([tokens, own]), DIMENSIONS))
    return StaticEmbedder(PREFIX + teacher.name, words, vocabulary, rows.astype(np.float16))


def principal(vectors: NDArray[np.floating], dimensions: int) -> NDArray[np.float64]:
    """The rows centred and turned to their strongest principal components; rows of zeros stay so.

    Args:
        vectors: (n, d).
        dimensions: The most to keep.

    Returns:
        (n, min(dimensions, d)), the sign of each component such that its largest entry is positive.
    """
    from threadpoolctl import threadpool_limits

    live = np.abs(vectors).sum(axis=1) > 0
    rows = vectors[live].astype(np.float64)
    turned = np.zeros((len(vectors), min(dimensions, vectors.shape[1])))
    if not len(rows):
        return turned
    with threadpool_limits(limits=1, user_api="blas"):  # the last bits of a product depend on its threads
        centred = rows - rows.mean(axis=0)
        _, directions = np.linalg.eigh(centred.T @ centred)
        scores = centred @ directions[:, ::-1][:, : turned.shape[1]]
    largest = scores[np.abs(scores).argmax(axis=0), np.arange(scores.shape[1])]
    turned[live] = scores * np.where(largest < 0, -1.0, 1.0)
    return turned


def weighted(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """The rows, each less the more common its place says that it is (SIF under Zipf's law)."""
    rarity = 1.0 / np.arange(2, len(rows) + 2)
    weighted: NDArray[np.float64] = rows * (_SIF / (_SIF + rarity / rarity.sum()))[:, None]
    return weighted


def _around(words: Words) -> tuple[list[int], list[int]]:
    """The ids of the tokens that the tokenizer puts before and after a text."""
    encoded = words.tokenizer.encode("a")
    text = [place for place, special in enumerate(encoded.special_tokens_mask) if not special]
    if not text:
        return [], []
    return encoded.ids[: text[0]], encoded.ids[text[-1] + 1 :]


def _token_vectors(teacher: Teacher, words: Words, note: Note) -> Vectors:
    """The vector of each token by its id, shape (tokens, d); zeros for those that stand for no text."""
    if teacher.identity is None:
        return _encoded_tokens(teacher, words)
    folder = export_folder(teacher.name, f"tokens {teacher.identity}")
    path = folder.with_name(f"{folder.name}.tokens")
    kept = _read(path)
    if kept is not None and kept.shape == (token_count(words), teacher.dim):
        return kept
    encoded = _encoded_tokens(teacher, words)
    try:
        _write(path, encoded)
    except OSError as error:
        note(f"{path.parent}: {error.strerror}; the tokens of {teacher.name} are embedded again with the next build")
    return encoded


def _encoded_tokens(teacher: Teacher, words: Words) -> Vectors:
    before, after = _around(words)
    special = {place for place, token in words.tokenizer.get_added_tokens_decoder().items() if token.special}
    unknown = getattr(words.tokenizer.model, "unk_token", None)
    skipped = special | ({words.tokenizer.token_to_id(unknown)} if unknown is not None else set())
    told = [place for name, place in words.tokenizer.get_vocab().items() if not _is_filler(name)]
    used = sorted(set(told) - skipped)
    vectors = np.zeros((token_count(words), teacher.dim), dtype=np.float32)
    vectors[used] = teacher.encode_ids([np.array([*before, place, *after], dtype=np.int64) for place in used])
    return vectors


def _is_filler(name: str) -> bool:
    """Whether a token only keeps a place for others, as those of BERT do."""
    return name.startswith("[unused") and name.endswith("]")


def _read(path: Path) -> Vectors | None:
    """What `_write` has written; None when it is not there or is damaged, which costs only the time to make it."""
    with contextlib.suppress(OSError):
        digest, _, content = path.read_bytes().partition(b"\n")
        if digest.decode("ascii", "replace") == hashlib.sha256(content).hexdigest():
            return np.asarray(parse_npy(content), dtype=np.float32)
    return None


def _write(path: Path, vectors: Vectors) -> None:
    """A line with the SHA-256 of the rest, and an array; there whole or not at all."""
    content = b"".join(bytes(part) for part in npy(vectors))
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}-", delete=False) as file:
        made = Path(file.name)
        try:
            file.write(hashlib.sha256(content).hexdigest().encode() + b"\n" + content)
            file.close()
            made.replace(path)
        except OSError:
            made.unlink(missing_ok=True)
            raise

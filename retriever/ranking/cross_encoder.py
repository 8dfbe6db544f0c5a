"""Cross-encoders of the sentence-transformers library: a model that reads query and text together and gives a score."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from retriever.embedders.base import first_line, sendable
from retriever.embedders.torch_models import (
    LEAST_ROWS,
    RUNNING,
    batches_of,
    hub_answers,
    hub_folder,
    library,
    load_error,
    model_folder,
    run_batches,
)
from retriever.errors import EmbedderError
from retriever.quiet import quiet
from retriever.ranking.rerank import Cache
from retriever.ranking.strategies.picks import Reals

if TYPE_CHECKING:
    from sentence_transformers import CrossEncoder
    from torch import Tensor

Pair = tuple[str, str]

_PAIRS_PER_TOKENIZATION = 256
# A digest, a number, and what Python's own bookkeeping adds to each: measured at 250, rounded up.
_ENTRY_BYTES = 320


class CrossEncoderScorer:
    """Scores texts for a query. On a CPU a score's bits depend on query and text alone; see `torch_models`.

    A score is the model's output before any activation: a sigmoid has the same order, but makes the best ones equal.

    Attributes:
        name: The name or the absolute folder of the model.
        cache: The scores that were used last, by model, query and text.
    """

    def __init__(
        self, model: CrossEncoder, *, name: str, batch_size: int = 32, cache: Cache[float] | None = None
    ) -> None:
        """Wrap a loaded model.

        Args:
            model: The model; it is put into evaluation mode.
            name: See the attribute.
            batch_size: The most texts per batch.
            cache: May be shared by several scorers; None: one of 64 MB.

        Raises:
            EmbedderError: The model gives more than one number for a pair.
        """
        if model.num_labels != 1:
            raise EmbedderError(
                f"cross-encoder {name} gives {model.num_labels} numbers for a pair",
                expected="one",
                fix="choose a model that was made for reranking",
            )
        self.name = name
        self.cache: Cache[float] = Cache(64 << 20) if cache is None else cache
        self._model = model.eval()
        self._batch_size = batch_size

    @classmethod
    def load(cls, wanted: str, *, device: str | None = None, batch_size: int = 32) -> CrossEncoderScorer:
        """Load a model by name or from a folder, without progress bars, warnings, or code from the model.

        Args:
            wanted: A name on the Hugging Face Hub, or a folder.
            device: Where torch runs it; None: the library chooses.
            batch_size: The most texts per batch.

        Raises:
            EmbedderError: The library is missing or older than 6, or the model cannot be had, is damaged, or needs
                code of its own.
        """
        made_by = library().CrossEncoder
        folder = model_folder(wanted)
        name = wanted if folder is None else str(folder)
        offline = folder is None and not hub_answers(wanted, None)
        with quiet():
            try:
                model = made_by(
                    name,
                    device=device,
                    trust_remote_code=False,
                    local_files_only=offline,
                )
            except Exception as error:
                raise load_error(wanted, error, offline=offline) from error
        return cls(model, name=name, batch_size=batch_size)

    def scores(self, query: str, texts: Sequence[str]) -> Reals:
        """The score of each text for the query, float64, shape (n,); equal texts are scored once.

        Raises:
            EmbedderError: The model failed, or gave NaN or infinity.
        """
        pairs = [(sendable(query), sendable(text)) for text in texts]
        found = {pair: self.cache.get(self._key(pair)) for pair in pairs}
        missing = [pair for pair, score in found.items() if score is None]
        for pair, score in zip(missing, self._run(missing), strict=True):
            found[pair] = score
            self.cache.put(self._key(pair), score, _ENTRY_BYTES)
        return np.array([found[pair] for pair in pairs], dtype=np.float64)

    def _key(self, pair: Pair) -> bytes:
        digest = hashlib.blake2b(digest_size=32)
        for part in (self.name, *pair):
            data = part.encode()
            digest.update(len(data).to_bytes(8, "little") + data)
        return digest.digest()

    def _run(self, pairs: list[Pair]) -> list[float]:
        scores = np.zeros(len(pairs), dtype=np.float64)
        try:
            with RUNNING:
                batches = batches_of(self._lengths(pairs), self._batch_size)
                asked = [[pairs[place] for place in batch] for batch in batches]
                features = [self._tokenized(batch) for batch in asked]
                on_cpu = self._model.device.type == "cpu"
                for batch, given in zip(batches, run_batches(self._forward, features, on_cpu=on_cpu), strict=True):
                    scores[batch] = given[: len(batch)]
        except Exception as error:
            raise EmbedderError(
                f"cross-encoder {self.name} failed: {type(error).__name__}: {first_line(error)}"
            ) from error
        if not np.isfinite(scores).all():
            raise EmbedderError(f"cross-encoder {self.name} returned NaN or infinity", expected="finite scores")
        made: list[float] = scores.tolist()
        return made

    def _lengths(self, pairs: list[Pair]) -> NDArray[np.int64]:
        """Tokens per pair after truncation."""
        lengths = np.zeros(len(pairs), dtype=np.int64)
        for start in range(0, len(pairs), _PAIRS_PER_TOKENIZATION):
            mask = self._model.preprocess(pairs[start : start + _PAIRS_PER_TOKENIZATION])["attention_mask"]
            lengths[start : start + len(mask)] = mask.sum(dim=1).numpy()
        return lengths

    def _tokenized(self, pairs: list[Pair]) -> dict[str, Tensor]:
        """The input of the model, filled up to the rows that every product of matrices needs."""
        filled = [*pairs, *pairs[-1:] * max(0, LEAST_ROWS - len(pairs))]
        tokens: dict[str, Tensor] = self._model.preprocess(filled)
        return tokens

    def _forward(self, tokens: dict[str, Tensor]) -> NDArray[np.float32]:
        """The scores of pairs of equal token count, float32, one for each row that was given."""
        import torch
        from sentence_transformers.util import batch_to_device

        with torch.inference_mode():
            output = self._model(batch_to_device(tokens, self._model.device))["scores"]
        scores: NDArray[np.float32] = output.float().cpu().numpy().reshape(-1)
        return scores


def reranker_identity(wanted: str) -> str:
    """What tells a model from any other: its files, by hash; its name where it was not downloaded yet.

    Args:
        wanted: A name on the Hugging Face Hub, or a folder.
    """
    folder = model_folder(wanted) or hub_folder(wanted, None)
    if folder is None:
        return wanted
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(f"{path.relative_to(folder)}\x1f".encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()

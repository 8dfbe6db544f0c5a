"""ONNX Runtime as the engine of a sentence-transformers model: no torch, ready in a third of a second.

A model is exported once (`retriever.embedders.onnx_export`) into a folder that holds

    model.onnx       the transformer: from token ids to the states of the tokens
    tokenizer.json   of the tokenizers library, truncation included
    export.json      what makes a vector of the states, and the SHA-256 of the other two

The bytes of a row depend on its text alone: only texts of equal token count share a batch, so nothing is padded; and
ONNX Runtime adds up each number of a product in the same order whatever stands beside it and however many threads share
the work (tested). `retriever.embedders.onnx_sessions` says how many do.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from indexes.late_interaction import TokenVectors
from indexes.parallel import cores
from retriever.embedders.base import EmbedderSettings, Prompts, Vectors, first_line, unit_rows
from retriever.embedders.onnx_sessions import Sessions
from retriever.embedders.torch_models import batches_of
from retriever.errors import EmbedderError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Result = TypeVar("Result")

MODEL, TOKENIZER, ABOUT = "model.onnx", "tokenizer.json", "export.json"
STATES = "token_embeddings"
_BATCH = 32


@dataclass(frozen=True)
class Export:
    """What `export.json` says.

    Attributes:
        name: The canonical name of the model.
        dim: Components of a vector.
        pooling: `mean` or `cls`: how the states of a text's tokens become one vector.
        inputs: The inputs of the transformer, in order, among `input_ids`, `attention_mask` and `token_type_ids`.
        added: The ids of tokens that the tokenizer adds around a text.
        query_prompt: What the model puts before queries unless it is told otherwise.
        example_prompt: The same before examples.
        files: The SHA-256 of each other file, by name.
    """

    name: str
    dim: int
    pooling: str
    inputs: tuple[str, ...]
    added: tuple[int, ...]
    query_prompt: str
    example_prompt: str
    files: Mapping[str, str]

    def to_json(self) -> str:
        """For the file."""
        return json.dumps(asdict(self), indent=1, sort_keys=True) + "\n"

    @classmethod
    def read(cls, folder: Path) -> Export:
        """From the file.

        Raises:
            EmbedderError: It is missing or damaged.
        """
        try:
            stored = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
            lists = {name: tuple(stored[name]) for name in ("inputs", "added")}
            return cls(**{**stored, **lists})
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise EmbedderError(f"{folder / ABOUT}: {first_line(error)}", fix=f"remove {folder}") from error


class OnnxEmbedder:
    """An exported model.

    Attributes:
        name: Of the model, as it would be loaded again.
        prompts: Put before queries and examples by the caller of `encode`.
        dim: Components of a vector, and of a token's.
    """

    engine = "onnxruntime"
    has_tokens = True

    def __init__(self, about: Export, sessions: Sessions, tokenizer: Tokenizer, settings: EmbedderSettings) -> None:
        """Wraps what was loaded; see `open`."""
        self.name = about.name
        self.dim = self.token_dim = about.dim
        self.prompts = settings.prompts(Prompts(about.query_prompt, about.example_prompt))
        self._about = about
        self._sessions = sessions
        self._tokenizer = tokenizer
        self._batch_size = settings.batch_size or _BATCH
        self._tokenizing = threading.Lock()

    @classmethod
    def open(cls, folder: Path, settings: EmbedderSettings) -> OnnxEmbedder:
        """Loads an export, its hashes compared while ONNX Runtime starts.

        Args:
            folder: The export.
            settings: Prompts and batch size.

        Raises:
            EmbedderError: A file is missing or damaged, or ONNX Runtime does not take the model.
        """
        about = Export.read(folder)
        with ThreadPoolExecutor(1) as checking:
            check = partial(_check_files, folder, about)
            checked = checking.submit(check)
            try:
                sessions, tokenizer = Sessions(folder / MODEL, STATES, check), _tokenizer(folder / TOKENIZER)
            except Exception as error:
                checked.result()  # if a file is damaged, that is the reason
                raise EmbedderError(f"{folder}: {type(error).__name__}: {first_line(error)}") from error
            checked.result()
        return cls(about, sessions, tokenizer, settings)

    def encode(self, texts: list[str]) -> Vectors:
        """One row per text, (n, dim) float32, of unit length; all zero when the model gives no direction."""
        return self.encode_ids(self._tokenized(texts))

    def encode_ids(self, ids: Sequence[NDArray[np.int64]]) -> Vectors:
        """The same for texts that are token ids already, those that the tokenizer adds included."""
        vectors = np.zeros((len(ids), self.dim))
        for rows, pooled in self._run(self._pooled, ids):
            vectors[rows] = pooled
        return unit_rows(vectors)

    @property
    def tokenizer_json(self) -> str:
        """The tokenizer as the tokenizers library writes it."""
        return str(self._tokenizer.to_str())

    @property
    def identity(self) -> str:
        """Tells its vectors from those of any other export: hexadecimal digits."""
        return hashlib.sha256(self._about.to_json().encode()).hexdigest()

    def token_vectors(self, texts: list[str]) -> TokenVectors:
        """The states of each text's tokens, float32, of unit length; without the tokens that the tokenizer adds."""
        found: list[Vectors] = [np.empty((0, self.dim), dtype=np.float32)] * len(texts)
        for rows, matrices in self._run(self._matrices, self._tokenized(texts)):
            for row, matrix in zip(rows.tolist(), matrices, strict=True):
                found[row] = matrix
        return TokenVectors.of(found, self.dim)

    def token_ids(self, texts: list[str]) -> list[NDArray[np.int64]]:
        """The ids of each text's tokens, those that `token_vectors` gives vectors for, in text order."""
        return [ids[self._kept(ids)] for ids in self._tokenized(texts)]

    def _kept(self, ids: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which tokens stand for text."""
        kept: NDArray[np.bool_] = ~np.isin(ids, self._about.added)
        return kept

    def _tokenized(self, texts: Sequence[str]) -> list[NDArray[np.int64]]:
        with self._tokenizing:
            return [np.array(one.ids, dtype=np.int64) for one in self._tokenizer.encode_batch(list(texts))]

    def _run(
        self,
        of_states: Callable[[NDArray[np.int64], NDArray[np.float32]], Result],
        tokens: Sequence[NDArray[np.int64]],
    ) -> Iterator[tuple[NDArray[np.intp], Result]]:
        """Batch by batch the places of its texts, and what is made of their token ids (n, t) and states (n, t, dim)."""
        batches = batches_of(np.array([len(ids) for ids in tokens], dtype=np.int64), self._batch_size)
        asked = [np.stack([tokens[row] for row in rows.tolist()]) for rows in batches]
        run = self._sessions.run if len(batches) > 1 else self._sessions.run_alone

        def forward(ids: NDArray[np.int64]) -> Result:
            return of_states(ids, run(self._given(ids)))

        if len(batches) < 2:
            yield from zip(batches, map(forward, asked), strict=True)
            return
        with ThreadPoolExecutor(min(cores(), len(batches))) as workers:
            yield from zip(batches, workers.map(forward, asked), strict=True)

    def _given(self, ids: NDArray[np.int64]) -> dict[str, NDArray[np.int64]]:
        """The inputs of the transformer for texts of equal token count, which need no padding."""
        given = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
        return {name: given[name] for name in self._about.inputs}

    def _pooled(self, ids: NDArray[np.int64], states: NDArray[np.float32]) -> NDArray[np.floating]:
        """One vector for each text, shape (n, dim), not of unit length."""
        return states[:, 0] if self._about.pooling == "cls" else states.mean(axis=1, dtype=np.float64)

    def _matrices(self, ids: NDArray[np.int64], states: NDArray[np.float32]) -> list[Vectors]:
        """For each text the unit vectors of its tokens."""
        return [unit_rows(own[kept]) for kept, own in zip(self._kept(ids), states, strict=True)]


def _check_files(folder: Path, about: Export) -> None:
    for name in (MODEL, TOKENIZER):
        try:
            with (folder / name).open("rb") as file:
                seen = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise EmbedderError(f"{folder / name}: {error.strerror}", fix=f"remove {folder}") from error
        if seen != about.files.get(name):
            raise EmbedderError(f"{folder / name} is damaged", expected="the content that was exported")


def _tokenizer(path: Path) -> Tokenizer:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(path))

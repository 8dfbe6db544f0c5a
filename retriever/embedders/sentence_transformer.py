"""Models of the sentence-transformers library, run so that a row does not depend on the texts around it."""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from indexes.late_interaction import TokenVectors
from retriever.embedders.base import EmbedderSettings, Prompts, Vectors, unit_rows
from retriever.embedders.torch_models import (
    LEAST_ROWS,
    ORGANISATION,
    RUNNING,
    batches_of,
    hub_answers,
    library,
    load_error,
    model_folder,
    run_batches,
)
from retriever.errors import EmbedderError
from retriever.quiet import quiet

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from torch import Tensor

Result = TypeVar("Result")

ROUNDED = "torch-bfloat16"
"""The engine of a model whose weights were rounded."""

_TEXTS_PER_TOKENIZATION = 256
_E5 = re.compile(r"(?:^|[-_/])e5(?:[-_]|$)", re.IGNORECASE)
# The task that the authors of the instruction-tuned E5 models name for comparing like with like.
_E5_INSTRUCTION = "Instruct: Retrieve semantically similar text.\nQuery: "


class SentenceTransformerEmbedder:
    """A sentence-transformers model; transformer and static models alike.

    On a CPU the bytes of a row depend on its text alone; `retriever.embedders.torch_models` says how.

    Attributes:
        name: As it would be loaded again: the name on the Hub without `sentence-transformers/`, or an absolute folder.
        prompts: Put before queries and examples by the caller of `encode`.
        dim: Components of a vector.
        model: The model itself, in evaluation mode.
        engine: What an index says ran it: `torch`, or `torch-bfloat16`.
    """

    engine = "torch"

    def __init__(
        self,
        model: SentenceTransformer,
        *,
        name: str,
        prompts: Prompts | None = None,
        batch_size: int = 32,
    ) -> None:
        """Wrap a loaded model.

        Args:
            model: The model; it is put into evaluation mode.
            name: See the attribute.
            prompts: None: what the model declares, else what its authors prescribe.
            batch_size: The most texts per batch.

        Raises:
            EmbedderError: The model leaves its prompt out of the pooling, which a prompt put before the text cannot do.
        """
        self.name = name
        self.prompts = default_prompts(name, model.prompts, model.default_prompt_name) if prompts is None else prompts
        self.model = model.eval()
        self._batch_size = batch_size
        if self.prompts != Prompts() and not all(getattr(module, "include_prompt", True) for module in model):
            raise EmbedderError(
                f"model {name} leaves its prompt out of the pooling, which is not supported",
                fix="set query_prompt and example_prompt to empty texts, or choose another model",
            )
        self._tokenizing = threading.Lock()
        self._rows_at_end = 1 if _only_pools(model) else LEAST_ROWS
        self.dim: int = model.get_embedding_dimension() or len(self._forward(["dimension"])[0])

    @classmethod
    def load(
        cls, settings: EmbedderSettings, *, source: Path | None = None, name: str | None = None
    ) -> SentenceTransformerEmbedder:
        """Load a model by name or from a folder, without progress bars, warnings, or code from the model.

        Args:
            settings: Name, device, revision, prompts and batch size.
            source: The folder to load from instead of the name.
            name: The canonical name; None: derived from the name in the settings.

        Raises:
            EmbedderError: The library is missing or older than 6, or the model cannot be had, is damaged, or needs
                code of its own.
        """
        made_by = library().SentenceTransformer
        folder = source or model_folder(settings.name)
        offline = folder is None and not hub_answers(settings.name, settings.revision)
        with quiet():
            try:
                model = made_by(
                    settings.name if folder is None else str(folder),
                    device=settings.device,
                    revision=settings.revision,
                    trust_remote_code=False,
                    local_files_only=offline,
                )
            except Exception as error:
                raise load_error(settings.name, error, offline=offline) from error
        canonical = name or (settings.name.removeprefix(ORGANISATION) if folder is None else str(folder))
        return cls(
            model,
            name=canonical,
            prompts=settings.prompts(default_prompts(canonical, model.prompts, model.default_prompt_name)),
            batch_size=settings.batch_size or 32,
        )

    def encode(self, texts: list[str]) -> Vectors:
        """One row per text, (n, dim) float32, of unit length; all zero when the model gives no direction.

        The model's own default prompt is not applied: prompts are the caller's part.
        """
        vectors = np.zeros((len(texts), self.dim), dtype=np.float32)
        for rows, encoded in self._run(self._forward, texts):
            vectors[rows] = encoded
        return unit_rows(vectors)

    def encode_ids(self, ids: Sequence[NDArray[np.int64]]) -> Vectors:
        """The same for texts that are token ids already, those that the tokenizer adds included."""
        vectors = np.zeros((len(ids), self.dim), dtype=np.float32)
        with RUNNING:
            batches = batches_of(np.array([len(one) for one in ids], dtype=np.int64), self._batch_size)
            asked = [np.stack([ids[row] for row in batch.tolist()]) for batch in batches]
            on_cpu = self.model.device.type == "cpu"
            for rows, encoded in zip(batches, run_batches(self._ids_forward, asked, on_cpu=on_cpu), strict=True):
                vectors[rows] = encoded
        return unit_rows(vectors)

    def round_to_bfloat16(self) -> None:
        """From now on the transformer computes in bfloat16; pooling and what follows stay in float32."""
        import torch

        transformer = self.model[0]
        transformer.model.to(torch.bfloat16)
        transformer.register_forward_hook(_states_as_float32)
        self.engine = ROUNDED

    @property
    def tokenizer_json(self) -> str:
        """The tokenizer as the tokenizers library writes it.

        Raises:
            EmbedderError: It is not of that library.
        """
        if not getattr(self.model.tokenizer, "is_fast", False):
            raise EmbedderError(f"model {self.name} has a tokenizer that is not of the tokenizers library")
        return str(self.model.tokenizer.backend_tokenizer.to_str())

    @property
    def identity(self) -> None:
        """Nothing tells its vectors to the bit: they depend on torch and on the device."""
        return

    @cached_property
    def has_tokens(self) -> bool:
        """Whether the model gives vectors of tokens in context; static ones do not."""
        return "token_embeddings" in self._output(["dimension"])

    @cached_property
    def token_dim(self) -> int:
        """Components of a token vector, which need not be `dim`."""
        return int(self._output(["dimension"])["token_embeddings"].shape[-1])

    def token_vectors(self, texts: list[str]) -> TokenVectors:
        """The vectors of each text's tokens as they are before pooling, float32, of unit length.

        Tokens that the tokenizer adds around a text are left out. What truncation cuts off has no vector.
        """
        found: list[Vectors] = [np.empty((0, self.token_dim), dtype=np.float32)] * len(texts)
        for rows, matrices in self._run(self._token_forward, texts):
            for row, matrix in zip(rows.tolist(), matrices, strict=True):
                found[row] = matrix
        return TokenVectors.of(found, self.token_dim)

    def token_ids(self, texts: list[str]) -> list[NDArray[np.int64]]:
        """The ids of each text's tokens, those that `token_vectors` gives vectors for, in text order."""
        ids: list[NDArray[np.int64]] = []
        with RUNNING:
            for start in range(0, len(texts), _TEXTS_PER_TOKENIZATION):
                tokens = self.model.preprocess(texts[start : start + _TEXTS_PER_TOKENIZATION], prompt="")
                kept = self._kept(tokens)
                ids.extend(row[keep] for row, keep in zip(tokens["input_ids"].numpy(), kept, strict=True))
        return ids

    def _run(
        self, forward: Callable[[list[str]], Result], texts: list[str]
    ) -> Iterator[tuple[NDArray[np.intp], Result]]:
        """Batch by batch the places of its texts, and what `forward` makes of them."""
        with RUNNING:
            batches = batches_of(self._lengths(texts), self._batch_size)
            asked = [[texts[row] for row in batch] for batch in batches]
            yield from zip(batches, run_batches(forward, asked, on_cpu=self.model.device.type == "cpu"), strict=True)

    def _lengths(self, texts: list[str]) -> NDArray[np.int64]:
        """Tokens per text after truncation; 0 for models that do not pad, whose texts can share any batch."""
        lengths = np.zeros(len(texts), dtype=np.int64)
        for start in range(0, len(texts), _TEXTS_PER_TOKENIZATION):
            block = texts[start : start + _TEXTS_PER_TOKENIZATION]
            mask = self.model.preprocess(block, prompt="").get("attention_mask")
            if mask is not None:
                lengths[start : start + len(block)] = mask.sum(dim=1).numpy()
        return lengths

    def _forward(self, texts: list[str]) -> NDArray[np.float32]:
        """The vectors of texts of equal token count, (n, dim), as the model gives them."""
        output = self._output(texts)["sentence_embedding"]
        vectors: NDArray[np.float32] = output[: len(texts), : self.model.truncate_dim].float().cpu().numpy()
        return vectors

    def _ids_forward(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """The vectors of texts given as token ids, shape (n, t), as the model gives them."""
        import torch

        more = max(self._rows_at_end, math.ceil(LEAST_ROWS / max(1, ids.shape[1]))) - len(ids)
        given = torch.from_numpy(np.concatenate([ids, *[ids[-1:]] * more]))
        tokens = {"input_ids": given, "attention_mask": torch.ones_like(given)}
        if "token_type_ids" in self.model.tokenizer.model_input_names:
            tokens["token_type_ids"] = torch.zeros_like(given)
        with torch.inference_mode():
            output = self.model({name: tensor.to(self.model.device) for name, tensor in tokens.items()})
        vectors: NDArray[np.float32] = (
            output["sentence_embedding"][: len(ids), : self.model.truncate_dim].float().cpu().numpy()
        )
        return vectors

    def _token_forward(self, texts: list[str]) -> list[Vectors]:
        """The unit token vectors of each of some texts of equal token count."""
        output = self._output(texts)
        vectors = output["token_embeddings"][: len(texts)].float().cpu().numpy()
        kept = self._kept(output)[: len(texts)]
        return [unit_rows(row[keep]) for row, keep in zip(vectors, kept, strict=True)]

    def _kept(self, tokens: Mapping[str, Tensor]) -> NDArray[np.bool_]:
        """Which tokens stand for text, shape (texts, length): no padding, and none that the tokenizer adds.

        An unknown word counts, except where the tokenizer has one token for that and for the ends of a text.
        """
        ids = tokens["input_ids"].cpu().numpy()
        padding = tokens["attention_mask"].cpu().numpy() == 0
        kept: NDArray[np.bool_] = ~(np.isin(ids, self.added_ids) | padding)
        return kept

    @cached_property
    def added_ids(self) -> tuple[int, ...]:
        """The ids of the tokens that the tokenizer adds around a text."""
        ids = [getattr(self.model.tokenizer, f"{name}_token_id", None) for name in ("cls", "sep", "bos", "eos", "pad")]
        return tuple(dict.fromkeys(one for one in ids if one is not None))

    def _output(self, texts: list[str]) -> dict[str, Tensor]:
        """All that the model makes of texts of equal token count, for at least as many rows."""
        import torch
        from sentence_transformers.util import batch_to_device

        with torch.inference_mode():
            output: dict[str, Tensor] = self.model(batch_to_device(self._tokenized(texts), self.model.device))
        return output

    def _tokenized(self, texts: list[str]) -> dict[str, Tensor]:
        """The input of the model, with enough rows for every product of matrices (see `LEAST_ROWS`)."""
        with self._tokenizing:
            tokens: dict[str, Tensor] = self.model.preprocess(texts, prompt="")
            rows = self._rows_at_end
            if "attention_mask" in tokens:
                rows = max(rows, math.ceil(LEAST_ROWS / max(1, tokens["attention_mask"].shape[1])))
            if len(texts) < rows:
                tokens = self.model.preprocess([*texts, *texts[-1:] * (rows - len(texts))], prompt="")
            return tokens


def default_prompts(name: str, declared: Mapping[str, str], default_name: str | None) -> Prompts:
    """The prompts of a model when the user gives none.

    What the model declares counts first: `query` on one side, `document` or `passage` on the other, else the prompt it
    names as its default. E5 models declare none, but were trained with one: their authors prescribe `query: ` on both
    sides where like is compared with like, and for the instruction-tuned ones an instruction before the query alone.

    Args:
        name: Of the model; its last part decides whether it is an E5 model.
        declared: The model's own prompts by name.
        default_name: Which of them the model applies when nothing is asked for.
    """
    both = declared.get(default_name or "", "")
    query = declared.get("query") or both
    example = declared.get("document") or declared.get("passage") or both
    last = Path(name).name
    if not (query or example) and _E5.search(last):
        return Prompts(_E5_INSTRUCTION) if "instruct" in last.lower() else Prompts("query: ", "query: ")
    return Prompts(query, example)


def _states_as_float32(module: object, given: object, output: dict[str, Tensor]) -> dict[str, Tensor]:
    return {**output, "token_embeddings": output["token_embeddings"].float()}


def _only_pools(model: SentenceTransformer) -> bool:
    """Whether nothing is multiplied once there is one row per text: token vectors are pooled, and that is all."""
    _, *rest = model
    if not rest or type(rest[0]).__name__ != "Pooling":
        return False
    return all(parameter.ndim < 2 for module in rest for parameter in module.parameters())

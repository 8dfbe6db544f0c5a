"""Embeddings from an endpoint that speaks OpenAI's protocol: OpenAI itself, vLLM, llama.cpp, Ollama and others."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from retriever.embedders.base import Prompts, Vectors, as_vectors
from retriever.errors import EmbedderError, RetrieverError
from retriever.foreign_text import one_line
from retriever.openai_access import KEY_VARIABLE, environment_url, openai_client, refuse_credentials, secrets_of

if TYPE_CHECKING:
    import openai


class OpenAIEmbedder:
    """An embeddings endpoint, called in batches and with retries.

    The key comes from the environment variable OPENAI_API_KEY alone and appears in no name, message or repr. With a
    base URL of one's own it may be missing.

    Attributes:
        name: `openai:` and the model.
        prompts: Put before queries and examples.
    """

    def __init__(
        self,
        model: str,
        *,
        base_url: str | None = None,
        prompts: Prompts | None = None,
        batch_size: int = 256,
        max_retries: int = 5,
        timeout: float = 60.0,
    ) -> None:
        """Prepare the client; nothing is sent yet.

        Args:
            model: As the endpoint calls it.
            base_url: Of the endpoint, up to and without `/embeddings`; None: the environment variable OPENAI_BASE_URL,
                else OpenAI.
            prompts: Put before queries and examples; None: nothing.
            batch_size: Texts per request.
            max_retries: Further attempts after a lost connection, a time-out, 408, 409, 429 or 5xx, with exponential
                backoff or as the endpoint's `Retry-After` asks.
            timeout: Seconds per attempt.

        Raises:
            InvalidInput: The URL is malformed or holds credentials or a query, there is no key and no base URL, or the
                key cannot be sent in a header.
            MissingDependency: The package `openai` is not installed.
        """
        self.name = f"openai:{model}"
        self.prompts = Prompts() if prompts is None else prompts
        self._model = model
        self._batch_size = batch_size
        self._dim: int | None = None
        url = base_url or environment_url()
        if url is not None:
            refuse_credentials(url)
        self._client = openai_client(
            url, purpose="an OpenAI-compatible embeddings endpoint", timeout=timeout, retries=max_retries
        )

    @property
    def dim(self) -> int:
        """Components of a vector, found by encoding one text when nothing has been encoded yet.

        Raises:
            EmbedderError: See `encode`.
        """
        return self.encode(["dimension"]).shape[1] if self._dim is None else self._dim

    def encode(self, texts: list[str]) -> Vectors:
        """One unit row per text, (n, dim) float32.

        Raises:
            EmbedderError: The endpoint refused, could not be reached after all retries, or its answer is not one
                finite vector of the same dimension per text.
        """
        batches = [texts[start : start + self._batch_size] for start in range(0, len(texts), self._batch_size)]
        encoded = [self._encode_batch(batch) for batch in batches]
        return np.concatenate(encoded) if encoded else np.zeros((0, self.dim), dtype=np.float32)

    def _encode_batch(self, texts: list[str]) -> Vectors:
        try:
            # Plain numbers rather than the client's default, base64, which not every server speaks.
            answer = self._client.embeddings.create(model=self._model, input=texts, encoding_format="float")
            vectors = self._in_order(answer, len(texts))
        except RetrieverError:
            raise
        except Exception as error:
            reason = f"{type(error).__name__}: {one_line(str(error), secrets=secrets_of(self._client))}"
        else:
            if self._dim is None:
                self._dim = vectors.shape[1]
            if vectors.shape[1] != self._dim:
                raise EmbedderError(
                    f"embedder {self.name} returned vectors of dimension {vectors.shape[1]}",
                    expected=f"dimension {self._dim}, as before",
                )
            return vectors
        # Outside the handler: a chained exception would print what the endpoint echoed, the key included.
        raise EmbedderError(
            f"embedder {self.name} failed on {len(texts)} texts: {reason}",
            fix=f"check the base URL, the model's name and {KEY_VARIABLE}, then try again",
        )

    def _in_order(self, answer: openai.types.CreateEmbeddingResponse, rows: int) -> Vectors:
        """The vectors in the order of the texts, which an endpoint need not keep."""
        places = [item.index for item in answer.data]
        if sorted(places) != list(range(rows)):
            shown = f"{places[:8]}{'…' if len(places) > 8 else ''}"
            raise EmbedderError(
                f"embedder {self.name} returned {len(places)} vectors for {rows} texts, with the indices {shown}",
                expected=f"every index from 0 to {rows - 1} once",
            )
        ordered = sorted(answer.data, key=lambda item: item.index)
        return as_vectors([item.embedding for item in ordered], name=self.name, rows=rows)

    def __repr__(self) -> str:
        return f"OpenAIEmbedder({self._model!r})"

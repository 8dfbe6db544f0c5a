"""An embedder made of a plain Python function."""

from __future__ import annotations

from collections.abc import Callable

from retriever.embedders.base import Prompts, Vectors, as_vectors


class FunctionEmbedder:
    """Wraps a function from n texts to an (n, dim) array-like, such as nested lists, an array or a tensor.

    Attributes:
        name: `callable:module.qualname` of the function, or the name that was given. An embedder of that name cannot
            be loaded again from the name alone.
        prompts: Put before queries and examples.
    """

    def __init__(
        self, function: Callable[[list[str]], object], *, name: str | None = None, prompts: Prompts | None = None
    ) -> None:
        self.name = f"callable:{qualified_name(function)}" if name is None else name
        self.prompts = Prompts() if prompts is None else prompts
        self._function = function
        self._dim: int | None = None

    @property
    def dim(self) -> int:
        """Components of a vector, found by encoding one text when nothing has been encoded yet.

        Raises:
            EmbedderError: The function returned something that is not a vector per text.
        """
        return self.encode(["dimension"]).shape[1] if self._dim is None else self._dim

    def encode(self, texts: list[str]) -> Vectors:
        """One unit row per text, (n, dim) float32.

        Raises:
            EmbedderError: The function returned something that is not a finite vector per text.
        """
        vectors = as_vectors(self._function(texts), name=self.name, rows=len(texts))
        if self._dim is None:
            self._dim = vectors.shape[1]
        return vectors

    def __repr__(self) -> str:
        return f"FunctionEmbedder({self.name!r})"


def qualified_name(thing: object) -> str:
    """`module.qualname` of a function or class; of its class for anything else."""
    named = thing if hasattr(thing, "__qualname__") else type(thing)
    return f"{named.__module__}.{named.__qualname__}"

"""What an embedder is, what holds for its vectors, and how two embedders are told apart.

Every vector that enters an index passes through `encode_checked`: it is the one place that enforces the contract, so
that an embedder written by a user needs no defences of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from indexes.late_interaction import TokenVectors
from retriever.errors import EmbedderError, InvalidInput, RetrieverError
from retriever.foreign_text import one_line
from retriever.openai_access import refuse_credentials

Vectors: TypeAlias = NDArray[np.float32]

# Part of the index format: a fingerprint can only be compared with one made from the same sentences.
_PROBES = (
    "The train to the coast leaves at half past seven.",
    "How do I change the address on my account?",
    "def area(radius): return 3.14159 * radius ** 2",
)
_COMPONENTS = 32
_STEPS = 16
_BLOCK = 8192


ENGINES = ("onnx", "torch")
PRECISIONS = ("float32", "bfloat16")


class Embedder(Protocol):
    """Text to vectors.

    Attributes:
        name: Canonical name, such as `all-MiniLM-L6-v2`, `latent-semantic`, `static:all-MiniLM-L6-v2`,
            `openai:text-embedding-3-small` or `callable:module.qualname`.
        dim: Components of a vector.
    """

    @property
    def name(self) -> str: ...  # noqa: D102

    @property
    def dim(self) -> int: ...  # noqa: D102

    def encode(self, texts: list[str]) -> Vectors:
        """One row per text: (n, dim) float32, of unit length; a row without direction is all zero."""
        ...


class TokenEmbedder(Embedder, Protocol):
    """Text to the vectors of its tokens as well; tokens that the tokenizer adds around a text are left out.

    Attributes:
        has_tokens: Whether this model gives vectors of tokens in context; only then may the rest be asked for.
        token_dim: Components of a token vector.
    """

    @property
    def has_tokens(self) -> bool: ...  # noqa: D102

    @property
    def token_dim(self) -> int: ...  # noqa: D102

    def token_vectors(self, texts: list[str]) -> TokenVectors:
        """Of each text, float32, of unit length; a token without direction is all zero."""
        ...

    def token_ids(self, texts: list[str]) -> list[NDArray[np.int64]]:
        """Of each text, the id of each token that `token_vectors` gives a vector for, in text order."""
        ...


@dataclass(frozen=True)
class Prompts:
    """What is put before a text, verbatim, on each side.

    Attributes:
        query: Before a query.
        example: Before the text of an example.
    """

    query: str = ""
    example: str = ""


def prompts_of(embedder: Embedder) -> Prompts:
    """The prompts that an embedder asks for in its attribute `prompts`; none when it has no such attribute."""
    prompts = getattr(embedder, "prompts", None)
    return prompts if isinstance(prompts, Prompts) else Prompts()


@dataclass(frozen=True)
class EmbedderSettings:
    """Which embedder, as data.

    Attributes:
        name: `auto`, `latent`, `static:NAME`, `openai:MODEL`, or the name or folder of a sentence-transformers model.
        base_url: Where an `openai:` endpoint is, as scheme://host/path; None: the client's own default.
        query_prompt: Put before queries; None: the model's own default.
        example_prompt: Put before examples; None: the model's own default.
        device: Where torch runs the model, such as `cpu` or `cuda:0`; None: the library chooses.
        revision: Branch, tag or commit of a model on the Hugging Face Hub.
        batch_size: Texts encoded at once; None: 32 for a local model, 256 for an endpoint.
        engine: What runs a sentence-transformers model: `torch`, or `onnx` on the CPU, for which it is exported once
            and then starts at once; None: `onnx` where the model allows it and there is no accelerator.
        precision: `bfloat16`: a pool is embedded by torch in bfloat16 where the processor has it and little of what is
            found changes, see `retriever.embedders.bfloat16`; queries and additions are not. None: `float32`.

    Raises:
        InvalidInput: The name is empty, the batch size is below 1, the engine or the precision is unknown or does not
            run on the device, or the URL is malformed or holds credentials or a query.
    """

    name: str = "auto"
    base_url: str | None = None
    query_prompt: str | None = None
    example_prompt: str | None = None
    device: str | None = None
    revision: str | None = None
    batch_size: int | None = None
    engine: str | None = None
    precision: str | None = None

    def __post_init__(self) -> None:
        if not self.name.strip():
            raise InvalidInput("an empty embedder name", expected="'auto' or the name of a model")
        if self.batch_size is not None and self.batch_size < 1:
            raise InvalidInput(f"batch_size {self.batch_size}", expected="at least 1")
        if self.engine not in (None, *ENGINES):
            raise InvalidInput(f"engine {self.engine!r}", expected=f"one of {', '.join(ENGINES)}")
        if self.engine == "onnx" and self.device not in (None, "cpu"):
            raise InvalidInput(f"engine 'onnx' on {self.device}", expected="device cpu, or the engine torch")
        if self.precision not in (None, *PRECISIONS):
            raise InvalidInput(f"precision {self.precision!r}", expected=f"one of {', '.join(PRECISIONS)}")
        if self.precision == "bfloat16" and (self.engine == "onnx" or self.device not in (None, "cpu")):
            raise InvalidInput(
                f"precision 'bfloat16' with {'engine onnx' if self.engine == 'onnx' else self.device}",
                expected="the engine torch on device cpu",
            )
        if self.base_url is not None:
            refuse_credentials(self.base_url)

    def prompts(self, default: Prompts) -> Prompts:
        """The given prompts, each falling back to the default of the model."""
        return Prompts(
            default.query if self.query_prompt is None else self.query_prompt,
            default.example if self.example_prompt is None else self.example_prompt,
        )


def unit_rows(matrix: NDArray[np.generic]) -> Vectors:
    """Rows scaled to unit length in float64, then rounded to float32; a zero row stays zero.

    Args:
        matrix: (n, dim), any real dtype, finite.
    """
    unit = np.empty(matrix.shape, dtype=np.float32)
    for start in range(0, len(matrix), _BLOCK):
        # The memory order decides the order of summation, hence the last bits: make it the same for every input.
        block = np.ascontiguousarray(matrix[start : start + _BLOCK], dtype=np.float64)
        # Scaling by the largest component first keeps the squares of very large and very small rows in range.
        largest = np.abs(block).max(axis=1, keepdims=True)
        block = block / np.where(largest > 0, largest, 1.0)
        length = np.sqrt((block * block).sum(axis=1, keepdims=True))
        unit[start : start + _BLOCK] = block / np.where(length > 0, length, 1.0)
    return unit


def as_vectors(raw: object, *, name: str, rows: int) -> Vectors:
    """What an embedder returned, as unit rows.

    Args:
        raw: Anything numpy can turn into an array: nested lists, an array, a tensor in main memory.
        name: Of the embedder, for the message.
        rows: How many texts were given.

    Raises:
        EmbedderError: It is not a (rows, dim) matrix of finite real numbers with dim at least 1.
    """
    try:
        array = np.asarray(raw)
    except (TypeError, ValueError, RuntimeError) as error:
        raise EmbedderError(
            f"embedder {name} returned a {type(raw).__name__} that is no array: {first_line(error)}",
            expected=f"an array of shape ({rows}, dim)",
        ) from error
    if array.ndim != 2 or array.shape[0] != rows or array.shape[1] == 0:
        raise EmbedderError(
            f"embedder {name} returned an array of shape {array.shape} for {rows} texts",
            expected=f"shape ({rows}, dim): one row per text, in order",
        )
    if array.dtype.kind not in "fiu":
        raise EmbedderError(
            f"embedder {name} returned values of dtype {array.dtype}", expected="real numbers, float32 for choice"
        )
    finite = np.isfinite(array).all(axis=1)
    if not finite.all():
        raise EmbedderError(
            f"embedder {name} returned NaN or infinity for {rows - int(finite.sum())} of {rows} texts, "
            f"first for text {int(np.argmin(finite))}",
            expected="finite numbers",
        )
    return unit_rows(array)


def encode_checked(embedder: Embedder, texts: Sequence[str], *, prefix: str = "") -> Vectors:
    """Encode texts with any embedder and enforce the contract.

    A blank text (nothing but white space) gets a zero row and is not sent to the model. Equal texts are encoded once.
    Lone surrogates, which no tokenizer and no wire format can carry, are sent as U+FFFD.

    Args:
        embedder: Any embedder.
        texts: n texts.
        prefix: Put before every text that is not blank: `prompts_of(embedder).query` or `.example`.

    Returns:
        (n, embedder.dim) float32; every row has unit length or is all zero.

    Raises:
        EmbedderError: The embedder raised, or returned something that is not a finite vector of `dim` numbers per text.
    """
    sent = [sendable(prefix + text) if text.strip() else None for text in texts]
    place: dict[str, int] = {}
    for text in sent:
        if text is not None:
            place.setdefault(text, len(place))
    unique = list(place)
    try:
        # Encoding comes first: an embedder that has to try a text to know its dimension then knows it for free.
        raw = embedder.encode(unique) if unique else None
        dim = embedder.dim
    except RetrieverError:
        raise
    except Exception as error:
        raise EmbedderError(f"embedder {embedder.name} failed: {type(error).__name__}: {first_line(error)}") from error
    vectors = np.zeros((len(sent), dim), dtype=np.float32)
    if unique:
        encoded = as_vectors(raw, name=embedder.name, rows=len(unique))
        if encoded.shape[1] != dim:
            raise EmbedderError(
                f"embedder {embedder.name} returned vectors of dimension {encoded.shape[1]}",
                expected=f"dimension {dim}",
            )
        rows = [row for row, text in enumerate(sent) if text is not None]
        vectors[rows] = encoded[[place[text] for text in sent if text is not None]]
    return vectors


def token_embedder(embedder: Embedder) -> TokenEmbedder:
    """The same embedder, when it has token vectors; ask before a recipe that needs them is used.

    Raises:
        InvalidInput: It has none: a latent-semantic or static model, an endpoint, or a function.
    """
    if not getattr(embedder, "has_tokens", False):
        raise InvalidInput(
            f"embedder {embedder.name}, which has no token vectors",
            expected="a transformer model of the sentence-transformers library",
            fix="build the index with such a model, or do without token vectors",
        )
    return cast(TokenEmbedder, embedder)


def encode_tokens(embedder: TokenEmbedder, texts: Sequence[str], *, prefix: str = "") -> TokenVectors:
    """The token vectors of texts: blank ones have none, equal ones are encoded once; see `encode_checked`.

    Args:
        embedder: What `token_embedder` lets pass.
        texts: n texts.
        prefix: Put before every text that is not blank. Its tokens are in the answer, as they are in a pooled vector.

    Returns:
        float32, n texts.

    Raises:
        EmbedderError: The model failed, or gave NaN or infinity.
    """
    sent = [sendable(prefix + text) if text.strip() else None for text in texts]
    place = {text: i for i, text in enumerate(dict.fromkeys(text for text in sent if text is not None))}
    try:
        encoded = embedder.token_vectors(list(place))
    except RetrieverError:
        raise
    except Exception as error:
        raise EmbedderError(f"embedder {embedder.name} failed: {type(error).__name__}: {first_line(error)}") from error
    if not np.isfinite(encoded.vectors).all():
        raise EmbedderError(f"embedder {embedder.name} returned NaN or infinity", expected="finite token vectors")
    none = encoded.vectors[:0]
    return TokenVectors.of([none if text is None else encoded.text(place[text]) for text in sent], embedder.token_dim)


def fingerprint(embedder: Embedder) -> str:
    """What identifies the vector space of an embedder, whatever it is called: `dim:hexadecimal digits`.

    Three fixed sentences are encoded without prompts, and the first 32 components of each are rounded to steps of
    1/16 of a typical component (1 / sqrt(dim)), one signed byte each.

    It is not a hash on purpose. The same model run by another engine, on other hardware or in another release of a
    library differs by about 1e-5 per component. However coarse the rounding, some component lies near an edge between
    two steps and may fall on either side; a hash would then change completely, while these digits move by one, which
    `same_space` allows. Vectors of two different models agree in all 96 components with a chance below 1e-100.

    An embedder that knows no word of the three sentences gives zeros, which say nothing but the dimension.

    Raises:
        EmbedderError: See `encode_checked`.
    """
    vectors = encode_checked(embedder, _PROBES).astype(np.float64)[:, :_COMPONENTS]
    steps = np.rint(vectors * np.sqrt(embedder.dim) * _STEPS)
    return f"{embedder.dim}:{np.clip(steps, -127, 127).astype(np.int8).tobytes().hex()}"


def same_space(a: str, b: str) -> bool:
    """Whether two fingerprints are of the same model: equal dimension, every component within one step.

    A text that is no fingerprint is the same as nothing but itself.
    """
    if a == b:
        return True
    (dim_a, _, digits_a), (dim_b, _, digits_b) = a.partition(":"), b.partition(":")
    try:
        steps_a, steps_b = (np.frombuffer(bytes.fromhex(digits), dtype=np.int8) for digits in (digits_a, digits_b))
    except ValueError:
        return False
    if dim_a != dim_b or steps_a.shape != steps_b.shape or not steps_a.size:
        return False
    return bool((np.abs(steps_a.astype(np.int16) - steps_b) <= 1).all())


def sendable(text: str) -> str:
    """The text with lone surrogates replaced by U+FFFD, so that it can be encoded as UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def first_line(error: BaseException) -> str:
    """The first line of the message of an exception of another library, fit for a message of this one."""
    lines = (one_line(line) for line in str(error).splitlines())
    return next((line for line in lines if line), type(error).__name__)

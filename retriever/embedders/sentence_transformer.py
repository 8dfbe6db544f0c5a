"""Models of the sentence-transformers library, run so that a row does not depend on the texts around it."""

from __future__ import annotations

import logging
import math
import re
import threading
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from retriever.embedders.base import EmbedderSettings, Prompts, Vectors, first_line, unit_rows
from retriever.errors import EmbedderError

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from torch import Tensor

_ORGANISATION = "sentence-transformers/"
# Bounds the memory of a batch on machines with many cores; the result does not depend on it.
_TOKENS_PER_BATCH = 4096
_TEXTS_PER_TOKENIZATION = 256
# A matrix product with fewer rows than this takes another path through the math library, with other last bits.
_LEAST_ROWS = 4
_E5 = re.compile(r"(?:^|[-_/])e5(?:[-_]|$)", re.IGNORECASE)
# The task that the authors of the instruction-tuned E5 models name for comparing like with like.
_E5_INSTRUCTION = "Instruct: Retrieve semantically similar text.\nQuery: "
# One call at a time: a tokenizer cannot be used by two threads at once, and the number of torch threads is global.
_RUNNING = threading.Lock()


class SentenceTransformerEmbedder:
    """A sentence-transformers model; transformer and static models alike.

    On a CPU the bytes of a row depend on its text alone, not on batch size, neighbours, order or number of cores.
    Three things would change the last bits of a product of matrices, and are avoided:

    - padding: only texts of equal token count share a batch, which also wastes no work on padding;
    - threads inside one product: every batch runs on one thread, and as many batches run at once as torch has threads,
      which is also faster for texts of ordinary length;
    - very few rows: a batch that would multiply fewer than four rows is filled up with copies of its last text.

    On other devices rows agree to float rounding only.

    Attributes:
        name: As it would be loaded again: the name on the Hub without `sentence-transformers/`, or an absolute folder.
        prompts: Put before queries and examples by the caller of `encode`.
        revision: Of the model on the Hub, when one was asked for.
        dim: Components of a vector.
    """

    def __init__(
        self,
        model: SentenceTransformer,
        *,
        name: str,
        prompts: Prompts | None = None,
        revision: str | None = None,
        batch_size: int = 32,
    ) -> None:
        """Wrap a loaded model.

        Args:
            model: The model; it is put into evaluation mode.
            name: See the attribute.
            prompts: None: what the model declares, else what its authors prescribe.
            revision: See the attribute.
            batch_size: The most texts per batch.

        Raises:
            EmbedderError: The model leaves its prompt out of the pooling, which a prompt put before the text cannot do.
        """
        self.name = name
        self.revision = revision
        self.prompts = default_prompts(name, model.prompts, model.default_prompt_name) if prompts is None else prompts
        self._model = model.eval()
        self._batch_size = batch_size
        if self.prompts != Prompts() and not all(getattr(module, "include_prompt", True) for module in model):
            raise EmbedderError(
                f"model {name} leaves its prompt out of the pooling, which is not supported",
                fix="set query_prompt and example_prompt to empty texts, or choose another model",
            )
        self._tokenizing = threading.Lock()
        self._rows_at_end = 1 if _only_pools(model) else _LEAST_ROWS
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
        library = _library()
        folder = source or _folder(settings.name)
        offline = folder is None and not _hub_answers(settings.name, settings.revision)
        with _quiet():
            try:
                model = library(
                    settings.name if folder is None else str(folder),
                    device=settings.device,
                    revision=settings.revision,
                    trust_remote_code=False,
                    local_files_only=offline,
                )
            except Exception as error:
                raise _load_error(settings.name, error, offline=offline) from error
        canonical = name or (settings.name.removeprefix(_ORGANISATION) if folder is None else str(folder))
        return cls(
            model,
            name=canonical,
            prompts=settings.prompts(default_prompts(canonical, model.prompts, model.default_prompt_name)),
            revision=settings.revision,
            batch_size=settings.batch_size or 32,
        )

    def encode(self, texts: list[str]) -> Vectors:
        """One row per text, (n, dim) float32, of unit length; all zero when the model gives no direction.

        The model's own default prompt is not applied: prompts are the caller's part.
        """
        vectors = np.zeros((len(texts), self.dim), dtype=np.float32)
        with _RUNNING:
            batches = self._batches(texts)
            for rows, encoded in zip(batches, self._run([[texts[row] for row in b] for b in batches]), strict=True):
                vectors[rows] = encoded
        return unit_rows(vectors)

    def _run(self, batches: list[list[str]]) -> Iterator[NDArray[np.float32]]:
        """The vectors of every batch, in order."""
        if self._model.device.type != "cpu" or not batches:
            yield from map(self._forward, batches)
            return
        import torch

        threads = torch.get_num_threads()
        try:
            with ThreadPoolExecutor(min(threads, len(batches)), initializer=_use_one_thread) as workers:
                yield from workers.map(self._forward, batches)
        finally:
            torch.set_num_threads(threads)  # also what threads started later begin with

    def _batches(self, texts: list[str]) -> list[NDArray[np.intp]]:
        """Rows of equal token count, split into batches, the longest texts first."""
        lengths = self._lengths(texts)
        batches: list[NDArray[np.intp]] = []
        for length in np.unique(lengths)[::-1].tolist():
            rows = np.flatnonzero(lengths == length)
            size = max(1, min(self._batch_size, _TOKENS_PER_BATCH // max(1, length)))
            batches.extend(rows[start : start + size] for start in range(0, len(rows), size))
        return batches

    def _lengths(self, texts: list[str]) -> NDArray[np.int64]:
        """Tokens per text after truncation; 0 for models that do not pad, whose texts can share any batch."""
        lengths = np.zeros(len(texts), dtype=np.int64)
        for start in range(0, len(texts), _TEXTS_PER_TOKENIZATION):
            block = texts[start : start + _TEXTS_PER_TOKENIZATION]
            mask = self._model.preprocess(block, prompt="").get("attention_mask")
            if mask is not None:
                lengths[start : start + len(block)] = mask.sum(dim=1).numpy()
        return lengths

    def _forward(self, texts: list[str]) -> NDArray[np.float32]:
        """The vectors of texts of equal token count, (n, dim), as the model gives them."""
        import torch
        from sentence_transformers.util import batch_to_device

        tokens = self._tokenized(texts)
        with torch.inference_mode():
            output = self._model(batch_to_device(tokens, self._model.device))["sentence_embedding"]
        vectors: NDArray[np.float32] = output[: len(texts), : self._model.truncate_dim].float().cpu().numpy()
        return vectors

    def _tokenized(self, texts: list[str]) -> dict[str, Tensor]:
        """The input of the model, with enough rows for every product of matrices (see `_LEAST_ROWS`)."""
        with self._tokenizing:
            tokens: dict[str, Tensor] = self._model.preprocess(texts, prompt="")
            rows = self._rows_at_end
            if "attention_mask" in tokens:
                rows = max(rows, math.ceil(_LEAST_ROWS / max(1, tokens["attention_mask"].shape[1])))
            if len(texts) < rows:
                tokens = self._model.preprocess([*texts, *texts[-1:] * (rows - len(texts))], prompt="")
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


def _only_pools(model: SentenceTransformer) -> bool:
    """Whether nothing is multiplied once there is one row per text: token vectors are pooled, and that is all."""
    _, *rest = model
    if not rest or type(rest[0]).__name__ != "Pooling":
        return False
    return all(parameter.ndim < 2 for module in rest for parameter in module.parameters())


def _use_one_thread() -> None:
    import torch

    torch.get_num_threads()  # a new thread takes over the global setting at its first use, which must not come later
    torch.set_num_threads(1)


def _library() -> type[SentenceTransformer]:
    try:
        import sentence_transformers
    except ImportError as error:
        raise EmbedderError(
            f"sentence-transformers cannot be imported: {first_line(error)}",
            fix="pip install 'sentence-transformers>=6'",
        ) from error
    version: str = sentence_transformers.__version__
    if int(version.partition(".")[0]) < 6:
        raise EmbedderError(
            f"sentence-transformers {version}, which runs code from a model folder",
            expected="6 or newer",
            fix="pip install 'sentence-transformers>=6'",
        )
    library: type[SentenceTransformer] = sentence_transformers.SentenceTransformer
    return library


def _folder(name: str) -> Path | None:
    """The absolute folder that a name means, or None when it means a model on the Hub."""
    path = Path(name).expanduser()
    if path.is_dir():
        return path.absolute()
    if name.startswith((".", "~")) or path.is_absolute():
        raise EmbedderError(f"no model folder at {path}", fix="check the path of the embedder")
    return None


def _hub_answers(name: str, revision: str | None) -> bool:
    """Whether the Hub can be reached, found out in seconds: the library itself would retry for a minute."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    repository = name if "/" in name else _ORGANISATION + name
    try:
        HfApi().model_info(repository, revision=revision, timeout=5)
    except (HfHubHTTPError, HFValidationError):
        return True  # an answer, if only a refusal; loading then says which
    except Exception:
        # Its type belongs to the HTTP library of the day. Nothing is lost: loading from the cache comes next and tells.
        return False
    return True


def _load_error(name: str, error: Exception, *, offline: bool) -> EmbedderError:
    if "trust_remote_code" in str(error):
        return EmbedderError(
            f"model {name} needs code of its own, which is never run",
            expected="a model made of the library's own modules",
            fix="load it yourself and pass the loaded object as the embedder",
        )
    if offline:
        return EmbedderError(
            f"model {name} is not on this machine, and the Hugging Face Hub cannot be reached",
            fix="connect, or give the folder of a downloaded model",
        )
    return EmbedderError(
        f"model {name} could not be loaded: {type(error).__name__}: {first_line(error)}",
        expected="a model of the Hugging Face Hub or a model folder",
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep progress bars, log lines below an error, and warnings off the terminal; everything is restored after."""
    import transformers
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled

    loggers = [logging.getLogger(name) for name in ("transformers", "sentence_transformers", "huggingface_hub")]
    levels = [logger.level for logger in loggers]
    bars = transformers.utils.logging
    transformers_bars, hub_bars = bars.is_progress_bar_enabled(), not are_progress_bars_disabled()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            bars.disable_progress_bar()
            for logger in loggers:
                logger.setLevel(logging.ERROR)
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
            _restore_bars(transformers_bars, hub_bars)


def _restore_bars(transformers_bars: bool, hub_bars: bool) -> None:
    import transformers
    from huggingface_hub.utils.tqdm import disable_progress_bars, enable_progress_bars

    if transformers_bars:
        transformers.utils.logging.enable_progress_bar()  # switches on those of the Hub as well
    if hub_bars:
        enable_progress_bars()
    else:
        disable_progress_bars()

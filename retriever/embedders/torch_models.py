"""What all models of the sentence-transformers library share: loading them, and running them in exact batches.

On a CPU the bytes of a row depend on its text alone, not on batch size, neighbours, order or number of cores. Three
things would change the last bits of a product of matrices, and are avoided:

- padding: only inputs of equal token count share a batch, which also wastes no work on padding;
- threads inside one product: every batch runs on one thread, and as many batches run at once as torch has threads,
  which is also faster for texts of ordinary length;
- very few rows: a batch that would multiply fewer than four rows is filled up with copies of its last input.

On other devices rows agree to float rounding only.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from retriever.embedders.base import first_line
from retriever.errors import EmbedderError

Item = TypeVar("Item")
Result = TypeVar("Result")

ORGANISATION = "sentence-transformers/"
LEAST_ROWS = 4
"""A matrix product with fewer rows takes another path through the math library, with other last bits."""
RUNNING = threading.Lock()
"""One call at a time: a tokenizer cannot be used by two threads at once, and the number of torch threads is global."""
# Bounds the memory of a batch on machines with many cores; the result does not depend on it.
_TOKENS_PER_BATCH = 4096


def batches_of(lengths: NDArray[np.int64], most: int) -> list[NDArray[np.intp]]:
    """Places of equal token count, split into batches of at most `most`, the longest first."""
    batches: list[NDArray[np.intp]] = []
    for length in sorted(set(lengths.tolist()), reverse=True):
        rows = np.flatnonzero(lengths == length)
        size = max(1, min(most, _TOKENS_PER_BATCH // max(1, length)))
        batches.extend(rows[start : start + size] for start in range(0, len(rows), size))
    return batches


def run_batches(forward: Callable[[Item], Result], batches: Sequence[Item], *, on_cpu: bool) -> Iterator[Result]:
    """The results of every batch, in order; on a CPU as many at once as torch has threads, each on one thread.

    The caller holds `RUNNING`.
    """
    if not on_cpu or not batches:
        yield from map(forward, batches)
        return
    import torch

    threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(min(threads, len(batches)), initializer=_use_one_thread) as workers:
            yield from workers.map(forward, batches)
    finally:
        torch.set_num_threads(threads)  # also what threads started later begin with


def _use_one_thread() -> None:
    import torch

    torch.get_num_threads()  # a new thread takes over the global setting at its first use, which must not come later
    torch.set_num_threads(1)


def library() -> ModuleType:
    """The library, imported when first needed.

    Raises:
        EmbedderError: It is missing, or older than 6.
    """
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
    module: ModuleType = sentence_transformers
    return module


def model_folder(name: str) -> Path | None:
    """The absolute folder that a name means, or None when it means a model on the Hub."""
    path = Path(name).expanduser()
    if path.is_dir():
        return path.absolute()
    if name.startswith((".", "~")) or path.is_absolute():
        raise EmbedderError(f"no model folder at {path}", fix="check the path of the embedder")
    return None


def hub_folder(name: str, revision: str | None) -> Path | None:
    """Where a model of the Hub is on this machine; None when it is not."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    repository = name if "/" in name else ORGANISATION + name
    for file in ("modules.json", "config.json"):  # a plain transformer has only the latter
        try:
            found = try_to_load_from_cache(repository, file, revision=revision)
        except HFValidationError:
            return None  # no name of a repository; loading it says so
        if isinstance(found, str):
            return Path(found).parent
    return None


def hub_answers(name: str, revision: str | None) -> bool:
    """Whether the Hub can be reached, found out in seconds: the library itself would retry for a minute."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    repository = name if "/" in name else ORGANISATION + name
    try:
        HfApi().model_info(repository, revision=revision, timeout=5)
    except (HfHubHTTPError, HFValidationError):
        return True  # an answer, if only a refusal; loading then says which
    except Exception:
        # Its type belongs to the HTTP library of the day. Nothing is lost: loading from the cache comes next and tells.
        return False
    return True


def load_error(name: str, error: Exception, *, offline: bool) -> EmbedderError:
    """What to tell whoever asked for a model that does not load."""
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

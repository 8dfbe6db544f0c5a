"""Exporting a sentence-transformers model to ONNX, once, into the user's cache directory.

What cannot be exported, or does not come out the same, is run by torch as before: `CannotExport` says why. The export
is tried on texts of many kinds before it is kept: the same tokens, and vectors that differ by rounding only.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import shutil
import tempfile
import warnings
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from retriever.cache import cache_directory
from retriever.embedders.base import EmbedderSettings, first_line
from retriever.embedders.onnx_engine import ABOUT, MODEL, STATES, TOKENIZER, Export, OnnxEmbedder
from retriever.embedders.sentence_transformer import SentenceTransformerEmbedder, default_prompts
from retriever.errors import EmbedderError
from retriever.quiet import quiet

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

VERSION = 1
"""Of what an export is; others are not looked at."""

PACKAGES = ("onnx", "onnxruntime", "tokenizers")
_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
_OPSET = 18
_TOLERANCE = 1e-4
_PROBES = (
    "Where is my card?",
    "Where is my bank?",
    "  spaces   around,\ttabs\nand lines ",
    "def area(radius): return 3.14159 * radius ** 2",
    "Größe, naïve café, ПРИВЕТ, 日本語のテキスト, हिन्दी, \U0001f600",
    "a",
    "[MASK] [SEP] <s> </s> token #hash @at 1,234.56 %",
    "word " * 700,
    "\u200b\u00ad odd \u2028 spaces \ufffd",
)


class CannotExport(Exception):
    """Why a model is run by torch instead."""


class CacheFails(CannotExport):
    """The model may be fine, but its export cannot be kept."""


def missing_packages() -> str | None:
    """What is not installed that an export, or running one, needs; None when all is there."""
    missing = [name for name in PACKAGES if find_spec(name) is None]
    return f"not installed: {', '.join(missing)}" if missing else None


def export_folder(name: str, identity: str) -> Path:
    """Where the export of a model is, or would be.

    Args:
        name: Of the model, for whoever looks into the cache.
        identity: Tells its files from any other; see `identity_of`.
    """
    digest = hashlib.sha256(f"{VERSION} {identity}".encode()).hexdigest()[:16]
    return cache_directory() / f"{re.sub(r'[^A-Za-z0-9.-]+', '-', Path(name).name)}-{digest}"


def identity_of(folder: Path) -> str:
    """What tells the files of a model folder from any other: where they are, how large, and when they were written."""
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    facts = [(str(path.relative_to(folder)), path.stat().st_size, path.stat().st_mtime_ns) for path in found]
    return json.dumps([str(folder.resolve()), facts])


def known_refusal(folder: Path) -> str | None:
    """Why the model could not be exported before, by the packages of today; None when it was not tried by them."""
    try:
        noted = json.loads(_refusal(folder).read_text(encoding="utf-8"))
        return str(noted["why"]) if noted["versions"] == _versions() else None
    except (OSError, ValueError, TypeError, KeyError):
        return None


def note_refusal(folder: Path, why: str) -> None:
    """Notes why a model cannot be exported, so that not every start tries it again."""
    with contextlib.suppress(OSError):  # then the next start does
        folder.parent.mkdir(parents=True, exist_ok=True)
        _refusal(folder).write_text(json.dumps({"why": why, "versions": _versions()}) + "\n", encoding="utf-8")


def _refusal(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.refused.json")


def _versions() -> dict[str, str]:
    return {name: version(name) for name in (*PACKAGES, "torch", "transformers", "sentence-transformers")}


def export(embedder: SentenceTransformerEmbedder, folder: Path) -> None:
    """Exports a loaded model; the folder appears whole or not at all.

    Args:
        embedder: The model, loaded by torch on the CPU.
        folder: As `export_folder` names it.

    Raises:
        CannotExport: The model is of another kind, torch cannot export it, or its export gives other vectors.
        CacheFails: The cache cannot be written.
    """
    pooling = _pooling(embedder.model)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    except OSError as error:
        raise CacheFails(f"{folder.parent}: {error.strerror}") from error
    try:
        _write(embedder, pooling, made)
        _compare(embedder, made)
        if folder.exists() and not (folder / ABOUT).is_file():
            shutil.rmtree(folder)
        try:
            made.rename(folder)
        except OSError:
            if not (folder / ABOUT).is_file():  # another process may have been faster
                raise
    except OSError as error:
        raise CacheFails(f"{folder}: {error.strerror}") from error
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _pooling(model: SentenceTransformer) -> str:
    """How the model pools, if it is a transformer that pools by mean or first token and at most normalises after.

    Raises:
        CannotExport: It is something else.
    """
    kinds = [type(module).__name__ for module in model]
    if kinds[:2] != ["Transformer", "Pooling"] or kinds[2:] not in ([], ["Normalize"]):
        raise CannotExport(f"a model made of {' + '.join(kinds)}")
    mode = getattr(model[1], "pooling_mode", None)
    if mode not in ("mean", "cls") or not getattr(model[1], "include_prompt", True):
        raise CannotExport(f"pooling by {mode}" if mode not in ("mean", "cls") else "pooling without the prompt")
    if model.truncate_dim is not None or not getattr(model.tokenizer, "is_fast", False):
        raise CannotExport("a tokenizer that has no tokenizer.json" if model.truncate_dim is None else "cut vectors")
    return str(mode)


def _write(embedder: SentenceTransformerEmbedder, pooling: str, folder: Path) -> None:
    import torch

    model = embedder.model
    prompts = default_prompts(embedder.name, model.prompts, model.default_prompt_name)
    transformer = model[0].model.eval()
    inputs = tuple(name for name in _INPUTS if name in model.tokenizer.model_input_names)

    class States(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.transformer = transformer

        def forward(self, *given: torch.Tensor) -> torch.Tensor:
            states: torch.Tensor = self.transformer(**dict(zip(inputs, given, strict=True))).last_hidden_state
            return states

    example = model.tokenizer(["two short texts", "side by side"], padding=True, return_tensors="pt")
    try:
        with quiet(), warnings.catch_warnings(), torch.inference_mode():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                States().eval(),  # in training mode it would leave the transformer so, with dropout
                tuple(example[name] for name in inputs),
                str(folder / MODEL),
                input_names=list(inputs),
                output_names=[STATES],
                dynamic_axes={name: {0: "texts", 1: "tokens"} for name in (*inputs, STATES)},
                opset_version=_OPSET,
                dynamo=False,  # the other exporter takes five times as long and writes the weights beside the model
                verbose=False,
            )
    except Exception as error:
        raise CannotExport(f"torch cannot export it: {type(error).__name__}: {first_line(error)}") from error
    tokenizer = json.loads(model.tokenizer.backend_tokenizer.to_str())
    tokenizer |= {"padding": None, "truncation": {**_TRUNCATION, "max_length": model.max_seq_length}}
    (folder / TOKENIZER).write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")
    about = Export(
        name=embedder.name,
        dim=embedder.dim,
        pooling=pooling,
        inputs=inputs,
        added=embedder.added_ids,
        query_prompt=prompts.query,
        example_prompt=prompts.example,
        files={name: _sha256(folder / name) for name in (MODEL, TOKENIZER)},
    )
    (folder / ABOUT).write_text(about.to_json(), encoding="utf-8")


_TRUNCATION = {"direction": "Right", "strategy": "LongestFirst", "stride": 0}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _compare(embedder: SentenceTransformerEmbedder, folder: Path) -> None:
    """Compares an export with the model it was made from.

    Raises:
        CannotExport: It gives other tokens or vectors.
    """
    try:
        exported = OnnxEmbedder.open(folder, EmbedderSettings())
        texts = list(_PROBES)
        same = all(map(np.array_equal, exported.token_ids(texts), embedder.token_ids(texts)))
        off = float(np.abs(exported.encode(texts) - embedder.encode(texts)).max())
    except EmbedderError as error:
        raise CannotExport(first_line(error)) from error
    if not same:
        raise CannotExport("its tokenizer gives other tokens outside the library")
    if not off <= _TOLERANCE:
        raise CannotExport(f"its export gives other vectors: off by {off:.1e}")

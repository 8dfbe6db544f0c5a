"""Which engine runs a sentence-transformers model: ONNX Runtime where the model can be exported, else torch."""

from __future__ import annotations

import os
import shutil
import warnings
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from retriever.embedders.base import Embedder, EmbedderSettings
from retriever.embedders.onnx_engine import ABOUT, OnnxEmbedder
from retriever.embedders.onnx_export import (
    CacheFails,
    CannotExport,
    export,
    export_folder,
    identity_of,
    known_refusal,
    missing_packages,
    note_refusal,
)
from retriever.embedders.packaged import NAME as MINI_LM
from retriever.embedders.packaged import SHA256, packaged_folder
from retriever.embedders.sentence_transformer import SentenceTransformerEmbedder
from retriever.embedders.torch_models import ORGANISATION, hub_folder, model_folder
from retriever.errors import EmbedderError, InvalidInput
from retriever.listening import Note

_DRIVERS = (Path("/dev/nvidiactl"), Path("/dev/kfd"))
_NONE_VISIBLE = ("", "-1")
"""What CUDA_VISIBLE_DEVICES says when every accelerator is hidden."""


class Origin(Protocol):
    """Where a model comes from that has no folder of its own.

    Attributes:
        name: Its canonical name.
        digest: What tells its files from any other model's.
    """

    @property
    def name(self) -> str: ...  # noqa: D102

    @property
    def digest(self) -> str: ...  # noqa: D102

    def folder(self) -> AbstractContextManager[Path]:
        """A folder to load it from, there as long as the context."""


def load_transformer(
    settings: EmbedderSettings,
    note: Note,
    *,
    packaged: bool = False,
    origin: Origin | None = None,
) -> Embedder:
    """A model by name or from a folder, run by the engine that the settings name or that suits best.

    Args:
        settings: Name, engine, device, revision, prompts and batch size.
        note: Told in one line why a model is run by torch that nobody asked to be.
        packaged: Whether it is all-MiniLM-L6-v2 from the installed package.
        origin: Where it comes from instead of the name.

    Raises:
        EmbedderError: The model cannot be had, is damaged, or needs code of its own; or it cannot be exported and the
            settings ask for `onnx`.
        InvalidInput: The settings ask for bfloat16, which is decided by a pool, see `load_embedder`.
    """
    _refuse_rounding(settings)
    if settings.engine == "torch" or (settings.engine is None and _on_accelerator(settings)):
        return _by_torch(settings, packaged=packaged, origin=origin)
    why = missing_packages()
    folder = None if why else _export_of(settings, packaged=packaged, origin=origin)
    if folder is not None and (folder / ABOUT).is_file():
        try:
            return OnnxEmbedder.open(folder, settings)
        except EmbedderError as error:
            note(f"{error.seen}: the model is exported again")
            shutil.rmtree(folder, ignore_errors=True)
    if folder is not None and settings.engine is None:
        why = known_refusal(folder)
    # What is exported must not stand on an accelerator, which the library would choose by itself.
    model = _by_torch(replace(settings, device="cpu") if why is None else settings, packaged=packaged, origin=origin)
    if why is None:
        # A model that was downloaded just now has a folder only now.
        folder = folder or _export_of(settings, packaged=packaged, origin=origin)
        try:
            if folder is None:
                raise CacheFails("its files are not in the cache of the Hugging Face Hub")
            export(model, folder)
            return OnnxEmbedder.open(folder, settings)
        except CannotExport as error:
            why = str(error)
            if folder is not None and not isinstance(error, CacheFails):
                note_refusal(folder, why)
    if settings.engine == "onnx":
        raise EmbedderError(f"model {model.name} cannot be run by ONNX Runtime: {why}", fix="leave the engine out")
    note(f"{model.name} is run by torch, which takes seconds to start: {why}")
    return model


def _refuse_rounding(settings: EmbedderSettings) -> None:
    if settings.precision == "bfloat16":
        raise InvalidInput(
            "precision 'bfloat16' without a pool to measure it on",
            fix="build an index with it; queries and additions are embedded in float32",
        )


def _on_accelerator(settings: EmbedderSettings) -> bool:
    """Whether torch would run it on something faster than the CPU; where there is no driver, torch is not imported."""
    if settings.device is not None:
        return settings.device != "cpu"
    if os.environ.get("CUDA_VISIBLE_DEVICES", "all").strip() in _NONE_VISIBLE:
        return False
    # A driver alone is not enough, but only where there is one are the seconds spent that importing torch takes.
    return any(driver.exists() for driver in _DRIVERS) and _torch_finds_one()


def _torch_finds_one() -> bool:
    """Whether torch is there, was built for an accelerator, and finds one."""
    try:
        import torch
    except ImportError:
        return False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about a driver that is too old for it
        return bool(torch.cuda.is_available())  # ROCm goes by that name too


def _by_torch(settings: EmbedderSettings, *, packaged: bool, origin: Origin | None) -> SentenceTransformerEmbedder:
    if origin is not None:
        with origin.folder() as folder:
            return SentenceTransformerEmbedder.load(settings, source=folder, name=origin.name)
    if packaged:
        return SentenceTransformerEmbedder.load(settings, source=packaged_folder(), name=MINI_LM)
    return SentenceTransformerEmbedder.load(settings)


def _export_of(settings: EmbedderSettings, *, packaged: bool, origin: Origin | None) -> Path | None:
    """Where the export of a model is, or would be; None for a model that has to be downloaded first.

    That of the packaged model is found by what its weights must be; they are looked at when it is made.
    """
    if packaged:
        return export_folder(MINI_LM, SHA256)
    if origin is not None:
        return export_folder(origin.name, f"{origin.name} {origin.digest}")
    folder = model_folder(settings.name) or hub_folder(settings.name, settings.revision)
    name = settings.name.removeprefix(ORGANISATION)
    return None if folder is None else export_folder(name, f"{name} {identity_of(folder)}")

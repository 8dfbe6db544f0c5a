"""Text to unit vectors, one file per family."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from dataclasses import fields, replace
from inspect import getattr_static
from typing import TypeAlias, cast

from retriever.embedders.base import (
    Embedder,
    EmbedderSettings,
    Prompts,
    Vectors,
    encode_checked,
    fingerprint,
    prompts_of,
    same_space,
)
from retriever.embedders.bfloat16 import why_not_in_bfloat16
from retriever.embedders.function import FunctionEmbedder, qualified_name
from retriever.embedders.latent_semantic import LatentSemanticEmbedder
from retriever.embedders.openai_compatible import OpenAIEmbedder
from retriever.embedders.packaged import NAME as MINI_LM
from retriever.embedders.packaged import is_packaged
from retriever.embedders.sentence_transformer import SentenceTransformerEmbedder
from retriever.embedders.static import PREFIX as STATIC
from retriever.embedders.static import StaticEmbedder
from retriever.embedders.torch_models import ORGANISATION, model_folder
from retriever.embedders.transformer import load_transformer
from retriever.embedders.tuned import PREFIX as TUNED
from retriever.embedders.tuned import TunedModel
from retriever.errors import EmbedderError, InvalidInput
from retriever.listening import Note

__all__ = [
    "Embedder",
    "EmbedderSettings",
    "EmbedderSource",
    "LatentSemanticEmbedder",
    "Prompts",
    "StaticEmbedder",
    "TunedModel",
    "Vectors",
    "encode_checked",
    "fingerprint",
    "fitted_name",
    "is_tuned",
    "load_embedder",
    "prompts_of",
    "same_space",
]

EmbedderSource: TypeAlias = EmbedderSettings | str | Embedder | Callable[[list[str]], object]

_OPENAI = "openai:"
_LATENT = ("latent", LatentSemanticEmbedder.NAME)
_ALL = frozenset(field.name for field in fields(EmbedderSettings))


def load_embedder(
    wanted: EmbedderSource = "auto",
    *,
    note: Note,
    pool_texts: Callable[[], Iterable[str]] | None = None,
) -> Embedder:
    """The embedder that a name, settings, a function or an object stands for.

    Names: `auto` is all-MiniLM-L6-v2, from the installed package when there is one, else as sentence-transformers
    finds or downloads it, else a latent-semantic embedder fitted on the pool; `latent` is the latter; `static:NAME` is
    a static embedder distilled from the transformer of that name over the pool's words; `openai:MODEL` is an endpoint;
    anything else is the name or the folder of a sentence-transformers model.

    Objects: one with `name`, `dim` and `encode` is taken as it is; a loaded SentenceTransformer, another object with
    `encode`, and a function are wrapped.

    Args:
        wanted: What to load.
        note: Called with one line when `auto` falls back to the latent-semantic embedder, or bfloat16 to float32.
        pool_texts: Gives the texts that an embedder is fitted or measured on; None: it must not be needed.

    Raises:
        InvalidInput: A setting that the family does not use, a name that stands for an object, `latent`,
            `static:NAME` or bfloat16 without a pool, or an object that is no embedder.
        EmbedderError: The model cannot be loaded, or is not the one it claims to be.
        MissingDependency: An optional package is missing.
    """
    if not isinstance(wanted, str | EmbedderSettings):
        return _given(wanted)
    settings = EmbedderSettings(wanted) if isinstance(wanted, str) else wanted
    if settings.name in _LATENT:
        _only(settings, frozenset())
        return _fitted(pool_texts)
    if settings.name.startswith(STATIC):
        return _distilled(settings, note, pool_texts)
    if settings.name.startswith(_OPENAI):
        return _endpoint(settings)
    if is_tuned(settings.name):
        raise InvalidInput(
            f"embedder {settings.name!r}, which only the index holds that it was made for",
            fix="open that index; any other model is named by its folder",
        )
    if settings.name.startswith("callable:"):
        raise InvalidInput(
            f"embedder {settings.name!r}, which only a Python object can be", fix="pass the same object as embedder="
        )
    _only(settings, _ALL - {"base_url"})
    if settings.precision == "bfloat16" and pool_texts is not None:
        return _in_bfloat16(settings, note, pool_texts)
    return _model(settings, note, pool_texts)


def _in_bfloat16(settings: EmbedderSettings, note: Note, pool_texts: Callable[[], Iterable[str]]) -> Embedder:
    """The model in bfloat16; where that is not to be had, as it is without the setting, and a line that says why."""
    exact = replace(settings, precision=None)
    model = _model(replace(exact, engine="torch", device="cpu"), note, pool_texts)
    if not isinstance(model, SentenceTransformerEmbedder):
        return model  # what stands in for it has been told
    why = why_not_in_bfloat16(model, pool_texts())
    if why is None:
        return model
    note(f"{model.name} is run in float32: {why}")
    return _model(exact, note, pool_texts)


def _model(settings: EmbedderSettings, note: Note, pool_texts: Callable[[], Iterable[str]] | None) -> Embedder:
    """A sentence-transformers model, in float32."""
    if settings.name == "auto":
        return _mini_lm(settings, note, pool_texts)
    if settings.name.removeprefix("sentence-transformers/") == MINI_LM:
        return _mini_lm(settings, note, None)
    return load_transformer(settings, note)


def _mini_lm(settings: EmbedderSettings, note: Note, pool_texts: Callable[[], Iterable[str]] | None) -> Embedder:
    """all-MiniLM-L6-v2, or what stands in for it when it is nowhere to be had and there is a pool to fit on.

    A package whose weights are wrong is an error, never a reason to fall back.
    """
    if settings.revision is None and is_packaged():
        return load_transformer(settings, note, packaged=True)
    try:
        return load_transformer(replace(settings, name=f"sentence-transformers/{MINI_LM}"), note)
    except EmbedderError as error:
        fix = "pip install 'demonstration-retriever[offline]' installs the model"
        if pool_texts is None:
            raise EmbedderError(error.seen, expected=error.expected, fix=fix) from error
        note(f"{error.seen}; using a latent-semantic embedder fitted on the pool instead, which finds less ({fix})")
    return _fitted(pool_texts)


def _fitted(pool_texts: Callable[[], Iterable[str]] | None) -> Embedder:
    if pool_texts is None:
        raise _no_pool("latent-semantic")
    return LatentSemanticEmbedder.fit(pool_texts())


def _no_pool(kind: str) -> InvalidInput:
    return InvalidInput(
        f"a {kind} embedder without a pool to fit it on",
        fix="build an index with it; an index that was built with it holds what it learned",
    )


def _distilled(settings: EmbedderSettings, note: Note, pool_texts: Callable[[], Iterable[str]] | None) -> Embedder:
    _only(settings, frozenset({"device", "revision", "batch_size", "engine"}))
    name = settings.name.removeprefix(STATIC)
    if not name.strip() or name.startswith((STATIC, _OPENAI, "callable:")) or name in _LATENT:
        raise InvalidInput(
            f"embedder {settings.name!r}", expected="static:MODEL, a sentence-transformers model, or auto"
        )
    if pool_texts is None:
        raise _no_pool("static")
    teacher = load_embedder(replace(settings, name=MINI_LM if name == "auto" else name), note=note)
    if not getattr(teacher, "has_tokens", False):
        raise InvalidInput(f"embedder {settings.name!r}", expected="a transformer; this model is static already")
    from retriever.embedders.distillation import Teacher, distill

    return distill(cast(Teacher, teacher), pool_texts(), note)


def fitted_name(asked: str) -> str | None:
    """The canonical name of an embedder that only an index holds, fitted on its pool; None for any other.

    Raises:
        EmbedderError: It names a folder that is not there.
    """
    if asked in _LATENT:
        return LatentSemanticEmbedder.NAME
    if is_tuned(asked):
        return asked
    if not asked.startswith(STATIC):
        return None
    model = asked.removeprefix(STATIC)
    if model == "auto":
        return STATIC + MINI_LM
    return STATIC + str(model_folder(model) or model.removeprefix(ORGANISATION))


def is_tuned(name: str) -> bool:
    """Whether a name is that of a model which was fine-tuned for an index."""
    return name.startswith(TUNED)


def _endpoint(settings: EmbedderSettings) -> Embedder:
    _only(settings, frozenset({"base_url", "query_prompt", "example_prompt", "batch_size"}))
    model = settings.name.removeprefix(_OPENAI)
    if not model:
        raise InvalidInput(f"embedder {settings.name!r}", expected="openai:MODEL")
    return OpenAIEmbedder(
        model,
        base_url=settings.base_url,
        prompts=settings.prompts(Prompts()),
        batch_size=settings.batch_size or 256,
    )


def _only(settings: EmbedderSettings, used: frozenset[str]) -> None:
    """Refuse settings that would be ignored."""
    unused = sorted(name for name in _ALL - used - {"name"} if getattr(settings, name) is not None)
    if unused:
        raise InvalidInput(f"embedder {settings.name!r} does not use {', '.join(unused)}", fix="leave it out")


def _given(thing: Embedder | Callable[[list[str]], object]) -> Embedder:
    encode = getattr(thing, "encode", None)
    prompts = getattr(thing, "prompts", None)
    prompts = prompts if isinstance(prompts, Prompts) else None
    if callable(encode):
        library = sys.modules.get("sentence_transformers")
        if library is not None and isinstance(thing, library.SentenceTransformer):
            return SentenceTransformerEmbedder(thing, name=f"callable:{qualified_name(thing)}")
        # Static look-ups: asking an embedder for its dimension may make it encode something.
        if all(getattr_static(thing, name, None) is not None for name in ("name", "dim")):
            return cast(Embedder, thing)
        return FunctionEmbedder(encode, name=f"callable:{qualified_name(thing)}", prompts=prompts)
    if callable(thing):
        return FunctionEmbedder(thing, prompts=prompts)
    raise InvalidInput(
        f"an embedder of type {type(thing).__name__}",
        expected="a name, EmbedderSettings, a function from texts to vectors, or an object with encode",
    )

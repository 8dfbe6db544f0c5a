"""Demonstration selection for in-context learning: from a pool of worked examples to a prompt.

    from retriever import Retriever

    with Retriever.build("tickets.jsonl", "tickets.index", input="text", output="intent") as r:
        prompt = r.prompt("my card still has not arrived", k=8)

A name is imported from its module when it is first used, so that `import retriever` costs nothing by itself.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from retriever.embedders import Embedder, EmbedderSettings
    from retriever.errors import RetrieverError
    from retriever.evaluation.evaluate import evaluate
    from retriever.evaluation.tune import tune
    from retriever.example import Example
    from retriever.formats import BadRow, Fields, Limits
    from retriever.prompting import Prompt, Template
    from retriever.prompts import PromptOptions
    from retriever.ranking.recipe import Recipe
    from retriever.retriever import Retriever, Update
    from retriever.selection import Demonstration, Dropped, Selection
    from retriever.settings import IndexSettings

__all__ = [
    "BadRow",
    "Demonstration",
    "Dropped",
    "Embedder",
    "EmbedderSettings",
    "Example",
    "Fields",
    "IndexSettings",
    "Limits",
    "Prompt",
    "PromptOptions",
    "Recipe",
    "Retriever",
    "RetrieverError",
    "Selection",
    "Template",
    "Update",
    "evaluate",
    "tune",
]

_MODULES = {
    "BadRow": "formats",
    "Demonstration": "selection",
    "Dropped": "selection",
    "Embedder": "embedders",
    "EmbedderSettings": "embedders",
    "Example": "example",
    "Fields": "formats",
    "IndexSettings": "settings",
    "Limits": "formats",
    "Prompt": "prompting",
    "PromptOptions": "prompts",
    "Recipe": "ranking.recipe",
    "Retriever": "retriever",
    "RetrieverError": "errors",
    "Selection": "selection",
    "Template": "prompting",
    "Update": "retriever",
    "evaluate": "evaluation.evaluate",
    "tune": "evaluation.tune",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

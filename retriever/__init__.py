"""Demonstration selection for in-context learning: from a pool of worked examples to a prompt.

from retriever import Retriever

with Retriever.build("tickets.jsonl", "tickets.index", input="text", output="intent") as r:
prompt = r.prompt("my card still has not arrived", k=8)
"""

from retriever.embedders import Embedder, EmbedderSettings
from retriever.errors import RetrieverError
from retriever.example import Example
from retriever.formats import BadRow, Fields, Limits
from retriever.prompting import Prompt, Template
from retriever.ranking.recipe import Recipe
from retriever.retriever import PromptOptions, Retriever
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
]

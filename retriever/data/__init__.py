"""The built-in sample: a support desk's pool of messages with intents and replies, and queries to it."""

from __future__ import annotations

import json
from importlib.resources import files

from retriever.example import Example


def sample_pool() -> list[Example]:
    """The examples of the sample pool."""
    return _read("support_pool.jsonl")


def sample_queries() -> list[Example]:
    """The sample queries, with the reply that a good agent would give."""
    return _read("support_queries.jsonl")


def _read(name: str) -> list[Example]:
    lines = files(__name__).joinpath(name).read_text(encoding="utf-8").strip().split("\n")
    return [Example(**json.loads(line)) for line in lines]

"""Batch export: selections or finished prompts for many queries, in input order, one record each.

    demos               the demonstrations, in prompt order, with ranks and scores
    prompts             the same, and the prompt as text
    messages            the same, and the prompt as messages
    openai-batch        requests as OpenAI's batch endpoint takes them, and nothing else
    anthropic-batch     requests as Anthropic's message batches take them, and nothing else

The output file appears whole or not at all.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from retriever.errors import InvalidInput
from retriever.example import Example, Json
from retriever.formats import open_writer, writer_format
from retriever.prompting import BatchSettings, anthropic_batch, openai_batch
from retriever.ranking.recipe import Recipe
from retriever.retriever import PromptOptions, Retriever
from retriever.selection import Selection

FORMS = ("demos", "prompts", "messages", "openai-batch", "anthropic-batch")
STDOUT = "-"


@dataclass(frozen=True)
class ExportSettings:
    """What is exported.

    Attributes:
        form: One of `FORMS`.
        recipe: How demonstrations are selected.
        prompt: How prompts are assembled.
        batch: Model and limits of the batch forms, which need them.

    Raises:
        InvalidInput: An unknown form, a batch form without its settings, or settings without a batch form.
    """

    form: str = "demos"
    recipe: Recipe = field(default_factory=Recipe)
    prompt: PromptOptions = field(default_factory=PromptOptions)
    batch: BatchSettings | None = None

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise InvalidInput(f"export as {self.form!r}", expected=f"one of {', '.join(FORMS)}")
        if self.form.endswith("-batch") != (self.batch is not None):
            wanted = "a model for the batch form" if self.batch is None else "no model outside the batch forms"
            raise InvalidInput(f"export as {self.form!r}, model {self.batch and self.batch.model!r}", expected=wanted)


def export(
    retriever: Retriever,
    queries: Iterable[Example],
    path: str | Path,
    settings: ExportSettings,
    *,
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> int:
    """Writes one record per query; memory does not grow with their number.

    Args:
        retriever: The index.
        queries: The queries, read once.
        path: A `.jsonl` or `.parquet` file, or `-` for JSON Lines on standard output.
        settings: What to write.
        progress: Told how many records are written; the total is 0 for unknown.

    Returns:
        How many records were written.

    Raises:
        InvalidInput: A suffix that is not known, a query or an option that cannot be used. No file is left then.
        OSError: The disk is full or failed. No file is left then.
    """
    kind = writer_format(path)
    count = 0
    with _output(path) as file, open_writer(file, kind) as writer:
        for count, selection in enumerate(retriever.select_many(queries, recipe=settings.recipe), start=1):
            writer.write(record(retriever, selection, settings))
            progress("exporting", count, 0)
    return count


def record(retriever: Retriever, selection: Selection, settings: ExportSettings) -> dict[str, Json]:
    """The record of one query."""
    if settings.form == "demos":
        return _selected(selection)
    prompt = retriever.prompt(selection, prompt_options=settings.prompt)
    if settings.batch is not None:
        request = openai_batch if settings.form == "openai-batch" else anthropic_batch
        return request(prompt, custom_id=selection.query.id, settings=settings.batch)
    chosen = _selected(selection)
    chosen["tokens"] = prompt.tokens
    chosen["skipped"] = [skipped.example_id for skipped in prompt.skipped]
    if settings.form == "messages":
        chosen["messages"] = [dict(message) for message in prompt.messages]
    else:
        chosen["prompt"] = prompt.text
    return chosen


def _selected(selection: Selection) -> dict[str, Json]:
    chosen = selection.in_prompt_order
    return {
        "query_id": selection.query.id,
        "query": selection.query.to_dict(),
        "demonstration_ids": [demonstration.example.id for demonstration in chosen],
        "scores": [demonstration.score for demonstration in chosen],
        "demonstrations": [demonstration.to_dict() for demonstration in chosen],
        "dropped": [{"id": dropped.id, "reason": dropped.reason} for dropped in selection.dropped],
        "notes": list(selection.notes),
        "recipe": selection.recipe.to_dict(),
        "generation": selection.generation,
        "revision": selection.revision,
    }


@contextlib.contextmanager
def _output(path: str | Path) -> Iterator[BinaryIO]:
    """A file that gets its name only when it is complete and on the disk."""
    if str(path) == STDOUT:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    target = Path(path)
    if not target.parent.is_dir():
        raise InvalidInput(f"no folder {target.parent} to write {target.name} in", fix="make it first")
    temporary = target.with_name(f".{target.name}.tmp-{os.getpid()}")
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)

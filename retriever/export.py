"""Batch export: selections or finished prompts for many queries, in input order, one record each.

    demos               the demonstrations, in prompt order, with ranks and scores
    prompts             the same, and the prompt as text
    messages            the same, and the prompt as messages
    openai-batch        requests as OpenAI's batch endpoint takes them, and nothing else
    anthropic-batch     requests as Anthropic's message batches take them, and nothing else

A token budget, what was skipped for it and every count are about the form that is written.

The output file appears whole or not at all. Until then the records stand in a partial file beside it, from which an
export that was interrupted goes on; see `retriever.partial`.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path

from retriever.errors import InvalidInput
from retriever.example import Example, Json
from retriever.formats import open_writer, writer_format
from retriever.listening import Note, Progress, log_note, silent
from retriever.partial import open_partial
from retriever.prompting import BatchSettings, Template, anthropic_batch, load_counter, load_template, openai_batch
from retriever.prompting.assembler import Form
from retriever.prompts import PromptOptions
from retriever.ranking.cross_encoder import reranker_identity
from retriever.ranking.recipe import Recipe
from retriever.retriever import Retriever
from retriever.selection import Selection

FORMS = ("demos", "prompts", "messages", "openai-batch", "anthropic-batch")
STDOUT = "-"


@dataclass(frozen=True)
class ExportSettings:
    """What is exported.

    Attributes:
        form: One of `FORMS`.
        recipe: How demonstrations are selected; None for the index's own recipe.
        prompt: How prompts are assembled; `form` follows from what is exported and need not be given.
        batch: Model and limits of the batch forms, which need them.

    Raises:
        InvalidInput: An unknown form, a batch form without its settings, or settings without a batch form; a prompt
            whose form is not the one that is exported.
    """

    form: str = "demos"
    recipe: Recipe | None = None
    prompt: PromptOptions = field(default_factory=PromptOptions)
    batch: BatchSettings | None = None

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise InvalidInput(f"export as {self.form!r}", expected=f"one of {', '.join(FORMS)}")
        if self.form.endswith("-batch") != (self.batch is not None):
            wanted = "a model for the batch form" if self.batch is None else "no model outside the batch forms"
            raise InvalidInput(f"export as {self.form!r}, model {self.batch and self.batch.model!r}", expected=wanted)
        fitted = self.prompt.get("form", self.prompt_form)
        if self.form != "demos" and fitted != self.prompt_form:
            raise InvalidInput(f"export as {self.form!r}, fitted as {fitted!r}", expected=f"{self.prompt_form!r}")

    @property
    def prompt_form(self) -> Form:
        """The form of the prompts that are written."""
        return "text" if self.form == "prompts" else "messages"


def export(
    retriever: Retriever,
    queries: Iterable[Example],
    path: str | Path,
    settings: ExportSettings,
    *,
    resume: bool = False,
    note: Note = log_note,
    progress: Progress = silent,
) -> int:
    """Writes one record per query; memory does not grow with their number.

    What interrupts it leaves a partial file, if it held a record already, and no file at the path.

    Args:
        retriever: The index.
        queries: The queries, read once.
        path: A `.jsonl`, `.parquet`, `.csv` or `.tsv` file, or `-` for JSON Lines on standard output.
        settings: What to write.
        resume: Whether to go on from the partial file of an export that was interrupted, if there is one. The result
            is the same, to the byte, as without the interruption; no record is made or written twice.
        note: Told in one line what a reader should know; by default the logger `retriever` warns.
        progress: Told how many records are written; the total is 0 for unknown.

    Returns:
        How many records there are, those from before an interruption included.

    Raises:
        InvalidInput: A suffix that is not known, a query or an option that cannot be used; a partial file that another
            export is writing; with `resume`, one that is not of these settings, this index or these queries.
        MissingDependency: Parquet without pyarrow.
        StorageError: The disk is full or failed.
        OSError: Standard output cannot be written to.
    """
    settings = replace(settings, recipe=_recipe(retriever, settings))
    kind = writer_format(path)
    if kind in ("csv", "tsv") and settings.batch is not None:
        raise InvalidInput(f"{settings.form} to {path}", expected="a .jsonl or .parquet file for the batch forms")
    if str(path) == STDOUT:
        return _export_to_stdout(retriever, queries, settings, resume=resume, progress=progress)
    target = Path(path)
    if not target.parent.is_dir():
        raise InvalidInput(f"no folder {target.parent} to write {target.name} in", fix="make it first")
    open_writer(io.BytesIO(), kind)  # a package that is missing is told now, not after hours
    remaining = iter(queries)
    source = made_from(retriever, settings)
    with open_partial(target, source, remaining, resume=resume, note=note, progress=progress) as partial:
        for selection in retriever.select_many(remaining, recipe=settings.recipe):
            partial.write(selection.query, record(retriever, selection, settings))
            progress("exporting", partial.count, 0)
        partial.publish(target, kind)
    return partial.count


def _export_to_stdout(
    retriever: Retriever,
    queries: Iterable[Example],
    settings: ExportSettings,
    *,
    resume: bool,
    progress: Progress,
) -> int:
    if resume:
        raise InvalidInput("resume with standard output", expected="a file, which can be gone on with")
    count = 0
    with open_writer(sys.stdout.buffer, "jsonl") as writer:
        for count, selection in enumerate(retriever.select_many(queries, recipe=settings.recipe), start=1):
            writer.write(record(retriever, selection, settings))
            progress("exporting", count, 0)
    sys.stdout.buffer.flush()
    return count


def made_from(retriever: Retriever, settings: ExportSettings) -> dict[str, Json]:
    """All that decides the records beside the queries: equal values give equal records, wherever the index lies.

    Files are named by their content. Only the embedder's engine is left out: of the same model, one on other hardware
    may give vectors with other last bits.
    """
    options = settings.prompt
    template = options.get("template", "io")
    recipe = _recipe(retriever, settings)
    made: dict[str, Json] = {
        "program": version("demonstration-retriever"),
        "form": settings.form,
        "recipe": recipe.to_dict(),
        "index": _index(retriever),
    }
    if recipe.rerank.model is not None:
        made["reranker"] = reranker_identity(recipe.rerank.model)
    if settings.form != "demos":
        made["template"] = asdict(template if isinstance(template, Template) else load_template(template))
        made["prompt"] = {
            "slots": dict(options.get("slots", {})),
            "form": settings.prompt_form,
            "collisions": options.get("collisions", "error"),
            "zero_shot": options.get("zero_shot", False),
            "counter": load_counter(recipe.budget.counter).name,
        }
    if settings.batch is not None:
        made["batch"] = asdict(settings.batch)
    return made


def _recipe(retriever: Retriever, settings: ExportSettings) -> Recipe:
    return retriever.effective_recipe(settings.recipe)


def _index(retriever: Retriever) -> dict[str, Json]:
    """What an index is known by; the chain tells its content."""
    info = retriever.info()
    fusion = info["fusion"]
    assert isinstance(fusion, dict)
    names = ("generation", "revision", "chain", "created_by", "settings", "embedder")
    return {**{name: info[name] for name in names}, "weight": fusion["weight"]}


def record(retriever: Retriever, selection: Selection, settings: ExportSettings) -> dict[str, Json]:
    """The record of one query."""
    if settings.form == "demos":
        return _selected(selection)
    prompt = retriever.prompt(selection, prompt_options={**settings.prompt, "form": settings.prompt_form})
    if settings.batch is not None:
        request = openai_batch if settings.form == "openai-batch" else anthropic_batch
        return request(prompt, custom_id=selection.query.id, settings=settings.batch)
    chosen = _selected(selection)
    chosen["tokens"] = prompt.tokens
    chosen["demonstration_tokens"] = {d.id: cost for d, cost in zip(prompt.demonstrations, prompt.costs, strict=True)}
    chosen["skipped"] = [skipped.example_id for skipped in prompt.skipped]
    chosen["shortened"] = [shortened.example_id for shortened in prompt.shortened]
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
        "recipe": dict(selection.recipe.data),
        "generation": selection.generation,
        "revision": selection.revision,
    }

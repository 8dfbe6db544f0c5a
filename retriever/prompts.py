"""From a selection to a prompt: template, slots and budget put together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TypeAlias, TypedDict

from retriever.errors import InvalidInput
from retriever.example import Example
from retriever.prompting import Prompt, Template, TokenCounter, assemble, load_counter, load_template
from retriever.prompting.assembler import Form
from retriever.prompting.text import Collisions
from retriever.selection import Selection

Labels: TypeAlias = Callable[[], Sequence[str]]


class PromptOptions(TypedDict, total=False):
    """How a prompt is assembled.

    Attributes:
        template: A built-in template's name, a TOML file, or a `Template`; default `io`.
        slots: Values for the template's own placeholders. `labels`, when the template uses it and it is not given, is
            the list of the pool's labels.
        form: Whether the budget is about `messages` (the default) or `text`.
        collisions: What the text form does about data that contains a delimiter: `error` (the default), `escape` or
            `drop`.
        zero_shot: Whether the template's zero-shot line is added when there is no demonstration.
    """

    template: str | Path | Template
    slots: Mapping[str, str]
    form: Form
    collisions: Collisions
    zero_shot: bool


def prompt_for(selection: Selection, options: PromptOptions, *, labels: Labels, max_characters: int) -> Prompt:
    """The prompt for a selection.

    Args:
        selection: Query and demonstrations.
        options: How they are put together.
        labels: Gives the pool's labels, should the template ask for them.
        max_characters: The most that query and demonstrations may have together.

    Raises:
        TemplateError: The template and what is to fill it do not fit.
        InvalidInput: The prompt is over the budget even without demonstrations that are not shared, too large, or an
            option cannot be used.
    """
    template = options.get("template", "io")
    template = template if isinstance(template, Template) else load_template(template)
    slots = dict(options.get("slots", {}))
    if "labels" in template.slots and "labels" not in slots:
        slots["labels"] = "\n".join(labels())
    budget = selection.recipe.budget
    ordered = selection.in_prompt_order
    examples = [demonstration.example for demonstration in ordered]
    _check_size([selection.query, *examples], max_characters)
    return assemble(
        selection.query,
        examples,
        priority=[demonstration.rank for demonstration in ordered],
        scores=[demonstration.score for demonstration in ordered],
        shared=[demonstration.shared for demonstration in ordered],
        template=template,
        slots=slots,
        budget=budget,
        counter=_counter(budget.counter),
        form=options.get("form", "messages"),
        collisions=options.get("collisions", "error"),
        zero_shot=options.get("zero_shot", False),
    )


def _check_size(examples: Sequence[Example], limit: int) -> None:
    size = sum(len(e.input_text) + len(e.output_text) + len(e.rationale or "") for e in examples)
    if size > limit:
        raise InvalidInput(
            f"a query and {len(examples) - 1} demonstrations of {size:,} characters",
            expected=f"at most {limit:,}",
            fix="ask for fewer, or raise the limit prompt_characters",
        )


@lru_cache(maxsize=16)
def _counter(name: str) -> TokenCounter:
    return load_counter(name)

"""From a selection to a prompt: template, slots and budget put together."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TypeAlias, TypedDict

from retriever.errors import InvalidInput, TemplateError
from retriever.example import Example
from retriever.prompting import Prompt, Template, TokenCounter, assemble, load_counter, load_template
from retriever.prompting.assembler import Form
from retriever.prompting.shortening import cut
from retriever.prompting.template import TEMPLATES
from retriever.prompting.text import Collisions
from retriever.ranking.recipe import Options
from retriever.selection import Selection

Labels: TypeAlias = Callable[[], Sequence[str]]


class PromptOptions(TypedDict, total=False):
    """How a prompt is assembled.

    Attributes:
        template: A built-in template's name, a TOML file, or a `Template`; default `io`.
        slots: Values for the template's own placeholders. `labels`, when the template uses it and it is not given, is
            the list of the pool's labels; the demonstrations of the template `classification` must then answer with
            labels.
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
        TemplateError: The template and what is to fill it do not fit; the pool's labels are to be listed, and there are
            none, or the template is `classification` and no demonstration answers with one.
        InvalidInput: The prompt is over the budget even without demonstrations that are not shared, too large, or an
            option is unknown or cannot be used.
    """
    _check_options(options)
    template = options.get("template", "io")
    template = template if isinstance(template, Template) else load_template(template)
    slots = dict(options.get("slots", {}))
    listed: Sequence[str] = ()
    if "labels" in template.slots and "labels" not in slots:
        listed = _listed(template, labels)
        slots["labels"] = "\n".join(listed)
    budget = selection.recipe.budget
    ordered = selection.in_prompt_order
    examples = [demonstration.example for demonstration in ordered]
    _check_size([selection.query, *examples], max_characters)
    prompt = assemble(
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
    if listed and template == TEMPLATES["classification"]:
        _check_answers(prompt.demonstrations, frozenset(listed))
    return prompt


def _listed(template: Template, labels: Labels) -> Sequence[str]:
    """The pool's labels, for a template that lists them."""
    if listed := labels():
        return listed
    raise TemplateError(
        f"template {template.name!r} lists the pool's labels, and no example has one",
        fix="give the slot 'labels' the answers, one a line, or build the index with labels",
    )


def _check_answers(demonstrations: Sequence[Example], listed: Collection[str]) -> None:
    """Refuses demonstrations none of which answers as the built-in template for classification says.

    A model would follow the list, the demonstrations, or now one and now the other, and nobody would be told.
    """
    if not demonstrations or any(one.output_text in listed for one in demonstrations):
        return
    first = demonstrations[0]
    raise TemplateError(
        "template 'classification' lists the pool's labels, and no demonstration answers with one: example "
        f"{first.id!r} has the label {first.label!r} and the output {cut(first.output_text, 40)!r}",
        expected="outputs that are labels",
        fix="give the slot 'labels' the outputs, one a line, or write a template that shows $label",
    )


_KINDS: Mapping[str, tuple[type | tuple[type, ...], str]] = {
    "template": ((str, Path, Template), "a built-in template's name, a TOML file, or a Template"),
    "slots": (Mapping, "a mapping from names to texts"),
    "zero_shot": (bool, "true or false"),
}
"""Of which type the options are that the assembler does not check."""


def _check_options(options: PromptOptions) -> None:
    """Refuses a key that would be ignored, and says what was meant: the nearest one, or an option of the recipe."""
    known = tuple(PromptOptions.__annotations__)
    for key in sorted(map(str, set(options).difference(known))):
        near = difflib.get_close_matches(key, known, 1)
        fix = f"write {near[0]}" if near else ""
        if key in Options.__annotations__:
            fix = f"give {key} beside prompt_options: it belongs to the recipe"
        raise InvalidInput(f"prompt option {key!r}", expected=f"one of {', '.join(known)}", fix=fix)
    for key, value in options.items():
        kind, expected = _KINDS.get(key, (object, ""))
        if not isinstance(value, kind):
            raise InvalidInput(f"prompt option {key} = {value!r}", expected=expected)


def _check_size(examples: Sequence[Example], limit: int) -> None:
    size = sum(len(e.input_text) + len(e.output_text) + len(e.rationale or "") for e in examples)
    if size > limit:
        raise InvalidInput(
            f"a query and {len(examples) - 1} demonstrations of {size:,} characters",
            expected=f"at most {limit:,}",
            fix="ask for fewer, or raise the limit prompt_characters (--max-prompt)",
        )


@lru_cache(maxsize=16)
def _counter(name: str) -> TokenCounter:
    return load_counter(name)

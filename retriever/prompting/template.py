"""Prompt templates: `$name` placeholders, filled in one pass, so that data is never read as a template.

The whole grammar is `$name`, `${name}` and `$$` for a dollar sign. A name is a field of an example (`input`, `output`,
`rationale`, `label`, `id`, `task`, `meta`), followed by keys into its mappings (`$meta.language`,
`${input.user-question}`), or a slot: a value that the caller gives by name (`$labels`, `$schema`). There is no
attribute access, no index into a list, no format specification, no conversion, no include and no second pass.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from types import MappingProxyType

from retriever.errors import TemplateError
from retriever.example import ANSWER, Example, render
from retriever.placeholders import Piece, parse

MAX_TEMPLATE_BYTES = 64 * 1024
"""The largest template file that is read."""

_EXAMPLE_FIELDS = tuple(f.name for f in fields(Example))
_TURNS = ("input", "output", "text_input", "text_output")


@dataclass(frozen=True)
class Template:
    r"""How examples, the query and the caller's values become the turns of a prompt.

    `separator` and `zero_shot` are literal text; in the others placeholders are filled. `system` takes slots only, and
    the turns of the query (`input`, `text_input`) must not mention `$output`, `$rationale` or `$label`.

    Attributes:
        name: What the template is called in messages and exports.
        system: The system message; empty for none.
        input: The user turn, of a demonstration and of the query.
        output: The assistant turn of a demonstration.
        text_input: The first part of a block in the text form.
        text_output: The second part; of the query only its literal start stands in the prompt, see `cue`.
        separator: What stands between the blocks of the text form.
        zero_shot: A line added to the query's turn, on request, when there are no demonstrations; empty for none.
    """

    name: str
    system: str = ""
    input: str = "$input"
    output: str = "$output"
    text_input: str = "Input: $input\n"
    text_output: str = "Output: $output"
    separator: str = "\n\n"
    zero_shot: str = ""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, str):
                raise TemplateError(f"{self._at(field.name)} is {value!r}", expected="text")
        if not self.separator:
            raise TemplateError(
                f"{self._at('separator')} is empty", expected="text between blocks, such as a blank line"
            )
        for field_name in ("system", *_TURNS):
            for name in self._names(field_name):
                self._check_place(field_name, name)

    @property
    def slots(self) -> frozenset[str]:
        """The placeholders that no example has a value for: the caller gives them."""
        names = (name for field_name in ("system", *_TURNS) for name in self._names(field_name))
        return frozenset(name for name in names if name.split(".")[0] not in _EXAMPLE_FIELDS)

    def check_slots(self, slots: Mapping[str, str]) -> None:
        """Checks that every placeholder has a source and every slot a placeholder.

        Raises:
            TemplateError: A placeholder that is neither a field of an example nor a slot; a slot that no placeholder
                uses, that is not text, or that has the name of a field of an example.
        """
        known = ", ".join(f"${name}" for name in (*_EXAMPLE_FIELDS, "meta.KEY", *slots))
        used: set[str] = set()
        for field_name in ("system", *_TURNS):
            for name in self._names(field_name):
                used.add(name)
                if name not in slots and name.split(".")[0] not in _EXAMPLE_FIELDS:
                    raise TemplateError(
                        f"{self._at(field_name)} has the unknown placeholder ${name}",
                        expected=f"one of {known}",
                        fix=f"give the slot {name!r} a value, or write $meta.{name} for a field of the example's meta",
                    )
        for name, value in slots.items():
            if name in _EXAMPLE_FIELDS:
                raise TemplateError(f"the slot {name!r} has the name of a field of an example", fix="rename the slot")
            if name not in used:
                raise TemplateError(
                    f"the slot {name!r} is given, and template {self.name!r} does not use it",
                    expected=f"slots among {', '.join(sorted(self.slots))}" if self.slots else "no slot",
                    fix=f"remove the slot, or put ${name} into the template",
                )
            if not isinstance(value, str):
                raise TemplateError(f"the slot {name!r} is {value!r}", expected="text")

    def render(self, field_name: str, example: Example | None, slots: Mapping[str, str]) -> list[Piece]:
        """The pieces of one field, every placeholder replaced by its value.

        Args:
            field_name: `system`, `input`, `output`, `text_input` or `text_output`.
            example: Where the values come from; None for `system`, which takes slots only.
            slots: The caller's values by name, as `check_slots` accepts them.

        Raises:
            TemplateError: The example has no value for a placeholder, or a value that is no JSON.
        """
        return [
            Piece(self._value(field_name, piece.text, example, slots), variable=True) if piece.variable else piece
            for piece in parse(getattr(self, field_name))
        ]

    def fill(self, field_name: str, example: Example | None, slots: Mapping[str, str]) -> str:
        """The text of one field; arguments and errors are those of `render`."""
        return "".join(piece.text for piece in self.render(field_name, example, slots))

    @property
    def cue(self) -> str:
        """What the text form ends with: `text_output` up to its first placeholder, without trailing white space."""
        pieces = parse(self.text_output)
        return pieces[0].text.rstrip() if pieces and not pieces[0].variable else ""

    def _value(self, field_name: str, name: str, example: Example | None, slots: Mapping[str, str]) -> str:
        if name in slots:
            return slots[name]
        if example is None:
            raise TemplateError(f"{self._at(field_name)} needs a value for ${name}", fix=f"give the slot {name!r}")
        value = example.value(name)
        if value is None:
            raise TemplateError(
                f"example {example.id!r} has no value for ${name} of {self._at(field_name)}",
                fix="give it one, leave the example out, or choose a template without the placeholder",
            )
        try:
            return render(dict(value) if isinstance(value, Mapping) else value)
        except (TypeError, ValueError) as error:
            raise TemplateError(f"${name} of example {example.id!r} is no JSON value: {error}") from error

    def _names(self, field_name: str) -> list[str]:
        try:
            return [piece.text for piece in parse(getattr(self, field_name)) if piece.variable]
        except TemplateError as error:
            raise TemplateError(
                f"{self._at(field_name)}: {error.seen}", expected=error.expected, fix=error.fix
            ) from None

    def _check_place(self, field_name: str, name: str) -> None:
        head = name.split(".")[0]
        if field_name == "system" and head in _EXAMPLE_FIELDS:
            raise TemplateError(
                f"{self._at('system')} mentions ${name}, a field of an example",
                expected="slots only, for the system message belongs to no example",
                fix="give the value as a slot of another name",
            )
        if field_name in ("input", "text_input") and head in ANSWER:
            raise TemplateError(
                f"{self._at(field_name)} mentions ${name}",
                expected="no part of the answer, for the query is rendered with it too",
                fix=f"move it to {field_name.replace('input', 'output')!r}",
            )

    def _at(self, field_name: str) -> str:
        return f"{field_name!r} of template {self.name!r}"


TEMPLATES: Mapping[str, Template] = MappingProxyType(
    {
        template.name: template
        for template in (
            Template("io"),
            Template(
                "classification",
                system="Classify the input. Answer with exactly one of these labels and nothing else:\n$labels",
                text_input="Text: $input\n",
                text_output="Label: $output",
            ),
            Template(
                "cot",
                output="$rationale\n\nAnswer: $output",
                text_input="Question: $input\n",
                text_output="Reasoning: $rationale\n\nAnswer: $output",
                zero_shot="Let's think step by step.",
            ),
            Template(
                "sql",
                system="Write one SQL query that answers the question. Answer with the query only.\n\nSchema:\n$schema",
                text_input="Question: $input\n",
                text_output="SQL: $output",
            ),
            Template(
                "program",
                system="Write a program that solves the task. Answer with code only.",
                text_input="Task: $input\n",
                text_output="Code:\n$output",
            ),
        )
    }
)
"""The built-in templates by name: `io` (the default), `classification` (slot `labels`), `cot`, `sql` (slot `schema`)
and `program`."""


def load_template(name_or_path: str | Path) -> Template:
    """A built-in template by its name, or one from a TOML file.

    The keys of the file are the attributes of `Template`, each a text. A key that is missing has the value of the
    built-in template `io`, and `name` that of the file's stem.

    Raises:
        TemplateError: Neither a built-in name nor a regular file; a file over 64 KiB, one that is no UTF-8 or no TOML,
            one with an unknown key or a value that is not text; a template that `Template` refuses.
    """
    if isinstance(name_or_path, str) and name_or_path in TEMPLATES:
        return TEMPLATES[name_or_path]
    path = Path(name_or_path)
    values = _read_toml(path)
    allowed = [f.name for f in fields(Template)]
    if unknown := [key for key in values if key not in allowed]:
        raise TemplateError(f"{path}: unknown keys {unknown}", expected=f"keys among {allowed}")
    texts: dict[str, str] = {"name": path.stem}
    for key, value in values.items():
        if not isinstance(value, str):
            raise TemplateError(f"{path}: {key} is {value!r}", expected="text in quotes")
        texts[key] = value
    try:
        return Template(**texts)
    except TemplateError as error:
        raise TemplateError(f"{path}: {error.seen}", expected=error.expected, fix=error.fix) from None


def _read_toml(path: Path) -> dict[str, object]:
    try:
        # Anything but a regular file could block or never end.
        if not path.is_file():
            raise TemplateError(
                f"{str(path)!r} is neither a built-in template nor a file",
                expected=f"one of {sorted(TEMPLATES)} or a path",
            )
        with path.open("rb") as file:
            content = file.read(MAX_TEMPLATE_BYTES + 1)
    except (OSError, ValueError) as error:
        if isinstance(error, TemplateError):
            raise
        raise TemplateError(f"the template {str(path)!r} cannot be read: {error}") from error
    if len(content) > MAX_TEMPLATE_BYTES:
        raise TemplateError(f"{path} is larger than {MAX_TEMPLATE_BYTES} bytes", expected="a template, not data")
    try:
        # Windows line ends are legal in TOML and kept inside multi-line strings; a prompt wants neither them nor a BOM.
        return tomllib.loads(content.decode("utf-8-sig").replace("\r\n", "\n"))
    except (ValueError, RecursionError) as error:
        raise TemplateError(f"{path} is no TOML in UTF-8: {error}") from error

"""Example: a worked input/output pair, the unit of a pool, of a query and of a demonstration."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import TypeAlias

from retriever.errors import InvalidInput

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"


def render(value: Json) -> str:
    """The text of a value: text as it is, anything else as compact JSON in its own key order."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, allow_nan=False)


def canonical(value: Json) -> str:
    """One text for equal values, whatever the order of their keys."""
    return json.dumps(value, sort_keys=True)


@dataclass(frozen=True, slots=True)
class Example:
    """A worked example. A query is one too, most often without an output.

    Attributes:
        id: Unique within a pool; given, or derived from the content by `content_id`.
        input: Text or any JSON value.
        output: Text or any JSON value; None when there is none.
        rationale: The reasoning between input and output; None when there is none.
        label: The class, or a list of classes; None when there is none.
        task: Which task the example belongs to, for pools that hold several.
        meta: Any further fields, for filters and templates.
    """

    id: str
    input: Json
    output: Json = None
    rationale: str | None = None
    label: Json = None
    task: str | None = None
    meta: Mapping[str, Json] = field(default_factory=dict)

    def value(self, path: str) -> Json:
        """The value at a dotted path, or None: `input`, `meta.language`, `input.question`.

        A first part that is no attribute of an example is looked up in `meta`, so that `language` finds
        `meta.language`.
        """
        head, *rest = path.split(".")
        found: object = getattr(self, head) if head in _ATTRIBUTES else self.meta.get(head)
        for part in rest:
            found = found.get(part) if isinstance(found, Mapping) else None
        return found  # type: ignore[return-value]

    @property
    def input_text(self) -> str:
        """The input as text."""
        return render(self.input)

    @property
    def output_text(self) -> str:
        """The output as text; empty when there is none."""
        return "" if self.output is None else render(self.output)

    @property
    def labels(self) -> frozenset[str]:
        """The label or labels as a set of texts; empty when there are none."""
        if self.label is None:
            return frozenset()
        return frozenset(render(label) for label in (self.label if isinstance(self.label, list) else [self.label]))

    def to_dict(self) -> dict[str, Json]:
        """The fields that are set, in declaration order; `Example(**d)` gives the example back."""
        content = {name: getattr(self, name) for name in _ATTRIBUTES[:-1] if getattr(self, name) is not None}
        return {**content, "meta": dict(self.meta)} if self.meta else content


_ATTRIBUTES = tuple(f.name for f in fields(Example))


def with_content_id(example: Example) -> Example:
    """The example with an id derived from the rest of it: 24 hexadecimal digits of a SHA-256 over sorted JSON."""
    content = example.to_dict()
    del content["id"]
    body = json.dumps(content, ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return replace(example, id=hashlib.sha256(body.encode()).hexdigest()[:24])


ANSWER = ("output", "rationale", "label")
"""What a query is judged by: fields of an example that a query whose answer is not known does not have."""


def unanswered(example: Example) -> Example:
    """The example as a query whose answer is not known."""
    return replace(example, output=None, rationale=None, label=None)


QueryLike: TypeAlias = "str | Mapping[str, Json] | Example"
"""What `as_query` takes."""


def as_query(query: QueryLike) -> Example:
    """A query from text, a mapping with at least `input`, or an example.

    Keys of a mapping that are no attribute of an example go into `meta`. A query without an id gets one from its
    content.

    Raises:
        InvalidInput: The mapping has no `input`, or holds what is no JSON or cannot be written as UTF-8.
    """
    if isinstance(query, Example):
        return query
    given: dict[str, Json] = {"input": query} if isinstance(query, str) else dict(query)
    if given.get("input") is None:
        raise InvalidInput(f"a query with the fields {sorted(given)}", expected="a field 'input'")
    known = {name: given.pop(name) for name in _ATTRIBUTES if name in given}
    meta = known.pop("meta", None) or {}
    if not isinstance(meta, Mapping):
        raise InvalidInput(f"a query whose meta is {meta!r}", expected="a mapping")
    known["meta"] = {**given, **meta}
    identity = known.pop("id", None)
    example = Example(id="" if identity is None else render(identity), **known)  # type: ignore[arg-type]
    try:
        return with_content_id(example) if identity is None else example
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"a query that cannot be written as JSON in UTF-8: {error}") from error

"""From a row to an example: which field of the row holds which attribute."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

from retriever.errors import InvalidInput, TemplateError
from retriever.example import Example, Json, canonical, render, with_content_id
from retriever.formats.values import Limits, RowError, check_size, keys_text, kind, parse_json, plain, plain_row, short
from retriever.placeholders import Piece, parse


@dataclass(frozen=True)
class Fields:
    """Where each attribute of an example is found in a row.

    Each is one of:

    - a field name: `question`;
    - a dotted path into objects: `data.text`, unless the row has a field of exactly that name;
    - a template over fields: `$title. $text`, `${first name}`, where `$$` is a dollar sign. A name may be a dotted
      path; it takes in as many dotted parts as follow (`${a}.b` ends it after `a`). Values that are not text are
      rendered as JSON. A template is filled in one pass; what a row holds is never read as a template;
    - None or empty: there is no such field.

    `input` must be in every row with a value other than null, and so must `output`, unless there is none or queries
    are read. Of the others, one with its default name may be absent; one that was chosen must be in every row, though
    it may be null, except that a chosen `id` must have a value. A template has no value where one of its fields is
    absent or null.

    Raises:
        InvalidInput: `input` is empty, or `meta` is a template.
        TemplateError: A template is malformed.
    """

    input: str = "input"
    output: str | None = "output"
    rationale: str | None = "rationale"
    label: str | None = "label"
    id: str | None = "id"
    task: str | None = "task"
    meta: str | None = "meta"

    def __post_init__(self) -> None:
        if not self.input:
            raise InvalidInput("no field for the input", expected="the name of a field, a dotted path or a template")
        for name in _ATTRIBUTES:
            locator = locate(getattr(self, name))
            if name == "meta" and locator is not None and locator.pieces:
                raise InvalidInput(f"the template {short(locator.text)} for meta", expected="the name of a field")


_ATTRIBUTES = tuple(f.name for f in fields(Fields))
_DEFAULT_NAMES = {f.name: f.default for f in fields(Fields)}


@dataclass(frozen=True, slots=True)
class Locator:
    """A parsed field name, path or template.

    Attributes:
        text: As it was written.
        pieces: The pieces of a template; empty when it is none.
    """

    text: str
    pieces: tuple[Piece, ...] = ()

    def find(self, row: Mapping[str, Json]) -> Json:
        """The value in the row.

        Raises:
            Absent: A field is not there, or null in a template.
        """
        if not self.pieces:
            return _lookup(row, self.text)
        return "".join(_filled(row, piece.text) if piece.variable else piece.text for piece in self.pieces)


def _filled(row: Mapping[str, Json], name: str) -> str:
    value = _lookup(row, name)
    if value is None:
        raise Absent(name)
    return render(value)


class Absent(LookupError):
    """A row has no such field."""

    def __init__(self, name: str) -> None:
        self.name = name
        super().__init__(name)


def locate(text: str | None) -> Locator | None:
    """The parsed form of one of `Fields`; None when there is no such field.

    Raises:
        TemplateError: A dollar sign starts no placeholder, or a template has none.
    """
    if not text:
        return None
    if "$" not in text:
        return Locator(text)
    pieces = parse(text)
    if not any(piece.variable for piece in pieces):
        raise TemplateError(f"{short(text)} names no field", expected="a placeholder such as $title")
    return Locator(text, pieces)


def _lookup(row: Mapping[str, Json], name: str) -> Json:
    if name in row:
        return row[name]
    head, *rest = name.split(".")
    if head not in row or not rest:
        raise Absent(name)
    found = row[head]
    for part in rest:
        if not isinstance(found, dict) or part not in found:
            raise Absent(name)
        found = found[part]
    return found


@dataclass(frozen=True, slots=True)
class Mapped:
    """A row as an example.

    Attributes:
        example: The example.
        id_given: Whether the row had an id; else it was derived from the content.
    """

    example: Example
    id_given: bool


class RowMapper:
    """Turns rows into examples.

    Args:
        chosen: Where the attributes are.
        limits: How large a row may be.
        queries: Whether an output may be absent and a row may be a plain text.
    """

    def __init__(self, chosen: Fields, limits: Limits, *, queries: bool) -> None:
        self._limits = limits
        self.queries = queries
        located = {name: locate(getattr(chosen, name)) for name in _ATTRIBUTES}
        self._locators = {name: locator for name, locator in located.items() if locator is not None}
        picked = {name for name, locator in self._locators.items() if locator.text != _DEFAULT_NAMES[name]}
        self._with_value = {"input"} | ({"output"} & self._locators.keys()) | ({"id"} & picked)
        self._present = self._with_value | picked
        if queries:
            self._with_value.discard("output")
            self._present.discard("output")

    def map(self, value: object) -> Mapped:
        """The row as an example.

        Raises:
            RowError: It cannot be one.
        """
        try:
            if isinstance(value, str) and self.queries:
                return self._mapped(plain_row({"input": value}, self._limits), {})
            if isinstance(value, Example):
                return self._from_example(value)
            if isinstance(value, Mapping):
                return self._from_row(plain_row(value, self._limits))
        except RecursionError:
            raise RowError("nested too deep") from None
        raise RowError(getattr(value, "reason", "") or f"{kind(value)}, expected an object")

    def _from_example(self, example: Example) -> Mapped:
        values = plain_row({name: getattr(example, name) for name in _ATTRIBUTES}, self._limits)
        for name in self._with_value - {"id"}:
            if values[name] is None:
                raise RowError(f"missing field {name!r}")
        return self._mapped(values, _meta_object(values.pop("meta"), self._limits))

    def _from_row(self, row: dict[str, Json]) -> Mapped:
        values = {name: self._value(name, row) for name in self._locators}
        meta = _meta_object(values.pop("meta", None), self._limits)
        used = {locator.text for locator in self._locators.values() if not locator.pieces}
        for name, value in row.items():
            if name in used or value is None:
                continue
            if name in meta and canonical(meta[name]) != canonical(value):
                raise RowError(f"field {short(name)} stands beside meta and in it, with different values")
            meta[name] = value
        return self._mapped(values, meta)

    def _value(self, attribute: str, row: dict[str, Json]) -> Json:
        locator = self._locators[attribute]
        try:
            value = locator.find(row)
            if value is None and attribute in self._with_value:
                raise Absent(locator.text)
        except Absent as absent:
            if attribute in self._present:
                raise RowError(f"missing field {short(absent.name)}; the row has {keys_text(_set(row))}") from None
            return None
        if locator.pieces:
            try:
                check_size(value, self._limits)
            except RowError as error:
                raise RowError(f"{attribute} from {short(locator.text)}: {error}") from None
        return value

    def _mapped(self, values: Mapping[str, Json], meta: dict[str, Json]) -> Mapped:
        example = Example(
            id="",
            input=values["input"],
            output=values.get("output"),
            rationale=_text("rationale", values.get("rationale")),
            label=_label(values.get("label")),
            task=_text("task", values.get("task")),
            meta=meta,
        )
        identity = _identity(values.get("id"))
        if identity is not None:
            return Mapped(replace(example, id=identity), id_given=True)
        return Mapped(with_content_id(example), id_given=False)


def _set(row: dict[str, Json]) -> dict[str, Json]:
    return {name: value for name, value in row.items() if value is not None}


def _meta_object(value: Json, limits: Limits) -> dict[str, Json]:
    """The fields of `meta` that are set; a text is accepted where it is an object in JSON, as tables store it."""
    if isinstance(value, str):
        parsed = parse_json(value)
        value = plain(parsed, limits.nesting) if isinstance(parsed, dict) else value
    if value is not None and not isinstance(value, dict):
        raise RowError(f"meta is {kind(value)}, expected an object; with no field named for meta it is kept as a field")
    return _set(value or {})


def _text(attribute: str, value: Json) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return render(value)
    raise RowError(f"{attribute} is {kind(value)}, expected a text or a number")


def _label(value: Json) -> Json:
    for label in value if isinstance(value, list) else [value]:
        if isinstance(label, list | dict) or (label is None and isinstance(value, list)):
            raise RowError(f"label holds {kind(label)}, expected a text, number or boolean, or a list of those")
    return value


def _identity(value: Json) -> str | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise RowError(f"id is {kind(value)}, expected a text or an integer")
    if value == "":
        raise RowError("id is empty, expected a text or an integer")
    return render(value)

"""What a row may hold: limits, and foreign values turned into plain JSON or refused with a reason."""

from __future__ import annotations

import datetime
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields

from retriever.errors import InvalidInput
from retriever.example import Json, render

_SHOWN = 60  # characters of untrusted text repeated in a message
_SHOWN_KEYS = 8


@dataclass(frozen=True)
class Limits:
    """How large things may be. A row over its limits is set aside; what is over the others is refused.

    Attributes:
        field_bytes: UTF-8 bytes of one rendered field, and of a text made by a template.
        row_bytes: Bytes of one row; also the most that is held in memory to find the end of a row.
        nesting: Levels of lists and objects inside each other in one field.
        csv_field_bytes: Bytes of one CSV or TSV field (what Python's `csv` allows by default).
        rows: Examples of a pool.
        k: Demonstrations of a selection.
        prompt_characters: Characters of a query and its demonstrations, all fields together.

    Raises:
        InvalidInput: A limit is below 1.
    """

    field_bytes: int = 16 * 1024 * 1024
    row_bytes: int = 64 * 1024 * 1024
    nesting: int = 100
    csv_field_bytes: int = 128 * 1024
    rows: int = 100_000_000
    k: int = 10_000
    prompt_characters: int = 64 * 1024 * 1024

    def __post_init__(self) -> None:
        for limit in fields(self):
            value = getattr(self, limit.name)
            if value < 1:
                raise InvalidInput(f"the limit {limit.name} is {value}", expected="at least 1")


class RowError(ValueError):
    """A row cannot be used; the message is the reason."""


@dataclass(frozen=True, slots=True)
class Unusable:
    """Stands in a row, or for a row, where a source found something that is no value."""

    reason: str


@dataclass(frozen=True, slots=True)
class Row:
    """A row as its source holds it.

    Attributes:
        line: The physical line where it starts in a text format, else its number; counted from 1.
        value: A mapping, an `Example`, a text (from memory only), or `Unusable`; from memory anything else, too.
    """

    line: int
    value: object


def _json_object(pairs: list[tuple[str, object]]) -> object:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        return Unusable(f"the key {short(twice)} stands twice in one object")
    return found


def _json_integer(digits: str) -> object:
    try:
        return int(digits)
    except ValueError:
        return Unusable(f"an integer of {len(digits)} digits is too long")


# NaN and Infinity are let through here and refused where values are checked, with the field that holds them.
_JSON = json.JSONDecoder(object_pairs_hook=_json_object, parse_int=_json_integer)


def parse_json(text: str) -> object:
    """The value of a JSON text; `Unusable` where there is none: not JSON, a key twice, too many digits."""
    try:
        return _JSON.decode(text)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}" if error.lineno > 1 else f"column {error.colno}"
        return Unusable(f"not JSON: {error.msg.removesuffix(' at')} at {where}")
    except RecursionError:
        return Unusable("nested too deep")


def short(text: str) -> str:
    """Untrusted text, quoted, escaped and cut, for a message."""
    return repr(text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "...")


def keys_text(row: Mapping[str, object]) -> str:
    """The first few keys of a row, for a message."""
    names = [short(key) for key in list(row)[:_SHOWN_KEYS]]
    return ", ".join(names + ["..."] * (len(row) > _SHOWN_KEYS)) or "no fields"


def kind(value: object) -> str:
    """What a value is, in the words of JSON; the name of its type when it is not JSON."""
    for types, name in _KINDS:
        if isinstance(value, types):
            return name
    return f"a value of type {type(value).__name__}"


_KINDS: tuple[tuple[type, str], ...] = (
    (type(None), "null"),
    (bool, "a boolean"),
    (int, "an integer"),
    (float, "a number with a fraction"),
    (str, "a text"),
    (list, "a list"),
    (Mapping, "an object"),
)


def plain_row(row: Mapping[str, object], limits: Limits) -> dict[str, Json]:
    """The row with every value as plain JSON.

    Numpy scalars and arrays become numbers and lists, tuples lists, dates and times ISO 8601 text.

    Raises:
        RowError: A value is no JSON (NaN, infinity, a lone surrogate, bytes, another type), is nested too deep or too
            large, or the whole row is.
    """
    checked: dict[str, Json] = {}
    total = 0
    for key, value in row.items():
        name = _key(key)
        try:
            checked[name] = plain(value, limits.nesting)
            total += check_size(checked[name], limits)
        except RowError as error:
            raise RowError(f"field {short(name)}: {error}") from None
    if total > limits.row_bytes:
        raise RowError(f"the fields hold {total} bytes, at most {limits.row_bytes} are allowed")
    return checked


def check_size(value: Json, limits: Limits) -> int:
    """The UTF-8 bytes of the rendered value.

    Raises:
        RowError: They are more than `limits.field_bytes`.
    """
    size = 8 if value is None or isinstance(value, int | float) else len(render(value).encode())
    if size > limits.field_bytes:
        raise RowError(f"{size} bytes, at most {limits.field_bytes} are allowed")
    return size


def plain(value: object, nesting: int) -> Json:
    """The value as plain JSON with at most `nesting` levels of lists and objects inside each other.

    Raises:
        RowError: It has no such form.
    """
    if type(value) is str:
        return _text(value)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, list | tuple | Mapping) and nesting < 1:
        raise RowError("nested too deep")
    if isinstance(value, Mapping):
        return {_key(key): plain(item, nesting - 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, nesting - 1) for item in value]
    if isinstance(value, int | float):
        return _number(value)
    return _foreign(value, nesting)


def _key(key: object) -> str:
    if not isinstance(key, str):
        raise RowError(f"the key {short(str(key))} is {kind(key)}, expected a text")
    return _text(key)


def _text(value: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise RowError(f"a lone surrogate {value[error.start]!r} at character {error.start}") from None
    return value


def _number(value: int | float) -> int | float:
    if isinstance(value, int):
        whole = int(value)
        try:
            str(whole)
        except ValueError:
            raise RowError(f"an integer of {whole.bit_length()} bits has too many digits") from None
        return whole
    number = float(value)
    if not math.isfinite(number):
        raise RowError(f"{'NaN' if math.isnan(number) else 'Infinity'} is not a finite number")
    return number


def _foreign(value: object, nesting: int) -> Json:
    if isinstance(value, Unusable):
        raise RowError(value.reason)
    if isinstance(value, str):  # a subclass: an enumeration, a numpy text
        return _text(str.__str__(value))
    if isinstance(value, datetime.date | datetime.time) and value == value:  # pandas' NaT is a date unequal to itself
        return value.isoformat()
    # Numpy hands out nanosecond times as integers, which would pass for numbers.
    tolist = getattr(value, "tolist", None)
    if callable(tolist) and getattr(getattr(value, "dtype", None), "kind", "m") not in "mM":
        return plain(tolist(), nesting)
    raise RowError(f"a value of type {type(value).__name__}, expected text, a number, a boolean, a list or an object")

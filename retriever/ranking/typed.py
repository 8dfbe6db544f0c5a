"""Frozen dataclasses from plain data: every key known, every value of the type that the dataclass declares."""

from __future__ import annotations

import types
import typing
from collections.abc import Hashable, Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from typing import TypeVar

from retriever.errors import InvalidInput

Section = TypeVar("Section")

_WORDS: Mapping[object, str] = {
    str: "a text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    type(None): "nothing",
}


@cache
def _types(kind: Hashable) -> Mapping[str, object]:
    """The declared types of the keys; working them out costs more than a selection's bookkeeping."""
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in fields(kind)}  # type: ignore[arg-type]


def section(kind: type[Section], values: Mapping[str, object], name: str) -> Section:
    """An instance from its keys; those left out have their defaults.

    Args:
        kind: A frozen dataclass.
        values: The keys, as TOML or JSON give them.
        name: What messages call the section.

    Raises:
        InvalidInput: An unknown key, or a value of another type than declared.
    """
    declared = _types(kind)  # type: ignore[arg-type]
    unknown = sorted(set(values) - set(declared))
    if unknown:
        raise InvalidInput(
            f"key {name}.{unknown[0]}", expected=f"one of {', '.join(declared)}" if declared else "no key here"
        )
    return kind(**{key: _typed(value, declared[key], f"{name}.{key}") for key, value in values.items()})


def _typed(value: object, wanted: object, key: str) -> object:
    """The value, with a list made a tuple and a whole number a float where that is what is declared."""
    for option in _alternatives(wanted):
        origin = typing.get_origin(option) or option
        if origin is typing.Literal:
            if isinstance(value, str) and value in typing.get_args(option):
                return value
        elif origin is tuple and isinstance(value, list | tuple):
            return tuple(_typed(item, typing.get_args(option)[0], key) for item in value)
        elif is_dataclass(origin) and isinstance(value, Mapping):
            return section(origin, value, key)  # type: ignore[arg-type]
        elif origin is float and type(value) is int:
            return float(value)
        elif isinstance(origin, type) and isinstance(value, origin) and not (origin is int and type(value) is bool):
            return value
    raise InvalidInput(f"{key} = {value!r}", expected=_shown(wanted))


def _alternatives(wanted: object) -> tuple[object, ...]:
    if isinstance(wanted, types.UnionType) or typing.get_origin(wanted) is typing.Union:
        return typing.get_args(wanted)
    return (wanted,)


def _shown(wanted: object) -> str:
    """A type in the words of whoever writes a recipe."""
    shown = []
    for option in _alternatives(wanted):
        origin = typing.get_origin(option) or option
        if origin is typing.Literal:
            shown.append(f"one of {', '.join(map(str, typing.get_args(option)))}")
        elif origin is tuple:
            shown.append("a list")
        else:
            shown.append(_WORDS.get(origin, "a table of keys"))
    return " or ".join(shown)

"""Filters: which examples may be chosen, by a small safe expression or a mapping.

    language == "en" and (priority <= 2 or not label in ["spam", "other"])
    "refund" in tags

A path names a field of the example (`label`, `input.question`) or of its `meta` (`language`, `meta.language`). The
operators are ==, !=, <, <=, >, >=, in, not in, and, or, not. Values are JSON: text in double or single quotes, numbers,
true, false, null, and lists of them. A missing field equals null; it is neither less nor greater than anything, and so
are values of different types. `value in path` asks whether a list field contains the value, or a text field the text.

A mapping says the same in data: {"language": "en", "label": ["a", "b"], "priority": {"<=": 2}} means equal, one of, and
compared; all must hold. The expression is parsed here and never handed to Python.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import TypeAlias

from retriever.errors import InvalidInput
from retriever.example import Example, Json, canonical

Predicate: TypeAlias = Callable[[Example], bool]

_TOKEN = re.compile(
    r"""\s*(?:
      (?P<number>-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?(?![\w.]))
    | (?P<text>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')
    | (?P<operator>==|!=|<=|>=|<|>|\(|\)|\[|\]|,)
    | (?P<word>[^\W\d][\w-]*(?:\.[\w-]+)*)
    )""",
    re.VERBOSE | re.DOTALL,
)
_QUOTED = re.compile(r"\\.|\"", re.DOTALL)
_AS_JSON = {"\\'": "'", '"': '\\"'}
_CONSTANTS: Mapping[str, Json] = {"true": True, "false": False, "null": None}
_KEYWORDS = {"and", "or", "not", "in", *_CONSTANTS}
_MAX_LENGTH = 10_000
_MAX_DEPTH = 50


def predicate(where: str | Mapping[str, Json]) -> Predicate:
    """The test that an expression or a mapping stands for.

    Raises:
        InvalidInput: It cannot be parsed; the message shows where.
    """
    return _parsed(where)[0] if isinstance(where, str) else _from_mapping(where)


def named_paths(where: str | Mapping[str, Json]) -> tuple[str, ...]:
    """The fields that an expression or a mapping names, each once.

    Raises:
        InvalidInput: As of `predicate`.
    """
    return _parsed(where)[1] if isinstance(where, str) else tuple(where)


@lru_cache(maxsize=64)
def _parsed(where: str) -> tuple[Predicate, tuple[str, ...]]:
    """An expression as a test, and its fields; a recipe asks when it is made, a selection when it is used."""
    parser = _Parser(where)
    return parser.parse(), tuple(dict.fromkeys(parser.paths))


def _from_mapping(where: Mapping[str, Json]) -> Predicate:
    tests: list[Predicate] = []
    for path, wanted in where.items():
        if isinstance(wanted, Mapping):
            tests.extend(_comparison(path, operator, value) for operator, value in wanted.items())
        else:
            tests.append(_comparison(path, "in" if isinstance(wanted, list) else "==", wanted))
    return lambda example: all(test(example) for test in tests)


def _comparison(path: str, operator: str, value: Json) -> Predicate:
    if operator not in _OPERATORS:
        raise InvalidInput(f"operator {operator!r} for {path!r}", expected=f"one of {', '.join(_OPERATORS)}")
    if operator.endswith("in") and not isinstance(value, list):
        raise InvalidInput(f"{path} {operator} {value!r}", expected="a list")
    test = _OPERATORS[operator]
    return lambda example: test(example.value(path), value)


def equal(first: Json, second: Json) -> bool:
    """Equality of JSON values: true is not 1, and text is not a number."""
    if isinstance(first, bool) or isinstance(second, bool):
        return first is second
    if isinstance(first, list) and isinstance(second, list):
        return len(first) == len(second) and all(map(equal, first, second))
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        return first.keys() == second.keys() and all(equal(first[key], second[key]) for key in first)
    return first == second


def equal_text(value: Json) -> str:
    """One text for all values that are `equal`, and for no others."""
    return canonical(_whole(value))


def _whole(value: Json) -> Json:
    """The value with whole numbers as integers: 1.0 equals 1."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list):
        return [_whole(one) for one in value]
    return {key: _whole(one) for key, one in value.items()} if isinstance(value, dict) else value


def _ordered(first: Json, second: Json, test: Callable[[int], bool]) -> bool:
    """A comparison of two numbers or two texts; false for anything else."""
    if isinstance(first, str) and isinstance(second, str):
        return test((first > second) - (first < second))
    numbers = [v for v in (first, second) if isinstance(v, int | float) and not isinstance(v, bool)]
    return len(numbers) == 2 and test((numbers[0] > numbers[1]) - (numbers[0] < numbers[1]))


def _member(value: Json, items: Json) -> bool:
    return isinstance(items, list) and any(equal(value, item) for item in items)


def _contains(field: Json, value: Json) -> bool:
    if isinstance(field, str):
        return isinstance(value, str) and value in field
    return _member(value, field)


_OPERATORS: Mapping[str, Callable[[Json, Json], bool]] = {
    "==": equal,
    "!=": lambda a, b: not equal(a, b),
    "<": lambda a, b: _ordered(a, b, lambda order: order < 0),
    "<=": lambda a, b: _ordered(a, b, lambda order: order <= 0),
    ">": lambda a, b: _ordered(a, b, lambda order: order > 0),
    ">=": lambda a, b: _ordered(a, b, lambda order: order >= 0),
    "in": _member,
    "not in": lambda a, b: not _member(a, b),
}


class _Parser:
    """Recursive descent over the tokens of an expression."""

    def __init__(self, source: str) -> None:
        if len(source) > _MAX_LENGTH:
            raise InvalidInput(f"a filter of {len(source):,} characters", expected=f"at most {_MAX_LENGTH:,}")
        self.source = source
        self.tokens = list(self._tokenize())
        self.place = 0
        self.depth = 0
        self.paths: list[str] = []

    def _tokenize(self) -> list[tuple[str, str, int]]:
        tokens, position = [], 0
        while self.source[position:].strip():
            match = _TOKEN.match(self.source, position)
            if match is None or match.lastgroup is None:
                raise self._error("an unexpected character", position)
            tokens.append((match.lastgroup, match[match.lastgroup], match.start(match.lastgroup)))
            position = match.end()
        return tokens

    def _error(self, seen: str, position: int | None = None) -> InvalidInput:
        if position is None:
            position = self.tokens[self.place][2] if self.place < len(self.tokens) else len(self.source)
        shown = f"{self.source[:position]}▸{self.source[position:]}"
        return InvalidInput(f"filter: {seen} at ▸ in: {shown}", expected='something like: language == "en"')

    def _next_is(self, *texts: str) -> bool:
        """Whether the next tokens are these operators or keywords."""
        ahead = self.tokens[self.place : self.place + len(texts)]
        return len(ahead) == len(texts) and all(
            kind in ("operator", "word") and text == wanted
            for (kind, text, _), wanted in zip(ahead, texts, strict=True)
        )

    def _accept(self, *texts: str) -> bool:
        found = self._next_is(*texts)
        self.place += len(texts) if found else 0
        return found

    def parse(self) -> Predicate:
        test = self._either()
        if self.place < len(self.tokens):
            raise self._error("something left over")
        return test

    def _either(self) -> Predicate:
        tests = [self._both()]
        while self._accept("or"):
            tests.append(self._both())
        return tests[0] if len(tests) == 1 else lambda example: any(test(example) for test in tests)

    def _both(self) -> Predicate:
        tests = [self._unary()]
        while self._accept("and"):
            tests.append(self._unary())
        return tests[0] if len(tests) == 1 else lambda example: all(test(example) for test in tests)

    def _unary(self) -> Predicate:
        self.depth += 1
        if self.depth > _MAX_DEPTH:
            raise self._error("nesting that is too deep")
        try:
            if self._accept("not"):
                inner = self._unary()
                return lambda example: not inner(example)
            if self._accept("("):
                test = self._either()
                if not self._accept(")"):
                    raise self._error("no closing parenthesis")
                return test
            return self._compare()
        finally:
            self.depth -= 1

    def _compare(self) -> Predicate:
        if not self._at_path():
            value = self._value()
            if not self._accept("in"):
                raise self._error("no 'in' after a value")
            path = self._path()
            return lambda example: _contains(example.value(path), value)
        path = self._path()
        for operator in sorted(_OPERATORS, key=len, reverse=True):
            if self._accept(*operator.split()):
                return self._compared(path, operator)
        raise self._error("no comparison")

    def _compared(self, path: str, operator: str) -> Predicate:
        start = self.place
        value = self._value()
        try:
            return _comparison(path, operator, value)
        except InvalidInput as error:
            self.place = start
            raise self._error(f"no list after '{operator}'") from error

    def _at_path(self) -> bool:
        if self.place >= len(self.tokens):
            return False
        kind, text, _ = self.tokens[self.place]
        return kind == "word" and text not in _KEYWORDS

    def _path(self) -> str:
        if not self._at_path():
            raise self._error("no field name")
        self.place += 1
        self.paths.append(self.tokens[self.place - 1][1])
        return self.paths[-1]

    def _value(self) -> Json:
        if self._accept("["):
            return self._list()
        if self.place >= len(self.tokens):
            raise self._error("no value")
        kind, text, _ = self.tokens[self.place]
        self.place += 1
        if kind == "text":
            return self._text(text)
        if kind == "number":
            return self._number(text)
        if text in _CONSTANTS:
            return _CONSTANTS[text]
        self.place -= 1
        raise self._error("no value")

    def _list(self) -> Json:
        self.depth += 1
        if self.depth > _MAX_DEPTH:
            raise self._error("nesting that is too deep")
        items: list[Json] = []
        while not self._accept("]"):
            if items and not self._accept(","):
                raise self._error("no comma")
            items.append(self._value())
        self.depth -= 1
        return items

    def _number(self, digits: str) -> Json:
        try:
            number: Json = json.loads(digits)
        except ValueError as error:  # more digits than Python converts
            self.place -= 1
            raise self._error("a number that is too long") from error
        return number

    def _text(self, quoted: str) -> str:
        inner = quoted[1:-1]
        if quoted[0] == "'":
            inner = _QUOTED.sub(lambda found: _AS_JSON.get(found[0], found[0]), inner)
        try:
            text: str = json.loads(f'"{inner}"', strict=False)
        except ValueError as error:
            self.place -= 1
            raise self._error("a bad escape") from error
        return text

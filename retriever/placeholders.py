"""Placeholders: `$name` in templates, wherever this project takes one.

The whole grammar is `$name`, `${any name}` and `$$` for a dollar sign, where a name may be dotted (`$meta.language`,
`${input.user question}`). There is no attribute access, no index into a list, no format specification, no conversion,
no include and no second pass: what a value contains is never read as a template.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple

from retriever.errors import TemplateError

_NAME = "[A-Za-z_][A-Za-z0-9_]*"
_KEY = r"[\w-](?:[\w -]*[\w-])?"
_PLACEHOLDER = re.compile(
    rf"\$(?:(?P<dollar>\$)|(?P<plain>{_NAME}(?:\.{_NAME})*)|\{{(?P<braced>{_KEY}(?:\.{_KEY})*)\}}|(?P<malformed>))"
)


class Piece(NamedTuple):
    """A stretch of a template.

    Attributes:
        text: Literal text; of a variable, its name before rendering and its value afterwards.
        variable: Whether it stands for a value.
    """

    text: str
    variable: bool


@lru_cache(maxsize=1024)
def parse(source: str) -> tuple[Piece, ...]:
    """The pieces of a template text, adjacent literals joined.

    Raises:
        TemplateError: A `$` that starts no placeholder; the message gives its position, counted from 0.
    """
    pieces: list[Piece] = []

    def literal(text: str) -> None:
        if pieces and not pieces[-1].variable:
            text = pieces.pop().text + text
        if text:
            pieces.append(Piece(text, variable=False))

    end = 0
    for match in _PLACEHOLDER.finditer(source):
        literal(source[end : match.start()])
        end = match.end()
        if match["dollar"]:
            literal("$")
        elif name := match["plain"] or match["braced"]:
            pieces.append(Piece(name, variable=True))
        else:
            around = source[match.start() : match.start() + 20]
            raise TemplateError(
                f"the '$' at position {match.start()} starts no placeholder: {around!r}",
                expected="$name, ${name} or ${name.key}",
                fix="write $$ for a dollar sign",
            )
    literal(source[end:])
    return tuple(pieces)

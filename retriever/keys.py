"""Keys: which text of an example is indexed, and the same for a query."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, fields

from retriever.errors import InvalidInput
from retriever.example import ANSWER, Example, render, unanswered
from retriever.placeholders import Piece, parse

_ATTRIBUTES = tuple(f.name for f in fields(Example))
_ALWAYS = ("id", "input")
"""Attributes that every example and every query has."""


@dataclass(frozen=True)
class Key:
    """The text that stands for an example or a query in the index; both sides are built by the same rule.

    An example of the pool that asks, to measure or to learn something, asks without its answer: by `input+output` the
    pool is indexed with its outputs, and asked by inputs alone.

    Attributes:
        spec: One of: a field (`input`, the default; `meta.title`); several fields joined by line breaks
            (`input+output`), where those that an example or query does not have are left out; or a template
            (`$task: $input`), where every field must be there.

    Raises:
        InvalidInput: The specification is empty, or names something that no example has.
        TemplateError: A malformed placeholder.
    """

    spec: str = "input"
    _pieces: tuple[Piece, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if "$" in self.spec:
            pieces = parse(self.spec)
        else:
            pieces = tuple(Piece(name.strip(), variable=True) for name in self.spec.split("+"))
        for piece in pieces:
            if piece.variable and piece.text.split(".")[0] not in _ATTRIBUTES:
                raise InvalidInput(
                    f"key {self.spec!r} names {piece.text!r}",
                    expected=f"one of {', '.join(_ATTRIBUTES)}, with meta.NAME for a further field",
                )
        object.__setattr__(self, "_pieces", pieces)

    def text(self, example: Example) -> str:
        """The key text of an example or query.

        Raises:
            InvalidInput: It lacks a field that the key needs.
        """
        if "$" in self.spec:
            return "".join(self._value(example, piece.text) if piece.variable else piece.text for piece in self._pieces)
        values = [example.value(piece.text) for piece in self._pieces]
        texts = [render(value) for value in values if value is not None]
        if not texts:
            raise self._missing(example, self.spec)
        return "\n".join(texts)

    def asked_text(self, example: Example) -> str:
        """The key text of an example that is asked as a query: without its output, rationale and labels.

        Raises:
            InvalidInput: Nothing is left of it, or the key needs the answer.
        """
        return self.text(unanswered(example) if self.names_answer else example)

    @property
    def names_answer(self) -> bool:
        """Whether a field of the answer is in it: output, rationale or label."""
        return any(piece.variable and piece.text.split(".")[0] in ANSWER for piece in self._pieces)

    @property
    def further(self) -> tuple[str, ...]:
        """The fields in it that a query may lack although they are none of the answer, such as `meta.title`."""
        names = [piece.text for piece in self._pieces if piece.variable]
        return tuple(name for name in names if name.split(".")[0] not in (*_ALWAYS, *ANSWER))

    @property
    def is_askable(self) -> bool:
        """Whether a query whose answer is not known has a key text for certain, as far as the answer is concerned."""
        return not self.names_answer or ("$" not in self.spec and any(piece.text in _ALWAYS for piece in self._pieces))

    def _value(self, example: Example, name: str) -> str:
        value = example.value(name)
        if value is None:
            raise self._missing(example, name)
        return render(value)

    def _missing(self, example: Example, name: str) -> InvalidInput:
        return InvalidInput(
            f"{example.id!r} has no {name!r}",
            expected=f"what the index key {self.spec!r} is made of",
            fix='give a query those fields too: {"input": ..., "' + name + '": ...}',
        )


def text_hash(text: str) -> int:
    """Tells most different key texts apart, in 64 bits: BLAKE2b of the UTF-8 bytes."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")

"""The text form of a prompt: blocks and a separator, for models that complete text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from retriever.errors import DelimiterCollision
from retriever.example import Example
from retriever.placeholders import Piece
from retriever.prompting.delimiters import delimiters_of
from retriever.prompting.template import Template

Collisions = Literal["error", "escape", "drop"]
"""What to do with data that contains a delimiter of the text form.

`error`: raise `DelimiterCollision`. `escape`: put a backslash into the delimiter, as `retriever.prompting.delimiters`
says, and raise where that does not help. `drop`: leave the demonstration out; the query and the slots of the system
message, which cannot be left out, raise.
"""


@dataclass(frozen=True)
class TextWriter:
    """Writes the blocks of one template under one collision policy.

    Attributes:
        template: Whose `text_input`, `text_output`, `separator`, `system` and `zero_shot` are used.
        slots: The caller's values by name.
        collisions: The policy.
    """

    template: Template
    slots: Mapping[str, str]
    collisions: Collisions

    def system(self) -> str:
        """The system message; empty when the template has none.

        Raises:
            DelimiterCollision: A slot contains a delimiter.
        """
        pieces = self.template.render("system", None, self.slots)
        return self._write(f"a slot of template {self.template.name!r}", pieces)

    def demonstration(self, example: Example) -> str:
        """The block of a demonstration.

        Raises:
            DelimiterCollision: It contains a delimiter, under every policy but `escape`, and under that when escaping
                does not help.
        """
        pieces = [
            *self.template.render("text_input", example, self.slots),
            *self.template.render("text_output", example, self.slots),
        ]
        return self._write(f"example {example.id!r}", pieces, example.id)

    def query(self, query: Example, *, trigger: bool) -> str:
        """The block of the query, which ends with the template's cue.

        Args:
            query: Its output, if it has one, is not read.
            trigger: Whether the template's zero-shot line follows the cue, after a space ("Zero-Shot-CoT" in Kojima et
                al. 2022).

        Raises:
            DelimiterCollision: As of `demonstration`.
        """
        pieces = self.template.render("text_input", query, self.slots)
        end = [self.template.cue]
        if trigger:
            end.append(self.template.zero_shot)
        pieces.append(Piece(" ".join(part for part in end if part), variable=False))
        return self._write(f"query {query.id!r}", pieces)

    def join(self, system: str, demonstrations: Sequence[str], query: str) -> str:
        """The whole prompt from its blocks."""
        return self.template.separator.join([*([system] if system else []), *demonstrations, query])

    def _write(self, where: str, pieces: Sequence[Piece], example_id: str | None = None) -> str:
        delimiters = delimiters_of(self.template)
        if self.collisions == "escape":
            pieces = [Piece(delimiters.escape(p.text), variable=True) if p.variable else p for p in pieces]
        separator = Piece(self.template.separator, variable=False)
        alone = (found for piece in pieces if piece.variable and (found := delimiters.find(piece.text)))
        collision = next(alone, None) or delimiters.find_across([separator, *pieces, separator])
        if collision is not None:
            raise DelimiterCollision(where, collision, example_id)
        return "".join(piece.text for piece in pieces)

r"""Delimiters of the text form: what they are, finding them in data, and making them inert.

In messages, data cannot be mistaken for structure. In text it can: an output that contains a line `Input: …` looks like
the next demonstration. The delimiters of a template are

- its labels, the literal lines of a block (`Input:`, `Output:`), at the start of a line, however indented; a label
  that follows a value on the same line (`… => $output`), anywhere;
- the tags in its literals (`</input>`), anywhere;
- its separator, when it has visible characters (`###`), or when a block does not start with a label. Otherwise a blank
  line alone is ordinary data: only the separator followed by a label starts a block;
- the role markers that chat models are trained on, whatever the template: `<|im_start|>` and all of that form,
  `[INST]`, `<<SYS>>`, `<s>`, `</s>`, `<start_of_turn>`, and at the start of a line `Human:`, `Assistant:`, `User:` and
  `System:`.

Escaping puts a backslash where it breaks the delimiter: before a label (`\Input:`), behind the first character of
anything else (`<\|im_start|>`, so that no tokenizer sees the marker). A delimiter that already has backslashes there
gets one more, so that `unescape` gives back every text. Other characters, NUL and bidirectional controls among them,
are left as they are.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from retriever.placeholders import Piece, parse
from retriever.prompting.template import Template

_BREAKS = "\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"
_ROLES = ("Assistant:", "Human:", "System:", "User:")
_MARKERS = (
    r"\|[\w.-]{1,64}\|>",
    r"｜[^｜<>\n]{1,64}｜>",
    r"/?s>",
    r"</?SYS>>",
    r"(?:start|end)_of_turn>",
    r"(?:bos|eos)>",
)
_TAG = re.compile(r"</?[A-Za-z][\w.:-]*>")


@dataclass(frozen=True)
class Delimiters:
    """The delimiters of one template, as patterns with the groups `head`, `slashes` and, looked ahead at, `tail`.

    Attributes:
        rules: What can be escaped: between `head` and `tail` any number of backslashes may stand.
        fixed: What cannot: a separator of one character.
    """

    rules: tuple[re.Pattern[str], ...]
    fixed: tuple[re.Pattern[str], ...] = ()

    def find(self, text: str) -> str | None:
        """The first delimiter of the first rule that matches, as it stands in the text; None when there is none."""
        return next((text[start:end] for start, end in self._spans(text)), None)

    def find_across(self, pieces: Sequence[Piece]) -> str | None:
        """A delimiter that values and their surroundings form together; None when there is none.

        Every true delimiter lies within the literals, so that one which touches a value is a collision.
        """
        values: list[tuple[int, int]] = []
        end = 0
        for piece in pieces:
            start, end = end, end + len(piece.text)
            if piece.variable:
                values.append((start, end))
        text = "".join(piece.text for piece in pieces)
        for start, stop in self._spans(text):
            if any(start < value_end and value_start < stop for value_start, value_end in values):
                return text[start:stop]
        return None

    def escape(self, text: str) -> str:
        """The text with every delimiter in it made inert, as far as there is a way to."""
        for rule in self.rules:
            text = rule.sub(lambda match: match[0] + "\\", text)
        return text

    def unescape(self, text: str) -> str:
        """What `escape` was given."""
        for rule in reversed(self.rules):
            text = rule.sub(lambda match: match[0][:-1] if match["slashes"] else match[0], text)
        return text

    def _spans(self, text: str) -> Iterable[tuple[int, int]]:
        for rule in (*self.rules, *self.fixed):
            for match in rule.finditer(text):
                if not match["slashes"]:
                    yield match.start("head"), match.end("tail")


@lru_cache(maxsize=64)
def delimiters_of(template: Template) -> Delimiters:
    """The delimiters of the template's text form, and the role markers."""
    lines, inline, tags = _labels(template)
    separator, visible = template.separator, template.separator.strip()
    label = _first_label(template)
    whole: list[str] = []
    if visible and separator[0] in _BREAKS:
        lines.add(visible.split("\n")[0].strip())
    elif visible or not label:
        whole.append(separator)
    if label and separator[-1] not in _BREAKS:
        inline.add(label)
    angle = (*_MARKERS, *(re.escape(tag[1:]) for tag in sorted(tags)))
    rules = [
        _rule("<", "|".join(angle)),
        _rule(r"\[", r"/?INST\]"),
        _rule("", _any_of({*lines, *_ROLES}), before=rf"(?:\A|(?<=[{_BREAKS}]))[ \t]*"),
    ]
    if inline:
        rules.append(_rule("", _any_of(inline), before=r"(?<![\w\\])"))
    rules += [_rule(re.escape(text[0]), re.escape(text[1:])) for text in whole if len(text) > 1]
    fixed = (re.compile(rf"(?P<head>{re.escape(text)})(?P<slashes>)(?P<tail>)") for text in whole if len(text) == 1)
    return Delimiters(tuple(rules), tuple(fixed))


def _rule(head: str, tail: str, *, before: str = "") -> re.Pattern[str]:
    return re.compile(rf"{before}(?P<head>{head})(?P<slashes>\\*)(?=(?P<tail>{tail}))")


def _any_of(labels: Iterable[str]) -> str:
    # The longest first; "Text" must not match "Textbook".
    ordered = sorted(labels, key=lambda label: (-len(label), label))
    return "|".join(re.escape(label) + (r"(?!\w)" if re.match(r"\w", label[-1]) else "") for label in ordered)


def _labels(template: Template) -> tuple[set[str], set[str], set[str]]:
    """Labels at the start of a line, labels that follow a value on its line, and tags."""
    pieces = _block(template)
    lines: set[str] = set()
    inline: set[str] = set()
    tags: set[str] = set()
    for position, piece in enumerate(pieces):
        if piece.variable:
            continue
        tags.update(_TAG.findall(piece.text))
        first, *rest = (line.strip() for line in piece.text.split("\n"))
        lines.update(line for line in (rest if position else [first, *rest]) if line)
        # Punctuation behind a value ('"$input"') is too common in data to be told apart.
        if position and not rest and position + 1 < len(pieces) and re.search(r"\w", first):
            inline.add(first)
    return lines, inline, tags


def _first_label(template: Template) -> str:
    """What a block starts with; empty when it starts with a value."""
    first = next(iter(_block(template)), None)
    return "" if first is None or first.variable else first.text.strip().split("\n")[0].strip()


def _block(template: Template) -> list[Piece]:
    """The pieces of a whole block; a literal that spans its two parts is one piece."""
    before, after = list(parse(template.text_input)), list(parse(template.text_output))
    if before and after and not before[-1].variable and not after[0].variable:
        before[-1:] = [Piece(before[-1].text + after.pop(0).text, variable=False)]
    return before + after

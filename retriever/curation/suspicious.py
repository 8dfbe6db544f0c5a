"""What makes a single example suspicious: one pure function for each suspicion.

Those over an example give a sentence for each field that they find fault with. Whether lengths are far out depends on
the other examples, so that function takes the lengths of all. Texts are looked at as they stand in a prompt: a value
that is no text as its JSON.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

import numpy as np

from retriever.example import Example
from retriever.prompting.delimiters import delimiters_of
from retriever.prompting.template import TEMPLATES
from retriever.ranking.strategies.picks import Integers, Reals

BLANK_OUTPUT = "the output is blank, and other examples have one"

Suspicion: TypeAlias = Callable[[Example], Iterator[str]]

_DELIMITERS = delimiters_of(TEMPLATES["io"])
_NOT_ASCII = re.compile(r"[^\x00-\x7f]+")
_SPACE = frozenset("\t\n\r")
_JOINERS = frozenset("\u200c\u200d")
_DIRECTION_MARKS = frozenset("\u200e\u200f\u061c")
_UNNAMED = {"\ufeff": "BYTE ORDER MARK", "\x00": "NUL", "\x1b": "ESCAPE", "\x08": "BACKSPACE", "\x7f": "DELETE"}
_NORMAL = 1.4826
_FEW_CHARACTERS = 40


def blank_input(example: Example) -> Iterator[str]:
    """An input of white space only."""
    if not example.input_text.strip():
        yield "the input is blank"


def blank_output(example: Example) -> Iterator[str]:
    """No output, or one of white space only; no fault where no example has one."""
    if not example.output_text.strip():
        yield BLANK_OUTPUT


def echo(example: Example) -> Iterator[str]:
    """An output that is the input."""
    output = example.output_text.strip()
    if output and output == example.input_text.strip():
        yield "the output is the input"


def delimiters(example: Example) -> Iterator[str]:
    """Role markers of chat models, and labels of the default template where they start a line."""
    for name, text in _texts(example):
        found = _DELIMITERS.find(text)
        if found is not None:
            yield f"the {name} contains {found!r}, which models or templates take for the start or end of a turn"


def invisible(example: Example) -> Iterator[str]:
    """Control, formatting and bidirectional characters, U+FFFD and lone surrogates.

    What scripts and emoji need is no fault: joiners after a character that is not ASCII, direction marks in a text with
    letters that run from right to left, tags behind a flag.
    """
    for name, text in _texts(example):
        wrong = sorted({character for character in set(text) if _is_wrong(character, text)})
        if wrong:
            yield f"the {name} contains {', '.join(_named(character) for character in wrong)}"


def undecoded(example: Example) -> Iterator[str]:
    """UTF-8 that was read as Latin-1 or Windows-1252: `Ã©` for `é`.

    Conservative: everything beyond ASCII in the text must be such, so that `É»` in other text is no fault.
    """
    for name, text in _texts(example):
        runs = _NOT_ASCII.findall(text)
        decoded = [_decoded(run) for run in runs]
        if runs and all(one is not None for one in decoded):
            yield f"the {name} looks wrongly decoded: {runs[0]!r} for {decoded[0]!r}"


SUSPICIONS: tuple[Suspicion, ...] = (blank_input, blank_output, echo, delimiters, invisible, undecoded)
"""Those that are asked of each example alone."""


def far_lengths(name: str, lengths: Sequence[int]) -> Iterator[tuple[int, str]]:
    """Which texts are far longer or shorter than the others, by `far_above` of the logarithm of their length.

    Args:
        name: What the texts are, for the sentence.
        lengths: Of each text in characters; 0 for those that are not looked at.

    Yields:
        The place of a text, ascending, and a sentence.
    """
    places = np.flatnonzero(np.array(lengths))
    if not len(places):
        return
    counts = np.array(lengths, dtype=np.float64)[places]
    logarithms, median = np.log(counts), float(np.median(counts))
    # Length has a long tail upwards, and short texts are seldom a fault.
    long = far_above(logarithms, deviations=5.0, floor=0.3, share=0.005)
    short = far_above(-logarithms, deviations=7.0, floor=0.3, share=0.005)
    for place in np.union1d(long, short).tolist():
        if abs(counts[place] - median) < _FEW_CHARACTERS:
            continue
        much = "long" if counts[place] > median else "short"
        reason = f"the {name} is very {much}: {counts[place]:,.0f} characters, where the median is {median:,.0f}"
        yield int(places[place]), reason


def far_above(values: Reals, *, deviations: float, floor: float, share: float) -> Integers:
    """The places of the values that are far above the median, ascending, int64.

    Far is more than `deviations` times the spread of the upper half: 1.4826 · median(v − m) over v ≥ m, the standard
    deviation if the values were normal ("double MAD", after Hampel 1974), and no less than `floor`. Values that many
    have are no outliers: where more than a `share` of all, and more than one, are that far, none is told.

    Args:
        values: Finite numbers, shape (n,).
        deviations: How many.
        floor: The least spread, for values most of which are equal.
        share: The largest share of outliers, 0 to 1.
    """
    if not len(values):
        return np.empty(0, dtype=np.int64)
    above = values - np.median(values)
    spread = max(_NORMAL * float(np.median(above[above >= 0])), floor)
    found = np.flatnonzero(above > deviations * spread)
    return found if len(found) <= max(1.0, share * len(values)) else found[:0]


def _texts(example: Example) -> Iterator[tuple[str, str]]:
    yield "input", example.input_text
    yield "output", example.output_text
    yield "rationale", example.rationale or ""


def _is_wrong(character: str, text: str) -> bool:
    if character in _SPACE:
        return False
    if character in _JOINERS:
        return re.search(rf"(?:\A|[\x00-\x7f]){character}", text) is not None
    if character in _DIRECTION_MARKS:
        return not any(unicodedata.bidirectional(other) in ("R", "AL") for other in text if other != character)
    if "\U000e0020" <= character <= "\U000e007f":
        return "\U0001f3f4" not in text
    return character == "\ufffd" or unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp")


def _named(character: str) -> str:
    code = f"U+{ord(character):04X}"
    kinds = {"Cs": "lone surrogate", "Cc": "control character"}
    kind = kinds.get(unicodedata.category(character), "")
    return f"{code} ({_UNNAMED.get(character) or unicodedata.name(character, kind)})"


def _decoded(run: str) -> str | None:
    """What a run of characters is when its bytes are read as UTF-8; None when they are none."""
    try:
        return b"".join(_byte(character) for character in run).decode()
    except UnicodeError:
        return None


def _byte(character: str) -> bytes:
    """The byte that was read as this character; Windows-1252 leaves five to Latin-1's control characters."""
    try:
        return character.encode("cp1252")
    except UnicodeEncodeError:
        return character.encode("latin-1")

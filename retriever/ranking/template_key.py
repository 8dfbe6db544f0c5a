r"""Template keys: what is left of an output when its values are masked.

Two outputs with the same key are the same answer about other things: `SELECT name FROM city WHERE population > 5` asked
of "cities over 5" and the same with 9. Showing both teaches little more than showing one.

    <n>    a number: digits, with decimals, thousands, an exponent and a sign where nothing stands before it
    <s>    a quoted text on one line, in '…', "…", `…`, “…” or ‘…’; not the key of a mapping, which a colon follows
    <w>    words that the input has too, a run of them being one; not the words in `KEPT`

Everything else stays, after compatibility normalisation (NFKC), folding of case, and with white space made single
blanks. Words are runs of letters, digits and `_`; a script without blanks between words has only whole runs compared.
Names with a number in them (`t1`) are words, not numbers. The output is read in one pass, so what is masked is not read
again.
"""

from __future__ import annotations

import keyword
import re
import unicodedata
from functools import lru_cache

_SQL = """
    all and any as asc avg between by case cast count cross desc distinct else end except exists from full group having
    in inner intersect is join left like limit max min not null offset on or order outer over partition right select
    set sum then union update using values when where with
"""
_ENGLISH = (
    "a an and are as at be by do does for from how in is it its not of on or that the this to was were what which"
)

KEPT = frozenset([*_SQL.split(), *_ENGLISH.split(), *(word.casefold() for word in keyword.kwlist)])
"""Words that give an output its form, in SQL, Python and English: they stay even where the input happens to have them,
else `FROM` would be masked in the answer to "flights from Boston" and kept in another."""

_TOKEN = re.compile(
    r"""(?: "(?:[^"\\\n]|\\.)*+"
          | (?<!\w)'(?:[^'\\\n]|\\.|'')*+'(?!\w)
          | `[^`\n]*+`
          | “[^”\n]*+”
          | (?<!\w)‘[^’\n]*+’(?!\w) ) (?P<colon> \s*: )?
      | (?P<number> (?:(?<![\w)\]])[-+])?\d++(?:[.,]\d++)*+(?:e[-+]?\d++)?+ )
      | (?P<word> [^\W\d]\w*+ )
    """,
    re.VERBOSE,
)
_RUN = re.compile(r"<w>(?:\s+<w>)+")
_WORD = re.compile(r"\w+")


def template_key(output: str, input: str) -> str:
    """The output with its values masked; see above.

    Args:
        output: The output as text.
        input: The input as text, whose words are masked in the output.

    Returns:
        The key; empty for an output of white space alone. The same for the same texts, always.
    """
    copied = _words(input) - KEPT

    def masked(match: re.Match[str]) -> str:
        if match["word"]:
            return "<w>" if match[0] in copied else match[0]
        if match["number"]:
            return "<n>"
        return match[0] if match["colon"] else "<s>"

    return " ".join(_RUN.sub("<w>", _TOKEN.sub(masked, _folded(output))).split())


def _folded(text: str) -> str:
    """NFKC and case folding; normalised again, for folding can undo the first."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())


@lru_cache(maxsize=1024)
def _words(text: str) -> frozenset[str]:
    return frozenset(_WORD.findall(_folded(text)))

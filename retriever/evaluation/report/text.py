"""Text of a pool as a page shows it: of bounded length, and with nothing that a browser would obey unseen."""

from __future__ import annotations

import unicodedata

_JOINERS = "\u200c\u200d"


def _is_shown(character: str) -> bool:
    """Whether a browser shows the character as itself; joiners shape letters and emoji."""
    return unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Zl", "Zp") or character in _JOINERS


def shown(text: str, width: int) -> str:
    r"""Text of one line; what is invisible, directs or separates lines is an escape such as \u202e.

    Args:
        text: Any text.
        width: How many of its characters are kept.
    """
    line = text[: 4 * width].replace("\r\n", "\n")
    line = line.replace("\n", " ⏎ ").replace("\t", " ")
    cut = len(text) > 4 * width or len(line) > width
    kept = line[: width - 1] + "…" if cut else line
    return "".join(c if _is_shown(c) else c.encode("unicode_escape").decode() for c in kept)

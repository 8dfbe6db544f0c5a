"""What servers, programs and libraries say, made fit to be repeated."""

from __future__ import annotations

from collections.abc import Iterable

_LONGEST_QUOTE = 300
_SHORTEST_SECRET = 4


def one_line(text: str, *, secrets: Iterable[str] = ()) -> str:
    """Foreign text fit for an error message: one printable line of at most 300 characters.

    Args:
        text: What a server, a program or a library said.
        secrets: Texts that must not be shown; each is replaced by `***`. Those under 4 characters are skipped: they
            are the dummy keys of servers that need none, and hiding every `x` would leave nothing to read.

    Returns:
        The line; empty when nothing printable is left.
    """
    # The longest first: a secret that contains another would otherwise keep its other half.
    for secret in sorted(secrets, key=len, reverse=True):
        if len(secret) >= _SHORTEST_SECRET:
            text = text.replace(secret, "***")
    printable = "".join(character if character.isprintable() else " " for character in text)
    line = " ".join(printable.split())
    return line if len(line) <= _LONGEST_QUOTE else line[: _LONGEST_QUOTE - 1] + "…"

"""Pools that the tests of the report share."""

from __future__ import annotations

WORDS = ("apple", "banana", "cherry", "damson")
ROWS = [
    {"id": f"p{i}", "input": f"{WORDS[i % 4]} number {i * 37}", "output": f"eat {WORDS[i % 4]}", "label": WORDS[i % 4]}
    for i in range(48)
] + [{"id": "p48", "input": "apple number 0", "output": "no", "label": "banana"}]
HOSTILE = (
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "\"'><b>bold</b> &amp; <!--",
    "right \u202eto left\u2028next \u2066line\x00",
    "--accent",
    "%{x} <a href='javascript:alert(1)'>$x$</a> {{ 7*7 }}",
)


def hostile_rows():
    """Rows whose every field is hostile."""
    return [
        {"id": f"{text} {i}", "input": f"{text} {i}", "output": f"{text}!", "label": text}
        for i in range(8)
        for text in HOSTILE
    ]

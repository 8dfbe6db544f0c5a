"""The states that an index is led through: each a function of its number alone, and no two alike."""

from __future__ import annotations

import functools
from collections.abc import Mapping

from retriever import Retriever

PLAN = ("build", "add", "update", "remove", "add", "update", "add", "remove", "update", "add", "update", "remove")
"""What leads to state 1, to state 2 and so on; then from the start again."""


@functools.cache
def state(number: int) -> Mapping[str, int]:
    """The examples of a state, in their order: for each id the state that wrote it."""
    if number == 0:
        return {}
    kind = operation(number)
    if kind == "build":
        return {f"e{i}": number for i in range(6 + number % 5)}
    before = dict(state(number - 1))
    if kind == "add":
        return {**before, **{f"a{number}-{i}": number for i in range(1 + number % 3)}}
    gone = list(before)[:: 1 if kind == "remove" else 3][:2]
    kept = {identity: written for identity, written in before.items() if identity not in gone}
    if kind == "remove":
        return kept
    return {**kept, **dict.fromkeys([*gone, f"u{number}"], number)}


def operation(number: int) -> str:
    """What leads to a state from the one before."""
    return PLAN[(number - 1) % len(PLAN)]


def example(identity: str, written: int) -> dict[str, str]:
    """The example with an id as a state wrote it."""
    return {"id": identity, "input": f"{identity} of {written * 7919}", "output": f"written by {written}"}


def change(index: Retriever, number: int) -> None:
    """Leads an open index to a state from the one before."""
    old, new = state(number - 1), state(number)
    written = [example(identity, by) for identity, by in new.items() if by == number]
    kind = operation(number)
    if kind == "add":
        index.add(written, strict=True)
    elif kind == "update":
        unchanged = [example(identity, by) for identity, by in new.items() if by != number][:1]
        index.update([*unchanged, *written], strict=True)
    else:
        index.remove([identity for identity in old if identity not in new])

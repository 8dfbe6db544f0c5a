"""Shorter demonstrations: texts cut with a visible mark, never inside what a reader sees as one character."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from retriever.example import Example, Json
from retriever.prompting.tokens import TokenCounter

MARK = " […]"
"""What stands where a text was cut."""

_JOINER = "\u200d"


def cut(text: str, most: int) -> str:
    """The first characters of a text, at most so many, and the mark; the text itself if it has no more.

    It is cut between what a reader sees as characters: not before a combining mark, a variation selector or a skin
    tone, not beside a zero-width joiner, and not inside a flag, a line break of two characters or a pair of surrogates.
    White space before the mark is left out.
    """
    if len(text) <= most:
        return text
    while most > 0 and _inside(text, most):
        most -= 1
    kept = text[:most].rstrip()
    return kept + MARK if kept else MARK.strip()


def _inside(text: str, place: int) -> bool:
    """Whether a place between two characters lies inside what is seen as one."""
    before, after = text[place - 1], text[place]
    if (
        unicodedata.category(after).startswith("M")
        or _JOINER in (before, after)
        or "\U0001f3fb" <= after <= "\U0001f3ff"
    ):
        return True
    if before + after == "\r\n" or ("\ud800" <= before <= "\udbff" and "\udc00" <= after <= "\udfff"):
        return True
    flags = 0
    while flags < place and "\U0001f1e6" <= text[place - 1 - flags] <= "\U0001f1ff":
        flags += 1
    return flags % 2 == 1 and "\U0001f1e6" <= after <= "\U0001f1ff"


def longest_cut(text: str, fits: Callable[[str], bool], least: int = 0) -> str | None:
    """The longest cut of a text that fits, as bisection finds it; the text itself where it does.

    Args:
        text: The text.
        fits: Whether a text is short enough. Where a longer one fits and a shorter one does not, what is found fits,
            but may not be the longest.
        least: The fewest characters to keep.

    Returns:
        None where not even the cut to the fewest fits.
    """
    if fits(text):
        return text
    low, high = least, len(text)
    if not fits(cut(text, low)):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(cut(text, middle)) else (low, middle)
    return cut(text, low)


def limited(example: Example, limits: Mapping[str, int], counter: TokenCounter) -> Example:
    """An example whose fields have at most so many tokens each, the mark included.

    Text fields are cut; of a field that holds JSON, each text in it is, its keys and numbers staying. A limit that the
    mark alone exceeds leaves nothing but the mark.

    Args:
        example: The example.
        limits: Tokens by field: `input`, `output`, `rationale` or `meta.KEY`.
        counter: What counts them.
    """
    changes: dict[str, Json] = {}
    meta = dict(example.meta)
    for name, limit in limits.items():
        head, _, key = name.partition(".")
        if head == "meta":
            if key in meta:
                meta[key] = _limited(meta[key], limit, counter)
        else:
            changes[name] = _limited(getattr(example, name), limit, counter)
    changed = replace(example, **changes, meta=meta)  # type: ignore[arg-type]
    return example if changed == example else changed


def _limited(value: Json, limit: int, counter: TokenCounter) -> Json:
    if isinstance(value, str):
        found = longest_cut(value, lambda text: counter.count(text) <= limit)
        return MARK.strip() if found is None else found
    if isinstance(value, Mapping):
        return {key: _limited(one, limit, counter) for key, one in value.items()}
    return [_limited(one, limit, counter) for one in value] if isinstance(value, list) else value


def pruned(example: Example, stages: Sequence[str], fits: Callable[[Example], bool]) -> Example | None:
    """The example as far as it must be shortened to fit, or None where no stage helps.

    Args:
        example: The example; taken as it is if it fits.
        stages: `rationale` drops the rationale, `longest` cuts the longer of input and rationale where it is text, to
            no less than half of it. The output is never cut, for half an answer teaches half answers.
        fits: Whether an example fits.
    """
    if fits(example):
        return example
    for stage in stages:
        if stage == "rationale" and example.rationale:
            example = replace(example, rationale="")
            if fits(example):
                return example
        elif stage == "longest" and (shorter := _with_longest_cut(example, fits)) is not None:
            return shorter
    return None


def _with_longest_cut(example: Example, fits: Callable[[Example], bool]) -> Example | None:
    texts = {"input": example.input, "rationale": example.rationale}
    name, text = max(
        ((name, text) for name, text in texts.items() if isinstance(text, str)),
        key=lambda one: len(one[1]),
        default=("", ""),
    )
    if not text:
        return None

    def made(text: str) -> Example:
        return replace(example, **{name: text})  # type: ignore[arg-type]

    found = longest_cut(text, lambda one: one != text and fits(made(one)), least=(len(text) + 1) // 2)
    return None if found is None else made(found)


def told(before: Example, after: Example) -> str:
    """What was shortened, in words."""
    changes = []
    for name in ("input", "output", "rationale", "meta"):
        old, new = getattr(before, name), getattr(after, name)
        if old != new:
            changes.append(f"{name} left out" if name == "rationale" and not new else f"{name} cut")
    return ", ".join(changes)

"""Who listens while something is done: to what a reader should know, and to how far the work is."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeAlias

Note: TypeAlias = Callable[[str], None]
"""Told in one line what a reader should know."""

Progress: TypeAlias = Callable[[str, int, int], None]
"""Told what is being done, how much of it is done, and how much there is."""

Steps: TypeAlias = Callable[[int, int], None]
"""Told how much of one thing is done, and how much there is."""


def log_note(line: str) -> None:
    """Where notes go that nobody listens for: the logger `retriever` warns."""
    logging.getLogger("retriever").warning("%s", line)


def silent(*told: object) -> None:
    """Where goes what nobody asks for, such as progress."""

"""An interrupt of a program that no library can swallow; the request to terminate is one as well.

Python raises KeyboardInterrupt wherever the program stands. Where that is a finalizer, or a callback of the import
system, the exception is printed and forgotten; other code catches everything. Measured on a command that was still
importing: of 60 interrupts 2 were lost, and the program waited on.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

AGAIN = 1.0
"""Seconds after which an interrupt that has not ended the program is raised again."""


@contextmanager
def insisting() -> Iterator[None]:
    """Raises each interrupt again, `AGAIN` seconds apart, until the block is left; SIGTERM is an interrupt too.

    A process that was started to ignore interrupts goes on ignoring them.
    """
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        signal.setitimer(signal.ITIMER_REAL, AGAIN)
        raise KeyboardInterrupt

    def unraisable(lost: sys.UnraisableHookArgs) -> None:
        if lost.exc_type is not KeyboardInterrupt:
            reported(lost)

    reported, alarm = sys.unraisablehook, signal.signal(signal.SIGALRM, interrupt)
    sys.unraisablehook = unraisable
    signal.signal(signal.SIGINT, interrupt)
    terminate = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGALRM, alarm)
        signal.signal(signal.SIGTERM, terminate)
        sys.unraisablehook = reported

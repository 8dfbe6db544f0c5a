"""An interrupt ends the program, whatever code it met."""

import os
import signal
import subprocess
import sys

import pytest

from retriever.command_line.interrupt import insisting

LOSING = """
import signal, time
from retriever.command_line.interrupt import insisting

class Lossy:
    def __del__(self):
        signal.raise_signal(signal.SIGINT)

try:
    with insisting():
        {lose}
        time.sleep(30)
except KeyboardInterrupt:
    print("taken")
"""


@pytest.mark.parametrize(
    "lose",
    ["Lossy()", "try: signal.raise_signal(signal.SIGINT)\n        except BaseException: pass"],
    ids=["in a finalizer", "caught by a library"],
)
def test_a_lost_interrupt_comes_again_and_nothing_is_said_of_the_first(lose):
    done = subprocess.run(
        [sys.executable, "-c", LOSING.format(lose=lose)], capture_output=True, timeout=25, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"taken\n", b"")


def test_other_exceptions_of_finalizers_are_reported_as_ever():
    program = (
        "from retriever.command_line.interrupt import insisting\n"
        "class A:\n def __del__(self): 1 / 0\n"
        "with insisting(): A()"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=25, check=True)
    assert b"ZeroDivisionError" in done.stderr


def test_what_was_set_before_is_set_again():
    def state():
        return [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)], sys.unraisablehook

    before = state()
    with insisting():
        assert signal.getsignal(signal.SIGINT) is not before[0][0]
        assert signal.getsignal(signal.SIGTERM) is not before[0][1]
    assert state() == before


def test_a_process_that_ignores_interrupts_goes_on_ignoring_them():
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with insisting():
            os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, handler)
    assert handler is signal.default_int_handler

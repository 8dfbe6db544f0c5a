"""The ONNX Runtime sessions of an exported model: one that runs many batches at once, one for a batch alone.

Many batches are done soonest with a core for each: two threads on one batch after the other take a third longer.

A batch alone leaves the other cores idle, and a query spends most of its time waiting for memory, since all the weights
are read for a few rows of arithmetic. Two threads need little more than half of the time. The number of threads belongs
to a session, so they need another one, with weights of its own (60 to 90 MB for all-MiniLM-L6-v2). It is opened in the
background, for a process that has asked for single batches before: a command that embeds one query never pays for it.
Where other programs want the same cores, a thread that waits for its turn holds up the other at every product, and one
thread may take half as long: so the time that each session takes is noted, and the one that was faster of late is used.

The results are the same to the bit: each number of a product is added up in the same order by any number of threads.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import TYPE_CHECKING
from weakref import WeakSet

import numpy as np
from numpy.typing import NDArray

from indexes.parallel import cores

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

_OFTEN = 16
"""After so many batches alone, more are expected."""
_THREADS = 2
_TRY_OTHER = 32
"""Every so many batches alone, the session that was slower is tried again."""
_READING = 32
"""Reading the weights takes about as long as the arithmetic of so many tokens."""
_NEWEST, _MOST = 0.5, 1.5
"""What the last time counts in the mean, and how many times that mean it counts as at most: one stall says little."""


_ALL: WeakSet[Sessions] = WeakSet()


class Sessions:
    """What runs a model; several threads may use it at once."""

    def __init__(self, path: Path, output: str, check: Callable[[], None]) -> None:
        """Opens the session for many batches.

        Args:
            path: The model.
            output: The name of the output that is wanted.
            check: Called before the file is read again; raises when it is not what it was.
        """
        self._path = path
        self._output = output
        self._check = check
        self._first = open_session(path, 1)
        self._second: Future[InferenceSession] | None = None
        self._pace = [0.0, 0.0]
        self._asked = 0
        self._alone = threading.Lock()
        _ALL.add(self)

    def run(self, given: Mapping[str, NDArray[np.int64]]) -> NDArray[np.float32]:
        """The output for one of many batches, on the thread of the caller."""
        return self._by(self._first, given)

    def run_alone(self, given: Mapping[str, NDArray[np.int64]]) -> NDArray[np.float32]:
        """The same for a batch that its caller has no others beside; soonest when no other caller has one either."""
        if not self._alone.acquire(blocking=False):
            return self.run(given)
        try:
            self._asked += 1
            sessions = self._opened()
            chosen = self._faster() if len(sessions) > 1 else 0
            started = time.perf_counter()
            output = self._by(sessions[chosen], given)
            self._note(chosen, (time.perf_counter() - started) / (_READING + next(iter(given.values())).size))
            return output
        finally:
            self._alone.release()

    def _by(self, session: InferenceSession, given: Mapping[str, NDArray[np.int64]]) -> NDArray[np.float32]:
        output: NDArray[np.float32]
        [output] = session.run([self._output], dict(given))
        return output

    def _opened(self) -> list[InferenceSession]:
        """The sessions that can be used by now."""
        if self._asked == _OFTEN and cores() > 1:
            opening = ThreadPoolExecutor(1, thread_name_prefix="onnx-session")
            self._second = opening.submit(self._open_second)
            opening.shutdown(wait=False)
        second = self._second
        # If the file is gone or damaged by now, the session that was opened when it was not does all the work.
        there = second is not None and second.done() and second.exception() is None
        return [self._first, second.result()] if second is not None and there else [self._first]

    def _faster(self) -> int:
        """Which session is to run; one that has not run yet counts as fast."""
        faster = int(self._pace[1] <= self._pace[0])
        return 1 - faster if self._asked % _TRY_OTHER == 0 else faster

    def _note(self, which: int, seconds: float) -> None:
        known = self._pace[which]
        self._pace[which] = known + _NEWEST * (min(seconds, _MOST * known) - known) if known else seconds

    def before_fork(self) -> None:
        """Closes the second session: a child would not have its threads, and would wait for them when it ends."""
        with self._alone:
            if self._second is not None:
                wait([self._second])
            self._second, self._pace, self._asked = None, [0.0, 0.0], 0

    def after_fork(self) -> None:
        """In a child; the thread that held the lock may not be there."""
        self._alone = threading.Lock()

    def _open_second(self) -> InferenceSession:
        self._check()
        return open_session(self._path, _THREADS)


def _before_fork() -> None:
    for sessions in list(_ALL):
        sessions.before_fork()


def _after_fork() -> None:
    for sessions in list(_ALL):
        sessions.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_child=_after_fork)


def open_session(path: Path, threads: int) -> InferenceSession:
    """A session on the CPU that runs each product on so many threads."""
    # From the moment it is imported it would note every run in the user's cache, and send the notes to its maker.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    onnxruntime.disable_telemetry_events()  # where somebody else has imported it before
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Else the other thread looks for work for a while after a call, on a core that what comes next could use.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.log_severity_level = 3  # errors
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

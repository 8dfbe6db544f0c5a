"""An external program as a backend: the prompt on its standard input, the answer on its standard output."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from retriever.backends.base import BackendSettings, messages_of, refuse_base_url, text_of
from retriever.errors import BackendError, InvalidInput
from retriever.foreign_text import one_line
from retriever.openai_access import environment_key

if TYPE_CHECKING:
    from retriever.prompting.assembler import Form, Prompt

_TRY_AGAIN = os.EX_TEMPFAIL
_FIRST_PAUSE = 0.5
_REAP_SECONDS = 2.0


class Command:
    """Runs a program once per prompt.

    The program gets the prompt on standard input as UTF-8 and the environment of this process. Its standard output,
    read as UTF-8 and without one newline at the end, is the answer. No shell is involved.

    How the settings are honoured: `timeout` bounds one run, after which the program's whole process group is
    killed. `retries` repeats a run that ends with exit code 75 (`EX_TEMPFAIL` of sysexits.h, "temporary failure"),
    after a pause of 0.5 seconds that doubles each time; any other failure is final, because only the program knows
    whether a second run is harmless. `max_tokens`, `temperature` and `seed` cannot be imposed on a foreign program:
    they are handed to it in the environment variables `RETRIEVER_MAX_TOKENS`, `RETRIEVER_TEMPERATURE` and
    `RETRIEVER_SEED` (absent when the seed is None). `base_url` is refused.

    Only the program's name appears in messages and in the repr: arguments can hold credentials.
    """

    def __init__(
        self, arguments: Sequence[str], *, form: Literal["text", "json"] = "text", settings: BackendSettings
    ) -> None:
        """Checks that the program exists; runs nothing.

        Args:
            arguments: The program and its arguments.
            form: What it reads: `prompt.text`, or `{"messages": [...]}` as one line of JSON.
            settings: How to generate.

        Raises:
            InvalidInput: There is no program, it cannot be found or run, an argument holds a NUL, or
                `settings.base_url` is set.
        """
        refuse_base_url(settings, "command")
        if not arguments:
            raise InvalidInput("a command backend without a program", expected="command:PROGRAM ARGS...")
        if any("\0" in argument for argument in arguments):
            raise InvalidInput("a command backend with a NUL in an argument", expected="text without NUL")
        if shutil.which(arguments[0]) is None:
            raise InvalidInput(
                f"the program {arguments[0]!r}, which cannot be found or run",
                fix="check its name, give its full path, or make it executable",
            )
        self._arguments = tuple(arguments)
        self._form = form
        self._settings = settings

    @classmethod
    def from_line(cls, line: str, *, form: Literal["text", "json"] = "text", settings: BackendSettings) -> Command:
        """A command from one line, split as a POSIX shell splits words.

        Raises:
            InvalidInput: A quotation is left open, or as for the constructor.
        """
        try:
            arguments = shlex.split(line)
        except ValueError as error:
            raise InvalidInput(f"a command line that cannot be split: {error}", fix="close the quotation") from error
        return cls(arguments, form=form, settings=settings)

    @property
    def reads(self) -> Form:
        """The form of a prompt that the program gets."""
        return "text" if self._form == "text" else "messages"

    def __repr__(self) -> str:
        return f"Command({self._arguments[0]!r}, form={self._form!r}, settings={self._settings!r})"

    def __call__(self, prompt: Prompt) -> str:
        """The program's answer.

        Raises:
            InvalidInput: The prompt cannot be written as UTF-8.
            DelimiterCollision: The text of the prompt is asked for and cannot be had.
            BackendError: The program could not be started, took longer than the timeout, ended with an exit code
                other than 0 or by a signal, or wrote nothing or something that is not UTF-8.
        """
        given = self._input(prompt)
        pause = _FIRST_PAUSE
        for _ in range(self._settings.retries):
            finished = self._run(given)
            if finished.returncode != _TRY_AGAIN:
                break
            time.sleep(pause)
            pause *= 2
        else:
            finished = self._run(given)
        if finished.returncode != 0:
            raise self._failure(finished)
        return self._answer(finished.stdout)

    def _input(self, prompt: Prompt) -> bytes:
        if self._form == "text":
            return text_of(prompt).encode()
        return (json.dumps({"messages": messages_of(prompt)}, ensure_ascii=False) + "\n").encode()

    def _run(self, given: bytes) -> subprocess.CompletedProcess[bytes]:
        try:
            process = subprocess.Popen(
                self._arguments,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=self._environment(),
                # A group of its own, so that a timeout also ends whatever the program has started.
                start_new_session=True,
            )
        except OSError as error:
            raise BackendError(
                f"the program {self._arguments[0]!r} could not be started: {error.strerror or error}",
                fix="check that it exists and can be executed",
            ) from error
        with process:
            try:
                stdout, stderr = process.communicate(given, timeout=self._settings.timeout)
            except subprocess.TimeoutExpired as error:
                _kill_group(process)
                raise BackendError(
                    f"the program {self._arguments[0]!r} gave no answer within {self._settings.timeout:g} s "
                    "and was killed",
                    fix="raise the timeout, or find out what it waits for",
                ) from error
            except BaseException:
                # An interrupt reaches this process only: the program is in another group.
                _kill_group(process)
                raise
        return subprocess.CompletedProcess(self._arguments, process.returncode, stdout, stderr)

    def _environment(self) -> dict[str, str]:
        environment = {name: value for name, value in os.environ.items() if name != "RETRIEVER_SEED"}
        environment["RETRIEVER_MAX_TOKENS"] = str(self._settings.max_tokens)
        environment["RETRIEVER_TEMPERATURE"] = repr(float(self._settings.temperature))
        if self._settings.seed is not None:
            environment["RETRIEVER_SEED"] = str(self._settings.seed)
        return environment

    def _failure(self, finished: subprocess.CompletedProcess[bytes]) -> BackendError:
        code = finished.returncode
        ended = f"exit code {code}" if code > 0 else f"signal {-code} ({signal.strsignal(-code)})"
        lines = [line for line in finished.stderr.decode(errors="replace").splitlines() if line.strip()]
        # The program shares this environment, so its messages can quote the key.
        last = one_line(lines[-1], secrets=[environment_key()]) if lines else ""
        return BackendError(
            f"the program {self._arguments[0]!r} ended with {ended}: {last or 'nothing on its standard error'}",
            expected="exit code 0",
            fix="run it by hand with a prompt on its standard input",
        )

    def _answer(self, stdout: bytes) -> str:
        try:
            answer = stdout.decode().removesuffix("\n")
        except UnicodeDecodeError as error:
            raise BackendError(
                f"the program {self._arguments[0]!r} wrote the byte 0x{stdout[error.start]:02x} at {error.start}, "
                "which is not UTF-8",
                fix="have it write UTF-8, for a Python program with PYTHONIOENCODING=utf-8",
            ) from error
        if not answer:
            raise BackendError(
                f"the program {self._arguments[0]!r} wrote no answer and ended with exit code 0",
                expected="the answer on its standard output",
            )
        return answer


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    """Ends the process group that a process leads, and closes its pipes."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        # Nobody is left in the group; some systems call a group of zombies forbidden.
        process.kill()
    try:
        process.communicate(timeout=_REAP_SECONDS)
    except subprocess.TimeoutExpired:
        # A descendant that left the group still holds a pipe; it is no longer read.
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()

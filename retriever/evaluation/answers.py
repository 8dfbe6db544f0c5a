"""Answers of language models, kept by backend and prompt, so that no question is paid for twice.

A SQLite file with one row for each answer: the key, which is a digest of the backend's identity and of the prompt, the
answer, and a hash of both, which is compared whenever the answer is read. An answer is on the disk before `put`
returns. Keys tell nothing of prompts or credentials.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from retriever.backends import BackendSettings
from retriever.cache import cache_directory
from retriever.errors import DelimiterCollision, InvalidInput, RetrieverError
from retriever.openai_access import environment_url, shown_url
from retriever.prompting import Prompt
from retriever.sqlite import connect, patiently, reported

_COLUMNS = ("key", "answer", "hash")
_AT_ONCE = 500


def backend_identity(spec: str, settings: BackendSettings) -> str:
    """What answers of a backend depend on beside the prompt: its description, and how it generates.

    Args:
        spec: As `load_backend` takes it.
        settings: Timeout and retries, which do not change an answer, are left out; so are credentials in the address.
    """
    url = settings.base_url
    if url is None and spec.startswith("openai:"):
        url = environment_url()
    parts = [spec, settings.max_tokens, settings.temperature, settings.seed, None if url is None else shown_url(url)]
    return json.dumps(parts)


def shown_backend(spec: str) -> str:
    """A backend's description as it may be shown: of a command line, which can hold credentials, the program alone."""
    kind, _, rest = spec.partition(":")
    return f"{kind}:{rest.strip().split()[0]}" if kind.startswith("command") and rest.strip() else spec


def prompt_key(identity: str, prompt: Prompt) -> str:
    """The key of an answer: SHA-256 of the backend's identity and of all that a backend can send.

    Args:
        identity: Of the backend.
        prompt: Messages and text; the text may not be had, then no backend can send it either.
    """
    try:
        text = prompt.text
    except DelimiterCollision:
        text = None
    content = json.dumps([identity, prompt.messages, text], ensure_ascii=True, sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def default_cache() -> Path:
    """Where answers are kept unless it is said otherwise: in the user's cache directory."""
    return cache_directory() / "answers.sqlite"


def _damaged(path: Path, reason: str) -> RetrieverError:
    # Of a file that cannot be read, nobody can say whether answers were in it.
    return RetrieverError(
        f"{path}: {reason}",
        expected="a file of answers",
        fix="name another file; if it was one, delete it: what it held is asked again",
    )


class AnswerCache:
    """The file of answers; a context manager. Several threads and processes may use it at once.

    Args:
        path: The file, which is made when it is not there.

    Raises:
        InvalidInput: There is no folder for it, or the file holds something else.
        RetrieverError: It is damaged, or is no database.
        StorageError: The operating system refuses.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        if not path.parent.is_dir():
            raise InvalidInput(f"no folder {path.parent} to keep {path.name} in", fix="make it first")
        with reported(path, _damaged):
            self._connection = connect(path, writable=True)
        try:
            self._open()
        except BaseException:
            self._connection.close()
            raise

    def _open(self) -> None:
        from sqlite_utils import Database

        database = Database(self._connection)
        with reported(self.path, _damaged):
            if not database.table_names():
                columns = dict.fromkeys(_COLUMNS, str)
                patiently(
                    lambda: database.table("answers").create(
                        columns, pk="key", not_null=set(_COLUMNS), if_not_exists=True
                    )
                )
            found = {
                name: tuple(column.name for column in database.table(name).columns) for name in database.table_names()
            }
            code = database.execute("SELECT count(*) FROM sqlite_master WHERE type IN ('trigger', 'view')").fetchone()[
                0
            ]
        if found != {"answers": _COLUMNS} or code:
            raise InvalidInput(f"{self.path} with the tables {sorted(found)}", expected="a file of answers")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._connection.close()

    def get(self, keys: Sequence[str]) -> dict[str, str]:
        """The answers that there are of these keys.

        Raises:
            RetrieverError: One is not what was put there.
        """
        found: dict[str, str] = {}
        for start in range(0, len(keys), _AT_ONCE):
            some = keys[start : start + _AT_ONCE]
            marks = ", ".join("?" * len(some))
            with self._lock, reported(self.path, _damaged):
                rows = self._connection.execute(f"SELECT key, answer, hash FROM answers WHERE key IN ({marks})", some)
                read = rows.fetchall()
            for key, answer, stored in read:
                if stored != _hash(key, answer):
                    raise _damaged(self.path, "an answer that its hash does not match")
                found[key] = answer
        return found

    def put(self, key: str, answer: str) -> None:
        """Keeps an answer; on the disk when this returns. The first answer to a question stays."""
        with self._lock, reported(self.path, _damaged):
            self._connection.execute(
                "INSERT OR IGNORE INTO answers VALUES (?, ?, ?)", (key, answer, _hash(key, answer))
            )


def _hash(key: str, answer: str) -> str:
    return hashlib.sha256(f"{key}\n{answer}".encode(errors="surrogatepass")).hexdigest()

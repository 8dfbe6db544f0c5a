"""The key in the environment is sent to the server it is for, and is found nowhere else.

A whole run of the program: every file that was written and every line that was
printed is searched for the key, in the clear and as encodings of it.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import Reply, answering

ROOT = Path(__file__).parents[1]
KEY = "sk-CANARY-7f3a9c5e1b8d2460aa"
# The debug log of every library is on; several commands, one JSON list of arguments each, share the imports.
PROGRAM = """
import json, logging, sys
logging.basicConfig(level=logging.DEBUG, filename="log.txt")
import cli
for arguments in sys.argv[1:]:
    try:
        cli.main(json.loads(arguments))
    except SystemExit as stop:
        if stop.code:
            raise
"""
ROWS = [
    {"id": f"r{n}", "input": f"question {n} about {word}", "output": f"answer {n}", "label": word}
    for n, word in enumerate(["cards", "loans", "fees", "cash"] * 3)
]


def vector(text: str) -> list[float]:
    return [byte / 255 - 0.4 for byte in hashlib.sha256(text.encode()).digest()[:8]]


class Endpoint:
    """Embeds; answers a chat with the key, as the model `parrot`, or with a refusal that repeats it."""

    def __init__(self):
        self.keys = []

    def __call__(self, path, headers, body):
        self.keys.append(headers["authorization"])
        refusal = {"error": {"message": f"Incorrect API key provided: {KEY}", "code": KEY, "param": f"Bearer {KEY}"}}
        if body["model"] != "m":
            return Reply(int(body["model"]), refusal)
        if not path.endswith("/embeddings"):
            message = {"role": "assistant", "content": "fine"}
            return Reply(200, {"id": "1", "choices": [{"index": 0, "message": message}]})
        rows = [{"object": "embedding", "index": i, "embedding": vector(text)} for i, text in enumerate(body["input"])]
        usage = {"prompt_tokens": 1, "total_tokens": 1}
        return Reply(200, {"object": "list", "model": "m", "data": rows, "usage": usage})


@pytest.fixture(scope="module")
def server():
    endpoint = Endpoint()
    with answering(endpoint) as endpoint.url:
        yield endpoint


class Run:
    """Runs commands in a folder and keeps all that they say."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder = folder
        hidden = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
        self.environment = {**hidden, "OPENAI_API_KEY": KEY, "OPENAI_BASE_URL": url, "PYTHONPATH": str(ROOT)}
        self.said = ""

    def __call__(self, code: int, *commands: str) -> str:
        split = [json.dumps(command.split()) for command in commands]
        result = subprocess.run(
            [sys.executable, "-c", PROGRAM, *split],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert result.returncode == code, (commands, result.stdout, result.stderr)
        self.said += result.stdout + result.stderr
        return result.stdout + result.stderr


@pytest.fixture(scope="module")
def run(tmp_path_factory, server):
    folder = tmp_path_factory.mktemp("canary")
    (folder / "pool.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (folder / "more.jsonl").write_text('{"id": "new", "input": "a new question", "output": "yes"}\n')
    (folder / "queries.jsonl").write_text('{"id": "q1", "input": "which cards"}\n{"id": "q2", "input": "fees"}\n')
    run = Run(folder, server.url)
    said = run(
        0,
        "build pool.jsonl -o i.index --embedder openai:m",
        "add i.index more.jsonl",
        "select i.index cards --explain",
        "export i.index queries.jsonl -o out.jsonl --as prompts",
        "export i.index queries.jsonl -o batch.jsonl --as openai-batch --model gpt",
        "ask i.index cards --backend openai:m",
        "compact i.index",
        "verify i.index",
        "info i.index",
    )
    assert "fine" in said
    run(1, "ask i.index cards --backend openai:401")
    run(1, "--debug ask i.index cards --backend openai:401")
    run(1, "--debug build pool.jsonl -o failed.index --embedder openai:403")
    return run


def spellings() -> list[bytes]:
    """The key, its recognisable part, and both as base64 and hexadecimal digits would hide them."""
    encoded = [base64.b64encode(KEY.encode()[start:])[4:-4] for start in range(3)]
    return [KEY.encode(), b"CANARY", KEY[-12:].encode(), KEY.encode().hex().encode(), *encoded]


def leaks(folder: Path) -> list[tuple[str, bytes]]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return [(str(path.relative_to(folder)), one) for path in files for one in spellings() if one in path.read_bytes()]


def test_the_server_was_sent_the_key_with_every_request(run, server):
    assert len(server.keys) > 6
    assert set(server.keys) == {f"Bearer {KEY}"}


def test_the_key_is_in_no_file_that_was_written(run):
    names = {str(path.relative_to(run.folder)) for path in run.folder.rglob("*")}
    assert {"i.index/CURRENT", "i.index/pool.sqlite", "i.index/gen-000002/manifest.json", "out.jsonl"} <= names
    assert (run.folder / "log.txt").stat().st_size > 1000
    assert leaks(run.folder) == []


def test_the_key_is_in_nothing_that_was_printed_and_the_failures_were(run):
    assert "answered 401" in run.said
    assert "Incorrect API key provided: ***" in run.said
    assert "Traceback" in run.said
    assert [one for one in spellings() if one in run.said.encode()] == []


def test_the_search_has_teeth(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "clear.bin").write_bytes(b"\x00" + KEY.encode() + b"\x00")
    (tmp_path / "encoded.txt").write_bytes(base64.b64encode(b"x" + KEY.encode()))
    (tmp_path / "clean.txt").write_bytes(b"nothing here")
    assert {name for name, _ in leaks(tmp_path)} == {"a/clear.bin", "encoded.txt"}

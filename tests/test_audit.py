"""Opening an index and answering from it runs no code, starts no process and asks no network.

In a process of its own, Python's audit hook fails at each such event, from the moment at which everything is imported
and has been used once on another index. Imports are no exception: the warm-up has made all that are needed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.support import build

ROOT = Path(__file__).parents[1]
PICKLE = "cos\nsystem\n(S'touch PWNED'\ntR."
HOSTILE = [
    {"id": PICKLE, "input": PICKLE, "output": PICKLE, "label": PICKLE, "meta": {"lang": PICKLE}},
    {
        "id": "bytes",
        "input": "\x80\x04\x95 gASV pickle in base64",
        "output": "gASVIAAAAAAAAACMBXBvc2l4lIwGc3lzdGVtlJOU",
    },
    {
        "id": "json",
        "input": {
            "__reduce__": ["os.system", ["touch PWNED"]],
            "py/object": "os.system",
            "__class__": "os._wrap_close",
        },
        "output": {"lc": 1, "type": "constructor", "id": ["subprocess", "Popen"], "kwargs": {"args": "touch PWNED"}},
        "meta": {"__proto__": {"x": 1}, "__init__": "__import__('os').system('touch PWNED')", "lang": "en"},
    },
    {
        "id": "template",
        "input": "{input.__class__.__init__.__globals__} {{ cycler.__init__.__globals__.os.popen('touch PWNED') }}",
        "output": "${input} $output $$ %(input)s <% import os %> {% for x in y %} `touch PWNED` $(touch PWNED)",
        "label": "{0.__class__}",
        "meta": {"lang": "en"},
    },
    *({"id": f"r{n}", "input": f"plain question {n}", "output": "plain", "meta": {"lang": "en"}} for n in range(20)),
]
TEMPLATE = """
name = "audited"
system = "Labels: $labels"
input = "Q: $input"
output = "A: $output"
text_input = "Q: $input\\n"
text_output = "A: $output"
"""
PROGRAM = """
import sys
from pathlib import Path
from retriever import Example, Retriever, Recipe
from retriever.export import ExportSettings, export

FORBIDDEN = {
    "pickle.find_class", "marshal.loads", "exec", "compile", "code.__new__", "ctypes.dlopen",
    "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty", "pty.spawn", "subprocess.Popen",
    "socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.bind", "urllib.Request",
}
armed, seen = False, []

def hook(event, arguments):
    if armed and event in FORBIDDEN:
        seen.append(event)
        raise RuntimeError(f"audited: {event} {arguments!r}"[:300])

def use(index, template, out):
    with Retriever.open(index) as opened:
        queries = [Example("q1", "plain question 3"), Example("json", "plain __reduce__ {input} $output")]
        for query in queries:
            for mode in ("hybrid", "dense", "lexical"):
                assert len(opened.select(query, mode=mode, k=5))
            opened.select(query, where='lang == "en" and not (id in ["r1"])', guard="near")
            opened.select(query, where={"lang": "en"}, strategy="random", fusion="rrf")
            made = opened.prompt(query, k=30, prompt_options={"template": template, "collisions": "drop"})
            assert made.messages and made.text
        assert opened.labels and opened.info()
        settings = ExportSettings("prompts", Recipe().with_options({"mode": "lexical", "k": 3}))
        assert export(opened, queries, out, settings) == 2

other, hostile, template, folder = map(Path, sys.argv[1:5])
use(other, template, folder / "warm.jsonl")
sys.addaudithook(hook)
armed = True
try:
    ACTION
finally:
    armed = False
print("done", seen)
"""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("audit")
    plain = [
        {"id": f"r{n}", "input": f"plain question {n}", "output": "x", "label": "l", "meta": {"lang": "en"}}
        for n in range(9)
    ]
    build(plain, folder / "other", embedder="latent", weight=0.5).close()
    with build(HOSTILE, folder / "hostile", embedder="latent", weight=0.5) as retriever:
        retriever.add({**HOSTILE[0], "id": "added"})  # a tail, too
        retriever.remove(["r1"])
    (folder / "template.toml").write_text(TEMPLATE)
    return folder


def audited(folder: Path, action: str) -> subprocess.CompletedProcess[str]:
    program = textwrap.dedent(PROGRAM).replace("ACTION", action)
    arguments = [folder / "other", folder / "hostile", folder / "template.toml", folder]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_a_hostile_index_is_opened_searched_put_into_prompts_and_exported_without_running_anything(prepared):
    result = audited(prepared, 'use(hostile, template, folder / "hostile.jsonl")')
    assert (result.returncode, result.stdout, result.stderr) == (0, "done []\n", "")
    assert not list(prepared.rglob("PWNED"))
    records = [json.loads(line) for line in (prepared / "hostile.jsonl").read_text().splitlines()]
    assert [record["query_id"] for record in records] == ["q1", "json"]


@pytest.mark.parametrize(
    ("event", "module", "violation"),
    [
        ("pickle.find_class", "pickle", "pickle.loads(b'cos\\nsystem\\n.')"),
        ("marshal.loads", "marshal", "marshal.loads(marshal.dumps(1))"),
        ("compile", "sys", "eval('1 + 1')"),
        ("exec", "sys", "exec(use.__code__)"),
        ("code.__new__", "sys", "use.__code__.replace(co_name='other')"),
        ("os.system", "os", "os.system('true')"),
        ("os.exec", "os", "os.execv('/bin/true', ['true'])"),
        ("os.posix_spawn", "os", "os.posix_spawn('/bin/true', ['true'], {})"),
        ("subprocess.Popen", "subprocess", "subprocess.run(['true'])"),
        ("socket.connect", "socket", "socket.socket().connect(('127.0.0.1', 9))"),
        ("socket.getaddrinfo", "socket", "socket.getaddrinfo(None, 80)"),
        ("ctypes.dlopen", "ctypes", "ctypes.CDLL(None)"),
    ],
)
def test_the_hook_has_teeth(event, module, violation):
    # The same hook, without the library: the first part of the program alone.
    head = PROGRAM.partition("def use(")[0].replace("from retriever import Example, Retriever, Recipe\n", "")
    head = head.replace("from retriever.export import ExportSettings, export\n", "")
    program = f"{head}\nimport {module}\ndef use(): pass\nsys.addaudithook(hook)\narmed = True\n{violation}\n"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 1
    assert f"RuntimeError: audited: {event} " in result.stderr


def test_a_violation_while_an_index_is_used_is_caught(prepared):
    result = audited(prepared, 'use(hostile, template, folder / "again.jsonl"); eval("1")')
    assert result.returncode == 1
    assert "RuntimeError: audited: compile" in result.stderr

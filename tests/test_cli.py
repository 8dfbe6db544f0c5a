"""The command line: what each verb prints, where it prints it, and with which exit code it ends."""

import contextlib
import fcntl
import io
import json
import os
import pty
import re
import shlex
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer

import cli
from retriever import Retriever
from retriever.command_line import terminal
from retriever.command_line.display import emit_json, figure
from retriever.command_line.running import read_query, show_tracebacks
from tests.support import Reply, answering, build, embed, run

ROOT = Path(cli.__file__).parent
PROGRAM = [sys.executable, "-c", "import cli; cli.main()"]
LATENT = ("--embedder", "latent")
TICKETS = [
    {"id": "a", "text": "my card has not arrived", "intent": "card_arrival"},
    {"id": "b", "text": "the card was eaten by the machine", "intent": "card_swallowed"},
    {"id": "c", "text": "how do I top up my account", "intent": "top_up"},
    {"id": "d", "text": "why was my transfer declined", "intent": "declined"},
]
NASTY = "red \x1b[31mtext\x07 \u202egnp.exe \x9b2J card"
UPPER = f"command:{sys.executable} -c 'import sys; print(sys.stdin.read().upper())'"


@pytest.fixture(autouse=True)
def no_debug_left():
    yield
    show_tracebacks(False)


def ok(*arguments, input=None):
    result = run(*arguments, input=input)
    assert result.exit_code == 0, result.stderr
    return result


def data(*arguments, input=None):
    return json.loads(ok(*arguments, input=input).stdout)


def error(code, *arguments, input=None):
    """The one line on standard error of a command that fails with this exit code."""
    result = run(*arguments, input=input)
    assert result.exit_code == code, (result.exit_code, result.stderr)
    assert result.stdout == ""
    *_, last = result.stderr.splitlines()
    assert last.startswith("error: ")
    assert "Traceback" not in result.stderr
    return last


def jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def environment():
    return {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "100", "TERM": "xterm-256color", "HF_HUB_OFFLINE": "1"}


def process(*arguments, **options):
    return subprocess.run(
        [*PROGRAM, *map(str, arguments)], env=environment(), capture_output=True, timeout=60, check=False, **options
    )


def shell(redirection, *arguments):
    """The program with its streams redirected as a shell does it."""
    words = [*PROGRAM, *map(str, arguments)]
    return subprocess.run(
        f"{shlex.join(words)} {redirection}",
        shell=True,
        env=environment(),
        capture_output=True,
        timeout=60,
        check=False,
    )


def on_terminal(*command):
    """What a program writes to a terminal, and its exit code."""
    ours, theirs = pty.openpty()
    child = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment())
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # Linux reports the end of a terminal as an error
        while block := os.read(ours, 65536):
            shown += block
    os.close(ours)
    return shown.decode(), child.wait(timeout=60)


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    return jsonl(tmp_path_factory.mktemp("pool") / "tickets.jsonl", TICKETS)


@pytest.fixture
def index(pool, tmp_path):
    path = tmp_path / "tickets.index"
    ok("build", pool, "-o", path, "--input", "text", "--output", "intent", *LATENT)
    return path


@pytest.fixture(scope="module")
def shared(pool, tmp_path_factory):
    """An index that no test changes."""
    path = tmp_path_factory.mktemp("shared") / "tickets.index"
    ok("build", pool, "-o", path, "--input", "text", "--output", "intent", *LATENT)
    return path


@pytest.fixture(scope="module")
def nasty(tmp_path_factory):
    folder = tmp_path_factory.mktemp("nasty")
    path = jsonl(folder / "p.jsonl", [{"id": NASTY, "input": NASTY, "output": NASTY}, {"input": "b", "output": "c"}])
    ok("build", path, "-o", folder / "x.index", *LATENT)
    return folder / "x.index"


# Help


VERBS = typer.main.get_command(cli.app).commands


@pytest.mark.parametrize("name", [name for name in VERBS if name != "recipe"])
def test_each_command_explains_itself_in_a_short_line_and_two_examples(name):
    shown = ok(name, "--help").stdout
    assert ok(name, "-h").stdout == shown
    first = VERBS[name].help.splitlines()[0]
    assert 0 < len(first) <= 65
    assert first in shown
    usage, *examples = [line for line in shown.splitlines() if f"retriever {name}" in line]
    assert usage.startswith("Usage:")
    assert len(examples) == 2


def test_the_commands_are_the_promised_verbs():
    assert {"build", "select", "prompt", "export", "add", "remove", "info", "demo", "ask"} <= set(VERBS)


def test_help_imports_nothing_heavy():
    script = (
        "import sys, cli\nfrom typer.testing import CliRunner\n"
        "for arguments in (['--help'], ['select', '-h']):\n"
        "    assert CliRunner().invoke(cli.app, arguments).exit_code == 0\n"
        "print([m for m in ('torch', 'sklearn', 'sentence_transformers', 'faiss', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], env=environment(), capture_output=True, check=True)
    assert done.stdout == b"[]\n"


def test_the_version_names_the_index_format_and_the_native_parts():
    shown = ok("--version").stdout
    assert shown.startswith("demonstration-retriever ")
    assert all(name in shown for name in ("index format 1", "SQLite", "numpy", "faiss-cpu", "torch"))


# The verbs, one after the other


def test_the_verbs_work_together_on_json_lines(index, tmp_path):
    found = data("info", index)
    assert (found["examples"], found["generation"], found["embedder"]["name"]) == (4, "gen-000001", "latent-semantic")

    selection = data("select", index, "where is my card", "-k", 2)
    assert [d["rank"] for d in selection["demonstrations"]] == [2, 1]  # as they stand in the prompt
    assert "a" in [d["id"] for d in selection["demonstrations"]]

    messages = data("prompt", index, "where is my card", "-k", 1)
    assert [m["role"] for m in messages][-3:] == ["user", "assistant", "user"]
    assert messages[-1]["content"] == "where is my card"
    text = ok("prompt", index, "where is my card", "-k", 1, "--format", "text").stdout
    assert "where is my card" in text

    queries = jsonl(tmp_path / "q.jsonl", [{"id": "q1", "input": "card"}, {"id": "q2", "input": "top up"}])
    exported = ok("export", index, queries, "-o", tmp_path / "o.jsonl", "-k", 2)
    assert (exported.stdout, exported.stderr) == ("", f"2 records in {tmp_path / 'o.jsonl'}\n")
    records = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    assert [one["query_id"] for one in records] == ["q1", "q2"]
    assert [len(one["demonstration_ids"]) for one in records] == [2, 2]

    new = jsonl(tmp_path / "new.jsonl", [{"id": "e", "text": "freeze the card", "intent": "freeze"}])
    added = data("add", index, new, "--input", "text", "--output", "intent")
    assert added == {"added": ["e"], "bad_rows": 0, "examples": 5}
    assert data("select", index, "freeze", "-k", 1)["demonstrations"][0]["id"] == "e"

    assert data("remove", index, "e", "a") == {"removed": 2, "examples": 3}
    left = data("select", index, "freeze my card")["demonstrations"]
    assert {d["id"] for d in left} == {"b", "c", "d"}


def test_a_csv_pool_is_read_by_the_named_columns(tmp_path):
    pool = tmp_path / "faq.csv"
    pool.write_text('id,question,answer\n1,"where, please, is it","over\nthere"\n2,how much is it,ten\n')
    made = data("build", pool, "-o", tmp_path / "x.index", "--input", "question", "--output", "answer", *LATENT)
    assert (made["examples"], made["bad_rows"]) == (2, 0)
    found = data("select", tmp_path / "x.index", "where is it")["demonstrations"]
    assert {d["id"]: d["example"]["output"] for d in found} == {"1": "over\nthere", "2": "ten"}


def test_of_two_pool_files_the_second_of_an_id_is_set_aside(tmp_path):
    one = jsonl(tmp_path / "one.jsonl", [{"id": "x", "input": "one", "output": "1"}])
    two = jsonl(
        tmp_path / "two.jsonl", [{"id": "y", "input": "two", "output": "2"}, {"id": "x", "input": "3", "output": "3"}]
    )
    result = ok("build", one, two, "-o", tmp_path / "x.index", *LATENT)
    made = json.loads(result.stdout)
    assert (made["examples"], made["bad_rows"]) == (2, 1)
    assert f"set aside: {two}:2: duplicate id 'x', first at {one}:1" in result.stderr.replace('"', "'")
    assert "1 bad rows were set aside" in result.stderr


def test_a_dash_reads_the_pool_the_examples_and_the_query_from_standard_input(tmp_path):
    rows = '{"id": "1", "input": "where is it", "output": "x"}\n{"id": "2", "input": "how much", "output": "y"}\n'
    path = tmp_path / "x.index"
    assert data("build", "-", "-o", path, *LATENT, input=rows)["examples"] == 2
    assert data("add", path, "-", input='{"id": "3", "input": "why", "output": "z"}\n')["added"] == ["3"]
    assert data("select", path, "-", input="how much\n")["query"]["input"] == "how much"
    query = data("select", path, "-", "-k", 1, input='{"id": "1", "input": "where is it", "meta": {"n": 1}}')
    assert query["query"]["id"] == "1"
    assert query["demonstrations"][0]["id"] != "1"  # the query itself is in the pool
    out = ok("export", path, "-", "-o", "-", "-k", 1, input='{"id": "q", "input": "why"}\n')
    assert json.loads(out.stdout)["query_id"] == "q"


def test_export_writes_batch_requests_for_a_model(shared, tmp_path):
    queries = jsonl(tmp_path / "q.jsonl", [{"id": "q", "input": "card"}])
    ok("export", shared, queries, "-o", tmp_path / "o.jsonl", "--as", "openai-batch", "--model", "m", "-k", 0)
    request = json.loads((tmp_path / "o.jsonl").read_text())
    assert (request["custom_id"], request["body"]["model"]) == ("q", "m")


def test_export_sets_bad_queries_aside_and_says_how_many(shared, tmp_path):
    (tmp_path / "q.jsonl").write_text('{"id": "1", "input": "card"}\noops\n')
    result = ok("export", shared, tmp_path / "q.jsonl", "-o", tmp_path / "o.jsonl")
    assert "1 bad rows were set aside" in result.stderr
    assert "1 record in" in result.stderr


def test_an_option_overrides_the_recipe_file(shared, tmp_path):
    (tmp_path / "r.toml").write_text('[select]\nk = 3\n[retrieve]\nmode = "lexical"\n')
    recipe = data("select", shared, "card", "--recipe", tmp_path / "r.toml", "-k", 1)["recipe"]
    assert (recipe["select"]["k"], recipe["retrieve"]["mode"]) == (1, "lexical")


def test_a_zero_is_a_value_and_not_an_option_left_out(shared, tmp_path):
    (tmp_path / "r.toml").write_text("[select]\nk = 3\nseed = 9\n[retrieve]\nweight = 0.9\n")
    zeros = ("-k", 0, "--weight", 0, "--seed", 0)
    selection = data("select", shared, "card", "--recipe", tmp_path / "r.toml", *zeros)
    assert selection["demonstrations"] == []
    recipe = selection["recipe"]
    assert (recipe["select"]["k"], recipe["select"]["seed"], recipe["retrieve"]["weight"]) == (0, 0, 0.0)


def test_build_honours_a_weight_of_zero(pool, tmp_path):
    fields = ("--input", "text", "--output", "intent")
    assert data("build", pool, "-o", tmp_path / "x", *fields, "--weight", 0, *LATENT)["fusion"]["weight"] == 0


def test_demo_shows_demonstrations_and_the_prompt():
    shown = ok("demo", "the parcel is late again", "-k", 2, *LATENT).stdout
    assert "Embedder: latent-semantic." in shown
    assert "Query: the parcel is late again" in shown
    assert "2 of " in shown
    assert shown.index("rank") < shown.index("The prompt") < shown.rindex("the parcel is late again")


# Ask


def test_ask_prints_the_answer_of_the_program(shared):
    prompt = ok("prompt", shared, "where is my card", "-k", 1, "--format", "text").stdout
    answer = ok("ask", shared, "where is my card", "-k", 1, "--backend", UPPER).stdout
    assert answer.strip() == prompt.upper().strip()


def test_ask_explains_which_demonstrations_it_used(shared):
    shown = ok("ask", shared, "card", "-k", 1, "--backend", UPPER, "--explain").stdout
    assert "1 of 4 eligible examples" in shown
    assert "CARD" in shown


@pytest.mark.parametrize(
    ("options", "lines"),
    [
        (
            ["--weight", 0.25],
            ["retrieve: mode hybrid, weight 0.25, rule convex", "guard: level self", "select: strategy top, k 1"],
        ),
        (
            ["--fusion", "rrf", "--weight", 0.25, "--strategy", "mmr", "--option", "weight=0.4", "--seed", 7],
            [
                "retrieve: mode hybrid, weight 0.25, rule rrf, rrf_k 60",
                "guard: level self",
                "select: strategy mmr, k 1, seed 7, candidates 100, weight 0.4, scaling raw",
            ],
        ),
        (
            ["--mode", "lexical", "--weight", 0.25, "--guard", "near", "--where", "label != 3", "--order", "edges"],
            [
                "retrieve: mode lexical",
                "guard: level near, threshold 0.9",
                "filter: where label != 3",
                "select: strategy top, k 1",
                "order: by edges",
            ],
        ),
    ],
)
def test_what_decided_is_explained_and_what_did_not_is_left_out(shared, options, lines):
    shown = ok("ask", shared, "card", "-k", 1, "--backend", UPPER, "--explain", *options).stdout
    told = re.findall(r"^(?:retrieve|guard|filter|select|order|rerank|budget|constraints|adaptive): .*", shown, re.M)
    assert told == lines


def test_a_number_that_rounds_to_nothing_has_no_sign():
    assert [figure(-0.0004), figure(-0.0004, "+"), figure(-0.0006), figure(0.0)] == [
        "0.000",
        "+0.000",
        "-0.001",
        "0.000",
    ]


def test_ask_gives_answer_and_selection_as_json(shared):
    found = data("ask", shared, "card", "-k", 1, "--backend", UPPER, "--json")
    assert set(found) == {"answer", "tokens", "selection"}
    assert "CARD" in found["answer"]
    assert len(found["selection"]["demonstrations"]) == 1


@pytest.mark.parametrize(("kind", "form"), [("command", "text"), ("command-json", "messages")])
def test_ask_counts_the_prompt_in_the_form_that_the_program_reads(shared, kind, form):
    program = f"{kind}:{sys.executable} -c 'print(1)'"
    asked = data("ask", shared, "card", "-k", 2, "--backend", program, "--json")["tokens"]
    with Retriever.open(shared) as index:
        counts = {
            name: index.prompt("card", k=2, prompt_options={"form": name}).tokens for name in ("text", "messages")
        }
    assert counts["text"] != counts["messages"]
    assert asked == counts[form]


def test_a_program_that_fails_is_an_error_in_one_line(shared):
    line = error(1, "ask", shared, "card", "--backend", f"command:{sys.executable} -c 'raise SystemExit(3)'")
    assert "exit code 3" in line


# What is read and what is written


@pytest.mark.parametrize("name", ["mine.jsonl", "link.jsonl", "-"])
@pytest.mark.parametrize("command", ["export", "report"])
def test_what_is_read_is_not_written_over(shared, tmp_path, command, name):
    mine = jsonl(tmp_path / "mine.jsonl", [{"input": "card", "output": "x"}])
    (tmp_path / "link.jsonl").symlink_to(mine)
    before = mine.read_bytes()
    named = name if name == "-" else tmp_path / name
    queries = ("--queries", named) if command == "report" else (named,)
    with mine.open("rb") as stdin:
        done = process(command, shared, *queries, "-o", mine, stdin=stdin)
    seen = "standard input" if name == "-" else named
    line = f"error: {mine} is to be written and is read, too ({seen}); name another file to write to: -o\n"
    assert (done.returncode, done.stdout, done.stderr.decode()) == (2, b"", line)
    assert mine.read_bytes() == before


def test_a_recipe_or_template_that_is_used_is_not_written_over(shared, tmp_path):
    queries = jsonl(tmp_path / "q.jsonl", [{"input": "card"}])
    for option in ("--recipe", "--template"):
        file = tmp_path / f"{option[2:]}.jsonl"
        file.write_text("")
        assert "is read, too" in error(2, "export", shared, queries, "-o", file, option, file)
    page = tmp_path / "r.toml"
    page.write_text("[select]\nk = 2\n")
    assert "is read, too" in error(2, "report", shared, "-o", page, "--recipe", page)
    assert page.read_text() == "[select]\nk = 2\n"


def test_nothing_is_written_into_an_index(index, tmp_path):
    queries = jsonl(tmp_path / "q.jsonl", [{"input": "card"}])
    assert "is in the index" in error(2, "report", index, "-o", index / "CURRENT")
    assert "is in the index" in error(2, "export", index, queries, "-o", index / "new.jsonl")
    assert data("verify", index)["intact"]


@pytest.mark.parametrize(("name", "content"), [("empty.jsonl", ""), ("header.csv", "input,output\n"), ("-", "\n\n")])
def test_nothing_does_not_replace_the_examples_of_an_index(index, tmp_path, name, content):
    source = name
    if name != "-":
        source = tmp_path / name
        source.write_text(content)
    line = error(2, "build", source, "-o", index, "--overwrite", *LATENT, input=content)
    named = "standard input" if name == "-" else source
    assert line.startswith(f"error: {named} holds no example, and the index {index} has 4; expected at least one")
    assert data("info", index)["examples"] == 4
    assert data("verify", index)["intact"]


def test_an_index_without_examples_is_built_with_a_note(tmp_path):
    (tmp_path / "one.jsonl").touch()
    (tmp_path / "two.jsonl").touch()
    files = (tmp_path / "one.jsonl", tmp_path / "two.jsonl")
    result = ok("build", files[0], "-o", tmp_path / "x.index", *LATENT)
    assert result.stderr.startswith(f"note: {files[0]} holds no example\n")
    assert json.loads(result.stdout)["examples"] == 0
    result = ok("build", *files, "-o", tmp_path / "x.index", "--overwrite", *LATENT)  # nothing is lost
    assert result.stderr.startswith(f"note: {files[0]}, {files[1]} hold no example\n")


@pytest.mark.parametrize("command", ["add", "update", "export", "eval", "tune", "audit", "report"])
def test_rows_of_which_none_is_usable_are_7_and_change_nothing(index, tmp_path, command):
    bad, out = tmp_path / "bad.jsonl", tmp_path / "out.jsonl"
    bad.write_text('{"inputt": "card"}\noops\n')
    out.write_text("kept")
    after = ("-o", out) if command in ("export", "report") else ()
    arguments = (command, index, *(("--queries", bad) if command == "report" else (bad,)), *after)
    assert error(7, *arguments).startswith("error: no usable row: all 2 rows were set aside; mend what is told above")
    told = run(*arguments).stderr
    assert f"set aside: {bad}:1: missing field 'input'; the row has 'inputt'" in told
    assert f"set aside: {bad}:2: not JSON: Expecting value at column 1" in told
    assert (out.read_text(), data("info", index)["revision"]) == ("kept", 1)
    assert list(tmp_path.glob("*out.jsonl*")) == [out]


def test_a_file_without_a_row_is_no_bad_one(index, tmp_path):
    (tmp_path / "empty.jsonl").touch()
    assert data("add", index, tmp_path / "empty.jsonl")["added"] == []
    ok("export", index, tmp_path / "empty.jsonl", "-o", tmp_path / "o.jsonl")
    assert (tmp_path / "o.jsonl").read_text() == ""


def test_an_id_that_the_pool_has_is_no_usable_row(index, tmp_path):
    there = jsonl(tmp_path / "n.jsonl", [{"id": "a", "input": "x", "output": "y"}])
    assert error(7, "add", index, there).startswith("error: no usable row: the only row was set aside")
    assert "the pool already" in run("add", index, there).stderr


LATIN = "id,input,output\nz,café,salé\n".encode("latin-1")


@pytest.mark.parametrize("command", ["add", "update", "eval", "tune", "audit", "export", "report"])
def test_a_file_is_read_as_its_options_say(index, tmp_path, command):
    (tmp_path / "n.txt").write_bytes(LATIN)
    source = ("--queries", tmp_path / "n.txt") if command == "report" else (tmp_path / "n.txt",)
    out = ("-o", tmp_path / "o.jsonl") if command in ("export", "report") else ()
    arguments = (command, index, *source, *out)
    assert "name the format (format=, --format): jsonl" in error(2, *arguments)
    error(7, *arguments, "--format", "csv")
    assert "for example --encoding latin-1" in run(*arguments, "--format", "csv").stderr
    if command == "tune":  # it has read the one query, and asks for more
        assert "expected at least 8" in error(2, *arguments, "--format", "csv", "--encoding", "latin-1")
        return
    assert "set aside" not in ok(*arguments, "--format", "csv", "--encoding", "latin-1").stderr
    if command in ("add", "update"):
        found = data("select", index, "café", "-k", 1)["demonstrations"][0]["example"]
        assert (found["input"], found["output"]) == ("café", "salé")


def test_add_reads_a_table_of_sqlite_and_csv_from_standard_input(index, tmp_path):
    with contextlib.closing(sqlite3.connect(tmp_path / "p.db")) as database, database:
        for table in ("old", "new"):
            database.execute(f"CREATE TABLE {table} (id TEXT, input TEXT, output TEXT)")
            database.execute(f"INSERT INTO {table} VALUES ('{table}', 'of {table}', 'x')")
    assert error(2, "add", index, tmp_path / "p.db").endswith("name the table to read: table=, --table")
    assert data("add", index, tmp_path / "p.db", "--table", "new")["added"] == ["new"]
    done = process("add", index, "-", "--format", "csv", "--encoding", "latin-1", input=LATIN)
    assert json.loads(done.stdout)["added"] == ["z"]


def test_one_row_is_one_row(index, tmp_path, monkeypatch):
    new = jsonl(tmp_path / "n.jsonl", [{"id": "n", "input": "x", "output": "y"}])
    assert ok("export", index, new, "-o", "-").stderr == "1 record on standard output\n"
    monkeypatch.setattr("retriever.command_line.changing.wants_json", lambda flag: flag)  # as on a terminal
    assert ok("build", new, "-o", tmp_path / "x.index", *LATENT).stdout.startswith("1 example in ")
    assert ok("update", tmp_path / "x.index", new).stdout.endswith(", 1 example now\n")
    assert ok("add", index, new).stdout == "1 added, 5 examples now\n"
    assert ok("remove", index, "a", "b", "c", "d").stdout == "4 removed, 1 example now\n"


@pytest.mark.parametrize(
    ("given", "query"),
    [
        ("how much\r\n", "how much"),
        ("\ufeffhow much\n", "how much"),
        ("\r\nhow\r\nmuch\r\n\r\n", "how\r\nmuch"),
        ('{"input": "how much"}\r\n', {"input": "how much"}),
        ("[1]", "[1]"),
        ("500", "500"),
        ('{"error": 500', '{"error": 500'),
    ],
)
def test_a_query_on_standard_input_is_text_without_the_line_ends_around_it(monkeypatch, given, query):
    stdin = io.TextIOWrapper(io.BytesIO(given.encode()), encoding="utf-8", newline="\n")  # as Python opens it
    monkeypatch.setattr("sys.stdin", stdin)
    assert read_query("-") == query


def test_an_object_that_is_no_query_is_told_how_to_be_the_text(shared):
    line = error(2, "select", shared, "-", input='{"error": 500}')
    assert line.startswith(
        "error: a JSON object without 'input' on standard input: '{\"error\": 500}'; expected text, or"
    )
    assert line.endswith('to ask for this very text, put it into one: {"input": "..."}')


@pytest.mark.parametrize(
    ("options", "seen"),
    [
        (("--reserve", 50), "a reserve of 50 tokens without a budget; expected the budget, too: tokens=, --tokens"),
        (("--threshold", 0.5), "a threshold with the guard self, which has none; expected the guard near"),
        (("--where", "a == 1", "--where", "b == 2"), "--where 2 times; expected once; join them: "),
    ],
)
def test_an_option_that_would_be_ignored_is_2(shared, options, seen):
    assert seen in error(2, "prompt", shared, "card", *options)


def test_filters_are_joined_as_the_refusal_says(shared):
    line = error(2, "select", shared, "card", "--where", "id != 'a'", "--where", "id != 'b' or id == 'b'")
    joined = "(id != 'a') and (id != 'b' or id == 'b')"
    assert line.endswith(f"--where '{joined}'")
    assert {d["id"] for d in data("select", shared, "card", "--where", joined)["demonstrations"]} == {"b", "c", "d"}
    assert "--where 2 times" in error(2, "curate", shared, "--budget", 1, "--where", "a == 1", "--where", "b == 2")


# Streams that are closed or full


@pytest.mark.parametrize(
    "arguments", [("--help",), ("select", "-h"), ("--version",), ("recipe", "show"), ("select", "INDEX", "card")]
)
@pytest.mark.parametrize(("to", "why"), [(">/dev/full", "No space left on device"), (">&-", "Bad file descriptor")])
def test_output_that_cannot_be_written_is_1_and_named(shared, arguments, to, why):
    done = shell(to, *(shared if one == "INDEX" else one for one in arguments))
    assert (done.returncode, done.stderr) == (1, f"error: standard output cannot be written: {why}\n".encode())


def test_output_that_is_full_stops_an_export_and_a_table(shared, pool):
    for arguments in (
        ("export", shared, pool, "--input", "text", "-o", "-"),
        ("eval", shared, "--leave-one-out", 4, "--metric", "best-overlap", "--as", "csv"),
    ):
        done = shell(">/dev/full", *arguments)
        assert done.returncode == 1
        assert done.stderr.endswith(b"error: standard output cannot be written: No space left on device\n")


def test_who_writes_a_file_needs_no_standard_output(shared, pool, tmp_path):
    out = tmp_path / "o.jsonl"
    done = shell(">&- <&-", "export", shared, pool, "--input", "text", "-o", out)
    assert (done.returncode, len(out.read_text().splitlines())) == (0, 4)


def test_input_that_is_closed_is_2(shared):
    done = shell("<&-", "select", shared, "-")
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr == b"error: standard input cannot be read: Bad file descriptor; expected a query\n"
    done = shell("<&-", "audit", shared, "-")
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.startswith(b"error: stdin cannot be read: ")


def test_without_standard_error_the_exit_code_tells(shared, tmp_path):
    done = shell("2>&-", "select", shared, "card")
    assert (done.returncode, json.loads(done.stdout)["query"]["input"]) == (0, "card")
    assert shell("2>&-", "info", tmp_path / "none.index").returncode == 3
    assert shell("<&- >&- 2>&-", "info", tmp_path / "none.index").returncode == 3


# Exit codes


def test_a_usage_error_is_2(shared):
    assert run("select", shared).exit_code == 2
    assert run("select", shared, "q", "--mode", "psychic").exit_code == 2
    assert run("nonsense").exit_code == 2


@pytest.mark.parametrize(
    ("options", "seen"),
    [
        (("--weight", 2), "weight = 2"),
        (("-k", -1), "k = -1"),
        (("--where", "a =="), "filter"),
        (("--recipe", "missing.toml"), "missing.toml"),
        (("--fixed", "zz"), "'zz'"),
    ],
)
def test_a_recipe_that_cannot_be_used_is_2(shared, options, seen):
    assert seen in error(2, "select", shared, "q", *options)


@pytest.mark.parametrize(
    "options",
    [("--as", "openai-batch"), ("--as", "demos", "--model", "m"), ("--slot", "nope"), ("--weight", 2)],
)
def test_an_export_that_cannot_be_used_is_2_and_leaves_no_file(shared, tmp_path, options):
    queries = jsonl(tmp_path / "q.jsonl", [{"input": "card"}])
    error(2, "export", shared, queries, "-o", tmp_path / "o.jsonl", *options)
    assert not (tmp_path / "o.jsonl").exists()


def test_a_query_that_is_not_utf_8_is_2(shared):
    line = "error: a query that is not UTF-8; expected text in UTF-8"
    assert error(2, "select", shared, "\udcff card") == line  # as Python hands over a byte of an argument
    done = process("select", shared, "-", input=b"\xff card")
    assert (done.returncode, done.stdout, done.stderr) == (2, b"", f"{line}\n".encode())


def test_a_missing_index_is_3(tmp_path):
    for arguments in (("info",), ("select", "q"), ("remove", "a")):
        line = error(3, arguments[0], tmp_path / "none.index", *arguments[1:])
        assert "no index at" in line
        assert "retriever build" in line
    assert not (tmp_path / "none.index").exists()


def flip(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_damage_in_every_generation_is_4_and_in_the_newest_a_note(index, tmp_path, monkeypatch):
    monkeypatch.setattr("retriever.live.COMPACT_AFTER", 0)  # so that one addition publishes a generation
    data("add", index, jsonl(tmp_path / "n.jsonl", [{"id": "e", "input": "freeze the card", "output": "freeze"}]))
    first, second = sorted(index.glob("gen-*/vectors.npy"))
    flip(second)
    result = ok("select", index, "freeze", "-k", 1)
    assert json.loads(result.stdout)["generation"] == first.parent.name
    assert json.loads(result.stdout)["demonstrations"][0]["id"] == "e"
    assert result.stderr.startswith("note: DAMAGED INDEX")
    assert result.stderr.count("\n") == 1
    flip(first)
    for command in (("info", index), ("select", index, "card")):
        assert "vectors.npy" in error(4, *command)


def test_damage_after_a_rebuild_is_told_once(index, pool):
    ok("build", pool, "-o", index, "--input", "text", "--output", "intent", "--overwrite", *LATENT)
    flip(sorted(index.glob("gen-*/vectors.npy"))[-1])
    result = run("select", index, "card")
    assert result.exit_code in (0, 4)
    assert result.stderr.count("DAMAGED INDEX") <= 1
    assert "try again" not in result.stderr


def lengths(path, headers, body):
    """An embeddings endpoint that gives every text a vector of its length."""
    vectors = [{"object": "embedding", "index": i, "embedding": [1.0, len(t)]} for i, t in enumerate(body["input"])]
    return Reply(200, {"object": "list", "model": "m", "data": vectors})


def test_an_embedder_of_another_kind_is_5(shared):
    with answering(lengths) as url:
        done = process("select", shared, "card", "--embedder", "openai:m", "--embedder-url", url)
    assert (done.returncode, done.stdout) == (5, b""), done.stderr
    assert done.stderr.startswith(b"error: embedder openai:m (2 dimensions")
    assert b"expected latent-semantic" in done.stderr
    assert done.stderr.count(b"\n") == 1


@pytest.fixture
def of_a_function(tmp_path):
    rows = [{"input": row["text"], "output": row["intent"]} for row in TICKETS]
    build(rows, tmp_path / "f.index", embedder=embed).close()
    return tmp_path / "f.index"


def test_an_embedder_that_only_its_owner_has_is_5(of_a_function):
    assert "which only its owner can bring" in error(5, "select", of_a_function, "card")


def test_latent_for_an_index_of_another_embedder_is_5(of_a_function):
    error(5, "select", of_a_function, "card", *LATENT)


def test_an_index_whose_lock_another_process_holds_is_6(index, tmp_path):
    script = "import fcntl, sys; f = open(sys.argv[1], 'r+'); fcntl.flock(f, fcntl.LOCK_EX); print('held', flush=True)"
    holder = subprocess.Popen(
        [sys.executable, "-c", f"{script}; sys.stdin.read()", index / "LOCK"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with holder:
        assert holder.stdout.readline() == b"held\n"
        error(6, "remove", index, "a")
        error(6, "add", index, jsonl(tmp_path / "n.jsonl", [{"input": "x", "output": "y"}]))
        assert data("info", index)["examples"] == 4  # a reader does not wait for writers
        holder.stdin.close()
    assert data("remove", index, "a") == {"removed": 1, "examples": 3}


def test_bad_rows_under_strict_are_7_and_change_nothing(index, tmp_path):
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"id": "n", "input": "new", "output": "x"}\nnot json\n')
    assert "1 bad row" in error(7, "build", bad, "-o", tmp_path / "b.index", "--strict", *LATENT)
    assert not (tmp_path / "b.index").exists()
    error(7, "add", index, bad, "--strict")
    assert data("info", index)["examples"] == 4
    error(7, "export", index, bad, "-o", tmp_path / "o.jsonl", "--strict")
    assert not (tmp_path / "o.jsonl").exists()


def test_a_pool_without_a_usable_row_is_7(pool, tmp_path):
    assert "no usable row" in error(7, "build", pool, "-o", tmp_path / "x.index", *LATENT)


def test_an_interrupt_is_130_and_leaves_nothing(tmp_path):
    path = tmp_path / "x.index"
    child = subprocess.Popen(
        [*PROGRAM, "build", "-", "-o", str(path), *LATENT],
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        deadline = time.monotonic() + 30
        while not held(path / "LOCK"):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        time.sleep(0.2)
        child.send_signal(signal.SIGINT)
        assert child.wait(timeout=30) == 130
    finally:
        child.kill()
        written = child.communicate()
    assert written == (b"", b"interrupted\n")
    assert not path.exists()


def held(path):
    if not path.exists():
        return False
    with path.open("r+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def test_an_error_is_one_line_of_a_real_process(tmp_path):
    done = process("info", tmp_path / "none.index")
    assert (done.returncode, done.stdout) == (3, b"")
    assert done.stderr.count(b"\n") == 1
    assert done.stderr.startswith(b"error: no index at ")


def test_the_module_runs_as_a_program(shared):
    done = subprocess.run([sys.executable, "-m", "cli", "info", shared], cwd=ROOT, capture_output=True, check=True)
    assert json.loads(done.stdout)["examples"] == 4


@pytest.mark.parametrize("before", [True, False])
def test_debug_shows_a_traceback_and_keeps_the_line_and_the_exit_code(shared, tmp_path, before):
    for code, of, *arguments in (
        (3, "IndexMissing", "info", tmp_path / "none.index"),
        (2, "InvalidInput", "select", shared, "q", "--weight", 2),
    ):
        result = run("--debug", *arguments) if before else run(*arguments, "--debug")
        lines = result.stderr.splitlines()
        assert (result.exit_code, result.stdout, lines[0]) == (code, "", "Traceback (most recent call last):")
        assert lines[-2].startswith(f"indexes.errors.{of}: ")
        assert lines[-1].startswith("error: ")


@pytest.mark.parametrize("place", [0, 2])
def test_debug_holds_for_one_run_only(tmp_path, place):
    arguments = ["info", tmp_path / "none.index"]
    run(*arguments[:place], "--debug", *arguments[place:])
    assert error(3, "info", tmp_path / "none.index").startswith("error: ")


# Terminals


def test_a_terminal_gets_a_table_without_colour_or_bar(shared):
    shown, code = on_terminal(*PROGRAM, "select", str(shared), "card", "-k", "2")
    assert code == 0
    head, *rows = shown.splitlines()
    assert head.split() == ["rank", "score", "dense", "lexical", "id", "example"]
    assert [row.split()[0] for row in rows if "→" in row] == ["1", "2"]
    assert "\x1b" not in shown


def test_json_on_a_terminal_is_asked_for(shared):
    shown, code = on_terminal(*PROGRAM, "select", str(shared), "card", "-k", "1", "--json")
    assert code == 0
    assert json.loads(shown)["query"]["input"] == "card"
    assert shown.startswith("{\r\n  ")


@pytest.mark.parametrize(
    "command",
    [("select", "--explain"), ("select", "--json"), ("prompt", "--format=text"), ("prompt", "--format=messages")],
    ids=" ".join,
)
def test_what_a_pool_holds_cannot_steer_the_terminal(nasty, command):
    verb, option = command
    shown, code = on_terminal(*PROGRAM, verb, str(nasty), "card", option)
    assert code == 0
    assert not set(shown) & {"\x1b", "\x07", "\x9b", "\u202e"}
    assert "gnp.exe" in shown


def test_an_error_that_quotes_data_cannot_steer_the_terminal(nasty):
    shown, code = on_terminal(*PROGRAM, "remove", str(nasty), "\x1b[31m\u202e")
    assert code == 2
    assert not set(shown) & {"\x1b", "\u202e"}


def test_json_escapes_control_characters_and_keeps_their_values(nasty):
    result = ok("select", nasty, "card")
    assert not set(result.stdout) & {"\x1b", "\x07", "\x9b", "\u202e"}
    found = {d["id"]: d for d in json.loads(result.stdout)["demonstrations"]}
    assert found[NASTY]["example"]["input"] == found[NASTY]["example"]["output"] == NASTY


def test_json_keeps_characters_beyond_the_first_plane(capsys):
    value = {"text": "日本 é 🏳 \U000e0041 \x85", "n": 1}
    emit_json(value)
    shown = capsys.readouterr().out
    assert json.loads(shown) == value
    assert "日本 é 🏳 \\udb40\\udc41 \\u0085" in shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [("a\tb", "a\\tb"), ("\x1b[0m", "\\x1b[0m"), ("\u2066x", "\\u2066x"), ("é→日", "é→日"), ("\x9b", "\\x9b")],
)
def test_printable_shows_what_it_cannot_print_as_an_escape(text, shown):
    assert terminal.printable(text) == shown


def test_printable_cuts_after_escaping():
    assert terminal.printable("abcdef", width=6) == "abcdef"
    assert terminal.printable("abcdefg", width=6) == "abcde…"
    assert terminal.printable("\x1b" * 3, width=6) == "\\x1b\\…"


WORK = (
    "import time\nfrom retriever.command_line import terminal\n"
    "passed = 0.0\ntime.monotonic = lambda: passed\n"
    "with terminal.progress() as told:\n"
    "    told('embedding', 1, 3)\n    passed += {pause}\n"
    "    told('embedding', 2, 3)\n    time.sleep(.3)\nprint('done')"
)


def test_a_bar_appears_on_a_terminal_for_long_work_only():
    shown, _ = on_terminal(sys.executable, "-c", WORK.format(pause=0.9))
    assert shown == "done\r\n"
    shown, _ = on_terminal(sys.executable, "-c", WORK.format(pause=1.1))
    assert "embedding" in shown
    assert "2/3" in shown


def test_no_bar_appears_in_a_pipe(capsys):
    with terminal.progress() as told:
        told("embedding", 1, 3)
    assert capsys.readouterr() == ("", "")


def test_a_reader_that_leaves_is_no_error(shared):
    child = subprocess.Popen(
        [*PROGRAM, "info", str(shared)], env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    child.stdout.close()
    assert child.stderr.read() == b""
    child.stderr.close()
    child.wait(timeout=30)


def test_a_source_that_is_none_is_refused_with_those_that_there_are(index):
    told = error(2, "adapt", index, "--from", "lables")
    assert "there is no file lables" in told
    assert "labels, outputs, templates, embeddings, or a file" in told


def test_prompt_explained_tells_what_each_demonstration_takes(looked_after):
    result = ok("prompt", looked_after / "i", "b number 1", "-k", 2, "--explain")
    messages = json.loads(result.stdout)
    assert [message["role"] for message in messages][-1] == "user"
    taken = [line for line in result.stderr.splitlines() if line.startswith("in the prompt: ")]
    assert len(taken) == 2
    assert all(re.fullmatch(r"in the prompt: r\d+: \d+ tokens: top, gain \d\.\d{3}", line) for line in taken)
    assert re.search(r"\d+ tokens in all, counted by estimate", result.stderr)


# --- curate and audit -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def looked_after(tmp_path_factory):
    folder = tmp_path_factory.mktemp("looked-after")
    rows = [{"id": f"r{i}", "input": f"{word} number {i}", "output": word} for i, word in enumerate("abcabcabcabc")]
    rows += [{"id": "odd", "input": "A number 0!", "output": "b", "label": "x"}]
    rows[0]["label"] = "y"
    (folder / "pool.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "queries.jsonl").write_text(json.dumps({"id": "q", "input": "b number 1"}) + "\n")
    ok("build", folder / "pool.jsonl", "-o", folder / "i", *LATENT, "--weight", "0.5")
    return folder


@pytest.mark.parametrize("strategy", ["votek", "kcenter", "facility", "dpp", "cluster"])
def test_curate_gives_what_the_library_chooses(looked_after, strategy):
    from retriever import Retriever
    from retriever.curation.curate import CurateSettings, curate

    given = data("curate", looked_after / "i", "--budget", 3, "--strategy", strategy, "--held", "r2", "--json")
    with Retriever.open(looked_after / "i") as retriever:
        found = curate(retriever.snapshot, CurateSettings(strategy, 3, held=("r2",)))
    assert given == found.to_dict()
    assert len(given["picks"]) == 3


def test_curate_passes_filter_and_options_and_says_what_is_wrong(looked_after):
    index = looked_after / "i"
    given = data(
        "curate", index, "--budget", 9, "--where", 'output == "a"', "--strategy", "cluster", "--option", "seed=3"
    )
    assert {pick["example"]["output"] for pick in given["picks"]} == {"a"}
    assert "4 of 9" in given["notes"][0]
    assert "cluster.options.sed" in error(
        2, "curate", index, "--budget", 2, "--strategy", "cluster", "--option", "sed=3"
    )
    assert "held example 'nobody'" in error(2, "curate", index, "--budget", 2, "--held", "nobody")


def test_audit_tells_findings_as_json_and_counts_what_it_does_not_list(looked_after):
    found = data("audit", looked_after / "i", looked_after / "queries.jsonl")
    assert (found["examples"], found["queries"]) == (13, 1)
    assert [(f["kind"], f["ids"], f["query"]) for f in found["findings"] if f["kind"] != "copies"] == [
        ("conflict", ["r0", "odd"], None),
        ("leak", ["r1"], "q"),
    ]
    none = data("audit", looked_after / "i", "--most", 0)
    assert (none["findings"], none["counts"]["conflict"]) == ([], 1)
    assert "neighbours = 0" in error(2, "audit", looked_after / "i", "--neighbours", 0)

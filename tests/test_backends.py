"""Backends: what they send, what they return, and what they say when they cannot."""

from __future__ import annotations

import fcntl
import http.client
import json
import logging
import math
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_causal_lm import CERTAINTY, CONTEXT, save_causal_lm

from retriever.backends import BackendSettings, load_backend
from retriever.errors import BackendError, DelimiterCollision, InvalidInput, MissingDependency
from retriever.example import Example, as_query
from retriever.prompting.assembler import assemble
from retriever.prompting.template import Template
from retriever.prompting.tokens import load_counter
from tests.support import Reply, answering

CANARY = "sk-CANARY-0123456789"
NASTY = '{"a": "{x} {0} %s ${y} {{ 7 * 7 }}"}\t"quoted" \\n \u2028 é 漢 😀 <assistant>'
# "The capital?" is answered with "Paris is it"; as a text that ends in "Output:" the same prompt continues with "Lyon".
SUCCESSORS = {"<assistant>": "Paris", "Paris": "is", "is": "it", "Output:": "Lyon", "ping": "pong", "pong": "ping"}


@dataclass(frozen=True)
class Prompt:
    messages: list[dict[str, str]] = field(default_factory=lambda: [{"role": "user", "content": "The capital?"}])
    text: str = "Input: The capital? Output:"


def user(content: str) -> Prompt:
    return Prompt([{"role": "user", "content": content}], content)


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch):
    for name in list(os.environ):
        if name.startswith(("OPENAI_", "RETRIEVER_")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


# --- descriptions and settings -----------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", ["", "gpt-4o", "shell:ls", "OpenAI:gpt-4o", ":x"])
def test_an_unknown_kind_is_refused_with_a_list_of_the_known_ones(spec):
    with pytest.raises(InvalidInput) as caught:
        load_backend(spec)
    for form in ("openai:MODEL", "transformers:PATH_OR_NAME", "command:PROGRAM ARGS...", "command-json:"):
        assert form in str(caught.value)


def test_an_unknown_kind_is_quoted_without_what_follows_it():
    with pytest.raises(InvalidInput) as caught:
        load_backend(f"comand:ask --key {CANARY}")
    assert "'comand'" in str(caught.value)
    assert CANARY not in str(caught.value)


@pytest.mark.parametrize("kind", ["openai", "transformers", "command", "command-json"])
def test_a_kind_alone_is_refused(kind):
    with pytest.raises(InvalidInput, match="nothing after the colon"):
        load_backend(f"{kind}: ")


@pytest.mark.parametrize("spec", ["transformers:x", f"command:{sys.executable}"])
def test_a_base_url_is_refused_where_there_is_no_server(spec):
    with pytest.raises(InvalidInput, match="base_url"):
        load_backend(spec, settings=BackendSettings(base_url="http://localhost:1/v1"))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_tokens", 0),
        ("max_tokens", True),
        ("max_tokens", 1.5),
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("timeout", 0),
        ("timeout", float("inf")),
        ("retries", -1),
        ("seed", -1),
        ("seed", 2**63),
        ("seed", "0"),
    ],
)
def test_a_setting_that_cannot_be_used_is_refused_by_name(name, value):
    with pytest.raises(InvalidInput, match=name):
        BackendSettings(**{name: value})


@pytest.mark.parametrize(
    "url",
    [
        "localhost:8000",
        "ftp://u:hunter2@h/v1",
        "http://",
        "http://u:hunter2@h:port/v1",
        "http://h:0/v1",
        "http://h/v1?key=hunter2",
        "http://h/v1#hunter2",
        "http://u:hunter2@h/v 1",
        "http://[u:hunter2@h/v1",
        "http://u:hunter2/3@h/v1",
        "http://u:hunter2\u2100@h/v1",
    ],
)
def test_a_malformed_base_url_is_refused_without_being_quoted(url):
    with pytest.raises(InvalidInput, match="base_url") as caught:
        BackendSettings(base_url=url)
    assert "hunter2" not in str(caught.value)
    assert caught.value.__context__ is None


def test_credentials_in_the_base_url_of_settings_are_not_shown():
    assert repr(BackendSettings(base_url="http://me:hunter2@h/v1")) == (
        "BackendSettings(max_tokens=256, temperature=0.0, timeout=60.0, base_url='http://h/v1', retries=2, seed=0)"
    )


@pytest.mark.parametrize("kind", ["command", "command-json"])
def test_a_lone_surrogate_is_refused_before_anything_is_sent(kind):
    with pytest.raises(InvalidInput, match=r"U\+D83D at character 5"):
        load_backend(command("raise SystemExit('was run')", kind=kind))(user("half \ud83d a character"))


class WithoutText:
    """A prompt whose text form has a delimiter collision."""

    messages: ClassVar = [{"role": "user", "content": "The capital?"}]

    @property
    def text(self) -> str:
        raise DelimiterCollision("example 'e1'", "###", "e1")


def test_only_the_backends_that_need_the_text_form_ask_for_it(chat_model, text_model):
    assert json.loads(load_backend(command(ECHO, kind="command-json"))(WithoutText())) == {
        "messages": WithoutText.messages
    }
    assert local(chat_model)(WithoutText()) == "Paris is it"
    with serving((200, completion("ok"))) as server:
        assert openai(server)(WithoutText()) == "ok"
    for backend in (load_backend(command(ECHO)), local(text_model)):
        with pytest.raises(DelimiterCollision):
            backend(WithoutText())


def test_an_assembled_prompt_is_answered_like_its_parts(chat_model, text_model):
    demonstrations = [Example("e1", "The river?", "Seine")]
    template, counter = Template("plain", system="Answer."), load_counter("estimate")
    assembled = assemble(as_query("The capital?"), demonstrations, template=template, counter=counter)
    assert len(assembled.messages) == 4
    assert local(chat_model)(assembled) == "Paris is it"
    assert local(text_model)(assembled) == "Lyon"
    assert load_backend(command(ECHO))(assembled) == assembled.text.removesuffix("\n")
    echoed = load_backend(command(ECHO, kind="command-json"))(assembled)
    assert json.loads(echoed)["messages"] == assembled.messages


def test_importing_backends_imports_nothing_heavy():
    code = "import sys, retriever.backends; print(*{'openai', 'torch', 'transformers', 'httpx'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "\n"


# --- OpenAI-compatible servers -----------------------------------------------------------------------------------


@dataclass
class Server:
    """What a scripted server was asked; it gives one reply per request, the last one for ever."""

    url: str
    paths: list[str] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    bodies: list[dict[str, object]] = field(default_factory=list)


def completion(content: object, finish_reason: str = "stop", **more: object) -> str:
    message = {"role": "assistant", "content": content, **more}
    return json.dumps({"id": "1", "choices": [{"index": 0, "message": message, "finish_reason": finish_reason}]})


@contextmanager
def serving(*replies: tuple[int, str], content_type: str = "application/json", delay: float = 0.0) -> Iterator[Server]:
    remaining, server = list(replies), Server("")

    def answer(path, headers, body):
        server.paths.append(path)
        server.headers.append(headers)
        server.bodies.append(body)
        time.sleep(delay)
        return Reply(*(remaining.pop(0) if len(remaining) > 1 else remaining[0]), content_type)

    with answering(answer) as server.url:
        yield server


def openai(server: Server, **options):
    return load_backend("openai:org/model:7b", settings=BackendSettings(base_url=server.url, **options))


def failure(backend, prompt: Prompt | None = None) -> BackendError:
    with pytest.raises(BackendError) as caught:
        backend(prompt or Prompt())
    assert "\n" not in str(caught.value)
    return caught.value


def test_the_messages_and_every_setting_reach_the_server_as_they_are():
    messages = [
        {"role": "system", "content": "Answer."},
        {"role": "user", "content": NASTY},
        {"role": "assistant", "content": ""},
        {"role": "user", "content": "\x00 last"},
    ]
    with serving((200, completion(NASTY))) as server:
        answer = openai(server, max_tokens=7, temperature=0.25, seed=11)(Prompt(messages, "unused"))
    assert answer == NASTY
    assert server.paths == ["/v1/chat/completions"]
    assert server.bodies == [
        {"model": "org/model:7b", "messages": messages, "max_tokens": 7, "temperature": 0.25, "seed": 11}
    ]


def test_no_seed_is_sent_for_none():
    with serving((200, completion("ok"))) as server:
        openai(server, seed=None)(Prompt())
    assert "seed" not in server.bodies[0]


def test_the_base_url_can_come_from_the_environment_and_the_settings_win(monkeypatch):
    with serving((200, completion("environment"))) as first, serving((200, completion("settings"))) as second:
        monkeypatch.setenv("OPENAI_BASE_URL", first.url)
        assert load_backend("openai:m")(Prompt()) == "environment"
        assert openai(second)(Prompt()) == "settings"


def test_the_token_limit_takes_its_other_name_once_a_server_asks_for_it():
    refusal = {"error": {"message": "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."}}
    with serving((400, json.dumps(refusal)), (200, completion("ok"))) as server:
        backend = openai(server, max_tokens=5)
        assert [backend(Prompt()), backend(Prompt())] == ["ok", "ok"]
    names = [{name: body[name] for name in body if name.startswith("max_")} for body in server.bodies]
    assert names == [{"max_tokens": 5}, {"max_completion_tokens": 5}, {"max_completion_tokens": 5}]


def test_without_a_key_openai_itself_is_refused_and_an_own_server_gets_a_placeholder():
    with pytest.raises(InvalidInput, match="OPENAI_API_KEY"):
        load_backend("openai:gpt")
    with serving((200, completion("ok"))) as server:
        openai(server)(Prompt())
    assert server.headers[0]["authorization"] == "Bearer no-key"


def test_the_key_is_sent_without_the_white_space_around_it(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", f" {CANARY}\n")
    with serving((200, completion("ok"))) as server:
        openai(server)(Prompt())
    assert server.headers[0]["authorization"] == f"Bearer {CANARY}"


def test_a_key_that_no_header_can_carry_is_refused_unseen(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", f"{CANARY}\r\nX-Evil: 1")
    with pytest.raises(InvalidInput, match="OPENAI_API_KEY") as caught:
        load_backend("openai:m")
    assert "CANARY" not in str(caught.value)


def everything_said(error: BaseException, backend: object, caplog) -> str:
    records = " ".join(f"{record.getMessage()} {record.__dict__!r}" for record in caplog.records)
    return " ".join([str(error), repr(error), *traceback.format_exception(error), repr(backend), records])


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422, 429, 500])
def test_the_key_never_shows_even_when_the_server_repeats_it(monkeypatch, caplog, status):
    monkeypatch.setenv("OPENAI_API_KEY", CANARY)
    caplog.set_level(logging.DEBUG)
    echo = json.dumps({"error": {"message": f"Incorrect API key provided: {CANARY}", "code": CANARY}})
    with serving((status, echo)) as server:
        backend = openai(server, retries=1)
        error = failure(backend)
    assert server.headers[0]["authorization"] == f"Bearer {CANARY}"
    assert "provided: ***" in str(error)
    assert error.__cause__ is None
    assert error.__context__ is None
    assert "CANARY" not in everything_said(error, backend, caplog)


@pytest.mark.parametrize("body", [CANARY, completion(None, CANARY), completion(None, refusal=CANARY), f'["{CANARY}"]'])
def test_the_key_never_shows_in_complaints_about_an_answer(monkeypatch, caplog, body):
    monkeypatch.setenv("OPENAI_API_KEY", CANARY)
    caplog.set_level(logging.DEBUG)
    with serving((200, body)) as server:
        backend = openai(server)
        assert "CANARY" not in everything_said(failure(backend), backend, caplog)


def test_credentials_in_the_base_url_are_used_and_never_shown(monkeypatch, caplog):
    monkeypatch.setenv("OPENAI_API_KEY", CANARY)
    caplog.set_level(logging.DEBUG)
    with serving((401, '{"error": "bad password hunter@2 in bWU6aHVudGVyQDI="}')) as server:
        backend = openai(Server(server.url.replace("//", "//me:hunter%402@")))
        error = failure(backend)
    assert server.headers[0]["authorization"] == "Basic bWU6aHVudGVyQDI="  # base64 of me:hunter@2
    said = everything_said(error, backend, caplog)
    assert not [secret for secret in ("hunter", "bWU6", "CANARY") if secret in said]
    assert f"{server.url} answered 401: bad password *** in ***" in str(error)


@pytest.mark.parametrize(
    ("status", "fix"),
    [
        (401, "set the environment variable OPENAI_API_KEY"),
        (403, "OPENAI_API_KEY"),
        (404, "'org/model:7b'"),
        (413, "fewer demonstrations"),
        (418, "base_url"),
        (429, "quota"),
        (503, "log"),
    ],
)
def test_a_refusal_names_the_server_the_status_its_words_and_what_fixes_it(status, fix):
    with serving((status, json.dumps({"error": {"message": "No.\nReally\x1b no."}}))) as server:
        error = failure(openai(server, retries=0))
    assert str(error).startswith(f"{server.url} answered {status}: No. Really no.")
    assert fix in error.fix


@pytest.mark.parametrize(
    "body", ['{"error": "Nope"}', '{"detail": "Nope"}', '{"message": "Nope"}', '"Nope"', "Nope", '{"error": ["Nope"]}']
)
def test_the_words_of_a_refusal_are_found_wherever_a_server_puts_them(body):
    with serving((422, body)) as server:
        assert "Nope" in str(failure(openai(server)))


def test_a_refusal_without_words_is_still_explained():
    with serving((404, "")) as server:
        assert "answered 404" in str(failure(openai(server)))


def test_a_server_that_recovers_is_asked_again():
    with serving((500, "{}"), (429, "{}"), (200, completion("at last"))) as server:
        assert openai(server, retries=2)(Prompt()) == "at last"
    assert len(server.bodies) == 3


@pytest.mark.parametrize(("retries", "said"), [(0, ""), (2, "(3 attempts)")])
def test_a_server_that_does_not_recover_is_asked_retries_times_more(retries, said):
    with serving((500, '{"error": "Broken"}')) as server:
        error = failure(openai(server, retries=retries))
    assert len(server.bodies) == retries + 1
    assert f"answered 500: Broken {said}".rstrip() in str(error)


def test_what_cannot_get_better_is_not_asked_again():
    with serving((401, "{}")) as server:
        failure(openai(server, retries=3))
    assert len(server.bodies) == 1


def test_a_refused_connection_names_the_address():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
        error = failure(openai(Server(url), retries=0))
    assert str(error).startswith(f"{url} cannot be reached: ")
    assert "refused" in str(error)
    assert "start the server" in error.fix


def test_a_silent_server_runs_into_the_timeout():
    with serving((200, completion("late")), delay=0.6) as server:
        error = failure(openai(server, timeout=0.1, retries=0))
    assert f"{server.url} did not answer within 0.1 s" in str(error)
    assert "timeout" in error.fix


@pytest.mark.parametrize("content_type", ["application/json", "text/html"])
@pytest.mark.parametrize(
    "body",
    [
        '{"choices": [',
        "<html>login</html>",
        "[]",
        "null",
        "{}",
        '{"choices": null}',
        '{"choices": []}',
        '{"choices": [null]}',
        '{"choices": {"0": 1}}',
        "[" * 100_000,
        '{"error": {"message": "busy"}}',
    ],
)
def test_an_answer_that_is_no_completion_is_refused_and_shown(content_type, body):
    with serving((200, body), content_type=content_type) as server:
        error = failure(openai(server))
    assert error.expected == "a chat completion"
    assert body[:50] in str(error)
    assert len(str(error)) < 600


@pytest.mark.parametrize("content", [None, "", 7, [{"type": "text", "text": "x"}]])
def test_an_answer_without_text_is_refused_with_its_finish_reason(content):
    with serving((200, completion(content, "content_filter", refusal="I can't\nhelp."))) as server:
        error = failure(openai(server))
    assert str(error).startswith(
        f"{server.url} returned no text (finish_reason content_filter, refusal: I can't help.)"
    )


def test_an_answer_cut_off_before_its_first_word_asks_for_more_tokens():
    with serving((200, completion("", "length"))) as server:
        assert failure(openai(server)).fix == "raise max_tokens"


@pytest.mark.parametrize("message", ["null", "[]", '"text"'])
def test_an_answer_with_a_malformed_message_is_refused(message):
    with serving((200, f'{{"choices": [{{"message": {message}}}]}}')) as server:
        assert "finish_reason None" in str(failure(openai(server)))


def test_an_answer_of_a_server_that_mislabels_its_json_is_read():
    with serving((200, completion("ok")), content_type="text/plain") as server:
        assert openai(server)(Prompt()) == "ok"


def test_without_the_openai_package_the_message_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(MissingDependency, match=r"demonstration-retriever\[openai\]"):
        load_backend("openai:m", settings=BackendSettings(base_url="http://localhost:1/v1"))


# --- programs ----------------------------------------------------------------------------------------------------


def command(code: str, *arguments: str, kind: str = "command") -> str:
    return f"{kind}:{shlex.join([sys.executable, '-I', '-S', '-c', code, *arguments])}"


ECHO = "import sys; sys.stdout.buffer.write(sys.stdin.buffer.read())"


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_any_text_passes_through_a_program_unchanged(text):
    assert load_backend(command(ECHO))(user(text + "\n")) == text


@pytest.mark.parametrize(
    ("written", "answer"),
    [("a", "a"), ("a\n", "a"), ("a\r\n", "a\r"), ("a\n\n", "a\n"), (" a \n", " a "), ("a\r", "a\r")],
)
def test_exactly_one_newline_is_removed_from_the_end(written, answer):
    assert load_backend(command(ECHO))(user(written)) == answer


def test_command_json_gets_the_messages_and_nothing_else():
    messages = [{"role": "system", "content": NASTY}, {"role": "user", "content": "é\n\x00"}]
    answer = load_backend(command(ECHO, kind="command-json"))(Prompt(messages, "unused"))
    assert json.loads(answer) == {"messages": messages}
    assert "é" in answer


def test_no_shell_reads_the_command_line():
    dangerous = ["$(echo x)", "`id`", ";", "&& exit 1", "*", "a b", '"', "'", "| cat", "> /nowhere/file"]
    answer = load_backend(command("import sys; print(sys.argv[1:])", *dangerous))(Prompt())
    assert answer == repr(dangerous)


def test_the_settings_are_handed_to_the_program_in_its_environment(monkeypatch):
    monkeypatch.setenv("RETRIEVER_SEED", "99")
    spec = command(
        "import os; print(*(f'{k}={v}' for k, v in sorted(os.environ.items()) if k.startswith('RETRIEVER_')))"
    )
    chosen = BackendSettings(max_tokens=9, temperature=1, seed=3)
    assert load_backend(spec, settings=chosen)(Prompt()) == (
        "RETRIEVER_MAX_TOKENS=9 RETRIEVER_SEED=3 RETRIEVER_TEMPERATURE=1.0"
    )
    assert "SEED" not in load_backend(spec, settings=BackendSettings(seed=None))(Prompt())


def test_a_program_that_reads_nothing_can_still_answer():
    assert load_backend(command("print('deaf')"))(user("x" * 1_000_000)) == "deaf"


def test_a_large_answer_and_a_large_complaint_do_not_block_each_other():
    code = "import sys; sys.stderr.write('e' * 500_000); sys.stdout.write('o' * 500_000)"
    assert load_backend(command(code))(Prompt()) == "o" * 500_000


def test_a_failing_program_is_reported_with_its_exit_code_and_last_line(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", CANARY)
    code = f"import sys; print('first\\n\\x1b[1mno key {CANARY}\\n\\n', file=sys.stderr); sys.exit(3)"
    backend = load_backend(command(code, CANARY))
    error = failure(backend)
    assert f"{sys.executable!r} ended with exit code 3: [1mno key ***;" in str(error)
    assert "first" not in str(error)
    assert "CANARY" not in str(error) + repr(backend)


def test_a_silent_failure_and_a_signal_are_reported():
    assert "exit code 1: nothing on its standard error" in str(failure(load_backend(command("raise SystemExit(1)"))))
    killed = load_backend(command("import os; os.kill(os.getpid(), 9)"))
    assert "signal 9 (Killed)" in str(failure(killed))


def test_only_the_exit_code_for_a_temporary_failure_is_tried_again(tmp_path, monkeypatch):
    pauses: list[float] = []
    monkeypatch.setattr("retriever.backends.command.time", SimpleNamespace(sleep=pauses.append))
    log = tmp_path / "runs"
    log.touch()
    code = "import sys; f = open(sys.argv[1], 'a+'); f.write('x'); f.seek(0); n = len(f.read())\n"
    recovers = load_backend(command(code + "print(n); sys.exit(75 if n < 3 else 0)", str(log)))
    assert recovers(Prompt()) == "3"
    assert pauses == [0.5, 1.0]
    for exit_code, runs in ((75, 3), (1, 1)):
        log.write_text("")
        error = failure(load_backend(command(code + f"sys.exit({exit_code})", str(log))))
        assert f"exit code {exit_code}" in str(error)
        assert len(log.read_text()) == runs


@pytest.mark.parametrize("code", ["", "print()"])
def test_no_answer_is_an_error(code):
    assert "wrote no answer" in str(failure(load_backend(command(code))))


def test_an_answer_that_is_not_utf8_is_an_error_with_the_byte():
    error = failure(load_backend(command("import sys; sys.stdout.buffer.write(b'caf\\xe9')")))
    assert "0xe9 at 3" in str(error)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("command:no-such-program-anywhere -x", "cannot be found"),
        ("command:/", "cannot be found"),
        ("command:cat 'open", "cannot be split"),
        ("command:cat \0", "NUL"),
        ("command:''", "cannot be found"),
    ],
)
def test_a_command_that_cannot_be_run_is_refused_at_once(spec, said):
    with pytest.raises(InvalidInput, match=said):
        load_backend(spec)


def test_a_program_that_vanishes_is_an_error(tmp_path):
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\necho hi\n")
    program.chmod(0o755)
    backend = load_backend(f"command:{program}")
    program.unlink()
    assert "could not be started" in str(failure(backend))


# Starts a child that holds a lock for as long as it lives, then waits for ever, like the child.
HOLDER = """
import fcntl, subprocess, sys, time
child = "import fcntl, sys, time; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX); "
child += "open(sys.argv[1] + '.held', 'w').close(); time.sleep(60)"
subprocess.Popen([sys.executable, "-I", "-S", "-c", child, sys.argv[1]])
time.sleep(60)
"""


def assert_released(path: Path) -> None:
    assert path.with_suffix(".held").exists()
    end = time.monotonic() + 30  # half of what it would sleep
    with path.open("w") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                assert time.monotonic() < end, "a descendant of the program is still alive"
                time.sleep(0.02)
            else:
                return


def test_a_timeout_ends_the_program_and_all_that_it_started(tmp_path):
    lock = tmp_path / "lock"
    for timeout in (1.5, 6.0, 24.0):  # on a busy machine the second program may not have started in time
        error = failure(load_backend(command(HOLDER, str(lock)), settings=BackendSettings(timeout=timeout)))
        assert f"no answer within {timeout:g} s" in str(error)
        if lock.with_suffix(".held").exists():
            break
    assert_released(lock)


def test_an_interrupt_ends_the_program_and_all_that_it_started(tmp_path):
    def interrupt(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 1.5)
    try:
        with pytest.raises(KeyboardInterrupt):
            load_backend(command(HOLDER, str(tmp_path / "lock")))(Prompt())
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert_released(tmp_path / "lock")


# --- local models ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory):
    return save_causal_lm(tmp_path_factory.mktemp("chat"), SUCCESSORS)


@pytest.fixture(scope="module")
def text_model(tmp_path_factory):
    return save_causal_lm(tmp_path_factory.mktemp("text"), SUCCESSORS, chat_template=None)


@pytest.fixture(scope="module")
def wide_model(tmp_path_factory):
    """Forty words in a ring: enough to sample from, and the end of the text is one choice in 46."""
    ring = [f"w{i}" for i in range(40)]
    successors = dict(zip(ring, ring[1:] + ring[:1], strict=True)) | {"<assistant>": "w0"}
    return save_causal_lm(tmp_path_factory.mktemp("wide"), successors)


def local(folder: Path, **options):
    return load_backend(f"transformers:{folder}", settings=BackendSettings(**{"max_tokens": 16, **options}))


def test_a_model_with_a_chat_template_gets_the_messages(chat_model):
    assert local(chat_model)(Prompt()) == "Paris is it"


def test_a_model_without_a_chat_template_gets_the_text(text_model):
    assert local(text_model)(Prompt()) == "Lyon"


def test_generation_ends_at_max_tokens(chat_model):
    assert local(chat_model, max_tokens=2)(Prompt()) == "Paris is"


def test_a_template_in_the_data_is_not_rendered(chat_model):
    # <user>, the eleven words as they stand, <assistant>; rendered, "{{ 7 * 7 }}" alone would be one word.
    error = failure(local(chat_model, max_tokens=CONTEXT), user("{{ 7 * 7 }} {% for x in y %}"))
    assert "a prompt of 13 tokens" in str(error)


def test_greedy_decoding_ignores_the_generation_settings_that_came_with_the_model(text_model, tmp_path):
    for file in text_model.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    path = tmp_path / "generation_config.json"
    own = {"repetition_penalty": 100.0, "do_sample": True, "temperature": 99.0, "top_k": 3, "max_new_tokens": 1}
    path.write_text(json.dumps(json.loads(path.read_text()) | own))
    assert local(tmp_path, max_tokens=5)(user("ping")) == "pong ping pong ping pong"


def test_the_likelihood_of_an_answer_is_the_product_over_its_tokens(chat_model):
    """Of d words the expected one has the logit c = CERTAINTY * sqrt(d) and the others 0; `it` is not what follows."""
    words = len(json.loads((chat_model / "tokenizer.json").read_text())["model"]["vocab"])
    certain = CERTAINTY * math.sqrt(words)
    total = math.log(math.exp(certain) + words - 1)
    backend = local(chat_model)
    assert backend.log_likelihood(Prompt(), "Paris is it") == pytest.approx(3 * (certain - total), abs=1e-5)
    assert backend.log_likelihood(Prompt(), "Paris it") == pytest.approx(certain - 2 * total, rel=1e-5)
    assert backend.log_likelihood(user("something else"), "Paris is it") == pytest.approx(
        3 * (certain - total), abs=1e-5
    )


def test_an_answer_without_a_token_or_room_has_no_likelihood(chat_model):
    with pytest.raises(InvalidInput, match="which has no token"):
        local(chat_model).log_likelihood(Prompt(), "")
    with pytest.raises(BackendError, match="a prompt of 4 tokens and an answer of 61 make 65"):
        local(chat_model).log_likelihood(Prompt(), "is " * 61)


def test_sampling_depends_on_the_seed_alone(wide_model):
    backends = [local(wide_model, temperature=30.0, seed=seed) for seed in (1, 1, 2)]
    answers = [backend(Prompt()) for backend in backends]
    assert answers[0] == answers[1] == backends[0](Prompt())
    assert answers[0] != answers[2]
    assert answers[0] != local(wide_model)(Prompt()) == " ".join(f"w{i}" for i in range(16))


def test_sampling_is_not_cut_to_the_likeliest_tokens(wide_model):
    # At this temperature all 46 words are about as likely, so that 40 samples hold some 27 different ones.
    seen = set(local(wide_model, temperature=1e6, max_tokens=40, seed=5)(Prompt()).split())
    assert len(seen) > 10


def test_a_seeded_call_leaves_the_global_random_state_alone_and_an_unseeded_one_uses_it(wide_model):
    import torch

    before = torch.get_rng_state()
    local(wide_model, temperature=30.0, seed=1)(Prompt())
    assert torch.equal(torch.get_rng_state(), before)
    unseeded = local(wide_model, temperature=30.0, seed=None)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        first, second = unseeded(Prompt()), unseeded(Prompt())
        torch.manual_seed(3)
        assert unseeded(Prompt()) == first != second


def test_a_prompt_that_does_not_fit_is_refused_with_both_numbers(chat_model):
    # <user> The capital? <assistant>: 4 tokens, and 60 more fill the 64 positions exactly.
    assert CONTEXT == 64
    assert local(chat_model, max_tokens=60)(Prompt()) == "Paris is it"
    error = failure(local(chat_model, max_tokens=61))
    assert "a prompt of 4 tokens and max_tokens 61 make 65" in str(error)
    assert "at most 64" in str(error)
    assert "fewer demonstrations" in error.fix


def test_a_timeout_is_an_error_and_not_a_shorter_answer(chat_model):
    assert "did not finish within 1e-09 s" in str(failure(local(chat_model, timeout=1e-9)))


def test_no_text_is_an_error(text_model):
    assert "generated no text" in str(failure(local(text_model), user("it")))
    assert "without a single token" in str(failure(local(text_model), user(" ")))


def test_a_chat_template_that_refuses_the_messages_is_an_error(tmp_path):
    strict = "{{ raise_exception('System role\nnot supported') }}"
    error = failure(local(save_causal_lm(tmp_path, SUCCESSORS, chat_template=strict)))
    assert "refuses the messages: System role not supported" in str(error)
    assert "first user message" in error.fix


def test_loading_and_answering_print_nothing_and_change_no_setting(chat_model, capfd):
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled
    from transformers.utils import logging as transformers_logging

    def state():
        bars = transformers_logging.is_progress_bar_enabled(), are_progress_bars_disabled()
        return transformers_logging.get_verbosity(), *bars, list(warnings.filters)

    before = state()
    capfd.readouterr()
    local(chat_model, temperature=0.5)(user("word " * 40))
    assert capfd.readouterr() == ("", "")
    assert state() == before


def test_a_missing_model_is_an_error_in_one_line(tmp_path):
    with pytest.raises(BackendError, match="cannot be loaded") as caught:
        load_backend(f"transformers:{tmp_path / 'nowhere'}")
    assert "\n" not in str(caught.value)


def test_code_that_comes_with_a_model_is_not_run(chat_model, tmp_path):
    for file in chat_model.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"model_type": "foreign", "auto_map": {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "code.py").write_text(f"open({str(tmp_path / 'was_run')!r}, 'w')")
    with pytest.raises(BackendError, match="cannot be loaded"):
        load_backend(f"transformers:{tmp_path}")
    assert not (tmp_path / "was_run").exists()


def test_pickled_weights_are_not_read(chat_model, tmp_path):
    import torch
    from safetensors.torch import load_file

    for file in chat_model.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    torch.save(load_file(tmp_path / "model.safetensors"), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(BackendError, match="safetensors"):
        load_backend(f"transformers:{tmp_path}")


def test_damaged_weights_are_an_error(chat_model, tmp_path):
    for file in chat_model.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(BackendError, match="cannot be loaded"):
        load_backend(f"transformers:{tmp_path}")


# --- the two together --------------------------------------------------------------------------------------------


@contextmanager
def transformers_serve(folder: Path, home: Path) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = ["serve", str(folder), "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_UPDATE_CHECK": "1", "HF_HOME": str(home)}
    log = home / "serve.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "transformers.cli.transformers", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
        )
    try:
        end = time.monotonic() + 120
        while not is_healthy(port):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def is_healthy(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def test_a_real_server_and_the_local_backend_answer_alike(chat_model, tmp_path):
    with transformers_serve(chat_model, tmp_path) as url:

        def served(model: Path | str, **options):
            return load_backend(f"openai:{model}", settings=BackendSettings(base_url=url, **options))

        for options in ({}, {"max_tokens": 2}, {"max_tokens": 1, "seed": None}):
            assert served(chat_model, **options)(Prompt()) == local(chat_model, **options)(Prompt())
        assert served(chat_model)(Prompt()) == "Paris is it"
        assert "answered 400: Server is pinned to" in str(failure(served("another-model")))

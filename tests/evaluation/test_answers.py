"""The file of answers: kept durably, found by backend and prompt alone, and never believed when it is damaged."""

from __future__ import annotations

import sqlite3
import threading

import pytest

from retriever.backends import BackendSettings
from retriever.errors import InvalidInput, RetrieverError
from retriever.evaluation.answers import AnswerCache, backend_identity, prompt_key, shown_backend
from retriever.example import Example
from retriever.prompting import assemble, load_counter, load_template


def prompt(text="hello", template="io", **options):
    shown = [Example("1", "a", output="b")]
    return assemble(
        Example("q", text), shown, template=load_template(template), counter=load_counter("estimate"), **options
    )


def test_answers_are_there_when_the_file_is_opened_again(tmp_path, monkeypatch):
    monkeypatch.setattr("retriever.evaluation.answers._AT_ONCE", 7)
    keys = [f"{i:064x}" for i in range(60)]
    with AnswerCache(tmp_path / "a.sqlite") as cache:
        assert cache.get(keys) == {}
        for key in keys[::2]:
            cache.put(key, f"é\0\n{key}")
        cache.put(keys[0], "another")
    with AnswerCache(tmp_path / "a.sqlite") as cache:
        assert cache.get(keys) == {key: f"é\0\n{key}" for key in keys[::2]}
        assert cache.get([]) == {}


def test_threads_and_a_second_user_may_put_at_once(tmp_path):
    with AnswerCache(tmp_path / "a.sqlite") as one, AnswerCache(tmp_path / "a.sqlite") as other:
        threads = [
            threading.Thread(target=lambda c=cache, n=n: [c.put(f"{n}-{i}", "x") for i in range(20)])
            for n, cache in enumerate([one, other, one, other])
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(one.get([f"{n}-{i}" for n in range(4) for i in range(20)])) == 80


def test_an_answer_that_changed_on_the_disk_is_not_believed(tmp_path):
    with AnswerCache(tmp_path / "a.sqlite") as cache:
        cache.put("k", "yes")
    with sqlite3.connect(tmp_path / "a.sqlite") as database:
        database.execute("UPDATE answers SET answer = 'no'")
    with (
        AnswerCache(tmp_path / "a.sqlite") as cache,
        pytest.raises(RetrieverError, match="hash does not match") as seen,
    ):
        cache.get(["k"])
    assert seen.value.exit_code == 1


def test_another_file_is_refused_and_left_as_it_is(tmp_path):
    other = tmp_path / "other.sqlite"
    with sqlite3.connect(other) as database:
        database.execute("CREATE TABLE examples (id TEXT)")
    with pytest.raises(InvalidInput, match="a file of answers"):
        AnswerCache(other)
    with sqlite3.connect(other) as database:
        assert database.execute("SELECT name FROM sqlite_master").fetchall() == [("examples",)]
    with pytest.raises(InvalidInput, match="no folder"):
        AnswerCache(tmp_path / "nowhere" / "a.sqlite")


def test_a_damaged_file_is_told_as_what_it_is_and_may_be_deleted(tmp_path):
    text = "no database at all, but a text that is long enough" * 10
    (tmp_path / "text").write_text(text)
    with pytest.raises(RetrieverError) as seen:
        AnswerCache(tmp_path / "text")
    assert seen.value.exit_code == 1 and seen.value.expected == "a file of answers"
    assert str(tmp_path / "text") in seen.value.seen and "file is not a database" in seen.value.seen
    assert "delete it" in seen.value.fix and "asked again" in seen.value.fix and "index" not in str(seen.value)
    assert (tmp_path / "text").read_text() == text
    with AnswerCache(tmp_path / "a.sqlite") as cache:
        cache.put("k", "yes" * 5_000)
    whole = (tmp_path / "a.sqlite").read_bytes()
    (tmp_path / "a.sqlite").write_bytes(whole[:4096] + b"\xff" * (len(whole) - 4096))
    with AnswerCache(tmp_path / "a.sqlite") as cache, pytest.raises(RetrieverError, match="delete it") as seen:
        cache.get(["k"])
    assert seen.value.exit_code == 1


def test_a_file_with_a_trigger_is_refused(tmp_path):
    AnswerCache(tmp_path / "a.sqlite").__exit__(None, None, None)
    with sqlite3.connect(tmp_path / "a.sqlite") as database:
        database.execute("CREATE TRIGGER t AFTER INSERT ON answers BEGIN DELETE FROM answers; END")
    with pytest.raises(InvalidInput, match="a file of answers"):
        AnswerCache(tmp_path / "a.sqlite")


def test_the_key_is_that_of_backend_and_prompt():
    key = prompt_key("m", prompt())
    assert key == prompt_key("m", prompt())
    others = {
        prompt_key("n", prompt()),
        prompt_key("m", prompt("hello ")),
        prompt_key("m", prompt(template="program")),
        prompt_key("m", prompt("Output: x")),  # the text cannot be had
    }
    assert len({key, *others}) == 5


def test_the_identity_is_what_decides_an_answer_and_no_more(monkeypatch):
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    plain = BackendSettings()
    same = [BackendSettings(timeout=5, retries=9)]
    others = [BackendSettings(max_tokens=9), BackendSettings(temperature=1.0), BackendSettings(seed=1)]
    others += [BackendSettings(base_url="http://a/v1"), BackendSettings(base_url="http://b/v1")]
    identity = backend_identity("openai:m", plain)
    assert {backend_identity("openai:m", one) for one in same} == {identity}
    assert len({identity, *(backend_identity("openai:m", one) for one in others)}) == 6
    assert backend_identity("openai:n", plain) != identity
    monkeypatch.setenv("OPENAI_BASE_URL", "http://a/v1")
    assert backend_identity("openai:m", plain) == backend_identity("openai:m", BackendSettings(base_url="http://a/v1"))
    secret = backend_identity("openai:m", BackendSettings(base_url="http://me:secret@a/v1"))
    assert "secret" not in secret


def test_of_a_command_line_only_the_program_is_shown():
    assert shown_backend("command:prog --key s3cret") == "command:prog"
    assert shown_backend("command-json: prog --key s3cret") == "command-json:prog"
    assert shown_backend("openai:gpt:4") == "openai:gpt:4"

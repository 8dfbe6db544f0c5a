"""An export that was interrupted goes on from its partial file, and ends with the bytes of one that was not."""

import contextlib
import errno
import io
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given
from hypothesis import settings as limits
from hypothesis import strategies as st

import retriever
from retriever import Recipe
from retriever import partial as partials
from retriever.errors import BadRows, InvalidInput, StorageError
from retriever.example import Example
from retriever.export import ExportSettings, export, made_from
from retriever.formats import BadRowLog, read_queries
from retriever.partial import SUFFIX, open_partial, query_digest
from retriever.prompting import BatchSettings, Template
from tests.support import build, embed, fail

ROOT = Path(retriever.__file__).parents[1]
POOL = [
    {"id": f"e{n}", "input": f"{word} number {n}", "output": word, "label": word}
    for n, word in enumerate(("card", "transfer", "account", "machine") * 3)
]
QUERIES = [
    Example("q1", "where is my card"),
    Example("q2", "transfer é\u2028 again", "declined", meta={"b": 1, "a": [0.1, None]}),
    Example("q3", "=1+1"),
    Example("q3", "=1+1"),  # the same once more is a query of its own
    Example("q5", {"question": "which machine", "n": -0.0}),
]
DEMOS = ExportSettings("demos", Recipe().with_options({"k": 2}))
PROMPTS = ExportSettings("prompts", Recipe().with_options({"k": 2}))
BATCH = ExportSettings("openai-batch", Recipe().with_options({"k": 1}), batch=BatchSettings("m", 64))
SUFFIXES = ["jsonl", "parquet", "csv", "tsv"]


class Broken(Exception):
    """What interrupts an export here."""


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    with build(POOL, tmp_path_factory.mktemp("partial") / "x.index", weight=0.5) as opened:
        yield opened


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def broken_after(count, error=Broken):
    """A progress callback that interrupts after so many records of an export."""

    def progress(stage, done, total):
        if (stage, done) == ("exporting", count):
            raise error

    return progress


def interrupted(index, path, count, settings=DEMOS, queries=QUERIES, **options):
    """The notes of an export that is interrupted after `count` records."""
    notes = []
    with pytest.raises(Broken):
        export(index, queries, path, settings, note=notes.append, progress=broken_after(count), **options)
    return notes


def partial_of(path):
    return path.with_name(path.name + SUFFIX)


def whole(index, folder, suffix, settings=DEMOS, queries=QUERIES):
    path = folder / f"whole.{suffix}"
    export(index, queries, path, settings, note=fail)
    content = path.read_bytes()
    path.unlink()
    return content


# --- going on


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("settings", [DEMOS, PROMPTS], ids=["demos", "prompts"])
@pytest.mark.parametrize("count", range(1, len(QUERIES) + 1))
def test_a_resumed_export_has_the_bytes_of_an_uninterrupted_one(index, tmp_path, suffix, settings, count):
    path = tmp_path / f"o.{suffix}"
    interrupted(index, path, count, settings)
    assert names(tmp_path) == [f"o.{suffix}.partial"]
    assert export(index, QUERIES, path, settings, resume=True, note=fail) == len(QUERIES)
    assert names(tmp_path) == [f"o.{suffix}"]
    assert path.read_bytes() == whole(index, tmp_path, suffix, settings)


def test_a_resumed_batch_has_the_bytes_of_an_uninterrupted_one(index, tmp_path):
    interrupted(index, tmp_path / "o.jsonl", 2, BATCH)
    export(index, QUERIES, tmp_path / "o.jsonl", BATCH, resume=True, note=fail)
    assert (tmp_path / "o.jsonl").read_bytes() == whole(index, tmp_path, "jsonl", BATCH)


@limits(max_examples=6)
@given(st.lists(st.integers(1, 300), min_size=1, max_size=4), st.sampled_from(SUFFIXES))
def test_any_number_of_interruptions_changes_nothing(index, tmp_path_factory, counts, suffix):
    folder = tmp_path_factory.mktemp("many")
    queries = [Example(f"q{n}", f"{POOL[n % 12]['output']} {n}") for n in range(300)]
    settings = ExportSettings(recipe=Recipe().with_options({"k": 1, "mode": "lexical"}))
    path = folder / f"o.{suffix}"
    for count in sorted(set(counts)):
        interrupted(index, path, count, settings, queries, resume=True)
    assert export(index, queries, path, settings, resume=True, note=fail) == 300
    assert path.read_bytes() == whole(index, folder, suffix, settings, queries)


def test_no_record_is_made_twice(index, tmp_path, monkeypatch):
    asked = []
    select_many = type(index).select_many

    def spy(self, queries, **options):
        for selection in select_many(self, queries, **options):
            asked.append(selection.query)
            yield selection

    monkeypatch.setattr(type(index), "select_many", spy)
    interrupted(index, tmp_path / "o.jsonl", 3)
    export(index, QUERIES, tmp_path / "o.jsonl", DEMOS, resume=True)
    assert asked == QUERIES


def test_to_resume_without_a_partial_file_is_to_begin(index, tmp_path):
    assert export(index, QUERIES, tmp_path / "o.jsonl", DEMOS, resume=True, note=fail) == len(QUERIES)
    assert (tmp_path / "o.jsonl").read_bytes() == whole(index, tmp_path, "jsonl")


def test_progress_tells_what_is_read_again_from_what_is_exported(index, tmp_path):
    interrupted(index, tmp_path / "o.jsonl", 3)
    told = []
    export(index, QUERIES, tmp_path / "o.jsonl", DEMOS, resume=True, progress=lambda *what: told.append(what))
    assert told == [("reading again", n, 0) for n in (1, 2, 3)] + [("exporting", n, 0) for n in (4, 5)]


def test_an_export_that_failed_only_at_its_end_is_finished_without_a_query(index, tmp_path, monkeypatch):
    path = tmp_path / "o.parquet"

    def full(self, file, kind):
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(partials.Partial, "_convert", full)
        with pytest.raises(StorageError, match="No space left"):
            export(index, QUERIES, path, DEMOS)
    assert names(tmp_path) == ["o.parquet.partial"]
    monkeypatch.setattr("retriever.export.record", fail)
    export(index, QUERIES, path, DEMOS, resume=True, note=fail)
    monkeypatch.undo()
    assert path.read_bytes() == whole(index, tmp_path, "parquet")


def test_a_partial_file_belongs_to_any_format_of_the_target(index, tmp_path):
    interrupted(index, tmp_path / "o.parquet", 3)
    (tmp_path / "o.parquet.partial").rename(tmp_path / "o.csv.partial")
    export(index, QUERIES, tmp_path / "o.csv", DEMOS, resume=True, note=fail)
    assert (tmp_path / "o.csv").read_bytes() == whole(index, tmp_path, "csv")


def test_the_index_may_be_moved_meanwhile(tmp_path):
    with build(POOL, tmp_path / "here.index", weight=0.5) as opened:
        interrupted(opened, tmp_path / "o.jsonl", 3)
        expected = whole(opened, tmp_path, "jsonl")
    (tmp_path / "here.index").rename(tmp_path / "there.index")
    with retriever.Retriever.open(tmp_path / "there.index", embedder=embed, note=fail) as opened:
        export(opened, QUERIES, tmp_path / "o.jsonl", DEMOS, resume=True, note=fail)
    assert (tmp_path / "o.jsonl").read_bytes() == expected


# --- what a crash leaves


def test_whatever_part_of_the_last_line_is_there_is_cut_off(index, tmp_path):
    path = tmp_path / "o.jsonl"
    small = ExportSettings("openai-batch", Recipe().with_options({"k": 0}), batch=BatchSettings("m", 64))
    interrupted(index, path, 3, small)
    content = partial_of(path).read_bytes()
    expected = whole(index, tmp_path, "jsonl", small)
    last = content.splitlines(keepends=True)[-1]
    for kept in range(1, len(last)):
        partial_of(path).write_bytes(content[: len(content) - len(last) + kept])
        notes = []
        export(index, QUERIES, path, small, resume=True, note=notes.append)
        assert path.read_bytes() == expected
        assert notes == [f"the last {kept} bytes of {partial_of(path)} are no whole record and were cut off"]


NO_OBJECT = b'{"query":"' + b"0" * 64 + b'","record":[]}\n'


@pytest.mark.parametrize("tail", [b"\0" * 4096, b"\n", b'{"query":"', b"{}\n", b"\xff\n", NO_OBJECT], ids=repr)
def test_what_is_no_record_at_the_end_is_cut_off(index, tmp_path, tail):
    interrupted(index, tmp_path / "o.jsonl", 3)
    with partial_of(tmp_path / "o.jsonl").open("ab") as file:
        file.write(tail)
    notes = []
    export(index, QUERIES, tmp_path / "o.jsonl", DEMOS, resume=True, note=notes.append)
    assert (tmp_path / "o.jsonl").read_bytes() == whole(index, tmp_path, "jsonl")
    assert f"the last {len(tail):,} bytes" in notes[0]


def test_blocks_that_never_reached_the_disk_take_the_records_after_them_along(index, tmp_path):
    interrupted(index, tmp_path / "o.jsonl", 4)
    path = partial_of(tmp_path / "o.jsonl")
    lines = path.read_bytes().splitlines(keepends=True)
    lines[2] = lines[2][:150] + b"\0" * (len(lines[2]) - 152) + lines[2][-2:]
    path.write_bytes(b"".join(lines))
    export(index, QUERIES, tmp_path / "o.jsonl", DEMOS, resume=True, note=lambda line: None)
    assert (tmp_path / "o.jsonl").read_bytes() == whole(index, tmp_path, "jsonl")


def test_a_first_line_that_was_cut_short_is_a_new_beginning(index, tmp_path):
    interrupted(index, tmp_path / "o.jsonl", 1)
    header = partial_of(tmp_path / "o.jsonl").read_bytes().split(b"\n")[0]
    expected = whole(index, tmp_path, "jsonl")
    for kept in (0, 1, 17, 18, 19, 200, len(header)):
        partial_of(tmp_path / "o.jsonl").write_bytes(header[:kept])
        export(index, QUERIES, tmp_path / "o.jsonl", DEMOS, resume=True, note=fail)
        assert (tmp_path / "o.jsonl").read_bytes() == expected


def test_a_full_disk_leaves_the_records_before_it(index, tmp_path, monkeypatch):
    path = tmp_path / "o.jsonl"
    write_all, written = partials._write_all, []

    def full(file, content):
        written.append(content)
        if len(written) == 4:  # the first line, two records, and half of the third
            file.write(content[: len(content) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")
        write_all(file, content)

    notes = []
    with monkeypatch.context() as patched:
        patched.setattr(partials, "_write_all", full)
        with pytest.raises(StorageError, match="No space left"):
            export(index, QUERIES, path, DEMOS, note=notes.append)
    assert notes == [f"2 records are kept in {partial_of(path)}; --resume goes on after them"]
    export(index, QUERIES, path, DEMOS, resume=True, note=lambda line: None)
    assert path.read_bytes() == whole(index, tmp_path, "jsonl")


@contextlib.contextmanager
def disk_with_room_for(size):
    """No file of this process may grow beyond so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def said(error, path, doing):
    """What is asked of every error of the disk: which file, what did not go well, why, and what helps."""
    assert type(error) is StorageError
    assert str(error) == f"{path}: {doing}: {os.strerror(error.errno)}{error.fix and '; '}{error.fix}"
    return error.errno


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_however_little_room_there_is_the_error_says_why_and_resume_goes_on(index, tmp_path, suffix):
    path = tmp_path / f"o.{suffix}"
    expected = whole(index, tmp_path, suffix)
    interrupted(index, path, len(QUERIES))
    needed = max(partial_of(path).stat().st_size, len(expected))
    partial_of(path).unlink()
    left = set()
    for size in range(0, needed, 97):
        with disk_with_room_for(size), pytest.raises(StorageError) as caught:
            export(index, QUERIES, path, DEMOS, note=lambda line: None)
        in_the_end = caught.value.path == path
        assert said(caught.value, path if in_the_end else partial_of(path), "could not be written") == errno.EFBIG
        assert "ulimit -f" in caught.value.fix
        left.add(tuple(names(tmp_path)))
        export(index, QUERIES, path, DEMOS, resume=True, note=lambda line: None)
        assert path.read_bytes() == expected
        path.unlink()
    assert left == {(), (f"o.{suffix}.partial",)}  # without a whole record, and with one
    with disk_with_room_for(needed):
        export(index, QUERIES, path, DEMOS, note=fail)
    assert path.read_bytes() == expected


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("older", [None, b"older"])
def test_a_disk_that_fills_at_the_end_leaves_what_was_there_and_every_record(index, tmp_path, suffix, older):
    path = tmp_path / f"o.{suffix}"
    expected = whole(index, tmp_path, suffix)
    if older is not None:
        path.write_bytes(older)
    for size in (0, 1, len(expected) // 2, len(expected) - 1):
        with contextlib.ExitStack() as full:

            def fill(stage, done, total, full=full, size=size):
                if done == len(QUERIES):
                    full.enter_context(disk_with_room_for(size))

            with pytest.raises(StorageError) as caught:
                export(index, QUERIES, path, DEMOS, note=lambda line: None, progress=fill)
        assert said(caught.value, path, "could not be written") == errno.EFBIG
        assert (path.read_bytes() if path.exists() else None) == older
        assert names(tmp_path) == [*([] if older is None else [path.name]), f"o.{suffix}.partial"]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("retriever.export.record", fail)
        export(index, QUERIES, path, DEMOS, resume=True, note=fail)
    assert path.read_bytes() == expected


@pytest.mark.parametrize(
    ("owner", "call", "code", "doing", "about"),
    [
        (os, "open", errno.EACCES, "cannot be opened for writing", partial_of),
        (partials.fcntl, "flock", errno.ENOLCK, "cannot be locked", partial_of),
        (Path, "stat", errno.EIO, "cannot be locked", partial_of),
        (Path, "open", errno.EMFILE, "cannot be read", partial_of),
        (partials, "_write_all", errno.ENOSPC, "could not be written", partial_of),
        (os, "fsync", errno.EIO, "could not be written", lambda path: path),
        (Path, "replace", errno.EROFS, "could not be written", lambda path: path),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_whichever_call_fails_the_error_says_what_of(index, tmp_path, monkeypatch, owner, call, code, doing, about):
    path = tmp_path / "o.jsonl"
    interrupted(index, path, 2)
    real = getattr(owner, call)

    def failing(first, *rest, **options):
        # Calls on behalf of anything else than this export go through.
        if isinstance(first, int | io.IOBase) or (Path(first).parent == tmp_path and first.name != path.name):
            raise OSError(code, os.strerror(code))
        return real(first, *rest, **options)

    with monkeypatch.context() as patched, pytest.raises(StorageError) as caught:
        patched.setattr(owner, call, failing)
        export(index, QUERIES, path, DEMOS, resume=True, note=lambda line: None)
    assert said(caught.value, about(path), doing) == code
    assert names(tmp_path) == ["o.jsonl.partial"]
    export(index, QUERIES, path, DEMOS, resume=True, note=fail)
    assert path.read_bytes() == whole(index, tmp_path, "jsonl")


@pytest.mark.parametrize("lost", ["folder", "partial file"])
def test_what_vanishes_meanwhile_is_an_error_of_the_disk(index, tmp_path, lost):
    path = tmp_path / "out" / "o.jsonl"
    path.parent.mkdir()

    def vanish(stage, done, total):
        if done == len(QUERIES):
            shutil.rmtree(path.parent) if lost == "folder" else partial_of(path).unlink()

    with pytest.raises(StorageError) as caught:
        export(index, QUERIES, path, DEMOS, note=lambda line: None, progress=vanish)
    at, doing = (path, "could not be written") if lost == "folder" else (partial_of(path), "cannot be read")
    assert said(caught.value, at, doing) == errno.ENOENT
    assert not path.exists()


@pytest.mark.parametrize("place", [1, 4])
def test_an_error_of_the_queries_is_not_taken_for_one_of_the_disk(index, tmp_path, place):
    def queries():
        yield from QUERIES[:place]
        raise OSError(errno.EIO, "the source broke")

    interrupted(index, tmp_path / "o.jsonl", 3)
    with pytest.raises(OSError, match="the source broke") as caught:
        export(index, queries(), tmp_path / "o.jsonl", DEMOS, resume=True, note=lambda line: None)
    assert type(caught.value) is OSError


def test_a_partial_file_that_cannot_be_removed_is_told(index, tmp_path, monkeypatch):
    path = tmp_path / "o.jsonl"
    expected = whole(index, tmp_path, "jsonl")
    remove = partials.files.remove
    monkeypatch.setattr(partials.files, "remove", lambda one: one != partial_of(path) and remove(one))
    notes = []
    export(index, QUERIES, path, DEMOS, note=notes.append)
    assert notes == [f"{partial_of(path)} is not needed any more and could not be removed"]
    assert path.read_bytes() == expected


def test_a_short_write_is_completed():
    class Slow(io.RawIOBase):
        got = b""

        def write(self, content):
            self.got += bytes(content[:3])
            return min(3, len(content))

    slow = Slow()
    partials._write_all(slow, b"0123456789")
    assert slow.got == b"0123456789"


def test_records_are_flushed_to_the_disk_every_two_seconds(index, tmp_path, monkeypatch):
    now, synced = [100.0], []
    monkeypatch.setattr(partials.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(partials.os, "fsync", lambda descriptor: synced.append(now[0]))

    def tick(stage, done, total):
        now[0] += 0.75

    export(index, [Example(str(n), "card") for n in range(8)], tmp_path / "o.jsonl", DEMOS, progress=tick)
    # Record n is written at 100 + 0.75 n; then the finished file and its folder are flushed.
    assert synced == [102.25, 104.5, 106.0, 106.0]


# --- what is kept, removed and noted


@pytest.mark.parametrize("error", [Broken, KeyboardInterrupt, InvalidInput("x"), OSError("x")], ids=repr)
def test_an_interruption_says_what_is_kept(index, tmp_path, error):
    notes = []
    path = tmp_path / "o.jsonl"
    with pytest.raises(error if isinstance(error, type) else type(error)):
        export(index, QUERIES, path, DEMOS, note=notes.append, progress=broken_after(2, error))
    assert notes == [f"2 records are kept in {path}.partial; --resume goes on after them"]
    assert len(partial_of(path).read_bytes().splitlines()) == 3
    assert names(tmp_path) == ["o.jsonl.partial"]


def test_a_bad_query_under_strict_reading_keeps_the_records_before_it(index, tmp_path):
    def strict(row):
        raise BadRows([row])

    source = ["card", "account", {"no": "input"}]
    with pytest.raises(BadRows):
        export(index, read_queries(source, on_bad=strict), tmp_path / "o.jsonl", DEMOS, note=fail)
    assert names(tmp_path) == []  # a block is read before its first record is made
    queries = read_queries(["card"] * 256 + source[1:], on_bad=strict)
    with pytest.raises(BadRows):
        export(index, queries, tmp_path / "o.jsonl", DEMOS, note=lambda line: None)
    assert names(tmp_path) == ["o.jsonl.partial"]
    log = BadRowLog()
    again = read_queries(["card"] * 256 + source[1:], on_bad=log)
    assert export(index, again, tmp_path / "o.jsonl", DEMOS, resume=True, note=fail) == 257
    assert log.count == 1


def test_without_resume_records_that_were_kept_are_replaced_and_a_note_says_so(index, tmp_path):
    path = tmp_path / "o.jsonl"
    interrupted(index, path, 3)
    about = f"records of an interrupted export in {path}.partial are replaced"
    notes = interrupted(index, path, 2, PROMPTS)
    assert notes[0] == f"starting over: 3 {about}"
    notes = []
    export(index, QUERIES, path, PROMPTS, note=notes.append)
    assert notes == [f"starting over: 2 {about}; --resume would have gone on after them"]
    assert path.read_bytes() == whole(index, tmp_path, "jsonl", PROMPTS)


def test_what_a_killed_process_left_of_the_last_step_is_removed(index, tmp_path):
    (tmp_path / ".o.jsonl.partial.tmp").write_bytes(b"half")
    export(index, QUERIES, tmp_path / "o.jsonl", DEMOS, note=fail)
    assert names(tmp_path) == ["o.jsonl"]


# --- what is refused


def refused(index, path, settings=DEMOS, queries=QUERIES):
    before = partial_of(path).read_bytes()
    with pytest.raises(InvalidInput) as refusal:
        export(index, queries, path, settings, resume=True, note=fail)
    assert partial_of(path).read_bytes() == before
    assert not path.exists()
    return str(refusal.value)


def test_another_recipe_is_refused_by_its_key(index, tmp_path):
    interrupted(index, tmp_path / "o.jsonl", 3)
    other = ExportSettings("demos", Recipe().with_options({"k": 3}))
    assert refused(index, tmp_path / "o.jsonl", other) == (
        f"{tmp_path}/o.jsonl.partial was made with recipe.select.k '2'; expected recipe.select.k '3'; "
        "run without --resume to start over"
    )


@pytest.mark.parametrize(
    ("other", "seen"),
    [
        (replace(PROMPTS, form="messages"), "form 'prompts'"),
        (replace(PROMPTS, prompt={"template": "cot"}), "template.name 'io'"),
        (replace(PROMPTS, prompt={"template": Template("io", separator="\n")}), "template.separator"),
        (replace(PROMPTS, prompt={"collisions": "drop"}), "prompt.collisions 'error'"),
        (replace(PROMPTS, prompt={"zero_shot": True}), "prompt.zero_shot 'false'"),
        (replace(PROMPTS, prompt={"slots": {"x": "1"}}), "prompt.slots '{}'"),
        (replace(PROMPTS, recipe=Recipe().with_options({"k": 2, "order": "best-first"})), "recipe.order.by"),
        (DEMOS, "form 'prompts', prompt.counter"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_other_settings_are_refused(index, tmp_path, other, seen):
    interrupted(index, tmp_path / "o.jsonl", 3, PROMPTS)
    message = refused(index, tmp_path / "o.jsonl", other)
    assert message.startswith(f"{tmp_path}/o.jsonl.partial was made with ")
    assert seen.split(",")[0] in message


def test_another_model_is_refused(index, tmp_path):
    interrupted(index, tmp_path / "o.jsonl", 3, BATCH)
    assert "batch.model 'm'; expected batch.model 'n'" in refused(
        index, tmp_path / "o.jsonl", replace(BATCH, batch=BatchSettings("n", 64))
    )


def test_a_template_file_counts_by_its_content(index, tmp_path):
    file = tmp_path / "t.toml"
    file.write_text('system = "Be brief."')
    settings = replace(PROMPTS, prompt={"template": file})
    before = made_from(index, settings)
    file.write_text('system = "Be verbose."')
    assert made_from(index, settings) != before
    file.write_text('system = "Be brief." # the same')
    assert made_from(index, settings) == before


def test_a_tokenizer_file_counts_by_its_content(index, tmp_path):
    file = tmp_path / "tokenizer.json"
    settings = replace(PROMPTS, recipe=Recipe().with_options({"counter": str(file)}))
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({"card": 0, "?": 1}, unk_token="?"))
    tokenizer.save(str(file))
    before = made_from(index, settings)
    tokenizers.Tokenizer(tokenizers.models.WordLevel({"card": 1, "?": 0}, unk_token="?")).save(str(file))
    assert made_from(index, settings)["prompt"] != before["prompt"]


def test_a_changed_index_is_refused(tmp_path):
    with build(POOL, tmp_path / "x.index", weight=0.5) as opened:
        interrupted(opened, tmp_path / "o.jsonl", 3)
        opened.add({"id": "new", "input": "card", "output": "card"})
        message = refused(opened, tmp_path / "o.jsonl")
        assert "index.revision '1'" in message
        assert "expected index.revision '2'" in message


def test_an_index_built_again_from_another_pool_is_refused_though_all_its_numbers_agree(tmp_path):
    with build(POOL, tmp_path / "x.index", weight=0.5) as opened:
        interrupted(opened, tmp_path / "o.jsonl", 3)
    changed = [*POOL[:-1], {**POOL[-1], "output": "fixed a typo"}]
    with build(changed, tmp_path / "y.index", weight=0.5) as opened:
        message = refused(opened, tmp_path / "o.jsonl")
    assert message.count(" index.") == 2  # once seen, once expected
    assert "was made with index.chain" in message


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (replace(QUERIES[1], input="another"), "query 2 is 'q2'; expected 'q2' as it was when"),
        (replace(QUERIES[1], meta={"a": [0.1, None], "b": 1}), "query 2 is 'q2'; expected 'q2'"),  # `$meta` differs
        (replace(QUERIES[1], id="other"), "query 2 is 'other'; expected 'q2'"),
    ],
    ids=["input", "order of meta", "id"],
)
def test_another_query_is_refused(index, tmp_path, changed, message):
    interrupted(index, tmp_path / "o.jsonl", 3)
    queries = [QUERIES[0], changed, *QUERIES[2:]]
    assert message in refused(index, tmp_path / "o.jsonl", queries=queries)


def test_fewer_queries_than_records_are_refused(index, tmp_path):
    interrupted(index, tmp_path / "o.jsonl", 3)
    assert "query 3 is absent; expected 'q3'" in refused(index, tmp_path / "o.jsonl", queries=QUERIES[:2])


def test_a_query_that_comes_after_the_records_may_change(index, tmp_path):
    interrupted(index, tmp_path / "o.jsonl", 3)
    queries = [*QUERIES[:3], Example("new", "machine"), *QUERIES]
    export(index, queries, tmp_path / "o.jsonl", DEMOS, resume=True, note=fail)
    assert (tmp_path / "o.jsonl").read_bytes() == whole(index, tmp_path, "jsonl", queries=queries)


def test_a_file_that_only_has_the_name_is_not_overwritten(index, tmp_path):
    path = partial_of(tmp_path / "o.jsonl")
    for content in (b"my notes", b'{"partial_export";', b'{"partial":'):
        path.write_bytes(content)
        for resume in (False, True):
            with pytest.raises(InvalidInput, match="was not written by an export"):
                export(index, QUERIES, tmp_path / "o.jsonl", DEMOS, resume=resume)
        assert path.read_bytes() == content


def test_a_damaged_first_line_is_refused_and_a_link_is_not_followed(index, tmp_path):
    path = partial_of(tmp_path / "o.jsonl")
    path.write_bytes(b'{"partial_export":oops\n')
    with pytest.raises(InvalidInput, match="damaged; run without --resume"):
        export(index, QUERIES, tmp_path / "o.jsonl", DEMOS, resume=True)
    path.unlink()
    (tmp_path / "precious").write_bytes(b"")
    path.symlink_to(tmp_path / "precious")
    with pytest.raises(StorageError, match="symbolic links"):
        export(index, QUERIES, tmp_path / "o.jsonl", DEMOS)
    assert (tmp_path / "precious").read_bytes() == b""


def test_standard_output_cannot_be_resumed(index):
    with pytest.raises(InvalidInput, match="resume with standard output"):
        export(index, QUERIES, "-", DEMOS, resume=True)


# --- two at once


def test_a_second_export_to_the_same_file_is_refused_while_the_first_one_runs(index, tmp_path):
    path = tmp_path / "o.jsonl"
    refusals = []

    def second(stage, done, total):
        with pytest.raises(InvalidInput, match=r"another export is writing to o\.jsonl now") as refusal:
            export(index, QUERIES, path, DEMOS, resume=done % 2 == 0, note=fail)
        refusals.append(refusal.value)

    export(index, QUERIES, path, DEMOS, progress=second)
    assert len(refusals) == len(QUERIES)
    assert path.read_bytes() == whole(index, tmp_path, "jsonl")


def test_who_waited_for_a_lock_on_a_file_that_is_gone_takes_the_new_one(tmp_path, monkeypatch):
    path = tmp_path / "o.jsonl"
    flock, opened = partials.fcntl.flock, []

    def gone_meanwhile(descriptor, operation):
        opened.append(descriptor)
        if len(opened) == 1:
            partial_of(path).unlink()  # the first export finished between our open and our lock
        flock(descriptor, operation)

    monkeypatch.setattr(partials.fcntl, "flock", gone_meanwhile)
    nothing = {"resume": False, "note": fail, "progress": lambda *what: None}
    with open_partial(path, {}, iter(()), **nothing) as partial:
        partial.write(QUERIES[0], {"a": 1})
        assert partial_of(path).read_bytes().splitlines()[1:] == [
            b'{"query":"%s","record":{"a":1}}' % query_digest(QUERIES[0]).encode()
        ]
    assert len(opened) == 2
    assert names(tmp_path) == []


# --- a real process

SCRIPT = """
import sys, time
from pathlib import Path
from retriever import Retriever
from tests.support import embed
from tests.test_partial import DEMOS, many
from retriever.export import export
def progress(stage, done, total):
    time.sleep(0.005 if done < 300 else 60)  # at the latest it is killed while it waits
with Retriever.open(sys.argv[1], embedder=embed) as index:
    export(index, many(), sys.argv[2], DEMOS, progress=progress)
"""


def many():
    return [Example(f"q{n}", f"card {n}") for n in range(600)]


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_a_killed_process_loses_nothing_that_it_wrote(index, tmp_path, suffix):
    path = tmp_path / f"o.{suffix}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    child = subprocess.Popen([sys.executable, "-c", SCRIPT, str(index.path), str(path)], env=environment)
    deadline = time.monotonic() + 30
    while not partial_of(path).exists() or partial_of(path).read_bytes().count(b"\n") < 40:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    assert child.wait(timeout=10) == -signal.SIGKILL
    kept = partial_of(path).read_bytes().count(b"\n") - 1
    assert 39 <= kept <= 300
    assert names(tmp_path) == [f"o.{suffix}.partial"]
    again = []
    export(index, many(), path, DEMOS, resume=True, progress=lambda stage, done, total: again.append(stage))
    assert again.count("reading again") == kept
    assert len(again) == 600
    assert path.read_bytes() == whole(index, tmp_path, suffix, queries=many())


def test_a_full_disk_ends_the_command_with_1_and_one_line(tmp_path):
    build(POOL, tmp_path / "x.index", embedder="latent", weight=0.5).close()
    (tmp_path / "q.jsonl").write_text('{"input": "card"}\n' * 200)
    path = tmp_path / "o.jsonl"
    script = (
        "import resource, cli, retriever.retriever, retriever.export\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "cli.main()"
    )
    command = [sys.executable, "-c", script, "export", str(tmp_path / "x.index"), str(tmp_path / "q.jsonl")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([*command, "-o", str(path)], env=environment, capture_output=True, text=True, check=False)
    kept = partial_of(path).read_bytes().count(b"\n") - 1
    assert 0 < kept < 200
    assert done.returncode == 1
    assert done.stderr == (
        f"note: {kept} records are kept in {path}.partial; --resume goes on after them\n"
        f"error: {path}.partial: could not be written: File too large; "
        "raise the limit on file sizes (ulimit -f), then try again: the index is as it was\n"
    )


def test_an_interrupt_of_the_command_is_130_and_resume_goes_on(tmp_path):
    build(POOL, tmp_path / "x.index", embedder="latent", weight=0.5).close()
    rows = [json.dumps({"id": f"q{n}", "input": f"card {n}"}).encode() + b"\n" for n in range(600)]
    path = tmp_path / "o.csv"
    command = [sys.executable, "-c", "import cli; cli.main()", "export", str(tmp_path / "x.index"), "-", "-k", "0"]
    options = {"env": {**os.environ, "PYTHONPATH": str(ROOT)}, "stderr": subprocess.PIPE}
    with subprocess.Popen([*command, "-o", str(path)], stdin=subprocess.PIPE, **options) as child:
        child.stdin.write(b"".join(rows[:300]))  # a block of 256 is answered, then it waits for more
        child.stdin.flush()
        deadline = time.monotonic() + 30
        while not partial_of(path).exists() or partial_of(path).read_bytes().count(b"\n") < 257:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        child.send_signal(signal.SIGINT)
        assert child.wait(timeout=30) == 130
        assert child.stderr.read().decode() == (
            f"note: 256 records are kept in {path}.partial; --resume goes on after them\ninterrupted\n"
        )
    for arguments in (["-o", str(path), "--resume"], ["-o", str(tmp_path / "whole.csv")]):
        done = subprocess.run([*command, *arguments], input=b"".join(rows), check=True, **options)
        assert done.stderr.decode() == f"600 records in {arguments[1]}\n"
    assert path.read_bytes() == (tmp_path / "whole.csv").read_bytes()
    refusal = subprocess.run([*command, "-o", "-", "--resume"], input=b"", check=False, **options)
    assert refusal.returncode == 2
    assert refusal.stderr.startswith(b"error: resume with standard output")


def test_the_first_line_says_what_the_records_are_made_from(index, tmp_path):
    interrupted(index, tmp_path / "o.jsonl", 1, PROMPTS)
    header = json.loads(partial_of(tmp_path / "o.jsonl").read_bytes().split(b"\n")[0])
    assert header == {"partial_export": 1, **made_from(index, PROMPTS)}
    assert header["prompt"]["form"] == "text"
    assert set(header) == {"partial_export", "program", "form", "recipe", "index", "template", "prompt"}
    known = {"generation", "revision", "chain", "created_by", "settings", "embedder", "weight"}
    assert set(header["index"]) == known
    assert str(index.path) not in json.dumps(header)

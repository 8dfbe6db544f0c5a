"""What was verified counts for a day, and only while nobody writes to the files."""

import json
import os
import shutil
import time

import pytest

from indexes import generation
from retriever import Retriever, verified
from retriever.cache import cache_directory
from retriever.errors import IndexCorrupt
from retriever.verification import verify
from tests.support import build, embed


@pytest.fixture
def index(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(verified, "SETTLED", 0.0)
    root = tmp_path / "x.index"
    build([{"id": "a", "input": "one", "output": "1"}, {"id": "b", "input": "two", "output": "2"}], root).close()
    shutil.rmtree(cache_directory(), ignore_errors=True)  # the build opened what it had made
    return root


@pytest.fixture
def hashed(monkeypatch):
    """How often the files of a generation were compared with their hashes."""
    calls = []
    check = generation._check_digests
    monkeypatch.setattr(generation, "_check_digests", lambda *given: calls.append(1) or check(*given))
    return calls


def opened(root):
    with Retriever.open(root, embedder=embed) as retriever:
        return [chosen.example.id for chosen in retriever.select("one", k=1)]


def vectors(root):
    return root / "gen-000001" / "vectors.npy"


def flip_a_bit(path):
    body = bytearray(path.read_bytes())
    body[-1] ^= 1
    times = path.stat()
    path.write_bytes(body)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def notes():
    return sorted((cache_directory() / "verified").iterdir())


def test_the_second_opening_reads_no_file_again_and_answers_the_same(index, hashed):
    assert opened(index) == opened(index) == opened(index) == ["a"]
    assert len(hashed) == 1


def test_a_file_that_was_written_to_is_verified_though_its_size_and_time_are_as_before(index):
    opened(index)
    flip_a_bit(vectors(index))
    with pytest.raises(IndexCorrupt, match="SHA-256"):
        opened(index)


def test_an_index_in_another_place_is_verified(index, tmp_path, hashed):
    opened(index)
    index.rename(tmp_path / "y.index")
    before = len(hashed)
    opened(tmp_path / "y.index")
    assert len(hashed) == before + 1


def test_a_note_counts_for_a_day(index, hashed):
    opened(index)
    [path] = notes()
    noted = json.loads(path.read_text())
    for age, again in ((verified.LASTS - 60, 0), (verified.LASTS + 60, 1), (-3600, 1)):
        before = len(hashed)
        path.write_text(json.dumps({**noted, "time": time.time() - age}))
        opened(index)
        assert len(hashed) == before + again, age


def test_files_written_just_now_are_not_noted(index, monkeypatch, hashed):
    monkeypatch.setattr(verified, "SETTLED", 3600.0)
    opened(index)
    opened(index)
    assert len(hashed) == 2
    assert not (cache_directory() / "verified").exists()


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"time": "x", "files": {}}', '{"time": NaN, "files": {}}'])
def test_a_note_that_is_none_counts_for_nothing(index, content, hashed):
    opened(index)
    [path] = notes()
    before = len(hashed)
    path.write_text(content)
    assert opened(index) == ["a"]
    assert len(hashed) == before + 1


def test_without_a_cache_directory_every_opening_verifies(index, tmp_path, monkeypatch, hashed):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    opened(index)
    opened(index)
    assert len(hashed) == 2


def test_old_notes_are_removed(index):
    opened(index)
    [path] = notes()
    old = path.with_name("old.json")
    old.write_text("{}")
    os.utime(old, (0, 0))
    path.unlink()
    opened(index)
    assert notes() == [path]


def test_verify_reads_everything_whatever_is_noted(index, monkeypatch):
    opened(index)
    flip_a_bit(vectors(index))
    monkeypatch.setattr(verified, "known", lambda *given: True)
    assert opened(index) == ["a"]
    assert not verify(index).intact

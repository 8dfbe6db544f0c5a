"""Saved vectors: blocks that a later build may trust, and nothing else in the directory."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from indexes import files
from retriever.errors import StorageError
from retriever.saved_vectors import SavedVectors, saved_directory

SPACE = "a space"


def vectors(count: int, dim: int = 3, start: int = 0) -> np.ndarray:
    return np.arange(start, start + count * dim, dtype=np.float32).reshape(count, dim)


@pytest.fixture
def saved(tmp_path):
    saved = SavedVectors(tmp_path, SPACE)
    saved.save(["a", "b"], vectors(2))
    saved.save(["c"], vectors(1, start=10))
    return saved


def block(root, number: int):
    return saved_directory(root) / f"block-{number:06d}"


def test_nothing_is_made_before_something_is_saved(tmp_path):
    saved = SavedVectors(tmp_path, SPACE)
    assert (len(saved), saved.get("a")) == (0, None)
    assert list(tmp_path.iterdir()) == []


def test_what_was_saved_is_there_for_the_next_build_and_not_held_by_this_one(tmp_path, saved):
    assert (len(saved), saved.get("a")) == (3, None)
    following = SavedVectors(tmp_path, SPACE)
    assert len(following) == 3
    assert [following.get(text).tolist() for text in "abc"] == [[0, 1, 2], [3, 4, 5], [10, 11, 12]]
    assert following.get("d") is None


def test_vectors_come_back_bit_by_bit(tmp_path):
    odd = np.array([[-0.0, 1e-45, 3.4e38]], dtype=np.float32)
    texts = ["a\x00\u2028\ud800😀"]
    SavedVectors(tmp_path, SPACE).save(texts, odd)
    assert SavedVectors(tmp_path, SPACE).get(texts[0]).tobytes() == odd.tobytes()


def test_a_block_is_a_line_of_json_then_the_hashes_of_the_texts_then_the_vectors(tmp_path, saved):
    head, _, body = block(tmp_path, 1).read_bytes().partition(b"\n")
    assert json.loads(head) == {
        "space": hashlib.sha256(SPACE.encode()).hexdigest(),
        "texts": 2,
        "dim": 3,
        "sha256": hashlib.sha256(body).hexdigest(),
    }
    assert body == hashlib.sha256(b"a").digest() + hashlib.sha256(b"b").digest() + vectors(2).tobytes()


def test_another_space_sees_nothing_and_does_not_overwrite(tmp_path, saved):
    other = SavedVectors(tmp_path, "another space")
    assert len(other) == 0
    other.save(["a"], vectors(1, dim=5))
    assert block(tmp_path, 3).exists()
    assert SavedVectors(tmp_path, SPACE).get("a").tolist() == [0, 1, 2]
    assert SavedVectors(tmp_path, "another space").get("a").shape == (5,)


def test_a_later_build_goes_on_counting_after_a_block_that_is_gone(tmp_path, saved):
    block(tmp_path, 1).unlink()
    SavedVectors(tmp_path, SPACE).save(["d"], vectors(1))
    assert sorted(path.name for path in saved_directory(tmp_path).iterdir()) == ["block-000002", "block-000003"]
    again = SavedVectors(tmp_path, SPACE)
    assert [again.get(text) is not None for text in "abcd"] == [False, False, True, True]


@given(place=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_a_block_with_any_bit_flipped_is_ignored_or_says_the_same(tmp_path_factory, place, bit):
    root = tmp_path_factory.mktemp("saved")
    SavedVectors(root, SPACE).save(["a", "b"], vectors(2))
    content = bytearray(block(root, 1).read_bytes())
    content[place % len(content)] ^= 1 << bit
    block(root, 1).write_bytes(content)
    found = SavedVectors(root, SPACE)
    assert len(found) in (0, 2)
    if len(found):
        assert [found.get(text).tolist() for text in "ab"] == vectors(2).tolist()


def test_a_block_that_is_cut_anywhere_is_ignored_and_the_others_are_used(tmp_path, saved):
    whole = block(tmp_path, 1).read_bytes()
    for length in range(0, len(whole), 7):
        block(tmp_path, 1).write_bytes(whole[:length])
        assert len(SavedVectors(tmp_path, SPACE)) == 1


FOREIGN = {
    "json of another kind": b"[1, 2]\n",
    "a number": b"7\n",
    "no json": b"\x80\x04\x95pickle\n",
    "without an end": b"{" * 5000,
    "deep": b"[" * 900 + b"\n",
    "negative sizes": b'{"space": "%s", "texts": -1, "dim": -8, "sha256": "%s"}\n'
    % (hashlib.sha256(SPACE.encode()).hexdigest().encode(), hashlib.sha256(b"").hexdigest().encode()),
    "infinite sizes": b'{"space": "", "texts": Infinity, "dim": 1, "sha256": ""}\n',
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_foreign_file_under_the_name_of_a_block_is_ignored(tmp_path, saved, name):
    block(tmp_path, 9).write_bytes(FOREIGN[name])
    assert len(SavedVectors(tmp_path, SPACE)) == 3


def test_other_names_in_the_directory_are_not_looked_at(tmp_path, saved):
    (saved_directory(tmp_path) / "notes.txt").write_text("mine")
    (saved_directory(tmp_path) / "block-1").write_text("short")
    assert len(SavedVectors(tmp_path, SPACE)) == 3


def test_a_full_disk_is_told_and_what_was_saved_before_stays(tmp_path, saved, monkeypatch):
    def full(path, chunks):
        raise StorageError(path, "could not be written", OSError(28, "No space left on device"))

    with monkeypatch.context() as patch, pytest.raises(StorageError, match="No space left"):
        patch.setattr(files, "write_bytes", full)
        saved.save(["d"], vectors(1))
    assert saved.get("d") is None
    assert len(SavedVectors(tmp_path, SPACE)) == 3


def test_a_block_is_flushed_before_it_counts(tmp_path, monkeypatch):
    steps = []
    write = files.write_bytes
    monkeypatch.setattr(files, "write_bytes", lambda path, chunks: (steps.append(path.name), write(path, chunks))[1])
    monkeypatch.setattr(files, "sync_directory", lambda path: steps.append(f"sync {path.name}"))
    SavedVectors(tmp_path, SPACE).save(["a"], vectors(1))
    assert steps[-2:] == ["block-000001", "sync partial"]

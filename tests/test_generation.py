"""Generations: published whole or not at all, and refused when a bit is wrong."""

import hashlib
import json
import os
import shutil

import numpy as np
import pytest

from indexes import files
from indexes.arrays import npy
from indexes.current import Current, point, read_current
from indexes.errors import Incompatible, IndexCorrupt, IndexLocked, IndexMissing, OutOfSpace, StorageError
from indexes.generation import collect, generations, open_current, open_substitute, publish

CHAIN = "c" * 64
FILES = ["a.npy", "b.bin", "manifest.json"]


def publish_one(root, start=0, revision=1):
    content = {"a.npy": npy(np.arange(start, start + 5)), "b.bin": [b"xy", b"z"]}
    return publish(root, content, {"about": "test"}, revision=revision, chain=CHAIN)


def opened(root):
    return open_current(root, read_current(root))


def flip(path, place=None):
    content = bytearray(path.read_bytes())
    content[len(content) // 2 if place is None else place] ^= 0x80
    path.unlink()
    path.write_bytes(content)


def test_what_was_published_is_opened_and_depends_on_no_directory(tmp_path):
    for name in "xy":
        (tmp_path / name).mkdir()
        publish_one(tmp_path / name)
    generation = opened(tmp_path / "x")
    assert generation.array("a", np.int64).tolist() == [0, 1, 2, 3, 4]
    assert bytes(generation.buffers["b.bin"]) == b"xyz"
    assert generation.manifest["about"] == "test"
    for name in ["CURRENT", *(f"gen-000001/{name}" for name in FILES)]:
        assert (tmp_path / "x" / name).read_bytes() == (tmp_path / "y" / name).read_bytes()


def test_the_files_do_not_depend_on_what_was_published_before(tmp_path):
    publish_one(tmp_path, 7)
    publish_one(tmp_path, 0)
    (tmp_path / "other").mkdir()
    publish_one(tmp_path / "other", 0)
    for name in FILES:
        second = (tmp_path / "gen-000002" / name).read_bytes()
        assert second == (tmp_path / "other" / "gen-000001" / name).read_bytes()


def test_current_holds_the_generation_its_manifest_the_revision_and_the_chain(tmp_path):
    publish_one(tmp_path, revision=12)
    line = (tmp_path / "CURRENT").read_bytes()
    name, manifest, revision, chain, check = line.split(b" ")
    assert (name, revision, chain) == (b"gen-000001", b"12", CHAIN.encode())
    assert manifest.decode() == hashlib.sha256((tmp_path / "gen-000001" / "manifest.json").read_bytes()).hexdigest()
    assert check.decode() == hashlib.sha256(line.rpartition(b" ")[0]).hexdigest() + "\n"
    assert read_current(tmp_path) == Current("gen-000001", manifest.decode(), 12, CHAIN)


def test_the_revision_moves_on_without_a_new_generation(tmp_path):
    current = publish_one(tmp_path)
    point(tmp_path, Current(current.generation, current.manifest, 2, "d" * 64))
    assert read_current(tmp_path).revision == 2
    assert opened(tmp_path).name == "gen-000001"


def test_without_current_there_is_no_index(tmp_path):
    with pytest.raises(IndexMissing):
        read_current(tmp_path)


@pytest.mark.parametrize("bit", range(8))
def test_any_flipped_bit_of_current_is_found_and_named(tmp_path, bit):
    publish_one(tmp_path)
    path = tmp_path / "CURRENT"
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :])
        with pytest.raises(IndexCorrupt) as caught:
            read_current(tmp_path)
        assert caught.value.path == path
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(IndexCorrupt):
            read_current(tmp_path)


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_is_refused_by_name_and_the_previous_generation_answers_in_its_place(tmp_path, name):
    publish_one(tmp_path)
    current = publish_one(tmp_path, 7)
    path, notes = tmp_path / "gen-000002" / name, []
    flip(path)
    with pytest.raises(IndexCorrupt) as caught:
        opened(tmp_path)
    assert caught.value.path == path
    substitute = open_substitute(tmp_path, caught.value, before=current.generation, note=notes.append)
    assert (substitute.number, substitute.stands_in) == (1, True)
    assert len(notes) == 1
    assert str(path) in notes[0]
    flip(tmp_path / "gen-000001" / name)
    with pytest.raises(IndexCorrupt) as last:
        open_substitute(tmp_path, caught.value, before=current.generation, note=notes.append)
    assert last.value is caught.value
    assert len(notes) == 1


@pytest.mark.parametrize("name", ["a.npy", "b.bin", "manifest.json"])
def test_files_of_two_generations_never_combine(tmp_path, name):
    publish_one(tmp_path)
    publish_one(tmp_path, 7)
    if name == "b.bin":
        (tmp_path / "gen-000001" / name).write_bytes(b"xyZ")
    shutil.copy(tmp_path / "gen-000001" / name, tmp_path / "gen-000002" / name)
    with pytest.raises(IndexCorrupt, match=name):
        opened(tmp_path)


def test_a_link_in_place_of_a_file_is_refused(tmp_path):
    publish_one(tmp_path)
    path = tmp_path / "gen-000001" / "b.bin"
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(IndexCorrupt, match="not a regular file"):
        opened(tmp_path)


def test_a_pipe_in_place_of_a_file_is_refused_without_waiting_for_it(tmp_path):
    publish_one(tmp_path)
    path = tmp_path / "gen-000001" / "b.bin"
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(IndexCorrupt, match="not a regular file"):
        opened(tmp_path)


def test_without_verification_sizes_are_still_checked_and_hashes_are_not(tmp_path):
    current = publish_one(tmp_path)
    flip(tmp_path / "gen-000001" / "b.bin")
    assert bytes(open_current(tmp_path, current, verify=False).buffers["b.bin"]) != b"xyz"
    (tmp_path / "gen-000001" / "b.bin").write_bytes(b"xy")
    with pytest.raises(IndexCorrupt, match=r"b\.bin: 2 bytes; expected 3"):
        open_current(tmp_path, current, verify=False)


def forged(root, **changes):
    """Replaces parts of the manifest, its own hash and CURRENT, as whoever can write to the index could."""
    path = root / "gen-000001" / "manifest.json"
    manifest = {**json.loads(path.read_bytes()), **changes}
    del manifest["sha256"]
    own = hashlib.sha256(json.dumps(manifest, ensure_ascii=False, indent=1, sort_keys=True).encode()).hexdigest()
    body = json.dumps({**manifest, "sha256": own}, ensure_ascii=False, indent=1, sort_keys=True).encode()
    path.write_bytes(body)
    point(root, Current("gen-000001", hashlib.sha256(body).hexdigest(), 1, CHAIN))


def test_a_newer_format_is_refused_with_the_version_that_wrote_it(tmp_path):
    publish_one(tmp_path)
    forged(tmp_path, format=2, created_by="demonstration-retriever 9.1")
    with pytest.raises(Incompatible, match=r"format 2.*expected at most 1.*upgrade.*demonstration-retriever 9\.1"):
        opened(tmp_path)


@pytest.mark.parametrize(
    "name", ["../../secret.npy", "/etc/passwd", "a/b.npy", "", ".npy", "a.npy\n", "A.npy", "a.pkl"]
)
def test_a_manifest_that_names_a_file_elsewhere_is_refused(tmp_path, name):
    publish_one(tmp_path)
    forged(tmp_path, files={name: {"size": 3, "sha256": "0" * 64}})
    with pytest.raises(IndexCorrupt, match="lists its files wrongly"):
        opened(tmp_path)


def test_a_manifest_beyond_its_size_limit_is_refused(tmp_path):
    publish_one(tmp_path)
    forged(tmp_path, about="x" * (1 << 24))
    with pytest.raises(IndexCorrupt, match="expected at most 16,777,216"):
        opened(tmp_path)


def test_the_free_space_is_looked_at_first_and_the_message_names_the_bytes(tmp_path, monkeypatch):
    publish_one(tmp_path)
    before = sorted(path.name for path in tmp_path.iterdir())
    monkeypatch.setattr(files, "free_bytes", lambda path: 1000)
    with pytest.raises(OutOfSpace, match=r"1,048,747 bytes are needed and 1,000 are free") as caught:
        publish_one(tmp_path, 7)
    assert (caught.value.needed, caught.value.free) == (1_048_747, 1000)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


@pytest.mark.parametrize("step", ["write_bytes", "rename", "sync_directory"])
def test_a_failing_write_leaves_the_old_generation_current(tmp_path, monkeypatch, step):
    publish_one(tmp_path)

    def full(path, *_):
        raise StorageError(path, "could not be written", OSError(28, "No space left on device"))

    with monkeypatch.context() as patch, pytest.raises(StorageError, match="No space left"):
        patch.setattr(files, step, full)
        publish_one(tmp_path, 7)
    assert opened(tmp_path).number == 1


def test_collect_keeps_two_and_removes_what_was_never_current_and_what_a_crash_left(tmp_path):
    for start in range(4):
        current = publish_one(tmp_path, start)
    shutil.copytree(tmp_path / "gen-000004", tmp_path / "gen-000005")
    (tmp_path / "gen-000006.tmp-17").mkdir()
    (tmp_path / "CURRENT.tmp-17").write_text("gen")
    (tmp_path / "notes.txt").write_text("not ours")
    assert collect(tmp_path, current) == [
        "CURRENT.tmp-17",
        "gen-000001",
        "gen-000002",
        "gen-000005",
        "gen-000006.tmp-17",
    ]
    assert generations(tmp_path) == ["gen-000003", "gen-000004"]
    assert (tmp_path / "notes.txt").read_text() == "not ours"


def test_collect_before_the_first_publication_leaves_no_generation(tmp_path):
    publish_one(tmp_path)
    (tmp_path / "CURRENT").unlink()
    assert collect(tmp_path, None) == ["gen-000001"]


def test_a_generation_that_a_reader_holds_is_not_collected_until_it_lets_go(tmp_path):
    publish_one(tmp_path)
    reader = opened(tmp_path)
    publish_one(tmp_path, 1)
    current = publish_one(tmp_path, 2)
    assert collect(tmp_path, current) == []
    reader.hold.release()
    assert collect(tmp_path, current) == ["gen-000001"]
    assert reader.array("a", np.int64).tolist() == [0, 1, 2, 3, 4]


def test_what_cannot_be_removed_stays_for_a_later_call(tmp_path, monkeypatch):
    publish_one(tmp_path)
    publish_one(tmp_path, 1)
    current = publish_one(tmp_path, 2)
    with monkeypatch.context() as patch:
        patch.setattr(files, "remove", lambda path: False)
        assert collect(tmp_path, current) == []
    assert collect(tmp_path, current) != []
    assert generations(tmp_path) == ["gen-000002", "gen-000003"]


def test_the_lock_refuses_a_second_holder_and_names_the_first(tmp_path):
    with files.locked(tmp_path / "LOCK"), pytest.raises(IndexLocked) as caught, files.locked(tmp_path / "LOCK"):
        pass
    assert caught.value.pid == os.getpid()

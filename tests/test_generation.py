"""Generations: published whole or not at all, and refused when a bit is wrong."""

import os

import numpy as np
import pytest

from indexes import files
from indexes.errors import IndexCorrupt, IndexLocked
from indexes.generation import collect, generations, npy, open_current, publish

NAMES = ["CURRENT", "gen-000001/a.npy", "gen-000001/b.bin", "gen-000001/manifest.json"]


def publish_one(root, start=0):
    return publish(root, {"a.npy": npy(np.arange(start, start + 5)), "b.bin": [b"xy", b"z"]}, {"about": "test"})


def refuse(line):
    raise AssertionError(line)


def test_what_was_published_is_opened_and_depends_on_no_directory(tmp_path):
    for name in "xy":
        (tmp_path / name).mkdir()
        publish_one(tmp_path / name)
    opened = open_current(tmp_path / "x", note=refuse)
    assert opened.array("a", np.int64).tolist() == [0, 1, 2, 3, 4]
    assert bytes(opened.buffers["b.bin"]) == b"xyz"
    for name in NAMES:
        assert (tmp_path / "x" / name).read_bytes() == (tmp_path / "y" / name).read_bytes()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("older", [False, True])
def test_a_flipped_bit_is_refused_by_name_or_answered_by_the_previous_generation(tmp_path, name, older):
    publish_one(tmp_path)
    if older:
        publish_one(tmp_path, 7)
        name = name.replace("000001", "000002")
    path, notes = tmp_path / name, []
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x80
    path.write_bytes(content)
    if name == "CURRENT":
        # No generation is at fault for an unreadable CURRENT: the newest intact one answers, and says so.
        assert open_current(tmp_path, note=notes.append).number == 1 + older
    elif older:
        assert open_current(tmp_path, note=notes.append).number == 1
    else:
        with pytest.raises(IndexCorrupt) as caught:
            open_current(tmp_path, note=refuse)
        assert caught.value.path == path
        notes.append(str(caught.value))
    assert len(notes) == 1
    assert str(path) in notes[0]


@pytest.mark.parametrize("step", ["write_bytes", "rename", "sync_directory"])
def test_a_failing_write_leaves_the_old_generation_current(tmp_path, monkeypatch, step):
    publish_one(tmp_path)

    def full(*_):
        raise OSError("disk full")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="disk full"):
        patch.setattr(files, step, full)
        publish_one(tmp_path, 7)
    assert open_current(tmp_path, note=refuse).number == 1


def test_collect_keeps_two(tmp_path):
    for start in range(4):
        publish_one(tmp_path, start)
    assert collect(tmp_path) == ["gen-000001", "gen-000002"]
    assert generations(tmp_path) == ["gen-000003", "gen-000004"]


def test_the_lock_refuses_a_second_holder_and_names_the_first(tmp_path):
    with files.locked(tmp_path / "LOCK"), pytest.raises(IndexLocked) as caught, files.locked(tmp_path / "LOCK"):
        pass
    assert caught.value.pid == os.getpid()

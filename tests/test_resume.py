"""A build that was interrupted goes on where it stopped, and ends with the bytes of one that was not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support import embed, fail

from retriever import Retriever
from retriever.embedders.function import FunctionEmbedder
from retriever.errors import EmbedderError, IndexMissing

ROWS = [{"id": f"r{i}", "input": f"{'x' * i} text {i}", "output": f"o{i % 3}"} for i in range(20)]
TEXTS = {row["input"] for row in ROWS}
BLOCK = 4


class Counting:
    """An embedder under a fixed name that remembers the pool's texts, and fails at a block when told to."""

    def __init__(self, failing_block: int = 0, error: BaseException | None = None, name: str = "counting"):
        self.blocks: list[list[str]] = []
        self._failing_block = failing_block
        self._error = error
        self.source = FunctionEmbedder(self._embed, name=name)

    @property
    def asked(self) -> list[str]:
        return [text for block in self.blocks for text in block]

    def _embed(self, texts):
        if set(texts) & {*TEXTS, "new text"}:
            if len(self.blocks) + 1 == self._failing_block:
                raise self._error
            self.blocks.append(list(texts))
        return embed(texts)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr("retriever.publishing._ENCODE_BLOCK", BLOCK)


def build(root: Path, embedder: Counting, rows=ROWS, note=fail, **options) -> None:
    Retriever.build(rows, root, embedder=embedder.source, note=note, **options).close()


def interrupted(root: Path, error: BaseException, block: int = 4, rows=ROWS, **options) -> tuple[Counting, list[str]]:
    """A build that fails at a block."""
    notes: list[str] = []
    embedder = Counting(block, error)
    with pytest.raises(EmbedderError if isinstance(error, Exception) else type(error)):
        build(root, embedder, rows, notes.append, **options)
    return embedder, notes


def files_of(root: Path, generation: str = "gen-000001") -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (root / generation).iterdir()}


ERRORS = [RuntimeError("out of order"), KeyboardInterrupt()]


@pytest.mark.parametrize("error", ERRORS, ids=["error", "interrupt"])
@pytest.mark.parametrize("block", [2, 4, 5])
def test_run_again_it_embeds_only_the_rest_and_the_bytes_are_those_of_an_uninterrupted_build(tmp_path, error, block):
    whole = Counting()
    build(tmp_path / "whole", whole)
    first, notes = interrupted(tmp_path / "i", error, block)
    kept = BLOCK * (block - 1)
    assert notes == [f"the vectors of {kept} texts are kept: run the same build again to go on from there"]
    with pytest.raises(IndexMissing, match="its build did not finish"):
        Retriever.open(tmp_path / "i")
    notes.clear()
    second = Counting()
    build(tmp_path / "i", second, note=notes.append)
    assert notes == [f"an interrupted build has left the vectors of {kept} texts: they are used"]
    assert first.blocks + second.blocks == whole.blocks
    assert files_of(tmp_path / "i") == files_of(tmp_path / "whole")
    assert (tmp_path / "i" / "CURRENT").read_bytes() == (tmp_path / "whole" / "CURRENT").read_bytes()
    assert not (tmp_path / "i" / "partial").exists()


def test_interrupted_before_the_first_block_nothing_is_left(tmp_path):
    _, notes = interrupted(tmp_path / "i", RuntimeError("out of order"), 1)
    assert notes == []
    assert list(tmp_path.iterdir()) == []


def test_interrupted_twice_it_still_embeds_each_text_once(tmp_path):
    first, _ = interrupted(tmp_path / "i", KeyboardInterrupt(), 2)
    second, _ = interrupted(tmp_path / "i", KeyboardInterrupt(), 3)
    third = Counting()
    build(tmp_path / "i", third, note=lambda line: None)
    assert sorted(first.asked + second.asked + third.asked) == sorted(TEXTS)
    assert len(third.blocks) == 2


KILLED = """
import os, signal, sys
sys.path[:0] = [{tests!r}]
import retriever.publishing
from support import embed
from test_resume import ROWS, TEXTS
from retriever import Retriever
from retriever.embedders.function import FunctionEmbedder

retriever.publishing._ENCODE_BLOCK = 4
blocks = 0

def killing(texts):
    global blocks
    blocks += bool(TEXTS & set(texts))
    if blocks == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return embed(texts)

Retriever.build(ROWS, sys.argv[1], embedder=FunctionEmbedder(killing, name="counting"))
"""


def test_a_killed_build_goes_on_too(tmp_path):
    root, script = tmp_path / "i", KILLED.format(tests=str(Path(__file__).parent))
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    killed = subprocess.run([sys.executable, "-c", script, str(root)], capture_output=True, env=environment)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    embedder, notes = Counting(), []
    build(root, embedder, note=notes.append)
    assert len(embedder.asked) == 8
    assert "12 texts: they are used" in notes[0]
    build(tmp_path / "whole", Counting())
    assert files_of(root) == files_of(tmp_path / "whole")
    assert not (root / "partial").exists()


def test_another_embedder_does_not_use_what_is_left(tmp_path):
    interrupted(tmp_path / "i", KeyboardInterrupt())
    other = Counting(name="other")
    build(tmp_path / "i", other)
    assert set(other.asked) == TEXTS
    assert not (tmp_path / "i" / "partial").exists()


@pytest.mark.parametrize("damage", ["flipped", "cut", "emptied", "deleted"])
def test_a_damaged_block_is_embedded_again(tmp_path, damage):
    interrupted(tmp_path / "i", KeyboardInterrupt())
    blocks = sorted((tmp_path / "i" / "partial").iterdir())
    assert [path.name for path in blocks] == ["block-000001", "block-000002", "block-000003"]
    body = bytearray(blocks[1].read_bytes())
    body[-1] ^= 1
    {
        "flipped": lambda: blocks[1].write_bytes(body),
        "cut": lambda: blocks[1].write_bytes(body[:100]),
        "emptied": lambda: blocks[1].write_bytes(b""),
        "deleted": blocks[1].unlink,
    }[damage]()
    embedder, whole = Counting(), Counting()
    build(tmp_path / "i", embedder, note=lambda line: None)
    build(tmp_path / "whole", whole)
    assert embedder.blocks == [whole.blocks[1], *whole.blocks[3:]]
    assert files_of(tmp_path / "i") == files_of(tmp_path / "whole")


def test_a_pool_that_has_changed_uses_the_vectors_of_texts_that_have_not(tmp_path):
    interrupted(tmp_path / "i", KeyboardInterrupt())
    changed = [*ROWS[:5], {"id": "n", "input": "new text", "output": "o"}, *ROWS[8:]]
    embedder = Counting()
    build(tmp_path / "i", embedder, changed, lambda line: None)
    # Blocks go by length: the twelve shortest texts were embedded.
    assert sorted(embedder.asked) == sorted(["new text", *(row["input"] for row in ROWS[12:])])
    build(tmp_path / "whole", Counting(), changed)
    assert files_of(tmp_path / "i") == files_of(tmp_path / "whole")


def test_an_overwriting_build_embeds_only_new_texts(tmp_path):
    build(tmp_path / "i", Counting())
    embedder = Counting()
    build(tmp_path / "i", embedder, [*ROWS[:7], {"input": "new text", "output": "o"}], overwrite=True)
    assert embedder.asked == ["new text"]


def test_an_interrupted_overwriting_build_leaves_the_old_answers_and_goes_on(tmp_path):
    root = tmp_path / "i"
    build(root, Counting(), ROWS[:4])
    with Retriever.open(root, embedder=Counting().source) as reader:
        before = reader.select("text 2", k=3).ids
        interrupted(root, KeyboardInterrupt(), 3, overwrite=True)
        assert reader.refresh() is False
        assert reader.select("text 2", k=3).ids == before
    with Retriever.open(root, embedder=Counting().source) as reader:
        assert len(reader) == 4
        reader.add({"id": "n", "input": "new text", "output": "o"})
    embedder = Counting()
    build(root, embedder, overwrite=True, note=lambda line: None)
    assert len(embedder.asked) == 20 - 4 - 2 * BLOCK
    with Retriever.open(root, embedder=Counting().source) as reader:
        assert len(reader) == 20

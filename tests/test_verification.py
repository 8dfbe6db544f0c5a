"""Verification: every kind of damage is found and named, and looking changes nothing."""

from __future__ import annotations

import hashlib
import json
import shutil
import sqlite3
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support import build

from indexes.arrays import npy
from indexes.current import point, read_current
from retriever import Retriever
from retriever.errors import IndexMissing
from retriever.pool import Pool
from retriever.repair import repair
from retriever.verification import REBUILD, RESTORE, Problem, Verification, verify
from retriever.writing import collect

ROWS = [{"id": f"r{i}", "input": f"card {i} refund", "output": f"o{i % 3}"} for i in range(6)]
CURRENT = "gen-000002"
ARRAYS = (
    *("rows", "ids", "id_offsets", "id_rows", "text_hashes", "vectors", "terms", "term_offsets"),
    *("posting_offsets", "posting_rows", "posting_counts", "lengths"),
)


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    root = tmp_path_factory.mktemp("original") / "i"
    with build(ROWS, root, weight=0.5) as retriever:
        retriever.add({"id": "m", "input": "late mail", "output": "o"})
        retriever.compact()
        retriever.add({"id": "n", "input": "lost again", "output": "o"})
        retriever.remove("r2")
    return root


@pytest.fixture
def index(original, tmp_path):
    shutil.copytree(original, tmp_path / "i")
    return tmp_path / "i"


def edit(root: Path, sql: str) -> None:
    connection = sqlite3.connect(root / "pool.sqlite")
    with connection:
        connection.execute(sql)
    connection.close()


def flip(path: Path, bit: int = 0) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1 << bit
    path.unlink()
    path.write_bytes(content)


def found(root: Path) -> list[tuple[str, str]]:
    """Which files are named, and what is said to mend them."""
    return [(str(one.path.relative_to(root)), one.remedy) for one in verify(root).problems]


def content(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_an_intact_index_has_no_problems_and_it_is_said_what_was_looked_at(index):
    assert verify(index) == Verification(index, 8, ("gen-000001", CURRENT), ())
    assert verify(index).intact
    assert verify(index).repairable


@pytest.mark.parametrize("damaged", [False, True])
def test_nothing_is_written(index, damaged):
    if damaged:
        flip(index / CURRENT / "terms.npy")
    before = content(index)
    assert verify(index).intact is not damaged
    assert content(index) == before


@pytest.mark.parametrize("damage", ["flipped", "deleted", "emptied"])
@pytest.mark.parametrize("generation", ["gen-000001", CURRENT])
@pytest.mark.parametrize("name", ["manifest.json", *(f"{name}.npy" for name in ARRAYS)])
def test_any_damaged_file_of_any_generation_is_named_and_can_be_built_again(index, generation, name, damage):
    path = index / generation / name
    {"flipped": flip, "deleted": Path.unlink, "emptied": lambda path: path.write_bytes(b"")}[damage](path)
    assert found(index) == [(f"{generation}/{name}", REBUILD)]


@pytest.mark.parametrize("damage", ["flipped", "deleted"])
def test_a_damaged_current_is_named(index, damage):
    (flip if damage == "flipped" else Path.unlink)(index / "CURRENT")
    assert found(index) == [("CURRENT", REBUILD)]


def test_a_generation_that_is_gone_is_named(index):
    shutil.rmtree(index / CURRENT)
    assert found(index) == [(CURRENT, REBUILD)]


@pytest.mark.parametrize(
    "sql",
    [
        "UPDATE examples SET payload = replace(payload, 'card', 'CARD') WHERE row = 1",
        "UPDATE examples SET id = 'x' WHERE row = 3",
        "UPDATE examples SET hash = 'x' WHERE row = 8",
        "DELETE FROM examples WHERE row = 1",
        "DELETE FROM examples WHERE row = 8",
        "UPDATE examples SET removed = NULL",
        "UPDATE examples SET removed = 4 WHERE row = 1",
        "UPDATE examples SET added = 3 WHERE row = 1",
        "UPDATE examples SET added = 'x' WHERE row = 1",
        "UPDATE vectors SET vector = zeroblob(128) WHERE row = 8",
        "DROP TABLE vectors",
    ],
)
def test_a_damaged_pool_is_named_and_only_a_copy_can_restore_it(index, sql):
    edit(index, sql)
    problems = found(index)
    assert set(problems) == {("pool.sqlite", RESTORE)}
    assert not verify(index).repairable


@pytest.mark.parametrize("body", [b"", b"not a database, and long enough to be read as a header" * 40])
def test_a_pool_that_is_no_database_is_named(index, body):
    (index / "pool.sqlite").write_bytes(body)
    assert found(index) == [("pool.sqlite", RESTORE)]


def test_a_pool_that_is_gone_is_named(index):
    (index / "pool.sqlite").unlink()
    assert found(index) == [("pool.sqlite", RESTORE)]


def test_a_damaged_row_is_named_by_its_number(index):
    edit(index, "UPDATE examples SET id = 'x' WHERE row = 3")
    assert verify(index).problems[0] == Problem(index / "pool.sqlite", "row 3 does not match its hash", RESTORE)


@pytest.mark.parametrize("key", ["head", "about"])
def test_a_damaged_note_in_the_pool_is_named(index, key):
    edit(index, f"UPDATE state SET value = 'x' WHERE key = '{key}'")
    assert found(index) == [("pool.sqlite", REBUILD)]


def replaced(root: Path, name: str, array: np.ndarray) -> None:
    """Puts another array into the current generation and makes every hash fit, as whoever can write there could."""
    directory = root / CURRENT
    body = b"".join(bytes(piece) for piece in npy(array))
    (directory / f"{name}.npy").write_bytes(body)
    manifest = json.loads((directory / "manifest.json").read_bytes())
    del manifest["sha256"]
    manifest["files"][f"{name}.npy"] = {"size": len(body), "sha256": hashlib.sha256(body).hexdigest()}
    text = json.dumps(manifest, ensure_ascii=False, indent=1, sort_keys=True).encode()
    manifest["sha256"] = hashlib.sha256(text).hexdigest()
    text = json.dumps(manifest, ensure_ascii=False, indent=1, sort_keys=True).encode()
    (directory / "manifest.json").write_bytes(text)
    point(root, replace(read_current(root), manifest=hashlib.sha256(text).hexdigest()))


@pytest.mark.parametrize("name", [name for name in ARRAYS if name != "vectors"])
def test_what_is_derived_from_the_pool_is_derived_again_and_compared(index, name):
    array = np.load(index / CURRENT / f"{name}.npy")
    changed = array.copy()
    changed[-1] = changed[-1] + 1 if name != "id_rows" else changed[0]
    replaced(index, name, changed)
    problems = verify(index).problems
    assert problems != ()
    assert {problem.repairable for problem in problems} == {True}
    assert all(str(problem.path).startswith(str(index / CURRENT)) for problem in problems)


def test_every_damage_is_told_and_not_the_first_alone(index):
    flip(index / "gen-000001" / "ids.npy")
    flip(index / CURRENT / "lengths.npy")
    edit(index, "UPDATE examples SET id = 'x' WHERE row = 3")
    names = {name for name, _ in found(index)}
    assert names >= {"gen-000001/ids.npy", f"{CURRENT}/lengths.npy", "pool.sqlite"}


def test_at_most_100_problems_are_told(tmp_path):
    build([{"id": f"r{i}", "input": "card", "output": "o"} for i in range(150)], tmp_path / "i", weight=0.5).close()
    edit(tmp_path / "i", "UPDATE examples SET hash = 'x'")
    assert len(verify(tmp_path / "i").problems) == 100


def test_a_problem_says_file_damage_and_remedy():
    problem = Problem(Path("i/CURRENT"), "is missing", REBUILD)
    assert str(problem) == f"i/CURRENT: is missing; {REBUILD}"
    assert problem.repairable


def test_progress_is_told(index):
    told = []
    verify(index, progress=lambda *step: told.append(step))
    assert ("checking examples", 0, 8) in told
    assert ("checking generations", 1, 2) in told


def test_without_an_index_there_is_nothing_to_look_at(tmp_path):
    with pytest.raises(IndexMissing):
        verify(tmp_path / "nowhere")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("tables", [True, False])
@pytest.mark.parametrize("look", [verify, collect, Retriever.open])
def test_the_beginning_of_an_index_is_none_and_not_an_intact_one(tmp_path, look, tables):
    (tmp_path / "pool.sqlite").touch()
    if tables:
        Pool(tmp_path / "pool.sqlite", create=True, writable=True).close()
    with pytest.raises(IndexMissing, match="holds the beginning of an index: its build did not finish"):
        look(tmp_path)


@pytest.mark.parametrize("look", [verify, collect, repair, Retriever.open])
@pytest.mark.parametrize("path", ["file", "file/below"])
def test_a_file_is_no_index(tmp_path, look, path):
    (tmp_path / "file").write_text("{}")
    with pytest.raises(IndexMissing, match="no index at"):
        look(tmp_path / path)

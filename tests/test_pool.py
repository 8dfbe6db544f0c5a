"""Pool: append-only rows, revisions, atomic changes, damage that is found and named."""

from __future__ import annotations

import sqlite3

import numpy as np
import pytest

from retriever.errors import IndexCorrupt, InvalidInput
from retriever.example import Example
from retriever.pool import Pool

NONE = np.empty((0, 2), dtype=np.float32)


def some(*ids: str) -> list[Example]:
    return [Example(identity, f"input of {identity}") for identity in ids]


def vectors(count: int) -> np.ndarray:
    return np.arange(2 * count, dtype=np.float32).reshape(count, 2)


def ids(pool: Pool, revision: int) -> list[str]:
    return [pool_row.example.id for pool_row in pool.examples(revision)]


@pytest.fixture
def pool(tmp_path):
    pool = Pool(tmp_path / "pool.sqlite", create=True)
    yield pool
    pool.close()


@pytest.fixture
def filled(pool):
    pool.publish(pool.stage(some("a", "b", "c"), replace=True), vectors_kept_after=0)
    return pool


def everything(pool: Pool) -> list[list[tuple]]:
    connection = sqlite3.connect(pool.path)
    try:
        return [
            connection.execute(f"SELECT * FROM {t} ORDER BY 1").fetchall() for t in ("examples", "vectors", "state")
        ]
    finally:
        connection.close()


def edit(pool: Pool, sql: str) -> None:
    connection = sqlite3.connect(pool.path)
    with connection:
        connection.execute(sql)
    connection.close()


def test_a_new_pool_is_empty_at_revision_0(pool):
    assert pool.visible() == 0
    assert ids(pool, 0) == []


def test_a_missing_file_is_corrupt_and_is_not_created(tmp_path):
    with pytest.raises(IndexCorrupt, match="is missing"):
        Pool(tmp_path / "none.sqlite")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_database_is_corrupt(tmp_path):
    path = tmp_path / "pool.sqlite"
    path.write_bytes(b"not a database, and long enough to be read as a header" * 4)
    with pytest.raises(IndexCorrupt, match="SQLite says"):
        Pool(path)


def test_a_database_without_the_tables_is_corrupt(tmp_path):
    path = tmp_path / "pool.sqlite"
    sqlite3.connect(path).close()
    path.touch()
    with pytest.raises(IndexCorrupt):
        Pool(path)


def test_staged_rows_are_invisible_until_they_are_published(pool):
    revision = pool.stage(some("a", "b"), replace=True)
    assert (revision, pool.visible(), ids(pool, pool.visible())) == (1, 0, [])
    pool.publish(revision, vectors_kept_after=0)
    assert (pool.visible(), ids(pool, 1)) == (1, ["a", "b"])


def test_a_staged_replacement_leaves_the_published_rows_as_they_were_until_it_is_published(filled):
    revision = filled.stage(some("d"), replace=True)
    assert ids(filled, filled.visible()) == ["a", "b", "c"]
    filled.publish(revision, vectors_kept_after=0)
    assert ids(filled, filled.visible()) == ["d"]
    assert ids(filled, 1) == ["a", "b", "c"]  # a reader that stays at its revision


def test_drop_unpublished_takes_staged_rows_out_and_brings_replaced_ones_back(filled):
    before = everything(filled)
    filled.stage(some("d", "a"), replace=True)
    filled.drop_unpublished(1)
    assert everything(filled) == before


def test_drop_unpublished_keeps_what_the_current_generation_holds_even_if_it_was_never_said_to_be_visible(filled):
    revision = filled.stage(some("d"), replace=False)
    filled.drop_unpublished(revision)
    assert filled.visible() == revision
    assert ids(filled, revision) == ["a", "b", "c", "d"]


def test_publishing_an_older_revision_never_takes_the_visible_one_back(filled):
    filled.change(some("d"), vectors(1))
    filled.publish(1, vectors_kept_after=0)
    assert filled.visible() == 2


def test_a_change_removes_before_it_adds_so_that_an_id_can_be_replaced(filled):
    revision = filled.change([Example("b", "new")], vectors(1), ["b"])
    assert [pool_row.example.input for pool_row in filled.examples(revision)] == ["input of a", "input of c", "new"]
    assert [pool_row.row for pool_row in filled.examples(revision)] == [1, 3, 4]


@pytest.mark.parametrize(
    ("added", "removed", "named"),
    [(["x"], ["a", "nowhere"], "'nowhere'"), (["x", "b"], ["a"], "'b'"), (["x"], ["gone"], "'gone'")],
)
def test_a_change_that_fails_leaves_everything_as_it_was(filled, added, removed, named):
    filled.change(some("gone"), vectors(1))
    filled.change([], NONE, ["gone"])
    before = everything(filled)
    with pytest.raises(InvalidInput, match=named):
        filled.change(some(*added), vectors(len(added)), removed)
    assert everything(filled) == before


def test_a_change_that_is_interrupted_while_it_writes_leaves_everything_as_it_was(filled):
    before = everything(filled)
    with pytest.raises(ValueError, match="Out of range float"):
        filled.change([Example("x", "fine"), Example("y", float("nan"))], vectors(2), ["a"])
    assert everything(filled) == before
    assert filled.change(some("x"), vectors(1)) == 2  # and the pool is still usable


def test_versions_count_up_each_time_an_id_is_written(filled):
    filled.change(some("b"), vectors(1), ["b"])
    filled.change([], NONE, ["b"])
    filled.change(some("b", "new"), vectors(2))
    stored = [(row[1], row[2]) for row in everything(filled)[0]]
    assert stored == [("a", 1), ("b", 1), ("c", 1), ("b", 2), ("b", 3), ("new", 1)]


def test_row_numbers_ascend_and_are_not_used_again_after_a_removal(filled):
    filled.change([], NONE, ["c"])
    filled.change(some("d"), vectors(1))
    assert [pool_row.row for pool_row in filled.examples(filled.visible())] == [1, 2, 4]


def test_changes_leave_out_what_was_added_and_removed_in_between(filled):
    since = filled.visible()
    filled.change(some("d", "e"), vectors(2))
    filled.change([], NONE, ["d", "a"])
    until = filled.change([Example("b", "again")], vectors(1), ["b"])
    changes = filled.changes(since, until)
    assert [(pool_row.row, pool_row.example.id) for pool_row in changes.added] == [(5, "e"), (6, "b")]
    assert changes.removed == (1, 2)


def test_changes_up_to_a_revision_do_not_see_what_came_after_it(filled):
    filled.change(some("d"), vectors(1))
    filled.change([], NONE, ["d", "a"])
    changes = filled.changes(1, 2)
    assert [pool_row.example.id for pool_row in changes.added] == ["d"]
    assert changes.removed == ()


def test_rows_of_knows_the_ids_of_a_revision(filled):
    filled.change([], NONE, ["a"])
    assert filled.rows_of(["a", "b", "nowhere"]) == {"b": 2}
    assert filled.rows_of(["a", "b", "nowhere"], 1) == {"a": 1, "b": 2}


def test_more_ids_than_sqlite_takes_at_once_are_found_in_the_order_asked_for(pool):
    many = [f"id{i}" for i in range(1203)]
    pool.publish(pool.stage(some(*many), replace=True), vectors_kept_after=0)
    assert pool.rows_of(many) == {identity: i for i, identity in enumerate(many, start=1)}
    backwards = list(range(1203, 0, -1))
    assert [example.id for example in pool.fetch(backwards)] == many[::-1]


def test_vectors_come_back_bit_by_bit_until_a_generation_holds_them(filled):
    wanted = np.array([[0.1, -0.0], [1e-40, 3.0]], dtype=np.float32)
    filled.change(some("d", "e"), wanted)
    found = filled.vectors([1, 4, 5], 2)
    assert sorted(found) == [4, 5]  # a row without one is left out
    assert np.stack([found[4], found[5]]).tobytes() == wanted.tobytes()
    filled.publish(2, vectors_kept_after=1)
    assert sorted(filled.vectors([4, 5], 2)) == [4, 5]
    filled.publish(2, vectors_kept_after=2)
    assert filled.vectors([4, 5], 2) == {}


def test_a_vector_of_another_length_is_damage_that_names_its_row(filled):
    filled.change(some("d"), vectors(1))
    with pytest.raises(IndexCorrupt, match="vector of row 4 is damaged"):
        filled.vectors([4], 3)


def test_nul_line_separators_and_emoji_survive_in_every_field(pool, tmp_path):
    odd = "a\x00b\u2028c\u2029d\x85e\r\nf\t\x1f\x7f😀\ufeff"
    example = Example(f"id{odd}", odd, {odd: [odd, None, 1.5, True]}, odd, [odd], odd, {odd: odd})
    pool.change([example], vectors(1))
    pool.close()
    again = Pool(tmp_path / "pool.sqlite")
    try:
        assert [pool_row.example for pool_row in again.examples(1)] == [example]
        assert again.rows_of([example.id]) == {example.id: 1}
    finally:
        again.close()


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE examples SET payload = replace(payload, 'input of b', 'input of B') WHERE row = 2",
        "UPDATE examples SET payload = 0 WHERE row = 2",
        "UPDATE examples SET payload = x'00ff' WHERE row = 2",
        "UPDATE examples SET id = 'B' WHERE row = 2",
        "UPDATE examples SET hash = '' WHERE row = 2",
        "UPDATE examples SET payload = (SELECT payload FROM examples WHERE row = 1),"
        " hash = (SELECT hash FROM examples WHERE row = 1) WHERE row = 2",
    ],
    ids=["letter", "number", "blob", "id", "hash", "swapped"],
)
def test_a_damaged_row_is_never_returned_and_is_named(filled, damage):
    edit(filled, damage)
    for read in (lambda: filled.fetch([1, 2]), lambda: list(filled.examples(1)), lambda: filled.changes(0, 1)):
        with pytest.raises(IndexCorrupt, match="row 2 does not match its hash") as caught:
            read()
        assert caught.value.path == filled.path
    assert filled.fetch([1, 3]) == some("a", "c")


def test_a_row_that_is_gone_is_named(filled):
    edit(filled, "DELETE FROM examples WHERE row = 2")
    with pytest.raises(IndexCorrupt, match="row 2 is missing"):
        filled.fetch([3, 2])


def test_a_pool_without_its_revision_is_corrupt(filled):
    edit(filled, "DELETE FROM state")
    with pytest.raises(IndexCorrupt, match="holds no revision"):
        filled.visible()


def test_a_pool_that_cannot_be_written_is_read_without_a_trace(tmp_path, monkeypatch):
    writer = Pool(tmp_path / "pool.sqlite", create=True)
    writer.publish(writer.stage([Example("a", "text")], replace=False), vectors_kept_after=0)
    writer.close()
    monkeypatch.setattr("os.access", lambda path, mode: False)
    before = sorted(path.name for path in tmp_path.iterdir())
    reader = Pool(tmp_path / "pool.sqlite")
    assert [pool_row.example.id for pool_row in reader.examples(reader.visible())] == ["a"]
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    reader.close()


def test_a_pool_that_cannot_be_written_and_has_an_open_log_is_refused(tmp_path, monkeypatch):
    Pool(tmp_path / "pool.sqlite", create=True).close()
    (tmp_path / "pool.sqlite-wal").write_bytes(b"x")
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(InvalidInput, match="cannot be written"):
        Pool(tmp_path / "pool.sqlite")

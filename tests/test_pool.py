"""Pool: append-only rows, revisions that build upon each other, damage that is found and named."""

from __future__ import annotations

import sqlite3

import numpy as np
import pytest

from retriever.errors import IndexCorrupt, InvalidInput
from retriever.example import Example
from retriever.pool import Pool, row_hash
from retriever.revisions import Link, Revision

NONE = np.empty((0, 2), dtype=np.float32)
ABOUT = {"settings": {"key": "input"}, "embedder": {"name": "e"}}
START = Revision()


def some(*ids: str) -> list[Example]:
    return [Example(identity, f"input of {identity}") for identity in ids]


def vectors(count: int) -> np.ndarray:
    return np.arange(2 * count, dtype=np.float32).reshape(count, 2)


def ids(pool: Pool, revision: Revision) -> list[str]:
    return [pool_row.example.id for pool_row in pool.examples(revision.number)]


@pytest.fixture
def pool(tmp_path):
    pool = Pool(tmp_path / "pool.sqlite", create=True)
    yield pool
    pool.close()


@pytest.fixture
def first(pool) -> Revision:
    """The revision of a finished build of three examples."""
    revision = pool.stage(some("a", "b", "c"), START, replace=False)
    pool.settle(revision, ABOUT)
    return revision


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


class TestFile:
    def test_a_new_pool_is_empty(self, pool):
        assert (pool.head(), pool.about(), pool.last_row(), pool.size(0)) == (None, None, 0, (0, 0))
        assert ids(pool, START) == []

    def test_a_missing_file_is_corrupt_and_is_not_created(self, tmp_path):
        with pytest.raises(IndexCorrupt, match="is missing"):
            Pool(tmp_path / "none.sqlite")
        assert list(tmp_path.iterdir()) == []

    def test_a_file_that_is_no_database_is_corrupt(self, tmp_path):
        (tmp_path / "pool.sqlite").write_bytes(b"not a database, and long enough to be read as a header" * 4)
        with pytest.raises(IndexCorrupt, match="SQLite says"):
            Pool(tmp_path / "pool.sqlite")

    def test_a_link_is_refused(self, tmp_path, pool):
        (tmp_path / "link.sqlite").symlink_to(pool.path)
        with pytest.raises(IndexCorrupt, match="not a regular file"):
            Pool(tmp_path / "link.sqlite")

    @pytest.mark.parametrize(
        "sql",
        [
            "DROP TABLE vectors",
            "DROP INDEX examples_removed",
            "ALTER TABLE examples DROP COLUMN version",
            "CREATE TABLE more (x)",
            "CREATE VIEW more AS SELECT 1",
            "CREATE TRIGGER more AFTER INSERT ON vectors BEGIN DELETE FROM examples; END",
        ],
    )
    def test_another_schema_is_refused_triggers_and_views_included(self, pool, sql):
        edit(pool, sql)
        with pytest.raises(IndexCorrupt) as caught:
            Pool(pool.path)
        assert caught.value.path == pool.path

    def test_a_closed_pool_says_so(self, pool):
        pool.close()
        with pytest.raises(InvalidInput, match=r"was closed.*open it again"):
            pool.last_row()

    def test_a_reader_cannot_write(self, pool, first):
        reader = Pool(pool.path)
        with pytest.raises(OSError, match="readonly"):
            reader.change(some("d"), vectors(1), [], first)
        reader.close()
        assert ids(pool, first) == ["a", "b", "c"]

    def test_a_pool_that_cannot_be_written_is_read_without_a_trace(self, tmp_path, monkeypatch):
        writer = Pool(tmp_path / "pool.sqlite", create=True)
        revision = writer.stage(some("a"), START, replace=False)
        writer.close()
        monkeypatch.setattr("os.access", lambda path, mode: False)
        before = sorted(tmp_path.iterdir())
        reader = Pool(tmp_path / "pool.sqlite")
        assert ids(reader, revision) == ["a"]
        assert sorted(tmp_path.iterdir()) == before
        reader.close()


class TestWriting:
    def test_a_build_is_revision_1_and_its_digest_covers_every_row(self, pool):
        revision = pool.stage(some("a", "b"), START, replace=False)
        link = Link(START)
        for _, identity, _, text, digest, added, removed in everything(pool)[0]:
            assert (added, removed) == (1, None)
            assert digest == row_hash(1 + "ab".index(identity), identity, text)
            link.add(digest, None)
        assert revision == link.revision()

    def test_the_digest_of_a_change_covers_removals_rows_and_vectors(self, pool, first):
        revision = pool.change(some("d", "e"), vectors(2), [3, 1], first)
        link = Link(first)
        link.remove(1)
        link.remove(3)
        rows = everything(pool)[0]
        link.add(rows[3][4], vectors(2)[0].tobytes())
        link.add(rows[4][4], vectors(2)[1].tobytes())
        assert revision == link.revision() == pool.head()

    def test_a_reader_that_stays_at_its_revision_sees_what_it_saw(self, pool, first):
        second = pool.change([Example("b", "new")], vectors(1), [2], first)
        third = pool.stage(some("x"), second, replace=True)
        assert [ids(pool, revision) for revision in (START, first, second, third)] == [
            [],
            ["a", "b", "c"],
            ["a", "c", "b"],
            ["x"],
        ]

    def test_settling_drops_what_came_later_and_brings_removed_rows_back(self, pool, first):
        before = everything(pool)
        second = pool.change(some("d"), vectors(1), [1], first)
        pool.stage(some("x"), second, replace=True)
        pool.settle(first, ABOUT)
        assert everything(pool) == before
        assert pool.head() == first

    def test_settling_on_the_newest_revision_changes_nothing_but_the_note(self, pool, first):
        second = pool.change(some("d"), vectors(1), [1], first)
        before = everything(pool)
        pool.settle(second, ABOUT)
        assert everything(pool) == before
        pool.settle(second, {"settings": {}})
        assert everything(pool)[:2] == before[:2]
        assert (pool.head(), pool.about()) == (second, {"settings": {}})

    def test_a_build_that_was_never_finished_leaves_no_row_when_the_next_one_settles(self, pool):
        pool.stage(some("a", "b"), START, replace=False)
        pool.settle(START, {})
        assert everything(pool) == [[], [], []]

    def test_a_change_that_is_interrupted_while_it_writes_leaves_everything_as_it_was(self, pool, first):
        before = everything(pool)
        with pytest.raises(ValueError, match="Out of range float"):
            pool.change([Example("x", "fine"), Example("y", float("nan"))], vectors(2), [1], first)
        assert everything(pool) == before
        assert pool.change(some("x"), vectors(1), [], first).number == 2

    def test_a_build_whose_source_fails_half_way_leaves_everything_as_it_was(self, pool, first):
        before = everything(pool)
        with pytest.raises(ZeroDivisionError):
            pool.stage((Example(str(1 / n), "x") for n in (2, 1, 0)), first, replace=True)
        assert everything(pool) == before

    def test_versions_count_up_each_time_an_id_is_written(self, pool, first):
        second = pool.change(some("b"), vectors(1), [2], first)
        third = pool.change([], NONE, [4], second)
        pool.change(some("b", "new"), vectors(2), [], third)
        stored = [(row[1], row[2]) for row in everything(pool)[0]]
        assert stored == [("a", 1), ("b", 1), ("c", 1), ("b", 2), ("b", 3), ("new", 1)]

    def test_row_numbers_ascend_and_are_not_used_again_after_a_removal(self, pool, first):
        second = pool.change([], NONE, [3], first)
        third = pool.change(some("d"), vectors(1), [], second)
        assert [pool_row.row for pool_row in pool.examples(third.number)] == [1, 2, 4]

    def test_vectors_are_dropped_up_to_a_revision(self, pool, first):
        second = pool.change(some("d"), vectors(1), [], first)
        pool.change(some("e"), vectors(1), [], second)
        pool.drop_vectors(first)
        assert sorted(pool.vectors(2)) == [4, 5]
        pool.drop_vectors(second)
        assert sorted(pool.vectors(2)) == [5]


class TestChanges:
    def test_they_leave_out_what_was_added_and_removed_in_between(self, pool, first):
        second = pool.change(some("d", "e"), vectors(2), [], first)
        third = pool.change([], NONE, [4, 1], second)
        fourth = pool.change([Example("b", "again")], vectors(1) + 7, [2], third)
        changes = pool.changes(first, 3, fourth.number, 2)
        assert [(pool_row.row, pool_row.example.id) for pool_row in changes.added] == [(5, "e"), (6, "b")]
        assert changes.vectors.tolist() == [[2, 3], [7, 8]]
        assert (changes.removed, changes.last_row, changes.chain) == ((1, 2), 6, fourth.chain)

    def test_up_to_a_revision_they_do_not_see_what_came_after_it(self, pool, first):
        second = pool.change(some("d"), vectors(1), [], first)
        pool.change(some("e"), vectors(1), [4, 1], second)
        changes = pool.changes(first, 3, second.number, 2)
        assert [pool_row.example.id for pool_row in changes.added] == ["d"]
        assert (changes.removed, changes.last_row, changes.chain) == ((), 4, second.chain)

    def test_step_by_step_or_at_once_they_end_at_the_same_digest(self, pool, first):
        second = pool.change(some("d"), vectors(1), [1], first)
        third = pool.change([], NONE, [2, 4], second)
        step = pool.changes(second, 4, third.number, 2)
        assert (step.removed, step.chain) == ((2, 4), third.chain)
        assert pool.changes(first, 3, third.number, 2).chain == third.chain == pool.chain(START, 0, third.number)

    def test_without_the_vectors_there_are_none(self, pool, first):
        second = pool.change(some("d"), vectors(1), [], first)
        pool.drop_vectors(second)
        assert pool.changes(first, 3, second.number, 2) is None

    @pytest.mark.parametrize(
        "sql",
        [
            "DELETE FROM examples WHERE row = 4",
            "DELETE FROM examples WHERE row = 5",
            "DELETE FROM examples WHERE row = 1",
            "UPDATE examples SET removed = NULL WHERE row = 1",
            "UPDATE examples SET removed = 3 WHERE row = 1",
            "UPDATE examples SET removed = 2 WHERE row = 2",
            "UPDATE examples SET added = 3 WHERE row = 4",
            "UPDATE vectors SET vector = x'0000000000000001' WHERE row = 4",
        ],
    )
    def test_a_change_that_is_lost_or_altered_gives_another_digest(self, pool, first, sql):
        second = pool.change(some("d"), vectors(1), [1], first)
        third = pool.change(some("e"), vectors(1), [], second)
        edit(pool, sql)
        assert pool.changes(first, 3, third.number, 2).chain != third.chain
        assert pool.chain(first, 3, third.number) != third.chain


class TestReading:
    def test_more_rows_than_sqlite_takes_at_once_are_found_in_the_order_asked_for(self, pool):
        many = [f"id{i}" for i in range(1203)]
        revision = pool.stage(some(*many), START, replace=False)
        assert [example.id for example in pool.fetch(list(range(1203, 0, -1)))] == many[::-1]
        assert [example.id for example in pool.fetch([2, 1, 2])] == ["id1", "id0", "id1"]
        assert pool.size(revision.number)[0] == 1203

    def test_removed_rows_can_still_be_fetched(self, pool, first):
        pool.change([], NONE, [2], first)
        assert pool.fetch([3, 2]) == some("c", "b")

    def test_vectors_come_back_bit_by_bit_and_one_of_another_size_is_left_out(self, pool, first):
        wanted = np.array([[0.1, -0.0], [1e-40, 3.0]], dtype=np.float32)
        pool.change(some("d", "e"), wanted, [], first)
        found = pool.vectors(2)
        assert np.stack([found[4], found[5]]).tobytes() == wanted.tobytes()
        edit(pool, "UPDATE vectors SET vector = x'00' WHERE row = 4")
        assert sorted(pool.vectors(2)) == [5]

    def test_nul_line_separators_and_emoji_survive_in_every_field(self, pool, tmp_path):
        odd = "a\x00b\u2028c\u2029d\x85e\r\nf\t\x1f\x7f😀\ufeff"
        example = Example(f"id{odd}", odd, {odd: [odd, None, 1.5, True]}, odd, [odd], odd, {odd: odd})
        revision = pool.change([example], vectors(1), [], START)
        pool.close()
        again = Pool(tmp_path / "pool.sqlite")
        assert [pool_row.example for pool_row in again.examples(revision.number)] == [example]
        assert list(again.damaged_rows()) == [None]
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
    def test_a_damaged_row_is_never_returned_and_is_named(self, pool, first, damage):
        edit(pool, damage)
        for read in (lambda: pool.fetch([1, 2]), lambda: list(pool.examples(1))):
            with pytest.raises(IndexCorrupt, match="row 2 does not match its hash") as caught:
                read()
            assert caught.value.path == pool.path
        assert pool.fetch([1, 3]) == some("a", "c")
        assert list(pool.damaged_rows()) == [None, "row 2 does not match its hash", None]

    def test_a_row_that_is_gone_is_named(self, pool, first):
        edit(pool, "DELETE FROM examples WHERE row = 2")
        with pytest.raises(IndexCorrupt, match="row 2 is missing"):
            pool.fetch([3, 2])

    @pytest.mark.parametrize("key", ["head", "about"])
    @pytest.mark.parametrize("sql", ["SET value = replace(value, 'e', 'E')", "SET value = 5", "SET hash = NULL"])
    def test_a_damaged_note_is_none_at_all(self, pool, first, key, sql):
        assert (pool.head(), pool.about()) == (first, ABOUT)
        edit(pool, f"UPDATE state {sql} WHERE key = '{key}'")
        assert getattr(pool, key)() is None

    def test_a_note_does_not_pass_for_another(self, pool, first):
        edit(pool, "UPDATE state SET value = (SELECT value FROM state WHERE key = 'about'),"
                   " hash = (SELECT hash FROM state WHERE key = 'about') WHERE key = 'head'")  # fmt: skip
        assert pool.head() is None

    def test_an_intact_file_has_no_complaints_of_sqlite(self, pool, first):
        assert pool.integrity() == []

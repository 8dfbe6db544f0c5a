"""After any history of changes, an index answers as one built afresh from what is left."""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import retriever.live
from retriever import Example, Retriever
from tests.support import build, embed

WORDS = ("card", "late", "refund", "lock", "promo")
QUERIES = ("card late", "refund refund promo", "lock", "nothing known", "")


def example(number: int) -> Example:
    """Texts repeat, so that there are ties and copies."""
    text = " ".join(WORDS[(number * step) % 5] for step in range(1, 2 + number % 3))
    return Example(f"e{number}", text, output=f"answer {number % 4}", label=f"l{number % 2}")


histories = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(1, 4)),
        st.tuples(st.just("remove"), st.integers(0, 30)),
        st.tuples(st.just("reopen"), st.just(0)),
    ),
    max_size=8,
)


def answers(index: Retriever) -> list[object]:
    found = []
    for query, mode in itertools.product(QUERIES, ("hybrid", "dense", "lexical")):
        selection = index.select(query, k=6, mode=mode, weight=0.4)
        found.append([(d.example.id, d.score, dict(d.channels)) for d in selection])
    return found


@settings(max_examples=25)
@given(history=histories, compact_after=st.sampled_from([0, 3, 1000]))
def test_any_history_of_adds_and_removes_equals_a_rebuild(history, compact_after):
    kept = [example(number) for number in range(8)]
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(retriever.live, "COMPACT_AFTER", compact_after)
        index = build(kept, Path(folder) / "a", weight=0.5)
        fresh_numbers = itertools.count(100)
        for action, amount in history:
            if action == "add":
                new = [example(next(fresh_numbers)) for _ in range(amount)]
                assert index.add(new) == tuple(e.id for e in new)
                kept += new
            elif action == "remove" and kept:
                doomed = kept.pop(amount % len(kept))
                assert index.remove([doomed.id]) == 1
            elif action == "reopen":
                index.close()
                index = Retriever.open(Path(folder) / "a", embedder=embed)
        rebuilt = build(kept, Path(folder) / "b", weight=0.5)
        assert len(index) == len(rebuilt) == len(kept)
        assert answers(index) == answers(rebuilt)
        index.close()
        rebuilt.close()


def test_a_reader_that_outlives_ten_publications_answers_from_its_own_view(tmp_path, monkeypatch):
    monkeypatch.setattr(retriever.live, "COMPACT_AFTER", 0)
    writer = build([example(n) for n in range(8)], tmp_path / "i")
    with writer, Retriever.open(tmp_path / "i", embedder=embed) as reader:
        before = answers(reader)
        for number in range(100, 110):
            writer.add(example(number))
        assert writer.generation == "gen-000011"
        assert answers(reader) == before
        assert reader.refresh()
        assert answers(reader) == answers(writer) != before
        assert not reader.refresh()


def test_the_same_pool_gives_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        build([example(n) for n in range(40)], tmp_path / name).close()
    files = sorted(path.name for path in (tmp_path / "a" / "gen-000001").iterdir())
    assert "manifest.json" in files
    assert "vectors.npy" in files
    for name in files:
        first, second = ((tmp_path / index / "gen-000001" / name).read_bytes() for index in ("a", "b"))
        assert first == second


def test_many_additions_then_a_compaction_hold_the_bytes_of_a_rebuild(tmp_path, monkeypatch):
    pool = [example(n) for n in range(10)]
    more = [example(n) for n in range(100, 130)]
    with build(pool, tmp_path / "a", weight=0.5) as index:
        for number, one in enumerate(more):
            if number == len(more) - 1:
                monkeypatch.setattr(retriever.live, "COMPACT_AFTER", 0)
            index.add(one)
        assert index.generation == "gen-000002"
    with build([*pool, *more], tmp_path / "b", weight=0.5) as rebuilt:
        assert rebuilt.generation == "gen-000001"
    for name in ("vectors.npy", "terms.npy", "posting_rows.npy", "posting_counts.npy", "lengths.npy", "rows.npy"):
        grown = (tmp_path / "a" / "gen-000002" / name).read_bytes()
        assert grown == (tmp_path / "b" / "gen-000001" / name).read_bytes()


def test_permuting_the_pool_changes_nothing_but_ties(tmp_path):
    distinct = [Example(f"d{n}", f"{WORDS[n % 5]} number {n} {'x' * n}", output=str(n)) for n in range(25)]
    order = np.random.Generator(np.random.PCG64(1)).permutation(25)
    first = build(distinct, tmp_path / "a", weight=0.4)
    with first, build([distinct[i] for i in order], tmp_path / "b", weight=0.4) as second:
        for query in QUERIES[:3]:
            one, other = first.select(query, k=25), second.select(query, k=25)
            assert {d.example.id: d.score for d in one} == {d.example.id: d.score for d in other}
            assert [d.score for d in one] == [d.score for d in other]

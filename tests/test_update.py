"""Update: examples added or put in place of others, at the cost of what is new."""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import build, embed

from retriever import Example, Retriever
from retriever.embedders.function import FunctionEmbedder
from retriever.errors import BadRows, EmbedderError
from retriever.retriever import Update

WORDS = ("card", "late", "refund", "lock", "promo")
QUERIES = ("card late", "refund refund promo", "lock", "nothing known", "")


def example(number: int, edition: int = 0) -> Example:
    """Texts repeat, so that there are ties and copies; an odd edition changes the output alone."""
    text = " ".join(WORDS[((number + edition // 2) * step) % 5] for step in range(1, 2 + number % 3))
    return Example(f"e{number}", text, output=f"answer {edition}", label=f"l{number % 2}")


ROWS = [example(number) for number in range(8)]


def answers(index: Retriever) -> list[object]:
    return [
        [(one.example, one.score, one.channels) for one in index.select(query, k=6, mode=mode)]
        for query, mode in itertools.product(QUERIES, ("hybrid", "dense", "lexical"))
    ]


@pytest.fixture
def asked() -> list[str]:
    return []


@pytest.fixture
def index(tmp_path, asked):
    def counting(texts):
        asked.extend(texts)
        return embed(texts)

    with build(ROWS, tmp_path / "i", embedder=FunctionEmbedder(counting, name="counting"), weight=0.5) as index:
        asked.clear()
        yield index


@pytest.mark.parametrize("before, after", [(1, True), (0, False), (1, 1.0), ({"a": 1, "b": 2}, {"b": 2, "a": 1})])
def test_what_python_takes_for_equal_and_json_writes_otherwise_is_a_change(tmp_path, before, after):
    row = {"id": "a", "input": "is it open", "output": before}
    with build([row, ROWS[0]], tmp_path / "i", weight=0.5) as index:
        assert index.update([row]) == Update((), (), ("a",))
        assert index.update([{**row, "output": after}]) == Update((), ("a",), ())
        [found] = [one.example for one in index.select("is it open", k=2) if one.example.id == "a"]
        assert repr(found.output) == repr(after)


def test_it_says_what_was_added_what_replaced_and_what_is_the_same(index):
    given_ = [example(3), example(20), example(4, 1), example(21), example(5, 2)]
    assert index.update(given_) == Update(("e20", "e21"), ("e4", "e5"), ("e3",))
    assert len(index) == 10
    stored = {one.example.id: one.example for one in index.select("card", k=100)}
    assert [stored[one.id] for one in given_] == given_


def test_what_is_replaced_is_gone_from_the_next_select(index):
    index.update({"id": "e3", "input": "parcel stolen", "output": "new"})
    assert index.select("parcel stolen", k=1).ids == ("e3",)
    assert len(index) == 8
    assert [one.example.output for one in index.select("card", k=100) if one.example.id == "e3"] == ["new"]


def test_it_equals_a_rebuild_in_which_what_was_replaced_stands_last(tmp_path, index):
    index.update([example(2, 2), example(30)])
    kept = [one for one in ROWS if one.id != "e2"]
    with build([*kept, example(2, 2), example(30)], tmp_path / "fresh", weight=0.5) as fresh:
        assert answers(index) == answers(fresh)


def test_the_same_again_writes_nothing(index):
    index.update([example(2, 2)])
    before = index.info()
    assert index.update([example(2, 2), *ROWS[:2]]) == Update((), (), ("e2", "e0", "e1"))
    assert index.info() == before


def test_nothing_is_embedded_when_only_the_output_has_changed(index, asked):
    assert index.update([example(number, 1) for number in range(8)]).replaced == tuple(f"e{n}" for n in range(8))
    assert asked == []
    assert {one.example.output for one in index.select("card", k=8)} == {"answer 1"}


def test_each_new_text_is_embedded_once(index, asked):
    index.update([{"id": f"n{i}", "input": "parcel", "output": str(i)} for i in range(4)] + [example(1, 1)])
    assert asked == ["parcel"]


@pytest.mark.parametrize("compacted", [False, True])
def test_the_text_of_a_removed_example_that_comes_again_is_not_embedded_again(index, asked, compacted):
    index.add({"id": "n", "input": "parcel stolen", "output": "o"})
    if compacted:
        index.compact()
    index.remove("n")
    asked.clear()
    index.update({"id": "n", "input": "parcel stolen", "output": "other"})
    assert asked == []
    assert index.select("parcel stolen", k=1).ids == ("n",)


def test_it_is_durable_and_visible_to_others_after_refresh(index):
    with Retriever.open(index.path, embedder=embed) as other:
        before = answers(other)
        index.update([example(2, 2), example(30)])
        assert answers(other) == before
        assert other.refresh() is True
        assert answers(other) == answers(index)
    with Retriever.open(index.path, embedder=embed) as later:
        assert answers(later) == answers(index)


def test_two_who_update_in_turns_build_upon_each_other(index):
    with Retriever.open(index.path, embedder=embed) as other:
        index.update(example(2, 2))
        assert other.update([example(2, 2), example(2 + 38, 1)]) == Update(("e40",), (), ("e2",))
        assert index.update(example(40, 1)) == Update((), (), ("e40",))
        assert answers(index) == answers(other)


def test_an_id_that_comes_twice_in_one_call_is_reported_the_second_time(index):
    bad = []
    found = index.update([example(2, 2), example(2, 4)], on_bad=bad.append)
    assert found == Update((), ("e2",), ())
    assert ["e2" in row.reason for row in bad] == [True]


def test_a_bad_row_under_strict_leaves_everything_as_it_was(index):
    before = index.info()
    with pytest.raises(BadRows):
        index.update([example(2, 2), {"output": "no input"}], strict=True)
    assert index.info() == before


def test_an_embedder_that_fails_leaves_everything_as_it_was(tmp_path):
    def fragile(texts):
        if "poison" in texts:
            raise RuntimeError("no vector for that")
        return embed(texts)

    with build(ROWS, tmp_path / "j", embedder=fragile, weight=0.5) as index:
        before = (index.info(), answers(index))
        with pytest.raises(EmbedderError, match="no vector for that"):
            index.update([example(1, 1), {"id": "e2", "input": "poison", "output": "o"}])
        assert (index.info(), answers(index)) == before


histories = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.lists(st.integers(0, 14), min_size=1, max_size=3, unique=True)),
        st.tuples(st.just("update"), st.lists(st.integers(0, 14), min_size=1, max_size=4, unique=True)),
        st.tuples(st.just("remove"), st.lists(st.integers(0, 14), min_size=1, max_size=3, unique=True)),
        st.tuples(st.sampled_from(["compact", "reopen", "refresh"]), st.just([])),
    ),
    max_size=9,
)


def after(index: Retriever, kept: dict[str, Example], what: str, numbers: list[int], edition: int) -> dict:
    """Does one step, and gives what the pool should hold then, in the order in which it should."""
    given_ = {one.id: one for one in (example(number, edition) for number in numbers)}
    if what == "add":
        new = {identity: one for identity, one in given_.items() if identity not in kept}
        assert index.add(list(new.values())) == tuple(new)
        return {**kept, **new}
    if what == "update":
        found = index.update(list(given_.values()))
        assert found.added == tuple(identity for identity in given_ if identity not in kept)
        assert found.unchanged == tuple(identity for identity, one in given_.items() if kept.get(identity) == one)
        changed = {identity: one for identity, one in given_.items() if kept.get(identity) != one}
        return {**{identity: one for identity, one in kept.items() if identity not in changed}, **changed}
    if what == "remove":
        doomed = [identity for identity in given_ if identity in kept]
        assert index.remove(doomed) == len(doomed)
        return {identity: one for identity, one in kept.items() if identity not in doomed}
    getattr(index, what)()
    return kept


@settings(max_examples=20)
@given(history=histories, compact_after=st.sampled_from([0, 3, 1000]))
def test_any_history_of_changes_equals_a_rebuild(history, compact_after):
    kept = {one.id: one for one in ROWS}
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr("retriever.live.COMPACT_AFTER", compact_after)
        index = build(ROWS, Path(folder) / "a", weight=0.5)
        for step, (what, numbers) in enumerate(history):
            if what == "reopen":
                index.close()
                index = Retriever.open(Path(folder) / "a", embedder=embed)
            else:
                kept = after(index, kept, what, numbers, step % 4)
        with index, build(list(kept.values()), Path(folder) / "b", weight=0.5) as rebuilt:
            assert len(index) == len(kept)
            assert answers(index) == answers(rebuilt)

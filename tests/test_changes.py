"""Changing an index: add, remove, refresh, compaction, building over it, and who may write."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import build, embed

from retriever import BadRow, Example, IndexSettings, Retriever
from retriever.embedders import LatentSemanticEmbedder
from retriever.errors import (
    BadRows,
    EmbedderError,
    Incompatible,
    IndexCorrupt,
    IndexLocked,
    IndexMissing,
    InvalidInput,
)

WORDS = ("card", "refund", "login", "fee", "lost", "late", "again", "mail")
QUERIES = ("card fee", "lost mail again", "unknownword", "", "refund")
WAYS = (
    {},
    {"mode": "dense"},
    {"mode": "lexical"},
    {"fusion": "rrf"},
    {"where": 'parity == "even"'},
    {"guard": "near"},
    {"strategy": "random", "seed": 5},
)


def row(number: int, **more: object) -> dict[str, object]:
    """An example of two or three words, the same for the same number; some texts come twice."""
    words = [WORDS[number % 8], WORDS[number // 3 % 8], WORDS[number // 5 % 8]][: 2 + number % 2]
    parity = "odd" if number % 2 else "even"
    return {
        "id": f"r{number}",
        "input": " ".join(words),
        "output": f"o{number % 3}",
        "meta": {"parity": parity},
        **more,
    }


ROWS = [row(number) for number in range(12)]


@pytest.fixture
def index(tmp_path):
    with build(ROWS, tmp_path / "pool.index", weight=0.6) as retriever:
        yield retriever


def answers(retriever: Retriever, ways=WAYS) -> list[object]:
    """All that a selection says of the examples, for every query and way of asking."""
    return [
        (
            [(one.example, one.rank, one.score, one.channels, one.origin) for one in selection],
            selection.dropped,
            selection.eligible,
            selection.notes,
            [one.example.id for one in selection.in_prompt_order],
        )
        for options in ways
        for selection in retriever.select_many(QUERIES, k=6, **options)
    ]


def content(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def generation_files(root: Path) -> dict[str, bytes]:
    return {name: body for name, body in content(root).items() if name.startswith("gen-") or name == "CURRENT"}


class TestAdd:
    def test_an_added_example_is_there_for_the_next_select(self, index):
        assert index.add({"id": "new", "input": "parcel stolen abroad", "output": "o1"}) == ("new",)
        assert len(index) == 13
        for mode in ("hybrid", "dense", "lexical"):
            assert index.select("parcel stolen abroad", mode=mode, k=1).ids == ("new",)

    def test_it_is_there_for_another_reader_after_refresh_and_not_before(self, index):
        with Retriever.open(index.path, embedder=embed) as other:
            before = answers(other)
            index.add({"id": "new", "input": "parcel stolen", "output": "o1"})
            assert answers(other) == before
            assert len(other) == 12
            assert other.refresh() is True
            assert other.select("parcel stolen", k=1).ids == ("new",)
            assert answers(other) == answers(index)
            assert other.refresh() is False

    def test_it_is_there_for_whoever_opens_later(self, index):
        index.add([row(20), row(21)])
        with Retriever.open(index.path, embedder=embed) as other:
            assert len(other) == 14
            assert answers(other) == answers(index)

    def test_examples_without_ids_get_one_and_it_is_returned(self, index):
        assert index.add(Example("given", "parcel", "o")) == ("given",)
        (derived,) = index.add({"input": "parcel stolen", "output": "o"})
        assert index.select("parcel stolen", k=1).ids == (derived,)

    def test_an_id_that_the_pool_has_is_reported_and_the_rest_is_added(self, index):
        bad: list[BadRow] = []
        assert index.add([row(3), row(30)], on_bad=bad.append) == ("r30",)
        assert len(bad) == 1
        assert "'r3'" in bad[0].reason
        assert len(index) == 13

    def test_an_id_that_comes_twice_in_one_call_is_reported_the_second_time(self, index):
        bad: list[BadRow] = []
        again = {**row(30), "input": "another text"}
        assert index.add([row(30), again], on_bad=bad.append) == ("r30",)
        assert ["r30" in one.reason for one in bad] == [True]
        assert index.select(row(30)["input"], where='id == "r30"', k=1)[0].example.input == row(30)["input"]

    def test_a_bad_row_that_nobody_listens_for_is_noted(self, tmp_path):
        notes: list[str] = []
        with build(ROWS, tmp_path / "i", note=notes.append, weight=0.6) as retriever:
            retriever.add([row(3)])
        assert len(notes) == 1
        assert "1 bad rows were set aside" in notes[0]

    def test_a_bad_row_under_strict_leaves_everything_as_it_was(self, index):
        before, revision = answers(index), index.info()["revision"]
        with pytest.raises(BadRows) as caught:
            index.add([row(30), row(3)], strict=True)
        assert len(caught.value.rows) == 1
        assert answers(index) == before
        assert index.info()["revision"] == revision

    def test_adding_nothing_changes_nothing(self, index):
        revision = index.info()["revision"]
        assert index.add([]) == ()
        assert index.info()["revision"] == revision

    def test_an_embedder_that_fails_leaves_the_pool_as_it_was(self, tmp_path):
        def fragile(texts):
            if "poison" in texts:
                raise RuntimeError("no vector for that")
            return embed(texts)

        with build(ROWS, tmp_path / "i", embedder=fragile, weight=0.6) as retriever:
            before = answers(retriever)
            with pytest.raises(EmbedderError, match="no vector for that"):
                retriever.add([row(30), {"input": "poison", "output": "o"}])
            assert answers(retriever) == before
            assert retriever.add(row(30)) == ("r30",)

    def test_to_an_empty_index_examples_can_be_added(self, tmp_path):
        with build([], tmp_path / "i", note=lambda line: None, weight=0.6) as retriever:
            retriever.add(ROWS)
            with build(ROWS, tmp_path / "j", weight=0.6) as fresh:
                assert answers(retriever) == answers(fresh)

    def test_labels_and_filters_follow_a_change(self, index):
        assert index.labels == ()
        assert len(index.select("card", where='label == "x"')) == 0
        index.add({"id": "n", "input": "card", "output": "o", "label": "x"})
        assert index.labels == ("x",)
        assert index.select("card", where='label == "x"').ids == ("n",)
        index.remove("n")
        assert index.labels == ()

    def test_another_index_made_from_a_closed_one_is_not_touched(self, tmp_path, index):
        with build(ROWS, tmp_path / "other", weight=0.6) as other:
            before = answers(other)
            index.add(row(40))
            assert other.refresh() is False
            assert answers(other) == before


class TestRemove:
    def test_a_removed_example_is_gone_from_the_next_select_and_k_is_still_filled(self, index):
        best = index.select("card fee", k=4).ids
        assert index.remove([best[0]]) == 1
        after = index.select("card fee", k=4).ids
        assert best[0] not in after
        assert len(after) == 4
        assert len(index) == 11

    def test_a_single_id_may_be_given_as_text(self, index):
        assert index.remove("r11") == 1
        assert len(index) == 11

    def test_an_id_given_twice_is_removed_once(self, index):
        assert index.remove(["r1", "r1"]) == 1
        assert len(index) == 11

    def test_an_unknown_id_is_refused_by_name_and_nothing_is_removed(self, index):
        before = answers(index)
        with pytest.raises(InvalidInput, match="'nobody'"):
            index.remove(["r1", "nobody"])
        assert answers(index) == before

    def test_removing_twice_is_refused_the_second_time(self, index):
        index.remove("r1")
        with pytest.raises(InvalidInput, match="'r1'"):
            index.remove("r1")

    def test_a_removed_example_is_no_longer_fixed_or_guarded_by_id(self, index):
        index.remove("r1")
        with pytest.raises(InvalidInput, match="fixed example 'r1'"):
            index.select("card", fixed=["r1"])
        assert index.select({"id": "r1", "input": "card"}).dropped == ()

    def test_all_examples_can_be_removed(self, index):
        index.remove([one["id"] for one in ROWS])
        assert len(index) == 0
        assert index.select("card").ids == ()
        index.add(row(1))
        assert index.select("card").ids == ("r1",)

    def test_a_removed_id_can_be_added_again_with_another_content(self, index):
        index.remove("r1")
        assert index.add({"id": "r1", "input": "parcel stolen", "output": "new"}) == ("r1",)
        chosen = index.select("parcel stolen", k=1)[0].example
        assert (chosen.id, chosen.output) == ("r1", "new")
        with Retriever.open(index.path, embedder=embed) as other:
            assert answers(other) == answers(index)

    def test_a_reader_that_does_not_refresh_still_sees_the_old_content(self, index):
        with Retriever.open(index.path, embedder=embed) as other:
            before = answers(other)
            index.remove("r1")
            index.add({"id": "r1", "input": "parcel stolen", "output": "new"})
            assert answers(other) == before
            assert other.select("card", fixed=["r1"])[0].example.input == ROWS[1]["input"]


operations = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.lists(st.integers(0, 40), min_size=1, max_size=4, unique=True)),
        st.tuples(st.just("remove"), st.lists(st.integers(0, 40), min_size=1, max_size=3, unique=True)),
        st.tuples(st.just("open"), st.just([])),
    ),
    min_size=1,
    max_size=10,
)


class TestAnyHistory:
    """After any history an index answers as one built afresh from the same examples in the same order."""

    def run(self, start: int, history: list[tuple[str, list[int]]], options: dict[str, object], ways=WAYS) -> None:
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            present = {f"r{number}": row(number) for number in range(start)}
            quiet = {"note": lambda line: None, "weight": 0.6, **options}
            retriever = build(list(present.values()), root / "changed", **quiet)
            try:
                for what, numbers in history:
                    if what == "open":
                        retriever.close()
                        retriever = Retriever.open(root / "changed", embedder=embed)
                        continue
                    present = self.changed(retriever, present, what, numbers)
                assert len(retriever) == len(present)
                with build(list(present.values()), root / "fresh", **quiet) as fresh:
                    assert answers(retriever, ways) == answers(fresh, ways)
            finally:
                retriever.close()

    def changed(self, retriever, present, what, numbers):
        if what == "add":
            new = {f"r{number}": row(number) for number in numbers if f"r{number}" not in present}
            retriever.add(list(new.values()))
            return {**present, **new}
        gone = [f"r{number}" for number in numbers if f"r{number}" in present]
        if gone:
            retriever.remove(gone)
        return {identity: one for identity, one in present.items() if identity not in gone}

    @settings(max_examples=15)
    @given(start=st.integers(0, 12), history=operations)
    def test_with_no_generation_published_in_between(self, start, history):
        self.run(start, history, {})

    @settings(max_examples=6)
    @given(start=st.integers(0, 12), history=operations)
    def test_with_generations_published_in_between(self, start, history):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("retriever.live.COMPACT_AFTER", 3)
            self.run(start, history, {})

    @pytest.mark.parametrize("bm25", ["okapi", "plus", "l"])
    def test_with_the_other_variants_of_bm25(self, bm25):
        history = [("add", [20, 21, 22]), ("remove", [1, 21]), ("open", []), ("add", [1, 33])]
        self.run(8, history, {"settings": IndexSettings(bm25=bm25)})

    def test_with_rank_bm25(self):
        history = [("add", [20, 21, 22]), ("remove", [1, 21]), ("open", []), ("add", [1, 33])]
        self.run(8, history, {"settings": IndexSettings(lexical="rank-bm25", bm25="okapi")})


class TestCompaction:
    @pytest.fixture(autouse=True)
    def soon(self, monkeypatch):
        monkeypatch.setattr("retriever.live.COMPACT_AFTER", 3)

    def test_many_changes_are_folded_into_a_new_generation_and_the_answers_stay(self, index):
        index.add([row(20), row(21)])
        index.remove("r1")
        before, first = answers(index), index.generation
        assert index.info()["added_since"] == 2
        assert index.info()["removed_since"] == 1
        index.add(row(22))
        assert index.generation > first
        assert index.info()["added_since"] == index.info()["removed_since"] == 0
        index.remove("r22")
        assert answers(index) == before

    def test_nothing_is_embedded_for_it_and_the_weight_stays(self, tmp_path):
        sent: list[str] = []

        def counting(texts):
            sent.extend(texts)
            return embed(texts)

        with build(ROWS, tmp_path / "i", embedder=counting) as retriever:
            fusion, first = retriever.info()["fusion"], retriever.generation
            sent.clear()
            retriever.add([row(20), row(21), row(22), {"input": "parcel", "output": "o"}])
            assert retriever.generation > first
            assert sorted(sent) == sorted({row(20)["input"], row(21)["input"], row(22)["input"], "parcel"})
            assert retriever.info()["fusion"] == fusion

    def test_an_opened_index_answers_the_same_as_the_one_that_published(self, index):
        index.add([row(number) for number in range(20, 25)])
        with Retriever.open(index.path, embedder=embed) as other:
            assert other.generation == index.generation
            assert answers(other) == answers(index)

    def test_the_new_generation_is_the_one_that_a_fresh_build_gives(self, tmp_path, index):
        index.add([row(number) for number in range(20, 25)])
        with build([*ROWS, *(row(number) for number in range(20, 25))], tmp_path / "fresh", weight=0.6) as fresh:
            for path in sorted((fresh.path / fresh.generation).glob("*.npy")):
                assert (index.path / index.generation / path.name).read_bytes() == path.read_bytes(), path.name

    def test_a_reader_opened_before_ten_publications_still_answers_from_its_own_view(self, index):
        with Retriever.open(index.path, embedder=embed) as old:
            before, seen = answers(old), {index.generation}
            for number in range(20, 70):
                index.add(row(number))
                if number % 3 == 0:
                    index.remove(f"r{number - 5}" if number > 25 else f"r{number - 20}")
                seen.add(index.generation)
            assert len(seen) > 10
            assert answers(old) == before
            assert (index.path / old.generation).exists()
            first = old.generation
            assert old.refresh() is True
            assert answers(old) == answers(index)
        for number in range(70, 75):
            index.add(row(number))
        assert not (index.path / first).exists()

    def test_two_generations_are_kept_and_nothing_temporary(self, index):
        for number in range(20, 60):
            index.add(row(number))
        names = sorted(path.name for path in index.path.iterdir() if path.name.startswith("gen-"))
        assert len(names) == 2
        assert names[-1] == index.generation
        assert not any(".tmp-" in path.name for path in index.path.iterdir())

    def test_two_retrievers_that_take_turns_see_each_others_changes(self, index):
        with Retriever.open(index.path, embedder=embed) as other:
            for number in range(20, 40, 2):
                index.add(row(number))
                other.add(row(number + 1))
                assert index.refresh() is True
                assert len(index) == len(other) == number - 6
            assert answers(index) == answers(other)

    def test_readers_in_threads_see_a_whole_state_while_a_writer_publishes(self, index):
        wrong: list[object] = []
        done = threading.Event()

        def read():
            with Retriever.open(index.path, embedder=embed) as reader:
                while not done.is_set():
                    try:
                        reader.refresh()
                        found = reader.select("card fee", k=1000)
                        if len(found) != found.eligible or len(set(found.ids)) != len(found):
                            wrong.append(found.ids)
                    except Exception as error:
                        wrong.append(error)
                        return

        threads = [threading.Thread(target=read) for _ in range(2)]
        for thread in threads:
            thread.start()
        try:
            for number in range(20, 50):
                index.add(row(number))
        finally:
            done.set()
            for thread in threads:
                thread.join()
        assert wrong == []
        assert len(index) == 42

    def test_an_index_that_lost_every_example_is_folded_too(self, index):
        index.remove([one["id"] for one in ROWS])
        assert index.info()["removed_since"] == 0
        assert index.select("card").ids == ()
        index.add(row(1))
        assert index.select("card").ids == ("r1",)


class TestBuildOver:
    def test_without_overwrite_an_index_is_left_alone(self, index):
        index.add(row(20))
        before = content(index.path)
        with pytest.raises(InvalidInput, match="overwrite"):
            build([row(1)], index.path)
        assert content(index.path) == before
        assert len(index) == 13

    def test_with_overwrite_the_new_examples_take_the_place_of_the_old(self, tmp_path, index):
        new = [row(number) for number in range(30, 36)]
        with (
            build(new, index.path, overwrite=True, weight=0.6) as over,
            build(new, tmp_path / "fresh", weight=0.6) as fresh,
        ):
            assert len(over) == 6
            assert over.generation == "gen-000002"
            assert answers(over) == answers(fresh)

    def test_a_reader_moves_on_to_the_new_examples_when_it_refreshes(self, index):
        before = answers(index)
        with build([row(30), row(31)], index.path, overwrite=True, weight=0.6) as over:
            assert answers(index) == before
            assert index.refresh() is True
            assert answers(index) == answers(over)

    def test_overwrite_may_bring_another_embedder_and_other_settings(self, index):
        settings = IndexSettings(key="input+output")
        with build(ROWS, index.path, overwrite=True, embedder=other_embedder, settings=settings) as over:
            assert over.info()["settings"]["key"] == "input+output"
            assert over.info()["embedder"]["dim"] == 8

    def test_overwrite_of_nothing_builds(self, tmp_path):
        with build(ROWS, tmp_path / "new", overwrite=True) as retriever:
            assert len(retriever) == 12

    def test_an_overwrite_that_fails_leaves_the_old_index_answering(self, index):
        before = answers(index)
        with pytest.raises(EmbedderError, match="out of order"):
            build([row(30)], index.path, overwrite=True, embedder=broken_embedder)
        assert answers(index) == before
        with Retriever.open(index.path, embedder=embed) as other:
            assert answers(other) == before
        index.add(row(31))
        assert len(index) == 13

    @pytest.mark.parametrize("overwrite", [False, True])
    def test_a_foreign_directory_is_refused_and_nothing_in_it_is_touched(self, tmp_path, overwrite):
        (tmp_path / "home" / "deep").mkdir(parents=True)
        (tmp_path / "home" / "thesis.txt").write_text("ten years of work")
        (tmp_path / "home" / "deep" / "CURRENT").write_text("not ours")
        before = content(tmp_path)
        with pytest.raises(InvalidInput, match="is no index"):
            build(ROWS, tmp_path / "home", overwrite=overwrite)
        assert content(tmp_path) == before
        assert sorted(path.name for path in (tmp_path / "home").iterdir()) == ["deep", "thesis.txt"]

    def test_a_file_in_the_way_is_refused_and_kept(self, tmp_path):
        (tmp_path / "file").write_text("mine")
        with pytest.raises(InvalidInput, match="is no index"):
            build(ROWS, tmp_path / "file", overwrite=True)
        assert (tmp_path / "file").read_text() == "mine"

    def test_an_empty_directory_is_taken(self, tmp_path):
        (tmp_path / "empty").mkdir()
        with build(ROWS, tmp_path / "empty") as retriever:
            assert len(retriever) == 12

    def test_a_failed_build_leaves_no_directory(self, tmp_path):
        with pytest.raises(EmbedderError, match="out of order"):
            build(ROWS, tmp_path / "a", embedder=broken_embedder)
        with pytest.raises(BadRows):
            build([*ROWS, {"output": "no input"}], tmp_path / "b", strict=True)
        with pytest.raises(InvalidInput, match="there is no file"):
            build(tmp_path / "missing.jsonl", tmp_path / "c")
        with pytest.raises(ZeroDivisionError):
            build((one if one["id"] != "r5" else 1 // 0 for one in ROWS), tmp_path / "d")
        assert list(tmp_path.iterdir()) == []

    def test_a_build_can_be_tried_again_after_it_failed_in_a_directory_that_was_there(self, tmp_path):
        (tmp_path / "a").mkdir()
        with pytest.raises(EmbedderError):
            build(ROWS, tmp_path / "a", embedder=broken_embedder)
        with build(ROWS[:5], tmp_path / "a") as retriever:
            assert len(retriever) == 5


def other_embedder(texts: list[str]) -> np.ndarray:
    """Another space: eight dimensions."""
    return embed(texts)[:, :8] + 0.5


def shuffled_embedder(texts: list[str]) -> np.ndarray:
    """Another space of the same 32 dimensions."""
    return embed(texts)[:, ::-1]


def broken_embedder(texts: list[str]) -> np.ndarray:
    raise RuntimeError("out of order")


class TestOpen:
    def test_it_answers_as_the_one_that_was_built(self, index):
        for trust in (False, True):
            with Retriever.open(index.path, embedder=embed, trust=trust) as other:
                assert answers(other) == answers(index)

    @pytest.mark.parametrize("wrong", [other_embedder, shuffled_embedder])
    def test_a_wrong_embedder_is_refused_at_once_and_both_are_named(self, index, wrong):
        with pytest.raises(Incompatible) as caught:
            Retriever.open(index.path, embedder=wrong)
        assert f"callable:test_changes.{wrong.__name__}" in str(caught.value)
        assert "callable:support.embed" in str(caught.value)

    def test_the_same_vectors_under_another_name_are_accepted(self, index):
        with Retriever.open(index.path, embedder=lambda texts: embed(texts) * 3) as other:
            assert answers(other) == answers(index)

    def test_without_the_function_it_opens_and_asks_for_it_when_a_vector_is_needed(self, index):
        with Retriever.open(index.path) as other:
            assert other.select("card", mode="lexical", k=3).ids == index.select("card", mode="lexical", k=3).ids
            with pytest.raises(Incompatible, match="embedder="):
                other.select("card")
            given = other.select("card", vector=embed(["card"])[0], k=3)
            assert given.ids == index.select("card", k=3).ids

    def test_a_latent_semantic_index_opens_and_answers_without_the_pool_being_fitted_again(self, tmp_path, monkeypatch):
        with build(ROWS, tmp_path / "i", embedder="latent", weight=0.6) as built:
            expected = answers(built)

        def refuse(*arguments, **options):
            raise AssertionError("fitted again")

        monkeypatch.setattr(LatentSemanticEmbedder, "fit", refuse)
        with Retriever.open(tmp_path / "i") as opened:
            assert answers(opened) == expected
            monkeypatch.setattr("retriever.live.COMPACT_AFTER", 0)
            opened.add(row(50))
            assert opened.info()["added_since"] == 0
            with Retriever.open(tmp_path / "i") as later:
                assert answers(later) == answers(opened)

    def test_a_missing_pool_beside_a_generation_is_damage_and_no_missing_index(self, index):
        index.close()
        for path in index.path.glob("pool.sqlite*"):
            path.unlink()
        with pytest.raises(IndexCorrupt, match=r"pool\.sqlite"):
            Retriever.open(index.path, embedder=embed)

    def test_nothing_at_the_path_is_a_missing_index_for_every_verb(self, tmp_path, index):
        with pytest.raises(IndexMissing):
            Retriever.open(tmp_path / "nowhere")
        assert not (tmp_path / "nowhere").exists()

    def test_a_flipped_byte_in_the_vectors_is_found(self, index):
        path = index.path / index.generation / "vectors.npy"
        body = bytearray(path.read_bytes())
        body[-1] ^= 1
        path.unlink()
        path.write_bytes(body)
        with pytest.raises(IndexCorrupt, match=r"vectors\.npy"):
            Retriever.open(index.path, embedder=embed)


class TestSameBytes:
    @pytest.mark.parametrize("embedder", [embed, "latent"], ids=["function", "latent"])
    def test_building_twice_gives_identical_generation_files(self, tmp_path, embedder):
        for name in ("a", "b"):
            build(ROWS, tmp_path / name, embedder=embedder).close()
        first = generation_files(tmp_path / "a")
        assert len(first) > 5
        assert first == generation_files(tmp_path / "b")

    def test_the_source_does_not_matter(self, tmp_path):
        build(ROWS, tmp_path / "a").close()
        build((Example(**one) for one in ROWS), tmp_path / "b").close()
        assert generation_files(tmp_path / "a") == generation_files(tmp_path / "b")


HOLDER = """
import os, sys
from pathlib import Path
from indexes import files
with files.locked(Path(sys.argv[1]) / "LOCK"):
    print(os.getpid(), flush=True)
    sys.stdin.read()
"""


class TestLock:
    def test_a_second_writer_is_told_who_holds_the_lock_and_readers_are_not_disturbed(self, index):
        command = [sys.executable, "-c", HOLDER, str(index.path)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
            pid = int(holder.stdout.readline())
            assert pid == holder.pid
            attempts = [
                lambda: index.add(row(20)),
                lambda: index.remove("r1"),
                lambda: build(ROWS, index.path, overwrite=True),
            ]
            for attempt in attempts:
                with pytest.raises(IndexLocked, match=f"process {pid}") as caught:
                    attempt()
                assert caught.value.pid == pid
            with Retriever.open(index.path, embedder=embed) as reader:
                assert answers(reader) == answers(index)
            holder.stdin.close()
        assert index.add(row(20)) == ("r20",)

    def test_a_holder_that_is_killed_frees_the_lock(self, index):
        command = [sys.executable, "-c", HOLDER, str(index.path)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
            holder.stdout.readline()
            holder.kill()
        assert index.add(row(20)) == ("r20",)

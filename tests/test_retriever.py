"""Selecting and prompting, end to end, over an index on disk."""

from __future__ import annotations

import csv
import json
import re

import numpy as np
import pandas
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import build, embed

from retriever import BadRow, Example, IndexSettings, Recipe, Retriever, Template
from retriever.embedders.base import unit_rows
from retriever.errors import BadRows, IndexMissing, InvalidInput, TemplateError
from retriever.pool import Pool
from retriever.prompting import load_counter
from retriever.selector import MAX_BLOCK, Selector

MODES = ("hybrid", "dense", "lexical")
STRATEGIES = ("top", "random", "fixed")
PHRASES = {
    "card": ["my card has not arrived", "the card is lost", "card payment was declined", "order a second card"],
    "refund": ["refund my last order", "the refund is still missing", "how long does a refund take", "refund twice"],
    "login": ["cannot log in to the app", "password reset mail missing", "the app logs me out", "change my password"],
    "fees": ["why was a fee charged", "monthly fee of the card", "fee for cash abroad", "exchange rate and fees"],
}
LANGUAGES = ("en", "de")
ROWS = [
    {
        "id": f"{label}-{i}",
        "input": text,
        "output": f"{label} desk",
        "label": label,
        "rationale": f"It speaks of {label}.",
        "meta": {"language": LANGUAGES[i % 2], "priority": i},
    }
    for label, texts in PHRASES.items()
    for i, text in enumerate(texts)
]
IDS = [row["id"] for row in ROWS]
GERMAN = [row["id"] for row in ROWS if row["meta"]["language"] == "de"]
KEYED = [
    {"id": "a", "input": "alpha", "output": "red", "task": "one", "meta": {"title": "north"}},
    {"id": "b", "input": "alpha", "output": "blue", "task": "two", "meta": {"title": "south"}},
]
SECTIONS = {
    "retrieve": {"mode": "lexical"},
    "filter": {"where": 'language == "de"'},
    "select": {"k": 3, "fixed": ["login-1"]},
    "order": {"by": "best-first"},
}
TOML = """
    [retrieve]
    mode = "lexical"
    [filter]
    where = 'language == "de"'
    [select]
    k = 3
    fixed = ["login-1"]
    [order]
    by = "best-first"
"""
QUERIES = [
    "where is my card",
    "refund for the order",
    "I forgot the password",
    "fee",
    "",
    "   ",
    "zzqx wvvk",
    {"input": "card", "id": "card-1"},
    {"input": "the refund", "language": "de"},
    Example("q", "app log in"),
]


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    with build(ROWS, tmp_path_factory.mktemp("tickets") / "tickets.index", weight=0.6) as retriever:
        yield retriever


@pytest.fixture
def with_block(index, monkeypatch):
    """The same index, opened anew so that the block of queries is the given one."""
    opened = []

    def reopened(block):
        monkeypatch.setattr(Selector, "block", block)
        opened.append(Retriever.open(index.path, embedder=embed))
        return opened[-1]

    yield reopened
    for retriever in opened:
        retriever.close()


def plain(selection):
    return selection.to_dict()


def bm25_by_hand(query: str) -> dict[str, float]:
    """BM25 with the idf of Lucene (k1=1.5, b=0.75) from its formula, over the words of `ROWS`."""
    documents = {row["id"]: row["input"].lower().split() for row in ROWS}
    mean = sum(map(len, documents.values())) / len(documents)
    scores = dict.fromkeys(documents, 0.0)
    for term in query.lower().split():
        containing = sum(term in words for words in documents.values())
        idf = np.log(1 + (len(documents) - containing + 0.5) / (containing + 0.5))
        for identity, words in documents.items():
            count = words.count(term)
            scores[identity] += idf * 2.5 * count / (count + 1.5 * (1 - 0.75 + 0.75 * len(words) / mean))
    return scores


def cosines_by_hand(query: str) -> dict[str, float]:
    vectors = unit_rows(embed([query, *(row["input"] for row in ROWS)])).astype(np.float64)
    return dict(zip(IDS, (vectors[1:] @ vectors[0]).tolist(), strict=True))


def ranked(scores: dict[str, float]) -> list[str]:
    return sorted(scores, key=lambda identity: (-scores[identity], IDS.index(identity)))


class TestSources:
    def expect(self, retriever):
        with retriever:
            assert len(retriever) == len(ROWS)
            selection = retriever.select("the card is lost", k=2)
        assert selection.ids[0] == "card-1"
        assert selection[0].example.output == "card desk"
        assert selection[0].example.label == "card"

    def test_jsonl(self, tmp_path):
        source = tmp_path / "pool.jsonl"
        source.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
        self.expect(build(source, tmp_path / "index"))

    def test_csv_with_its_own_column_names(self, tmp_path):
        source = tmp_path / "pool.csv"
        with source.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["key", "text", "desk", "intent"])
            writer.writerows([row["id"], row["input"], row["output"], row["label"]] for row in ROWS)
        self.expect(build(str(source), tmp_path / "index", id="key", input="text", output="desk", label="intent"))

    def test_a_list_of_mappings(self, tmp_path):
        self.expect(build(ROWS, tmp_path / "index"))

    def test_a_generator_of_examples(self, tmp_path):
        self.expect(build((Example(**row) for row in ROWS), tmp_path / "index"))

    def test_a_pandas_frame(self, tmp_path):
        self.expect(build(pandas.DataFrame(ROWS), tmp_path / "index"))

    def test_all_of_them_give_the_same_selections(self, tmp_path, index):
        source = tmp_path / "pool.jsonl"
        source.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
        with (
            build(source, tmp_path / "a", weight=0.6) as a,
            build(pandas.DataFrame(ROWS), tmp_path / "b", weight=0.6) as b,
        ):
            expected = [plain(selection) for selection in index.select_many(QUERIES, k=5)]
            assert [plain(selection) for selection in a.select_many(QUERIES, k=5)] == expected
            assert [plain(selection) for selection in b.select_many(QUERIES, k=5)] == expected

    def test_a_bad_row_is_set_aside_and_told(self, tmp_path):
        bad: list[BadRow] = []
        with build([*ROWS, {"output": "no input"}], tmp_path / "index", on_bad=bad.append) as retriever:
            assert len(retriever) == len(ROWS)
        assert [row.line for row in bad] == [len(ROWS) + 1]

    def test_a_bad_row_that_nobody_listens_for_is_noted(self, tmp_path):
        notes: list[str] = []
        build([*ROWS, {"output": "no input"}], tmp_path / "index", note=notes.append).close()
        assert len(notes) == 1
        assert notes[0].startswith("1 bad rows were set aside")

    def test_a_pool_of_bad_rows_only_is_an_error_that_says_how_to_name_the_fields(self, tmp_path):
        with pytest.raises(BadRows, match="input="):
            build([{"text": "a", "answer": "b"}], tmp_path / "index")

    def test_a_pool_without_outputs_needs_output_none(self, tmp_path):
        with build([{"input": "a"}, {"input": "b"}], tmp_path / "i", output=None, note=lambda line: None) as retriever:
            assert retriever.select("b", k=1)[0].example.output is None

    def test_opening_a_path_without_an_index_is_index_missing(self, tmp_path):
        with pytest.raises(IndexMissing, match="retriever build"):
            Retriever.open(tmp_path / "nothing")


class TestScores:
    @pytest.mark.parametrize("query", ["where is my card", "the refund of the fee", "password"])
    def test_lexical_mode_is_bm25_as_worked_out_by_hand(self, index, query):
        expected = bm25_by_hand(query)
        selection = index.select(query, mode="lexical", k=16)
        assert list(selection.ids) == ranked(expected)
        assert [one.score for one in selection] == pytest.approx([expected[i] for i in selection.ids], abs=1e-9)

    @pytest.mark.parametrize("query", ["where is my card", "zzqx wvvk", "password"])
    def test_dense_mode_is_the_cosine_as_worked_out_by_hand(self, index, query):
        expected = cosines_by_hand(query)
        selection = index.select(query, mode="dense", k=16)
        assert list(selection.ids) == ranked(expected)
        assert [one.score for one in selection] == pytest.approx([expected[i] for i in selection.ids], abs=1e-6)

    @pytest.mark.parametrize("query", ["where is my card", "the refund of the fee"])
    @pytest.mark.parametrize("weight", [0.25, 0.6])
    def test_hybrid_mode_is_the_convex_sum_of_both_after_theoretical_min_max(self, index, query, weight):
        dense, lexical = cosines_by_hand(query), bm25_by_hand(query)
        top_dense, top_lexical = max(dense.values()), max(lexical.values())
        expected = {
            identity: weight * (dense[identity] + 1) / (top_dense + 1) + (1 - weight) * lexical[identity] / top_lexical
            for identity in IDS
        }
        selection = index.select(query, k=16, weight=weight)
        assert list(selection.ids) == ranked(expected)
        assert [one.score for one in selection] == pytest.approx([expected[i] for i in selection.ids], abs=1e-6)
        assert selection[0].channels.keys() == {"dense", "lexical", "fused"}

    def test_ranks_count_from_one_and_the_strategy_is_the_origin(self, index):
        selection = index.select("card", k=3)
        assert [one.rank for one in selection] == [1, 2, 3]
        assert {one.origin for one in selection} == {"top"}

    @pytest.mark.parametrize("mode", MODES)
    def test_a_smaller_k_is_a_prefix_of_a_larger_one(self, index, mode):
        longest = index.select("my card and a refund", mode=mode, k=16).ids
        assert [index.select("my card and a refund", mode=mode, k=k).ids for k in range(17)] == [
            longest[:k] for k in range(17)
        ]

    def test_the_calibrated_weight_is_stored_and_shown_in_the_selection(self, tmp_path):
        with build(ROWS, tmp_path / "index") as retriever:
            calibrated = retriever.info()["fusion"]["weight"]
            assert retriever.select("card").recipe.retrieve.weight == calibrated
            assert retriever.info()["fusion"]["objective"] == "labels"


class TestMany:
    @pytest.mark.parametrize("block", [1, 2, 3, 7, 100])
    @pytest.mark.parametrize("options", [{}, {"mode": "lexical"}, {"strategy": "random", "seed": 3}], ids=str)
    def test_select_many_equals_select_whatever_the_block(self, index, with_block, block, options):
        expected = [plain(index.select(query, k=5, **options)) for query in QUERIES]
        assert [plain(selection) for selection in with_block(block).select_many(QUERIES, k=5, **options)] == expected

    def test_queries_are_taken_some_hundred_at_once_from_an_endless_source(self, with_block):
        taken = []

        def endless():
            while True:
                taken.append(len(taken))
                yield f"card {len(taken)}"

        selections = with_block(4).select_many(endless(), k=1)
        assert [next(selections).query.input for _ in range(3)] == ["card 1", "card 2", "card 3"]
        assert len(taken) == MAX_BLOCK

    def test_the_examples_of_many_queries_are_read_together_and_once(self, index, monkeypatch):
        reads, fetch = [], Pool.fetch
        monkeypatch.setattr(Pool, "fetch", lambda pool, rows: (reads.append(list(rows)), fetch(pool, rows))[1])
        selections = list(index.select_many(QUERIES, k=3))
        assert sum(map(len, selections)) > 3
        [rows] = reads
        assert len(rows) == len({name for selection in selections for name in selection.ids})

    def test_no_queries_give_no_selections(self, index):
        assert list(index.select_many([])) == []

    def test_prompt_many_equals_prompt(self, index):
        questions = [query for query in QUERIES if query not in ("", "   ")]
        assert [prompt.messages for prompt in index.prompt_many(questions, k=2)] == [
            index.prompt(query, k=2).messages for query in questions
        ]


class TestQueriesThatSayLittle:
    @pytest.mark.parametrize("mode", MODES)
    @pytest.mark.parametrize("query", ["", " \n\t ", "\u3000"])
    def test_a_blank_query_gets_the_first_examples_and_a_note_in_every_mode(self, index, mode, query):
        selection = index.select(query, mode=mode, k=3)
        assert list(selection.ids) == IDS[:3]
        assert [one.score for one in selection] == [0.0, 0.0, 0.0]
        assert len(selection.notes) == 1
        assert "first ones of the pool" in selection.notes[0]

    def test_the_first_ones_are_spoken_of_only_where_they_were_chosen_for_want_of_scores(self, index):
        for options in ({"k": 0}, {"strategy": "fixed", "fixed": ["card-1"]}, {"strategy": "random", "k": 2}):
            assert index.select(" ", **options).notes == ("neither channel knows anything of the query",)

    @pytest.mark.parametrize("mode", ["hybrid", "lexical"])
    def test_a_query_of_unknown_terms_only_falls_back_to_the_dense_channel_with_a_note(self, index, mode):
        selection = index.select("zzqx wvvk", mode=mode, k=4)
        assert list(selection.ids) == ranked(cosines_by_hand("zzqx wvvk"))[:4]
        assert len(selection.notes) == 1
        assert "dense channel alone" in selection.notes[0]
        assert "lexical" not in selection[0].channels

    def test_dense_mode_has_nothing_to_say_of_unknown_terms(self, index):
        selection = index.select("zzqx wvvk", mode="dense", k=4)
        assert list(selection.ids) == ranked(cosines_by_hand("zzqx wvvk"))[:4]
        assert selection.notes == ()

    @pytest.mark.parametrize("mode", ["hybrid", "dense"])
    def test_a_query_without_a_vector_falls_back_to_the_lexical_channel_with_a_note(self, index, mode):
        selection = index.select("password reset", vector=np.zeros(32, np.float32), mode=mode, k=2)
        assert list(selection.ids) == ranked(bm25_by_hand("password reset"))[:2]
        assert len(selection.notes) == 1
        assert "lexical channel alone" in selection.notes[0]
        assert "dense" not in selection[0].channels


class TestSizes:
    @pytest.mark.parametrize("mode", MODES)
    def test_a_k_beyond_the_pool_gives_the_whole_pool_and_a_note(self, index, mode):
        selection = index.select("card", mode=mode, k=100)
        assert sorted(selection.ids) == sorted(IDS)
        assert any("16 of 100" in note for note in selection.notes)

    @pytest.mark.parametrize("mode", MODES)
    @pytest.mark.parametrize("strategy", STRATEGIES)
    def test_a_k_of_zero_gives_none_and_no_note(self, index, mode, strategy):
        selection = index.select("card", mode=mode, strategy=strategy, k=0)
        assert len(selection) == 0
        assert selection.notes == ()
        assert selection.eligible == 16

    @pytest.mark.parametrize("k", [-1, 10_001])
    def test_a_k_out_of_range_is_refused(self, index, k):
        with pytest.raises(InvalidInput, match=r"select\.k"):
            index.select("card", k=k)

    @pytest.mark.parametrize("mode", MODES)
    @pytest.mark.parametrize("query", ["alone", "other", ""])
    def test_a_pool_of_one_gives_the_one(self, tmp_path, mode, query):
        notes: list[str] = []
        with build([{"id": "a", "input": "alone", "output": "1"}], tmp_path / "i", note=notes.append) as retriever:
            assert retriever.select(query, mode=mode).ids == ("a",)

    @pytest.mark.parametrize("mode", MODES)
    @pytest.mark.parametrize("query", ["anything", ""])
    def test_an_empty_pool_gives_an_empty_selection_and_a_zero_shot_prompt(self, tmp_path, mode, query):
        notes: list[str] = []
        with build([], tmp_path / "index", note=notes.append) as retriever:
            assert len(retriever) == 0
            assert retriever.labels == ()
            selection = retriever.select(query, mode=mode)
            assert selection.ids == ()
            assert any("0 of 8" in note for note in selection.notes)
            assert retriever.prompt(selection).messages == [{"role": "user", "content": query}]
        assert len(notes) == 1
        assert "calibrate" in notes[0]

    def test_an_empty_pool_opens_again(self, tmp_path):
        build([], tmp_path / "index", note=lambda line: None).close()
        with Retriever.open(tmp_path / "index", embedder=embed) as retriever:
            assert retriever.select("anything").ids == ()

    def test_k_is_filled_by_the_default_of_eight(self, index):
        assert len(index.select("card")) == 8


class TestOptionsOfTheCallBefore:
    def test_what_is_equal_to_them_but_of_another_type_is_still_refused(self, index):
        assert len(index.select("refund", k=1)) == 1
        for k in (True, 1.5, "1"):
            with pytest.raises(InvalidInput, match=r"select\.k"):
                index.select("refund", k=k)
        assert len(index.select("refund", k=1)) == 1

    def test_a_list_that_was_changed_in_place_is_read_anew(self, index):
        best = index.select("refund", k=1).ids
        exclude = []
        assert index.select("refund", k=1, exclude=exclude).ids == best
        exclude.extend(best)
        assert index.select("refund", k=1, exclude=exclude).ids != best

    def test_each_counts_in_the_recipe_that_it_changes(self, index):
        one, other = Recipe.of({"retrieve": {"mode": "lexical"}}), Recipe.of({"retrieve": {"mode": "dense"}})
        found = [index.select("refund", recipe=recipe, k=2).recipe for recipe in (one, other, one)]
        assert [(recipe.retrieve.mode, recipe.select.k) for recipe in found] == [
            ("lexical", 2),
            ("dense", 2),
            ("lexical", 2),
        ]


class TestFilters:
    """Whatever leaves examples out does so before the cut, so that k is filled from what is left."""

    @pytest.mark.parametrize("mode", MODES)
    @pytest.mark.parametrize("strategy", ["top", "random"])
    @pytest.mark.parametrize(
        ("options", "left"),
        [
            ({"where": 'language == "de"'}, GERMAN),
            ({"where": {"language": "de", "priority": {"<": 3}}}, [i for i in GERMAN if i.endswith("-1")]),
            ({"match": ["language"]}, GERMAN),
            ({"exclude": ["card-0", "card-1", "fees-1"]}, [i for i in IDS if i not in ("card-0", "card-1", "fees-1")]),
            ({"where": 'language == "de"', "exclude": ["card-1"]}, [i for i in GERMAN if i != "card-1"]),
            ({"group": "language"}, [i for i in IDS if i not in GERMAN]),
            ({"guard": "exact"}, [i for i in IDS if i != "card-1"]),
        ],
        ids=str,
    )
    def test_k_is_filled_from_what_is_left_in_every_mode_and_strategy(self, index, mode, strategy, options, left):
        query = {"input": "the card is lost", "language": "de"}
        for k in (1, len(left) - 1, len(left)):
            selection = index.select(query, mode=mode, strategy=strategy, k=k, **options)
            assert len(selection) == k
            assert set(selection.ids) <= set(left)
        assert sorted(selection.ids) == sorted(left)

    @pytest.mark.parametrize("mode", ["dense", "lexical"])
    def test_a_filter_keeps_the_order_and_the_scores_of_those_it_lets_through(self, index, mode):
        everything = index.select("my card and a fee", mode=mode, k=16)
        german = index.select("my card and a fee", mode=mode, k=16, where='language == "de"')
        expected = [(one.example.id, one.score) for one in everything if one.example.id in GERMAN]
        assert [(one.example.id, one.score) for one in german] == expected

    @pytest.mark.parametrize("mode", MODES)
    def test_a_fixed_example_that_the_filter_excludes_does_not_come_in(self, index, mode):
        options = {"mode": mode, "strategy": "fixed", "fixed": ["card-0", "card-1"]}
        assert index.select("x card", where='language == "de"', **options).ids == ("card-1",)

    def test_eligible_counts_what_the_filters_left(self, index):
        assert index.select("card", where='language == "de"', k=1).eligible == 8

    def test_a_filter_that_nothing_passes_gives_an_empty_selection_with_a_note(self, index):
        selection = index.select("card", where='language == "fr"')
        assert selection.ids == ()
        assert any("0 of 8" in note for note in selection.notes)

    def test_match_without_a_value_in_the_query_is_refused_by_name(self, index):
        with pytest.raises(InvalidInput, match="'language' to match"):
            index.select("card", match=["language"])

    def test_an_unknown_id_to_exclude_excludes_nothing(self, index):
        assert index.select("card", exclude=["nobody"]).ids == index.select("card").ids


class TestGuard:
    @pytest.mark.parametrize("mode", MODES)
    @pytest.mark.parametrize("strategy", ["top", "random"])
    def test_the_query_itself_is_left_out_by_its_id_and_k_is_filled(self, index, mode, strategy):
        query = {"id": "card-1", "input": "the card is lost"}
        selection = index.select(query, mode=mode, strategy=strategy, k=15)
        assert sorted(selection.ids) == sorted(set(IDS) - {"card-1"})
        assert [(dropped.id, dropped.reason) for dropped in selection.dropped] == [("card-1", "the query itself")]

    def test_the_same_text_under_another_id_is_the_best_demonstration(self, index):
        assert index.select("the card is lost", k=1).ids == ("card-1",)

    def test_with_the_guard_off_even_the_query_itself_comes_back(self, index):
        assert index.select({"id": "card-1", "input": "the card is lost"}, guard="off", k=1).ids == ("card-1",)

    @pytest.mark.parametrize(
        ("level", "query", "dropped"),
        [
            ("exact", "the card is lost", True),
            ("exact", "The card is lost!", False),
            ("normalised", "The card is lost!", True),
            ("normalised", "is the card lost", False),
            ("near", "is the card lost", True),
            ("near", "the parcel is lost", False),
        ],
    )
    def test_each_level_drops_its_kind_of_copy(self, index, level, query, dropped):
        selection = index.select(query, guard=level, k=16)
        assert ("card-1" not in selection.ids) is dropped
        assert ([one.id for one in selection.dropped] == ["card-1"]) is dropped

    @pytest.mark.parametrize("mode", MODES)
    def test_the_near_guard_takes_its_threshold_and_still_fills_k(self, index, mode):
        query = "the card is lost again"
        strict = index.select(query, mode=mode, guard="near", threshold=0.5, k=15)
        assert "card-1" not in strict.ids
        assert len(strict) == 15
        assert "near copy" in strict.dropped[0].reason
        assert "card-1" in index.select(query, mode=mode, guard="near", threshold=0.99, k=15).ids

    def test_a_copy_of_the_query_does_not_set_the_scale_for_the_others(self, index):
        best = index.select("the card is lost", guard="exact", weight=0.5, k=1)[0]
        dense = {i: score for i, score in cosines_by_hand("the card is lost").items() if i != "card-1"}
        lexical = {i: score for i, score in bm25_by_hand("the card is lost").items() if i != "card-1"}
        fused = {
            i: 0.5 * (dense[i] + 1) / (max(dense.values()) + 1) + 0.5 * lexical[i] / max(lexical.values())
            for i in dense
        }
        assert best.score == pytest.approx(max(fused.values()), abs=1e-6)

    @pytest.mark.parametrize("strategy", ["top", "fixed"])
    def test_a_fixed_example_that_leaks_is_left_out_too(self, index, strategy):
        query = {"id": "card-1", "input": "the card is lost"}
        selection = index.select(query, strategy=strategy, fixed=["card-1", "login-0"], k=3)
        assert selection.ids[0] == "login-0"
        assert "card-1" not in selection.ids


class TestStrategies:
    def test_fixed_examples_come_first_in_their_order_and_retrieval_fills_the_rest(self, index):
        retrieved = [i for i in index.select("refund", k=16).ids if i not in ("login-3", "fees-0")]
        selection = index.select("refund", fixed=["login-3", "fees-0"], k=5)
        assert list(selection.ids) == ["login-3", "fees-0", *retrieved[:3]]
        assert [one.origin for one in selection] == ["fixed", "fixed", "top", "top", "top"]

    def test_a_fixed_example_that_would_have_been_retrieved_appears_once(self, index):
        best = index.select("refund", k=4).ids
        selection = index.select("refund", fixed=[best[1]], k=4)
        assert selection.ids == (best[1], best[0], best[2], best[3])

    def test_fixed_alone_gives_the_named_ones_and_k_cuts_them(self, index):
        names = ["fees-3", "card-2", "login-0"]
        assert index.select("refund", strategy="fixed", fixed=names).ids == tuple(names)
        assert index.select("refund", strategy="fixed", fixed=names, k=2).ids == tuple(names[:2])

    def test_a_fixed_id_that_is_not_in_the_pool_is_refused_by_name(self, index):
        with pytest.raises(InvalidInput, match="'nobody'"):
            index.select("refund", fixed=["nobody"])

    def test_random_depends_on_the_seed_and_the_query_alone(self, index):
        def ids(query, seed):
            return index.select(query, strategy="random", seed=seed, k=6).ids

        assert ids("card", 1) == ids("card", 1)
        assert len({ids("card", seed) for seed in range(10)}) == 10
        assert ids("card", 1) != ids("fee", 1)
        assert len(set(ids("card", 1))) == 6

    def test_random_is_the_same_in_every_mode(self, index):
        assert len({index.select("card", strategy="random", mode=mode).ids for mode in MODES}) == 1

    def test_random_reaches_every_example(self, index):
        assert {index.select("card", strategy="random", seed=seed, k=1).ids[0] for seed in range(200)} == set(IDS)

    @pytest.mark.parametrize(
        ("order", "places"),
        [("best-last", [4, 3, 2, 1, 0]), ("best-first", [0, 1, 2, 3, 4]), ("edges", [1, 3, 4, 2, 0])],
    )
    def test_an_order_moves_the_demonstrations_in_the_prompt_and_not_their_ranks(self, index, order, places):
        plainly = index.select("refund", k=5).ids
        selection = index.select("refund", k=5, order=order)
        assert selection.ids == plainly
        assert [one.example.id for one in selection.in_prompt_order] == [plainly[place] for place in places]
        assert [one["id"] for one in selection.to_dict()["demonstrations"]] == [plainly[place] for place in places]

    def test_the_random_order_is_seeded(self, index):
        def order(seed):
            return [one.example.id for one in index.select("refund", order="random", seed=seed).in_prompt_order]

        assert order(1) == order(1)
        assert len({tuple(order(seed)) for seed in range(8)}) > 1
        assert sorted(order(1)) == sorted(index.select("refund").ids)


class TestVector:
    @pytest.mark.parametrize("mode", MODES)
    @pytest.mark.parametrize("scale", [1.0, 7.5])
    def test_a_given_vector_gives_what_embedding_gives(self, index, mode, scale):
        vector = embed(["where is my card"])[0] * scale
        assert plain(index.select("where is my card", vector=vector, mode=mode)) == plain(
            index.select("where is my card", mode=mode)
        )

    def test_with_a_given_vector_nothing_is_embedded(self, tmp_path):
        calls: list[list[str]] = []

        def counting(texts):
            calls.append(texts)
            return embed(texts)

        with build(ROWS, tmp_path / "index", embedder=counting) as retriever:
            calls.clear()
            retriever.select("where is my card", vector=embed(["where is my card"])[0])
            assert calls == []

    @pytest.mark.parametrize("vector", [np.ones(31), np.ones((2, 32)), np.full(32, np.nan)], ids=["31", "2x32", "nan"])
    def test_a_vector_of_the_wrong_shape_or_with_nan_is_refused(self, index, vector):
        with pytest.raises(InvalidInput, match="query vector"):
            index.select("card", vector=vector)


class TestKeys:
    """Both sides of the index are made of the same fields."""

    def select(self, path, key, query):
        with build(KEYED, path, settings=IndexSettings(key=key), weight=0.5) as retriever:
            return retriever.select(query, mode="lexical", k=2)

    @pytest.mark.parametrize(
        ("key", "query"),
        [
            ("input+output", {"input": "alpha", "output": "blue"}),
            ("$task: $input", {"input": "alpha", "task": "two"}),
            ("meta.title", {"input": "alpha", "title": "south"}),
            ("input+meta.title", {"input": "alpha", "meta": {"title": "south"}}),
        ],
    )
    def test_a_query_with_the_same_fields_finds_the_example_with_the_same_values(self, tmp_path, key, query):
        selection = self.select(tmp_path / "index", key, query)
        assert selection.ids == ("b", "a")
        assert selection[0].score > selection[1].score

    def test_of_a_joined_key_a_query_may_lack_a_part(self, tmp_path):
        selection = self.select(tmp_path / "index", "input+output", "alpha")
        assert [one.score > 0 for one in selection] == [True, True]

    def test_of_a_template_key_a_query_must_have_every_part(self, tmp_path):
        with pytest.raises(InvalidInput, match="has no 'task'"):
            self.select(tmp_path / "index", "$task: $input", "alpha")

    def test_a_key_that_an_example_lacks_makes_a_bad_row(self, tmp_path):
        bad: list[BadRow] = []
        rows = [*KEYED, {"id": "c", "input": "gamma", "output": "green"}]
        settings = IndexSettings(key="meta.title")
        with build(rows, tmp_path / "index", settings=settings, on_bad=bad.append) as retriever:
            assert len(retriever) == 2
        assert len(bad) == 1


class TestRecipe:
    def test_a_mapping_a_recipe_a_toml_path_and_keywords_say_the_same(self, index, tmp_path):
        path = tmp_path / "recipe.toml"
        path.write_text(TOML, encoding="utf-8")
        keywords = {"mode": "lexical", "where": 'language == "de"', "k": 3, "fixed": ["login-1"], "order": "best-first"}
        expected = plain(index.select("refund", **keywords))
        for recipe in (SECTIONS, Recipe.of(SECTIONS), path, str(path)):
            assert plain(index.select("refund", recipe=recipe)) == expected

    def test_keywords_override_the_recipe(self, index):
        selection = index.select("refund", recipe=SECTIONS, k=1, where=None)
        assert selection.ids == ("login-1",)
        assert selection.eligible == 16
        assert selection.recipe.retrieve.mode == "lexical"

    def test_the_recipe_of_a_selection_gives_the_selection_again(self, index):
        selection = index.select("refund", recipe=SECTIONS)
        assert plain(index.select("refund", recipe=selection.to_dict()["recipe"])) == plain(selection)

    @pytest.mark.parametrize(
        ("options", "named"),
        [({"colour": "red"}, "colour"), ({"mode": "sparse"}, "sparse"), ({"k": "3"}, "select.k")],
        ids=str,
    )
    def test_an_option_that_cannot_be_used_is_refused_by_name(self, index, options, named):
        with pytest.raises(InvalidInput, match=named):
            index.select("refund", **options)


class TestPrompt:
    def test_messages_are_pairs_in_prompt_order_and_then_the_query(self, index):
        selection = index.select("where is my card", k=2)
        prompt = index.prompt("where is my card", k=2)
        second, best = selection.in_prompt_order
        assert prompt.messages == [
            {"role": "user", "content": second.example.input},
            {"role": "assistant", "content": second.example.output},
            {"role": "user", "content": best.example.input},
            {"role": "assistant", "content": best.example.output},
            {"role": "user", "content": "where is my card"},
        ]
        assert best.rank == 1

    def test_the_text_is_blocks_and_a_cue(self, index):
        prompt = index.prompt("lost", strategy="fixed", fixed=["card-1"])
        assert prompt.text == "Input: the card is lost\nOutput: card desk\n\nInput: lost\nOutput:"

    def test_a_selection_is_put_into_a_prompt_as_it_is(self, index):
        selection = index.select("refund", k=3, order="edges")
        assert index.prompt(selection).messages == index.prompt("refund", k=3, order="edges").messages

    @pytest.mark.parametrize("extra", [{"k": 2}, {"recipe": {"select": {"k": 2}}}], ids=str)
    def test_a_selection_together_with_settings_of_its_own_is_refused(self, index, extra):
        with pytest.raises(InvalidInput, match="selection together"):
            index.prompt(index.select("refund"), **extra)

    @pytest.mark.parametrize("form", ["messages", "text"])
    def test_a_budget_is_never_exceeded_and_keeps_the_best_ranked_first(self, index, form):
        query = "the refund of my order"
        ranks = {identity: rank for rank, identity in enumerate(index.select(query, k=8).ids)}
        whole = index.prompt(query, k=8, prompt_options={"form": form}).tokens
        bare = index.prompt(query, k=0, prompt_options={"form": form}).tokens
        sizes = set()
        for tokens in range(bare, whole + 1):
            prompt = index.prompt(query, k=8, tokens=tokens, prompt_options={"form": form})
            assert prompt.tokens <= tokens
            kept = {ranks[example.id] for example in prompt.demonstrations}
            left = {ranks[skipped.example_id]: skipped.tokens for skipped in prompt.skipped}
            assert kept | left.keys() == set(range(8))
            assert all(prompt.tokens + added > tokens for added in left.values())
            sizes.add(len(kept))
        assert sizes == set(range(9))

    def test_with_demonstrations_of_equal_length_the_budget_keeps_a_prefix_of_the_ranks(self, tmp_path):
        rows = [{"id": str(i), "input": f"item {i}", "output": "done"} for i in range(6)]
        with build(rows, tmp_path / "index", weight=0.5) as retriever:
            best = retriever.select("item 3", k=6).ids
            bare = retriever.prompt("item 3", k=0).tokens
            each = retriever.prompt("item 3", k=1).tokens - bare
            for fitting in range(7):
                prompt = retriever.prompt("item 3", k=6, tokens=bare + fitting * each)
                assert [example.id for example in prompt.demonstrations] == list(reversed(best[:fitting]))

    def test_the_tokens_are_those_of_every_message_its_frame_and_the_reply(self, index):
        prompt = index.prompt("refund", k=3)
        count = load_counter("estimate").count
        assert prompt.tokens == sum(count(message["content"]) + 4 for message in prompt.messages) + 3

    def test_a_reserve_is_kept_free(self, index):
        bare = index.prompt("refund", k=0).tokens
        assert index.prompt("refund", k=8, tokens=bare + 50, reserve=50).demonstrations == ()

    def test_a_query_over_the_budget_is_refused_with_the_number_that_would_do(self, index):
        bare = index.prompt("refund", k=0).tokens
        with pytest.raises(InvalidInput, match=f"raise the budget to {bare}"):
            index.prompt("refund", tokens=bare - 1)

    def test_the_classification_template_lists_the_labels_of_the_pool(self, index):
        prompt = index.prompt("refund", k=0, prompt_options={"template": "classification"})
        assert prompt.messages[0]["role"] == "system"
        assert prompt.messages[0]["content"].endswith("\ncard\nfees\nlogin\nrefund")

    def test_a_list_of_labels_that_no_demonstration_answers_with_is_refused(self, index):
        # The label is "refund" and the output "refund desk": list and demonstrations would contradict each other.
        with pytest.raises(TemplateError) as caught:
            index.prompt("refund", k=2, prompt_options={"template": "classification"})
        assert "no demonstration answers with one" in caught.value.seen
        assert "has the label 'refund' and the output 'refund desk'" in caught.value.seen
        assert "a template that shows $label" in caught.value.fix

    def test_what_is_listed_is_what_the_demonstrations_show(self, index):
        outputs = [f"{label} desk" for label in PHRASES]
        options = {"template": "classification", "slots": {"labels": "\n".join(outputs)}}
        prompt = index.prompt("refund", k=2, prompt_options=options)
        assert {message["content"] for message in prompt.messages[2:-1:2]} <= set(outputs)
        template = Template("label", system="One of:\n$labels", output="$label", text_output="Label: $label")
        prompt = index.prompt("refund", k=2, prompt_options={"template": template})
        assert {message["content"] for message in prompt.messages[2:-1:2]} <= set(prompt.messages[0]["content"].split())

    @pytest.mark.parametrize(
        ("output", "label", "fits"),
        [
            ("red", "red", True),
            ("red", None, True),  # the label of another example
            ("reddish", "red", False),
            ("red", ["red", "blue"], True),
            ("blue, red", ["red", "blue"], False),
        ],
    )
    def test_an_answer_is_exactly_one_label_of_the_list(self, tmp_path, output, label, fits):
        rows = [Example("a", "alpha", output, label=label), Example("b", "beta", "red", label="red")]
        fixed = {"k": 1, "strategy": "fixed", "fixed": ["a"], "prompt_options": {"template": "classification"}}
        with build(rows, tmp_path / "i", weight=0.5) as retriever:
            if fits:
                assert retriever.prompt("alpha", **fixed).messages[2]["content"] == output
            else:
                with pytest.raises(TemplateError, match="no demonstration answers with one"):
                    retriever.prompt("alpha", **fixed)

    def test_a_template_of_ones_own_may_list_labels_and_answer_otherwise(self, index):
        template = Template("reply", system="We tell apart:\n$labels")
        prompt = index.prompt("refund", k=1, prompt_options={"template": template})
        assert [message["content"] for message in prompt.messages[::2]] == [
            "We tell apart:\ncard\nfees\nlogin\nrefund",
            "refund desk",
        ]

    def test_a_pool_without_labels_has_none_to_list(self, tmp_path):
        with (
            build(KEYED, tmp_path / "i", weight=0.5) as retriever,
            pytest.raises(TemplateError, match="no example has one; give the slot 'labels' the answers"),
        ):
            retriever.prompt("alpha", k=1, prompt_options={"template": "classification"})

    @settings(max_examples=60)
    @given(
        queries=st.lists(st.text("card refund fees login", max_size=60), min_size=2, max_size=4),
        part=st.sampled_from(
            [
                {"strategy": "fixed", "options": {"ids": ["login-1", "card-2", "fees-0"]}},
                {"strategy": "random"},
                {"strategy": "random", "options": {"stratified": True}},
                {"strategy": "cluster"},
                {"strategy": "cluster", "options": {"clusters": 2, "by_complexity": True}},
            ]
        ),
        budget=st.fixed_dictionaries(
            {
                "tokens": st.integers(20, 160),
                "fill": st.sampled_from(["order", "density"]),
                "prune": st.sampled_from([[], ["longest"], ["rationale", "longest"]]),
            }
        ),
        order=st.sampled_from(["best-last", "best-first", "edges", "random", "complexity", "label-interleaved"]),
        form=st.sampled_from(["messages", "text"]),
    )
    def test_a_shared_part_begins_every_prompt_with_the_same_bytes(self, index, queries, part, budget, order, form):
        recipe = {
            "select": {"k": 6, "parts": [{**part, "k": 3, "shared": True}]},
            "order": {"by": order},
            "budget": budget,
        }
        begins = set()
        for query in queries:
            selection = index.select(query, recipe=recipe)
            block = [one.example for one in selection.in_prompt_order if one.shared]
            try:
                prompt = index.prompt(selection, prompt_options={"form": form})
            except InvalidInput as error:
                assert "any demonstration but the 3 that all queries share" in error.seen
                continue
            assert list(prompt.demonstrations[:3]) == block
            begins.add((*prompt.text.split("\n\n")[:3], *(message["content"] for message in prompt.messages[:6])))
        assert len(begins) <= 1

    def test_labels_that_are_given_take_their_place(self, index):
        options = {"template": "classification", "slots": {"labels": "yes\nno"}}
        assert index.prompt("refund", k=0, prompt_options=options).messages[0]["content"].endswith(":\nyes\nno")

    def test_the_cot_template_shows_the_rationale_before_the_answer(self, index):
        prompt = index.prompt("lost", strategy="fixed", fixed=["card-1"], prompt_options={"template": "cot"})
        assert prompt.messages[1]["content"] == "It speaks of card.\n\nAnswer: card desk"
        assert prompt.text.endswith("Question: lost\nReasoning:")

    def test_the_zero_shot_line_is_added_only_when_there_is_no_demonstration(self, index):
        options = {"template": "cot", "zero_shot": True}
        assert index.prompt("lost", k=0, prompt_options=options).messages == [
            {"role": "user", "content": "lost\n\nLet's think step by step."}
        ]
        assert index.prompt("lost", k=1, prompt_options=options).messages[-1]["content"] == "lost"

    def test_a_template_of_ones_own_comes_from_a_toml_file_or_as_an_object(self, index, tmp_path):
        path = tmp_path / "desk.toml"
        path.write_text('system = "You are $who."\ninput = "[$meta.language] $input"\noutput = "$label"\n')
        query = {"input": "lost", "language": "en"}
        template = Template("desk", system="You are $who.", input="[$meta.language] $input", output="$label")
        for source in (path, str(path), template):
            options = {"template": source, "slots": {"who": "a clerk"}}
            prompt = index.prompt(query, strategy="fixed", fixed=["card-1"], prompt_options=options)
            assert [message["content"] for message in prompt.messages] == [
                "You are a clerk.",
                "[de] the card is lost",
                "card",
                "[en] lost",
            ]

    def test_an_edited_template_file_is_read_anew(self, index, tmp_path):
        path = tmp_path / "mine.toml"
        path.write_text('system = "first"\n')
        assert index.prompt("x card", k=0, prompt_options={"template": path}).messages[0]["content"] == "first"
        path.write_text('system = "second"\n')
        assert index.prompt("x card", k=0, prompt_options={"template": path}).messages[0]["content"] == "second"

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (
                {"templat": "sql"},
                "'templat'; expected one of template, slots, form, collisions, zero_shot; write template",
            ),
            ({"template": "io", "tokens": 10}, "'tokens'; expected .*; give tokens beside prompt_options: it belongs"),
            ({"bogus": 1}, "'bogus'; expected one of template, slots, form, collisions, zero_shot$"),
        ],
    )
    def test_an_unknown_prompt_option_is_an_error_by_name(self, index, options, message):
        with pytest.raises(InvalidInput, match=f"^prompt option {message}"):
            index.prompt("refund", k=1, prompt_options=options)
        with pytest.raises(InvalidInput, match=f"^prompt option {message}"):
            list(index.prompt_many(["refund"], k=1, prompt_options=options))

    @pytest.mark.parametrize(
        ("key", "value", "expected"),
        [
            ("template", None, "a built-in template's name, a TOML file, or a Template"),
            ("slots", ["schema"], "a mapping from names to texts"),
            ("zero_shot", "no", "true or false"),
        ],
    )
    def test_a_prompt_option_of_another_type_is_refused(self, index, key, value, expected):
        with pytest.raises(InvalidInput, match=re.escape(f"prompt option {key} = {value!r}; expected {expected}")):
            index.prompt("refund", k=0, prompt_options={key: value})

    def test_a_slot_without_a_value_is_an_error_by_name(self, index):
        with pytest.raises(TemplateError, match=r"\$schema"):
            index.prompt("refund", prompt_options={"template": "sql"})

"""Strategies, parts and shared blocks through the library, as a user asks for them."""

from __future__ import annotations

import importlib.metadata
import json

import numpy as np
import pytest

from retriever import Recipe, Retriever
from retriever.errors import InvalidInput
from retriever.ranking import strategies
from retriever.ranking.strategies import STRATEGIES, Strategy, strategy, strategy_names
from retriever.ranking.strategies.base import Candidates, NoOptions
from retriever.ranking.strategies.picks import Picks, picks
from tests.support import build, embed

WORDS = ("card", "lost", "refund", "late", "fee", "login", "mail", "again", "promo", "lock")
POOL = [
    {
        "id": f"e{n}",
        "input": " ".join(WORDS[(n * step + step) % 10] for step in range(1, 4 + n % 3)),
        "output": f"answer {n % 7} to {WORDS[n % 10]}",
        "label": f"l{n % 4}",
        "rationale": "\n".join(f"step {i}" for i in range(n % 5)) or None,
        "meta": {"language": "en" if n % 3 else "de", "kinds": [WORDS[n % 10], WORDS[(n + 3) % 10]]},
    }
    for n in range(60)
]
QUERY = {"id": "q", "input": "card lost again late", "meta": {"kinds": ["card", "fee"]}}
OTHERS = sorted(set(STRATEGIES) - {"fixed"})


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    with build(POOL, tmp_path_factory.mktemp("strategies") / "i", weight=0.5) as retriever:
        yield retriever


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("mode", ["hybrid", "dense", "lexical"])
def test_every_strategy_fills_k_in_every_mode_and_says_so(index, name, mode):
    chosen = index.select(QUERY, k=8, strategy=name, mode=mode)
    assert len(chosen) == len(set(chosen.ids)) == 8
    assert {one.origin for one in chosen} == {name}
    assert chosen.recipe.select.options == {k: v for k, v in strategy(name).options().__dict__.items()}
    assert [one.rank for one in chosen] == list(range(1, 9))


@pytest.mark.parametrize("name", OTHERS)
def test_filter_exclusion_and_guard_hold_under_every_strategy(index, name):
    query = {**QUERY, "id": "e1"}
    chosen = index.select(query, k=50, strategy=name, where='language == "en"', exclude=["e2"])
    assert not {"e1", "e2"} & set(chosen.ids)
    assert {one.example.value("language") for one in chosen} == {"en"}
    assert len(chosen) == 38  # 40 in English, the query itself and the excluded one
    assert "38 of 50" in chosen.notes[-1]


@pytest.mark.parametrize("name", OTHERS)
def test_the_same_selection_in_a_batch_and_after_opening_again(index, name):
    alone = index.select(QUERY, k=6, strategy=name)
    [_, batched, _] = index.select_many(["fee", QUERY, "mail"], k=6, strategy=name)
    assert batched == alone
    with Retriever.open(index.path, embedder=embed) as other:
        assert other.select(QUERY, k=6, strategy=name) == alone


@pytest.mark.parametrize("name", OTHERS)
def test_a_query_that_nothing_knows_is_answered_all_the_same(index, name):
    assert len(index.select("", k=5, strategy=name)) == 5


def test_the_settings_of_a_strategy_change_what_it_chooses(index):
    plain = index.select(QUERY, k=6).ids
    assert index.select(QUERY, k=6, strategy="mmr", mode="dense", options={"weight": 1.0}).ids == (
        index.select(QUERY, k=6, mode="dense").ids
    )
    assert index.select(QUERY, k=6, strategy="mmr", options={"weight": 0.2}).ids != plain


def test_a_strategy_looks_no_further_than_its_candidates(index):
    first = set(index.select(QUERY, k=10).ids)
    for name in ("mmr", "dpp", "sift", "coverage", "balanced", "cluster", "complexity"):
        assert set(index.select(QUERY, k=5, strategy=name, candidates=10).ids) <= first


def test_sift_stops_early_and_tells_its_confidence(index):
    whole = index.select(QUERY, k=8, strategy="sift")
    short = index.select(QUERY, k=8, strategy="sift", options={"drop": 0.2})
    assert 0 < len(short) < len(whole) == 8
    assert short.ids == whole.ids[: len(short)]
    assert 0 < short.confidence < whole.confidence <= 1
    assert index.select(QUERY, k=8).confidence is None


def test_coverage_of_a_field_takes_what_has_its_values(index):
    chosen = index.select(QUERY, k=2, strategy="coverage", options={"of": "field", "field": "kinds"})
    shown = {kind for one in chosen for kind in one.example.value("kinds")}
    assert {"card", "fee"} <= shown


def test_a_stratified_sample_has_the_shares_of_the_labels(index):
    chosen = index.select(QUERY, k=8, strategy="random", options={"stratified": True})
    assert sorted(one.example.label for one in chosen) == ["l0", "l0", "l1", "l1", "l2", "l2", "l3", "l3"]


def test_a_static_sample_is_the_same_for_every_query_and_an_ordinary_one_is_not(index):
    static = {index.select(text, k=6, strategy="random", options={"static": True}).ids for text in WORDS}
    drawn = {index.select(text, k=6, strategy="random").ids for text in WORDS}
    assert (len(static), len(drawn)) == (1, len(WORDS))


MIXED = {
    "select": {
        "k": 8,
        "fixed": ["e7"],
        "strategy": "random",
        "parts": [
            {"strategy": "mmr", "k": 3},
            {"strategy": "cluster", "k": 3, "shared": True, "options": {"simple": True}},
        ],
    }
}


def test_a_mixed_plan_has_its_parts_in_this_order(index):
    chosen = index.select(QUERY, recipe=MIXED)
    assert [one.origin for one in chosen] == [*["cluster"] * 3, "fixed", *["mmr"] * 3, "random"]
    assert [one.shared for one in chosen] == [True] * 3 + [False] * 5


@pytest.mark.parametrize("by", ["best-last", "best-first", "edges", "random"])
def test_the_shared_block_begins_every_prompt_with_the_same_bytes(index, by):
    recipe = Recipe.of({**MIXED, "order": {"by": by}})
    prompts = [index.prompt(text, recipe=recipe) for text in ("card lost", "fee refund", "promo lock")]
    beginnings = {json.dumps([dict(message) for message in prompt.messages[:6]]) for prompt in prompts}
    assert len(beginnings) == 1
    assert len({tuple(prompt.text.split("Input: ")[1:4]) for prompt in prompts}) == 1
    assert len({json.dumps([dict(message) for message in prompt.messages[6:]]) for prompt in prompts}) == 3


def test_a_shared_block_stays_the_same_when_the_query_order_changes_and_after_opening_again(index):
    def shared(retriever, text):
        return [one.example.id for one in retriever.select(text, recipe=MIXED) if one.shared]

    first = shared(index, "card lost")
    with Retriever.open(index.path, embedder=embed) as other:
        assert shared(other, "promo") == shared(other, "fee") == first


def test_a_shared_block_of_named_examples(index):
    parts = [{"strategy": "fixed", "k": 2, "shared": True, "options": {"ids": ["e9", "e3"]}}]
    chosen = index.select(QUERY, recipe={"select": {"k": 4, "parts": parts}})
    assert chosen.ids[:2] == ("e9", "e3")
    assert [one.example.id for one in chosen.in_prompt_order][:2] == ["e9", "e3"]


def test_the_guard_takes_the_query_out_of_the_shared_block_too(index):
    parts = [{"strategy": "fixed", "k": 2, "shared": True, "options": {"ids": ["e9", "e3"]}}]
    chosen = index.select({**POOL[9]}, recipe={"select": {"k": 4, "parts": parts}})
    assert "e9" not in chosen.ids
    assert chosen.ids[0] == "e3"
    assert len(chosen) == 4


def test_a_recipe_as_toml_gives_the_same_selection(index, tmp_path):
    recipe = Recipe.of(MIXED).filled()
    (tmp_path / "mixed.toml").write_text(recipe.to_toml(), encoding="utf-8")
    assert Recipe.of(tmp_path / "mixed.toml").filled() == recipe
    assert index.select(QUERY, recipe=tmp_path / "mixed.toml") == index.select(QUERY, recipe=MIXED)


def test_the_recipe_that_is_stored_with_a_selection_gives_it_again(index):
    for name in OTHERS:
        chosen = index.select(QUERY, k=6, strategy=name)
        stored = json.loads(json.dumps(chosen.recipe.to_dict()))
        assert index.select(QUERY, recipe=stored) == chosen


class TestConstraints:
    @pytest.mark.parametrize("name", OTHERS)
    def test_at_most_one_of_each_label_holds_under_every_strategy(self, index, name):
        recipe = {"select": {"strategy": name, "k": 4}, "constraints": {"at_most": {"label": 1}}}
        chosen = index.select(QUERY, recipe=recipe)
        assert sorted(one.example.label for one in chosen) == ["l0", "l1", "l2", "l3"]
        assert all(one.breaks == () for one in chosen)

    def test_what_is_barred_is_told_with_the_reason(self, index):
        recipe = {"select": {"k": 2}, "constraints": {"at_most": {"label": 1}}}
        first, second = (index.select(QUERY, k=2).ids, index.select(QUERY, recipe=recipe))
        barred = {one.id: one.reason for one in second.dropped}
        assert all(identity in second.ids or "label" in barred[identity] for identity in first)

    def test_what_fills_up_says_what_it_breaks_and_a_note_counts_it(self, index):
        recipe = {"select": {"k": 6}, "constraints": {"at_most": {"label": 1}}}
        chosen = index.select(QUERY, recipe=recipe)
        assert [bool(one.breaks) for one in chosen] == [False] * 4 + [True] * 2
        assert "2 of 6 break a constraint" in chosen.notes[-1]
        fewer = index.select(QUERY, recipe={**recipe, "constraints": {"at_most": {"label": 1}, "backfill": False}})
        assert fewer.ids == chosen.ids[:4]

    def test_parts_count_for_the_constraints_of_what_comes_after(self, index):
        recipe = {"select": {"k": 4, "fixed": ["e0"]}, "constraints": {"at_most": {"label": 1}}}
        chosen = index.select(QUERY, recipe=recipe)
        assert chosen.ids[0] == "e0"
        assert sorted(one.example.label for one in chosen) == ["l0", "l1", "l2", "l3"]

    def test_a_constraint_that_nothing_can_keep_is_noted(self, index):
        recipe = {"select": {"k": 3}, "constraints": {"at_least": {"language": 3}}}
        assert any("cannot be kept" in note for note in index.select(QUERY, recipe=recipe).notes)

    def test_a_constraint_that_asks_for_nothing_new_changes_nothing(self, index):
        plain = index.select(QUERY, k=6)
        loose = index.select(QUERY, recipe={"select": {"k": 6}, "constraints": {"at_most": {"label": 6}}})
        assert [(one.example.id, one.score) for one in loose] == [(one.example.id, one.score) for one in plain]


class TestAdaptiveK:
    def test_a_threshold_takes_what_reaches_it(self, index):
        scores = [one.score for one in index.select(QUERY, k=8)]
        recipe = {"select": {"k": 8}, "adaptive": {"by": "threshold", "threshold": scores[2]}}
        chosen = index.select(QUERY, recipe=recipe)
        assert [one.score for one in chosen] == [score for score in scores if score >= scores[2]]
        assert "this is enough" in chosen.notes[-1]

    def test_never_fewer_than_k_min(self, index):
        recipe = {"select": {"k": 8}, "adaptive": {"by": "threshold", "threshold": 5.0, "k_min": 3}}
        assert index.select(QUERY, recipe=recipe).ids == index.select(QUERY, k=3).ids

    def test_confidence_stops_sift_where_enough_is_explained(self, index):
        whole = index.select(QUERY, k=8, strategy="sift")
        recipe = {"select": {"k": 8, "strategy": "sift"}, "adaptive": {"by": "confidence", "confidence": 0.5}}
        chosen = index.select(QUERY, recipe=recipe)
        assert chosen.ids == whole.ids[: len(chosen)]
        assert chosen.confidence >= 0.5
        assert len(chosen) < 8

    def test_confidence_without_sift_is_refused(self, index):
        with pytest.raises(InvalidInput, match="expected the strategy sift"):
            index.select(QUERY, recipe={"adaptive": {"by": "confidence"}})


AT = {
    "query": (1.0, 0.0, 0.0),
    "a1": (0.8, 0.6, 0.0),
    "a2": (0.8, -0.6, 0.0),
    "b1": (0.0, 0.0, 1.0),
    "b2": (0.0, 0.0, -1.0),
}


@pytest.fixture(scope="module")
def placed(tmp_path_factory):
    """Examples whose vectors are given, labelled by their first letter."""
    pool = [{"id": name, "input": name, "output": name, "label": name[0]} for name in ("a1", "a2", "b1", "b2")]

    def at(texts):
        return np.array([AT.get(text, (1.0, 1.0, 1.0)) for text in texts], dtype=np.float32)

    with Retriever.build(pool, tmp_path_factory.mktemp("placed") / "i", embedder=at, weight=1.0) as retriever:
        yield retriever


class TestConfidenceUnderConstraints:
    """With noise .01, a1 explains .64 / 1.01 = .634 of the query and a2 the same; both together 1.28 / 1.29 = .992.

    (Their kernel is 1.01 and .28.) b1 and b2 explain nothing.
    """

    @staticmethod
    def select(placed, constraints, adaptive, **select):
        sift = {"strategy": "sift", "k": 4, "options": {"noise": 0.01}}
        recipe = {"retrieve": {"mode": "dense"}, "select": {**sift, **select}}
        return placed.select("query", recipe={**recipe, "constraints": constraints, "adaptive": adaptive})

    def test_it_is_of_what_is_shown_and_not_of_what_would_be_without_constraints(self, placed):
        chosen = self.select(placed, {"at_most": {"label": 1}}, {}, k=2)
        assert chosen.ids == ("a1", "b1")
        assert chosen.confidence == pytest.approx(0.64 / 1.01)
        filled = self.select(placed, {"at_most": {"label": 1}}, {"by": "confidence", "confidence": 0.9})
        assert filled.ids == ("a1", "b1", "a2")
        assert filled.confidence == pytest.approx(1.28 / 1.29)
        assert "1 of 3 break a constraint" in filled.notes[-1]

    def test_what_a_part_has_chosen_explains_too(self, placed):
        chosen = self.select(placed, {}, {"by": "confidence", "confidence": 0.9}, fixed=["a2"])
        assert chosen.ids == ("a2", "a1")
        assert chosen.confidence == pytest.approx(1.28 / 1.29)

    @pytest.mark.parametrize("constraints", [{"at_least": {"label": 2}}, {"every_label": True}])
    def test_it_stops_no_sooner_than_what_at_least_needs(self, placed, constraints):
        enough = {"by": "confidence", "confidence": 0.5}
        assert self.select(placed, {}, enough).ids == ("a1",)
        chosen = self.select(placed, constraints, enough)
        assert chosen.ids == ("a1", "a2", "b1")
        assert not any("cannot be kept" in note for note in chosen.notes)

    def test_what_only_a_cut_pick_was_in_the_way_of_is_not_said_to_break_a_constraint(self, placed):
        rules = {"at_most": {"label": 1}, "backfill": False}
        both = {one.id for one in self.select(placed, rules, {}).dropped}
        assert both == {"a2", "b2"}
        cut = self.select(placed, rules, {"by": "confidence", "confidence": 0.5})
        assert cut.ids == ("a1",)
        assert [one.id for one in cut.dropped] == ["a2"]


class TestBudget:
    def test_density_and_pruning_are_recipe_keys(self, index):
        plain = index.prompt(QUERY, recipe={"select": {"k": 8}, "budget": {"tokens": 120}})
        dense = index.prompt(QUERY, recipe={"select": {"k": 8}, "budget": {"tokens": 120, "fill": "density"}})
        assert plain.tokens <= 120
        assert dense.tokens <= 120
        assert len(dense.demonstrations) >= 1

    def test_a_field_over_its_tokens_is_cut_and_told(self, index):
        cut = index.prompt(QUERY, recipe={"select": {"k": 3}, "budget": {"max_field_tokens": {"input": 2}}})
        assert cut.shortened
        assert {one.example_id for one in cut.shortened} <= set(index.select(QUERY, k=3).ids)


def last_first(candidates: Candidates, k: int, options: NoOptions) -> Picks:
    places = list(range(len(candidates)))[::-1][:k]
    return picks(places, [0.0] * len(places), [-1] * len(places))


LAST = Strategy(pick=last_first)
NOT_ONE = object()


class TestEntryPoints:
    @pytest.fixture
    def registered(self, monkeypatch):
        points = [
            importlib.metadata.EntryPoint(name, f"{__name__}:{value}", "retriever.strategies")
            for name, value in (("last", "LAST"), ("wrong", "NOT_ONE"), ("top", "LAST"))
        ]

        def entry_points(*, group, name=None):
            assert group == "retriever.strategies"
            return [point for point in points if name in (None, point.name)]

        monkeypatch.setattr(strategies, "entry_points", entry_points)
        strategies.strategy_names.cache_clear()
        strategies.strategy.cache_clear()
        yield
        strategies.strategy_names.cache_clear()
        strategies.strategy.cache_clear()

    def test_a_strategy_of_another_package_is_used_by_its_name(self, index, registered):
        assert "last" in strategy_names()
        ten = index.select(QUERY, k=10).ids
        chosen = index.select(QUERY, k=3, strategy="last", candidates=10)
        assert chosen.ids == ten[::-1][:3]
        assert {one.origin for one in chosen} == {"last"}

    def test_one_of_our_own_cannot_be_replaced(self, index, registered):
        assert strategy("top") is STRATEGIES["top"]

    def test_what_is_no_strategy_is_refused(self, index, registered):
        with pytest.raises(InvalidInput, match=r"NOT_ONE of the strategy 'wrong'; expected a Strategy"):
            index.select(QUERY, strategy="wrong")

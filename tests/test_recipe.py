"""Recipe: the settings of one selection, as data."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retriever.errors import InvalidInput
from retriever.ranking.adaptive import Adaptive
from retriever.ranking.constraints import Constraints
from retriever.ranking.guard import LEVELS
from retriever.ranking.order import ORDERS
from retriever.ranking.recipe import Budget, Filter, Guard, Options, Order, Recipe, Retrieve, Select
from retriever.ranking.rerank import Rerank
from retriever.ranking.strategies import STRATEGIES

SECTIONS = {
    "retrieve": ["mode", "weight", "rule", "rrf_k"],
    "guard": ["level", "threshold", "group"],
    "filter": ["where", "match", "exclude"],
    "rerank": ["by", "depth", "weight", "idf"],
    "select": ["strategy", "k", "seed", "fixed", "candidates", "options", "parts"],
    "constraints": [
        "at_most",
        "at_least",
        "every_label",
        "near",
        "near_by",
        "min_score",
        "min_trust",
        "backfill",
    ],
    "adaptive": ["by", "k_min", "threshold", "confidence"],
    "order": ["by", "seed"],
    "budget": ["tokens", "reserve", "counter", "fill", "max_field_tokens", "prune"],
}
shares = st.floats(0, 1)
names = st.lists(st.text(max_size=5), max_size=3).map(tuple)
recipes = st.builds(
    Recipe,
    st.builds(
        Retrieve,
        st.sampled_from(["hybrid", "dense", "lexical"]),
        st.none() | shares,
        st.sampled_from(["convex", "rrf"]),
        st.integers(1, 1_000_000),
    ),
    st.builds(Guard, st.sampled_from(LEVELS), shares, st.none() | st.text(max_size=5)),
    st.builds(
        Filter,
        st.none()
        | st.text().map(lambda text: f"label == {json.dumps(text)}")
        | st.dictionaries(st.text(max_size=5), st.text() | st.integers()),
        names,
        names,
    ),
    st.builds(Rerank, st.none(), st.integers(1, 100_000), shares, st.just(False)),
    st.builds(Select, st.sampled_from(list(STRATEGIES)), st.integers(0, 10_000), st.integers(), names),
    st.builds(
        Constraints, st.dictionaries(st.text(min_size=1, max_size=5), st.integers(1, 9)), near=st.none() | shares
    ),
    st.builds(Adaptive, st.sampled_from(["none", "threshold", "elbow"]), st.integers(0, 9), shares, shares),
    st.builds(Order, st.sampled_from(list(ORDERS)), st.integers()),
    st.builds(Budget, st.none() | st.integers(1, 10_000), st.integers(0, 100), st.text(max_size=9)),
)


reranked = st.builds(
    Recipe,
    rerank=st.builds(Rerank, st.just("maxsim"), st.integers(1, 100_000), shares, st.booleans()),
    select=st.builds(Select, st.sampled_from(["top", "mmr", "coverage"]), st.integers(0, 10_000)),
)


@given(recipes | reranked)
def test_a_recipe_survives_its_dictionary_and_json(recipe):
    assert Recipe.of(recipe.to_dict()) == recipe
    assert Recipe.of(json.loads(json.dumps(recipe.to_dict()))) == recipe


def test_the_dictionary_has_every_section_and_key_and_only_plain_data():
    plain = Recipe.of({"select": {"fixed": ["a"]}}).to_dict()
    assert {name: list(section) for name, section in plain.items()} == SECTIONS
    assert plain["select"]["fixed"] == ["a"]


def test_nothing_gives_the_defaults_and_a_recipe_itself():
    recipe = Recipe.of(None)
    assert recipe == Recipe() == Recipe.of({}) == Recipe.of({"select": {}})
    assert Recipe.of(recipe) is recipe
    assert (recipe.retrieve.mode, recipe.retrieve.weight, recipe.select.k) == ("hybrid", None, 8)
    assert (recipe.guard.level, recipe.order.by, recipe.budget.tokens) == ("self", "best-last", None)


@pytest.mark.parametrize(("name", "text"), [("r.toml", "[select]\r\nk = 3\r\n"), ("r.json", '{"select": {"k": 3}}')])
def test_a_byte_order_mark_before_a_recipe_is_left_out(tmp_path, name, text):
    (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert Recipe.of(tmp_path / name) == Recipe.of({"select": {"k": 3}})


def test_toml_says_the_same_as_a_mapping(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text(
        """
        [retrieve]
        mode = "hybrid"
        weight = 1
        rule = "rrf"
        [guard]
        level = "near"
        threshold = 0.8
        group = "author"
        [filter]
        where = {language = "en", priority = {"<=" = 2}}
        match = ["task"]
        exclude = ["é"]
        [rerank]
        by = "maxsim"
        depth = 30
        weight = 0.5
        idf = true
        [select]
        strategy = "mmr"
        k = 3
        seed = 7
        [order]
        by = "edges"
        [budget]
        tokens = 4000
        reserve = 500
        """,
        encoding="utf-8",
    )
    wanted = Recipe(
        Retrieve("hybrid", 1.0, "rrf"),
        Guard("near", 0.8, "author"),
        Filter({"language": "en", "priority": {"<=": 2}}, ("task",), ("é",)),
        Rerank("maxsim", 30, 0.5, True),
        Select("mmr", 3, 7),
        order=Order("edges"),
        budget=Budget(4000, 500),
    )
    assert Recipe.of(path) == Recipe.of(str(path)) == wanted
    assert type(Recipe.of(path).retrieve.weight) is float


@pytest.mark.parametrize("content", [b"[select", b"k = = 1", b"\xff\xfe", None])
def test_a_file_that_is_no_toml_is_an_error_with_its_name(tmp_path, content):
    path = tmp_path / "broken.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InvalidInput, match=r"broken\.toml.*expected a TOML file"):
        Recipe.of(path)


def test_a_recipe_of_a_file_that_cannot_be_used_is_an_error_with_the_name_of_the_file(tmp_path):
    path = tmp_path / "typo.toml"
    path.write_text('[select]\nstrategie = "mmr"\n')
    with pytest.raises(
        InvalidInput, match=r"^recipe .*typo\.toml: key select\.strategie; expected one of strategy, k,"
    ):
        Recipe.of(path)
    path.write_text('[filter]\nwhere = "label = 1"\n')
    with pytest.raises(InvalidInput, match=r"^recipe .*typo\.toml: filter: .* at ▸ in: label▸ = 1; expected something"):
        Recipe.of(str(path))


@pytest.mark.parametrize("where", ["label = 1", "", "label ==", {"priority": {"~": 2}}])
def test_a_filter_is_parsed_when_a_recipe_is_made(where):
    for make in (
        lambda: Recipe.of({"filter": {"where": where}}),
        lambda: Recipe().with_options({"where": where}),
        lambda: Filter(where=where),
    ):
        with pytest.raises(InvalidInput, match=r"filter: |operator '~' for 'priority'"):
            make()


def test_a_json_file_is_read_as_json(tmp_path):
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps(Recipe.of({"select": {"strategy": "mmr", "k": 3}}).to_dict()))
    assert Recipe.of(path).select.strategy == "mmr"
    path.write_text("[1]")
    with pytest.raises(InvalidInput, match=r"recipe\.json: list; expected sections of keys"):
        Recipe.of(path)
    path.write_text("[" * 100_000)
    with pytest.raises(InvalidInput, match="expected a JSON file"):
        Recipe.of(path)


def test_an_unknown_section_is_named_with_those_there_are():
    with pytest.raises(
        InvalidInput,
        match=r"'retrieval'.*expected one of retrieve, guard, filter, rerank, select, constraints, adaptive, order",
    ):
        Recipe.of({"retrieval": {}})


@pytest.mark.parametrize(("section", "keys"), SECTIONS.items())
def test_an_unknown_key_is_named_with_those_there_are(section, keys):
    with pytest.raises(InvalidInput) as caught:
        Recipe.of({section: {"unknown": 1}})
    assert f"{section}.unknown" in caught.value.seen
    assert caught.value.expected == f"one of {', '.join(keys)}"


def test_a_section_that_is_no_table_is_named():
    with pytest.raises(InvalidInput, match=r"'select' is 8.*a table of keys"):
        Recipe.of({"select": 8})


@pytest.mark.parametrize(
    ("section", "key", "value", "expected"),
    [
        ("retrieve", "mode", "sparse", "hybrid, dense, lexical"),
        ("retrieve", "rule", "linear", "convex, rrf"),
        ("retrieve", "weight", 1.01, "from 0 to 1"),
        ("retrieve", "weight", -1, "from 0 to 1"),
        ("retrieve", "weight", float("nan"), "from 0 to 1"),
        ("retrieve", "rrf_k", 0, "from 1 to 1,000,000"),
        ("guard", "level", "paranoid", "off, self, exact, normalised, near"),
        ("guard", "threshold", 2, "from 0 to 1"),
        ("rerank", "by", "bm25", "maxsim or cross-encoder:NAME_OR_FOLDER"),
        ("rerank", "idf", True, "maxsim"),
        ("select", "strategy", "best", "top, random, fixed"),
        ("select", "k", -1, "from 0 to 100,000,000"),
        ("select", "k", 100_000_001, "from 0 to 100,000,000"),
        ("order", "by", "worst", "best-last, best-first, edges, random"),
        ("budget", "tokens", 0, "from 1 to"),
        ("budget", "reserve", -1, "from 0 to"),
        ("retrieve", "weight", "0.5", "a number"),
        ("retrieve", "weight", True, "a number"),
        ("retrieve", "mode", None, "a text"),
        ("guard", "group", 1, "a text"),
        ("filter", "where", ["a"], "a text"),
        ("filter", "match", "task", "a list"),
        ("filter", "exclude", [1], "a text"),
        ("select", "k", 8.0, "a whole number"),
        ("select", "k", True, "a whole number"),
        ("select", "k", "8", "a whole number"),
        ("select", "seed", None, "a whole number"),
        ("budget", "tokens", 1.5, "a whole number"),
    ],
)
def test_an_impossible_value_names_its_key_and_what_is_allowed(section, key, value, expected):
    with pytest.raises(InvalidInput) as caught:
        Recipe.of({section: {key: value}})
    assert caught.value.seen.startswith(f"{section}.{key} = ")
    assert expected in caught.value.expected


@pytest.mark.parametrize("strategy", ["random", "fixed", "sift", "cluster"])
def test_a_reranker_that_nothing_would_notice_is_refused(strategy):
    rerank = {"by": "maxsim"}
    with pytest.raises(InvalidInput, match=f"'maxsim' with the strategy {strategy}.*expected another strategy"):
        Recipe.of({"rerank": rerank, "select": {"strategy": strategy}})
    Recipe.of({"rerank": rerank, "select": {"strategy": strategy, "parts": [{"strategy": "top"}]}})
    narrowed = {"rerank": {**rerank, "depth": 101}, "select": {"strategy": strategy}}
    if strategy in ("sift", "cluster"):
        assert Recipe.of(narrowed).rerank.depth == 101  # the best 100 of these are what it chooses from
    else:
        with pytest.raises(InvalidInput):
            Recipe.of(narrowed)


def test_another_reranker_does_not_keep_the_idf_of_the_one_before():
    recipe = Recipe.of({"rerank": {"by": "maxsim", "idf": True}})
    assert recipe.with_options({"rerank": None}).rerank == Rerank()
    assert recipe.with_options({"rerank": "cross-encoder:m"}).rerank == Rerank("cross-encoder:m")
    assert recipe.with_options({"rerank": "maxsim", "k": 2}).rerank.idf


def test_a_recipe_made_by_hand_is_checked_too():
    with pytest.raises(InvalidInput, match=r"select\.k"):
        Recipe(select=Select(k=-1))
    with pytest.raises(InvalidInput, match=r"budget\.tokens"):
        Budget(tokens=0)


def test_options_are_the_keys_of_a_recipe_by_short_name():
    options = Options(
        mode="dense",
        weight=1,
        fusion="rrf",
        guard="near",
        threshold=0.5,
        group="g",
        where='a == "b"',
        match=["m"],
        exclude=["x"],
        rerank="maxsim",
        strategy="mmr",
        k=2,
        seed=3,
        fixed=["f"],
        order="edges",
        tokens=100,
        reserve=10,
        counter="estimate",
        candidates=50,
        options={"weight": 0.25},
    )
    assert set(options) == set(Options.__annotations__)
    assert Recipe().with_options(options) == Recipe(
        Retrieve("dense", 1.0, "rrf"),
        Guard("near", 0.5, "g"),
        Filter('a == "b"', ("m",), ("x",)),
        Rerank("maxsim"),
        Select("mmr", 2, 3, ("f",), 50, {"weight": 0.25}),
        order=Order("edges", 3),
        budget=Budget(100, 10),
    )


@pytest.mark.parametrize("option", sorted(set(Options.__annotations__) - {"seed"}))
def test_each_option_changes_one_key_and_leaves_the_others(option):
    value = {
        "mode": "dense",
        "weight": 0.25,
        "fusion": "rrf",
        "guard": "off",
        "threshold": 0.1,
        "group": "g",
        "where": "a == 1",
        "match": ("m",),
        "exclude": ("x",),
        "rerank": "cross-encoder:m",
        "strategy": "fixed",
        "k": 1,
        "fixed": ("f",),
        "order": "random",
        "tokens": 9,
        "reserve": 9,
        "counter": "tiktoken:x",
        "candidates": 7,
        "options": {"weight": 0.25},
    }[option]
    start = Recipe.of({"select": {"strategy": "mmr"}})
    before, after = asdict(start), asdict(start.with_options({option: value}))
    changed = [(s, k) for s, keys in SECTIONS.items() for k in keys if before[s][k] != after[s][k]]
    assert len(changed) == 1
    [(section, key)] = changed
    assert after[section][key] == value


@given(recipes)
def test_no_options_change_nothing_and_the_seed_is_for_strategy_and_order(recipe):
    assert recipe.with_options({}) == recipe
    seeded = recipe.with_options({"seed": 11})
    assert (seeded.select.seed, seeded.order.seed) == (11, 11)


def test_an_unknown_option_is_named_with_those_there_are():
    with pytest.raises(InvalidInput, match=r"option 'top_k'; expected one of mode, weight, .*, k, seed"):
        Recipe().with_options({"top_k": 3})


def test_an_option_is_checked_as_its_key_is():
    with pytest.raises(InvalidInput, match=r"guard\.level = 'x'; expected one of off, self"):
        Recipe().with_options({"guard": "x"})


def test_the_limit_of_a_budget_is_the_tokens_less_the_reserve():
    assert Budget().limit is None
    assert Budget(reserve=5).limit is None
    assert Budget(100, 30).limit == 70


def test_the_options_of_one_strategy_are_not_kept_for_another():
    recipe = Recipe.of({"select": {"strategy": "mmr", "options": {"weight": 0.3}}})
    assert recipe.with_options({"k": 3}).select.options == {"weight": 0.3}
    assert recipe.with_options({"strategy": "dpp"}).select.options == {}


def test_what_is_left_out_of_a_strategy_is_filled_in_and_survives_json():
    recipe = Recipe.of({"select": {"strategy": "mmr", "parts": [{"strategy": "random", "k": 2, "shared": True}]}})
    filled = recipe.select.filled()
    assert filled.options == {"weight": 0.5, "scaling": "raw"}
    assert filled.parts[0].options == {"static": False, "stratified": False}
    stored = Recipe.of({"select": asdict(filled)})
    assert Recipe.of(json.loads(json.dumps(stored.to_dict()))) == stored


@pytest.mark.parametrize(
    ("select", "message"),
    [
        ({"strategy": "best"}, r"select\.strategy = 'best'; expected one of top, random, fixed, mmr"),
        (
            {"strategy": "mmr", "options": {"lambda": 1}},
            r"key select\.options\.lambda; expected one of weight, scaling",
        ),
        ({"strategy": "mmr", "options": {"weight": 2}}, r"weight = 2\.0; expected a number from 0"),
        (
            {"strategy": "mmr", "options": {"scaling": "z"}},
            r"select\.options\.scaling = 'z'; expected one of raw, min-max",
        ),
        ({"strategy": "top", "options": {"weight": 1}}, r"key select\.options\.weight; expected no key here"),
        ({"parts": [{"strategy": "best"}]}, r"select\.parts\[0\]\.strategy = 'best'"),
        (
            {"parts": [{"strategy": "mmr", "shared": True}]},
            r"mmr for all queries at once; expected one of random, fixed",
        ),
        (
            {"parts": [{"strategy": "mmr", "kk": 1}]},
            r"key select\.parts\.kk; expected one of strategy, k, options, shared",
        ),
        ({"parts": {"strategy": "mmr"}}, r"select\.parts = .*; expected a list"),
        ({"candidates": 0}, r"select\.candidates = 0"),
    ],
)
def test_what_a_strategy_cannot_use_is_named_with_what_it_can(select, message):
    with pytest.raises(InvalidInput, match=message):
        Recipe.of({"select": select})

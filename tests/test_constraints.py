"""Constraints: what any strategy's choice keeps to, and what is told where it cannot."""

from __future__ import annotations

from collections import Counter
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retriever.errors import InvalidInput
from retriever.example import Example
from retriever.ranking.constrained import View, constrained
from retriever.ranking.constraints import Constraints
from retriever.ranking.strategies import STRATEGIES
from retriever.ranking.strategies.base import Candidates
from retriever.ranking.typed import section


class Stub:
    """A reader over given examples and vectors; it counts what is read."""

    def __init__(self, examples, vectors=None, query=None):
        self.all = examples
        self.matrix = np.eye(len(examples), dtype=np.float32) if vectors is None else np.float32(vectors)
        self.query = Example("q", "query")
        self.query_vector = np.ones(self.matrix.shape[1:], np.float32) if query is None else np.float32(query)
        self.query_terms = ("query",)
        self.read = 0

    def cosines(self, rows):
        return self.matrix[rows].astype(np.float64) @ self.query_vector.astype(np.float64)

    def vectors(self, rows):
        return self.matrix[rows]

    def examples(self, rows):
        self.read += 1
        return [self.all[row] for row in rows]

    def terms(self, examples):
        return [example.input_text.split() for example in examples]


def candidates(examples, vectors=None, query=None, relevance=None):
    count = len(examples)
    scores = np.linspace(1.0, 0.1, count) if relevance is None else np.array(relevance, dtype=np.float64)
    return Candidates(np.arange(count), scores, Stub(examples, vectors, query))


def choose(given_, k, name="top", before=(), options=None, enough=len, **rules):
    strategy = STRATEGIES[name]
    settings_ = section(strategy.options, options or {}, "options")

    def pick(places, count):
        return strategy.pick(View(given_, places), count, settings_)

    return constrained(pick, given_, k, Constraints(**rules), before=before, enough=enough)


def labelled(labels, **more):
    return [Example(str(i), f"input {i}", label=label, **more) for i, label in enumerate(labels)]


def test_without_constraints_the_choice_is_the_strategy_s_and_no_example_is_read():
    given_ = candidates(labelled("aabb"))
    found = choose(given_, 3)
    assert found.picks.places.tolist() == [0, 1, 2]
    assert (found.breaks, found.barred, found.unmet) == (((), (), ()), {}, ())
    assert given_.reader.read == 0
    assert Constraints().idle
    assert not Constraints(min_score=0.1).idle


def test_at_most_one_for_each_template():
    rows = [
        Example("0", "rivers over 5", "SELECT r FROM t WHERE x > 5"),
        Example("1", "rivers over 9", "SELECT r FROM t WHERE x > 9"),
        Example("2", "how many", "SELECT count(*) FROM t"),
        Example("3", "no output"),
        Example("4", "no output either"),
    ]
    found = choose(candidates(rows), 4, at_most={"template": 1})
    assert found.picks.places.tolist() == [0, 2, 3, 4]
    assert found.barred == {1: "at most 1 of one template"}


def test_a_limit_holds_for_labels_and_for_any_field():
    rows = labelled("aaab")
    assert choose(candidates(rows), 3, at_most={"label": 2}).picks.places.tolist() == [0, 1, 3]
    rows = [Example(str(i), "x", meta={"source": one}) for i, one in enumerate("wwxwx")]
    assert choose(candidates(rows), 2, at_most={"source": 1}).picks.places.tolist() == [0, 2]
    assert choose(candidates(rows), 2, at_most={"meta.source": 1}).picks.places.tolist() == [0, 2]


def test_who_has_several_values_counts_for_each():
    rows = [Example(str(i), "x", label=label) for i, label in enumerate([["a", "b"], "b", "a", "c"])]
    assert choose(candidates(rows), 2, at_most={"label": 1}).picks.places.tolist() == [0, 3]


def test_what_is_exhausted_is_filled_up_and_each_says_what_it_breaks():
    found = choose(candidates(labelled("aaab")), 4, at_most={"label": 1})
    assert found.picks.places.tolist() == [0, 3, 1, 2]
    assert found.breaks == ((), (), ("at most 1 of one label",), ("at most 1 of one label",))
    assert found.barred == {}
    fewer = choose(candidates(labelled("aaab")), 4, at_most={"label": 1}, backfill=False)
    assert fewer.picks.places.tolist() == [0, 3]
    assert fewer.barred == dict.fromkeys((1, 2), "at most 1 of one label")


def test_every_label_is_shown_where_k_is_enough_and_only_there():
    rows = labelled("aaabac")
    assert choose(candidates(rows), 3, every_label=True).picks.places.tolist() == [0, 3, 5]
    assert choose(candidates(rows), 4, every_label=True).picks.places.tolist() == [0, 1, 3, 5]
    few = choose(candidates(rows), 2, every_label=True)
    assert few.picks.places.tolist() == [0, 1]
    assert few.unmet == ()


def test_a_label_that_only_a_worse_candidate_leaves_room_for_is_still_shown():
    # The label a has one example, of source x; taking 0 first, of source x too, would leave a out.
    rows = [Example(str(i), "x", label=lab, meta={"source": s}) for i, (lab, s) in enumerate(["bx", "ax", "by"])]
    found = choose(candidates(rows), 2, every_label=True, at_most={"source": 1})
    assert found.picks.places.tolist() == [1, 2]
    assert found.unmet == ()


def test_so_many_distinct_values_of_a_field_or_what_is_lacking():
    rows = [Example(str(i), "x", meta={"language": one}) for i, one in enumerate(["en", "en", "en", "de", "fr"])]
    assert choose(candidates(rows), 3, at_least={"language": 2}).picks.places.tolist() == [0, 1, 3]
    assert choose(candidates(rows), 3, at_least={"language": 3}).picks.places.tolist() == [0, 3, 4]
    lacking = choose(candidates(rows), 4, at_least={"language": 4})
    assert len(lacking.picks) == 4
    assert lacking.unmet == ("3 of 4 distinct values of language",)


def test_near_copies_by_cosine_and_by_characters():
    vectors = [[1, 0], [1, 0], [0.8, 0.6], [0, 1]]
    rows = labelled("aaaa")
    assert choose(candidates(rows, vectors), 2, near=1.0).picks.places.tolist() == [0, 2]
    assert choose(candidates(rows, vectors), 2, near=0.8).picks.places.tolist() == [0, 3]
    texts = [Example(str(i), one) for i, one in enumerate(["Cancel my order!", "cancel my order", "where is it"])]
    found = choose(candidates(texts), 2, near=0.9, near_by="4-grams")
    assert found.picks.places.tolist() == [0, 2]
    assert found.barred == {1: "near copies of likeness 0.9"}


def test_bounds_on_score_and_trust_hold_even_where_fewer_remain():
    rows = [
        Example(str(i), "x", meta=meta) for i, meta in enumerate([{"trust": 1}, {"trust": 0.4}, {}, {"trust": True}])
    ]
    found = choose(candidates(rows), 4, min_trust=0.5)
    assert found.picks.places.tolist() == [0]
    assert found.barred == {1: "trust 0.4 below 0.5", 2: "trust None below 0.5", 3: "trust True below 0.5"}
    scored = choose(candidates(rows, relevance=[0.9, 0.5, 0.49, 0.1]), 4, min_score=0.5)
    assert scored.picks.places.tolist() == [0, 1]
    assert scored.barred[2] == "score 0.490 below 0.5"


def test_what_is_chosen_before_counts_and_is_not_chosen_again():
    found = choose(candidates(labelled("aabb")), 2, before=(1,), at_most={"label": 1}, backfill=False)
    assert found.picks.places.tolist() == [2]
    both = choose(candidates(labelled("aaab")), 1, before=(0,), every_label=True)
    assert both.picks.places.tolist() == [3]


def test_a_strategy_that_stops_by_itself_is_not_filled_up():
    vectors = [[1, 0], [1, 0], [0, 1], [0, 1]]
    given_ = candidates(labelled("aabb"), vectors, query=[1, 0])
    found = choose(given_, 4, "sift", options={"drop": 0.5}, at_most={"label": 1})
    assert found.picks.places.tolist() == [0]


def test_what_at_least_needs_is_kept_where_fewer_are_enough():
    kept = choose(candidates(labelled("aabb")), 4, enough=lambda places: 1, at_least={"label": 2})
    assert kept.picks.places.tolist() == [0, 1, 2]
    assert kept.unmet == ()
    every = choose(candidates(labelled("aabb")), 4, enough=lambda places: 1, every_label=True)
    assert every.picks.places.tolist() == [0, 1, 2]
    # b is shown by what came before; c is not to be had.
    lacking = choose(candidates(labelled("aaab")), 3, before=(3,), enough=lambda places: 0, at_least={"label": 3})
    assert lacking.picks.places.tolist() == [0]
    assert lacking.unmet == ("2 of 3 distinct values of label",)


def test_only_what_is_kept_bars_others():
    rows = labelled("ababc")
    whole = choose(candidates(rows), 3, at_most={"label": 1})
    assert whole.picks.places.tolist() == [0, 1, 4]
    assert whole.barred == dict.fromkeys((2, 3), "at most 1 of one label")
    kept = choose(candidates(rows), 3, enough=lambda places: 1, at_most={"label": 1})
    assert kept.picks.places.tolist() == [0]
    assert kept.barred == {2: "at most 1 of one label"}


def test_what_is_filled_up_and_then_not_needed_is_barred_again():
    kept = choose(candidates(labelled("aab")), 3, enough=lambda places: 2, at_most={"label": 1})
    assert kept.picks.places.tolist() == [0, 2]
    assert (kept.breaks, kept.barred) == (((), ()), {1: "at most 1 of one label"})


def masked_mmr(relevance, vectors, k, weight, labels, most):
    """MMR that masks what is forbidden at each step, written out."""
    chosen = []
    while len(chosen) < k:
        counts = Counter(labels[i] for i in chosen)
        free = [i for i in range(len(labels)) if i not in chosen and counts[labels[i]] < most]
        if not free:
            break
        value = [
            weight * relevance[i] - (1 - weight) * max((vectors[i] @ vectors[j] for j in chosen), default=0.0)
            for i in free
        ]
        best = max(value)
        chosen.append(next(i for i, one in zip(free, value, strict=True) if one >= best - 1e-6))
    return chosen


@settings(max_examples=150)
@given(st.integers(1, 10), st.integers(0, 8), st.integers(1, 2), st.integers(0, 10**6), st.floats(0.1, 0.9))
def test_mmr_under_a_limit_equals_mmr_that_masks_at_every_step(count, k, most, seed, weight):
    random = np.random.default_rng(seed)
    vectors = random.normal(size=(count, 5)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    query = vectors[0]
    labels = random.choice(list("abc"), count).tolist()
    given_ = candidates(labelled(labels), vectors, query)
    found = choose(given_, k, "mmr", options={"weight": weight}, at_most={"label": most}, backfill=False)
    wide = vectors.astype(np.float64)
    wanted = masked_mmr(wide @ wide[0], wide, k, weight, labels, most)
    assert found.picks.places.tolist() == wanted


NAMES = ["top", "random", "mmr", "dpp", "sift", "coverage", "balanced", "cluster", "complexity"]
rules = st.fixed_dictionaries(
    {
        "at_most": st.dictionaries(st.sampled_from(["label", "source"]), st.integers(1, 3), max_size=2),
        "at_least": st.dictionaries(st.sampled_from(["label", "source"]), st.integers(1, 3), max_size=1),
        "every_label": st.booleans(),
        "near": st.none() | st.just(0.9),
        "backfill": st.booleans(),
    }
)
cells = st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("xyz"), st.integers(0, 3)), max_size=7)


def keeps(chosen, table, asked):
    for name, most in asked["at_most"].items():
        column = 0 if name == "label" else 1
        if any(count > most for count in Counter(table[place][column] for place in chosen).values()):
            return False
    return asked["near"] is None or len({table[place][2] for place in chosen}) == len(chosen)


def reaches(chosen, table, asked, k):
    wanted = dict(asked["at_least"])
    labels = {row[0] for row in table}
    if asked["every_label"] and len(labels) <= k:
        wanted["label"] = max(len(labels), wanted.get("label", 0))
    columns = {"label": 0, "source": 1}
    return all(len({table[place][columns[name]] for place in chosen}) >= least for name, least in wanted.items())


@settings(max_examples=300)
@given(st.sampled_from(NAMES), cells, st.integers(0, 6), rules)
def test_constraints_hold_with_every_strategy_wherever_a_choice_exists_that_keeps_them(name, table, k, asked):
    rows = [Example(str(i), f"n{n}", label=a, meta={"source": b}) for i, (a, b, n) in enumerate(table)]
    vectors = np.eye(4, dtype=np.float32)[[row[2] for row in table]].reshape(-1, 4)
    found = choose(candidates(rows, vectors, np.ones(4) / 2), k, name, **asked)
    places = found.picks.places.tolist()
    sound = [place for place, breaks in zip(places, found.breaks, strict=True) if not breaks]
    assert len(set(places)) == len(places) <= min(k, len(rows))
    assert keeps(sound, table, asked)
    if asked["backfill"]:
        assert len(places) == min(k, len(rows))
    else:
        assert sound == places
    possible = any(
        keeps(some, table, asked) and reaches(some, table, asked, k)
        for size in range(min(k, len(rows)) + 1)
        for some in combinations(range(len(rows)), size)
    )
    if possible:
        assert reaches(places, table, asked, k)
    assert reaches(places, table, asked, k) == (found.unmet == ())
    earlier = [places[:i] for i in range(len(places))]
    assert all(rival == -1 or rival in e for rival, e in zip(found.picks.against, earlier, strict=True))


def breaks_beside(place, kept, table, asked):
    for name, most in asked["at_most"].items():
        column = 0 if name == "label" else 1
        if sum(table[other][column] == table[place][column] for other in kept) >= most:
            return True
    return asked["near"] is not None and any(table[other][2] == table[place][2] for other in kept)


@settings(max_examples=300)
@given(st.sampled_from(NAMES), cells, st.integers(0, 6), st.integers(0, 6), rules)
def test_where_fewer_are_enough_the_first_are_kept_and_lack_no_more_than_all(name, table, k, few, asked):
    rows = [Example(str(i), f"n{n}", label=a, meta={"source": b}) for i, (a, b, n) in enumerate(table)]
    vectors = np.eye(4, dtype=np.float32)[[row[2] for row in table]].reshape(-1, 4)
    given_ = candidates(rows, vectors, np.ones(4) / 2)
    whole = choose(given_, k, name, **asked)
    kept = choose(given_, k, name, enough=lambda places: few, **asked)
    places, all_places = kept.picks.places.tolist(), whole.picks.places.tolist()
    assert places == all_places[: len(places)]
    assert kept.breaks == whole.breaks[: len(places)]
    assert kept.unmet == whole.unmet
    wanted = dict(asked["at_least"])
    labels = len({row[0] for row in table})
    if asked["every_label"] and wanted.get("label", 0) <= labels <= k:
        wanted["label"] = labels
    shown = [
        {key: min(least, len({table[p][key == "source"] for p in all_places[:cut]})) for key, least in wanted.items()}
        for cut in range(len(all_places) + 1)
    ]
    assert len(places) == max(min(few, len(all_places)), shown.index(shown[-1]))
    for place, why in kept.barred.items():
        assert place not in places
        assert why.startswith("the places left") or breaks_beside(place, places, table, asked)
    still = {place for place in whole.barred if breaks_beside(place, places, table, asked)}
    assert still <= kept.barred.keys()


@pytest.mark.parametrize(
    ("options", "seen"),
    [
        ({"at_most": {"label": 0}}, "constraints.at_most: 'label' = 0"),
        ({"at_most": {"label": True}}, "constraints.at_most: 'label' = True"),
        ({"at_least": {"": 1}}, "constraints.at_least: '' = 1"),
        ({"near": 1.5}, "constraints.near = 1.5"),
        ({"near_by": "words"}, "constraints.near_by = 'words'"),
        ({"min_trust": float("nan")}, "constraints.min_trust = nan"),
        ({"min_score": float("inf")}, "constraints.min_score = inf"),
    ],
)
def test_settings_that_cannot_be_used_are_named(options, seen):
    with pytest.raises(InvalidInput) as caught:
        Constraints(**options)
    assert caught.value.seen == seen


def test_constraints_are_a_section_of_a_recipe():
    made = section(Constraints, {"at_most": {"template": 1}, "near": 1, "every_label": True}, "constraints")
    assert made == Constraints(at_most={"template": 1}, near=1.0, every_label=True)
    with pytest.raises(InvalidInput, match=r"constraints\.most"):
        section(Constraints, {"most": 1}, "constraints")

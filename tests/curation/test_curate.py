"""`curate` over real indexes with hand-made vectors: each strategy, what may be chosen, and what comes last."""

import json
import math
import re
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retriever.curation import curate as module
from retriever.curation.curate import CURATION_STRATEGIES, CurateSettings, Curation, curate
from retriever.curation.facility import facility
from retriever.curation.kcenter import kcenter
from retriever.curation.spread import spread
from retriever.curation.votek import votek
from retriever.errors import InvalidInput
from retriever.example import Example
from retriever.formats import Fields
from retriever.ranking.strategies.cluster import cluster
from retriever.ranking.strategies.dpp import dpp
from retriever.ranking.typed import section
from tests.strategies.strategy_cases import dot, first_best, fractions, gaussian, is_selection, many, matrices
from tests.support import build, outputs_by_threads

PURE = {"votek": votek, "kcenter": kcenter, "facility": facility, "dpp": spread, "cluster": cluster}
every_strategy = pytest.mark.parametrize("strategy", CURATION_STRATEGIES)


def spelled_out(dim):
    """An embedder for which a text is its vector: `1 0` and `2 0` are different texts of one direction."""

    def embed(texts):
        vectors = np.ones((len(texts), dim), dtype=np.float32)  # of sentences, by which a build tries its embedder
        for vector, text in zip(vectors, texts, strict=True):
            if re.fullmatch(r"[-+.e\d ]+", text):
                vector[:] = [float(word) for word in text.split()]
        return vectors

    return embed


def pool_of(texts, path, **meta):
    """An index over these texts, with ids e0, e1, and so on, and a value of each further field for each."""
    rows = [
        {"id": f"e{i}", "input": text, "meta": {name: values[i] for name, values in meta.items()}}
        for i, text in enumerate(texts)
    ]
    dim = len(texts[0].split()) if texts else 2
    return build(rows, path, embedder=spelled_out(dim), weight=0.5, output=None)


def view(index):
    return index._live.snapshot


def written(vectors):
    return [" ".join(repr(float(x)) for x in row) for row in vectors]


def chosen(index, strategy="votek", budget=50, **settings):
    return curate(view(index), CurateSettings(strategy, budget, **settings))


@pytest.fixture(scope="module")
def forty(tmp_path_factory):
    """40 examples in general position; `even` says whether the number is."""
    path = tmp_path_factory.mktemp("forty") / "index"
    with pool_of(written(gaussian(40, 12)), path, even=[i % 2 == 0 for i in range(40)]) as index:
        yield index


def vectors_of(index, places):
    return view(index).index.dense.vectors(np.array(places, dtype=np.int64))


# What each strategy takes.


@every_strategy
def test_a_strategy_is_its_pure_function_over_the_vectors(strategy, forty):
    found = chosen(forty, strategy, 12)
    pure = PURE[strategy](vectors_of(forty, range(40)), 12)
    assert found.ids == tuple(f"e{place}" for place in pure.places)
    assert [pick.rank for pick in found.picks] == list(range(1, 13))
    assert [pick.gain for pick in found.picks] == [
        gain if math.isfinite(gain) else None for gain in pure.gains.tolist()
    ]
    assert (found.strategy, found.budget, found.eligible, found.notes) == (strategy, 12, 40, ())


@every_strategy
def test_a_filter_leaves_the_pure_function_over_what_passes(strategy, forty):
    found = chosen(forty, strategy, 7, where="even == true")
    pure = PURE[strategy](vectors_of(forty, range(0, 40, 2)), 7)
    assert found.ids == tuple(f"e{2 * place}" for place in pure.places)
    assert found.eligible == 20


@pytest.mark.parametrize("strategy", ["votek", "kcenter", "facility", "dpp"])
def test_held_examples_stand_for_earlier_choices(strategy, forty):
    twelve = chosen(forty, strategy, 12).ids
    rest = chosen(forty, strategy, 7, held=twelve[:5])
    assert rest.ids == twelve[5:]
    assert rest.eligible == 35
    # Also where the filter would not let them be chosen.
    odd = tuple(f"e{place}" for place in range(1, 12, 2))
    rows = sorted([*range(0, 40, 2), *range(1, 12, 2)])
    pure = PURE[strategy](vectors_of(forty, rows), 4, held=[rows.index(place) for place in range(1, 12, 2)])
    found = chosen(forty, strategy, 4, where={"even": True}, held=odd)
    assert found.ids == tuple(f"e{rows[place]}" for place in pure.places)


def test_the_options_of_a_strategy_reach_it(forty):
    vectors = vectors_of(forty, range(40))
    found = chosen(forty, "votek", 9, options={"neighbours": 7, "rho": 2})
    assert found.ids == tuple(f"e{place}" for place in votek(vectors, 9, neighbours=7, rho=2.0).places)
    found = chosen(forty, "cluster", 9, options={"seed": 5})
    assert found.ids == tuple(f"e{place}" for place in cluster(vectors, 9, seed=5).places)
    assert found.ids != chosen(forty, "cluster", 9).ids


def test_two_choices_of_each_strategy_by_hand(tmp_path):
    angles = np.radians([0, 10, 20, 90, 120])
    with pool_of(written(np.stack([np.cos(angles), np.sin(angles)], axis=1)), tmp_path / "i") as index:
        # 20° covers cos 20° + cos 10° + 1 + cos 70° = 3.267, more than 10° with 3.143. Then 90° adds 1 − .342 to itself
        # and .866 to 120°, which adds .866 − .342 to 90° and 1 to itself: as much, and the lower row is taken.
        by_cover = chosen(index, "facility", 2)
        assert by_cover.ids == ("e2", "e3")
        assert [pick.gain for pick in by_cover.picks] == pytest.approx([3.26652, 1.52401], abs=1e-5)
        # The mean lies at 44°: 20° is nearest to it, and 120° is farthest from that, at 2 sin 50°.
        by_distance = chosen(index, "kcenter", 2)
        assert by_distance.ids == ("e2", "e4")
        assert [pick.gain for pick in by_distance.picks] == [
            None,
            pytest.approx(2 * math.sin(math.radians(50)), abs=1e-6),
        ]
        # Every variance is 1, so the lowest row is first; then 120° leaves 1 − ((1 + cos 120°) / 2)² = 15/16.
        by_volume = chosen(index, "dpp", 2)
        assert by_volume.ids == ("e0", "e4")
        assert [pick.gain for pick in by_volume.picks] == pytest.approx([0, math.log(15 / 16)], abs=1e-6)
        # Two clusters: 0° to 20° with its centre at 10°, and 90° with 120°, as near to their centre as one another.
        assert set(chosen(index, "cluster", 2).ids) == {"e1", "e3"}
        # Less the mean of all, 0° and 20° are each nearest to 10°: two votes, and nobody has more.
        assert chosen(index, "votek", 1, options={"neighbours": 1}).ids == ("e1",)


# What may be chosen, and what comes last.


@every_strategy
def test_removed_examples_are_not_chosen_and_added_ones_are(strategy, tmp_path):
    vectors = gaussian(14, 4, 3)
    with pool_of(written(vectors[:10]), tmp_path / "i") as index:
        index.remove(["e2", "e5"])
        more = [Example(f"e{i}", text) for i, text in enumerate(written(vectors[10:]), start=10)]
        index.add(more, fields=Fields(output=None))
        found = chosen(index, strategy, 6)
        present = [place for place in range(14) if place not in (2, 5)]
        pure = PURE[strategy](vectors_of(index, present), 6)
        assert found.ids == tuple(f"e{present[place]}" for place in pure.places)
        assert found.eligible == 12
        assert set(chosen(index, strategy, 50).ids) == {f"e{place}" for place in present}


@every_strategy
def test_the_same_text_comes_again_only_when_all_others_are_chosen(strategy, tmp_path):
    texts = ["1 0 0", "0 1 0", "1 0 0", "0 0 1", "0 1 0", "1 0 0", ".6 .8 0"]
    with pool_of(texts, tmp_path / "i") as index:
        found = chosen(index, strategy, 6)
        assert set(found.ids[:4]) == {"e0", "e1", "e3", "e6"}
        assert found.ids[4:] == ("e2", "e4")
        assert [pick.gain for pick in found.picks[4:]] == [None, None]
        assert found.notes == ("2 of 6 repeat a text that was chosen before or held: nothing else was left",)
        distinct = PURE[strategy](vectors_of(index, [0, 1, 3, 6]), 4)
        assert found.ids[:4] == tuple(f"e{[0, 1, 3, 6][place]}" for place in distinct.places)
        assert chosen(index, strategy, 4).notes == ()


@every_strategy
def test_the_text_of_a_held_example_comes_last(strategy, tmp_path):
    with pool_of(["1 0", "1 0", "0 1", "1 0", ".6 .8"], tmp_path / "i") as index:
        found = chosen(index, strategy, 3, held=("e1",))
        assert set(found.ids[:2]) == {"e2", "e4"}
        assert found.ids[2] == "e0"
        assert found.eligible == 4
        # An example that is held twice over, by its id and by a copy, is one text.
        assert chosen(index, strategy, 2, held=("e1", "e3", "e1")).ids == found.ids[:2]


@every_strategy
@pytest.mark.parametrize("budget", [0, 3, 40, 41, 500])
def test_as_many_as_there_are_and_no_more_than_asked_for(strategy, budget, forty):
    found = chosen(forty, strategy, budget, held=("e7", "e8"))
    assert is_selection([int(name[1:]) for name in found.ids], 40, min(budget, 38))
    assert not {"e7", "e8"} & set(found.ids)
    fewer = f"38 of {budget}: the pool and the filter leave no more"
    assert (fewer in found.notes) == (budget > 38)


@every_strategy
def test_a_filter_that_nothing_passes_and_a_pool_without_examples_leave_nothing(strategy, forty, tmp_path):
    none = Curation(strategy, 5, (), 0, ("0 of 5: the pool and the filter leave no more",))
    assert chosen(forty, strategy, 5, where="even == 3") == none
    with pool_of([], tmp_path / "i") as index:
        assert chosen(index, strategy, 5) == none


def test_what_adds_nothing_to_the_span_is_said_and_has_no_gain(tmp_path):
    # In the plane the kernel (1 + cosine) / 2 has rank 3.
    with pool_of(["1 0", "0 1", "-1 0", ".6 .8", ".8 .6"], tmp_path / "i") as index:
        found = chosen(index, "dpp", 5)
        assert [pick.gain is None for pick in found.picks] == [False] * 3 + [True] * 2
        assert found.ids[3:] == tuple(sorted(found.ids[3:]))
        assert found.notes == (
            "2 of 5 add nothing to what the others span, for the vectors have no more independent directions: these"
            " come in pool order",
        )


def test_clusters_with_a_held_example_are_served_last(tmp_path):
    # Three groups, far apart; one of the first is held.
    texts = ["1 0 0", "1 .01 0", "1 0 .01", "0 1 0", "0 1 .01", "0 0 1", ".01 0 1"]
    with pool_of(texts, tmp_path / "i") as index:
        for seed in range(5):
            found = chosen(index, "cluster", 6, held=("e1",), options={"seed": seed})
            assert len(set(found.ids)) == 6
        groups = [chosen(index, "cluster", 2, held=("e1",), options={"seed": seed}).ids for seed in range(5)]
        assert all({name in ("e3", "e4") for name in ids} == {True, False} for ids in groups)
        assert all(not {"e0", "e2"} & set(ids) for ids in groups)


# The greedy log-determinant, which `dpp` is.


def open_variances(kernel, members):
    """Of each row given the members: det K of them with it over det K of them, in fractions."""
    inner = determinant([[kernel[a][b] for b in members] for a in members])
    return [
        determinant([[kernel[a][b] for b in [*members, i]] for a in [*members, i]]) / inner for i in range(len(kernel))
    ]


def determinant(matrix):
    if not matrix:
        return Fraction(1)
    (pivot, *first), *rest = matrix
    if not pivot:  # of a kernel: its row is 0 then
        return Fraction(0)
    return pivot * determinant([[x - row[0] / pivot * y for x, y in zip(row[1:], first, strict=True)] for row in rest])


@many
@given(matrices(7), st.integers(0, 8), st.integers(0, 3))
def test_spread_is_the_greedy_search_over_determinants(vectors, budget, held):
    rows = fractions(vectors)
    kernel = [[(1 + dot(a, b)) / 2 for b in rows] for a in rows]
    held = list(range(min(held, len(rows))))
    taken, members, gains = list(held), [], []
    for place in held:
        if open_variances(kernel, members)[place] > 1e-10:
            members.append(place)
    while len(taken) < min(budget + len(held), len(rows)):
        variances = open_variances(kernel, members)
        gain = {i: math.log(v) for i, v in enumerate(variances) if v > 1e-10 and i not in taken}
        place = first_best(gain) if gain else min(set(range(len(rows))) - set(taken))
        gains.append(gain.get(place, -math.inf))
        taken.append(place)
        if gain:
            members.append(place)
    found = spread(vectors, budget, held=held)
    assert found.places.tolist() == taken[len(held) :]
    assert found.gains == pytest.approx(gains, abs=1e-5)


@pytest.mark.parametrize("held", [0, 3])
@pytest.mark.parametrize("seed", range(10))
def test_spread_agrees_with_the_log_determinants_of_linear_algebra(seed, held):
    vectors = gaussian(14, 8, seed)
    kernel = (1 + vectors.astype(np.float64) @ vectors.astype(np.float64).T) / 2
    taken = list(range(held))
    for _ in range(5):
        free = [place for place in range(14) if place not in taken]
        volumes = [np.linalg.slogdet(kernel[np.ix_([*taken, one], [*taken, one])])[1] for one in free]
        taken.append(free[int(np.argmax(np.array(volumes) >= max(volumes) - 1e-6))])
    assert spread(vectors, 5, held=range(held)).places.tolist() == taken[held:]


def test_spread_is_dpp_where_all_are_as_relevant():
    vectors = gaussian(60, 8)
    assert spread(vectors, 9).places.tolist() == dpp(np.zeros(60), vectors, 9).places.tolist()


def test_spread_takes_no_more_than_rank_many_into_its_span():
    found = spread(gaussian(50, 4), 20)
    assert np.isfinite(found.gains).sum() == 5
    assert found.places[5:].tolist() == sorted(set(range(50)) - set(found.places[:5].tolist()))[:15]
    # Held rows use the rank up as well, those in the span of others do not.
    assert np.isfinite(spread(gaussian(50, 4), 20, held=range(5)).gains).sum() == 0
    doubled = np.concatenate([gaussian(2, 4), gaussian(2, 4), gaussian(40, 4, 1)])
    assert np.isfinite(spread(doubled, 20, held=range(4)).gains).sum() == 3


# Settings, results, limits.


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"strategy": "best"}, "curation strategy 'best'; expected one of votek, kcenter, facility, dpp, cluster"),
        ({"budget": -1}, "budget = -1; expected 0 or more"),
        ({"options": {"k": 3}}, r"votek\.options\.k; expected one of neighbours, rho"),
        ({"options": {"neighbours": 0}}, "neighbours = 0; expected 1 or more"),
        ({"options": {"neighbours": "all"}}, r"votek\.options\.neighbours = 'all'; expected a whole number"),
        ({"options": {"rho": 0.5}}, r"rho = 0\.5; expected a number from 1"),
        ({"strategy": "kcenter", "options": {"seed": 3}}, r"kcenter\.options\.seed; expected no key"),
        ({"strategy": "cluster", "options": {"rho": 3}}, r"cluster\.options\.rho; expected one of seed"),
        ({"strategy": "cluster", "options": {"seed": -1}}, "seed = -1"),
    ],
)
def test_settings_that_cannot_be_used_are_errors_that_name_what_can(settings, message):
    with pytest.raises(InvalidInput, match=message):
        CurateSettings(**settings)


def test_settings_can_be_read_from_plain_data():
    data = {"strategy": "cluster", "budget": 3, "where": {"a": 1}, "held": ["x"], "options": {"seed": 1}}
    read = section(CurateSettings, data, "curate")
    assert read == CurateSettings("cluster", 3, {"a": 1}, ("x",), {"seed": 1})


def test_a_held_id_must_be_in_the_pool(tmp_path):
    with pool_of(["1 0", "0 1"], tmp_path / "i") as index:
        index.remove(["e1"])
        for unknown in ("e1", "e2"):
            with pytest.raises(InvalidInput, match=f"held example '{unknown}'; expected the id of an example"):
                chosen(index, held=("e0", unknown))


def test_a_filter_that_is_wrong_is_an_error(forty):
    with pytest.raises(InvalidInput, match="filter"):
        chosen(forty, where="even ==")


def test_the_result_is_json_with_the_examples_in_it(tmp_path):
    with pool_of(["1 0", "0 1"], tmp_path / "i", kind=["a", "b"]) as index:
        found = chosen(index, "kcenter", 3).to_dict()
    assert json.loads(json.dumps(found, allow_nan=False)) == {
        "strategy": "kcenter",
        "budget": 3,
        "picks": [
            {"id": "e0", "rank": 1, "gain": None, "example": {"id": "e0", "input": "1 0", "meta": {"kind": "a"}}},
            {
                "id": "e1",
                "rank": 2,
                "gain": pytest.approx(math.sqrt(2)),
                "example": {"id": "e1", "input": "0 1", "meta": {"kind": "b"}},
            },
        ],
        "eligible": 2,
        "notes": ["2 of 3: the pool and the filter leave no more"],
    }


@every_strategy
def test_progress_ends_with_all_that_there_is(strategy, forty):
    told = []
    curate(view(forty), CurateSettings(strategy, 5), lambda *one: told.append(one))
    ends = {stage: (done, total) for stage, done, total in told}
    assert ends
    assert all(done == total for done, total in ends.values())


@pytest.mark.parametrize(
    ("strategy", "budget", "limit", "most", "message"),
    [
        ("votek", 10, "MOST_COMPARED", 40, "votek over 40 different texts; expected at most 39"),
        ("facility", 10, "MOST_COMPARED", 40, "facility over 40 different texts; expected at most 39"),
        ("votek", 10, "MOST_STEPS", 440, "votek of 11 among 40 .*, held ones included; expected at most 10 of so many"),
        ("kcenter", 10, "MOST_STEPS", 440, "kcenter of 11 among 40"),
        ("facility", 10, "MOST_STEPS", 440, "facility of 11 among 40"),
        ("dpp", 30, "MOST_CELLS", 520, "dpp of 13 among 40"),  # 12 components have a kernel of rank 13
        ("cluster", 10, "MOST_CELLS", 440, "cluster of 11 among 40"),
        ("cluster", 500, "MOST_CELLS", 1600, "cluster of 40 among 40"),
    ],
)
def test_what_would_take_hours_is_refused_at_once(strategy, budget, limit, most, message, forty, monkeypatch):
    monkeypatch.setattr(module, limit, most)
    assert len(chosen(forty, strategy, budget, held=("e3",)).picks) == min(budget, 39)
    monkeypatch.setattr(module, limit, most - 1)
    with pytest.raises(InvalidInput, match=message):
        chosen(forty, strategy, budget, held=("e3",))


def test_any_number_of_threads_gives_the_same_bits():
    code = (
        "import sys; sys.path.insert(0, 'tests/strategies')\n"
        "from strategy_cases import gaussian\n"
        "from retriever.curation.curate import CURATION_STRATEGIES, CurateSettings\n"
        "for strategy in CURATION_STRATEGIES:\n"
        "    method = CurateSettings(strategy).method()\n"
        "    found = method.choose(gaussian(700, 384), 20, [3, 9], lambda *told: None)\n"
        "    print(found.places.tolist(), [gain.hex() for gain in found.gains.tolist()])"
    )
    [printed] = outputs_by_threads(code, 1, 2)
    assert len(printed.splitlines()) == len(CURATION_STRATEGIES)

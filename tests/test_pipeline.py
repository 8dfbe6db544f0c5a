"""The ranker against a brute-force oracle: fuse the unblocked rows only, sort all of them, cut."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from indexes.channels import Fusion, Query
from indexes.dense import DenseIndex, Segment
from indexes.hybrid import HybridIndex
from indexes.lexical import BM25Index
from indexes.postings import Postings
from retriever.example import Example
from retriever.ranking.adaptive import by_elbow, by_threshold
from retriever.ranking.pipeline import Lookup, Ranked, rank
from retriever.ranking.recipe import Recipe
from retriever.ranking.seeding import permutation
from retriever.ranking.strategies import STRATEGIES

ROWS, DIM = 60, 4
TERMS = [f"t{i}" for i in range(8)]


def make(seed: int) -> tuple[HybridIndex, np.ndarray, list[list[str]], Query]:
    random = np.random.Generator(np.random.PCG64(seed))
    vectors = random.standard_normal((ROWS + 1, DIM)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors[7] = vectors[3]  # the same direction twice: a tie that the row decides
    documents = [[TERMS[j] for j in random.integers(0, 8, size=random.integers(1, 6))] for _ in range(ROWS)]
    documents[7] = documents[3]
    index = HybridIndex(DenseIndex([Segment.of(vectors[:-1])]), BM25Index([Postings.from_documents(documents)]))
    return index, vectors[:-1], documents, Query(vectors[-1], ("t0", "t1", "t2"))


POOLS = [make(seed) for seed in range(3)]


def bm25(documents: list[list[str]], terms: tuple[str, ...]) -> np.ndarray:
    """BM25 in the variant `lucene`, written down from its formula."""
    lengths = np.array([len(document) for document in documents])
    scores = np.zeros(len(documents))
    for term in terms:
        counts = np.array([document.count(term) for document in documents], dtype=float)
        containing = int((counts > 0).sum())
        idf = np.log(1 + (len(documents) - containing + 0.5) / (containing + 0.5))
        scores += idf * counts * 2.5 / (counts + 1.5 * (0.25 + 0.75 * lengths / lengths.mean()))
    return scores


def oracle(pool: int, fusion: Fusion, blocked: frozenset[int], rows: list[int]) -> list[tuple[int, float]]:
    """All unblocked rows with their fused scores, best first."""
    _, vectors, documents, query = POOLS[pool]
    left = np.array([row for row in rows if row not in blocked], dtype=int)
    if not len(left):
        return []
    dense = (vectors[left].astype(float) * query.vector.astype(float)).sum(axis=1)
    lexical = bm25(documents, query.terms)[left]
    dense_part = (dense + 1) / (dense.max() + 1)
    lexical_part = lexical / lexical.max() if lexical.max() > 0 else np.zeros(len(left))
    if fusion.mode != "hybrid":
        fused = dense if fusion.mode == "dense" else lexical
    elif fusion.rule == "rrf":
        fused = np.zeros(len(left))
        for weight, channel in ((fusion.weight, dense), (1 - fusion.weight, lexical)):
            for place, at in enumerate(sorted(range(len(left)), key=lambda i: (-round(channel[i], 12), i)), start=1):
                fused[at] += 2 * weight / (fusion.rrf_k + place)
    else:
        fused = fusion.weight * dense_part + (1 - fusion.weight) * lexical_part
    order = sorted(range(len(left)), key=lambda i: (-round(fused[i], 12), left[i]))
    return [(int(left[i]), float(fused[i])) for i in order]


def run(
    pool: int,
    fusion: Fusion,
    blocked: frozenset[int],
    *,
    fixed=(),
    eligible=None,
    query_id="q",
    shared=(),
    rerank=None,
    sections=None,
    rescore=None,
    **select,
) -> Ranked:
    index, _, _, query = POOLS[pool]
    asked: list[int] = []

    def check(rows) -> list[str | None]:
        asked.extend(rows.tolist())
        return [f"blocked {row}" if row in blocked else None for row in rows.tolist()]

    [scores] = index.score([query], [eligible])
    recipe = Recipe.of(
        {"select": {**select, "fixed": [str(row) for row in fixed]}, "rerank": rerank or {}, **(sections or {})}
    )
    ranked = rank(index, scores, recipe, fusion=fusion, lookup=reads(pool, query_id, shared, rescore), check=check)
    assert len(asked) == len(set(asked))  # the guard never looks at a row twice
    assert ranked.blocked == {row: f"blocked {row}" for row in asked if row in blocked}
    return ranked


def fixed_of(ranked: Ranked) -> int:
    return sum(choice.origin == "fixed" for choice in ranked.choices)


def rows_of(ranked: Ranked) -> list[int]:
    return ranked.hits.rows.tolist()


class Reads:
    """What strategies may read of one of the pools."""

    def __init__(self, pool: int, query_id: str = "q") -> None:
        self.index, self.all_vectors, self.documents, query = POOLS[pool]
        self.query = Example(query_id, " ".join(query.terms))
        self.query_vector, self.query_terms = query.vector, query.terms

    def cosines(self, rows):
        return self.index.dense.exact(rows, self.query_vector)

    def vectors(self, rows):
        return self.all_vectors[rows]

    def examples(self, rows):
        return [Example(str(row), " ".join(self.documents[row]), label=f"l{row % 3}") for row in rows]

    def terms(self, examples):
        return [example.input_text.split() for example in examples]


def reads(pool: int, query_id: str = "q", shared=(), asked=None) -> Lookup:
    def rescore(rows):
        assert len(rows)  # a model is not asked about nothing
        if asked is not None:
            asked.extend(rows.tolist())
        return rescored(rows)

    return Lookup(
        Reads(pool, query_id),
        named=lambda ids: np.array([int(identity) for identity in ids], dtype=np.int64),
        shared=lambda part: np.array(shared[: part.k], dtype=np.int64),
        rescore=rescore,
    )


def rescored(rows):
    """A reranker that has nothing to do with the fused scores, and has ties."""
    return (np.asarray(rows) * 7 % 10).astype(np.float64)


pools = st.sampled_from(range(len(POOLS)))
fusions = st.builds(
    Fusion,
    st.sampled_from(["hybrid", "hybrid", "dense", "lexical"]),
    st.sampled_from([0.1, 0.3, 0.5, 0.8]),
    st.just("convex"),
)
rank_fusions = st.builds(
    Fusion, st.just("hybrid"), st.sampled_from([0.1, 0.5, 0.8]), st.just("rrf"), st.sampled_from([1, 60])
)
blocks = st.sampled_from([0.0, 0.2, 0.5, 0.9, 1.0]).flatmap(
    lambda share: st.lists(st.floats(0, 1, exclude_max=True), min_size=ROWS, max_size=ROWS).map(
        lambda drawn: frozenset(row for row, value in enumerate(drawn) if value < share)
    )
)


def leading(pool: int, count: int) -> frozenset[int]:
    """The rows that stand first in either channel: those whose removal moves the scale."""
    everything = list(range(ROWS))
    return frozenset(
        row for mode in ("dense", "lexical") for row, _ in oracle(pool, Fusion(mode), frozenset(), everything)[:count]
    )


@settings(max_examples=150)
@given(pools, fusions, blocks, st.integers(0, 70), st.integers(0, 10))
def test_the_top_k_is_that_of_the_fusion_over_the_unblocked_rows_alone(pool, fusion, blocked, k, leaders):
    blocked |= leading(pool, leaders)
    ranked = run(pool, fusion, blocked, k=k)
    wanted = oracle(pool, fusion, blocked, list(range(ROWS)))[:k]
    assert rows_of(ranked) == [row for row, _ in wanted]
    np.testing.assert_allclose(ranked.hits.fused, [score for _, score in wanted], rtol=0, atol=1e-12)
    assert fixed_of(ranked) == 0


@settings(max_examples=100)
@given(pools, fusions, blocks, st.integers(0, 30), st.integers(1, 70), st.sampled_from([0.0, 0.4, 1.0]))
def test_a_reranker_sorts_the_best_unblocked_rows_again_and_leaves_the_others_behind_them(
    pool, fusion, blocked, k, depth, weight
):
    ranked = run(pool, fusion, blocked, k=k, rerank={"by": "maxsim", "depth": depth, "weight": weight})
    fused = oracle(pool, fusion, blocked, list(range(ROWS)))
    head, tail = fused[:depth], fused[depth:]

    def share(value: float, among: list[float]) -> float:
        low, high = min(among), max(among)
        return (value - low) / (high - low) if high > low else 0.0

    again = [float(rescored(row)) for row, _ in head]
    relevance = {
        row: round(weight * share(own, again) + (1 - weight) * share(score, [s for _, s in head]), 12)
        for (row, score), own in zip(head, again, strict=True)
    }
    wanted = [*sorted(relevance, key=lambda row: (-relevance[row], row)), *(row for row, _ in tail)][:k]
    assert rows_of(ranked) == wanted
    for choice in ranked.choices:
        if choice.row in relevance:
            assert choice.rescored == rescored(choice.row)
            assert choice.relevance == pytest.approx(relevance[choice.row], abs=1e-9)
        else:
            assert (choice.rescored, choice.relevance) == (None, None)


def test_a_strategy_sees_the_relevance_that_the_reranker_gives():
    options = {"strategy": "mmr", "options": {"weight": 1.0, "scaling": "min-max"}, "k": 5}
    by_reranker = run(0, Fusion(), frozenset(), rerank={"by": "maxsim", "depth": ROWS}, **options)
    top = run(0, Fusion(), frozenset(), rerank={"by": "maxsim", "depth": ROWS}, k=5)
    assert rows_of(by_reranker) == rows_of(top)
    assert rows_of(by_reranker) != rows_of(run(0, Fusion(), frozenset(), **options))


def test_mmr_weighs_what_the_reranker_says_even_where_it_would_take_cosines():
    options = {"strategy": "mmr", "options": {"weight": 1.0}, "k": 5}
    again = run(0, Fusion(), frozenset(), rerank={"by": "maxsim", "depth": ROWS}, **options)
    assert rows_of(again) == rows_of(run(0, Fusion(), frozenset(), rerank={"by": "maxsim", "depth": ROWS}, k=5))
    assert rows_of(again) != rows_of(run(0, Fusion(), frozenset(), **options))


@pytest.mark.parametrize("depth", [5, ROWS])
def test_thresholds_are_of_the_fused_score_with_a_reranker_too(depth):
    rerank = {"by": "maxsim", "depth": depth}
    best = rows_of(run(0, Fusion(), frozenset(), k=20))
    cut = float(run(0, Fusion(), frozenset(), k=20).hits.fused[-1])
    least = {"constraints": {"min_score": cut}}
    assert set(rows_of(run(0, Fusion(), frozenset(), k=30, rerank=rerank, sections=least))) == set(best)
    fewer = {"adaptive": {"by": "threshold", "threshold": cut}}
    assert len(rows_of(run(0, Fusion(), frozenset(), k=30, rerank=rerank, sections=fewer))) == 20


@pytest.mark.parametrize("rerank", [{}, {"by": "maxsim", "depth": ROWS}])
@pytest.mark.parametrize("constraints", [{}, {"at_most": {"label": ROWS}}])
def test_what_was_chosen_before_has_no_say_in_how_many_come_after(rerank, constraints):
    order, fused = zip(*oracle(0, Fusion(), frozenset(), list(range(ROWS))), strict=True)
    fixed = [order[0], order[-1]]  # of the five best, one is fixed: four others reach the score of the fifth
    sections = {"constraints": constraints, "adaptive": {"by": "threshold", "threshold": fused[4]}}
    ranked = run(0, Fusion(), frozenset(), k=20, fixed=fixed, rerank=rerank, sections=sections)
    assert rows_of(ranked)[:2] == fixed
    assert len(rows_of(ranked)) == 2 + 4


@settings(max_examples=60)
@given(
    st.lists(st.integers(0, ROWS - 1), unique=True, max_size=6),
    st.sampled_from(["threshold", "elbow"]),
    st.floats(0, 1),
    st.booleans(),
)
def test_how_many_is_the_same_with_a_constraint_that_binds_nobody(fixed, by, level, reranked):
    rerank = {"by": "maxsim", "depth": ROWS} if reranked else {}
    rest = np.array([score for row, score in oracle(0, Fusion(), frozenset(), list(range(ROWS))) if row not in fixed])
    wanted = by_threshold(rest, 1, 12, level) if by == "threshold" else by_elbow(rest, 1, 12)
    for constraints in ({}, {"at_most": {"label": ROWS}}):
        sections = {"constraints": constraints, "adaptive": {"by": by, "threshold": level}}
        ranked = run(0, Fusion(), frozenset(), k=len(fixed) + 12, fixed=fixed, rerank=rerank, sections=sections)
        assert len(rows_of(ranked)) == len(fixed) + wanted


def test_parts_share_what_the_reranker_has_said():
    asked: list[int] = []
    parts = [{"strategy": "mmr", "k": 2}, {"strategy": "coverage", "k": 2}]
    run(0, Fusion(), frozenset(), k=6, rerank={"by": "maxsim", "depth": 20}, parts=parts, rescore=asked)
    assert asked
    assert len(asked) == len(set(asked))


def test_fixed_rows_are_not_scored_again():
    ranked = run(0, Fusion(), frozenset(), fixed=[59, 58], k=6, rerank={"by": "maxsim", "depth": 10})
    assert [choice.rescored is None for choice in ranked.choices] == [True, True, False, False, False, False]


@settings(max_examples=60)
@given(pools, fusions, blocks, st.sets(st.integers(0, ROWS - 1)), st.integers(0, 20))
def test_filter_and_guard_together_leave_what_the_oracle_leaves(pool, fusion, blocked, eligible, k):
    mask = np.isin(np.arange(ROWS), list(eligible))
    ranked = run(pool, fusion, blocked, k=k, eligible=mask)
    assert rows_of(ranked) == [row for row, _ in oracle(pool, fusion, blocked, sorted(eligible))[:k]]


@settings(max_examples=80)
@given(pools, fusions, blocks, st.integers(0, 20), st.integers(0, 20), st.sampled_from(["top", "random"]))
def test_fewer_are_always_a_prefix_of_more(pool, fusion, blocked, few, many, strategy):
    few, many = sorted((few, many))
    less, more = (run(pool, fusion, blocked, k=k, strategy=strategy) for k in (few, many))
    assert rows_of(less) == rows_of(more)[:few]
    np.testing.assert_array_equal(less.hits.fused, more.hits.fused[:few])


def test_a_blocked_row_keeps_its_rank_under_reciprocal_ranks():
    fusion, everything = Fusion(rule="rrf", rrf_k=1), list(range(ROWS))
    for row in everything:
        blocked = frozenset([row])
        ranked = run(0, fusion, blocked, k=20)
        wanted = [(r, score) for r, score in oracle(0, fusion, frozenset(), everything) if r not in blocked][:20]
        assert rows_of(ranked) == [r for r, _ in wanted]
        np.testing.assert_allclose(ranked.hits.fused, [score for _, score in wanted], rtol=0, atol=1e-12)


def test_fewer_are_a_prefix_of_more_under_reciprocal_ranks_with_a_guard():
    fusion, blocked = Fusion(rule="rrf", rrf_k=1), frozenset(range(1, ROWS, 2))
    longest = run(0, fusion, blocked, k=30)
    for k in range(30):
        less = run(0, fusion, blocked, k=k)
        assert rows_of(less) == rows_of(longest)[:k]
        np.testing.assert_array_equal(less.hits.fused, longest.hits.fused[:k])


@settings(max_examples=60)
@given(pools, rank_fusions, st.integers(0, 70))
def test_reciprocal_ranks_agree_with_the_oracle_where_nothing_is_blocked(pool, fusion, k):
    ranked = run(pool, fusion, frozenset(), k=k)
    wanted = oracle(pool, fusion, frozenset(), list(range(ROWS)))[:k]
    assert rows_of(ranked) == [row for row, _ in wanted]
    np.testing.assert_allclose(ranked.hits.fused, [score for _, score in wanted], rtol=0, atol=1e-12)


@settings(max_examples=60)
@given(pools, blocks, st.integers(0, 70), st.integers(), st.text(max_size=5))
def test_random_is_the_seeded_permutation_of_the_unblocked_rows_and_repeats_none(pool, blocked, k, seed, query_id):
    rows = rows_of(run(pool, Fusion(), blocked, strategy="random", k=k, seed=seed, query_id=query_id))
    wanted = [row for row in permutation(ROWS, seed, query_id, "select").tolist() if row not in blocked]
    assert rows == wanted[:k]
    assert len(set(rows)) == len(rows)


def test_random_does_not_depend_on_how_the_channels_are_fused():
    blocked = frozenset(range(0, ROWS, 3))
    drawn = [rows_of(run(0, Fusion(mode), blocked, strategy="random", k=9)) for mode in ("dense", "lexical", "hybrid")]
    assert drawn[0] == drawn[1] == drawn[2]


@settings(max_examples=80)
@given(
    pools,
    fusions,
    blocks,
    st.lists(st.integers(0, ROWS - 1), unique=True, max_size=6),
    st.integers(0, 12),
    st.sampled_from(["top", "random", "fixed"]),
)
def test_fixed_rows_come_first_and_the_strategy_fills_the_rest(pool, fusion, blocked, fixed, k, strategy):
    ranked = run(pool, fusion, blocked, fixed=fixed, k=k, strategy=strategy)
    first = [row for row in fixed if row not in blocked][:k]
    if strategy == "top":
        others = [row for row, _ in oracle(pool, fusion, blocked, list(range(ROWS)))]
    elif strategy == "random":
        others = [row for row in permutation(ROWS, 0, "q", "select").tolist() if row not in blocked]
    else:
        others = []
    assert rows_of(ranked) == (first + [row for row in others if row not in first])[:k]
    assert fixed_of(ranked) == len(first)
    scores = dict(oracle(pool, fusion, blocked, list(range(ROWS))))
    np.testing.assert_allclose(ranked.hits.fused, [scores[row] for row in rows_of(ranked)], rtol=0, atol=1e-12)


def test_a_fixed_row_that_is_not_eligible_is_left_out():
    mask = np.arange(ROWS) != 5
    ranked = run(0, Fusion(), frozenset(), fixed=[5, 6], k=2, strategy="fixed", eligible=mask)
    assert (rows_of(ranked), fixed_of(ranked)) == ([6], 1)


@pytest.mark.parametrize("strategy", ["top", "random"])
def test_k_beyond_the_pool_gives_every_row_once(strategy):
    assert sorted(rows_of(run(0, Fusion(), frozenset(), k=1000, strategy=strategy))) == list(range(ROWS))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_nothing_is_chosen_where_everything_is_blocked_or_nothing_is_asked_for(strategy):
    assert rows_of(run(0, Fusion(), frozenset(range(ROWS)), k=8, strategy=strategy)) == []
    assert rows_of(run(0, Fusion(), frozenset(), k=0, strategy=strategy)) == []


def test_without_a_guard_nothing_is_blocked():
    index, _, _, query = POOLS[0]
    [scores] = index.score([query])
    ranked = rank(index, scores, Recipe(), fusion=Fusion(), lookup=reads(0), check=None)
    assert ranked.blocked == {}
    assert rows_of(ranked) == [row for row, _ in oracle(0, Fusion(), frozenset(), list(range(ROWS)))[:8]]


def test_the_guard_does_not_look_at_the_whole_pool_for_a_few_rows():
    looked: list[int] = []
    index, _, _, query = POOLS[0]
    [scores] = index.score([query])

    def check(rows) -> list[None]:
        looked.extend(rows.tolist())
        return [None] * len(rows)

    rank(index, scores, Recipe.of({"select": {"k": 3}}), fusion=Fusion(), lookup=reads(0), check=check)
    assert len(looked) <= 3 + 2  # those chosen, and the best of each channel


@settings(max_examples=120)
@given(
    pools,
    fusions,
    blocks,
    st.sampled_from(sorted(STRATEGIES)),
    st.integers(0, 12),
    st.lists(st.integers(0, ROWS - 1), unique=True, max_size=3),
)
def test_every_strategy_gives_as_many_as_there_are_up_to_k_and_repeats_none(pool, fusion, blocked, strategy, k, fixed):
    ranked = run(pool, fusion, blocked, strategy=strategy, k=k, fixed=fixed)
    rows = rows_of(ranked)
    there = min(k, ROWS - len(blocked)) if strategy != "fixed" else min(k, len(set(fixed) - blocked))
    assert len(rows) == len(set(rows)) == there
    assert not blocked & set(rows)


def test_parts_choose_one_after_the_other_and_the_strategy_fills_up():
    parts = [{"strategy": "mmr", "k": 3, "options": {"weight": 0.7}}, {"strategy": "random", "k": 2}]
    ranked = run(0, Fusion(), frozenset(), strategy="top", k=8, fixed=[4], parts=parts)
    assert [choice.origin for choice in ranked.choices] == ["fixed", *["mmr"] * 3, *["random"] * 2, *["top"] * 2]
    assert len(set(rows_of(ranked))) == 8
    rest = [row for row, _ in oracle(0, Fusion(), frozenset(), list(range(ROWS))) if row not in rows_of(ranked)[:6]]
    assert rows_of(ranked)[6:] == rest[:2]
    assert (
        rows_of(ranked)[1:4] == rows_of(run(0, Fusion(), frozenset([4]), strategy="mmr", options={"weight": 0.7}))[:3]
    )


def test_a_part_never_takes_more_than_is_left_of_k():
    ranked = run(0, Fusion(), frozenset(), k=2, parts=[{"strategy": "random", "k": 5}])
    assert [choice.origin for choice in ranked.choices] == ["random", "random"]


def test_a_shared_block_comes_first_and_loses_what_is_blocked_or_not_eligible():
    parts = [{"strategy": "mmr", "k": 1}, {"strategy": "random", "k": 4, "shared": True}]
    mask = np.arange(ROWS) != 30
    ranked = run(0, Fusion(), frozenset([10]), k=6, parts=parts, shared=[50, 30, 10, 20], eligible=mask)
    assert [choice.row for choice in ranked.choices if choice.shared] == [50, 20]
    assert [choice.shared for choice in ranked.choices] == [True, True, False, False, False, False]


def test_what_a_pick_was_worth_and_what_it_was_traded_against_is_told():
    ranked = run(0, Fusion(), frozenset(), strategy="mmr", k=4, options={"weight": 0.5})
    first, *others = ranked.choices
    cosines = {choice.row: float(Reads(0).cosines(np.array([choice.row]))[0]) for choice in ranked.choices}
    assert first.gain == pytest.approx(0.5 * cosines[first.row])
    assert first.against is None
    chosen = [first.row]
    vectors = POOLS[0][1].astype(float)
    for choice in others:
        likeness = {row: float(vectors[row] @ vectors[choice.row]) for row in chosen}
        assert choice.against == max(likeness, key=likeness.get)
        assert choice.gain == pytest.approx(0.5 * cosines[choice.row] - 0.5 * max(likeness.values()), abs=1e-6)
        chosen.append(choice.row)


def test_sift_tells_what_it_leaves_open():
    ranked = run(0, Fusion(), frozenset(), strategy="sift", k=4)
    assert ranked.open_variance == pytest.approx(1 - sum(choice.gain for choice in ranked.choices), abs=1e-6)
    assert run(0, Fusion(), frozenset(), k=4).open_variance is None


def solved_variance(rows: list[int], noise: float) -> float:
    """k(q, q) − k_q (K + noise)⁻¹ k_q of a Gaussian process that has seen these rows."""
    query, seen = POOLS[0][3].vector.astype(float), POOLS[0][1][rows].astype(float)
    to_query = seen @ query
    return float(query @ query - to_query @ np.linalg.solve(seen @ seen.T + noise * np.eye(len(rows)), to_query))


@settings(max_examples=100)
@given(
    k=st.integers(0, 8),
    fixed=st.lists(st.integers(0, ROWS - 1), unique=True, max_size=3),
    rules=st.fixed_dictionaries(
        {"backfill": st.booleans()},
        optional={
            "at_most": st.just({"label": 1}) | st.just({"label": 2}),
            "at_least": st.just({"label": 2}) | st.just({"label": 3}),
            "near": st.sampled_from([0.2, 0.8]),
        },
    ),
    noise=st.sampled_from([0.01, 0.5]),
    confidence=st.floats(0, 1),
    k_min=st.integers(0, 3),
)
def test_confidence_is_of_the_choices_and_as_few_are_kept_as_explain_enough(k, fixed, rules, noise, confidence, k_min):
    chosen = {"strategy": "sift", "k": k, "options": {"noise": noise}, "fixed": fixed, "candidates": 12}
    whole = run(0, Fusion(), frozenset(), sections={"constraints": rules}, **chosen)
    adaptive = {"by": "confidence", "confidence": confidence, "k_min": k_min}
    kept = run(0, Fusion(), frozenset(), sections={"constraints": rules, "adaptive": adaptive}, **chosen)
    for ranked in (whole, kept):
        if rows_of(ranked):
            assert ranked.open_variance == pytest.approx(solved_variance(rows_of(ranked), noise), abs=1e-6)
        else:
            assert ranked.open_variance is None
    rows, first = rows_of(whole), fixed_of(whole)
    labels = [len({row % 3 for row in rows[:cut]}) for cut in range(len(rows) + 1)]
    least = min(rules.get("at_least", {}).get("label", 0), labels[-1])
    good = [
        cut
        for cut in range(min(first + k_min, len(rows)), len(rows) + 1)
        if 1 - solved_variance(rows[:cut], noise) >= confidence - 1e-6 and labels[cut] >= least
    ]
    assert rows_of(kept) == rows[: min(good, default=len(rows))]
    assert kept.unmet == whole.unmet

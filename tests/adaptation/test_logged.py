"""Supervision by a log: what attention it asks for, how it judges, and an index that is adapted by it."""

import numpy as np
import pytest
from colours import colour, embed, rows

from retriever import Retriever
from retriever.adaptation.evidence import Asked
from retriever.adaptation.logged import LogBatches, _ranked
from retriever.adaptation.validation import Measure, judge
from retriever.errors import BadRows, InvalidInput
from tests.support import build, fail

QUERIES = [f"word{number}" for number in range(9000, 9024)]
SHOWN = 6


def unlabelled(count):
    """What the pool holds says nothing of colours: only the log does."""
    return [{"id": f"e{n}", "input": f"word{n}", "output": f"answer {n}"} for n in range(count)]


def pool(path, count=120):
    return build(unlabelled(count), path, embedder=embed)


def shown(index, number):
    """Demonstrations for a logged query: chosen by nobody, so that there are right and wrong ones."""
    count = len(index)
    return [f"e{(7 * number + 11 * n) % count}" for n in range(SHOWN)]


def scored(index, count=90):
    """One score for each demonstration: whether its colour is the query's."""
    return [
        {
            "query": f"word{number}",
            "scores": {one: float(colour(one) == colour(f"word{number}")) for one in shown(index, number)},
        }
        for number in range(5000, 5000 + count)
    ]


def bright(texts):
    """An embedder that sees colours better: enough of what it finds is right for a prompt to do well at times."""
    vectors = embed(texts)
    vectors[:, :4] *= 2
    return vectors


def judged(index, count=400):
    """One score for each prompt of three demonstrations, as the index chose them: how many have the query's colour."""
    queries = [f"word{number}" for number in range(5000, 5000 + count)]
    return [
        {
            "query": query,
            "demonstrations": list(chosen.ids),
            "score": sum(colour(one) == colour(query) for one in chosen.ids) / 3,
        }
        for query, chosen in zip(queries, index.select_many(queries, mode="dense", k=3), strict=True)
    ]


def share_of_the_right_colour(index):
    found = [colour(d.example.id) == colour(q) for q in QUERIES for d in index.select(q, k=8, mode="dense")]
    return sum(found) / len(found)


def asked(rows, credit, closed):
    return Asked("q", np.array(rows), np.array(credit, dtype=np.float64), closed)


def test_scored_demonstrations_share_the_attention_by_a_softmax_of_their_credit():
    batches = LogBatches(np.eye(3, dtype=np.float32)[:1], np.eye(3, dtype=np.float32), [asked([0, 2], [1, -1], True)])
    batch = batches.batch(0, 100, 0)
    assert batch.vectors.shape == (3, 3)
    weights = np.exp([2.0, -2.0])
    assert batch.targets.tolist()[0] == pytest.approx([0, *(weights / weights.sum())], rel=1e-6)
    assert batch.allowed.tolist() == [[False, True, True]]


def test_what_was_not_shown_keeps_its_part_of_the_attention():
    """Cosines 0 and 1 at temperature 0.1: the shown one has e^0 · e^(6 · 1/2), what another query was shown e^10."""
    rows = np.array([[0, 1], [1, 0]], dtype=np.float32)
    queries = np.array([[1, 0], [1, 0]], dtype=np.float32)
    batches = LogBatches(queries, rows, [asked([0], [0.5], False), asked([1], [0.0], False)])
    batch = batches.batch(0, 100, 0)
    weights = np.exp([3.0, 10.0])
    plain = np.exp([0.0, 10.0])
    found = sorted(batch.targets[:, 2:].tolist(), reverse=True)
    assert found[0] == pytest.approx((weights / weights.sum()).tolist(), rel=1e-5)
    assert found[1] == pytest.approx((plain / plain.sum()).tolist(), rel=1e-5)
    assert batch.allowed[:, 2:].all() and not batch.allowed[:, :2].any()


def test_batches_use_every_query_before_any_again_and_are_the_same_again():
    every = [asked([n], [1.0 if n % 2 else -1.0], False) for n in range(64)]
    batches = LogBatches(np.eye(64, dtype=np.float32), np.eye(64, dtype=np.float32), every)
    seen = [row for step in range(4) for row in batches.batch(step, 32, 0).vectors[:16].argmax(axis=1).tolist()]
    assert sorted(seen) == list(range(64))
    assert np.array_equal(batches.batch(2, 32, 0).targets, batches.batch(2, 32, 0).targets)


def test_a_ranking_is_judged_by_what_was_scored_alone():
    """Gains 1, 0 and 1/2; in the order 2, 0, 1 the DCG is 1/2 + 1 / log2(3), the ideal one 1 + 1/2 / log2(3)."""
    one = asked([4, 5, 9], [1.0, -1.0, 0.0], True)
    ideal = 1 + 0.5 / np.log2(3)
    assert _ranked(one, np.array([0.5, 0.1, 0.9])) == pytest.approx((0.5 + 1 / np.log2(3)) / ideal)
    assert _ranked(one, np.array([0.9, 0.1, 0.5])) == pytest.approx(1.0)


def test_scores_of_demonstrations_teach_what_the_pool_does_not_say(tmp_path):
    with pool(tmp_path / "i") as index:
        before = share_of_the_right_colour(index)
        found = index.adapt(source=scored(index))
        assert found.kept and found.source == "feedback"
        assert share_of_the_right_colour(index) > before + 0.1
        about = index.info()["adaptation"]
        assert about["log"]["name"] == "list" and about["log"]["lines"] == 90
        assert [one["metric"] for one in about["compared"]][:2] == ["dense, logged nDCG@8", "hybrid, logged nDCG@8"]
        assert [one["metric"] for one in about["compared"]][2:] == ["dense, outputs", "hybrid, outputs"]
    with Retriever.open(tmp_path / "i", embedder=embed, note=fail) as again:
        assert again.info()["adaptation"] == about
        again.undo_adaptation()
        assert share_of_the_right_colour(again) == before


def test_outcomes_of_whole_prompts_teach_it_as_well(tmp_path):
    with build(unlabelled(120), tmp_path / "i", embedder=bright) as index:
        before = share_of_the_right_colour(index)
        found = index.adapt(source=judged(index))
        assert found.kept and found.compared[0].metric == "dense, logged concordance"
        assert "held-out queries" in found.reason
        assert share_of_the_right_colour(index) > before + 0.04


def test_a_log_that_speaks_against_what_the_pool_says_is_not_followed(tmp_path):
    with build(rows(120), tmp_path / "i", embedder=embed) as index:
        index.adapt()
        against = [{**line, "scores": {i: 1 - s for i, s in line["scores"].items()}} for line in scored(index)]
        generation = index.generation
        found = index.adapt(source=against)
        assert not found.kept and index.generation == generation
        assert any(one.metric.endswith("labels") and one.gain < 0 for one in found.compared)


def test_outcomes_by_chance_change_nothing(tmp_path):
    chance = np.random.default_rng(0)
    with pool(tmp_path / "i") as index:
        lines = [{**line, "scores": {i: chance.random() for i in line["scores"]}} for line in scored(index)]
        assert not index.adapt(source=lines).kept


@pytest.mark.parametrize("seed", range(6, 11))
def test_whole_prompts_that_do_well_by_chance_change_nothing(tmp_path, seed):
    """Coins are thrown for 200 prompts; by the spread of prompts' shares three of the five maps were kept."""
    with pool(tmp_path / "i") as index:
        lines = judged(index, 200)
        coins = np.random.default_rng(seed).random(len(lines)) < 0.1
        log = [
            {"query": line["query"], "demonstrations": line["demonstrations"], "right": bool(coin)}
            for line, coin in zip(lines, coins, strict=True)
        ]
        assert not index.adapt(source=log).kept


def test_a_log_without_a_line_that_can_be_used_is_refused_by_its_first_bad_one(tmp_path):
    bad = [{"query": "q", "demonstrations": ["e1"], "right": "yes"}, {"query": "q"}]
    with build(unlabelled(30), tmp_path / "i", embedder=embed, note=lambda line: None) as index:
        with pytest.raises(InvalidInput, match="no line that can be used: 2 bad, first list:1: right is 'yes'"):
            index.adapt(source=bad)
        with pytest.raises(InvalidInput, match="list has no line that can be used; expected a query with"):
            index.adapt(source=[])


def test_removed_examples_and_bad_lines_are_told_and_lose_nothing_else(tmp_path):
    notes = []
    with build(unlabelled(120), tmp_path / "i", embedder=embed, note=notes.append) as index:
        lines = scored(index)
        index.remove(["e3", "e4"])
        found = index.adapt(source=[*lines, {"query": "word1"}])
        assert found.examples > 80 and found.kept
    assert notes == [
        "1 bad lines of list were set aside, first list:91: no outcome beside the query; expected "
        '"demonstrations" with "right" or "score", or "scores"',
        "list names 2 examples that are not in the pool, and 118 that are",
    ]


def test_a_bad_line_under_strict_changes_nothing(tmp_path):
    with pool(tmp_path / "i") as index, pytest.raises(BadRows, match="list:1"):
        index.adapt(source=[{"query": "word1"}], strict=True)


def test_too_few_queries_are_told_and_a_log_that_prefers_nothing_is_refused(tmp_path):
    with pool(tmp_path / "i") as index:
        assert index.adapt(source=scored(index, 12)).reason.startswith("only 12 queries say what is alike")
        same = [{"query": f"word{n}", "demonstrations": ["e1", "e2"], "right": True} for n in range(50)]
        with pytest.raises(InvalidInput, match="prefers no example of the pool to another"):
            index.adapt(source=same)


def test_the_same_log_gives_the_same_map(tmp_path):
    found = []
    for name in ("one", "two"):
        with pool(tmp_path / name) as index:
            found.append(index.adapt(source=scored(index)).adaptation.matrix.tobytes())
    assert found[0] == found[1]


def test_where_the_pool_says_nothing_the_fusion_weight_stays_and_the_log_alone_judges(tmp_path):
    bare = [{"id": f"e{n}", "input": f"word{n}"} for n in range(120)]
    with build(bare, tmp_path / "i", embedder=embed, output=None, note=lambda line: None) as index:
        fusion = index.info()["fusion"]
        found = index.adapt(source=scored(index))
        assert found.kept and [one.metric for one in found.compared] == [
            "dense, logged nDCG@8",
            "hybrid, logged nDCG@8",
        ]
        assert index.info()["fusion"] == fusion


def test_scores_of_which_few_differ_are_judged_by_those(tmp_path):
    with pool(tmp_path / "i") as index:
        lines = scored(index, 130)
        same = [{**line, "scores": dict.fromkeys(line["scores"], 1.0)} for line in lines[90:]]
        more = [{"query": f"word{n}", "scores": dict.fromkeys(shown(index, n), 0.0)} for n in range(7000, 7200)]
        found = index.adapt(source=[*lines[:90], *same, *more])
        assert found.examples == 90 and found.compared[0].metric == "dense, logged nDCG@8"


def test_outcomes_that_do_not_differ_where_it_counts_are_refused():
    nothing = Measure("logged concordance", "prompts", lambda share, weights: np.empty((0, len(weights))))
    with pytest.raises(InvalidInput, match="no held-out prompts whose logged concordance could be compared"):
        judge(nothing)

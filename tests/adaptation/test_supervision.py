"""Supervision: which examples are alike, by their labels or outputs."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retriever import Example
from retriever.adaptation import supervision
from retriever.adaptation.supervision import (
    SOURCES,
    Cosines,
    FeatureSets,
    OverlapBatches,
    aim_by,
    aim_of,
    output_features,
)
from retriever.errors import InvalidInput


def unasked(texts):
    raise AssertionError("nothing is to be embedded")


def example(number, output=None, label=None):
    return Example(id=str(number), input=f"input {number}", output=output, label=label)


@given(st.lists(st.frozensets(st.integers(0, 12), max_size=6), min_size=1, max_size=8), st.data())
def test_overlap_is_the_jaccard_index_of_every_pair(sets, data):
    rows = st.lists(st.integers(0, len(sets) - 1), min_size=1, max_size=6)
    some, others = data.draw(rows), data.draw(rows)
    found = FeatureSets(sets).overlap(np.array(some), np.array(others))
    for i, row in enumerate(some):
        for j, other in enumerate(others):
            union = sets[row] | sets[other]
            assert found[i, j] == pytest.approx(len(sets[row] & sets[other]) / len(union) if union else 0.0)


def test_pools_too_large_to_keep_all_pairs_of_give_the_same(monkeypatch):
    sets = [{n % 3, n % 5, -n % 7} for n in range(600)]
    some, others = np.arange(0, 600, 7), np.arange(599, 0, -11)
    kept = FeatureSets(sets).overlap(some, others)
    monkeypatch.setattr(supervision, "_MOST_KEPT", 0)
    assert np.array_equal(FeatureSets(sets).overlap(some, others), kept)


def test_the_features_of_an_output_are_its_tokens_and_pairs_of_neighbours():
    assert output_features("SELECT a;") == {"select", "a", ";", ("select", "a"), ("a", ";")}


def test_labels_that_repeat_and_differ_are_what_is_learned_from():
    aim = aim_of([example(1, "x", "red"), example(2, "y", "red"), example(3, "z", "blue")])
    assert aim.judged.name == "labels"
    assert aim.alike.overlap(np.arange(3), np.arange(3)).tolist() == [[1, 1, 0], [1, 1, 0], [0, 0, 1]]
    assert aim.guarded is None


def test_several_labels_are_alike_as_far_as_they_overlap():
    aim = aim_of([example(1, "x", ["a", "b"]), example(2, "x", ["b", "c"]), example(3, "x", ["a"])])
    assert aim.alike.overlap(np.array([0]), np.arange(3)).tolist()[0] == pytest.approx([1, 1 / 3, 1 / 2])
    assert aim.judged.utility(frozenset("ab"), [frozenset("bc"), frozenset("a")]) == pytest.approx(5 / 12)


def test_outputs_that_say_more_than_the_labels_are_guarded():
    aim = aim_of([example(n, f"answer {n}", "ab"[n % 2]) for n in range(6)])
    assert (aim.judged.name, aim.guarded.name) == ("labels", "outputs")


def test_without_labels_outputs_are_what_is_learned_from_and_without_either_nothing_is():
    assert aim_of([example(1, "one two"), example(2, "two three")]).judged.name == "outputs"
    assert aim_of([example(1), example(2)]) is None


def test_outputs_are_alike_by_their_templates_when_that_is_asked_for():
    pool = [example(n, f"SELECT name FROM city WHERE size > {n}") for n in range(3)] + [
        example(3, "SELECT 1"),
        example(4),
    ]
    aim = aim_by("templates", pool, unasked)
    assert aim.alike.overlap(np.array([0]), np.arange(5)).tolist() == [[1, 1, 1, 0, 0]]
    assert aim.alike.sizes.tolist() == [1, 1, 1, 1, 0]
    own, *others = map(aim.judged.tokens, pool)
    assert aim.judged.utility(own, others) == pytest.approx(2 / 4)
    assert (aim.source, aim.judged.name, aim.guarded.name) == ("templates", "templates", "outputs")


def test_outputs_are_alike_by_the_cosine_of_their_embeddings_when_that_is_asked_for():
    asked = []

    def embed(texts):
        asked.extend(texts)
        return np.array([{"east": [1, 0], "north": [0, 1], "between": [0.6, 0.8]}[text] for text in texts], np.float32)

    pool = [example(n, output) for n, output in enumerate(["north", "east", "between", "north", None])]
    aim = aim_by("embeddings", pool, embed)
    assert sorted(asked) == ["between", "east", "north"]
    assert aim.alike.overlap(np.array([0, 4]), np.arange(5)) == pytest.approx(np.array([[1, 0, 0.8, 1, 0], [0] * 5]))
    assert aim.alike.sizes.tolist() == [1, 1, 1, 1, 0]
    assert (aim.source, aim.judged.name, aim.guarded) == ("embeddings", "outputs", None)


def test_outputs_that_point_apart_are_as_little_alike_as_those_at_right_angles():
    assert Cosines(np.array([[1, 0], [-1, 0]], np.float32)).overlap(np.array([0]), np.array([0, 1])).tolist() == [
        [1, 0]
    ]


@pytest.mark.parametrize("source", SOURCES)
def test_a_source_that_the_pool_has_not_is_none(source):
    assert aim_by(source, [example(1), example(2)], unasked) is None


def test_a_source_that_nobody_knows_is_refused_with_those_there_are():
    with pytest.raises(InvalidInput, match=r"'topics'.*labels, outputs, templates, embeddings"):
        aim_by("topics", [example(1, "x"), example(2, "y")], unasked)


def test_attention_goes_to_what_overlaps_and_never_to_oneself():
    sets = FeatureSets([{"a"}, {"a"}, {"b"}, set()])
    batch = OverlapBatches(np.eye(4, dtype=np.float32), sets, np.arange(4)).batch(0, 10, 0)
    rows = batch.vectors.argmax(axis=1).tolist()
    assert sorted(rows) == [0, 1, 2]
    first, second, lonely = rows.index(0), rows.index(1), rows.index(2)
    assert batch.targets[first, second] == pytest.approx(1, abs=1e-4)
    assert not batch.targets[lonely].any()
    assert not batch.targets.diagonal().any() and not batch.allowed.diagonal().any()


def test_every_row_is_used_before_any_is_used_again():
    batches = OverlapBatches(np.eye(12, dtype=np.float32), FeatureSets([{0}] * 12), np.arange(12))
    seen = [row for step in range(3) for row in batches.batch(step, 4, 0).vectors.argmax(axis=1).tolist()]
    assert sorted(seen) == list(range(12))
    again = batches.batch(1, 4, 0).vectors
    assert np.array_equal(again, batches.batch(1, 4, 0).vectors)

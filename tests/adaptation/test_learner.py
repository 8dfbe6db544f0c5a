"""The learner: the gradient of its loss, and what it learns."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from threadpoolctl import threadpool_limits

from retriever.adaptation.learner import KINDS, Batch, LearnerSettings, contrastive, learn
from retriever.adaptation.linear_map import mapped
from retriever.adaptation.supervision import FeatureSets, OverlapBatches
from retriever.errors import InvalidInput

QUICK = {"steps": 150, "batch": 64, "rate": 0.02}


def silent(done, total):
    pass


def unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def random_batch(seed, anchors, rows, dim):
    random = np.random.default_rng(seed)
    allowed = random.random((anchors, rows)) < 0.7
    allowed[:, -1] = True
    targets = random.random((anchors, rows)) * allowed
    targets /= targets.sum(axis=1, keepdims=True)
    targets[0] = 0  # says nothing
    return Batch(unit(random.standard_normal((rows, dim))), targets.astype(np.float64), allowed)


def colours(seed, count, dim=10):
    """Rows whose class is a faint direction of their own beside loud noise."""
    random = np.random.default_rng(seed)
    classes = random.integers(0, 3, count)
    vectors = random.standard_normal((count, dim))
    vectors[:, :3] = 0.4 * np.eye(3)[classes]
    return unit(vectors), classes


def precision_at_5(pool, classes, queries, asked):
    nearest = np.argsort(-(queries @ pool.T), axis=1)[:, :5]
    return float((classes[nearest] == asked[:, None]).mean())


def test_the_loss_of_one_anchor_is_its_cross_entropy():
    batch = Batch(
        np.array([[1, 0], [1, 0], [0, 1]], np.float32),
        np.array([[0, 1, 0]], np.float32),
        np.array([[False, True, True]]),
    )
    loss, _ = contrastive(np.eye(2, dtype=np.float32), batch, 1.0)
    assert loss == pytest.approx(np.log(1 + np.exp(-1.0)), abs=1e-6)


@given(st.integers(0, 30), st.integers(2, 4), st.integers(0, 3), st.integers(2, 5))
def test_the_gradient_is_that_of_finite_differences(seed, anchors, others, dim):
    batch = random_batch(seed, anchors, anchors + others, dim)
    wide = Batch(batch.vectors.astype(np.float64), batch.targets, batch.allowed)
    matrix = np.eye(dim) + 0.2 * np.random.default_rng(seed + 1).standard_normal((dim, dim))
    _, gradient = contrastive(matrix, wide, 0.5)
    for row in range(dim):
        for column in range(dim):
            step = np.zeros((dim, dim))
            step[row, column] = 1e-5
            more, less = contrastive(matrix + step, wide, 0.5)[0], contrastive(matrix - step, wide, 0.5)[0]
            assert gradient[row, column] == pytest.approx((more - less) / 2e-5, abs=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_the_map_of_a_toy_problem_finds_more_of_the_same_class(kind):
    pool, classes = colours(1, 300)
    queries, asked = colours(2, 200)
    batches = OverlapBatches(pool, FeatureSets([{c} for c in classes.tolist()]), np.arange(300))
    matrix = learn(batches, 10, LearnerSettings(kind=kind, **QUICK), silent)
    before = precision_at_5(pool, classes, queries, asked)
    after = precision_at_5(mapped(matrix, pool), classes, mapped(matrix, queries), asked)
    assert before < 0.6
    assert after > 0.85


def test_one_seed_gives_the_same_bytes_on_any_number_of_threads():
    pool, classes = colours(3, 200)
    batches = OverlapBatches(pool, FeatureSets([{c} for c in classes.tolist()]), np.arange(200))
    settings = LearnerSettings(steps=20, batch=64)
    with threadpool_limits(1):
        first = learn(batches, 10, settings, silent)
    with threadpool_limits(2):
        assert learn(batches, 10, settings, silent).tobytes() == first.tobytes()
    assert learn(batches, 10, LearnerSettings(steps=20, batch=64, seed=1), silent).tobytes() != first.tobytes()


def test_nothing_to_learn_from_gives_the_identity():
    batches = OverlapBatches(np.eye(4, dtype=np.float32), FeatureSets([()] * 4), np.arange(4))
    assert learn(batches, 4, LearnerSettings(), silent).tolist() == np.eye(4).tolist()


def test_examples_of_which_no_two_are_alike_give_the_identity():
    batches = OverlapBatches(np.eye(4, dtype=np.float32), FeatureSets([{n} for n in range(4)]), np.arange(4))
    assert learn(batches, 4, LearnerSettings(steps=30), silent).tolist() == np.eye(4).tolist()


@pytest.mark.parametrize(
    "wrong", [{"kind": "deep"}, {"steps": 0}, {"rate": 0.0}, {"temperature": -1.0}, {"noise": -0.1}]
)
def test_settings_that_make_no_sense_are_refused(wrong):
    with pytest.raises(InvalidInput):
        LearnerSettings(**wrong)

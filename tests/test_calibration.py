"""Calibration of the fusion weight, on pools made so that one answer is right."""

from __future__ import annotations

import json

import numpy as np
import pytest

from indexes.channels import Query
from indexes.dense import DenseIndex, Segment
from indexes.hybrid import HybridIndex
from indexes.lexical import BM25Index
from indexes.postings import Postings
from retriever.errors import InvalidInput
from retriever.evaluation.calibration import GRID, SAMPLE, Calibration, best_weight, calibrate, objective
from retriever.example import Example
from retriever.ranking.seeding import permutation

ROWS = 40
LABEL = [row % 2 for row in range(ROWS)]
CLUSTER = [row // 5 for row in range(ROWS)]  # eight clusters of five, labels mixed in each


def run(examples, vectors, terms, copies=None, progress=None) -> Calibration:
    vectors = np.asarray(vectors, dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    index = HybridIndex(DenseIndex([Segment.of(vectors)]), BM25Index([Postings.from_documents(terms)]))
    return calibrate(
        index,
        examples=lambda rows: [examples[row] for row in rows],
        queries=lambda rows: [Query(vectors[row], tuple(terms[row])) for row in rows],
        copies=np.arange(len(examples)) if copies is None else np.asarray(copies),
        **({} if progress is None else {"progress": progress}),
    )


def labelled() -> list[Example]:
    return [Example(str(row), f"text {row}", label=f"label {LABEL[row]}") for row in range(ROWS)]


CLUSTER_VECTORS = np.eye(8)[CLUSTER]
CLUSTER_WORDS = [[f"w{cluster}"] for cluster in CLUSTER]
# Barely apart by label, so that a tenth of the other channel is enough to mislead.
LABEL_VECTORS = np.array([[1.0, 0.0], [0.999, 0.0447]])[LABEL]
LABEL_WORDS = [["x"] * (6 - label) + ["y"] * (5 + label) for label in LABEL]


def test_a_pool_whose_labels_follow_the_vectors_gets_weight_1():
    found = run(labelled(), LABEL_VECTORS, CLUSTER_WORDS)
    assert (found.weight, found.objective, found.sample) == (1.0, "labels", ROWS)
    assert found.utilities[-1] == 1.0
    assert max(found.utilities[:-1]) < 1.0


def test_a_pool_whose_labels_follow_the_words_gets_weight_0():
    found = run(labelled(), CLUSTER_VECTORS, LABEL_WORDS)
    assert (found.weight, found.objective, found.sample) == (0.0, "labels", ROWS)
    assert found.utilities[0] == 1.0
    assert max(found.utilities[1:]) < 1.0


def test_a_pool_whose_outputs_follow_the_vectors_gets_weight_1():
    examples = [Example(str(row), "x", output=f"answer{CLUSTER[row]} {row}") for row in range(ROWS)]
    words = [[f"w{row % 8}"] for row in range(ROWS)]
    vectors = np.ones((ROWS, 8)) + 0.02 * CLUSTER_VECTORS
    # Four of the five in a row's cluster are among the nearest eight, but other rows share its word.
    found = run(examples, vectors, words)
    assert found.objective == "outputs"
    assert found.utilities[-1] == max(found.utilities)


def test_channels_that_are_equally_good_give_the_middle():
    words = [[f"label{label}"] for label in LABEL]
    found = run(labelled(), np.eye(2)[LABEL], words)
    assert found.utilities == (1.0,) * len(GRID)
    assert found.weight == 0.5


@pytest.mark.parametrize(
    "examples",
    [
        [Example(str(i), "x") for i in range(9)],
        [Example(str(i), "x", output="") for i in range(9)],
        [Example("0", "x", output="the only one"), *(Example(str(i), "x") for i in range(1, 9))],
        [],
    ],
    ids=["nothing", "empty outputs", "one output", "no rows"],
)
def test_a_pool_without_labels_or_outputs_keeps_the_default(examples):
    found = run(examples, np.ones((len(examples), 2)), [["a"]] * len(examples))
    assert found == Calibration(0.5, "none", 0, ())


def test_exact_copies_of_an_example_do_not_answer_for_it():
    # Ten pairs of copies; a pair shares its output with nobody else.
    examples = [Example(str(row), f"t{row // 2}", output=chr(97 + row // 2)) for row in range(20)]
    vectors = np.eye(10)[[row // 2 for row in range(20)]]
    words = [[f"t{row // 2}"] for row in range(20)]
    masked = run(examples, vectors, words, copies=[row // 2 for row in range(20)])
    assert masked.utilities == (0.0,) * len(GRID)
    unmasked = run(examples, vectors, words)
    assert unmasked.utilities == (1.0,) * len(GRID)


def test_an_example_never_answers_for_itself():
    examples = [Example(str(row), "x", output=chr(97 + row)) for row in range(12)]
    found = run(examples, np.eye(12), [[f"w{row}"] for row in range(12)])
    assert found.utilities == (0.0,) * len(GRID)


def test_utilities_are_the_mean_over_the_sampled_examples():
    # Each of the three has but two others: P@8 is 1/2 for the two of label a, 0 for the one of label b.
    examples = [Example("0", "x", label="a"), Example("1", "x", label="a"), Example("2", "x", label="b")]
    found = run(examples, np.ones((3, 2)), [["a"]] * 3)
    assert found.utilities == (0.333333,) * len(GRID)


def test_rows_without_a_label_are_not_held_out_but_may_be_retrieved():
    examples = [
        Example("0", "x", label="a"),
        Example("1", "x", label="a"),
        Example("2", "x", label="b"),
        Example("3", "x"),
    ]
    found = run(examples, np.ones((4, 2)), [["a"]] * 4)
    assert found.sample == 3
    assert found.utilities == (0.222222,) * len(GRID)


def test_at_most_500_examples_are_held_out_the_same_ones_each_time():
    rows = 620
    examples = [Example(str(row), "x", label=str(row % 3)) for row in range(rows)]
    told: list[tuple[int, int]] = []
    asked = np.random.Generator(np.random.PCG64(1)).standard_normal((rows, 4))
    words = [[f"w{row % 7}"] for row in range(rows)]
    found = run(examples, asked, words, progress=lambda done, total: told.append((done, total)))
    assert found.sample == SAMPLE == 500
    assert told[-1] == (500, 500)
    assert [done for done, _ in told] == sorted({done for done, _ in told})
    assert run(examples, asked, words) == found


@pytest.mark.parametrize(
    ("labels", "outputs", "wanted"),
    [
        ("aab", "xyz", "labels"),
        ("aaa", "xyz", "outputs"),  # one label for all tells nothing
        ("abc", "xyz", "outputs"),  # nor does one for each
        ("abc", "", None),
        ("", "xy", "outputs"),
    ],
)
def test_labels_are_the_objective_when_they_repeat_and_differ(labels, outputs, wanted):
    sample = [
        Example(str(i), "x", label=labels[i] if labels else None, output=outputs[i] if i < len(outputs) else None)
        for i in range(3)
    ]
    judged = objective(sample)
    assert (judged and judged.name) == wanted


def test_a_calibration_survives_the_manifest():
    made = Calibration(0.3, "labels", 12, (0.1, 0.25))
    assert Calibration.from_dict(json.loads(json.dumps(made.to_dict()))) == made


@pytest.mark.parametrize("stored", [None, [], {}, {"weight": 0.5}, {**Calibration(0.5, "none").to_dict(), "more": 1}])
def test_a_stored_calibration_that_is_none_is_an_error(stored):
    with pytest.raises(InvalidInput, match="expected weight, objective, sample and utilities"):
        Calibration.from_dict(stored)


def test_the_grid_and_the_sample_are_fixed():
    assert GRID == (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
    assert len(set(permutation(ROWS, 0, "", "calibration").tolist())) == ROWS


def test_a_flat_stretch_gives_its_middle_and_not_its_luckiest_weight():
    # 100 examples; weights .2 to .8 differ by chance alone (one example each way), the others are clearly worse.
    gained = np.full((100, len(GRID)), 0.5)
    gained[:, [0, 1, 9, 10]] = 0.2
    gained[7, GRID.index(0.7)] = 0.9
    assert best_weight(gained) == 0.5


def test_a_clear_winner_at_the_end_is_taken():
    gained = np.tile(np.linspace(0.0, 1.0, len(GRID)), (100, 1))
    assert best_weight(gained) == 1.0

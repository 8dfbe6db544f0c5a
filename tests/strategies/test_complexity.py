"""The complexity prior: steps counted by hand, and the combination against its definition in fractions."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategy_cases import first_best, is_selection, many, shares, wanted

from retriever.errors import InvalidInput
from retriever.ranking.strategies.complexity import complexities, complexity, steps

columns = st.lists(st.tuples(st.integers(-8, 8), st.integers(0, 6)), max_size=10)


@pytest.mark.parametrize(
    ("rationale", "count"),
    [
        ("", 0),
        (" \n \n", 0),
        ("4 + 4 = 8", 1),
        ("4 + 4 = 8\n8 / 2 = 4\n", 2),
        ("First add.\n\n\nThen halve. It is 4.", 2),
        ("First add 3.5 and 4.5. Then halve! Is it 4? Yes", 4),
        ("Wait... then halve.", 2),
        ("It costs 4.", 1),
        ("...", 0),
        ("先加。再减半。", 2),
    ],
)
def test_steps_are_lines_or_the_sentences_of_a_single_line(rationale, count):
    assert steps(rationale) == count


@given(st.lists(st.text("ab .", min_size=1).filter(str.strip), min_size=2, max_size=6))
def test_several_lines_count_whatever_their_sentences(lines):
    assert steps("\n".join(lines)) == len(lines)


def test_without_any_rationale_the_words_of_the_input_count():
    assert complexities([None, "", None], ["one two", "one", "one  two three"]).tolist() == [2, 1, 3]


def test_steps_and_words_are_not_mixed():
    assert complexities(["a\nb", None], ["one", "one two three"]).tolist() == [2, 0]


def test_the_combination_by_hand():
    # Relevance .9, .5, .1 becomes 1, .5, 0; steps 2, 6, 4 become 0, 1, .5. At weight .5: .5, .75, .25.
    chosen = complexity(np.array([0.9, 0.5, 0.1]), np.array([2.0, 6.0, 4.0]), 3)
    assert chosen.places.tolist() == [1, 0, 2]
    assert chosen.gains == pytest.approx([0.75, 0.5, 0.25])
    assert chosen.against.tolist() == [-1, -1, -1]


def mapped(numbers):
    low, high = min(numbers), max(numbers)
    return [Fraction(number - low, high - low) if high > low else Fraction(0) for number in numbers]


@many
@given(columns, wanted, shares)
def test_complexity_is_the_ranking_by_the_weighted_sum(rows, k, weight):
    relevance, counts = [row[0] for row in rows], [row[1] for row in rows]
    chosen = complexity(np.array(relevance, dtype=np.float64), np.array(counts, dtype=np.float64), k, weight=weight)
    assert is_selection(chosen.places.tolist(), len(rows), k)
    value = {}
    if rows:
        pairs = enumerate(zip(mapped(counts), mapped(relevance), strict=True))
        value = {place: Fraction(weight) * c + (1 - Fraction(weight)) * r for place, (c, r) in pairs}
    expected = []
    while value and len(expected) < k:
        expected.append(first_best(value))
        del value[expected[-1]]
    assert chosen.places.tolist() == expected


def test_at_weight_one_the_most_complex_come_first_and_at_zero_the_most_relevant():
    relevance, counts = np.array([0.9, 0.8, 0.7, 0.6]), np.array([1.0, 3.0, 3.0, 2.0])
    assert complexity(relevance, counts, 4, weight=1.0).places.tolist() == [1, 2, 3, 0]
    assert complexity(relevance, counts, 4, weight=0.0).places.tolist() == [0, 1, 2, 3]


def test_inputs_that_cannot_be_used_are_errors():
    with pytest.raises(InvalidInput, match="1 inputs; expected 2, one for each rationale"):
        complexities([None, None], ["one"])
    with pytest.raises(InvalidInput, match="weight = 2"):
        complexity(np.zeros(1), np.zeros(1), 1, weight=2)
    with pytest.raises(InvalidInput, match="complexities that are not finite"):
        complexity(np.zeros(1), np.array([np.nan]), 1)

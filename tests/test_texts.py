"""Many strings in flat arrays; equal key texts share a number."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from indexes.strings import Strings
from retriever.texts import numbered

ANY_TEXT = st.lists(st.text(st.characters(exclude_categories=[])))  # lone surrogates included


@given(ANY_TEXT)
def test_strings_come_back_one_by_one_all_together_and_in_slices(strings):
    packed = Strings.of(strings)
    assert (len(packed), list(packed), packed[:]) == (len(strings), strings, strings)
    assert [packed[i] for i in range(len(packed))] == strings
    assert packed[1:3] == strings[1:3]


@pytest.mark.parametrize("number", [-1, 2])
def test_a_number_that_is_not_there_is_refused(number):
    with pytest.raises(IndexError):
        Strings.of(["a", "b"])[number]


@given(st.lists(st.sampled_from(["", "a", "b", "ab", "ä"])), st.integers(1, 4))
def test_texts_are_numbered_by_first_appearance_however_often_hashes_collide(texts, different):
    first: dict[str, int] = {}
    expected = [first.setdefault(text, len(first)) for text in texts]
    hashes = np.array([sum(text.encode()) % different for text in texts], dtype=np.uint64)
    assert numbered(Strings.of(texts), hashes).tolist() == expected

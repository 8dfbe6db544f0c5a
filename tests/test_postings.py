"""Postings built in runs: the same as counting by hand, wherever a block ends."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from indexes import postings as module
from indexes.postings import Postings, check_postings
from indexes.vocabulary import Vocabulary

terms = st.text(st.characters(codec="utf-8"), min_size=1, max_size=3)
corpora = st.lists(st.lists(st.sampled_from("abcdef") | terms, max_size=6), max_size=12)


def counted(documents):
    """For each term, in order of its bytes, the rows that contain it and how often."""
    found = {}
    for row, document in enumerate(documents):
        for term, count in Counter(document).items():
            found.setdefault(term, []).append((row, count))
    return {term: found[term] for term in sorted(found, key=str.encode)}


@given(corpora, st.integers(1, 9))
def test_postings_are_what_counting_gives_wherever_blocks_end(documents, block):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_BLOCK", block)
        built = Postings.from_documents(iter(documents))
    check_postings(built)
    spans = [slice(a, b) for a, b in zip(built.offsets[:-1], built.offsets[1:], strict=True)]
    pairs = [list(zip(built.rows[s].tolist(), built.counts[s].tolist(), strict=True)) for s in spans]
    assert dict(zip(built.vocabulary, pairs, strict=True)) == counted(documents)
    assert list(built.vocabulary) == list(counted(documents))
    assert built.lengths.tolist() == [len(document) for document in documents]
    dtypes = [array.dtype for array in (built.offsets, built.rows, built.counts, built.lengths)]
    assert dtypes == [np.int64, np.int32, np.int32, np.int32]


@pytest.mark.parametrize("often", [255, 256, 65_536])
def test_a_term_that_occurs_very_often_in_a_document_is_counted_in_full(often):
    built = Postings.from_documents([["a"] * often, ["a"]])
    assert built.counts.tolist() == [often, 1]


@given(st.lists(terms, unique=True, max_size=40), st.lists(terms, max_size=5), st.integers(1, 7))
def test_every_term_of_a_vocabulary_is_found_and_no_other(there, others, heads):
    ordered = sorted(there)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("indexes.vocabulary._MOST_HEADS", heads)
        vocabulary = Vocabulary.from_terms(ordered)
        assert [vocabulary.find(term) for term in ordered] == list(range(len(ordered)))
        assert {vocabulary.find(term) for term in others if term not in there} <= {-1}

"""Revisions: a digest over everything that led to a state, so that nothing of it can be lost or altered unseen."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retriever.revisions import GENESIS, Link, Revision, chain


def sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def test_before_the_first_revision_the_chain_is_64_zeros():
    assert Revision() == Revision(0, "0" * 64)
    assert GENESIS == "0" * 64


def test_a_revision_that_changes_nothing_is_the_digest_of_its_predecessor_and_its_number():
    assert Link(Revision(6, "a" * 64)).revision() == Revision(7, sha("a" * 64 + " 7\n"))


def test_removals_and_additions_are_lines_of_the_digest():
    link = Link(Revision(1, "a" * 64))
    link.remove(3)
    link.remove(12)
    link.add("h" * 64, None)
    link.add("i" * 64, b"\x00\x01")
    stored = hashlib.sha256(b"\x00\x01").hexdigest()
    assert link.revision().chain == sha(f"{'a' * 64} 2\n-3\n-12\n+{'h' * 64} \n+{'i' * 64} {stored}\n")


changes = st.lists(
    st.tuples(
        st.lists(st.integers(1, 50), max_size=3, unique=True).map(sorted),
        st.lists(st.tuples(st.sampled_from("pqr"), st.none() | st.binary(max_size=3)), max_size=3),
    ),
    max_size=5,
)


def linked(start: Revision, steps) -> list[Revision]:
    """The revisions one after the other, as a writer makes them."""
    found = [start]
    for removed, added in steps:
        link = Link(found[-1])
        for row in removed:
            link.remove(row)
        for one in added:
            link.add(*one)
        found.append(link.revision())
    return found


def recorded(start: Revision, steps):
    numbered = list(enumerate(steps, start=start.number + 1))
    return {n: removed for n, (removed, _) in numbered if removed}, {n: added for n, (_, added) in numbered if added}


@given(steps=changes, first=st.integers(0, 9))
def test_what_the_writer_chained_is_worked_out_from_any_earlier_revision(steps, first):
    start = Revision(first, sha("start"))
    # A revision that changes nothing is never written.
    steps = [step for step in steps if step[0] or step[1]]
    removals, additions = recorded(start, steps)
    revisions = linked(start, steps)
    for since in revisions:
        for until in revisions:
            if until.number >= since.number:
                assert chain(since, until.number, removals, additions) == until.chain


STEPS = [([], [("p", None), ("q", None)]), ([1], [("r", b"v")]), ([], [("s", b"w"), ("t", b"x")])]
LOSSES = {
    "a removal": [STEPS[0], ([], [("r", b"v")]), STEPS[2]],
    "an addition": [STEPS[0], ([1], []), STEPS[2]],
    "the last addition": [*STEPS[:2], ([], [("s", b"w")])],
    "the last revision": STEPS[:2],
    "the first revision": [([], []), *STEPS[1:]],
    "the order of rows": [*STEPS[:2], ([], [("t", b"x"), ("s", b"w")])],
    "another row removed": [STEPS[0], ([2], [("r", b"v")]), STEPS[2]],
    "another content": [STEPS[0], ([1], [("R", b"v")]), STEPS[2]],
    "another vector": [STEPS[0], ([1], [("r", b"V")]), STEPS[2]],
    "a vector that is gone": [STEPS[0], ([1], [("r", None)]), STEPS[2]],
    "a vector that came": [([], [("p", b""), ("q", None)]), *STEPS[1:]],
    "two revisions in one": [STEPS[0], ([1], [("r", b"v"), ("s", b"w"), ("t", b"x")])],
    "one more": [*STEPS, ([2], [])],
}


@pytest.mark.parametrize("loss", LOSSES)
def test_any_loss_or_alteration_gives_another_chain(loss):
    whole = chain(Revision(), 3, *recorded(Revision(), STEPS))
    assert chain(Revision(), 9, *recorded(Revision(), LOSSES[loss])) != whole


def test_a_number_beyond_what_was_written_costs_nothing_and_is_no_revision():
    removals, additions = recorded(Revision(), STEPS)
    assert chain(Revision(), 10**15, removals, additions) == chain(Revision(), 3, removals, additions)

"""The benchmark of adaptation: the log that it simulates."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from adaptation import logged, split

from retriever import Example
from retriever.adaptation.feedback import Outcome, Scored, read_feedback
from tests.support import build


def examples(count):
    return [Example(f"e{n}", f"text {n} {'ab'[n % 2]}", output=str(n), label="ab"[n % 2]) for n in range(count)]


def test_who_is_logged_is_not_in_the_pool():
    users, pool = split(examples(40), 10)
    assert len(users) == 10 and {one.id for one in users} | {one.id for one in pool} == {f"e{n}" for n in range(40)}
    assert not {one.id for one in users} & {one.id for one in pool}
    assert split(examples(40), 10) == (users, pool)


@pytest.mark.parametrize("form", ["scores", "prompts"])
def test_a_demonstration_is_right_when_it_has_the_label_of_the_query(tmp_path, form):
    users, pool = split(examples(60), 20)
    labels = {one.id: one.label for one in pool}
    with build(pool, tmp_path / "i") as index:
        found = read_feedback(logged(index, users, form), strict=True)
        chosen = index.select(users[0].input_text, k=8, guard="off")
    assert [line.query.input for line in found.lines] == [user.input for user in users]
    first = found.lines[0]
    if form == "scores":
        assert isinstance(first, Scored)
        assert first.scores == {one: float(labels[one] == users[0].label) for one in chosen.ids}
    else:
        assert isinstance(first, Outcome) and first.ids == chosen.ids
        assert {line.score for line in found.lines} <= {0.0, 1.0}

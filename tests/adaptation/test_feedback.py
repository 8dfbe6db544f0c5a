"""A log of outcomes: its lines, what is set aside, and what it says of demonstrations."""

import json

import numpy as np
import pytest

from retriever import Example
from retriever.adaptation.evidence import evidence_of
from retriever.adaptation.feedback import Outcome, Scored, as_line, known_ids, read_feedback
from retriever.errors import BadRows, InvalidInput

ROWS = {"a": 3, "b": 1, "c": 7}


def log(*lines):
    return read_feedback(lines, strict=True)


def evidence(*lines):
    return evidence_of(log(*lines), ROWS, lambda query: query.input_text)


def test_the_three_forms_of_a_line():
    right = as_line("q", {"demonstrations": ["a", "b"], "right": True})
    assert (right.query.input, right.ids, right.score) == ("q", ("a", "b"), 1.0)
    assert as_line("q", {"demonstrations": ["a"], "right": False}).score == 0.0
    assert as_line("q", {"demonstrations": ["a"], "score": 0.25}).score == 0.25
    scored = as_line({"input": "q", "language": "en"}, {"scores": {"a": -1, "b": -2.5}})
    assert isinstance(scored, Scored) and scored.scores == {"a": -1.0, "b": -2.5}
    assert scored.query.meta == {"language": "en"}


def test_an_exported_record_with_an_outcome_is_a_line():
    record = {
        "query": {"id": "7", "input": "q"},
        "demonstrations": [{"id": "a", "input": "x", "score": 0.3}, {"id": "b", "input": "y"}],
        "dropped": [],
        "generation": "gen-000001",
    }
    [line] = log({**record, "right": True}).lines
    assert line == Outcome(Example(id="7", input="q"), ("a", "b"), 1.0)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"demonstrations": ["a"]}, "no outcome beside the query"),
        ({"demonstrations": ["a"], "right": True, "score": 1}, "right and score"),
        ({"demonstrations": ["a"], "right": 1}, "right is 1"),
        ({"demonstrations": ["a"], "score": True}, "score is True"),
        ({"demonstrations": ["a"], "score": "high"}, "score is 'high'"),
        ({"demonstrations": [], "right": True}, "no demonstrations"),
        ({"right": True}, "no demonstrations"),
        ({"demonstrations": [{"input": "x"}], "right": True}, "a demonstration None"),
        ({"demonstrations": [True], "right": True}, "a demonstration True"),
        ({"demonstrations": [1.5], "right": True}, "a demonstration 1.5"),
        ({"demonstrations": ["a"], "score": 10**400}, "score is not within ±1e.100"),
        ({"demonstrations": ["a"], "score": -2e100}, "score is not within ±1e.100"),
        ({"scores": {"a": 1e200, "b": 0}}, "the score of 'a' is not within ±1e.100"),
        ({"scores": {"a": float("nan")}}, "the score of 'a' is not within"),
        ({"scores": {}}, "scores are {}"),
        ({"scores": {"a": None}}, "the score of 'a' is None"),
        ({"scores": [1, 2]}, "scores are"),
    ],
)
def test_a_line_that_says_no_outcome_is_refused_by_what_it_says(fields, said):
    with pytest.raises(InvalidInput, match=said):
        as_line("q", fields)


def test_bad_lines_are_set_aside_with_their_numbers_or_refused_under_strict(tmp_path):
    file = tmp_path / "feedback.jsonl"
    good = json.dumps({"query": "q", "demonstrations": ["a"], "right": True})
    file.write_text(f'{good}\nnot json\n{{"query": "q"}}\n{{"demonstrations": ["a"], "right": true}}\n{good}\n')
    rows = []
    found = read_feedback(str(file), on_bad=rows.append)
    assert found.name == "feedback.jsonl" and len(found.lines) == 2 and found.bad == 3
    assert [row.line for row in rows] == [2, 3, 4] and "missing field 'query'" in rows[2].reason
    assert found.first_bad == rows[0]
    with pytest.raises(BadRows, match=r"3 bad rows, first .*feedback.jsonl:2"):
        read_feedback(str(file), strict=True)


def test_a_number_without_end_spoils_its_line_alone(tmp_path):
    """Python reads 10^400 from JSON as an integer, which no float holds."""
    file = tmp_path / "feedback.jsonl"
    lines = ['{"query": "q", "demonstrations": ["a"], "score": 1%s}' % zeros for zeros in ("0" * 400, "")]  # noqa: UP031
    file.write_text("\n".join(lines))
    found = read_feedback(file)
    assert [line.score for line in found.lines] == [1.0] and found.bad == 1 and found.first_bad.line == 1


def test_whole_numbers_are_ids_as_those_of_a_pool_and_of_queries_are():
    [line] = log({"query": "q", "demonstrations": [17, {"id": 203}, "17"], "right": True}).lines
    assert line.ids == ("17", "203")


def test_a_query_that_the_index_key_cannot_be_made_of_is_set_aside():
    def usable(query):
        if "title" not in query.meta:
            raise InvalidInput("no title")

    found = read_feedback([{"query": "q", "scores": {"a": 1}}], usable=usable)
    assert (len(found.lines), found.bad) == (0, 1)


def test_the_digest_tells_logs_apart_and_not_how_they_came():
    one = {"query": "q", "scores": {"a": 1, "b": 2}}
    assert log(one).digest == log({"query": {"input": "q"}, "scores": {"b": 2.0, "a": 1.0}}).digest
    assert log(one).digest != log({**one, "scores": {"a": 1, "b": 3}}).digest


def test_unknown_ids_are_counted_and_left_out():
    lines = log({"query": "q", "scores": {"a": 1, "gone": 2}}, {"query": "r", "demonstrations": ["b"], "right": True})
    assert known_ids(lines, lambda ids: {one: ROWS[one] for one in ids if one in ROWS}) == ({"a": 3, "b": 1}, 1)


def test_scores_become_standard_deviations_from_the_mean_of_their_query():
    """Differences are ±1 and ±3, so the standard deviation of the log is sqrt((1 + 1 + 9 + 9) / 4) = sqrt(5)."""
    first, second = evidence(
        {"query": "q", "scores": {"a": 5, "b": 3}}, {"query": "r", "scores": {"b": 0, "c": 6}}
    ).queries
    assert first.rows.tolist() == [1, 3] and first.closed
    assert first.credit == pytest.approx(np.array([-1, 1]) / np.sqrt(5))
    assert second.credit == pytest.approx(np.array([-3, 3]) / np.sqrt(5))
    assert second.gains.tolist() == [0, 1]


def test_no_unit_of_the_scores_matters():
    scores = [{"a": -1.2, "b": -7.0, "c": 0.5}, {"a": 0.1, "c": 0.4}]
    some = evidence(*({"query": str(n), "scores": one} for n, one in enumerate(scores)))
    more = evidence(
        *({"query": str(n), "scores": {i: 40 * s - 3 for i, s in one.items()}} for n, one in enumerate(scores))
    )
    for one, other in zip(some.queries, more.queries, strict=True):
        assert one.credit == pytest.approx(other.credit)


def test_an_outcome_is_credited_against_the_mean_of_query_and_log():
    """Mean 1/2, deviation 1/2. Of `q` the expected outcome is (1 + 1/2) / 2 = 3/4: credit (1 − 3/4) / (1/2) = 1/2."""
    found = evidence(
        {"query": "q", "demonstrations": ["a", "b"], "right": True},
        {"query": "r", "demonstrations": ["c"], "right": False},
    )
    first, second = found.queries
    assert first.credit == pytest.approx([0.5, 0.5]) and not first.closed and not first.tells_apart
    assert second.credit == pytest.approx([-0.5])
    assert [(one.query, one.rows.tolist(), one.score) for one in found.prompts] == [(0, [1, 3], 1.0), (1, [7], 0.0)]


def test_several_prompts_of_a_query_tell_its_demonstrations_apart():
    """Expected (1 + 0 + 1/2) / 3 = 1/2; `a` was shown in both (1/2), `b` when it was right, `c` when it was wrong."""
    [asked] = evidence(
        {"query": "q", "demonstrations": ["a", "b"], "right": True},
        {"query": "q", "demonstrations": ["a", "c"], "right": False},
    ).queries
    assert dict(zip(asked.rows.tolist(), asked.credit.tolist(), strict=True)) == {1: 1.0, 3: 0.0, 7: -1.0}
    assert asked.tells_apart


def test_many_prompts_of_a_query_are_gathered_by_demonstration():
    """Each of 300 prompts shows two of 40; what one did is the mean over the prompts that show it."""
    names = {f"d{n}": n for n in range(40)}
    pairs = [((7 * n) % 40, (7 * n + 1 + n % 39) % 40) for n in range(300)]
    lines = [
        {"query": "q", "demonstrations": [f"d{a}", f"d{b}"], "score": n % 7} for n, (a, b) in enumerate(pairs) if a != b
    ]
    [asked] = evidence_of(log(*lines), names, lambda query: query.input_text).queries
    every = np.array([line["score"] for line in lines], dtype=float)
    expected = (every.sum() + every.mean()) / (len(every) + 1)
    means = [np.mean([n["score"] for n in lines if f"d{row}" in n["demonstrations"]]) for row in asked.rows]
    assert asked.rows.tolist() == list(range(40))
    assert asked.credit == pytest.approx((np.array(means) - expected) / every.std())


def test_lines_of_unknown_demonstrations_alone_say_nothing():
    found = evidence({"query": "q", "demonstrations": ["gone"], "right": True}, {"query": "r", "scores": {"gone": 1}})
    assert found.queries == () and found.prompts == ()

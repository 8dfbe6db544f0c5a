"""Scores of demonstrations by a language model, as lines of feedback."""

import pytest

from retriever import Example
from retriever.adaptation.epr import score_demonstrations
from retriever.adaptation.feedback import read_feedback
from retriever.errors import InvalidInput
from tests.support import build


class Length:
    """Likes the answers that stand in the prompt, and notes what it was asked."""

    def __init__(self):
        self.asked = []

    def log_likelihood(self, prompt, answer):
        self.asked.append((prompt.messages, answer))
        return 0.0 if answer in prompt.messages[-2]["content"] else -5.0


@pytest.fixture
def index(tmp_path):
    pool = [{"id": f"e{n}", "input": f"question {n} of {n % 3}", "output": f"answer {n % 3}"} for n in range(12)]
    with build(pool, tmp_path / "i") as built:
        yield built


def test_each_candidate_stands_alone_before_the_query_and_the_true_answer_is_scored(index):
    model = Length()
    [line] = score_demonstrations(index, [Example("q", "question of 1", output="answer 1")], model, k=5)
    assert len(line["scores"]) == len(model.asked) == 5
    assert {answer for _, answer in model.asked} == {"answer 1"}
    for messages, _ in model.asked:
        assert [message["role"] for message in messages[-3:]] == ["user", "assistant", "user"]
        assert sum(message["role"] == "assistant" for message in messages) == 1
        assert "question of 1" in messages[-1]["content"]
        assert not any("answer 1" in message["content"] for message in messages[-1:])
    for identity, score in line["scores"].items():
        assert score == (0.0 if int(identity[1:]) % 3 == 1 else -5.0)
    assert "output" not in line["query"]


def test_the_lines_are_feedback_and_no_example_is_its_own_candidate(index):
    own = index.snapshot.examples(range(12))
    lines = list(score_demonstrations(index, own, Length(), k=4))
    assert [one.query.input for one in read_feedback(lines, strict=True).lines] == [one.input for one in own]
    assert all(one.id not in line["scores"] for one, line in zip(own, lines, strict=True))


def test_a_query_without_a_true_answer_is_refused(index):
    with pytest.raises(InvalidInput, match="'q' without an output"):
        next(score_demonstrations(index, [Example("q", "question")], Length()))

"""Relevance judgements: the two formats, and every line that is neither."""

from __future__ import annotations

import pytest

from retriever.errors import BadRows, InvalidInput
from retriever.evaluation.queries import read_qrels


def written(tmp_path, text, encoding="utf-8"):
    path = tmp_path / "qrels.tsv"
    path.write_bytes(text.encode(encoding))
    return path


@pytest.mark.parametrize(
    "text",
    [
        "q1\td1\t2\nq1\td 2\t0\nq2\td1\t1\n",
        "query-id\tcorpus-id\tscore\r\nq1\td1\t2\r\nq1\td 2\t0\r\n\r\nq2\td1\t1",
        "\ufeffquery-id\tcorpus-id\tscore\nq1\td1\t2\nq1\td 2\t0\nq2\td1\t1.0\n",
    ],
)
def test_tab_separated_judgements_are_read_with_and_without_a_header(tmp_path, text):
    assert read_qrels(written(tmp_path, text)) == {"q1": {"d1": 2.0, "d 2": 0.0}, "q2": {"d1": 1.0}}


def test_the_columns_of_trec_are_read(tmp_path):
    assert read_qrels(written(tmp_path, "q1 0 d1 2\nq1\t0\td2\t-1\n")) == {"q1": {"d1": 2.0, "d2": -1.0}}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("q\td\t1\nq\td\t1\n", ":2: 'q' and 'd' have a grade already"),
        ("q\td\t1\nq\td2\tgood\n", ":2: no grade in"),
        ("q\td\t1\nq\td2\n", ":2: no grade in"),
        ("q\td\t1\nq\td2\tnan\n", ":2: no grade in"),
        ("q\td\t1\nq\td2\tinf\n", ":2: no grade in"),
        ("q d 1\nq d 2\n", "2 bad lines, first .*:1: no grade in 'q d 1'"),
        ("q\td\nq\td\t1\n", "^1 bad line: .*:1: no grade in"),
    ],
)
def test_a_line_that_is_no_judgement_is_refused_by_its_number(tmp_path, text, said):
    with pytest.raises(BadRows, match=said):
        read_qrels(written(tmp_path, text))


def test_a_file_that_is_none_is_refused(tmp_path):
    with pytest.raises(InvalidInput, match="No such file"):
        read_qrels(tmp_path / "nothing")
    with pytest.raises(InvalidInput, match="UTF-8"):
        read_qrels(written(tmp_path, "é", "latin-1"))
    with pytest.raises(InvalidInput, match="without a line"):
        read_qrels(written(tmp_path, "query\tdocument\tgrade\n"))

"""The command `eval`: what it prints in each form, and what it refuses."""

from __future__ import annotations

import csv
import json

import pytest

from retriever.evaluation.judge import ANSWER_METRICS
from retriever.evaluation.judged import METRICS
from tests.support import run
from tests.test_docs import section

WORDS = ("apple", "banana", "cherry", "damson")
ROWS = [
    {"id": f"p{i}", "text": f"{WORDS[i % 4]} number {i * 37}", "kind": WORDS[i % 4], "reply": f"eat {WORDS[i % 4]}"}
    for i in range(48)
]
ASKED = [{"text": f"a {WORDS[i % 4]} please", "kind": WORDS[i % 4], "reply": "?"} for i in range(32)]
FIELDS = ("--input", "text", "--output", "reply", "--label", "kind")


def ok(*arguments):
    result = run(*arguments)
    assert result.exit_code == 0, result.stderr
    return result


def refused(code, *arguments):
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (code, ""), result.stderr
    return result.stderr


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with an index, queries and a recipe."""
    folder = tmp_path_factory.mktemp("eval")
    for name, rows in (("pool", ROWS), ("asked", ASKED)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "random.toml").write_text('[select]\nstrategy = "random"\n')
    ok("build", folder / "pool.jsonl", "-o", folder / "i", *FIELDS, "--embedder", "latent", "--weight", "0.5")
    return folder


def asked(made):
    return made / "i", made / "asked.jsonl", *FIELDS, "--resamples", "200"


def test_the_same_command_prints_the_same_bytes(made):
    arguments = ("eval", made / "i", "--leave-one-out", "20", "--resamples", "200", "--embedder", "latent")
    for form in ("json", "csv", "table"):
        assert ok(*arguments, "--as", form).stdout == ok(*arguments, "--as", form).stdout


def test_json_tells_recipes_metrics_labels_and_worst_queries(made):
    told = json.loads(ok("eval", *asked(made), "-k", "4", "--worst", "2").stdout)
    assert [one["name"] for one in told["recipes"]] == ["own (hybrid)", "dense", "lexical"]
    assert {one["recipe"]["select"]["k"] for one in told["recipes"]} == {4}
    assert [one["metric"] for one in told["metrics"]] == ["precision", "hit", "majority-vote", "redundancy", "tokens"]
    assert told["queries"] == 32 and len(told["labels"]) == 4 and len(told["worst"]) == 2
    score = told["metrics"][0]["scores"][0]
    assert score["low"] <= score["mean"] <= score["high"]
    assert told["settings"] == {"guard": "near", "seed": 0, "resamples": 200, "level": 0.95}


def test_csv_has_a_row_for_each_metric_and_recipe(made):
    arguments = ("--recipe", made / "random.toml", "--metric", "precision@2", "--metric", "tokens", "--as", "csv")
    rows = list(csv.DictReader(ok("eval", *asked(made), *arguments).stdout.splitlines()))
    assert [(row["metric"], row["recipe"]) for row in rows] == [
        ("precision@2", "own (hybrid)"),
        ("precision@2", "random"),
        ("tokens", "own (hybrid)"),
        ("tokens", "random"),
    ]
    assert (rows[0]["verdict"], rows[1]["verdict"]) == ("best", "worse")
    assert float(rows[1]["difference_high"]) < 0


def test_times_are_told_only_when_they_are_asked_for(made):
    for form in ("json", "csv"):
        name = "milliseconds"
        assert name not in ok("eval", *asked(made), "--as", form).stdout
        assert name in ok("eval", *asked(made), "--as", form, "--times").stdout


def test_the_table_shows_ties_as_ties(made):
    shown = ok("eval", *asked(made), "--as", "table", "--recipe", made / "random.toml", "--metric", "hit@1").stdout
    lines = [line.split() for line in shown.splitlines()]
    assert lines[2][0] == "hit@1" and lines[2][-1] == "best"
    assert lines[3][0] == "random" and lines[3][-1] == "worse"
    tied = ok("eval", *asked(made), "--as", "table", "--metric", "hit").stdout.splitlines()
    assert sum(line.endswith("tied") for line in tied) == 2


def test_judgements_are_read_from_a_file(made, tmp_path):
    (tmp_path / "asked.csv").write_text("id,text\nq1,apple\nq2,nobody judged this\n")
    (tmp_path / "qrels.tsv").write_text("q1\tp0\t1\n")
    arguments = (tmp_path / "asked.csv", "--input", "text", "--qrels", tmp_path / "qrels.tsv", "--resamples", "100")
    told = json.loads(ok("eval", made / "i", *arguments, "-k", "48").stdout)
    assert [(one["metric"], one["queries"]) for one in told["metrics"][:3]] == [("ndcg", 1), ("recall", 1), ("mrr", 1)]
    assert told["metrics"][1]["scores"][0]["mean"] == 1.0


def test_bad_queries_are_set_aside_and_told_or_refused(made, tmp_path):
    (tmp_path / "asked.jsonl").write_text('{"input": "apple", "label": "apple"}\n{"label": "apple"}\n')
    arguments = ("eval", made / "i", tmp_path / "asked.jsonl", "--resamples", "100", "--metric", "hit")
    result = ok(*arguments)
    assert "asked.jsonl:2" in result.stderr and json.loads(result.stdout)["queries"] == 1
    assert "asked.jsonl:2" in refused(7, *arguments, "--strict")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "neither queries nor leave_one_out"),
        (("--leave-one-out", "5", "--guard", "off"), "would give its answer away"),
        (("--leave-one-out", "5", "--metric", "beauty"), "the metric 'beauty'"),
        (("--leave-one-out", "5", "--metric", "ndcg"), "no query has a relevance judgement"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_with_exit_code_2(made, arguments, said):
    assert said in refused(2, "eval", made / "i", *arguments)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ("eval", "--leave-one-out", "5", "--label", "kind", "--no-output", "--strict", "--format", "csv"),
            "--no-output, --label, --format, --strict without QUERIES",
        ),
        (("tune", "--leave-one-out", "5", "--input", "text"), "--input without QUERIES"),
        (("tune", "--strict"), "--strict without QUERIES"),
        (("report", "-o", "r.html", "--format", "csv"), "--format without --queries"),
        (("report", "-o", "r.html", "--id", "number"), "--id without --queries"),
        (("audit", "--input", "text"), "--input without QUERIES"),
        (("audit", "--id", "id", "--format", "csv"), "--id, --format without QUERIES"),
        (("eval", "FILE", "--leave-one-out", "5"), "QUERIES together with --leave-one-out"),
        (("tune", "FILE", "--leave-one-out", "5"), "QUERIES together with --leave-one-out"),
        (("report", "-o", "r.html", "--queries", "FILE", "--leave-one-out", "5"), "--queries together with"),
        (("eval", "--leave-one-out", "5", "--as", "csv", "--json"), "--json together with --as csv"),
        (("eval", "--leave-one-out", "5", "--as", "table", "--json"), "--json together with --as table"),
    ],
)
def test_an_option_that_would_be_ignored_is_refused_by_its_name(made, arguments, said):
    verb, *others = (made / "asked.jsonl" if one == "FILE" else one for one in arguments)
    assert said in refused(2, verb, made / "i", *others)


def test_json_may_be_asked_for_twice(made):
    arguments = ("eval", made / "i", "--leave-one-out", "20", "--resamples", "200")
    assert ok(*arguments, "--as", "json", "--json").stdout == ok(*arguments).stdout


@pytest.mark.parametrize("verb", ["eval", "tune"])
def test_judgements_of_another_pool_are_refused_and_those_of_more_than_it_are_told(made, tmp_path, verb):
    rows = [{**row, "id": f"q{i}", "text": f"{row['text']}, number {i}"} for i, row in enumerate(ASKED)]
    (tmp_path / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "qrels.tsv").write_text("".join(f"q{i}\td{i}\t1\n" for i in range(32)))
    arguments = (verb, made / "i", tmp_path / "asked.jsonl", *FIELDS, "--resamples", "200")
    arguments += ("--qrels", tmp_path / "qrels.tsv")
    assert "32 examples are relevant, the first 'd0', none of them in the pool" in refused(2, *arguments)
    (tmp_path / "qrels.tsv").write_text("".join(f"q{i}\tp{i}\t1\nq{i}\td{i}\t1\n" for i in range(32)))
    told = ok(*arguments, *(("--dry-run",) if verb == "tune" else ()))
    assert "32 of 64 relevant examples are not in the pool" in told.stdout


@pytest.mark.parametrize(("level", "shown"), [("0.999", "99.9%"), ("0.95", "95%"), ("0.57", "57%")])
def test_the_level_of_intervals_is_shown_with_the_digits_that_it_has(made, level, shown):
    told = ok("eval", made / "i", "--leave-one-out", "20", "--resamples", "200", "--as", "table", "--level", level)
    assert f" {shown} interval " in told.stdout and f"its {shown} interval" in told.stdout


def test_a_file_of_answers_that_cannot_be_used_is_told_before_the_index_is_opened(made, tmp_path):
    (tmp_path / "text").write_text("no database at all, but a text that is long enough" * 10)
    model = ("--backend", "command:cat", "--metric", "f1", "--cache")
    for verb in ("eval", "tune"):
        arguments = (verb, tmp_path / "no index", "--leave-one-out", "5", *model)
        assert "delete it: what it held is asked again" in refused(1, *arguments, tmp_path / "text")
        assert "no folder" in refused(2, *arguments, tmp_path / "nowhere" / "answers.sqlite")
        assert "cannot be read or written" in refused(1, *arguments, tmp_path)


def test_the_readme_lists_every_metric():
    told, answers = section("README.md", "Evaluate"), section("README.md", "With a language model")
    assert [name for name in METRICS if f"`{name}`" not in told] == []
    assert [name for name in ANSWER_METRICS if f"`{name}`" not in answers] == []

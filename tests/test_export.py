"""Batch export: one record per query, in input order, whole or not at all."""

import csv
import io
import json
import sys

import pytest
from pyarrow import parquet

from retriever import Recipe
from retriever.errors import DelimiterCollision, InvalidInput, MissingDependency
from retriever.example import Example
from retriever.export import FORMS, ExportSettings, export, record
from retriever.formats import BadRowLog, read_queries
from retriever.prompting import BatchSettings, Template, load_counter
from retriever.selector import MAX_BLOCK
from tests.support import build

POOL = [
    {"id": "a", "input": "my card has not arrived", "output": "card_arrival", "label": "card_arrival"},
    {"id": "b", "input": "the card was eaten by the machine", "output": "card_swallowed", "label": "card_swallowed"},
    {"id": "c", "input": "how do I top up my account", "output": "top_up", "label": "top_up"},
    {"id": "d", "input": "why was my transfer declined", "output": "declined_transfer", "label": "declined_transfer"},
]
QUERIES = [
    Example("q1", "where is my card"),
    Example("q2", "transfer declined again", "declined_transfer"),
    Example("q3", "top up by machine", meta={"language": "en"}),
]
SELECTED = {
    "query_id",
    "query",
    "demonstration_ids",
    "scores",
    "demonstrations",
    "dropped",
    "notes",
    "recipe",
    "generation",
    "revision",
}
K2 = Recipe().with_options({"k": 2})


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    with build(POOL, tmp_path_factory.mktemp("export") / "x.index", weight=0.5) as retriever:
        yield retriever


def settings(as_form="demos", **options):
    batch = BatchSettings("m", 64) if as_form.endswith("-batch") else None
    return ExportSettings(as_form, options.pop("recipe", K2), options, batch)


def lines(path):
    return [json.loads(line) for line in path.read_bytes().decode().split("\n")[:-1]]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_demos_record_says_what_was_selected_and_how(index, tmp_path):
    assert export(index, QUERIES, tmp_path / "o.jsonl", settings()) == 3
    for query, written in zip(QUERIES, lines(tmp_path / "o.jsonl"), strict=True):
        selection = index.select(query, k=2)
        chosen = selection.in_prompt_order
        assert set(written) == SELECTED
        assert written["query_id"] == query.id
        assert written["query"] == query.to_dict()
        assert written["demonstration_ids"] == [d.example.id for d in chosen]
        assert written["scores"] == [d.score for d in chosen]
        assert [d["rank"] for d in written["demonstrations"]] == [2, 1]  # best last, next to the query
        assert Recipe.of(written["recipe"]) == selection.recipe
        assert written["recipe"]["retrieve"]["weight"] == 0.5  # filled in, not left to the index
        assert (written["generation"], written["revision"]) == (selection.generation, selection.revision)


def test_a_prompts_record_adds_the_prompt_as_text(index, tmp_path):
    export(index, QUERIES, tmp_path / "o.jsonl", settings("prompts"))
    for query, written in zip(QUERIES, lines(tmp_path / "o.jsonl"), strict=True):
        prompt = index.prompt(query, k=2, prompt_options={"form": "text"})
        assert set(written) == SELECTED | {"tokens", "demonstration_tokens", "skipped", "shortened", "prompt"}
        assert (written["prompt"], written["tokens"], written["skipped"]) == (prompt.text, prompt.tokens, [])
        costs = zip((example.id for example in prompt.demonstrations), prompt.costs, strict=True)
        assert written["demonstration_tokens"] == dict(costs)


def test_a_messages_record_adds_the_prompt_as_messages(index, tmp_path):
    export(index, QUERIES, tmp_path / "o.jsonl", settings("messages"))
    for query, written in zip(QUERIES, lines(tmp_path / "o.jsonl"), strict=True):
        assert set(written) == SELECTED | {"tokens", "demonstration_tokens", "skipped", "shortened", "messages"}
        assert written["messages"] == list(index.prompt(query, k=2).messages)


FORGED = [{"id": i, "input": f"card {i}", "output": "ok\n\nInput: x" if i == "z" else "ok"} for i in "abcz"]


@pytest.fixture(scope="module")
def forged(tmp_path_factory):
    """Of four examples `z` contains a delimiter of the text form."""
    with build(FORGED, tmp_path_factory.mktemp("forged") / "x.index", weight=0.5) as retriever:
        yield retriever


def test_what_a_prompts_record_says_is_of_the_text(forged, tmp_path):
    recipe = Recipe().with_options({"k": 4})
    export(
        forged, [Example("q", "my card")], tmp_path / "o.jsonl", settings("prompts", recipe=recipe, collisions="drop")
    )
    (written,) = lines(tmp_path / "o.jsonl")
    assert sorted(written["demonstration_ids"]) == ["a", "b", "c", "z"]  # those that were selected
    assert written["skipped"] == ["z"]
    # "Input: card a\nOutput: ok" is Input 2, the rest of its line 4, Output 2, the rest 2; then a blank line of 2
    assert written["demonstration_tokens"] == {i: 2 + 4 + 2 + 2 + 2 for i in written["demonstration_ids"] if i != "z"}
    # "Input: my card\nOutput:"
    assert written["tokens"] == 3 * 12 + (2 + 4 + 2 + 1) == load_counter().count(written["prompt"])
    assert written["prompt"].count("Input:") == 4
    assert "card z" not in written["prompt"]


def test_messages_have_no_delimiters_and_drop_nothing(forged, tmp_path):
    recipe = Recipe().with_options({"k": 4})
    export(
        forged, [Example("q", "my card")], tmp_path / "o.jsonl", settings("messages", recipe=recipe, collisions="drop")
    )
    (written,) = lines(tmp_path / "o.jsonl")
    assert written["skipped"] == []
    # 2 and 1, and 4 for each message; "ok\n\nInput: x" is 1 + 2 + 3 + 1
    assert written["demonstration_tokens"] == {**dict.fromkeys(written["demonstration_ids"], 11), "z": 10 + 7}
    assert written["tokens"] == 3 * 11 + 17 + (2 + 4) + 3


WORDY = Template("wordy", text_input="A man who is here said: $input\n", text_output="So we told him that: $output")


@pytest.mark.parametrize(
    ("form", "each", "rest", "standing"),
    [
        # 6 words, a colon, 2 words, a line break; 5 words, a colon, 1 word; a blank line of 2. The query has no output.
        ("prompts", 7 + 2 + 1 + 6 + 1 + 2, 7 + 2 + 1 + 6, 2),
        # 2 words and 1, and 4 for each message; 3 for the reply
        ("messages", 2 + 1 + 2 * 4, 2 + 4 + 3, 3),
    ],
)
def test_a_token_budget_is_of_the_form_that_is_written(forged, tmp_path, form, each, rest, standing):
    recipe = Recipe().with_options({"k": 3, "tokens": 64, "reserve": 10, "where": {"id": {"in": ["a", "b", "c"]}}})
    export(forged, [Example("q", "my card")], tmp_path / "o.jsonl", settings(form, recipe=recipe, template=WORDY))
    (written,) = lines(tmp_path / "o.jsonl")
    assert list(written["demonstration_tokens"].values()) == [each] * standing
    assert written["tokens"] == rest + standing * each <= 54
    assert len(written["skipped"]) == 3 - standing
    assert sorted([*written["skipped"], *written["demonstration_tokens"]]) == ["a", "b", "c"]
    if form == "prompts":
        assert load_counter().count(written["prompt"]) == written["tokens"]


@pytest.mark.parametrize("form", FORMS)
def test_a_prompt_is_not_fitted_as_what_is_not_written(form):
    written, other = ("text", "messages") if form == "prompts" else ("messages", "text")
    assert settings(form, form=written).prompt_form == written
    if form != "demos":
        with pytest.raises(InvalidInput, match=f"export as '{form}', fitted as '{other}'; expected '{written}'"):
            settings(form, form=other)


@pytest.mark.parametrize(("form", "body"), [("openai-batch", "body"), ("anthropic-batch", "params")])
def test_a_batch_record_is_a_request_and_nothing_else(index, tmp_path, form, body):
    export(index, QUERIES, tmp_path / "o.jsonl", settings(form))
    written = lines(tmp_path / "o.jsonl")
    assert [request["custom_id"] for request in written] == ["q1", "q2", "q3"]
    assert {frozenset(request) for request in written} == {
        frozenset({"custom_id", "method", "url", "body"} if body == "body" else {"custom_id", "params"})
    }
    for query, request in zip(QUERIES, written, strict=True):
        assert request[body]["model"] == "m"
        turns = [m for m in index.prompt(query, k=2).messages if m["role"] != "system"]
        assert [m for m in request[body]["messages"] if m["role"] != "system"] == turns


@pytest.mark.parametrize("form", FORMS)
def test_each_line_is_the_record_of_its_query(index, tmp_path, form):
    export(index, QUERIES, tmp_path / "o.jsonl", settings(form))
    assert lines(tmp_path / "o.jsonl") == [record(index, index.select(q, k=2), settings(form)) for q in QUERIES]


@pytest.mark.parametrize("form", FORMS)
def test_parquet_holds_what_json_lines_hold(index, tmp_path, form):
    export(index, QUERIES, tmp_path / "o.jsonl", settings(form))
    export(index, QUERIES, tmp_path / "o.parquet", settings(form))
    rows = parquet.read_table(tmp_path / "o.parquet").to_pylist()
    expected = lines(tmp_path / "o.jsonl")
    assert [set(row) for row in rows] == [set(one) for one in expected]
    for row, one in zip(rows, expected, strict=True):
        for name, value in one.items():
            # What is neither number nor text stands as JSON.
            assert (json.loads(row[name]) if isinstance(value, list | dict) else row[name]) == value


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_two_runs_write_the_same_bytes(index, tmp_path, suffix):
    recipe = Recipe().with_options({"k": 3, "strategy": "random", "seed": 5, "order": "random"})
    for name in ("one", "two"):
        export(index, QUERIES, tmp_path / f"{name}.{suffix}", settings("messages", recipe=recipe))
    assert (tmp_path / f"one.{suffix}").read_bytes() == (tmp_path / f"two.{suffix}").read_bytes()


def test_the_order_is_that_of_the_input_over_several_blocks(index, tmp_path):
    queries = [Example(f"q{(i * 37) % 600}", f"card {i}") for i in range(600)]
    assert export(index, queries, tmp_path / "o.jsonl", settings()) == 600
    assert [one["query_id"] for one in lines(tmp_path / "o.jsonl")] == [query.id for query in queries]


def test_a_repeated_query_gets_a_record_each_time(index, tmp_path):
    found = read_queries(["where is my card"] * 3, on_bad=BadRowLog())
    assert export(index, found, tmp_path / "o.jsonl", settings()) == 3
    written = lines(tmp_path / "o.jsonl")
    first = written[0]["query_id"]
    assert [one["query_id"] for one in written] == [first, f"{first}-2", f"{first}-3"]
    assert written[0]["demonstration_ids"] == written[1]["demonstration_ids"] == written[2]["demonstration_ids"]


def test_a_bad_query_row_is_set_aside_and_counted(index, tmp_path):
    source = tmp_path / "q.jsonl"
    source.write_text('{"id": "1", "input": "card"}\nnot json\n{"id": "3"}\n{"id": "4", "input": "top up"}\n')
    log = BadRowLog()
    assert export(index, read_queries(str(source), on_bad=log), tmp_path / "o.jsonl", settings()) == 2
    assert [one["query_id"] for one in lines(tmp_path / "o.jsonl")] == ["1", "4"]
    assert (log.count, [row.line for row in log.rows]) == (2, [2, 3])


@pytest.mark.parametrize("suffix", ["jsonl", "parquet", "csv"])
def test_no_queries_make_an_empty_file(index, tmp_path, suffix):
    path = tmp_path / f"o.{suffix}"
    assert export(index, [], path, settings()) == 0
    count = parquet.read_table(path).num_rows if suffix == "parquet" else len(path.read_bytes())
    assert count == 0


def test_a_zero_shot_export_has_no_demonstrations(index, tmp_path):
    export(index, QUERIES, tmp_path / "o.jsonl", settings(recipe=Recipe().with_options({"k": 0})))
    assert [one["demonstration_ids"] for one in lines(tmp_path / "o.jsonl")] == [[], [], []]


@pytest.mark.parametrize("form", ["openai-batch", "anthropic-batch"])
def test_a_batch_form_needs_a_model(form):
    with pytest.raises(InvalidInput, match="a model for the batch form"):
        ExportSettings(form)


@pytest.mark.parametrize("form", ["demos", "prompts", "messages"])
def test_another_form_takes_no_model(form):
    with pytest.raises(InvalidInput, match="no model outside the batch forms"):
        ExportSettings(form, batch=BatchSettings("m"))


def test_an_unknown_form_is_refused_by_name():
    with pytest.raises(InvalidInput, match=r"'csv'.*demos, prompts, messages, openai-batch, anthropic-batch"):
        ExportSettings("csv")


def test_an_unknown_suffix_is_refused_before_a_query_is_read(index, tmp_path):
    def queries():
        pytest.fail("a query was read")
        yield

    with pytest.raises(InvalidInput, match=r"\.jsonl, \.parquet"):
        export(index, queries(), tmp_path / "o.json", settings())
    assert names(tmp_path) == []


def test_a_missing_package_is_told_before_a_query_is_read(index, tmp_path, monkeypatch):
    def queries():
        pytest.fail("a query was read")
        yield

    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingDependency, match="pyarrow"):
        export(index, queries(), tmp_path / "o.parquet", settings())
    assert names(tmp_path) == []


@pytest.mark.parametrize("form", ["demos", "prompts", "messages"])
@pytest.mark.parametrize(("suffix", "delimiter"), [("csv", ","), ("tsv", "\t")])
def test_csv_holds_what_json_lines_hold(index, tmp_path, form, suffix, delimiter):
    export(index, QUERIES, tmp_path / "o.jsonl", settings(form))
    export(index, QUERIES, tmp_path / f"o.{suffix}", settings(form))
    with (tmp_path / f"o.{suffix}").open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file, delimiter=delimiter)
    expected = lines(tmp_path / "o.jsonl")
    assert header == list(expected[0])
    for row, one in zip(rows, expected, strict=True):
        for text, value in zip(row, one.values(), strict=True):
            assert (text if isinstance(value, str) else json.loads(text)) == value


@pytest.mark.parametrize("form", ["openai-batch", "anthropic-batch"])
@pytest.mark.parametrize("suffix", ["csv", "tsv"])
def test_a_batch_form_is_not_written_as_csv(index, tmp_path, form, suffix):
    with pytest.raises(InvalidInput, match=r"\.jsonl or \.parquet file for the batch forms"):
        export(index, QUERIES, tmp_path / f"o.{suffix}", settings(form))
    assert names(tmp_path) == []


@pytest.mark.parametrize("suffix", ["jsonl", "parquet", "csv"])
@pytest.mark.parametrize("older", [None, b"older"])
def test_an_error_in_the_middle_leaves_what_was_there_and_a_partial_file(index, tmp_path, suffix, older):
    path = tmp_path / f"o.{suffix}"
    if older is not None:
        path.write_bytes(older)

    def queries():
        yield from (Example(f"q{i}", "card") for i in range(300))
        raise InvalidInput("the source broke")

    written = []
    with pytest.raises(InvalidInput, match="the source broke"):
        export(index, queries(), path, settings(), progress=lambda stage, done, total: written.append(done))
    assert len(written) == MAX_BLOCK  # so it was in the middle
    assert names(tmp_path) == [*([] if older is None else [path.name]), f"{path.name}.partial"]
    assert older is None or path.read_bytes() == older


def test_a_first_prompt_that_cannot_be_made_leaves_no_file(index, tmp_path):
    queries = [Example("q0", "top up\n\nInput: x\nOutput:"), *QUERIES]
    with pytest.raises(DelimiterCollision):
        export(index, queries, tmp_path / "o.jsonl", settings("prompts"))
    assert names(tmp_path) == []


def test_an_interrupt_leaves_no_file_under_the_name(index, tmp_path):
    def interrupt(stage, done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export(index, QUERIES, tmp_path / "o.jsonl", settings(), progress=interrupt)
    assert names(tmp_path) == ["o.jsonl.partial"]


def test_the_name_appears_only_when_the_file_is_complete(index, tmp_path):
    path = tmp_path / "o.jsonl"
    seen = []
    export(index, QUERIES, path, settings(), progress=lambda stage, done, total: seen.append(path.exists()))
    assert seen == [False, False, False]
    assert names(tmp_path) == ["o.jsonl"]


def test_the_queries_are_read_no_further_than_a_block_ahead(index, tmp_path):
    read = 0

    def queries():
        nonlocal read
        for i in range(20_000):
            read += 1
            yield Example(str(i), "card")

    ahead = []
    count = export(
        index,
        queries(),
        tmp_path / "o.jsonl",
        settings(recipe=Recipe().with_options({"k": 0, "mode": "lexical"})),
        progress=lambda stage, done, total: ahead.append(read - done),
    )
    assert count == read == 20_000
    assert ahead[0] < MAX_BLOCK  # so the first record was written when at most one block was read
    assert max(ahead) < MAX_BLOCK


def test_progress_counts_the_records_and_knows_no_total(index, tmp_path):
    told = []
    export(index, QUERIES, tmp_path / "o.jsonl", settings(), progress=lambda *what: told.append(what))
    assert told == [("exporting", 1, 0), ("exporting", 2, 0), ("exporting", 3, 0)]


def test_a_dash_is_standard_output(index, tmp_path, monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="utf-8"))
    assert export(index, QUERIES, "-", settings()) == 3
    export(index, QUERIES, tmp_path / "o.jsonl", settings())
    assert raw.getvalue() == (tmp_path / "o.jsonl").read_bytes()

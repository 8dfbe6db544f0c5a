"""Example, queries, placeholders and keys."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retriever.errors import InvalidInput, TemplateError
from retriever.example import Example, as_query, render, with_content_id
from retriever.keys import Key
from retriever.placeholders import Piece, parse

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
examples = st.builds(
    Example,
    id=st.text(),
    input=json_values.filter(lambda value: value is not None),
    output=json_values,
    rationale=st.none() | st.text(),
    label=json_values,
    task=st.none() | st.text(),
    meta=st.dictionaries(st.text(max_size=5), json_values, max_size=3),
)
RICH = Example(
    "e1",
    {"question": "who?", "turns": [1, 2]},
    output="me",
    label=["a", 1],
    task="qa",
    meta={"language": "en", "title": "T", "nested": {"deep": 3}, "language.x": "no"},
)


@given(examples)
def test_an_example_survives_its_dictionary_and_json(example):
    assert Example(**example.to_dict()) == example
    assert Example(**json.loads(json.dumps(example.to_dict()))) == example


def test_a_dictionary_holds_only_what_is_set_in_declaration_order():
    assert list(Example("i", "x", label="l", output="y").to_dict()) == ["id", "input", "output", "label"]
    assert Example("i", "x", output="").to_dict() == {"id": "i", "input": "x", "output": ""}


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("input.question", "who?"),
        ("input.turns", [1, 2]),
        ("input.turns.0", None),
        ("meta.language", "en"),
        ("language", "en"),
        ("nested.deep", 3),
        ("nested.deep.er", None),
        ("nowhere", None),
        ("rationale", None),
        ("output.upper", None),
        ("__class__", None),
        ("meta.__class__", None),
        ("labels", None),  # a property, not a field
        ("", None),
    ],
)
def test_a_dotted_path_reads_fields_and_meta_and_nothing_else(path, value):
    assert RICH.value(path) == value


def test_text_is_rendered_as_it_is_and_the_rest_as_json():
    assert render("a\n") == "a\n"
    assert render({"b": "é", "a": [True, None]}) == '{"b": "é", "a": [true, null]}'
    assert RICH.input_text == '{"question": "who?", "turns": [1, 2]}'
    assert (Example("i", "x").output_text, Example("i", "x", output=0).output_text) == ("", "0")


@pytest.mark.parametrize(
    ("label", "labels"), [(None, set()), ("a", {"a"}), (["a", 1], {"a", "1"}), ([], set()), (True, {"true"})]
)
def test_labels_are_a_set_of_texts(label, labels):
    assert Example("i", "x", label=label).labels == labels


@given(examples)
def test_a_content_id_is_24_hexadecimal_digits_and_does_not_depend_on_the_old_id(example):
    made = with_content_id(example)
    assert len(made.id) == 24
    assert set(made.id) <= set("0123456789abcdef")
    assert with_content_id(made) == made


def test_a_content_id_does_not_depend_on_the_order_of_keys_and_is_the_same_in_another_process():
    first = with_content_id(Example("", {"a": 1, "b": 2}, meta={"x": 1, "y": 2}))
    second = with_content_id(Example("", {"b": 2, "a": 1}, meta={"y": 2, "x": 1}))
    assert first.id == second.id
    code = (
        "from retriever.example import *;"
        "print(with_content_id(Example('', {'a': 1, 'b': 2}, meta={'x': 1, 'y': 2})).id)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONHASHSEED": "7"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == first.id


def test_content_ids_tell_different_contents_apart():
    different = [Example("", "x"), Example("", "y"), Example("", "x", output="x"), Example("", 1), Example("", "1")]
    assert len({with_content_id(example).id for example in different}) == len(different)


def test_a_query_is_text_a_mapping_or_an_example():
    assert as_query("q") == with_content_id(Example("", "q"))
    assert as_query(RICH) is RICH
    query = as_query({"id": 7, "input": "q", "label": "l", "language": "en", "meta": {"page": 2}})
    assert query == Example("7", "q", label="l", meta={"language": "en", "page": 2})


@pytest.mark.parametrize("given_id", ["", 0])
def test_a_query_keeps_the_id_it_was_given_whatever_it_is(given_id):
    assert as_query({"id": given_id, "input": "q"}).id == str(given_id)


def test_a_query_without_input_is_an_error_that_names_the_fields_it_has():
    with pytest.raises(InvalidInput, match=r"\['question'\].*expected a field 'input'"):
        as_query({"question": "q"})
    with pytest.raises(InvalidInput, match="input"):
        as_query({"input": None})
    with pytest.raises(InvalidInput, match=r"meta.*expected a mapping"):
        as_query({"input": "q", "meta": "text"})


def test_a_query_mapping_is_not_changed():
    mapping = {"id": "i", "input": "q", "language": "en"}
    as_query(mapping)
    assert mapping == {"id": "i", "input": "q", "language": "en"}


# Placeholders


@pytest.mark.parametrize(
    ("source", "pieces"),
    [
        ("", []),
        ("plain {text}", [Piece("plain {text}", False)]),
        ("$a.b!", [Piece("a.b", True), Piece("!", False)]),
        ("$a.", [Piece("a", True), Piece(".", False)]),
        ("${user question}s", [Piece("user question", True), Piece("s", False)]),
        ("a$$b$$", [Piece("a$b$", False)]),
        ("$$$a", [Piece("$", False), Piece("a", True)]),
        ("${in-put.0}", [Piece("in-put.0", True)]),
    ],
)
def test_the_grammar_of_placeholders(source, pieces):
    assert list(parse(source)) == pieces


@pytest.mark.parametrize(
    ("source", "position"),
    [("a $ b", 2), ("cost: $5", 6), ("$", 0), ("${}", 0), ("${a", 0), ("x${a!r}", 1), ("${a[0]}", 0)],
)
def test_a_dollar_that_starts_no_placeholder_is_an_error_with_its_position(source, position):
    with pytest.raises(TemplateError, match=rf"position {position} .*\$\$ for a dollar"):
        parse(source)


@given(st.text())
def test_doubling_every_dollar_makes_any_text_literal(text):
    assert "".join(piece.text for piece in parse(text.replace("$", "$$"))) == text
    assert not any(piece.variable for piece in parse(text.replace("$", "$$")))


# Keys


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ("input", '{"question": "who?", "turns": [1, 2]}'),
        ("input.question", "who?"),
        ("input.question + output", "who?\nme"),
        ("input.question+rationale+meta.title", "who?\nT"),
        ("$task: ${input.question} $$5", "qa: who? $5"),
        ("meta.nested.deep", "3"),
    ],
)
def test_the_text_of_a_key(spec, text):
    assert Key(spec).text(RICH) == text


@pytest.mark.parametrize("spec", ["", "question", "input+", "input+nowhere", "$nowhere", "language"])
def test_a_key_that_names_no_field_is_an_error_that_says_what_there_is(spec):
    with pytest.raises(InvalidInput, match=r"key .* names .*; expected one of id, input, output, .*meta\.NAME"):
        Key(spec)


def test_a_malformed_template_key_is_a_template_error():
    with pytest.raises(TemplateError, match="position 7"):
        Key("$input $")


def test_a_joined_key_leaves_out_missing_fields_but_not_all_of_them():
    query = as_query({"id": "q1", "input": "q"})
    assert Key("input+output").text(query) == "q"
    with pytest.raises(InvalidInput, match="'q1' has no 'output'"):
        Key("output").text(query)


def test_a_template_key_needs_every_field():
    with pytest.raises(InvalidInput, match=r"'q1' has no 'task'.*\$task: \$input"):
        Key("$task: $input").text(as_query({"id": "q1", "input": "q"}))


def test_a_value_is_never_read_as_a_template():
    assert Key("$task $input").text(Example("i", "$task {id} $$", task="${input}")) == "${input} $task {id} $$"


def test_keys_of_one_specification_are_equal():
    assert Key("input") == Key()
    assert hash(Key("input")) == hash(Key())
    assert Key("output") != Key()

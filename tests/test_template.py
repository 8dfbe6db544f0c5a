"""Templates: one pass, `$name` only, errors by name."""

import json
import pickle
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import example as known_case
from hypothesis import given
from hypothesis import strategies as st

from retriever.errors import InvalidInput, TemplateError
from retriever.example import Example
from retriever.placeholders import Piece, parse
from retriever.prompting.template import MAX_TEMPLATE_BYTES, TEMPLATES, Template, load_template

ATTACKS = ['{"name": "x"}', "{input}", "{input.__class__.__mro__}", "{q:>200000000}"]
"""Outputs that break, leak from or blow up a prompt which is formatted a second time."""


def filled(source, example=None, **slots):
    template = Template("t", output=source)
    template.check_slots(slots)
    return template.fill("output", example or Example("e", "q", "a"), slots)


def test_text_values_are_inserted_as_they_are_and_other_values_as_json():
    row = Example("e", {"question": "why?", "n": 3}, [1, None], meta={"language": "de", "deep": {"a-b": True}})
    assert filled("$input.question", row) == "why?"
    assert filled("${input.question}s $input.n", row) == "why?s 3"
    assert filled("$output", row) == "[1, null]"
    assert filled("$meta.language/${meta.deep.a-b}", row) == "de/true"
    assert filled("$meta", row) == '{"language": "de", "deep": {"a-b": true}}'
    assert filled("$id", row) == "e"


def test_a_name_ends_where_it_cannot_go_on():
    assert filled("$input.") == "q."
    assert filled("$input, [$output]") == "q, [a]"
    assert filled("$inputの") == "qの"
    assert filled("$input.0 $input[0] $input!r $input:>9") == "q.0 q[0] q!r q:>9"


def test_two_dollars_are_one_dollar_and_join_the_literal_around_them():
    assert filled("$$$$5 $$input $$$input") == "$$5 $input $q"
    assert parse("a$$b") == (Piece("a$b", variable=False),)


def test_a_false_an_empty_and_a_zero_value_are_values():
    assert [filled("<$output>", Example("e", "q", v)) for v in (False, "", 0, [])] == ["<false>", "<>", "<0>", "<[]>"]


@pytest.mark.parametrize("attack", [*ATTACKS, "$input", "${output}", "$$", "$labels", "%(input)s", "{{input}}", "$ {"])
def test_data_is_never_a_template(attack):
    assert (
        filled("[$input|$output|$labels]", Example("e", attack, attack), labels=attack)
        == f"[{attack}|{attack}|{attack}]"
    )


@given(st.text(), st.text(), st.text())
@known_case("$output", "$input", "$$")
def test_any_value_stands_verbatim_between_the_literals_of_the_template(one, two, slot):
    assert filled("<1>$input<2>$output<3>$s<4>", Example("e", one, two), s=slot) == f"<1>{one}<2>{two}<3>{slot}<4>"


@pytest.mark.parametrize(
    ("source", "position"),
    [
        ("$", 0),
        ("cost: $5", 6),
        ("$input $", 7),
        ("${input", 0),
        ("${}", 0),
        ("${ input}", 0),
        ("$$ ${input!r}", 3),
        ("${input:>200000000}", 0),
        ("${input[0]}", 0),
        ("${input.}", 0),
        ("${input..a}", 0),
        ("$é", 0),
    ],
)
def test_a_dollar_that_starts_no_placeholder_is_an_error_with_its_position(source, position):
    with pytest.raises(TemplateError, match=rf"'output' of template 't': the '\$' at position {position} .*write \$\$"):
        Template("t", output=source)


@given(st.text(alphabet="$${}.ab_-[]!:0 \n", max_size=12))
def test_every_text_either_parses_and_means_what_a_plain_reading_says_or_is_refused(source):
    try:
        pieces = parse(source)
    except TemplateError:
        return
    rebuilt = "".join("${" + p.text + "}" if p.variable else p.text.replace("$", "$$") for p in pieces)
    assert parse(rebuilt) == pieces
    assert all(p.text for p in pieces)
    assert not any(not a.variable and not b.variable for a, b in pairwise(pieces))
    assert Counter(source)["\n"] == sum(p.text.count("\n") for p in pieces)


@pytest.mark.parametrize("name", ["__class__", "value", "to_dict", "input_text", "labels", "language", "input_"])
def test_an_unknown_placeholder_is_an_error_that_lists_what_is_known(name):
    with pytest.raises(TemplateError) as caught:
        Template("t", output=f"${name}").check_slots({"schema": "s"})
    assert f"'output' of template 't' has the unknown placeholder ${name}" in str(caught.value)
    for known in ("$input", "$output", "$rationale", "$label", "$meta.KEY", "$schema"):
        assert known in caught.value.expected


def test_a_dotted_name_reads_mappings_never_attributes():
    for name in ("input.__class__", "${input.__class__.__mro__}", "$meta.get", "$label.upper"):
        source = name if name.startswith("$") else f"${name}"
        with pytest.raises(TemplateError, match="has no value"):
            filled(source, Example("e", "q", "a", label="l", meta={"x": 1}))


def test_a_missing_value_is_an_error_that_names_the_example_and_the_placeholder():
    with pytest.raises(
        TemplateError, match=r"example 'row-7' has no value for \$rationale of 'output' of template 'cot'"
    ):
        TEMPLATES["cot"].fill("output", Example("row-7", "q", "a"), {})


def test_a_value_that_is_no_json_is_an_error_that_names_the_example():
    with pytest.raises(TemplateError, match=r"\$output of example 'e' is no JSON value"):
        filled("$output", Example("e", "q", float("nan")))
    with pytest.raises(TemplateError, match=r"\$output of example 'e' is no JSON value"):
        filled("$output", Example("e", "q", {1, 2}))


def test_slots_must_be_used_be_text_and_not_shadow_a_field():
    template = TEMPLATES["classification"]
    template.check_slots({"labels": "a, b"})
    with pytest.raises(TemplateError, match=r"unknown placeholder \$labels.*give the slot 'labels' a value"):
        template.check_slots({})
    with pytest.raises(TemplateError, match=r"the slot 'schema' is given.*expected slots among labels"):
        template.check_slots({"labels": "a", "schema": "b"})
    with pytest.raises(TemplateError, match="the slot 'labels' is "):
        template.check_slots({"labels": ["a"]})
    with pytest.raises(TemplateError, match="the slot 'input' has the name of a field"):
        TEMPLATES["io"].check_slots({"input": "b"})


@pytest.mark.parametrize("field", ["input", "text_input"])
@pytest.mark.parametrize("name", ["output", "rationale", "label", "output.sql"])
def test_the_turn_of_the_query_must_not_mention_the_answer(field, name):
    with pytest.raises(TemplateError, match=rf"'{field}' of template 't' mentions \${name}"):
        Template("t", **{field: f"$input ${name}"})


def test_the_system_message_takes_slots_only():
    with pytest.raises(TemplateError, match=r"'system' of template 't' mentions \$input"):
        Template("t", system="You see $input.")


def test_the_separator_must_not_be_empty_and_fields_must_be_text():
    with pytest.raises(TemplateError, match="'separator' of template 't' is empty"):
        Template("t", separator="")
    with pytest.raises(TemplateError, match="'system' of template 't' is None"):
        Template("t", system=None)


def test_the_cue_is_the_literal_start_of_the_text_output():
    assert Template("t").cue == "Output:"
    assert Template("t", text_output="Code:\n\n$output\n").cue == "Code:"
    assert Template("t", text_output="$output").cue == ""
    assert Template("t", text_output="").cue == ""
    assert Template("t", text_output="The answer").cue == "The answer"
    assert TEMPLATES["cot"].cue == "Reasoning:"


ROW = Example("e", "IN", "OUT", rationale="WHY")
SLOTS = {"classification": {"labels": "L"}, "sql": {"schema": "S"}}


def test_the_built_in_templates_render_as_documented():
    golden = {
        "io": ("", "IN", "OUT", "Input: IN\n", "Output: OUT"),
        "classification": (
            "Classify the input. Answer with exactly one of these labels and nothing else:\nL",
            "IN",
            "OUT",
            "Text: IN\n",
            "Label: OUT",
        ),
        "cot": ("", "IN", "WHY\n\nAnswer: OUT", "Question: IN\n", "Reasoning: WHY\n\nAnswer: OUT"),
        "sql": (
            "Write one SQL query that answers the question. Answer with the query only.\n\nSchema:\nS",
            "IN",
            "OUT",
            "Question: IN\n",
            "SQL: OUT",
        ),
        "program": (
            "Write a program that solves the task. Answer with code only.",
            "IN",
            "OUT",
            "Task: IN\n",
            "Code:\nOUT",
        ),
    }
    assert list(TEMPLATES) == list(golden)
    for name, expected in golden.items():
        template, slots = TEMPLATES[name], SLOTS.get(name, {})
        template.check_slots(slots)
        rest = [template.fill(f, ROW, slots) for f in ("input", "output", "text_input", "text_output")]
        assert (template.fill("system", None, slots), *rest) == expected
        assert template.name == name
        assert template.separator == "\n\n"
    assert [t.zero_shot for t in TEMPLATES.values()] == ["", "", "Let's think step by step.", "", ""]


def test_the_built_in_templates_cannot_be_replaced_and_survive_pickling():
    with pytest.raises(TypeError):
        TEMPLATES["io"] = Template("io")
    assert pickle.loads(pickle.dumps(TEMPLATES["cot"])) == TEMPLATES["cot"]


def test_a_template_is_loaded_by_name_or_from_a_file(tmp_path):
    assert load_template("cot") is TEMPLATES["cot"]
    path = tmp_path / "support.toml"
    path.write_text('system = "Reply in $tone."\noutput = """\nDear customer,\n$output"""\n', encoding="utf-8")
    expected = Template("support", system="Reply in $tone.", output="Dear customer,\n$output")
    assert load_template(path) == load_template(str(path)) == expected


def test_every_attribute_can_be_given_in_a_file(tmp_path):
    values = {
        "name": "n", "system": "s", "input": "i$input", "output": "o$output", "text_input": "ti: ",
        "text_output": "to: ", "separator": "\n---\n", "zero_shot": "z",
    }  # fmt: skip
    path = tmp_path / "t.toml"
    path.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items()), encoding="utf-8")
    assert load_template(path) == Template(**values)


def test_a_byte_order_mark_and_windows_line_ends_are_taken_out(tmp_path):
    path = tmp_path / "t.toml"
    path.write_bytes(b'\xef\xbb\xbfoutput = """a\r\n$output"""\r\n')
    assert load_template(path).output == "a\n$output"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'sytem = "x"', r"unknown keys \['sytem'\]; expected keys among \['name', 'system', 'input', 'output'"),
        (b"[extra]\na = 1", r"unknown keys \['extra'\]"),
        (b"system = 3", "system is 3; expected text in quotes"),
        (b'system = "$input"', r"mentions \$input"),
        (b'output = "$"', "'\\$' at position 0"),
        (b"system = ", "is no TOML in UTF-8"),
        (b'system = "\xff"', "is no TOML in UTF-8"),
        (b"n = " + b"9" * 6000, "is no TOML in UTF-8"),
        (b"a = " + b"[" * 30_000, "is no TOML in UTF-8"),
        (b"#" * (MAX_TEMPLATE_BYTES + 1), "larger than 65536 bytes"),
    ],
)
def test_a_file_that_is_no_template_is_refused_by_name(tmp_path, content, message):
    path = tmp_path / "bad.toml"
    path.write_bytes(content)
    with pytest.raises(TemplateError, match=message) as caught:
        load_template(path)
    assert str(path) in str(caught.value)


def test_a_file_of_exactly_the_largest_size_is_read(tmp_path):
    path = tmp_path / "t.toml"
    path.write_bytes(b"#" * MAX_TEMPLATE_BYTES)
    assert load_template(path) == Template("t")


@pytest.mark.parametrize("name", ["nothing", "", ".", "/dev/zero", "a\0b"])
def test_what_is_neither_a_name_nor_a_regular_file_is_refused(name):
    with pytest.raises(TemplateError) as caught:
        load_template(name)
    assert isinstance(caught.value, InvalidInput)
    assert "neither a built-in template nor a file" in str(caught.value)
    assert "['classification', 'cot', 'io', 'program', 'sql']" in str(caught.value)

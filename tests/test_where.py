"""Filters: the expression language, its mapping form, and masks over a pool."""

from __future__ import annotations

import json
import operator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retriever.errors import InvalidInput
from retriever.example import Example
from retriever.ranking.where import equal, named_paths, predicate
from tests.support import build

META = {
    "language": "en", "priority": 2, "score": 2.0, "flag": True, "off": False, "one": 1, "zero": 0, "empty": "",
    "none": None, "tags": ["refund", 1, True], "nested": {"deep": {"er": "x"}}, "kebab-case": 3, "quote": 'say "hi"\\',
    "numbers": [1, 2], "sprache": "straße", "größe": 5, "text2": "10",
}  # fmt: skip
EXAMPLE = Example("e1", {"question": "why?"}, output="because", label="spam", task="qa", meta=META)


def holds(where) -> bool:
    return predicate(where)(EXAMPLE)


@pytest.mark.parametrize(
    ("expression", "wanted"),
    [
        ('language == "en"', True),
        ("language == 'en'", True),
        ('language != "en"', False),
        ("priority < 2", False),
        ("priority <= 2", True),
        ("priority > 1.5", True),
        ("priority >= 3", False),
        ("priority == 2.0", True),
        ("score == 2", True),
        ("priority == -2", False),
        ("priority <= 2e0", True),
        ('language < "eo"', True),
        ('language >= "en"', True),
        ('label in ["ham", "spam"]', True),
        ('label not in ["ham", "spam"]', False),
        ("label in []", False),
        ("label not in []", True),
        ('"refund" in tags', True),
        ('"fund" in tags', False),
        ('"fund" in label', False),
        ('"pa" in label', True),
        ("2 in priority", False),
        ("1 in numbers", True),
        ("numbers == [1, 2]", True),
        ("numbers == [2, 1]", False),
        ("numbers in [[1, 2], [3]]", True),
        ('input.question == "why?"', True),
        ('meta.language == "en"', True),
        ('nested.deep.er == "x"', True),
        ("kebab-case == 3", True),
        ("größe > 4", True),
        ('sprache == "stra\\u00dfe"', True),
        ("flag == true", True),
        ("off == false", True),
        ('  language\n==\t"en"  ', True),
    ],
)
def test_what_each_operator_says(expression, wanted):
    assert holds(expression) is wanted


@pytest.mark.parametrize(
    ("expression", "wanted"),
    [
        ("one == true", False),
        ("flag == 1", False),
        ("zero == false", False),
        ("off == 0", False),
        ("one in [true]", False),
        ("true in numbers", False),
        ("numbers == [true, 2]", False),
        ("text2 == 10", False),
        ('priority == "2"', False),
        ("text2 > 9", False),
        ("text2 <= 9", False),
        ("flag > 0", False),
        ("flag >= true", False),
        ("empty == null", False),
        ("zero == null", False),
        ("off == null", False),
    ],
)
def test_values_of_different_types_are_not_equal_and_not_ordered(expression, wanted):
    assert holds(expression) is wanted


def test_equality_is_strict_at_every_depth():
    assert equal({"a": [1, {"b": True}]}, {"a": [1.0, {"b": True}]})
    assert not equal([1], [True])
    assert not equal({"a": [0]}, {"a": [False]})
    assert not equal([1], [1, 2])
    assert not equal({"a": 1}, {"b": 1})
    assert not equal([], {})


@pytest.mark.parametrize(
    ("expression", "wanted"),
    [
        ("missing == null", True),
        ("none == null", True),
        ("missing != null", False),
        ('missing != "x"', True),
        ("missing < 1", False),
        ("missing >= 1", False),
        ('not missing < "a"', True),
        ("missing in [null]", True),
        ("missing not in [1]", True),
        ('"a" in missing', False),
        ("nested.nowhere.at.all == null", True),
        ("language.x == null", True),
        ("rationale == null", True),
    ],
)
def test_a_missing_field_equals_null_and_is_not_ordered(expression, wanted):
    assert holds(expression) is wanted


VALUES = {"t": 'language == "en"', "f": 'language == "de"'}


@pytest.mark.parametrize(
    ("shape", "wanted"),
    [
        ("t or t and f", True),  # t or (t and f)
        ("(t or t) and f", False),
        ("f and t or t", True),  # (f and t) or t
        ("f and (t or t)", False),
        ("not f and f", False),  # (not f) and f
        ("not (f and f)", True),
        ("not t or t", True),  # (not t) or t
        ("not (t or t)", False),
        ("not not t", True),
        ("((t))", True),
    ],
)
def test_not_binds_closer_than_and_which_binds_closer_than_or(shape, wanted):
    words = shape.replace("(", " ( ").replace(")", " ) ").split()
    assert holds(" ".join(VALUES.get(word, word) for word in words)) is wanted


@given(
    st.recursive(
        st.sampled_from("tf"),
        lambda e: st.tuples(st.sampled_from(["and", "or"]), e, e) | e.map(lambda x: ("not", x)),
        max_leaves=12,
    )
)
def test_nested_expressions_agree_with_a_direct_evaluation(tree):
    def text(node) -> str:
        if isinstance(node, str):
            return VALUES[node]
        return f"not ({text(node[1])})" if node[0] == "not" else f"({text(node[1])}) {node[0]} ({text(node[2])})"

    def truth(node) -> bool:
        if isinstance(node, str):
            return node == "t"
        if node[0] == "not":
            return not truth(node[1])
        return (operator.and_ if node[0] == "and" else operator.or_)(truth(node[1]), truth(node[2]))

    assert holds(text(tree)) is truth(tree)


@pytest.mark.parametrize(
    ("literal", "value"),
    [
        (r'"a\"b"', 'a"b'),
        (r"'a\'b'", "a'b"),
        ("'a\"b'", 'a"b'),
        (r"'a\"b'", 'a"b'),
        ('"a\'b"', "a'b"),
        (r'"a\\"', "a\\"),
        (r"'a\\'", "a\\"),
        (r"'\\\''", "\\'"),
        (r'"\n\t\u00e9"', "\n\té"),
        ('"a\nb"', "a\nb"),
        ('"and or not ( ["', "and or not ( ["),
        ('""', ""),
    ],
)
def test_escapes_in_texts(literal, value):
    assert predicate(f"field == {literal}")(Example("i", "x", meta={"field": value}))
    assert not predicate(f"field == {literal}")(Example("i", "x", meta={"field": value + "x"}))


@given(st.text())
def test_any_text_can_be_asked_for_as_json(text):
    example = Example("i", "x", meta={"field": text})
    assert predicate(f"field == {json.dumps(text)}")(example)
    assert predicate(f"field in [{json.dumps(text, ensure_ascii=False)}]")(example)


values = st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from([0.5, 1.0, 2.5]) | st.text("ab", max_size=2)
lists = st.lists(values, max_size=3)
paths = st.sampled_from(["a", "b", "meta.a", "label", "nested.x"])
conditions = st.one_of(
    values,
    lists,
    st.dictionaries(st.sampled_from(["==", "!=", "<", "<=", ">", ">="]), values | lists, min_size=1, max_size=2),
    st.dictionaries(st.sampled_from(["in", "not in"]), lists, min_size=1, max_size=2),
)


@given(
    st.dictionaries(paths, conditions, min_size=1, max_size=3),
    st.fixed_dictionaries(
        {}, optional={"a": values | lists, "b": values, "nested": st.fixed_dictionaries({"x": values})}
    ),
    values | lists,
)
def test_the_mapping_form_says_the_same_as_the_expression(mapping, meta, label):
    parts = []
    for path, wanted in mapping.items():
        if not isinstance(wanted, dict):
            wanted = {"in" if isinstance(wanted, list) else "==": wanted}
        parts += [f"{path} {op} {json.dumps(value)}" for op, value in wanted.items()]
    example = Example("i", "x", label=label, meta=meta)
    assert predicate(mapping)(example) is predicate(" and ".join(parts))(example)


def test_an_empty_mapping_holds_for_everything():
    assert holds({}) is True


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"a": {"~": 1}}, r"operator '~' for 'a'; expected one of ==, !=, <, <=, >, >=, in, not in"),
        ({"a": {"in": "x"}}, r"a in 'x'; expected a list"),
        ({"a": {"not in": None}}, r"a not in None; expected a list"),
    ],
)
def test_a_mapping_that_cannot_be_used_says_why(mapping, message):
    with pytest.raises(InvalidInput, match=message):
        predicate(mapping)


@pytest.mark.parametrize(
    ("expression", "shown"),
    [
        ("", "no value at ▸ in: ▸"),
        ("language", "no comparison at ▸ in: language▸"),
        ("language = 'en'", "an unexpected character at ▸ in: language▸ = 'en'"),
        ("language ==", "no value at ▸ in: language ==▸"),
        ("language == en", "no value at ▸ in: language == ▸en"),
        ("a == 1 a", "something left over at ▸ in: a == 1 ▸a"),
        ("a == 1 and", "no value at ▸ in: a == 1 and▸"),
        ("(a == 1", "no closing parenthesis at ▸ in: (a == 1▸"),
        ("a == 1)", "something left over at ▸ in: a == 1▸)"),
        ("a in 'x'", "no list after 'in' at ▸ in: a in ▸'x'"),
        ("a in [1 2]", "no comma at ▸ in: a in [1 ▸2]"),
        ("a in [1", "no comma at ▸ in: a in [1▸"),
        ("'x' == a", "no 'in' after a value at ▸ in: 'x' ▸== a"),
        ("1 in 2", "no field name at ▸ in: 1 in ▸2"),
        (r'a == "\x"', r'a bad escape at ▸ in: a == ▸"\x"'),
        ("a == 'open", "an unexpected character at ▸ in: a ==▸ 'open"),
        ("a < = 1", "an unexpected character at ▸ in: a <▸ = 1"),
        ("true == a", "no 'in' after a value at ▸ in: true ▸== a"),
    ],
)
def test_an_error_shows_where_it_is(expression, shown):
    with pytest.raises(InvalidInput) as caught:
        predicate(expression)
    assert caught.value.seen == f"filter: {shown}"


@pytest.mark.parametrize(
    "number", ["01", "-", "1.", ".5", "1e", "0x10", "1_000", "٣", "+1", "NaN", "Infinity", "9" * 5000]
)
def test_what_is_no_json_number_is_a_parse_error(number):
    with pytest.raises(InvalidInput, match="filter: "):
        predicate(f"a == {number}")


@pytest.mark.parametrize(
    "hostile",
    [
        "__import__('os')",
        "__import__('os').system('true')",
        "a.__class__",
        "a.__class__.__mro__[1]",
        "().__class__ == 1",
        "f'{a}' == 'x'",
        'f"{a}" in a',
        "lambda: 1",
        "lambda x: x == 1",
        "a == (lambda: 1)()",
        "eval('1') == 1",
        "a == b.c()",
        "a == [x for x in b]",
        "a := 1",
        "a == 1; b == 2",
        "a if b else c",
        "a == {}",
        "a is null",
        "a == `b`",
        "a ** 99999 == 1",
        "not",
        "and",
        "$a == 1",
        "a\x00 == 1",
        "# a == 1",
        "1 < a < 3",
    ],
)
def test_hostile_and_foreign_expressions_are_parse_errors(hostile):
    with pytest.raises(InvalidInput, match="filter: "):
        predicate(hostile)


@pytest.mark.parametrize("path", ["__class__", "meta.__class__", "input.__class__.__init__", "to_dict", "meta.keys"])
def test_a_path_reads_data_and_never_attributes(path):
    assert holds(f"{path} == null") is True


@given(st.text("()[]andortin =<>!\"'\\,.1x-", max_size=40))
def test_any_text_is_an_expression_or_an_invalid_input(text):
    try:
        test = predicate(text)
    except InvalidInput as error:
        assert "filter" in error.seen
    else:
        assert test(EXAMPLE) in (True, False)


def test_nesting_is_allowed_to_a_depth_and_no_further():
    deep = 49
    assert holds("(" * deep + 'language == "en"' + ")" * deep) is True
    for opening in ("(", "not "):
        with pytest.raises(InvalidInput, match="nesting that is too deep"):
            predicate(opening * 50 + "a == 1")


@pytest.mark.parametrize("opening", ["[" * 9_000, "a == " + "[" * 9_000, "a == " + "[" * 51 + "]" * 51])
def test_lists_nest_no_deeper_than_expressions(opening):
    with pytest.raises(InvalidInput, match="nesting that is too deep"):
        predicate(opening)


def test_a_long_flat_expression_is_fine_up_to_the_cap_on_its_length():
    clause = "a == 1 or "
    assert holds(clause * 900 + 'language == "en"') is True
    with pytest.raises(InvalidInput, match=r"10,006 characters; expected at most 10,000"):
        predicate(clause * 1000 + "a == 1")


# Masks over a pool

POOL = [
    {"id": f"e{i}", "input": f"word{i} common", "output": "o", "label": "even" if i % 2 == 0 else ["odd"], "number": i}
    for i in range(12)
]


@pytest.fixture(scope="module")
def retriever(tmp_path_factory):
    made = build(POOL, tmp_path_factory.mktemp("where") / "index")
    yield made
    made.close()


def chosen(retriever, query="common", **options) -> list[str]:
    return sorted(demonstration.example.id for demonstration in retriever.select(query, k=12, **options))


def test_a_filter_leaves_only_the_rows_it_holds_for(retriever):
    assert chosen(retriever, where="number < 3") == ["e0", "e1", "e2"]
    assert chosen(retriever, where={"number": [3, 5, 99]}) == ["e3", "e5"]
    assert chosen(retriever, where="number < 3") == ["e0", "e1", "e2"]  # from the kept mask


def test_a_tuple_in_a_filter_is_the_list_that_is_recorded(retriever):
    selection = retriever.select("common", k=12, where={"number": (3, 5)})
    assert sorted(selection.ids) == ["e3", "e5"]
    assert selection.recipe.filter.where == {"number": [3, 5]}
    assert chosen(retriever, where={"number": [3, 5]}) == ["e3", "e5"]
    with pytest.raises(InvalidInput, match="JSON values"):
        retriever.select("common", where={"number": {3, 5}})


def test_a_filter_acts_before_the_cut_so_that_k_is_filled(retriever):
    selection = retriever.select("word0 common", k=3, where="number >= 6")
    assert len(selection) == 3
    assert all(demonstration.example.value("number") >= 6 for demonstration in selection)


def test_match_asks_for_the_querys_own_value(retriever):
    assert chosen(retriever, {"input": "common", "label": "even"}, match=["label"]) == sorted(
        f"e{i}" for i in range(0, 12, 2)
    )
    assert len(chosen(retriever, {"input": "common", "label": ["odd"]}, match=["label"])) == 6
    for four in (4, 4.0):
        assert chosen(retriever, {"input": "common", "number": four}, match=["number"]) == ["e4"]
    assert chosen(retriever, {"input": "common", "number": True}, match=["number"]) == []
    assert chosen(retriever, {"id": "q", "input": "common", "number": 4}, match=["number"], exclude=["e4"]) == []


def test_matching_a_field_that_the_query_lacks_is_an_error_that_names_both(retriever):
    with pytest.raises(InvalidInput, match="query 'q' has no 'label' to match"):
        retriever.select({"id": "q", "input": "common"}, match=["label"])


def test_conditions_hold_together_and_excluded_rows_are_out(retriever):
    query = {"input": "common", "label": "even"}
    assert chosen(retriever, query, match=["label"], where="number < 5", exclude=["e2", "nowhere"]) == ["e0", "e4"]


def test_a_field_that_no_example_has_is_told_where_fewer_than_k_are_found(retriever):
    notes = ("0 of 8: the pool, the filters and the guard leave no more", "no example has a field 'lang'")
    assert retriever.select("common", where='lang == "en" and number < 5').notes == notes
    assert retriever.select("common", where={"lang": "en", "number": 1}).notes == notes
    assert retriever.select("common", where='lang == "en"', k=0).notes == ()
    assert retriever.select("common", where="number > 99").notes == notes[:1]
    assert retriever.select("common", where="lang == null", k=3).notes == ()  # nothing is missing


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ('a.b == 1 and ("x" in tags or not a.b != 2) or c in ["d"]', ("a.b", "tags", "c")),
        ({"a.b": 1, "c": {"<": 2}}, ("a.b", "c")),
    ],
)
def test_the_fields_of_a_filter_are_told_once_each(where, expected):
    assert named_paths(where) == expected


def test_many_different_filters_give_each_its_own_rows(retriever):
    found = [chosen(retriever, where=f"number == {i % 12} and number < {100 + i}") for i in range(70)]
    assert found == [[f"e{i % 12}"] for i in range(70)]

"""The budget: density, limits of fields, pruning, and how texts are cut."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from retriever.errors import InvalidInput
from retriever.example import Example
from retriever.prompting.assembler import Shortened, assemble
from retriever.prompting.shortening import MARK, cut, limited, longest_cut
from retriever.prompting.template import TEMPLATES, Template
from retriever.prompting.tokens import CachedCounter, Estimate
from retriever.ranking.recipe import Budget, Recipe

CHARACTERS = CachedCounter("characters", len)
WORDS = CachedCounter("words", lambda text: len(text.split()))
IO = TEMPLATES["io"]
STEPS = Template("steps", output="$rationale $output", text_output="Output: $rationale $output")
QUERY = Example("q", "x?")


def build(rows, budget, *, template=IO, counter=WORDS, **options):
    return assemble(QUERY, rows, template=template, counter=counter, budget=budget, **options)


def shown(prompt):
    return [example.id for example in prompt.demonstrations]


def sized(*words):
    """Demonstrations that cost so many words each, the 8 of two messages included; the rest costs 8."""
    return [Example(f"e{i}", " ".join("a" * (size - 9)) or "", "b") for i, size in enumerate(words)]


# --- density --------------------------------------------------------------------------------------------------------


def test_by_density_the_score_for_each_token_decides():
    rows = sized(30, 10, 10)
    assert shown(build(rows, Budget(38))) == ["e0"]
    assert shown(build(rows, Budget(38, fill="density"), scores=[1.0, 0.6, 0.6])) == ["e1", "e2"]


def test_the_best_single_demonstration_comes_first_where_it_is_worth_more_than_all_the_dense_ones():
    # Per token e1 is best, .2 / 10 against .5 / 30, but then e0 has no room.
    rows = sized(30, 10)
    assert shown(build(rows, Budget(38, fill="density"), scores=[0.5, 0.2])) == ["e0"]
    assert shown(build(rows, Budget(48, fill="density"), scores=[0.5, 0.2])) == ["e0", "e1"]


def test_equal_densities_go_by_priority():
    rows = sized(10, 10, 10)
    prompt = build(rows, Budget(28, fill="density"), scores=[1.0, 1.0, 1.0], priority=[3, 1, 2])
    assert shown(prompt) == ["e1", "e2"]


@pytest.mark.parametrize("scores", [None, [1.0]])
def test_density_without_a_score_for_each_is_refused(scores):
    with pytest.raises(InvalidInput, match="one for each demonstration"):
        build(sized(10, 10), Budget(28, fill="density"), scores=scores)


@settings(max_examples=300)
@given(st.lists(st.tuples(st.integers(9, 40), st.integers(-3, 30)), max_size=8), st.integers(8, 150))
def test_density_is_worth_at_least_half_of_the_best_choice_and_is_maximal(items, tokens):
    rows = sized(*(size for size, _ in items))
    prompt = build(rows, Budget(tokens, fill="density"), scores=[float(score) for _, score in items])
    room = tokens - 8
    cost = {f"e{i}": size for i, (size, _) in enumerate(items)}
    worth = {f"e{i}": max(score, 0) for i, (_, score) in enumerate(items)}
    best = max(
        sum(worth[one] for one in some)
        for size in range(len(items) + 1)
        for some in combinations(cost, size)
        if sum(cost[one] for one in some) <= room
    )
    taken = shown(prompt)
    left = room - sum(cost[one] for one in taken)
    assert left >= 0
    assert 2 * sum(worth[one] for one in taken) >= best
    assert all(cost[one] > left for one in cost if one not in taken)


# --- limits of fields -----------------------------------------------------------------------------------------------


def test_a_field_over_its_limit_is_cut_with_a_visible_mark():
    rows = [Example("e", "one two three four five", "six seven eight", rationale="r", meta={"note": "a b c"})]
    prompt = build(rows, Budget(max_field_tokens={"input": 4}))
    assert prompt.messages[0]["content"] == "one two three […]"
    assert prompt.messages[1]["content"] == "six seven eight"
    assert prompt.shortened == (Shortened("e", "input cut"),)
    both = build(rows, Budget(max_field_tokens={"output": 2, "meta.note": 2, "meta.none": 1, "rationale": 1}))
    assert both.demonstrations == (replace(rows[0], output="six […]", meta={"note": "a […]"}),)
    assert both.shortened == (Shortened("e", "output cut, meta cut"),)


def test_what_is_within_its_limit_stays_as_it_is():
    rows = [Example("e", "one two", None)]
    assert limited(rows[0], {"input": 2, "output": 1}, WORDS) is rows[0]


def test_in_json_each_text_is_cut_and_keys_and_numbers_stay():
    example = Example("e", {"question": "a b c d", "n": 12345, "list": ["x y z", None]}, "b")
    found = limited(example, {"input": 2}, WORDS)
    assert found.input == {"question": "a […]", "n": 12345, "list": ["x […]", None]}


@given(st.text("ab \n👍é", max_size=40), st.integers(1, 30))
def test_a_cut_field_is_within_its_limit_and_a_beginning_of_the_text(text, limit):
    found = limited(Example("e", text), {"input": limit}, CHARACTERS).input
    assert len(found) <= max(limit, len(MARK.strip()))
    if found != text:
        assert len(text) > limit
        assert found == MARK.strip() or text.startswith(found.removesuffix(MARK))


# --- cutting --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "most", "kept"),
    [
        ("abcdef", 3, "abc […]"),
        ("abcdef", 6, "abcdef"),
        ("ab cdef", 3, "ab […]"),
        ("abcdef", 0, "[…]"),
        ("ae\u0301x", 2, "a […]"),
        ("a👍🏽x", 2, "a […]"),
        ("a👩\u200d🚀x", 2, "a […]"),
        ("a👩\u200d🚀x", 3, "a […]"),
        ("a❤\ufe0fx", 2, "a […]"),
        ("🇩🇪🇫🇷", 3, "🇩🇪 […]"),
        ("🇩🇪🇫🇷", 2, "🇩🇪 […]"),
        ("a\r\nb", 2, "a […]"),
        ("a\ud83d\ude00b", 2, "a […]"),
    ],
)
def test_a_text_is_cut_between_what_a_reader_sees_as_characters(text, most, kept):
    assert cut(text, most) == kept


@given(st.text("ab ", max_size=40), st.integers(0, 45), st.integers(0, 40))
def test_the_longest_cut_that_fits_is_found(text, limit, least):
    least = min(least, len(text))
    found = longest_cut(text, lambda one: len(one) <= limit, least)
    fitting = [cut(text, most) for most in range(least, len(text) + 1) if len(cut(text, most)) <= limit]
    assert found == (text if len(text) <= limit else max(fitting, key=len, default=None))


# --- pruning --------------------------------------------------------------------------------------------------------


def test_the_rationale_goes_before_the_demonstration_does():
    rows = [Example("e0", "a", "b", rationale="r " * 20), Example("e1", "c", "d", rationale="s")]
    assert shown(build(rows, Budget(29), template=STEPS)) == ["e1"]
    prompt = build(rows, Budget(29, prune=("rationale",)), template=STEPS)
    assert [m["content"] for m in prompt.messages] == ["a", " b", "c", "s d", "x?"]
    assert prompt.tokens == 29
    assert prompt.shortened == (Shortened("e0", "rationale left out"),)
    assert prompt.skipped == ()


def test_the_longer_of_input_and_rationale_is_cut_and_no_more_than_it_must_be():
    rows = [Example("e", "a b c d e f g h i j", "k")]
    # Query 8, two messages 8, the output 1: of the budget 25 the input has 8, one of them the mark.
    prompt = build(rows, Budget(25, prune=("longest",)))
    assert prompt.messages[0]["content"] == "a b c d e f g […]"
    assert prompt.tokens == 25
    assert prompt.shortened == (Shortened("e", "input cut"),)
    assert shown(build(rows, Budget(25))) == []


def test_no_more_than_half_of_a_field_is_cut_away_and_the_output_never():
    rows = [Example("e", "a b c d e f g h i j", "k")]
    assert shown(build(rows, Budget(23, prune=("longest",)))) == ["e"]
    assert shown(build(rows, Budget(21, prune=("longest",)))) == []
    assert shown(build([Example("e", "a", "k " * 20)], Budget(30, prune=("longest",)))) == []


def test_stages_follow_each_other():
    rows = [Example("e", "a b c d e f g h i j", "k", rationale="r " * 30)]
    prompt = build(rows, Budget(25, prune=("rationale", "longest")), template=STEPS)
    assert [m["content"] for m in prompt.messages] == ["a b c d e f g […]", " k", "x?"]
    assert prompt.shortened == (Shortened("e", "input cut, rationale left out"),)


def least(example, stages):
    """The example after all stages, from their description."""
    if "rationale" in stages:
        example = replace(example, rationale="" if example.rationale else example.rationale)
    if "longest" in stages:
        name = "rationale" if len(example.rationale) > len(example.input) else "input"
        text = getattr(example, name)
        if text:
            example = replace(example, **{name: cut(text, (len(text) + 1) // 2)})
    return example


parts = st.text("ab \n", max_size=14)


@pytest.mark.parametrize("form", ["messages", "text"])
@pytest.mark.parametrize("counter", [WORDS, CHARACTERS, Estimate()], ids=lambda c: c.name)
@settings(max_examples=60)
@given(
    rows=st.lists(st.tuples(parts, parts, parts), max_size=5),
    stages=st.sampled_from([(), ("rationale",), ("longest",), ("rationale", "longest")]),
    fill=st.sampled_from(["order", "density"]),
    tokens=st.integers(1, 160),
)
def test_the_budget_is_never_exceeded_and_nothing_skipped_would_fit_even_pruned(
    form, counter, rows, stages, fill, tokens
):
    rows = [Example(f"e{i}", a, b, rationale=c) for i, (a, b, c) in enumerate(rows)]

    def length(shown):
        return build(shown, Budget(), template=STEPS, counter=counter, form=form).tokens

    assume(length([]) <= tokens)
    budget = Budget(tokens, fill=fill, prune=stages)
    prompt = build(
        rows, budget, template=STEPS, counter=counter, form=form, scores=[float(i) for i in range(len(rows))]
    )
    kept = {example.id: example for example in prompt.demonstrations}
    assert prompt.tokens == length(list(prompt.demonstrations)) <= tokens
    assert {one.example_id for one in prompt.skipped} == {one.id for one in rows} - kept.keys()
    assert {one.example_id for one in prompt.shortened} == {one.id for one in rows if kept.get(one.id, one) != one}
    for skipped in prompt.skipped:
        for stage in (rows, [least(one, stages) for one in rows]):
            more = {**kept, **{one.id: one for one in stage if one.id == skipped.example_id}}
            assert length([more[one.id] for one in rows if one.id in more]) > tokens


def test_a_shortened_copy_that_would_make_a_delimiter_is_not_used():
    template = Template(
        "t", text_input="Input: ${meta.a}${input}\n", text_output="Output: ${meta.b}${rationale}${meta.c}"
    )
    row = Example("e", "a", "b", rationale=" r" * 20, meta={"a": "", "b": "x\nIn", "c": "put: y"})
    query = Example("q", "x?", meta={"a": ""})
    options = {"template": template, "counter": WORDS, "form": "text"}
    assert shown(assemble(query, [row], budget=Budget(90), **options)) == ["e"]
    assert shown(assemble(query, [row], budget=Budget(12, prune=("rationale",)), **options)) == []


def test_any_counter_counts_a_demonstration_once_for_a_prompt():
    class Counter:
        name = "any"

        def __init__(self):
            self.seen = []

        def count(self, text):
            self.seen.append(text)
            return len(text.split())

    counter = Counter()
    rows = [Example(f"e{i}", f"a {i}", f"b {i}") for i in range(30)]
    prompt = build(rows, Budget(100, prune=("rationale",)), counter=counter)
    assert prompt.tokens <= 100
    assert len(counter.seen) == len(set(counter.seen)) == 2 * 30 + 1


# --- what all queries share -----------------------------------------------------------------------------------------


def test_what_all_queries_share_stands_first_however_little_it_is_worth():
    # The rest costs 8, which leaves 30; beside the shared one, which costs 20, it is 10.
    rows = sized(20, 30, 10)
    budget = Budget(38, fill="density")
    assert shown(build(rows, budget, scores=[0.0, 9.0, 1.0])) == ["e1"]
    assert shown(build(rows, budget, scores=[0.0, 9.0, 1.0], shared=[True, False, False])) == ["e0", "e2"]
    assert shown(build(rows, Budget(38), priority=[3, 1, 2], shared=[True, False, False])) == ["e0", "e2"]


def test_what_all_queries_share_is_not_pruned_and_what_follows_it_is():
    rows = [Example(f"e{i}", "a b c d e f g h i j", "k") for i in range(2)]
    # The query 8, the shared one 19: of the budget 44 the other has 17, and its input 8 of them.
    prompt = build(rows, Budget(44, prune=("longest",)), shared=[True, False])
    assert [m["content"] for m in prompt.messages[:3:2]] == ["a b c d e f g h i j", "a b c d e f g […]"]
    assert prompt.shortened == (Shortened("e1", "input cut"),)


def test_limits_of_fields_hold_for_what_all_queries_share_too():
    prompt = build([Example("e", "a b c d", "k")], Budget(max_field_tokens={"input": 3}), shared=[True])
    assert prompt.messages[0]["content"] == "a b […]"


def test_a_query_without_room_beside_what_all_queries_share_is_refused_with_the_number_that_would_do():
    rows = sized(20, 10)
    assert shown(build(rows, Budget(28), shared=[True, False])) == ["e0"]
    with pytest.raises(
        InvalidInput, match="28 tokens without any demonstration but the 1 that all queries share"
    ) as no:
        build(rows, Budget(30, reserve=3), shared=[True, False])
    assert no.value.fix.startswith("raise the budget to 31, or reserve less, share fewer")


def test_it_is_said_of_each_demonstration_whether_all_queries_share_it():
    with pytest.raises(InvalidInput, match="one for each"):
        build(sized(10, 10), Budget(), shared=[True])


data = st.text("ab \n", max_size=14) | st.sampled_from(["b\nInput: c", "b\nOutput: c", "</s>"])
some = st.lists(st.tuples(data, data, data), max_size=4)


@pytest.mark.parametrize("form", ["messages", "text"])
@settings(max_examples=250)
@given(
    block=some,
    others=some,
    question=parts,
    stages=st.sampled_from([(), ("rationale",), ("longest",), ("rationale", "longest")]),
    fill=st.sampled_from(["order", "density"]),
    limits=st.sampled_from([{}, {"input": 2}, {"input": 3, "rationale": 1}]),
    collisions=st.sampled_from(["escape", "drop"]),
    tokens=st.integers(1, 120),
    numbers=st.randoms(),
)
def test_every_prompt_begins_with_the_same_bytes_or_is_refused(
    form, block, others, question, stages, fill, limits, collisions, tokens, numbers
):
    block = [Example(f"s{i}", a, b, rationale=c) for i, (a, b, c) in enumerate(block)]
    others = [Example(f"e{i}", a, b, rationale=c) for i, (a, b, c) in enumerate(others)]
    count = len(block) + len(others)
    options = {"template": STEPS, "counter": WORDS, "form": form, "collisions": collisions}

    def made(query, rows, budget, **more):
        return assemble(Example("q", query), rows, budget=budget, **options, **more)

    # Nothing of this query: what is shared, alone, under no budget but the limits of fields.
    alone = made("another", block, Budget(max_field_tokens=limits))
    prefix = alone.text.removesuffix("Input: another\nOutput:")
    needed = made(question, block, Budget(max_field_tokens=limits)).tokens
    budget = Budget(tokens, fill=fill, prune=stages, max_field_tokens=limits)
    more = {
        "shared": [i < len(block) for i in range(count)],
        "priority": numbers.sample(range(count), count),
        "scores": [numbers.random() for _ in range(count)],
    }
    if needed > tokens:
        with pytest.raises(InvalidInput, match=f"raise the budget to {needed}"):
            made(question, [*block, *others], budget, **more)
        return
    prompt = made(question, [*block, *others], budget, **more)
    assert prompt.messages[: len(alone.messages) - 1] == alone.messages[:-1]
    assert prompt.text.startswith(prefix)
    assert prompt.tokens <= tokens


# --- the section of a recipe ----------------------------------------------------------------------------------------


def test_a_recipe_says_how_a_budget_is_filled():
    plain = {"tokens": 100, "fill": "density", "max_field_tokens": {"input": 20, "meta.note": 5}, "prune": ["longest"]}
    recipe = Recipe.of({"budget": plain})
    assert recipe.budget == Budget(
        100, fill="density", max_field_tokens={"input": 20, "meta.note": 5}, prune=("longest",)
    )
    assert Recipe.of(recipe.to_dict()) == recipe


@pytest.mark.parametrize(
    ("options", "seen"),
    [
        ({"fill": "best"}, "budget.fill = 'best'"),
        ({"prune": ("output",)}, "budget.prune = 'output'"),
        ({"max_field_tokens": {"label": 3}}, "budget.max_field_tokens = 'label'"),
        ({"max_field_tokens": {"input": 0}}, "budget.max_field_tokens.input = 0"),
        ({"max_field_tokens": {"input": 1.5}}, "budget.max_field_tokens.input = 1.5"),
    ],
)
def test_settings_that_cannot_be_used_are_named(options, seen):
    with pytest.raises(InvalidInput) as caught:
        Budget(**options)
    assert caught.value.seen == seen

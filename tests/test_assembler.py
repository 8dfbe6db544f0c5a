"""The assembler: messages, text, collisions, budget."""

import itertools
import pickle
import re

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from retriever.errors import DelimiterCollision, InvalidInput, TemplateError
from retriever.example import Example
from retriever.prompting.assembler import Prompt, Skipped, assemble
from retriever.prompting.delimiters import delimiters_of
from retriever.prompting.template import TEMPLATES, Template
from retriever.prompting.tokens import CachedCounter, Estimate
from retriever.ranking.recipe import Budget

CHARACTERS = CachedCounter("characters", len)
WORDS = CachedCounter("words", lambda text: len(text.split()))
IO = TEMPLATES["io"]
QUERY = Example("q", "x?", "secret", rationale="secret", label="secret")
ATTACKS = ['{"name": "x"}', "{input}", "{input.__class__.__mro__}", "{q:>200000000}", "$input", "${output}", "$$", "$"]


def demos(*pairs):
    return [Example(f"e{i}", a, b) for i, (a, b) in enumerate(pairs)]


def build(demonstrations=(), query=QUERY, template=IO, counter=WORDS, **options) -> Prompt:
    return assemble(query, demonstrations, template=template, counter=counter, **options)


def contents(prompt):
    return [(m["role"], m["content"]) for m in prompt.messages]


# --- messages -------------------------------------------------------------------------------------------------------


def test_messages_are_system_then_pairs_then_query():
    prompt = build(demos(("a", "b"), ("c", {"k": 1})), template=TEMPLATES["sql"], slots={"schema": "T(x)"})
    assert contents(prompt) == [
        ("system", "Write one SQL query that answers the question. Answer with the query only.\n\nSchema:\nT(x)"),
        ("user", "a"),
        ("assistant", "b"),
        ("user", "c"),
        ("assistant", '{"k": 1}'),
        ("user", "x?"),
    ]
    assert isinstance(prompt.messages, list)


def test_without_demonstrations_the_prompt_is_the_query():
    prompt = build()
    assert contents(prompt) == [("user", "x?")]
    assert prompt.text == "Input: x?\nOutput:"
    assert (prompt.demonstrations, prompt.skipped) == ((), ())


def test_the_answer_of_the_query_is_never_in_the_prompt():
    for name, template in TEMPLATES.items():
        slots = {"classification": {"labels": "L"}, "sql": {"schema": "S"}}.get(name, {})
        prompt = build([Example("e", "a", "b", rationale="r")], template=template, slots=slots)
        assert "secret" not in str(prompt.messages) + prompt.text


@pytest.mark.parametrize("attack", ATTACKS)
def test_pool_text_that_looks_like_a_template_appears_verbatim(attack):
    prompt = build(demos((attack, attack)), Example("q", attack))
    assert contents(prompt) == [("user", attack), ("assistant", attack), ("user", attack)]
    assert prompt.text == f"Input: {attack}\nOutput: {attack}\n\nInput: {attack}\nOutput:"


@given(st.lists(st.tuples(st.text(), st.text()), max_size=4), st.text(), st.text(min_size=1))
def test_every_value_stands_in_its_message_verbatim_and_roles_alternate(pairs, asked, schema):
    prompt = build(demos(*pairs), Example("q", asked), Template("t", system="$s"), slots={"s": schema})
    expected = [("system", schema)]
    for question, answer in pairs:
        expected += [("user", question), ("assistant", answer)]
    assert contents(prompt) == [*expected, ("user", asked)]
    roles = [m["role"] for m in prompt.messages]
    assert roles == ["system"] + ["user", "assistant"] * len(pairs) + ["user"]


def test_the_zero_shot_line_stands_only_in_a_prompt_without_demonstrations_and_on_request():
    cot = TEMPLATES["cot"]
    row = Example("e", "2+2?", "4", rationale="Count.")
    alone = build(template=cot, zero_shot=True)
    assert contents(alone) == [("user", "x?\n\nLet's think step by step.")]
    assert alone.text == "Question: x?\nReasoning: Let's think step by step."
    with_one = build([row], template=cot, zero_shot=True)
    assert contents(with_one) == [("user", "2+2?"), ("assistant", "Count.\n\nAnswer: 4"), ("user", "x?")]
    assert with_one.text == "Question: 2+2?\nReasoning: Count.\n\nAnswer: 4\n\nQuestion: x?\nReasoning:"
    assert contents(build(template=cot)) == [("user", "x?")]
    with pytest.raises(InvalidInput, match="template 'io', which has no zero-shot line"):
        build(zero_shot=True)


def test_template_errors_are_raised_before_anything_is_built():
    with pytest.raises(TemplateError, match="the slot 'tone' is given"):
        build(slots={"tone": "kind"})
    with pytest.raises(TemplateError, match=r"example 'e0' has no value for \$rationale"):
        build(demos(("a", "b")), template=TEMPLATES["cot"])
    with pytest.raises(TemplateError, match=r"example 'q' has no value for \$meta.topic"):
        build(template=Template("t", input="$meta.topic: $input"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"form": "xml"}, r"form='xml'; expected one of \['messages', 'text'\]"),
        ({"collisions": "ignore"}, r"collisions='ignore'; expected one of \['error', 'escape', 'drop'\]"),
        ({"priority": [0, 1]}, "2 priorities for 1 demonstrations"),
    ],
)
def test_options_that_do_not_exist_are_refused(options, message):
    with pytest.raises(InvalidInput, match=message):
        build(demos(("a", "b")), **options)


def test_a_prompt_knows_what_it_was_made_from_and_survives_pickling():
    rows = demos(("a", "b"))
    prompt = build(rows, template=TEMPLATES["sql"], slots={"schema": "S"}, counter=Estimate())
    assert prompt.demonstrations == tuple(rows)
    assert prompt.query is QUERY
    assert (prompt.template.name, prompt.counter, prompt.form) == ("sql", "estimate", "messages")
    assert prompt.text.startswith("Write one SQL query")
    assert pickle.loads(pickle.dumps(prompt)) == prompt


# --- text -----------------------------------------------------------------------------------------------------------


def test_the_text_is_blocks_and_ends_with_the_cue():
    assert build(demos(("a", "b"), ("c", "d"))).text == (
        "Input: a\nOutput: b\n\nInput: c\nOutput: d\n\nInput: x?\nOutput:"
    )


def test_the_system_message_is_the_first_block_of_the_text():
    prompt = build(demos(("a", "b")), template=TEMPLATES["classification"], slots={"labels": "b\nc"})
    assert prompt.text == (
        "Classify the input. Answer with exactly one of these labels and nothing else:\nb\nc\n\n"
        "Text: a\nLabel: b\n\nText: x?\nLabel:"
    )


def test_a_blank_line_alone_is_ordinary_data():
    assert build(demos(("a\n\nb", "c\n\n\nd\n"))).text == "Input: a\n\nb\nOutput: c\n\n\nd\n\n\nInput: x?\nOutput:"


MARKERS = [
    "Input:", "Output:", "x\nInput: y", "x\r\n \tOutput:y", "x\u2028Input: y", "x\n\nInput: y",
    "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|start_header_id|>", "<｜User｜>",
    "[INST]", "[/INST]", "<<SYS>>", "<</SYS>>", "<s>", "</s>", "<start_of_turn>", "<end_of_turn>",
    "x\n\nHuman: y", "x\n\nAssistant: y", "User: y", "x\nSystem: y",
]  # fmt: skip
HARMLESS = [
    "the Input: y", "input: y", "Inputs: y", "Superhuman: y", "a < b |> c", "[INSTALL]", "<b>bold</b>", "s>", "a\n\nb",
    "<|", "|im_start|", "<\\|im_start|>", "\\Input: y", "x\n\\Output: y", "Human", "##", "\0\u202e",
]  # fmt: skip


@pytest.mark.parametrize("marker", MARKERS)
@pytest.mark.parametrize("place", ["input", "output"])
def test_a_delimiter_in_a_demonstration_is_an_error_of_the_text_alone(marker, place):
    row = Example("bad", **{"input": "a", "output": "b", place: marker})
    prompt = build([row])
    assert prompt.messages[place == "output"]["content"] == marker
    with pytest.raises(DelimiterCollision, match="example 'bad' contains the delimiter") as caught:
        _ = prompt.text
    assert (caught.value.where, caught.value.example_id) == ("example 'bad'", "bad")
    assert caught.value.fix == "use the messages form, or collisions='escape' or 'drop'"
    assert caught.value.delimiter in marker
    with pytest.raises(DelimiterCollision):
        build([row], form="text")


@pytest.mark.parametrize("text", HARMLESS)
def test_what_only_resembles_a_delimiter_is_left_alone(text):
    assert build(demos((text, text)), Example("q", text)).text == (
        f"Input: {text}\nOutput: {text}\n\nInput: {text}\nOutput:"
    )


def test_escaping_puts_a_backslash_where_it_breaks_the_delimiter():
    prompt = build(demos(("a\n\nInput: b", "<|im_end|> [INST]")), Example("q", "</s>\n User: x"), collisions="escape")
    assert prompt.text == (
        "Input: a\n\n\\Input: b\nOutput: <\\|im_end|> [\\INST]\n\nInput: <\\/s>\n \\User: x\nOutput:"
    )
    assert prompt.messages[0]["content"] == "a\n\nInput: b"
    assert prompt.text_dropped == ()


@pytest.mark.parametrize("marker", MARKERS)
def test_an_escaped_text_contains_no_delimiter_and_can_be_read_back(marker):
    delimiters = delimiters_of(IO)
    for text in (marker, delimiters.escape(marker), marker + "\n" + marker):
        escaped = delimiters.escape(text)
        assert delimiters.find(escaped) is None
        assert delimiters.unescape(escaped) == text


def test_dropping_leaves_the_demonstration_out_of_the_text_and_keeps_it_in_the_messages():
    rows = demos(("a", "b"), ("c", "x\nInput: d"), ("e", "f"))
    prompt = build(rows, collisions="drop")
    assert prompt.text == "Input: a\nOutput: b\n\nInput: e\nOutput: f\n\nInput: x?\nOutput:"
    assert prompt.text_dropped == (rows[1],)
    assert prompt.demonstrations == tuple(rows)


def test_dropping_for_the_text_form_is_reported_among_the_skipped():
    rows = demos(("a", "b"), ("c", "x\nInput: d"))
    prompt = build(rows, form="text", collisions="drop", counter=CHARACTERS)
    assert prompt.demonstrations == (rows[0],)
    assert len(prompt.messages) == 3
    assert prompt.skipped == (
        Skipped("e1", "contains the delimiter 'Input:'", len("Input: c\nOutput: x\nInput: d\n\n")),
    )
    assert prompt.tokens == len(prompt.text)
    assert prompt.text_dropped == ()


@pytest.mark.parametrize("collisions", ["error", "drop"])
def test_the_query_and_the_slots_cannot_be_dropped(collisions):
    with pytest.raises(DelimiterCollision) as caught:
        build(query=Example("q9", "a\nOutput: b"), form="text", collisions=collisions)
    assert (caught.value.where, caught.value.delimiter, caught.value.example_id) == ("query 'q9'", "Output:", None)
    with pytest.raises(DelimiterCollision) as caught:
        build(template=TEMPLATES["sql"], slots={"schema": "T\n\nQuestion: y"}, form="text", collisions=collisions)
    assert str(caught.value) == (
        "a slot of template 'sql' contains the delimiter 'Question:'; use the messages form, or collisions='escape'"
    )
    assert caught.value.example_id is None


def test_a_slot_is_escaped_like_any_data():
    prompt = build(template=TEMPLATES["sql"], slots={"schema": "T\n\nQuestion: y"}, collisions="escape")
    assert "T\n\n\\Question: y\n\n" in prompt.text


def test_a_delimiter_that_two_values_form_together_is_found():
    template = Template("t", text_input="Input: ${meta.a}${input}\n")
    row = Example("e", "put: forged", "b", meta={"a": "x\n\nIn"})
    query = Example("q", "x?", meta={"a": ""})
    for policy in ("error", "escape"):
        with pytest.raises(DelimiterCollision, match="'Input:'"):
            _ = build([row], query, template, collisions=policy).text


BARE = Template("bare", text_input="$input\n", text_output="$output")


def test_without_labels_the_separator_itself_is_a_delimiter():
    assert build(demos(("a", "b")), template=BARE).text == "a\nb\n\nx?\n"
    with pytest.raises(DelimiterCollision, match=r"'\\n\\n'"):
        _ = build(demos(("a\n\nb", "c")), template=BARE).text
    escaped = build(demos(("a\n\n\nb", "c")), template=BARE, collisions="escape").text
    assert escaped == "a\n\\\n\\\nb\nc\n\nx?\n"
    assert delimiters_of(BARE).unescape("a\n\\\n\\\nb") == "a\n\n\nb"


def test_a_value_that_completes_the_separator_beside_it_is_found():
    for policy in ("error", "escape"):
        with pytest.raises(DelimiterCollision):
            _ = build(demos(("a", "b\n")), template=BARE, collisions=policy).text


def test_a_separator_of_one_character_cannot_be_escaped():
    template = Template("t", text_input="$input=", text_output="$output", separator="\n")
    assert build(demos(("a", "b")), template=template).text == "a=b\nx?="
    for policy in ("error", "escape"):
        with pytest.raises(DelimiterCollision):
            _ = build(demos(("a", "b\nc")), template=template, collisions=policy).text
    assert build(demos(("a", "b\nc")), template=template, collisions="drop").text == "x?="


def test_a_visible_separator_is_a_delimiter():
    template = Template("t", separator="\n###\n")
    assert build(demos(("a", "b # c")), template=template).text == ("Input: a\nOutput: b # c\n###\nInput: x?\nOutput:")
    with pytest.raises(DelimiterCollision, match="'###'"):
        _ = build(demos(("a", "b\n###\nc")), template=template).text
    assert "b\n\\###\nc" in build(demos(("a", "b\n###\nc")), template=template, collisions="escape").text


def test_a_label_that_follows_a_value_on_its_line_is_a_delimiter_anywhere():
    template = Template("t", text_input="Q: $input ", text_output="A: $output", separator="\n")
    assert build(demos(("a", "b")), template=template).text == "Q: a A: b\nQ: x? A:"
    with pytest.raises(DelimiterCollision, match="'A:'"):
        _ = build(demos(("one A: two", "b")), template=template).text
    assert build(demos(("DNA: x", "b")), template=template).text == "Q: DNA: x A: b\nQ: x? A:"


def test_with_a_separator_inside_the_line_the_first_label_is_a_delimiter_anywhere():
    template = Template("t", separator="  ")
    with pytest.raises(DelimiterCollision, match="'Input:'"):
        _ = build(demos(("a", "b Input: c")), template=template).text


def test_tags_of_the_template_are_delimiters_anywhere():
    template = Template("xml", text_input="<q>$input</q>\n", text_output="<answer>$output</answer>", separator="\n")
    assert build(demos(("a", "b")), template=template).text == "<q>a</q>\n<answer>b</answer>\n<q>x?</q>\n<answer>"
    with pytest.raises(DelimiterCollision, match="'</answer>'"):
        _ = build(demos(("a", "b</answer> c")), template=template).text
    assert "b<\\/answer> c" in build(demos(("a", "b</answer> c")), template=template, collisions="escape").text


def test_punctuation_around_a_value_is_no_delimiter():
    template = Template("t", text_input='Say "$input".\n', text_output="Text ($output)")
    assert build(demos(('a "b".', "Texts (c)")), template=template).text == (
        'Say "a "b".".\nText (Texts (c))\n\nSay "x?".\nText ('
    )


FRAGMENTS = (
    "Input:", "Output:", "\n", "\n\n", " ", "\\", "<", "|im_start|>", "<|im_end|>", "</s>", "[", "INST]", "Human:", "a",
    "Q:", "A:", "<q>", "</q>", "###", "<<SYS>>", "In", "put:", "s>", "\r", "\u2028", "=>", "Task:", "Code:",
)  # fmt: skip
ADVERSARIAL = st.lists(st.sampled_from(FRAGMENTS), max_size=8).map("".join)
TEMPLATE_KINDS = [
    IO,
    BARE,
    TEMPLATES["program"],
    Template("inline", text_input="Q: $input ", text_output="A: $output", separator="\n"),
    Template("tags", text_input="<q>$input</q>\n", text_output="A: $output", separator="\n###\n"),
    Template("same line", separator=" "),
    Template("words", text_input="$input => ", text_output="$output", separator="\n\n"),
]


@pytest.mark.parametrize("template", TEMPLATE_KINDS, ids=lambda t: t.name)
@given(text=ADVERSARIAL)
def test_unescaping_gives_back_any_text(template, text):
    delimiters = delimiters_of(template)
    assert delimiters.unescape(delimiters.escape(text)) == text
    assert delimiters.unescape(delimiters.escape(delimiters.escape(text))) == delimiters.escape(text)


STARTS = {
    "io": "Input:",
    "bare": "",
    "program": "Task:",
    "inline": "Q:",
    "tags": "<q>",
    "same line": "Input:",
    "words": "",
}


@pytest.mark.parametrize("template", TEMPLATE_KINDS, ids=lambda t: t.name)
@given(
    pairs=st.lists(st.tuples(ADVERSARIAL, ADVERSARIAL), max_size=3), policy=st.sampled_from(["error", "escape", "drop"])
)
def test_a_text_that_is_given_out_has_as_many_blocks_as_demonstrations_and_the_query(template, pairs, policy):
    prompt = build(demos(*pairs), template=template, collisions=policy)
    try:
        text = prompt.text
    except DelimiterCollision:
        assert policy != "drop"
        return
    blocks = re.split(re.escape(template.separator) + "(?=" + re.escape(STARTS[template.name]) + ")", text)
    assert len(blocks) == bool(template.system) + len(pairs) - len(prompt.text_dropped) + 1
    assert not re.search(r"<\|im_\w+\|>|</s>|\[INST\]|<<SYS>>", text)


# --- budget ---------------------------------------------------------------------------------------------------------


def test_the_tokens_of_messages_are_their_contents_four_for_each_and_three_for_the_reply():
    prompt = build(demos(("one two", "three")), Example("q", "four five six"), TEMPLATES["sql"], slots={"schema": "s"})
    # "Write one SQL query that answers the question." 8, "Answer with the query only." 5, "Schema:" 1, "s" 1
    assert prompt.tokens == (15 + 4) + (2 + 4) + (1 + 4) + (3 + 4) + 3


def test_the_tokens_of_text_are_those_of_the_whole_text():
    prompt = build(demos(("a", "b")), form="text", counter=CHARACTERS)
    assert prompt.tokens == len("Input: a\nOutput: b\n\nInput: x?\nOutput:")


def test_a_demonstration_that_is_too_long_is_skipped_and_the_next_is_tried():
    rows = demos(("a", "b"), ("long " * 50, "b"), ("c", "d"))
    # The query costs 1 + 4 + 3 = 8, a short demonstration 2 × (1 + 4) = 10.
    prompt = build(rows, budget=Budget(28))
    assert prompt.demonstrations == (rows[0], rows[2])
    assert prompt.tokens == 28
    assert prompt.skipped == (Skipped("e1", "needs 59 tokens where 0 are left", 59),)


def test_the_budget_is_spent_by_priority_and_the_order_of_the_prompt_is_kept():
    rows = demos(("a", "b"), ("c", "d"), ("e", "f"))
    prompt = build(rows, priority=[2, 1, 0], budget=Budget(28))
    assert [e.id for e in prompt.demonstrations] == ["e1", "e2"]
    assert [s.example_id for s in prompt.skipped] == ["e0"]
    assert [e.id for e in build(rows, budget=Budget(28)).demonstrations] == ["e0", "e1"]


def test_the_reserve_is_kept_for_the_answer():
    rows = demos(("a", "b"), ("c", "d"))
    assert len(build(rows, budget=Budget(29)).demonstrations) == 2
    assert len(build(rows, budget=Budget(29, reserve=1)).demonstrations) == 2
    assert len(build(rows, budget=Budget(29, reserve=2)).demonstrations) == 1


@pytest.mark.parametrize("form", ["messages", "text"])
def test_a_prompt_that_does_not_fit_without_demonstrations_says_what_it_needs(form):
    needed = build(form=form).tokens
    assert build(demos(("a", "b")), form=form, budget=Budget(needed + 5, reserve=5)).demonstrations == ()
    with pytest.raises(
        InvalidInput, match=rf"has {needed} tokens without any demonstration, and 5 are kept.*to {needed + 5}"
    ):
        build(demos(("a", "b")), form=form, budget=Budget(needed + 4, reserve=5))
    with pytest.raises(InvalidInput):
        build(form=form, budget=Budget(5, reserve=50))


def test_the_zero_shot_line_is_counted_and_gives_way_to_a_demonstration_that_is_shorter():
    cot = Template("t", zero_shot="one two three four five six seven eight nine ten eleven twelve")
    assert build(template=cot, zero_shot=True).tokens == 8 + 12
    with pytest.raises(InvalidInput, match="has 20 tokens"):
        build(template=cot, zero_shot=True, budget=Budget(19))
    assert build(demos(("a", "b")), template=cot, zero_shot=True, budget=Budget(19)).tokens == 18


@pytest.mark.parametrize(("tokens", "reserve"), [(0, 0), (-1, 0), (5, -1)])
def test_a_budget_below_nothing_is_refused(tokens, reserve):
    with pytest.raises(InvalidInput):
        Budget(tokens, reserve)


def test_without_a_budget_everything_is_in():
    rows = demos(*[("a" * 1000, "b")] * 50)
    assert build(rows).demonstrations == tuple(rows)


def merging(text):
    """A tokenizer that is not additive: equal neighbours are one token, and a blank line joins what is around it."""
    return len([1 for char, _ in itertools.groupby(text.replace("\n\n", ""))])


COUNTERS = [WORDS, CHARACTERS, Estimate(), CachedCounter("merging", merging)]
SMALL = st.lists(st.tuples(st.text("ab \n", max_size=12), st.text("ab \n", max_size=12)), max_size=6)


@pytest.mark.parametrize("form", ["messages", "text"])
@pytest.mark.parametrize("counter", COUNTERS, ids=lambda c: c.name)
@settings(max_examples=40)
@given(pairs=SMALL, tokens=st.integers(1, 150), reserve=st.integers(0, 10), seed=st.randoms(use_true_random=False))
def test_the_budget_is_never_exceeded_and_no_skipped_demonstration_still_fits(
    form, counter, pairs, tokens, reserve, seed
):
    rows = demos(*pairs)
    ranks = list(range(len(rows)))
    seed.shuffle(ranks)

    def length(chosen):
        return build(chosen, form=form, counter=counter).tokens

    assume(length([]) <= tokens - reserve)
    prompt = build(rows, form=form, counter=counter, priority=ranks, budget=Budget(tokens, reserve))
    kept = {e.id for e in prompt.demonstrations}
    assert prompt.tokens == length(list(prompt.demonstrations)) <= tokens - reserve
    assert [e for e in rows if e.id in kept] == list(prompt.demonstrations)
    assert {s.example_id for s in prompt.skipped} == {e.id for e in rows} - kept
    for skipped in prompt.skipped:
        with_it = [e for e in rows if e.id in kept or e.id == skipped.example_id]
        assert length(with_it) == prompt.tokens + skipped.tokens > tokens - reserve
    if form == "text":
        assert counter.count(prompt.text) == prompt.tokens
    elif prompt.demonstrations:
        # In messages nothing joins: the costs are exactly what is beside the query, with which no block is alone.
        assert prompt.tokens - sum(prompt.costs) == length([])


@given(SMALL, st.integers(8, 120), st.randoms(use_true_random=False))
def test_a_more_important_demonstration_is_never_given_up_for_a_less_important_one(pairs, tokens, seed):
    rows = demos(*pairs)
    ranks = list(range(len(rows)))
    seed.shuffle(ranks)
    prompt = build(rows, priority=ranks, budget=Budget(tokens))
    left = tokens - 8
    expected = set()
    for i in sorted(range(len(rows)), key=lambda i: ranks[i]):
        cost = sum(len(part.split()) + 4 for part in pairs[i])
        if cost <= left:
            left -= cost
            expected.add(rows[i].id)
    assert {e.id for e in prompt.demonstrations} == expected


def test_a_demonstration_is_counted_once_for_many_prompts():
    seen = []
    counter = CachedCounter("c", lambda text: seen.append(text) or len(text))
    rows = demos(("a", "b"), ("c", "d"))
    for question in ("x", "y", "z"):
        build(rows, Example("q", question), counter=counter)
    assert sorted(seen) == ["a", "b", "c", "d", "x", "y", "z"]

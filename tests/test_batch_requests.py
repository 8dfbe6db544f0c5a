"""Batch requests: records that the vendors' endpoints accept."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retriever.errors import InvalidInput
from retriever.example import Example
from retriever.prompting.assembler import assemble
from retriever.prompting.batch import BatchSettings, anthropic_batch, anthropic_id, openai_batch
from retriever.prompting.template import TEMPLATES
from retriever.prompting.tokens import Estimate


def prompt(template="classification", output="b", **slots):
    return assemble(
        Example("q", "x?"), [Example("e", "a", output)], template=TEMPLATES[template], counter=Estimate(), slots=slots
    )


SYSTEM = "Classify the input. Answer with exactly one of these labels and nothing else:\nb, c"
TURNS = [
    {"role": "user", "content": "a"},
    {"role": "assistant", "content": "b"},
    {"role": "user", "content": "x?"},
]


def test_an_openai_request_is_a_post_to_chat_completions():
    record = openai_batch(prompt(labels="b, c"), custom_id="row 1/é", settings=BatchSettings("m", 16, temperature=0.0))
    assert record == {
        "custom_id": "row 1/é",
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {
            "model": "m",
            "messages": [{"role": "system", "content": SYSTEM}, *TURNS],
            "max_completion_tokens": 16,
            "temperature": 0.0,
        },
    }


def test_an_anthropic_request_has_the_system_message_as_a_field():
    record = anthropic_batch(prompt(labels="b, c"), custom_id="row-1", settings=BatchSettings("m", 16, temperature=1.0))
    assert record == {
        "custom_id": "row-1",
        "params": {"model": "m", "max_tokens": 16, "temperature": 1.0, "system": SYSTEM, "messages": TURNS},
    }


def test_what_is_not_set_is_not_sent():
    body = openai_batch(prompt("io"), custom_id="1", settings=BatchSettings("m"))["body"]
    params = anthropic_batch(prompt("io"), custom_id="1", settings=BatchSettings("m"))["params"]
    assert set(body) == {"model", "messages", "max_completion_tokens"}
    assert set(params) == {"model", "max_tokens", "messages"}
    assert body["max_completion_tokens"] == params["max_tokens"] == 1024


def test_the_openai_record_satisfies_the_types_of_its_client():
    from openai.types.chat.completion_create_params import CompletionCreateParamsNonStreaming
    from pydantic import TypeAdapter

    body = openai_batch(prompt(labels="b"), custom_id="1", settings=BatchSettings("m", temperature=0.5))["body"]
    checked = TypeAdapter(CompletionCreateParamsNonStreaming).validate_python(body)
    assert set(checked) == set(body)


def test_a_record_shares_nothing_with_the_prompt():
    made = prompt("io")
    openai_batch(made, custom_id="1", settings=BatchSettings("m"))["body"]["messages"][0]["content"] = "changed"
    anthropic_batch(made, custom_id="1", settings=BatchSettings("m"))["params"]["messages"][0]["content"] = "changed"
    assert made.messages == TURNS


@pytest.mark.parametrize("kept", ["a", "A-z_09", "x" * 64, "sha256-short", "sha256-" + "G" * 57])
def test_an_id_that_anthropic_takes_is_kept(kept):
    assert anthropic_id(kept) == kept


def test_any_other_id_becomes_a_hash():
    # printf 'a b' | sha256sum
    assert anthropic_id("a b") == "sha256-c8687a08aa5d6ed2044328fa6a697ab8e96dc34291e8c2034ae8c38e6"
    hashed = anthropic_id("a b")
    assert anthropic_id(hashed) != hashed
    for other in ("x" * 65, "é", "a\n", "a/b", "\ud800"):
        assert re.fullmatch(r"sha256-[0-9a-f]{57}", anthropic_id(other))


@given(st.lists(st.text(min_size=1), unique=True))
def test_ids_are_always_valid_and_never_collide(ids):
    mapped = [anthropic_id(i) for i in ids]
    mapped += [anthropic_id(i) for i in mapped if i not in ids]
    assert all(re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", i) for i in mapped)
    assert len(set(mapped[: len(ids)])) == len(ids)


@given(st.text(min_size=1).filter(str.strip), st.text(min_size=1).filter(str.strip))
def test_records_survive_json_and_roles_alternate(question, answer):
    made = assemble(
        Example("q", question), [Example("e", question, answer)], template=TEMPLATES["io"], counter=Estimate()
    )
    for record in (
        openai_batch(made, custom_id="1", settings=BatchSettings("m")),
        anthropic_batch(made, custom_id="1", settings=BatchSettings("m")),
    ):
        assert json.loads(json.dumps(record)) == record
        messages = (record.get("body") or record["params"])["messages"]
        assert [m["role"] for m in messages] == ["user", "assistant", "user"]


@pytest.mark.parametrize("empty", ["", " \n\t"])
def test_a_turn_without_visible_text_is_refused_for_anthropic(empty):
    made = prompt("io", output=empty)
    with pytest.raises(InvalidInput, match=r"message 1 \(assistant\) of 'row' has no visible text"):
        anthropic_batch(made, custom_id="row", settings=BatchSettings("m"))
    assert openai_batch(made, custom_id="row", settings=BatchSettings("m"))["body"]["messages"][1]["content"] == empty


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": ""}, "no model"),
        ({"model": "m", "max_tokens": 0}, "max_tokens=0; expected at least 1"),
        ({"model": "m", "temperature": -0.1}, "temperature=-0.1"),
        ({"model": "m", "temperature": 2.1}, "temperature=2.1"),
        ({"model": "m", "temperature": float("nan")}, "temperature=nan"),
    ],
)
def test_settings_that_no_endpoint_takes_are_refused(settings, message):
    with pytest.raises(InvalidInput, match=message):
        BatchSettings(**settings)


def test_requests_that_one_endpoint_refuses_are_refused():
    with pytest.raises(InvalidInput, match="expected at most 1 for Anthropic"):
        anthropic_batch(prompt("io"), custom_id="1", settings=BatchSettings("m", temperature=1.5))
    for batch in (openai_batch, anthropic_batch):
        with pytest.raises(InvalidInput, match="an empty custom_id"):
            batch(prompt("io"), custom_id="", settings=BatchSettings("m"))

"""The sample shop that ships with the package: a pool of support messages and queries that ask for the same intents."""

import json
import re
from collections import Counter
from importlib.resources import files
from itertools import combinations

import pytest

POOL, QUERIES = "support_pool.jsonl", "support_queries.jsonl"
INTENTS = {
    "account_locked",
    "cancel_order",
    "change_order",
    "delivery_late",
    "delivery_wrong_item",
    "double_charge",
    "login_problem",
    "payment_declined",
    "promo_code",
    "refund_request",
    "refund_status",
    "warranty_claim",
}


def unique_keys(pairs):
    """Refuses a repeated key, which `json` would otherwise drop quietly."""
    assert len({key for key, _ in pairs}) == len(pairs), pairs
    return dict(pairs)


def rows(name):
    """The rows of a shipped file; only a line feed ends a row."""
    text = files("retriever.data").joinpath(name).read_text(encoding="utf-8")
    assert text.endswith("\n")
    return [json.loads(line, object_pairs_hook=unique_keys) for line in text.removesuffix("\n").split("\n")]


@pytest.fixture(scope="module")
def pool():
    return rows(POOL)


@pytest.fixture(scope="module")
def queries():
    return rows(QUERIES)


def words(text):
    return frozenset(re.findall(r"\w+", text.casefold()))


def jaccard(left, right):
    return len(left & right) / len(left | right)


def test_word_set_jaccard_is_shared_words_over_all_words():
    assert jaccard(words("Cancel my order!"), words("cancel the order")) == 2 / 4


@pytest.mark.parametrize("name", [POOL, QUERIES])
def test_every_row_has_exactly_the_documented_keys_in_order(name):
    for row in rows(name):
        assert list(row) == ["id", "input", "output", "label", "meta"], row["id"]
        assert list(row["meta"]) == ["channel", "language", "priority"], row["id"]


@pytest.mark.parametrize("name", [POOL, QUERIES])
def test_every_value_is_one_of_the_documented_ones(name):
    for row in rows(name):
        assert row["label"] in INTENTS, row["id"]
        assert row["meta"]["channel"] in {"email", "chat", "phone"}, row["id"]
        assert row["meta"]["language"] in {"en", "de", "es"}, row["id"]
        assert type(row["meta"]["priority"]) is int, row["id"]
        assert row["meta"]["priority"] in {1, 2, 3}, row["id"]


@pytest.mark.parametrize(("name", "prefix", "digits"), [(POOL, "s", 3), (QUERIES, "q", 2)])
def test_ids_count_up_without_gaps(name, prefix, digits):
    found = [row["id"] for row in rows(name)]
    assert found == [f"{prefix}{number:0{digits}d}" for number in range(1, len(found) + 1)]


def test_the_pool_has_at_least_twelve_examples_of_each_of_the_twelve_intents(pool):
    counts = Counter(row["label"] for row in pool)
    assert set(counts) == INTENTS
    assert min(counts.values()) >= 12, counts
    assert len(pool) >= 144


def test_there_are_two_queries_for_every_intent_of_the_pool(pool, queries):
    assert Counter(row["label"] for row in queries) == dict.fromkeys({row["label"] for row in pool}, 2)


def test_inputs_and_outputs_are_distinct_across_both_files(pool, queries):
    for field in ("input", "output"):
        texts = Counter(" ".join(row[field].casefold().split()) for row in pool + queries)
        assert [text for text, count in texts.items() if count > 1] == []


def test_no_query_is_a_near_copy_of_a_pool_input(pool, queries):
    close = [
        (query["id"], row["id"])
        for query in queries
        for row in pool
        if jaccard(words(query["input"]), words(row["input"])) >= 0.6
    ]
    assert close == []


def test_no_two_replies_share_most_of_their_words(pool, queries):
    close = [
        (left["id"], right["id"])
        for left, right in combinations(pool + queries, 2)
        if jaccard(words(left["output"]), words(right["output"])) >= 0.6
    ]
    assert close == []


@pytest.mark.parametrize("name", [POOL, QUERIES])
def test_messages_run_from_three_to_forty_five_words_and_replies_from_one_to_three_sentences(name):
    for row in rows(name):
        assert 3 <= len(row["input"].split()) <= 45, row["id"]
        assert 1 <= len(re.findall(r"[.!?][\"“”]?(?=\s|$)", row["output"])) <= 3, row["id"]


def test_both_files_mix_german_and_spanish_into_english(pool, queries):
    in_pool = Counter(row["meta"]["language"] for row in pool)
    in_queries = Counter(row["meta"]["language"] for row in queries)
    assert in_pool["de"] >= 4 and in_pool["es"] >= 4
    assert in_pool["de"] + in_pool["es"] <= 14
    assert in_queries["de"] + in_queries["es"] == 2


@pytest.mark.parametrize("name", [POOL, QUERIES])
def test_no_text_holds_an_address_of_the_internet_or_stray_space(name):
    for row in rows(name):
        for field in ("input", "output"):
            assert not re.search(r"@|https?:|www\.|\.(com|org|net|de|es)\b", row[field]), row["id"]
            assert row[field] == " ".join(row[field].split()), row["id"]

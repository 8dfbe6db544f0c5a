"""Reranking: the formula, the order, the caches, and a tiny cross-encoder loaded through the real library."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retriever.errors import EmbedderError, InvalidInput
from retriever.ranking.rerank import Cache, Rerank, rerank

numbers = st.floats(-100, 100)


def ordered(rows: list[int], relevance: list[float], scores: list[float], weight: float):
    return rerank(np.array(rows, dtype=np.int64), np.array(relevance), np.array(scores), weight)


# --- the formula ------------------------------------------------------------------------------------------------------


def test_a_case_by_hand():
    # Scaled scores 0, 1, .5; scaled fused 1, .5, 0; at .6 these make .4, .8, .3. The last two were not scored again.
    found = ordered([7, 3, 9, 1, 2], [0.9, 0.7, 0.5, 0.4, 0.2], [10, 30, 20], 0.6)
    assert found.places.tolist() == [1, 0, 2, 3, 4]
    np.testing.assert_allclose(found.relevance, [0.8, 0.4, 0.3, 0, -1])


@given(data=st.data(), weight=st.floats(0, 1))
def test_it_is_the_formula_in_total_order(data, weight):
    count = data.draw(st.integers(0, 8))
    depth = data.draw(st.integers(0, count))
    rows = data.draw(st.permutations(range(count)))
    fused = sorted(data.draw(st.lists(numbers, min_size=count, max_size=count)), reverse=True)
    scores = data.draw(st.lists(st.sampled_from([0.0, 1.0, 2.5]), min_size=depth, max_size=depth))

    def share(value: float, among: list[float]) -> float:
        low, high = min(among), max(among)
        return (value - low) / (high - low) if high > low else 0.0

    relevance = [
        weight * share(scores[i], scores) + (1.0 - weight) * share(fused[i], fused[:depth]) for i in range(depth)
    ]
    expected = sorted(range(depth), key=lambda i: (-relevance[i], rows[i]))
    found = ordered(list(rows), fused, scores, weight)
    assert found.places.tolist() == [*expected, *range(depth, count)]
    assert found.relevance[:depth].tolist() == [relevance[i] for i in expected]
    assert (np.diff(found.relevance) <= 0).all()


def test_all_weight_on_the_fused_score_changes_no_order_and_all_on_the_reranker_forgets_it():
    assert ordered([5, 4, 6], [3, 2, 1], [1, 2, 3], 0.0).places.tolist() == [0, 1, 2]
    assert ordered([5, 4, 6], [3, 2, 1], [1, 2, 3], 1.0).places.tolist() == [2, 1, 0]


def test_equal_scores_leave_ties_to_the_row():
    found = ordered([5, 4, 6], [1, 1, 1], [2, 2, 2], 0.5)
    assert (found.places.tolist(), found.relevance.tolist()) == ([1, 0, 2], [0, 0, 0])


@pytest.mark.parametrize(
    ("relevance", "scores", "weight"),
    [([1.0], [1.0], 1.0), ([2.0, 1.0], [1.0] * 3, 1.0), ([2.0, np.nan], [1.0], 1.0), ([2.0, 1.0], [np.inf], 1.0)],
)
def test_what_does_not_fit_is_refused(relevance, scores, weight):
    with pytest.raises(InvalidInput):
        ordered([0, 1], relevance, scores, weight)


@pytest.mark.parametrize(
    "options",
    [
        {"by": "bm25"},
        {"by": "cross-encoder:"},
        {"by": "cross-encoder: "},
        {"by": ""},
        {"depth": 0},
        {"idf": True},
        {"by": "cross-encoder:tiny", "idf": True},
        {"weight": 1.5},
        {"weight": float("nan")},
    ],
)
def test_impossible_settings_are_refused(options):
    with pytest.raises(InvalidInput, match=r"rerank\."):
        Rerank(**options)


def test_settings_name_a_reranker_or_none():
    assert (Rerank().by, Rerank().model, Rerank("maxsim").model) == (None, None, None)
    assert Rerank("cross-encoder:models/tiny").model == "models/tiny"


# --- caches -----------------------------------------------------------------------------------------------------------


@given(steps=st.lists(st.tuples(st.booleans(), st.integers(0, 5), st.integers(0, 4)), max_size=40))
def test_a_cache_keeps_what_was_used_last_within_its_bytes(steps):
    cache: Cache[int] = Cache(8)
    kept: list[tuple[int, int]] = []  # key and size, the one used last at the end
    for write, key, size in steps:
        known = next((entry for entry in kept if entry[0] == key), None)
        if write:
            cache.put(key, key * 10, size)
            kept = [entry for entry in kept if entry is not known] + [(key, size)]
            while sum(size for _, size in kept) > 8:
                kept.pop(0)
        else:
            assert cache.get(key) == (None if known is None else key * 10)
            kept = [entry for entry in kept if entry is not known] + ([] if known is None else [known])
    assert (len(cache), cache.bytes) == (len(kept), sum(size for _, size in kept))


def test_what_is_larger_than_the_cache_is_not_kept():
    cache: Cache[str] = Cache(8)
    cache.put("a", "first", 5)
    cache.put("a", "second", 9)
    assert (cache.get("a"), cache.bytes) == (None, 0)


def test_importing_the_stage_imports_nothing_heavy():
    heavy = "torch", "sentence_transformers", "transformers"
    code = (
        "import sys, retriever.ranking.rerank, retriever.ranking.cross_encoder;"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- cross-encoder ----------------------------------------------------------------------------------------------------

QUERY = "where is my card"
TEXTS = ["my card has not arrived", "a", "how do i change the pin", "please " * 60, "a refund", "a"]


def cross_encoder_folder(folder, labels: int = 1):
    import tiny_models
    import torch
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast
    from transformers.utils import logging

    special = {name: f"[{name.split('_')[0].upper()}]" for name in ("pad_token", "unk_token", "cls_token", "sep_token")}
    words = PreTrainedTokenizerFast(tokenizer_object=tiny_models.tokenizer(), model_max_length=40, **special)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=40,
        num_labels=labels,
    )
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        BertForSequenceClassification(config).save_pretrained(folder)
    words.save_pretrained(folder)
    if bars:
        logging.enable_progress_bar()
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return cross_encoder_folder(tmp_path_factory.mktemp("cross"))


def load(folder, **options):
    from retriever.ranking.cross_encoder import CrossEncoderScorer

    return CrossEncoderScorer.load(str(folder), device="cpu", **options)


def test_scores_are_those_of_the_library_before_its_activation(folder):
    import torch
    from sentence_transformers import CrossEncoder

    model = CrossEncoder(str(folder), device="cpu")
    expected = model.predict(
        [(QUERY, text) for text in TEXTS], activation_fn=torch.nn.Identity(), show_progress_bar=False
    )
    found = load(folder).scores(QUERY, TEXTS)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert len(set(found.tolist())) == 5


@pytest.mark.parametrize("batch_size", [1, 2, 32])
@pytest.mark.parametrize("threads", [1, 3])
def test_the_bits_of_a_score_do_not_depend_on_batches_or_threads(folder, batch_size, threads):
    import torch

    whole = load(folder).scores(QUERY, TEXTS)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        other = load(folder, batch_size=batch_size)
        assert [other.scores(QUERY, [text])[0] for text in TEXTS] == whole.tolist()
        assert load(folder, batch_size=batch_size).scores(QUERY, TEXTS[::-1]).tolist() == whole.tolist()[::-1]
    finally:
        torch.set_num_threads(before)


def test_a_pair_is_scored_once(folder, monkeypatch):
    scorer = load(folder)
    first = scorer.scores(QUERY, TEXTS)
    assert len(scorer.cache) == 5
    monkeypatch.setattr(scorer, "_run", lambda pairs: [] if not pairs else pytest.fail(f"scored again: {pairs}"))
    assert scorer.scores(QUERY, TEXTS).tolist() == first.tolist()
    assert scorer.scores(QUERY, []).shape == (0,)


def test_the_order_of_query_and_text_matters_to_the_cache(folder):
    scorer = load(folder)
    scorer.scores("a", ["refund please"])
    scorer.scores("refund please", ["a"])
    assert len(scorer.cache) == 2


def test_lone_surrogates_and_blank_texts_are_scored(folder):
    scorer = load(folder)
    surrogate, replaced, blank = scorer.scores(QUERY, ["a\ud800b", "a\ufffdb", ""])
    assert surrogate == replaced
    assert np.isfinite(blank)


def test_models_that_cannot_rerank_are_refused(folder, tmp_path, monkeypatch):
    with pytest.raises(EmbedderError, match="gives 3 numbers for a pair"):
        load(cross_encoder_folder(tmp_path / "three", labels=3))
    with pytest.raises(EmbedderError, match="no model folder"):
        load(tmp_path / "nothing")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(EmbedderError, match="not on this machine"):
        load("nobody/nothing")


def test_code_of_a_model_is_never_run(folder, tmp_path):
    copy = tmp_path / "model"
    cross_encoder_folder(copy)
    config = json.loads((copy / "config.json").read_text())
    config["model_type"] = "evil"
    config["auto_map"] = {"AutoConfig": "evil.Config", "AutoModelForSequenceClassification": "evil.Model"}
    (copy / "config.json").write_text(json.dumps(config))
    (copy / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    with pytest.raises(EmbedderError, match="model"):
        load(copy)
    assert not (tmp_path / "ran").exists()


def test_a_model_that_gives_nan_or_fails_is_named(folder, monkeypatch):
    scorer = load(folder)
    monkeypatch.setattr(scorer, "_forward", lambda tokens: np.full(len(tokens["input_ids"]), np.nan))
    with pytest.raises(EmbedderError, match="NaN or infinity"):
        scorer.scores(QUERY, ["a"])
    monkeypatch.setattr(scorer, "_forward", lambda tokens: 1 / 0)
    with pytest.raises(EmbedderError, match="failed: ZeroDivisionError"):
        scorer.scores(QUERY, ["a"])
    assert len(scorer.cache) == 0

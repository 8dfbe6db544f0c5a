"""Reranking and tokens through a whole index: stored or made when asked for, after changes, repairs and damage."""

from __future__ import annotations

import numpy as np
import pytest

from indexes import generation as generations
from indexes.current import read_current
from retriever import IndexSettings, Recipe, Retriever
from retriever.errors import EmbedderError, InvalidInput
from retriever.plan import BuildPlan
from retriever.repair import repair
from retriever.verification import verify
from tests.support import Words, build, fail, word_vector

POOL = [
    {"id": "a", "input": "lost card", "output": "1", "meta": {"types": ["card"]}},
    {"id": "b", "input": "card refund please", "output": "2"},
    {"id": "c", "input": "where is my refund", "output": "3"},
    {"id": "d", "input": "lost pin and lost card", "output": "4"},
    {"id": "e", "input": "hello", "output": "5"},
]
QUERY = "lost refund"


def maxsim(query: str, text: str, weights=None) -> float:
    best = [max((float(word_vector(q) @ word_vector(w)) for w in text.split()), default=-1.0) for q in query.split()]
    return float(np.average(best, weights=weights))


def made(path, words, *, stored: bool, rows=POOL, **options) -> Retriever:
    settings = IndexSettings(token_vectors=stored)
    return build(rows, path, embedder=words, settings=settings, weight=0.5, **options)


@pytest.mark.parametrize("stored", [True, False])
def test_maxsim_orders_the_candidates_and_says_what_it_scored(tmp_path, stored):
    words = Words()
    with made(tmp_path / "i", words, stored=stored) as retriever:
        chosen = retriever.select(QUERY, k=5, rerank="maxsim")
        scores = {row["id"]: maxsim(QUERY, row["input"]) for row in POOL}
        for one in chosen:
            assert one.channels["rerank"] == pytest.approx(scores[one.example.id], abs=1e-3)
        again = [one.channels["rerank"] for one in chosen]
        assert again == sorted(again, reverse=True)
        assert (chosen[0].score, chosen[-1].score) == (1.0, 0.0)
        before = len(words.asked)
        retriever.select(QUERY, k=5, rerank="maxsim")
        assert words.asked[before:] == [QUERY]  # the pool's tokens are stored, or kept


def test_stored_tokens_give_the_bits_of_those_made_when_asked_for(tmp_path):
    with (
        made(tmp_path / "s", Words(), stored=True) as stored,
        made(tmp_path / "m", Words(), stored=False) as made_then,
    ):
        for recipe in (
            {"rerank": {"by": "maxsim"}},
            {"select": {"strategy": "coverage", "options": {"of": "tokens"}}},
        ):
            first, second = (one.select(QUERY, k=4, recipe=recipe) for one in (stored, made_then))
            assert [(d.example.id, d.score, d.gain) for d in first] == [(d.example.id, d.score, d.gain) for d in second]


def test_coverage_of_tokens_is_the_greedy_cover_of_the_query(tmp_path):
    recipe = {
        "retrieve": {"mode": "dense"},
        "select": {"strategy": "coverage", "options": {"of": "tokens", "relevance_weight": 0.0}},
    }
    query = "pin refund hello"
    with made(tmp_path / "i", Words(), stored=True) as retriever:
        chosen = retriever.select(query, k=3, recipe=recipe)
        order = [one.example.id for one in retriever.select(query, k=5, mode="dense")]
    texts = {row["id"]: row["input"] for row in POOL}
    likeness = {
        i: [max(0.0, *(float(word_vector(q) @ word_vector(w)) for w in t.split())) for q in query.split()]
        for i, t in texts.items()
    }
    covered, wanted = [0.0] * 3, []
    while len(wanted) < 3:
        gains = {
            i: sum(max(0.0, new - old) for new, old in zip(likeness[i], covered, strict=True))
            for i in order
            if i not in wanted
        }
        best = max(gains, key=lambda i: (round(gains[i], 6), -order.index(i)))
        assert gains[best] > 0
        wanted.append(best)
        covered = [max(new, old) for new, old in zip(likeness[best], covered, strict=True)]
    assert list(chosen.ids) == wanted


def test_idf_weighs_the_query_by_what_the_rows_have(tmp_path):
    recipe = {"rerank": {"by": "maxsim", "idf": True}}
    with made(tmp_path / "i", Words(), stored=True) as retriever:
        chosen = retriever.select("lost refund zebra", k=5, recipe=recipe)
    # Of five rows two hold "lost", two "refund", none "zebra".
    weights = [np.log(6 / 3), np.log(6 / 3), np.log(6 / 1)]
    for one in chosen:
        by_hand = maxsim("lost refund zebra", one.example.input_text, weights)
        assert one.channels["rerank"] == pytest.approx(by_hand, abs=1e-3)
    with (
        made(tmp_path / "m", Words(), stored=False) as retriever,
        pytest.raises(InvalidInput, match="--token-vectors"),
    ):
        retriever.select(QUERY, recipe=recipe)


def test_an_index_without_a_token_model_says_so(tmp_path):
    with build(POOL, tmp_path / "i", weight=0.5) as retriever:
        for recipe in (
            {"rerank": {"by": "maxsim"}},
            {"select": {"strategy": "coverage", "options": {"of": "tokens"}}},
        ):
            with pytest.raises(InvalidInput, match="has no token vectors; expected a transformer model"):
                retriever.select(QUERY, recipe=recipe)
    with pytest.raises(InvalidInput, match="has no token vectors"):
        build(POOL, tmp_path / "j", settings=IndexSettings(token_vectors=True))
    assert not (tmp_path / "j" / "CURRENT").exists()


def test_changes_are_reranked_too_and_compaction_embeds_only_what_is_new(tmp_path):
    words = Words()
    with made(tmp_path / "i", words, stored=True) as retriever:
        retriever.add({"id": "f", "input": "lost refund", "output": "6"})
        retriever.remove("d")
        words.asked.clear()
        before = retriever.select(QUERY, k=5, rerank="maxsim")
        assert before[0].example.id == "f"
        assert words.asked == [QUERY, "lost refund"]
        words.asked.clear()
        retriever.compact()
        assert words.asked == ["lost refund"]
        after = retriever.select(QUERY, k=5, rerank="maxsim")
        assert [(d.example.id, d.channels["rerank"]) for d in after] == [
            (d.example.id, d.channels["rerank"]) for d in before
        ]
    rows = [*(row for row in POOL if row["id"] != "d"), {"id": "f", "input": "lost refund", "output": "6"}]
    made(tmp_path / "rebuilt", Words(), stored=True, rows=rows).close()
    for name in ("token_vectors", "token_offsets", "token_ids"):
        compacted = (tmp_path / "i" / "gen-000002" / f"{name}.npy").read_bytes()
        assert compacted == (tmp_path / "rebuilt" / "gen-000001" / f"{name}.npy").read_bytes()


def test_overwriting_with_the_same_texts_embeds_no_token_again(tmp_path):
    made(tmp_path / "i", Words(), stored=True).close()
    words = Words()
    made(tmp_path / "i", words, stored=True, rows=POOL[1:], overwrite=True).close()
    assert words.asked == []


def test_the_plan_counts_the_tokens_to_the_byte(tmp_path):
    plans: list[BuildPlan] = []
    made(tmp_path / "i", Words(), stored=True, on_plan=plans.append).close()
    made(tmp_path / "j", Words(), stored=False, on_plan=plans.append).close()
    written = sum(path.stat().st_size for path in (tmp_path / "i" / "gen-000001").glob("token_*.npy"))
    assert [plan.token_bytes for plan in plans] == [written, 0]
    assert plans[0].disk_bytes - plans[1].disk_bytes == written
    assert plans[0].memory_bytes - plans[1].memory_bytes == 2 * written


@pytest.mark.parametrize("damaged", ["token_vectors.npy", "token_ids.npy", "vectors.npy"])
def test_a_repair_keeps_what_is_intact_and_embeds_the_rest(tmp_path, damaged):
    path = tmp_path / "i"
    made(path, Words(), stored=True).close()
    whole = {file.name: file.read_bytes() for file in (path / "gen-000001").glob("*.npy")}
    target = path / "gen-000001" / damaged
    content = bytearray(target.read_bytes())
    content[-1] ^= 1
    target.write_bytes(content)
    assert not verify(path).intact
    words = Words()
    repair(path, embedder=words, note=fail)
    assert bool(words.asked) == damaged.startswith("token")
    assert {file.name: file.read_bytes() for file in (path / "gen-000002").glob("*.npy")} == whole
    assert verify(path).intact


def test_settings_that_promise_tokens_which_are_not_there_are_corrupt(tmp_path):
    path = tmp_path / "i"
    made(path, Words(), stored=True).close()
    current = read_current(path)
    with_tokens = generations.open_current(path, current)
    content = {name: [bytes(b)] for name, b in with_tokens.buffers.items() if not name.startswith("token_")}
    about = {
        k: v for k, v in with_tokens.manifest.items() if k in ("created_by", "pool", "settings", "embedder", "fusion")
    }
    generations.publish(path, content, about, revision=current.revision, chain=current.chain)
    with_tokens.close()
    notes: list[str] = []
    with Retriever.open(path, embedder=Words(), note=notes.append) as retriever:
        assert retriever.generation == "gen-000001"
    assert "token_vectors" in notes[0]


def test_a_cross_encoder_is_loaded_once_and_reads_the_key_texts(tmp_path, monkeypatch):
    loaded: list[str] = []

    class Scorer:
        def scores(self, query, texts):
            return np.array([float(len(query) + len(text)) for text in texts])

    def load(name):
        loaded.append(name)
        return Scorer()

    monkeypatch.setattr("retriever.rescoring.CrossEncoderScorer.load", load)
    with build(POOL, tmp_path / "i", weight=0.5, settings=IndexSettings(key="input+output")) as retriever:
        chosen = retriever.select({"input": QUERY, "output": ""}, k=2, rerank="cross-encoder:some/model")
        retriever.select(QUERY, k=2, rerank="cross-encoder:some/model")
    assert loaded == ["some/model"]
    assert chosen.ids == ("d", "b")
    assert chosen[0].channels["rerank"] == len(QUERY) + 1 + len("lost pin and lost card\n4")
    assert chosen.recipe.rerank.by == "cross-encoder:some/model"


def test_a_cross_encoder_that_is_not_there_is_named(tmp_path):
    with (
        build(POOL, tmp_path / "i", weight=0.5) as retriever,
        pytest.raises(EmbedderError, match="no model folder"),
    ):
        retriever.select(QUERY, rerank=f"cross-encoder:{tmp_path}/nothing")


# --- what changes bring -----------------------------------------------------------------------------------------------

IDF = {"rerank": {"by": "maxsim", "idf": True}}


def reranked(retriever: Retriever, query: str) -> dict[str, float]:
    return {one.example.id: one.channels["rerank"] for one in retriever.select(query, k=99, recipe=IDF)}


def test_idf_counts_what_was_added_and_not_what_was_removed(tmp_path):
    new = [{"id": f"n{i}", "input": "card card rain", "output": "o"} for i in range(8)]
    rows = [*(row for row in POOL if row["id"] != "d"), *new]
    made(tmp_path / "rebuilt", Words(), stored=True, rows=rows).close()
    words = Words()
    with (
        made(tmp_path / "i", words, stored=True) as retriever,
        Retriever.open(tmp_path / "rebuilt", embedder=Words(), note=fail) as rebuilt,
    ):
        retriever.add(new)
        retriever.remove("d")
        grown = reranked(retriever, "lost card rain zebra")
        assert grown == reranked(rebuilt, "lost card rain zebra")
        retriever.compact()
        assert reranked(retriever, "lost card rain zebra") == grown


def test_tokens_of_a_text_that_did_not_change_are_not_embedded_again(tmp_path):
    words = Words()
    with made(tmp_path / "i", words, stored=True) as retriever:
        words.asked.clear()
        retriever.update([{**row, "output": "new"} for row in POOL])
        retriever.compact()
    assert words.asked == []


def test_a_change_is_done_even_where_its_compaction_lacks_the_embedder(tmp_path, monkeypatch):
    made(tmp_path / "i", Words(), stored=True).close()
    with Retriever.open(tmp_path / "i", embedder=Words(), note=fail) as retriever:
        retriever.add({"id": "new", "input": "late rain", "output": "o"})
    monkeypatch.setattr("retriever.live.COMPACT_AFTER", 1)
    notes: list[str] = []
    with Retriever.open(tmp_path / "i", note=notes.append) as retriever:
        assert retriever.remove(["a", "b"]) == 2
        assert len(retriever) == 4
    assert "could not be folded" in notes[0]
    assert "only its owner can bring" in notes[0]
    with Retriever.open(tmp_path / "i", embedder=Words(), note=fail) as retriever:
        assert len(retriever) == 4


def test_another_model_under_the_same_name_is_another_export(tmp_path):
    from retriever.export import ExportSettings, made_from

    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    settings = ExportSettings(recipe=Recipe.of({"rerank": {"by": f"cross-encoder:{model}"}}))
    with build(POOL, tmp_path / "i", weight=0.5) as retriever:
        before = made_from(retriever, settings)
        assert made_from(retriever, settings) == before
        (model / "config.json").write_text("[]")
        assert made_from(retriever, settings) != before

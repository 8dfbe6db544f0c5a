"""Token vectors of models, loaded through the real library, and how a generation stores them."""

from __future__ import annotations

import numpy as np
import pytest
import tiny_models
import torch
from transformers import AutoModel, AutoTokenizer

from indexes import generation as generations
from indexes.arrays import npy
from indexes.late_interaction import maxsim
from retriever.embedders import EmbedderSettings, load_embedder
from retriever.embedders.base import encode_tokens, token_embedder
from retriever.errors import EmbedderError, IndexCorrupt, InvalidInput
from retriever.token_storage import predicted_bytes, stored_tokens, token_files, tokens_of

TEXTS = [
    "my card has not arrived",
    "where is the transfer",
    "a",
    "how do i change the pin please",
    "word " * 90,
    "my card has not arrived",
    "refund \u4e2d zebra",
]


def refuse(line: str) -> None:
    raise AssertionError(f"unexpected note: {line}")


def load(wanted: object, **options: object):
    return load_embedder(wanted, note=refuse, **options)


def by_torch(folder):
    return load(EmbedderSettings(str(folder), engine="torch"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_models.transformer_folder(tmp_path_factory.mktemp("tokens"), out=20)


@pytest.fixture(scope="module")
def embedder(folder):
    return token_embedder(by_torch(folder))


def by_transformers(folder, text: str) -> np.ndarray:
    """The unit vectors of a text's tokens, computed with the transformers library alone, one text at a time."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    encoded = tokenizer(text, return_tensors="pt", truncation=True, return_special_tokens_mask=True)
    inner = encoded.pop("special_tokens_mask")[0] == 0
    with torch.inference_mode():
        states = model(**encoded).last_hidden_state[0][inner].double()
    return (states / states.norm(dim=1, keepdim=True)).numpy()


def test_token_vectors_are_the_last_states_of_the_transformer_without_its_special_tokens(folder, embedder):
    tokens = embedder.token_vectors(TEXTS)
    assert (tokens.vectors.dtype, embedder.token_dim, embedder.dim) == (np.float32, 32, 20)
    for row, text in enumerate(TEXTS):
        np.testing.assert_allclose(tokens.text(row), by_transformers(folder, text), atol=1e-5)
    assert len(tokens.text(4)) == 46  # cut at 48, of which two are the tokenizer's own


def test_maxsim_of_a_model_is_the_direct_computation(folder, embedder):
    query = by_transformers(folder, "my card please")
    direct = [(query @ by_transformers(folder, text).T).max(axis=1).mean() for text in TEXTS]
    asked = embedder.token_vectors(["my card please"]).text(0)
    np.testing.assert_allclose(maxsim(asked, embedder.token_vectors(TEXTS)), direct, atol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 2, 3])
@pytest.mark.parametrize("threads", [1, 3])
def test_bytes_do_not_depend_on_batches_threads_or_order(folder, embedder, batch_size, threads):
    whole = embedder.token_vectors(TEXTS)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        other = load(EmbedderSettings(str(folder), engine="torch", batch_size=batch_size)).token_vectors(TEXTS[::-1])
    finally:
        torch.set_num_threads(before)
    for row in range(len(TEXTS)):
        assert other.text(len(TEXTS) - 1 - row).tobytes() == whole.text(row).tobytes()


def test_every_token_vector_has_its_id_and_an_unknown_word_counts(embedder):
    ids, tokens = embedder.token_ids(TEXTS), embedder.token_vectors(TEXTS)
    assert [len(one) for one in ids] == np.diff(tokens.offsets).tolist()
    words = tiny_models.tokenizer()
    assert ids[0].tolist() == words.encode(TEXTS[0], add_special_tokens=False).ids
    assert words.token_to_id("[UNK]") in ids[6].tolist()


def test_pooling_is_left_as_it_was(folder, embedder):
    before = embedder.encode(TEXTS)
    embedder.token_vectors(TEXTS)
    assert embedder.encode(TEXTS).tobytes() == before.tobytes()


def test_blank_texts_have_no_tokens_and_lone_surrogates_are_replaced(embedder):
    tokens = encode_tokens(embedder, ["", "my card", " \n", "my\ud800card", "my card"])
    assert np.diff(tokens.offsets).tolist()[:3] == [0, 2, 0]
    assert tokens.text(4).tobytes() == tokens.text(1).tobytes()
    assert tokens.text(3).tobytes() == embedder.token_vectors(["my\ufffdcard"]).text(0).tobytes()
    assert encode_tokens(embedder, ["", " "]).vectors.shape == (0, 32)
    assert len(encode_tokens(embedder, [])) == 0


def test_a_prefix_is_part_of_the_text(embedder):
    prefixed, whole = encode_tokens(embedder, ["card"], prefix="query "), embedder.token_vectors(["query card"])
    assert prefixed.vectors.tobytes() == whole.vectors.tobytes()


def test_a_model_that_fails_is_named(folder, monkeypatch):
    broken = token_embedder(by_torch(folder))
    monkeypatch.setattr(broken, "token_vectors", lambda texts: 1 / 0)
    with pytest.raises(EmbedderError, match="failed: ZeroDivisionError"):
        encode_tokens(broken, ["a"])


def test_embedders_without_tokens_are_refused_by_name(tmp_path):
    static = by_torch(tiny_models.static_folder(tmp_path / "static"))
    latent = load("latent", pool_texts=lambda: TEXTS)
    function = load(lambda texts: np.ones((len(texts), 3)))
    for one in (static, latent, function):
        with pytest.raises(InvalidInput, match="which has no token vectors; expected a transformer") as caught:
            token_embedder(one)
        assert one.name in str(caught.value)


# --- in a generation --------------------------------------------------------------------------------------------------

DISTINCT = ["my card", "", "where is the transfer", "a"]
NUMBER = np.array([2, 0, 1, 0, 3])


def silent(*step: object) -> None:
    pass


def published(root, content):
    root.mkdir()
    current = generations.publish(root, content, {}, revision=1, chain="0" * 64)
    return generations.open_current(root, current)


def test_what_is_stored_comes_back_with_the_size_that_was_predicted(embedder, tmp_path):
    told: list[tuple[str, int, int]] = []
    files = token_files(lambda: embedder, DISTINCT, NUMBER, progress=lambda *step: told.append(step))
    assert told == [("embedding tokens", 0, 4), ("embedding tokens", 4, 4)]
    size = sum(memoryview(piece).nbytes for pieces in files.values() for piece in pieces)
    assert size == predicted_bytes(embedder, DISTINCT, NUMBER)
    back = stored_tokens(published(tmp_path / "index", files), 5)
    texts = [DISTINCT[i] for i in NUMBER]
    expected = encode_tokens(embedder, texts)
    assert back.vectors.offsets.tolist() == expected.offsets.tolist()
    assert back.vectors.vectors.tobytes() == expected.vectors.astype(np.float16).tobytes()
    assert back.ids.tolist() == [i for text in texts if text for i in embedder.token_ids([text])[0]]
    assert back.text(0).ids.tolist() == embedder.token_ids([texts[0]])[0].tolist()


def test_known_tokens_are_not_embedded_again(embedder):
    whole = token_files(lambda: embedder, DISTINCT, NUMBER, progress=silent)
    made = dict(zip(DISTINCT, tokens_of(embedder, DISTINCT, ""), strict=True))
    again = token_files(lambda: pytest.fail("loaded"), DISTINCT, NUMBER, known=made.get, progress=silent)
    assert {name: b"".join(map(bytes, pieces)) for name, pieces in again.items()} == {
        name: b"".join(map(bytes, pieces)) for name, pieces in whole.items()
    }


def test_stored_tokens_tell_how_many_rows_contain_each(embedder, tmp_path):
    stored = stored_tokens(
        published(tmp_path / "index", token_files(lambda: embedder, DISTINCT, NUMBER, progress=silent)), 5
    )
    card = tiny_models.tokenizer().token_to_id("card")
    assert stored.containing[card] == 2
    ids = [set(stored.text(row).ids.tolist()) for row in range(5)]
    assert stored.containing.tolist() == [sum(i in one for one in ids) for i in range(len(stored.containing))]


def test_no_rows_are_stored_as_no_rows(embedder, tmp_path):
    none = np.array([], dtype=np.int64)
    files = token_files(lambda: embedder, [], none, progress=silent)
    assert predicted_bytes(embedder, [], none) == 3 * 128 + 8
    assert len(stored_tokens(published(tmp_path / "index", files), 0)) == 0


@pytest.mark.parametrize("fault", ["rows", "offsets", "one file", "dtype", "ids", "negative ids"])
def test_files_that_do_not_belong_together_are_corrupt(embedder, tmp_path, fault):
    files = dict(token_files(lambda: embedder, DISTINCT, NUMBER, progress=silent))
    if fault == "offsets":
        files["token_offsets.npy"] = npy(np.arange(6))
    if fault == "one file":
        del files["token_vectors.npy"]
    if fault == "dtype":
        files["token_vectors.npy"] = npy(np.zeros((11, 32), np.float32))
    if fault == "ids":
        files["token_ids.npy"] = npy(np.zeros(3, np.int32))
    if fault == "negative ids":
        count = sum(len(ids) for i in NUMBER for ids in [next(tokens_of(embedder, [DISTINCT[i]], "")).ids])
        files["token_ids.npy"] = npy(np.full(count, -1, np.int32))
    with pytest.raises(IndexCorrupt):
        stored_tokens(published(tmp_path / "index", files), 6 if fault == "rows" else 5)

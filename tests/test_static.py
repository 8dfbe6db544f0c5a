"""A static embedder: distilled from a model over a pool, kept in the index, and read again without torch."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import tiny_models

from indexes.arrays import npy
from retriever import Retriever
from retriever.embedders import EmbedderSettings, StaticEmbedder, distillation, load_embedder
from retriever.embedders.base import unit_rows
from retriever.embedders.static import Words, token_count
from retriever.errors import EmbedderError, Incompatible, InvalidInput
from tests.support import fail

ROOT = Path(__file__).parent.parent
# "zebras" and "cardholder" are several tokens of the tiny tokenizer, the others are one.
POOL = ["my card has not arrived", "the zebras transfer", "cardholder zebras", "where is the refund", "zebras please"]
TEXTS = [*POOL, "a zebra", "Where IS the Cardholder?", "", "[MASK] \U0001f600", "card " * 5000]
ROWS = [{"id": str(i), "input": text, "output": "o"} for i, text in enumerate(POOL)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_models.transformer_folder(tmp_path_factory.mktemp("static"))


@pytest.fixture(scope="module")
def exports(folder, tmp_path_factory):
    """A cache in which the model is exported already."""
    path = tmp_path_factory.mktemp("exports")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(path))
        load_embedder(EmbedderSettings(str(folder), engine="onnx"), note=fail)
    return path


@pytest.fixture
def cache(exports, tmp_path, monkeypatch):
    shutil.copytree(exports, tmp_path / "cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "demonstration-retriever"


def fitted(folder, pool=POOL, note=fail, **settings):
    made = load_embedder(EmbedderSettings(f"static:{folder}", **settings), note=note, pool_texts=lambda: pool)
    assert isinstance(made, StaticEmbedder)
    return made


def words_of(embedder):
    state = embedder.state()
    blob, offsets = state["vocabulary"].tobytes().decode(), state["offsets"].tolist()
    return [blob[start:end] for start, end in pairwise(offsets)]


def test_words_of_several_tokens_get_rows_of_their_own_the_most_frequent_first(folder, cache):
    made = fitted(folder)
    assert words_of(made) == ["zebras", "cardholder"]
    assert (made.name, made.dim) == (f"static:{folder}", 32)
    a, b, both = made.encode(["z", "##e", "zebras"])
    assert not np.allclose(both, unit_rows((a + b)[None])[0], atol=1e-3)


def test_a_text_is_the_direction_of_the_sum_of_its_words_rows_worked_out_by_hand():
    words = Words(tiny_models.tokenizer().to_str())
    rows = np.zeros((token_count(words) + 1, 2), dtype=np.float16)
    ids = {token: words.tokenizer.token_to_id(token) for token in ("card", "my", "z", "##e")}
    rows[ids["card"]], rows[ids["my"]], rows[ids["z"]], rows[ids["##e"]] = (1, 0), (0, 1), (0, 2), (2, 0)
    rows[-1] = (3, 4)
    made = StaticEmbedder("static:toy", words, ["zebra"], rows)
    texts = ["card", "My card", "card my card", "zebra", "ze", "where", "zebra card"]
    sums = np.array([(1, 0), (1, 1), (2, 1), (3, 4), (2, 2), (0, 0), (4, 4)], dtype=np.float64)
    lengths = np.linalg.norm(sums, axis=1, keepdims=True)
    np.testing.assert_allclose(made.encode(texts), sums / np.where(lengths > 0, lengths, 1), atol=1e-7)


def test_it_agrees_with_model2vec_over_the_same_rows(folder, cache):
    from model2vec import StaticModel
    from tokenizers import Tokenizer

    made = fitted(folder)
    state = made.state()
    theirs = json.loads(state["tokenizer"].tobytes())
    for word in words_of(made):
        theirs["model"]["vocab"][word] = len(theirs["model"]["vocab"])
    theirs["post_processor"] = None
    peer = StaticModel(
        state["rows"].astype(np.float32), Tokenizer.from_str(json.dumps(theirs)), normalize=True, max_length=None
    )
    # A text that spells a special token means its characters here, and the token there.
    texts = [text for text in TEXTS if text and "[MASK]" not in text]
    np.testing.assert_allclose(made.encode(texts), peer.encode(texts), atol=1e-6)


def model2vec_inference():
    """The module that has model2vec's own components and weights, without those that need further packages."""
    place = Path(importlib.util.find_spec("model2vec").submodule_search_locations[0]) / "distill" / "inference.py"
    spec = importlib.util.spec_from_file_location("model2vec_distill_inference", place)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_components_and_weights_are_those_of_model2vec():
    peer = model2vec_inference()
    rows = np.random.default_rng(0).normal(size=(300, 24)) @ np.diag(np.linspace(3, 0.2, 24))
    ours, theirs = distillation.principal(rows, 8), peer.apply_pca(rows, 8)
    np.testing.assert_allclose(ours @ ours.T, theirs @ theirs.T, atol=1e-9)
    np.testing.assert_allclose(np.abs(ours), np.abs(theirs), atol=1e-9)
    expected = rows * peer.compute_weights(300, 1e-4)[:, None]
    np.testing.assert_allclose(distillation.weighted(rows), expected, rtol=1e-12)


def test_rows_of_zeros_take_no_part_in_the_components():
    rows = np.random.default_rng(1).normal(size=(40, 6))
    with_zeros = np.insert(rows, [0, 7, 40], 0.0, axis=0)
    turned = distillation.principal(with_zeros, 3)
    assert not turned[[0, 8, 42]].any()
    np.testing.assert_allclose(np.delete(turned, [0, 8, 42], axis=0), distillation.principal(rows, 3), atol=1e-12)


def test_the_same_pool_gives_the_same_bytes_for_any_batch_and_number_of_threads(folder, cache, monkeypatch):
    before = {name: part.tobytes() for name, part in fitted(folder).state().items()}
    for file in cache.glob("*.tokens"):
        file.unlink()
    monkeypatch.setattr("retriever.embedders.onnx_engine.cores", lambda: 1)
    after = fitted(folder, pool=POOL[::-1], batch_size=5)
    assert {name: part.tobytes() for name, part in after.state().items()} == before
    together = after.encode(TEXTS)
    assert together.tobytes() == b"".join(after.encode([text]).tobytes() for text in TEXTS)


def test_both_engines_distil_the_same_but_for_rounding(folder, cache):
    one, other = fitted(folder, engine="onnx").encode(TEXTS), fitted(folder, engine="torch").encode(TEXTS)
    np.testing.assert_allclose(one @ one.T, other @ other.T, atol=2e-3)  # rows are kept in half precision


def test_the_tokens_are_embedded_once_for_all_pools_and_again_when_the_file_is_damaged(folder, cache, monkeypatch):
    expected = fitted(folder).encode(TEXTS)
    [kept] = cache.glob("*.tokens")
    with monkeypatch.context() as patch:
        patch.setattr(distillation, "_encoded_tokens", lambda *args: pytest.fail("embedded again"))
        assert fitted(folder).encode(TEXTS).tobytes() == expected.tobytes()
    content = bytearray(kept.read_bytes())
    content[len(content) // 2] ^= 1
    kept.write_bytes(content)
    assert fitted(folder).encode(TEXTS).tobytes() == expected.tobytes()
    assert kept.read_bytes() != bytes(content)


def test_a_cache_that_cannot_be_written_costs_time_and_says_so(folder, cache, monkeypatch):
    def refuse(path, vectors):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(distillation, "_write", refuse)
    notes: list[str] = []
    fitted(folder, note=notes.append)
    assert notes == [f"{cache}: No space left on device; the tokens of {folder} are embedded again with the next build"]


def test_a_state_gives_the_same_bytes_and_one_that_does_not_belong_together_is_refused(folder, cache):
    made = fitted(folder)
    state = made.state()
    again = StaticEmbedder.from_state(made.name, state)
    assert again.encode(TEXTS).tobytes() == made.encode(TEXTS).tobytes()
    wrong = {
        "rows": state["rows"][:-1],
        "offsets": state["offsets"][:-1],
        "vocabulary": state["vocabulary"][1:],
        "tokenizer": state["tokenizer"][:-1],
    }
    for name, part in wrong.items():
        with pytest.raises(EmbedderError):
            StaticEmbedder.from_state(made.name, {**state, name: part})
        with pytest.raises(EmbedderError, match=f"without {name}"):
            StaticEmbedder.from_state(made.name, {key: value for key, value in state.items() if key != name})


def test_an_index_holds_it_and_new_words_are_their_tokens(folder, cache, tmp_path):
    with Retriever.build(ROWS, tmp_path / "i", embedder=f"static:{folder}", note=fail, weight=0.5) as built:
        wanted = [(one.example.id, one.score) for one in built.select("the zebras")]
        assert built.info()["embedder"]["name"] == f"static:{folder}"
    shutil.rmtree(cache)
    for given in (None, f"static:{folder}", EmbedderSettings()):
        with Retriever.open(tmp_path / "i", embedder=given, note=fail) as opened:
            assert [(one.example.id, one.score) for one in opened.select("the zebras")] == wanted
    with Retriever.open(tmp_path / "i", note=fail) as opened:
        opened.add({"id": "new", "input": "xylophone quartet", "output": "o"})
        assert opened.select("xylophone quartet", mode="dense", k=1).ids == ("new",)


def test_another_fitted_embedder_than_the_indexs_is_refused(folder, cache, tmp_path):
    Retriever.build(ROWS, tmp_path / "i", embedder=f"static:{folder}", note=fail, weight=0.5).close()
    for given in ("latent", "static:auto"):
        with pytest.raises(Incompatible, match=f"static:{folder}, which built the index"):
            Retriever.open(tmp_path / "i", embedder=given, note=fail)


def test_vectors_of_another_pools_words_are_not_reused_though_the_fingerprint_is_the_same(folder, cache, tmp_path):
    Retriever.build(ROWS, tmp_path / "i", embedder=f"static:{folder}", note=fail, weight=0.5).close()
    more = [*ROWS, {"id": "x", "input": "the xylophone", "output": "o"}]
    for path, overwrite in (("i", True), ("fresh", False)):
        Retriever.build(
            more, tmp_path / path, embedder=f"static:{folder}", note=fail, weight=0.5, overwrite=overwrite
        ).close()
    [over], [fresh] = ((tmp_path / path).glob(f"gen-00000{n}/vectors.npy") for path, n in (("i", 2), ("fresh", 1)))
    assert over.read_bytes() == fresh.read_bytes()


def test_a_select_imports_neither_torch_nor_model2vec_nor_onnxruntime(folder, cache, tmp_path):
    Retriever.build(ROWS, tmp_path / "i", embedder=f"static:{folder}", note=fail, weight=0.5).close()
    code = (
        "import sys; from retriever import Retriever\n"
        "with Retriever.open(sys.argv[1]) as opened: opened.select('my card')\n"
        "print(sorted({'torch', 'transformers', 'model2vec', 'onnxruntime', 'sklearn'} & sys.modules.keys()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "i")], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("name", ["static:", "static:latent", "static:openai:m", "static:static:auto", "static: "])
def test_a_name_that_is_no_model_is_refused(name):
    with pytest.raises(InvalidInput, match="expected static:MODEL"):
        load_embedder(name, note=fail, pool_texts=lambda: POOL)


def test_it_needs_a_pool_a_transformer_and_no_prompts(tmp_path, folder):
    with pytest.raises(InvalidInput, match="a static embedder without a pool"):
        load_embedder(f"static:{folder}", note=fail)
    with pytest.raises(InvalidInput, match="does not use query_prompt"):
        fitted(folder, query_prompt="q: ")
    with pytest.raises(InvalidInput, match="this model is static already"):
        fitted(tiny_models.static_folder(tmp_path / "m"), engine="torch")


def test_a_pool_without_words_gives_an_embedder_all_the_same(folder, cache):
    made = fitted(folder, pool=["", "  "])
    assert words_of(made) == []
    assert made.encode(["my card"]).any()
    assert npy(made.encode([" "]))  # zeros, of the right shape

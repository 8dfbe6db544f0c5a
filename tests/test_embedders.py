"""Embedders: the contract every vector passes through, and the families that meet it."""

from __future__ import annotations

import logging
import math
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import tiny_models
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from retriever.embedders import (
    EmbedderSettings,
    LatentSemanticEmbedder,
    Prompts,
    encode_checked,
    fingerprint,
    load_embedder,
    packaged,
    prompts_of,
    same_space,
)
from retriever.embedders.base import unit_rows
from retriever.embedders.function import FunctionEmbedder
from retriever.embedders.openai_compatible import OpenAIEmbedder
from retriever.embedders.sentence_transformer import SentenceTransformerEmbedder, default_prompts
from retriever.errors import EmbedderError, InvalidInput, MissingDependency
from tests.support import Reply, answering

CANARY = "sk-CANARY-0123456789"


def letters(texts: list[str]) -> list[list[float]]:
    """How often each of a to h occurs, a vector one can count by hand."""
    return [[float(text.count(letter)) for letter in "abcdefgh"] for text in texts]


def refuse(line: str) -> None:
    raise AssertionError(f"unexpected note: {line}")


def load(wanted: object, **options: object):
    return load_embedder(wanted, note=refuse, **options)


def by_torch(name: str):
    return load(EmbedderSettings(name, engine="torch"))


@dataclass
class Recording:
    """An embedder that remembers what it was asked."""

    name: str = "recording"
    dim: int = 8
    answer: Callable[[list[str]], object] = letters
    calls: list[list[str]] = field(default_factory=list)

    def encode(self, texts: list[str]):
        self.calls.append(texts)
        return self.answer(texts)


# --- the contract -----------------------------------------------------------------------------------------------------


def test_rows_come_back_in_order_with_unit_length():
    vectors = encode_checked(Recording(), ["aabb", "a", "abbb"])
    assert vectors.dtype == np.float32
    half = math.sqrt(0.5)
    np.testing.assert_allclose(
        vectors[:, :2], [[half, half], [1, 0], [1 / math.sqrt(10), 3 / math.sqrt(10)]], rtol=1e-6
    )


def test_blank_texts_get_a_zero_row_and_are_not_sent():
    embedder = Recording()
    vectors = encode_checked(embedder, ["", "a", " \n\t\u3000"], prefix="b")
    assert embedder.calls == [["ba"]]
    assert not vectors[[0, 2]].any()
    assert vectors[1].any()


def test_equal_texts_are_encoded_once():
    embedder = Recording()
    vectors = encode_checked(embedder, ["a", "b", "a", "a"])
    assert embedder.calls == [["a", "b"]]
    assert vectors[[0, 2, 3]].tolist() == [vectors[0].tolist()] * 3


def test_nothing_but_blank_texts_calls_no_model():
    embedder = Recording()
    assert encode_checked(embedder, [" ", ""]).shape == (2, 8)
    assert encode_checked(embedder, []).shape == (0, 8)
    assert embedder.calls == []


def test_the_prefix_stands_before_the_text_verbatim():
    embedder = Recording()
    encode_checked(embedder, ["{0} $x"], prefix="query: {} %s ")
    assert embedder.calls == [["query: {} %s {0} $x"]]


def test_a_lone_surrogate_reaches_the_model_as_a_replacement_character():
    embedder = Recording()
    encode_checked(embedder, ["a\ud800b", "\U0001f600"])
    assert embedder.calls == [["a\ufffdb", "\U0001f600"]]


def test_a_row_without_direction_stays_zero():
    assert not encode_checked(Recording(), ["xyz"]).any()


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda texts: [[1.0] * 8], r"shape \(1, 8\) for 2 texts; expected shape \(2, dim\)"),
        (lambda texts: [1.0, 2.0], r"shape \(2,\) for 2 texts"),
        (lambda texts: np.zeros((2, 4, 2)), r"shape \(2, 4, 2\)"),
        (lambda texts: np.zeros((2, 0)), r"shape \(2, 0\)"),
        (lambda texts: np.ones((2, 7)), "dimension 7; expected dimension 8"),
        (lambda texts: None, r"shape \(\)"),
        (lambda texts: [[1.0], [1.0, 2.0]], "no array"),
        (lambda texts: [["x"] * 8] * 2, "dtype <U1"),
        (lambda texts: np.ones((2, 8), dtype=complex), "dtype complex"),
        (lambda texts: np.ones((2, 8), dtype=object), "dtype object"),
        (lambda texts: [[1.0] * 8, [math.nan] * 8], "NaN or infinity for 1 of 2 texts, first for text 1"),
        (lambda texts: [[math.inf] * 8, [1.0] * 8], "NaN or infinity"),
        (lambda texts: 1 / 0, "failed: ZeroDivisionError: division by zero"),
        (lambda texts: torch.ones((2, 8), requires_grad=True), "no array"),
    ],
)
def test_what_is_not_a_finite_vector_per_text_is_refused_by_name(answer, message):
    with pytest.raises(EmbedderError, match=message) as caught:
        encode_checked(Recording(name="faulty", answer=answer), ["a", "b"])
    assert "faulty" in str(caught.value)


def test_interrupting_is_not_an_embedder_error():
    def interrupt(texts: list[str]) -> object:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encode_checked(Recording(answer=interrupt), ["a"])


@pytest.mark.parametrize("kind", [np.float16, np.float64, np.int8, np.uint64])
def test_any_real_dtype_becomes_float32(kind):
    vectors = encode_checked(Recording(dim=2, answer=lambda texts: np.array([[3, 4]], dtype=kind)), ["a"])
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, [[0.6, 0.8]], rtol=1e-6)


def test_a_tensor_is_accepted():
    assert encode_checked(Recording(answer=lambda texts: torch.ones((1, 8))), ["a"]).shape == (1, 8)


@pytest.mark.parametrize("size", [1e-320, 1e-200, 1e200, 1e308])
def test_very_small_and_very_large_rows_have_a_direction(size):
    np.testing.assert_allclose(unit_rows(np.array([[size, -size]])), [[math.sqrt(0.5), -math.sqrt(0.5)]], rtol=1e-4)


@given(
    hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=2), elements=st.floats(-1e6, 1e6, width=32)),
    st.randoms(use_true_random=False),
)
def test_a_unit_row_depends_on_its_row_alone(matrix, random):
    whole = unit_rows(matrix)
    lengths = np.linalg.norm(whole.astype(np.float64), axis=1)
    zero = ~matrix.any(axis=1)
    assert (lengths[zero] == 0).all()
    np.testing.assert_allclose(lengths[~zero], 1, atol=1e-6)
    row = random.randrange(len(matrix))
    assert unit_rows(matrix[row : row + 1]).tobytes() == whole[row : row + 1].tobytes()
    assert unit_rows(np.asfortranarray(matrix)).tobytes() == whole.tobytes()


@given(st.lists(st.text(alphabet="abcx \u00e9\ud800", max_size=6), max_size=12), st.text(alphabet="ab:", max_size=3))
def test_encoding_together_is_encoding_one_by_one(texts, prefix):
    together = encode_checked(Recording(), texts, prefix=prefix)
    for text, row in zip(texts, together, strict=True):
        assert encode_checked(Recording(), [text], prefix=prefix)[0].tobytes() == row.tobytes()


# --- fingerprints -----------------------------------------------------------------------------------------------------


def noise(seed: int, dim: int = 384, size: float = 1.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(3, dim)) * size


def test_the_fingerprint_of_a_known_embedder_does_not_change_between_releases():
    # Of a to h the first probe has a 6, c 1, e 6, f 1 and h 3 times, a vector of length sqrt(83) = 9.110.
    # Times sqrt(8) * 16 / 9.110 = 4.967: a 29.8, c 4.97, e 29.8, f 4.97, h 14.9.
    seen = fingerprint(Recording())
    assert seen.startswith("8:")
    first = np.frombuffer(bytes.fromhex(seen[2:]), dtype=np.int8)[:8]
    assert first.tolist() == [30, 0, 5, 0, 30, 5, 0, 15]
    assert len(seen) == 2 + 3 * 8 * 2


def test_float_differences_between_engines_are_the_same_space():
    base = unit_rows(noise(0))
    for seed in range(200):
        shaken = base + noise(seed + 1, size=1e-5)
        a = fingerprint(Recording(dim=384, answer=lambda texts: base))
        b = fingerprint(Recording(dim=384, answer=lambda texts, shaken=shaken: shaken))
        assert same_space(a, b)
        assert same_space(b, a)


def test_other_weights_are_another_space():
    a, b = (fingerprint(Recording(dim=384, answer=lambda texts, s=s: noise(s))) for s in (1, 2))
    assert not same_space(a, b)


def test_other_dimensions_are_another_space():
    assert not same_space(fingerprint(FunctionEmbedder(letters)), "4:" + fingerprint(FunctionEmbedder(letters))[2:])


@pytest.mark.parametrize("text", ["", "8", "8:", "8:zz", "8:00", ":", "384"])
def test_a_text_that_is_no_fingerprint_is_the_same_as_nothing_else(text):
    assert not same_space(text, fingerprint(Recording()))
    assert not same_space(fingerprint(Recording()), text)


def test_steps_at_both_ends_of_a_byte_do_not_wrap_around():
    assert not same_space("1:7f", "1:81")


# --- functions and objects --------------------------------------------------------------------------------------------


def test_a_function_is_named_by_where_it_is():
    assert load(letters).name == f"callable:{__name__}.letters"


def test_a_callable_object_is_named_by_its_class():
    class Encoder:
        def __call__(self, texts: list[str]) -> object:
            return letters(texts)

    assert load(Encoder()).name.endswith("Encoder")


def test_the_dimension_of_a_function_costs_a_probe_only_when_nothing_was_encoded():
    recording = Recording()
    embedder = load(recording.encode)
    encode_checked(embedder, ["a"])
    assert embedder.dim == 8
    assert recording.calls == [["a"]]
    fresh = load(recording.encode)
    assert fresh.dim == 8
    assert len(recording.calls) == 2


def test_a_function_whose_dimension_changes_is_refused():
    embedder = load(lambda texts: np.ones((len(texts), len(texts))))
    encode_checked(embedder, ["a"])
    with pytest.raises(EmbedderError, match="dimension 2; expected dimension 1"):
        encode_checked(embedder, ["a", "b"])


def test_an_embedder_of_the_users_own_is_taken_as_it_is():
    embedder = Recording()
    assert load(embedder) is embedder
    assert prompts_of(embedder) == Prompts()
    assert embedder.calls == []


def test_an_object_with_encode_alone_is_wrapped_and_keeps_its_prompts():
    class Encoder:
        prompts = Prompts("q: ", "d: ")

        def encode(self, texts: list[str]) -> object:
            return letters(texts)

    embedder = load(Encoder())
    assert embedder.name.startswith("callable:")
    assert embedder.dim == 8
    assert prompts_of(embedder) == Prompts("q: ", "d: ")


def test_something_else_is_no_embedder():
    with pytest.raises(InvalidInput, match="type int"):
        load(3)


def test_the_name_of_a_callable_cannot_be_loaded():
    with pytest.raises(InvalidInput, match="pass the same object"):
        load("callable:somewhere.function")


# --- latent-semantic --------------------------------------------------------------------------------------------------

POOL = [
    "my card has not arrived",
    "where is my new card",
    "how do i change my pin",
    "change the pin of the card card card",
    "the transfer was refused",
    "why was my transfer refused twice",
    "i want a refund",
]
STATE = LatentSemanticEmbedder.fit(POOL).state()


def test_it_agrees_with_scikit_learn():
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.pipeline import make_pipeline

    from indexes.analyzers import analyzer

    oracle = make_pipeline(
        TfidfVectorizer(analyzer=analyzer("default"), sublinear_tf=True),
        TruncatedSVD(5, algorithm="arpack"),
    ).fit(POOL)
    queries = [*POOL, "card refused card", "pin pin pin transfer unknownword"]
    ours = LatentSemanticEmbedder.fit(POOL, dimensions=5).encode(queries).astype(np.float64)
    theirs = unit_rows(oracle.transform(queries)).astype(np.float64)
    # The sign of a singular vector is arbitrary: compare what it does not touch.
    np.testing.assert_allclose(np.abs(ours), np.abs(theirs), atol=1e-6)
    np.testing.assert_allclose(ours @ ours.T, theirs @ theirs.T, atol=1e-6)


def test_each_direction_has_its_largest_component_positive():
    components = LatentSemanticEmbedder.fit(POOL).state()["components"]
    assert (components[np.arange(len(components)), np.abs(components).argmax(axis=1)] > 0).all()


def test_fitting_twice_gives_the_same_bytes_and_so_does_the_stored_state():
    first, second = LatentSemanticEmbedder.fit(POOL), LatentSemanticEmbedder.fit(iter(POOL))
    stored = LatentSemanticEmbedder.from_state(first.state())
    expected = first.encode(POOL).tobytes()
    assert second.encode(POOL).tobytes() == expected
    assert stored.encode(POOL).tobytes() == expected
    for name, part in first.state().items():
        assert bytes(second.state()[name]) == bytes(part)
        assert bytes(stored.state()[name]) == bytes(part)


def test_the_state_is_plain():
    state = LatentSemanticEmbedder.fit(["\u00fcber b", "b a"]).state()
    assert state["vocabulary"].tobytes() == "ab\u00fcber".encode()
    assert state["offsets"].tolist() == [0, 1, 2, 7]
    # idf = ln((1 + 2) / (1 + df)) + 1, with df 1, 2, 1
    np.testing.assert_allclose(state["idf"], [math.log(1.5) + 1, 1.0, math.log(1.5) + 1])
    assert state["components"].dtype == np.float32
    assert state["components"].shape == (2, 3)


@given(st.lists(st.sampled_from([*POOL, "", "nothing known"]), min_size=1, max_size=9))
def test_a_latent_row_depends_on_its_text_alone(texts):
    embedder = LatentSemanticEmbedder.from_state(STATE)
    together = embedder.encode(texts)
    for text, row in zip(texts, together, strict=True):
        assert embedder.encode([text])[0].tobytes() == row.tobytes()


@pytest.mark.parametrize("pool", [[], [""], ["?!", " "]])
def test_a_pool_without_words_gives_zero_vectors_of_one_dimension(pool):
    embedder = LatentSemanticEmbedder.fit(pool)
    assert embedder.dim == 1
    assert encode_checked(embedder, ["card", ""]).tolist() == [[0.0], [0.0]]
    assert LatentSemanticEmbedder.from_state(embedder.state()).encode(["card"]).tolist() == [[0.0]]


@pytest.mark.parametrize(
    ("pool", "dim"), [(["card"], 1), (["a b c"], 1), (["a b"] * 5, 1), (["a b", "c d"], 2), (["a", "a b"], 2)]
)
def test_a_small_pool_has_no_more_dimensions_than_directions(pool, dim):
    embedder = LatentSemanticEmbedder.fit(pool)
    assert embedder.dim == dim
    np.testing.assert_allclose(np.linalg.norm(embedder.encode(pool), axis=1), 1, atol=1e-6)


def test_the_vocabulary_is_bounded_and_keeps_the_most_frequent_terms():
    state = LatentSemanticEmbedder.fit(["a a b", "a b c", "a b d"], max_terms=2).state()
    assert state["vocabulary"].tobytes() == b"ab"


def test_a_lone_surrogate_in_the_pool_is_no_obstacle():
    assert LatentSemanticEmbedder.fit(["a\ud800b", "c"]).state()["vocabulary"].tobytes() == b"abc"


@pytest.mark.parametrize(
    "damage",
    [
        {"offsets": np.array([0, 1])},
        {"offsets": np.array(0)},
        {"offsets": STATE["offsets"][::-1]},
        {"idf": np.array([np.nan] * len(STATE["idf"]))},
        {"idf": np.zeros(2)},
        {"components": np.zeros((0, len(STATE["idf"])), dtype=np.float32)},
        {"components": np.zeros((4, 2), dtype=np.float32)},
        {"vocabulary": np.append(STATE["vocabulary"], np.uint8(120))},
        {"vocabulary": np.full_like(STATE["vocabulary"], 255)},
    ],
)
def test_a_state_whose_parts_do_not_belong_together_is_refused(damage):
    with pytest.raises(EmbedderError, match="latent-semantic"):
        LatentSemanticEmbedder.from_state({**STATE, **damage})


def test_a_state_with_a_missing_part_is_refused_by_name():
    with pytest.raises(EmbedderError, match="without idf, offsets"):
        LatentSemanticEmbedder.from_state({k: v for k, v in STATE.items() if k not in ("idf", "offsets")})


def test_latent_needs_a_pool():
    with pytest.raises(InvalidInput, match="without a pool"):
        load("latent")
    embedder = load("latent", pool_texts=lambda: POOL)
    assert embedder.name == "latent-semantic"
    assert load("latent-semantic", pool_texts=lambda: POOL).encode(POOL).tobytes() == embedder.encode(POOL).tobytes()


# --- sentence-transformers models -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {
        "transformer": tiny_models.transformer_folder(root / "transformer"),
        "dense": tiny_models.transformer_folder(root / "dense", out=16, normalize=False, seed=1),
        "static": tiny_models.static_folder(root / "static"),
        "prompted": tiny_models.transformer_folder(
            root / "prompted", prompts={"query": "query: ", "passage": "passage: "}, default_prompt_name="query"
        ),
        "e5": tiny_models.transformer_folder(root / "e5-tiny"),
    }


def sentences(count: int) -> list[str]:
    random = np.random.default_rng(5)
    words = ["my", "card", "has", "not", "arrived", "where", "is", "the", "transfer", "i", "a", "refund", "xylophone"]
    made = [" ".join(random.choice(words, size=length)) for length in random.integers(1, 70, size=count)]
    return ["a", "i", "\u200b", *made]


KINDS = [("transformer", "torch"), ("transformer", "onnx"), ("dense", "torch"), ("static", "torch")]


@pytest.mark.parametrize(("kind", "engine"), KINDS)
def test_the_bytes_of_a_row_depend_on_its_text_alone(folders, kind, engine):
    texts = sentences(90)
    embedder = load(EmbedderSettings(str(folders[kind]), engine=engine))
    threads = torch.get_num_threads()
    expected = embedder.encode(texts).tobytes()
    assert b"".join(embedder.encode([text]).tobytes() for text in texts) == expected
    random = np.random.default_rng(0)
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            for batch_size in (1, 2, 7, 32):
                other = load(EmbedderSettings(str(folders[kind]), engine=engine, batch_size=batch_size))
                order = random.permutation(len(texts))
                shuffled = other.encode([texts[row] for row in order])
                assert shuffled[np.argsort(order)].tobytes() == expected
                assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize(("kind", "engine"), KINDS)
def test_the_vectors_are_those_of_the_library(folders, kind, engine):
    from sentence_transformers import SentenceTransformer

    texts = sentences(20)
    library = SentenceTransformer(str(folders[kind]), device="cpu")
    theirs = library.encode(texts, show_progress_bar=False)
    ours = load(EmbedderSettings(str(folders[kind]), engine=engine)).encode(texts)
    np.testing.assert_allclose(ours, unit_rows(theirs), atol=1e-6)


@pytest.mark.parametrize("engine", ["torch", "onnx"])
def test_several_threads_may_encode_at_once(folders, engine):
    embedder = load(EmbedderSettings(str(folders["transformer"]), engine=engine))
    texts = sentences(30)
    expected = embedder.encode(texts).tobytes()
    seen: list[bytes] = []
    threads = [threading.Thread(target=lambda: seen.append(embedder.encode(texts).tobytes())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [expected] * 4


def test_threads_started_after_an_encoding_have_as_many_torch_threads_as_before(folders):
    def count() -> int:
        seen: list[int] = []
        thread = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        return seen[0]

    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        by_torch(str(folders["transformer"])).encode(sentences(5))
        assert count() == 3
    finally:
        torch.set_num_threads(threads)


def test_no_texts_give_no_rows(folders):
    assert by_torch(str(folders["static"])).encode([]).shape == (0, 24)
    assert by_torch(str(folders["transformer"])).encode([]).shape == (0, 32)


@pytest.mark.parametrize("engine", ["torch", "onnx"])
def test_a_text_longer_than_the_model_reads_is_cut(folders, engine):
    embedder = load(EmbedderSettings(str(folders["transformer"]), engine=engine))
    vectors = embedder.encode(["card " * 46, "card " * 5000])
    assert vectors[0].tobytes() == vectors[1].tobytes()


def test_a_static_model_gives_a_text_without_tokens_a_zero_row(folders):
    assert not by_torch(str(folders["static"])).encode(["\u200b"]).any()


def test_the_model_does_not_add_a_prompt_by_itself(folders):
    plain, prompted = by_torch(str(folders["transformer"])), by_torch(str(folders["prompted"]))
    assert plain.encode(["my card"]).tobytes() == prompted.encode(["my card"]).tobytes()
    with_prefix = encode_checked(prompted, ["my card"], prefix=prompts_of(prompted).query)
    np.testing.assert_array_equal(with_prefix, unit_rows(plain.encode(["query: my card"])))


def test_a_model_is_named_by_its_absolute_folder(folders, monkeypatch):
    monkeypatch.chdir(folders["static"].parent)
    assert by_torch("./static").name == str(folders["static"])


def test_other_weights_under_the_same_name_have_another_fingerprint(tmp_path, folders):
    other = tiny_models.transformer_folder(tmp_path, seed=7)
    a = SentenceTransformerEmbedder.load(EmbedderSettings(str(folders["transformer"])), name="same")
    b = SentenceTransformerEmbedder.load(EmbedderSettings(str(other)), name="same")
    assert not same_space(fingerprint(a), fingerprint(b))
    assert same_space(fingerprint(a), fingerprint(by_torch(str(folders["transformer"]))))


def test_a_loaded_model_can_be_passed_as_an_object(folders):
    from sentence_transformers import SentenceTransformer

    embedder = load(SentenceTransformer(str(folders["prompted"]), device="cpu"))
    assert embedder.name.startswith("callable:sentence_transformers.")
    assert prompts_of(embedder) == Prompts("query: ", "passage: ")
    assert embedder.encode(["my card"]).tobytes() == by_torch(str(folders["prompted"])).encode(["my card"]).tobytes()


def test_a_model_that_pools_without_its_prompt_is_refused_with_a_prompt(folders):
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folders["transformer"]), device="cpu")
    model.set_pooling_include_prompt(False)
    assert SentenceTransformerEmbedder(model, name="m", prompts=Prompts()).dim == 32
    with pytest.raises(EmbedderError, match="leaves its prompt out of the pooling"):
        SentenceTransformerEmbedder(model, name="m", prompts=Prompts("query: "))


def test_a_folder_that_needs_code_of_its_own_is_refused_and_nothing_of_it_runs(tmp_path):
    folder = tiny_models.folder_with_own_code(tmp_path / "evil")
    with pytest.raises(EmbedderError, match="needs code of its own, which is never run") as caught:
        load(str(folder))
    assert "\n" not in str(caught.value)
    assert not (folder / "ran").exists()


@pytest.mark.parametrize("name", ["./nowhere", "~/nowhere-at-all", "/nowhere/at/all"])
def test_a_path_that_is_no_folder_is_not_looked_for_on_the_hub(name):
    with pytest.raises(EmbedderError, match="no model folder at"):
        load(name)


@pytest.mark.parametrize("name", ["nobody/nothing", "no such name", "a/b/c"])
def test_a_model_that_cannot_be_had_is_an_error_of_one_line(name, monkeypatch, offline):
    with pytest.raises(EmbedderError) as caught:
        load(name)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_empty_folder_is_an_error_of_one_line(tmp_path):
    with pytest.raises(EmbedderError, match="could not be loaded") as caught:
        load(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_loading_and_encoding_print_nothing_and_change_no_setting_of_the_libraries(folders, capfd, recwarn):
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled
    from transformers.utils import logging as bars

    def settings() -> list[object]:
        loggers = ("transformers", "sentence_transformers", "huggingface_hub")
        levels = [logging.getLogger(name).level for name in loggers]
        return [bars.is_progress_bar_enabled(), are_progress_bars_disabled(), *levels]

    before = settings()
    for kind, engine in KINDS:
        load(EmbedderSettings(str(folders[kind]), engine=engine)).encode(sentences(3))
    bars.disable_progress_bar()
    try:
        by_torch(str(folders["static"]))
        assert not bars.is_progress_bar_enabled()
        assert are_progress_bars_disabled()
    finally:
        bars.enable_progress_bar()
    assert settings() == before
    assert capfd.readouterr() == ("", "")
    assert not recwarn.list


@pytest.mark.parametrize(
    ("name", "declared", "default", "expected"),
    [
        ("all-MiniLM-L6-v2", {"query": "", "document": ""}, None, Prompts()),
        ("BAAI/bge-small-en-v1.5", {"query": "", "document": ""}, None, Prompts()),
        ("m", {"query": "q: ", "document": "d: "}, None, Prompts("q: ", "d: ")),
        ("m", {"query": "q: ", "passage": "p: "}, None, Prompts("q: ", "p: ")),
        ("m", {"query": "q: ", "document": ""}, None, Prompts("q: ", "")),
        ("m", {"query": "", "document": "", "sts": "s: "}, "sts", Prompts("s: ", "s: ")),
        ("m", {"sts": "s: "}, None, Prompts()),
        ("intfloat/e5-base-v2", {"query": "", "document": ""}, None, Prompts("query: ", "query: ")),
        ("intfloat/multilingual-e5-small", {}, None, Prompts("query: ", "query: ")),
        ("/models/E5-small", {}, None, Prompts("query: ", "query: ")),
        ("someone/e5-tuned", {"query": "ask: "}, None, Prompts("ask: ", "")),
        ("someone/gte5-small", {}, None, Prompts()),
        ("e5-folder/other", {}, None, Prompts()),
    ],
)
def test_the_prompts_of_a_model(name, declared, default, expected):
    assert default_prompts(name, declared, default) == expected


def test_an_instruction_tuned_e5_model_instructs_queries_alone():
    prompts = default_prompts("intfloat/multilingual-e5-large-instruct", {}, None)
    assert prompts.query.startswith("Instruct: ")
    assert prompts.query.endswith("\nQuery: ")
    assert prompts.example == ""


def test_the_prompts_given_by_the_user_count_first(folders):
    settings = EmbedderSettings(str(folders["prompted"]), query_prompt="", example_prompt="text: ")
    assert prompts_of(load(settings)) == Prompts("", "text: ")
    assert prompts_of(by_torch(str(folders["prompted"]))) == Prompts("query: ", "passage: ")
    assert prompts_of(load(EmbedderSettings(str(folders["prompted"]), query_prompt=""))) == Prompts("", "passage: ")


# --- auto -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mini_lm():
    return load("auto", pool_texts=lambda: POOL)


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """No network, nothing in the cache."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "empty"))
    monkeypatch.setenv("SENTENCE_TRANSFORMERS_HOME", str(tmp_path / "empty"))


@pytest.fixture
def no_package(monkeypatch):
    monkeypatch.setattr(packaged, "find_spec", lambda name: None)


def test_auto_is_the_packaged_model(mini_lm):
    assert (mini_lm.name, mini_lm.dim, mini_lm.engine) == ("all-MiniLM-L6-v2", 384, "onnxruntime")
    assert prompts_of(mini_lm) == Prompts()
    card, same, other = encode_checked(
        mini_lm, ["My card has not arrived.", "I am still waiting for my card.", "The soup is too salty."]
    )
    assert card @ same > 0.7 > 0.3 > card @ other


def test_the_bytes_of_the_real_model_do_not_depend_on_the_batch(mini_lm):
    texts = [*POOL, "a", "?", "word " * 300]
    assert b"".join(mini_lm.encode([text]).tobytes() for text in texts) == mini_lm.encode(texts).tobytes()


@pytest.mark.parametrize("name", ["all-MiniLM-L6-v2", "sentence-transformers/all-MiniLM-L6-v2"])
def test_the_model_by_name_is_the_packaged_one(name, monkeypatch, offline):
    asked: list[Path | None] = []
    monkeypatch.setattr(SentenceTransformerEmbedder, "load", lambda settings, source, name: asked.append(source))
    by_torch(name)
    assert asked == [packaged.packaged_folder()]


def test_auto_without_package_and_network_fits_the_pool_and_says_so_in_one_line(no_package, offline):
    notes: list[str] = []
    embedder = load_embedder("auto", note=notes.append, pool_texts=lambda: POOL)
    assert embedder.name == "latent-semantic"
    assert len(notes) == 1
    assert "\n" not in notes[0]
    for part in ("all-MiniLM-L6-v2", "latent-semantic", "demonstration-retriever[offline]"):
        assert part in notes[0]


def test_auto_without_package_network_and_pool_is_an_error(no_package, offline):
    with pytest.raises(EmbedderError, match=r"not on this machine.*demonstration-retriever\[offline\]"):
        load("auto")


def test_the_model_by_name_never_falls_back(no_package, offline):
    with pytest.raises(EmbedderError, match="not on this machine"):
        load("all-MiniLM-L6-v2", pool_texts=lambda: POOL)


def test_a_revision_is_looked_for_on_the_hub_not_in_the_package(offline):
    with pytest.raises(EmbedderError, match="not on this machine"):
        load(EmbedderSettings("all-MiniLM-L6-v2", revision="refs/pr/1"))


@pytest.mark.parametrize("content", [b"other weights", None])
def test_a_package_with_other_weights_is_refused_and_auto_does_not_fall_back(content, tmp_path, monkeypatch):
    (tmp_path / "model").mkdir()
    if content is not None:
        (tmp_path / "model" / "model.safetensors").write_bytes(content)

    class Spec:
        submodule_search_locations = (str(tmp_path),)

    monkeypatch.setattr(packaged, "find_spec", lambda name: Spec)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))  # no export of the right ones
    with pytest.raises(EmbedderError, match=r"model\.safetensors (has SHA-256|cannot be read).*reinstall"):
        load("auto", pool_texts=lambda: POOL)


# --- endpoints --------------------------------------------------------------------------------------------------------


@dataclass
class Endpoint:
    """A server that answers as scripted, one entry per request, then correctly."""

    url: str = ""
    script: list[tuple[int, object]] = field(default_factory=list)
    requests: list[dict[str, object]] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)

    def answer(self, path: str, headers: Mapping[str, str], body: dict[str, object]) -> Reply:
        self.requests.append({**body, "path": path})
        self.keys.append(headers["authorization"])
        if self.script:
            status, scripted = self.script.pop(0)
            return Reply(status, scripted(body["input"]) if callable(scripted) else scripted)
        return Reply(200, data(list(enumerate(letters(body["input"])))))


def data(rows: list[tuple[int, object]]) -> dict[str, object]:
    return {
        "object": "list",
        "model": "m",
        "data": [{"object": "embedding", "index": index, "embedding": row} for index, row in rows],
        "usage": {"prompt_tokens": 1, "total_tokens": 1},
    }


@pytest.fixture
def endpoint(monkeypatch) -> Iterator[Endpoint]:
    state = Endpoint()

    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with answering(state.answer) as state.url:
        yield state


def close(embedder: OpenAIEmbedder) -> None:
    embedder._client.close()


@pytest.fixture
def remote(endpoint) -> Iterator[OpenAIEmbedder]:
    embedder = OpenAIEmbedder("m", base_url=endpoint.url, batch_size=3, max_retries=2)
    yield embedder
    close(embedder)


def test_texts_are_sent_in_batches_and_come_back_in_order(endpoint, remote):
    texts = ["a", "b", "c", "ab", "abc", "d", "e"]
    vectors = encode_checked(remote, texts)
    assert [request["input"] for request in endpoint.requests] == [texts[:3], texts[3:6], texts[6:]]
    assert {(request["model"], request["path"]) for request in endpoint.requests} == {("m", "/v1/embeddings")}
    np.testing.assert_array_equal(vectors, unit_rows(unit_rows(np.array(letters(texts)))))
    assert (remote.name, remote.dim) == ("openai:m", 8)


def test_results_are_put_in_order_by_their_index(endpoint, remote):
    endpoint.script = [(200, lambda texts: data(list(enumerate(letters(texts)))[::-1]))]
    np.testing.assert_allclose(remote.encode(["a", "b", "c"])[:, :3], np.eye(3))


def test_a_busy_endpoint_is_asked_again(endpoint, remote):
    endpoint.script = [(429, {"error": {"message": "slow down"}}), (503, {"error": {"message": "starting"}})]
    assert remote.encode(["a"])[0].tolist() == [1, 0, 0, 0, 0, 0, 0, 0]
    assert len(endpoint.requests) == 3


def test_an_endpoint_that_keeps_failing_is_an_error_after_all_retries(endpoint, remote):
    endpoint.script = [(500, {"error": {"message": "broken"}})] * 5
    with pytest.raises(EmbedderError, match=r"openai:m failed on 1 texts: InternalServerError.*broken"):
        remote.encode(["a"])
    assert len(endpoint.requests) == 3


def test_a_refusal_is_not_retried(endpoint, remote):
    endpoint.script = [(400, {"error": {"message": "too long"}})]
    with pytest.raises(EmbedderError, match="too long"):
        remote.encode(["a"])
    assert len(endpoint.requests) == 1


def test_an_endpoint_that_is_not_there_is_an_error(endpoint):
    embedder = OpenAIEmbedder("m", base_url="http://127.0.0.1:9/v1", max_retries=0)
    with pytest.raises(EmbedderError, match="APIConnectionError"):
        encode_checked(embedder, ["a"])
    close(embedder)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (data([(0, [1.0, 2.0])]), r"1 vectors for 2 texts, with the indices \[0\]"),
        (data([(0, [1.0]), (0, [2.0])]), r"2 vectors for 2 texts, with the indices \[0, 0\]"),
        (data([(0, [1.0]), (2, [2.0])]), "every index from 0 to 1 once"),
        (data([(0, [1.0]), (1, [2.0]), (2, [3.0])]), "3 vectors for 2 texts"),
        (data([(0, [1.0]), (1, [math.nan])]), "NaN or infinity for 1 of 2"),
        (data([(0, [1.0]), (1, [1.0, 2.0])]), "no array"),
        (data([(0, None), (1, None)]), "openai:m"),
        ({"data": [{"embedding": [1.0]}, {"embedding": [1.0]}]}, "openai:m failed on 2 texts"),
        ({}, "openai:m failed on 2 texts"),
        ([], "openai:m failed on 2 texts"),
    ],
)
def test_an_answer_that_is_not_a_vector_per_text_is_refused(endpoint, remote, answer, message):
    endpoint.script = [(200, answer)]
    with pytest.raises(EmbedderError, match=message):
        remote.encode(["a", "b"])


def test_an_endpoint_that_changes_its_dimension_is_refused(endpoint, remote):
    remote.encode(["a"])
    endpoint.script = [(200, data([(0, [1.0, 2.0])]))]
    with pytest.raises(EmbedderError, match="dimension 2; expected dimension 8"):
        remote.encode(["a"])


def test_no_texts_make_no_rows(remote):
    assert remote.encode([]).shape == (0, 8)


def test_the_key_comes_from_the_environment_and_leaks_nowhere(endpoint, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    monkeypatch.setenv("OPENAI_API_KEY", CANARY)
    settings = EmbedderSettings("openai:m", base_url=endpoint.url)
    embedder = load(settings)
    embedder.encode(["a"])
    assert endpoint.keys == [f"Bearer {CANARY}"]
    endpoint.script = [(401, {"error": {"message": f"Incorrect API key provided: {CANARY}" + "." * 400}})]
    with pytest.raises(EmbedderError) as caught:
        embedder.encode(["a"])
    assert "***" in str(caught.value)
    shown = [str(caught.value), repr(caught.value), embedder.name, repr(embedder), repr(settings), caplog.text]
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
    assert not [text for text in shown if CANARY in text]
    close(embedder)


def test_a_server_of_ones_own_needs_no_key(endpoint, remote):
    remote.encode(["a"])
    assert endpoint.keys == ["Bearer no-key"]


def test_the_base_url_may_come_from_the_environment(endpoint, monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", endpoint.url)
    embedder = load("openai:m")
    assert embedder.dim == 8
    close(embedder)


def test_openai_itself_needs_a_key(endpoint):
    with pytest.raises(InvalidInput, match="OPENAI_API_KEY"):
        load("openai:text-embedding-3-small")


@pytest.mark.parametrize(
    "url",
    [
        f"http://user:{CANARY}@127.0.0.1/v1",
        f"http://{CANARY}@127.0.0.1/v1",
        f"http://127.0.0.1:80/v1?api_key={CANARY}",
        f"http://127.0.0.1/v1#{CANARY}",
        f"http://[{CANARY}/v1",
        f"http://h:{CANARY}/v1",
        f"file:///{CANARY}",
        CANARY,
    ],
)
def test_a_base_url_that_could_carry_a_secret_is_refused_without_repeating_it(url, endpoint, monkeypatch):
    with pytest.raises(InvalidInput) as caught:
        EmbedderSettings("openai:m", base_url=url)
    assert CANARY not in str(caught.value)
    monkeypatch.setenv("OPENAI_BASE_URL", url)
    with pytest.raises(InvalidInput) as caught:
        load("openai:m")
    assert CANARY not in str(caught.value)


def test_the_missing_client_is_named_with_its_extra(endpoint, monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(MissingDependency, match=r"demonstration-retriever\[openai\]"):
        OpenAIEmbedder("m", base_url=endpoint.url)


def test_the_prompts_of_an_endpoint_are_those_of_the_settings(endpoint):
    embedder = load(EmbedderSettings("openai:m", base_url=endpoint.url, query_prompt="q: ", batch_size=1))
    assert prompts_of(embedder) == Prompts("q: ", "")
    embedder.encode(["a", "b"])
    assert len(endpoint.requests) == 2
    close(embedder)


# --- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "unused"),
    [
        (EmbedderSettings("latent", device="cpu"), "device"),
        (EmbedderSettings("latent", query_prompt=""), "query_prompt"),
        (EmbedderSettings("openai:m", revision="main", device="cpu"), "device, revision"),
        (EmbedderSettings("auto", base_url="http://127.0.0.1/v1"), "base_url"),
    ],
)
def test_a_setting_that_would_be_ignored_is_refused_by_name(settings, unused):
    with pytest.raises(InvalidInput, match=f"does not use {unused}"):
        load(settings, pool_texts=lambda: POOL)


@pytest.mark.parametrize("options", [{"name": ""}, {"name": "  "}, {"batch_size": 0}, {"batch_size": -1}])
def test_impossible_settings_are_refused(options):
    with pytest.raises(InvalidInput):
        EmbedderSettings(**options)


def test_an_endpoint_needs_a_model():
    with pytest.raises(InvalidInput, match="openai:MODEL"):
        load("openai:")


def test_importing_the_embedders_imports_nothing_heavy():
    heavy = "torch", "sklearn", "scipy", "openai", "sentence_transformers", "transformers", "huggingface_hub"
    code = f"import sys, retriever.embedders; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

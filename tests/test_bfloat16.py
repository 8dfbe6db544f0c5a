"""A pool embedded in bfloat16: only where it is asked for, the processor has it, and neighbours stay what they are."""

from __future__ import annotations

import numpy as np
import pytest
import tiny_models
import torch

from retriever import IndexSettings, Retriever
from retriever.embedders import EmbedderSettings, bfloat16, encode_checked, load_embedder
from retriever.embedders.bfloat16 import has_bfloat16, overlap
from retriever.embedders.onnx_engine import OnnxEmbedder
from retriever.embedders.sentence_transformer import SentenceTransformerEmbedder
from retriever.errors import InvalidInput
from retriever.repair import repair
from tests.support import fail

WORDS = ["my", "card", "has", "not", "arrived", "where", "is", "the", "transfer", "i", "a", "refund", "xylophone"]
POOL = [" ".join(WORDS[(i * j + j // 3) % 13] for j in range(1, 2 + i % 40)) for i in range(1, 120)]
GENERATION = "gen-000001"
X86 = "processor\t: 0\nflags\t\t: fpu sse2 avx512f {}\n\nprocessor\t: 1\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_models.transformer_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def processor(tmp_path, monkeypatch):
    """Sets what the operating system tells of the processor, at first that it has bfloat16."""

    def tell(text: str) -> None:
        path.write_text(text, encoding="utf-8")

    path = tmp_path / "cpuinfo"
    monkeypatch.setattr(bfloat16, "_PROCESSOR", path)
    tell(X86.format("avx512_bf16"))
    return tell


def load(folder, note=fail, **settings):
    wanted = EmbedderSettings(str(folder), precision="bfloat16", **settings)
    return load_embedder(wanted, note=note, pool_texts=lambda: POOL)


def test_a_pool_is_embedded_by_rounded_weights_near_what_they_were(folder, processor):
    rounded, exact = load(folder), load_embedder(EmbedderSettings(str(folder), engine="torch"), note=fail)
    assert isinstance(rounded, SentenceTransformerEmbedder)
    assert {weight.dtype for weight in rounded.model.parameters()} == {torch.bfloat16}
    assert (rounded.engine, exact.engine) == ("torch-bfloat16", "torch")
    ours, theirs = encode_checked(rounded, POOL), encode_checked(exact, POOL)
    off = np.linalg.norm(ours - theirs, axis=1)
    # 8 bits: half a unit in the last place is 2^-9 of a number; pooled in float32, so the vectors have more than 8.
    assert 2**-12 < off.mean() < off.max() < 2**-4
    assert not np.array_equal(ours, torch.from_numpy(ours).bfloat16().float().numpy())


@pytest.mark.skipif(not has_bfloat16(), reason="the processor does not compute in bfloat16")
def test_the_bytes_of_a_row_depend_on_its_text_alone(folder):
    expected = encode_checked(load(folder), POOL)
    order = np.random.default_rng(0).permutation(len(POOL))
    threads = torch.get_num_threads()
    try:
        for count, batch_size in ((1, 1), (1, 7), (2, 32)):
            torch.set_num_threads(count)
            embedder = load(folder, batch_size=batch_size)
            assert encode_checked(embedder, [POOL[i] for i in order]).tobytes() == expected[order].tobytes()
    finally:
        torch.set_num_threads(threads)


def test_token_vectors_are_float32_as_ever(folder, processor):
    found = load(folder).token_vectors(["my card", "a"])
    assert (found.vectors.dtype, found.offsets.tolist()) == (np.float32, [0, 2, 3])


def test_an_index_tells_it_and_is_searched_in_float32(folder, processor, tmp_path):
    rows = [{"id": str(i), "input": text, "output": "o"} for i, text in enumerate(POOL)]
    settings = EmbedderSettings(str(folder), precision="bfloat16")
    with Retriever.build(rows, tmp_path / "i", embedder=settings, note=fail, weight=0.5) as built:
        about = built.info()["embedder"]
        assert (about["engine"], about["settings"]["precision"]) == ("torch-bfloat16", "bfloat16")
        wanted = [(one.example.id, one.score) for one in built.select(POOL[5], k=3)]
    with Retriever.open(tmp_path / "i", note=fail) as opened:
        assert isinstance(opened._live.encoder.embedder, OnnxEmbedder)
        assert [(one.example.id, one.score) for one in opened.select(POOL[5], k=3)] == wanted
        opened.add({"id": "new", "input": "where is the card", "output": "o"})
        added = opened.select("where is the card", k=1)[0]
        assert (added.example.id, added.channels["dense"]) == ("new", pytest.approx(1.0, abs=1e-6))


@pytest.fixture
def rounded(folder, processor, tmp_path):
    """An index in bfloat16 with vectors of tokens, and its vectors."""
    rows = [{"id": str(i), "input": text, "output": "o"} for i, text in enumerate(POOL)]
    embedder = EmbedderSettings(str(folder), precision="bfloat16")
    settings = IndexSettings(token_vectors=True)
    Retriever.build(rows, tmp_path / "i", embedder=embedder, settings=settings, note=fail, weight=0.5).close()
    return tmp_path / "i"


def damage(path):
    path.chmod(0o644)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def stored(index, generation, name="vectors"):
    return np.load(index / generation / f"{name}.npy")


def engine(index):
    with Retriever.open(index, note=fail) as opened:
        return opened.info()["embedder"]["engine"]


def test_a_repair_uses_the_vectors_that_are_intact_and_embeds_lost_tokens_in_bfloat16(rounded):
    about, vectors, tokens = engine(rounded), stored(rounded, GENERATION), stored(rounded, GENERATION, "token_vectors")
    damage(rounded / GENERATION / "token_vectors.npy")
    made = repair(rounded, note=fail)
    assert (made.reused, made.embedded) == (len(POOL), 0)
    assert np.array_equal(stored(rounded, made.generation), vectors)
    assert np.array_equal(stored(rounded, made.generation, "token_vectors"), tokens)
    assert engine(rounded) == about == "torch-bfloat16"


def test_a_repair_embeds_lost_vectors_in_bfloat16_beside_additions_in_float32(rounded, folder):
    new = "where is the card"
    with Retriever.open(rounded, note=fail) as opened:
        opened.add({"id": "new", "input": new, "output": "o"})
    vectors = stored(rounded, GENERATION)
    damage(rounded / GENERATION / "vectors.npy")
    made = repair(rounded, note=fail)
    assert (made.reused, made.embedded) == (1, len(POOL))
    exact = encode_checked(load_embedder(EmbedderSettings(str(folder)), note=fail), [new])
    assert np.array_equal(stored(rounded, made.generation), np.concatenate([vectors, exact]))
    assert engine(rounded) == "torch-bfloat16"


def test_a_repair_on_a_processor_without_bfloat16_embeds_all_in_float32_and_says_so(rounded, folder, processor):
    damage(rounded / GENERATION / "vectors.npy")
    processor(X86.format("avx2"))
    notes: list[str] = []
    made = repair(rounded, note=notes.append)
    assert notes == [
        f"{folder} is run in float32: the processor does not compute in bfloat16",
        f"the embedder is not to the last bit what it was: all {len(POOL)} texts are embedded again",
    ]
    exact = encode_checked(load_embedder(EmbedderSettings(str(folder)), note=fail), POOL)
    assert np.array_equal(stored(rounded, made.generation), exact)
    assert engine(rounded) == "onnxruntime"


def test_a_repair_of_a_pool_that_had_to_be_embedded_in_float32_stays_there(folder, processor, tmp_path):
    processor(X86.format("avx2"))
    settings = EmbedderSettings(str(folder), precision="bfloat16")
    rows = [{"id": str(i), "input": text} for i, text in enumerate(POOL)]
    made = Retriever.build(rows, tmp_path / "i", embedder=settings, note=lambda line: None, output=None, weight=0.5)
    made.close()
    vectors = stored(tmp_path / "i", GENERATION)
    damage(tmp_path / "i" / GENERATION / "vectors.npy")
    processor(X86.format("avx512_bf16"))
    made = repair(tmp_path / "i", note=fail)
    assert np.array_equal(stored(tmp_path / "i", made.generation), vectors)
    assert engine(tmp_path / "i") == "onnxruntime"


def test_without_the_instructions_the_pool_is_embedded_in_float32_and_a_line_says_so(folder, processor):
    processor(X86.format("avx2"))
    notes: list[str] = []
    assert isinstance(load(folder, notes.append), OnnxEmbedder)
    assert notes == [f"{folder} is run in float32: the processor does not compute in bfloat16"]


def test_where_neighbours_change_the_pool_is_embedded_in_float32_and_a_line_says_so(folder, processor, monkeypatch):
    monkeypatch.setattr(bfloat16, "overlap", lambda first, second, k: 0.9796)
    notes: list[str] = []
    embedder = load(folder, notes.append)
    assert isinstance(embedder, OnnxEmbedder)
    assert notes == [f"{folder} is run in float32: bfloat16 keeps 0.980 of the 10 nearest, less than 0.98"]
    exact = load_embedder(EmbedderSettings(str(folder)), note=fail)
    assert embedder.encode(POOL).tobytes() == exact.encode(POOL).tobytes()


def test_what_is_no_transformer_gains_nothing(tmp_path, processor):
    notes: list[str] = []
    load(tiny_models.static_folder(tmp_path / "static"), notes.append)
    assert "is run in float32: only a transformer gains by bfloat16" in notes[0]


@pytest.mark.parametrize(
    ("text", "has"),
    [
        (X86.format("avx512_bf16"), True),
        (X86.format("amx_bf16 amx_tile"), True),
        (X86.format("avx512_bf16x"), False),
        ("processor\t: 0\nFeatures\t: fp asimd i8mm bf16\n", True),
        ("processor\t: 0\nFeatures\t: fp asimd\nflags: bf16\n", False),
        ("", False),
    ],
)
def test_the_operating_system_is_asked_what_the_processor_has(processor, text, has):
    processor(text)
    assert has_bfloat16() is has


def test_a_system_that_does_not_tell_has_it_not(tmp_path, monkeypatch):
    monkeypatch.setattr(bfloat16, "_PROCESSOR", tmp_path / "missing")
    assert not has_bfloat16()


def test_overlap_counts_the_neighbours_that_two_embeddings_share():
    angles = np.radians([0.0, 10.0, 30.0, 60.0])
    first = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    # Nearest of 0°, 10°, 30°, 60°: 10°, 0°, 10°, 30°. With the last at 15° instead: 10°, 15°, 15°, 10°.
    second = first.copy()
    second[3] = np.cos(np.radians(15.0)), np.sin(np.radians(15.0))
    assert overlap(first, first, 1) == 1.0
    assert overlap(first, second, 1) == 0.25


@pytest.mark.parametrize("count", [0, 1, 2, 11])
def test_where_there_are_no_more_others_than_are_asked_for_all_of_them_are_the_nearest(count):
    draw = np.random.default_rng(0)
    first, second = draw.normal(size=(2, count, 4)).astype(np.float32)
    assert overlap(first, second, 10) == 1.0


@pytest.mark.parametrize("count", [0, 1, 3, 10])
def test_a_small_pool_is_embedded_in_bfloat16_too(folder, processor, count):
    wanted = EmbedderSettings(str(folder), precision="bfloat16")
    embedder = load_embedder(wanted, note=fail, pool_texts=lambda: WORDS[:count])
    assert embedder.engine == "torch-bfloat16"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"precision": "float16"}, "precision 'float16'; expected one of float32, bfloat16"),
        (
            {"precision": "bfloat16", "engine": "onnx"},
            "precision 'bfloat16' with engine onnx; expected the engine torch",
        ),
        ({"precision": "bfloat16", "device": "cuda:0"}, "precision 'bfloat16' with cuda:0; expected the engine torch"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings, message):
    with pytest.raises(InvalidInput, match=message):
        EmbedderSettings(**settings)


def test_it_is_measured_on_a_pool_or_not_used(folder):
    with pytest.raises(InvalidInput, match="precision 'bfloat16' without a pool to measure it on"):
        load_embedder(EmbedderSettings(str(folder), precision="bfloat16"), note=fail)
    with pytest.raises(InvalidInput, match="precision 'bfloat16' without a pool to measure it on"):
        load_embedder(EmbedderSettings("auto", precision="bfloat16"), note=fail)
    with pytest.raises(InvalidInput, match="'latent' does not use precision"):
        load_embedder(EmbedderSettings("latent", precision="bfloat16"), note=fail, pool_texts=lambda: POOL)

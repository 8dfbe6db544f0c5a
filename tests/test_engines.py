"""Which engine runs a model: exported once, then started without torch; what cannot be exported is run by torch."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import tiny_models

from retriever import Retriever
from retriever.embedders import (
    EmbedderSettings,
    encode_checked,
    fingerprint,
    load_embedder,
    onnx_export,
    prompts_of,
    same_space,
    transformer,
)
from retriever.embedders.onnx_engine import ABOUT, OnnxEmbedder
from retriever.embedders.onnx_export import export_folder, identity_of
from retriever.embedders.sentence_transformer import SentenceTransformerEmbedder
from retriever.errors import EmbedderError, InvalidInput
from tests.support import fail

ROOT = Path(__file__).parent.parent
TEXTS = ["my card has not arrived", "a", "where is the transfer", "refund 中 zebra", "word " * 90, "my card please"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_models.transformer_folder(tmp_path_factory.mktemp("engine"))


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "demonstration-retriever"


def load(name, note=fail, **settings):
    return load_embedder(EmbedderSettings(str(name), **settings), note=note)


def no_torch(*args, **kwargs):
    raise AssertionError("torch was asked")


def test_a_model_is_exported_once_and_then_run_without_torch(folder, cache, monkeypatch):
    first = load(folder)
    assert isinstance(first, OnnxEmbedder)
    [made] = cache.iterdir()
    assert made == export_folder(str(folder), f"{folder} {identity_of(folder)}")
    assert {path.name for path in made.iterdir()} == {"model.onnx", "tokenizer.json", "export.json"}
    monkeypatch.setattr(SentenceTransformerEmbedder, "load", no_torch)
    again = load(folder)
    assert again.encode(TEXTS).tobytes() == first.encode(TEXTS).tobytes()
    assert (again.name, again.dim, again.token_dim) == (str(folder), 32, 32)


def test_both_engines_give_the_same_but_for_rounding(folder, cache):
    torch, onnx = load(folder, engine="torch"), load(folder, engine="onnx")
    np.testing.assert_allclose(torch.encode(TEXTS), onnx.encode(TEXTS), atol=1e-5)
    assert same_space(fingerprint(torch), fingerprint(onnx))
    theirs, ours = torch.token_vectors(TEXTS), onnx.token_vectors(TEXTS)
    assert theirs.offsets.tolist() == ours.offsets.tolist()
    np.testing.assert_allclose(theirs.vectors, ours.vectors, atol=1e-5)
    assert list(map(list, torch.token_ids(TEXTS))) == list(map(list, onnx.token_ids(TEXTS)))
    assert torch.has_tokens
    assert onnx.has_tokens


def test_pooling_by_the_first_token_is_exported_too(tmp_path, cache):
    made = tiny_models.transformer_folder(tmp_path, pooling="cls")
    np.testing.assert_allclose(load(made, engine="torch").encode(TEXTS), load(made).encode(TEXTS), atol=1e-5)


def test_an_export_leaves_the_torch_model_as_it_was(folder, cache):
    torch = load(folder, engine="torch")
    before = torch.encode(TEXTS).tobytes()
    onnx_export.export(torch, cache / "e")
    assert torch.encode(TEXTS).tobytes() == before


def test_prompts_are_those_of_the_settings_else_of_the_model(tmp_path, cache):
    prompted = tiny_models.transformer_folder(tmp_path / "p", prompts={"query": "query: ", "passage": "passage: "})
    given = load(prompted, query_prompt="ask: ")
    assert (prompts_of(given).query, prompts_of(given).example) == ("ask: ", "passage: ")
    assert (prompts_of(load(prompted)).query, len(list(cache.iterdir()))) == ("query: ", 1)


def test_a_changed_model_is_another_export(tmp_path, folder, cache):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    before = load(copy).encode(["my card"])
    other = tiny_models.transformer_folder(tmp_path / "other", seed=7)
    shutil.rmtree(copy)
    shutil.copytree(other, copy)
    assert not np.allclose(load(copy).encode(["my card"]), before, atol=1e-2)


@pytest.mark.parametrize("name", ["model.onnx", "tokenizer.json", "export.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
def test_a_damaged_export_is_made_again_and_says_so(folder, cache, name, damage):
    expected = load(folder).encode(TEXTS).tobytes()
    [made] = cache.iterdir()
    content = bytearray((made / name).read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 1
    (made / name).write_bytes(content if damage == "flip" else content[:-7])
    if damage == "gone":
        (made / name).unlink()
    notes: list[str] = []
    assert load(folder, note=notes.append).encode(TEXTS).tobytes() == expected
    # Without export.json there is nothing to find, and a flip in it may hit a word that nothing depends on.
    assert all(line.endswith("the model is exported again") for line in notes)
    assert name == ABOUT or len(notes) == 1
    assert load(folder).encode(TEXTS).tobytes() == expected


@pytest.mark.parametrize(
    ("kind", "why"),
    [("dense", "a model made of Transformer + Pooling + Dense"), ("static", "a model made of StaticEmbedding")],
)
def test_what_cannot_be_exported_is_run_by_torch_with_a_line_that_says_why(tmp_path, cache, kind, why, monkeypatch):
    made = (
        tiny_models.static_folder(tmp_path / "m")
        if kind == "static"
        else tiny_models.transformer_folder(tmp_path / "m", out=16, normalize=False)
    )
    notes: list[str] = []
    assert isinstance(load(made, note=notes.append), SentenceTransformerEmbedder)
    assert notes == [f"{made} is run by torch, which takes seconds to start: {why}"]
    with monkeypatch.context() as patch:
        patch.setattr(transformer, "export", lambda *args: pytest.fail("tried again"))
        assert isinstance(load(made, note=notes.append), SentenceTransformerEmbedder)
        assert notes[1] == notes[0]
    with monkeypatch.context() as patch:
        patch.setattr(onnx_export, "version", lambda name: "another")
        load(made, note=notes.append)
    assert notes[2] == notes[0]
    assert isinstance(load(made, engine="torch"), SentenceTransformerEmbedder)
    with pytest.raises(EmbedderError, match="cannot be run by ONNX Runtime: a model made of"):
        load(made, engine="onnx")


def test_an_export_that_gives_other_vectors_is_not_kept(folder, cache, monkeypatch):
    monkeypatch.setattr(OnnxEmbedder, "encode", lambda self, texts: np.zeros((len(texts), 32), np.float32))
    notes: list[str] = []
    assert isinstance(load(folder, note=notes.append), SentenceTransformerEmbedder)
    assert "its export gives other vectors" in notes[0]
    assert [path.suffix for path in cache.iterdir()] == [".json"]  # why, and nothing of the export


def test_a_missing_package_and_a_cache_that_cannot_be_written_are_reasons(folder, cache, monkeypatch):
    notes: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(onnx_export, "PACKAGES", ("onnx", "surely_not_installed"))
        assert isinstance(load(folder, note=notes.append), SentenceTransformerEmbedder)
    cache.parent.write_text("a file where the directory should be")
    assert isinstance(load(folder, note=notes.append), SentenceTransformerEmbedder)
    assert "not installed: surely_not_installed" in notes[0]
    assert str(cache) in notes[1]


def test_what_an_accelerator_can_run_is_torchs(folder, cache, tmp_path, monkeypatch):
    with pytest.raises(EmbedderError, match="no-such-device"):
        load(folder, device="no-such-device")  # torch refuses it; nothing falls back to the CPU in silence
    with pytest.raises(InvalidInput, match="engine 'onnx' on cuda:0; expected device cpu"):
        load(folder, device="cuda:0", engine="onnx")
    assert isinstance(load(folder, device="cpu"), OnnxEmbedder)
    driver(monkeypatch, tmp_path, torch_finds_one=True)
    assert isinstance(load(folder), SentenceTransformerEmbedder)
    assert isinstance(load(folder, engine="onnx"), OnnxEmbedder)


def driver(monkeypatch, path, *, torch_finds_one):
    """A host with the file of a driver, all of whose accelerators may be used."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(transformer, "_DRIVERS", (path,))
    monkeypatch.setattr(transformer, "_torch_finds_one", lambda: torch_finds_one)


def test_a_driver_without_a_torch_that_finds_an_accelerator_is_none(folder, cache, tmp_path, monkeypatch):
    driver(monkeypatch, tmp_path, torch_finds_one=False)
    assert isinstance(load(folder), OnnxEmbedder)
    assert isinstance(load(folder, engine="torch"), SentenceTransformerEmbedder)
    made = tiny_models.static_folder(tmp_path / "static")
    notes: list[str] = []
    assert isinstance(load(made, note=notes.append), SentenceTransformerEmbedder)
    assert notes == [f"{made} is run by torch, which takes seconds to start: a model made of StaticEmbedding"]


@pytest.mark.parametrize(
    ("visible", "engine"), [("", OnnxEmbedder), (" -1", OnnxEmbedder), ("0", SentenceTransformerEmbedder)]
)
def test_hidden_accelerators_are_none(folder, cache, tmp_path, monkeypatch, visible, engine):
    driver(monkeypatch, tmp_path, torch_finds_one=True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert isinstance(load(folder), engine)


def test_torch_is_asked_for_an_accelerator_only_where_there_is_a_driver(folder, cache, tmp_path, monkeypatch):
    driver(monkeypatch, tmp_path / "missing", torch_finds_one=True)
    monkeypatch.setattr(transformer, "_torch_finds_one", no_torch)
    assert isinstance(load(folder), OnnxEmbedder)


@pytest.mark.parametrize("there", [True, False])
def test_torch_finds_what_it_was_built_for_and_says_nothing(monkeypatch, there):
    def is_available():
        warnings.warn("CUDA initialization: the driver is too old", stacklevel=2)
        return there

    monkeypatch.setattr("torch.cuda.is_available", is_available)
    assert transformer._torch_finds_one() is there


def test_without_torch_there_is_no_accelerator(folder, cache, tmp_path, monkeypatch):
    load(folder)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(transformer, "_DRIVERS", (tmp_path,))
    monkeypatch.setitem(sys.modules, "torch", None)
    assert isinstance(load(folder), OnnxEmbedder)


def test_an_unknown_engine_is_refused():
    with pytest.raises(InvalidInput, match="engine 'jax'; expected one of onnx, torch"):
        EmbedderSettings(engine="jax")


def test_an_index_of_one_engine_is_searched_with_the_other(folder, cache, tmp_path):
    rows = [{"id": str(i), "input": text, "output": "o"} for i, text in enumerate(TEXTS)]
    settings = EmbedderSettings(str(folder), engine="torch")
    with Retriever.build(rows, tmp_path / "i", embedder=settings, note=fail, weight=0.5) as built:
        assert built.info()["embedder"]["engine"] == "torch"
        wanted = [(one.example.id, one.score) for one in built.select("my card")]
    with Retriever.open(tmp_path / "i", embedder=EmbedderSettings(str(folder)), note=fail) as opened:
        found = [(one.example.id, one.score) for one in opened.select("my card")]
    assert [one for one, _ in found] == [one for one, _ in wanted]
    np.testing.assert_allclose([score for _, score in found], [score for _, score in wanted], atol=1e-5)
    with Retriever.open(tmp_path / "i", embedder=EmbedderSettings(engine="onnx"), note=fail) as opened:
        assert [(one.example.id, one.score) for one in opened.select("my card")] == found


def test_a_build_with_another_engine_does_not_mix_its_vectors_with_those_that_are_there(folder, cache, tmp_path):
    rows = [{"id": str(i), "input": text, "output": "o"} for i, text in enumerate(TEXTS)]
    for engine, overwrite in (("torch", False), ("onnx", True)):
        settings = EmbedderSettings(str(folder), engine=engine)
        Retriever.build(rows, tmp_path / "i", embedder=settings, note=fail, weight=0.5, overwrite=overwrite).close()
    vectors = np.load(tmp_path / "i" / "gen-000002" / "vectors.npy")
    assert vectors.tobytes() == encode_checked(load(folder, engine="onnx"), TEXTS).tobytes()


def test_a_select_from_the_command_line_imports_no_torch_and_notes_nothing_for_anybody(folder, cache, tmp_path):
    rows = [{"id": str(i), "input": text, "output": "o"} for i, text in enumerate(TEXTS)]
    Retriever.build(rows, tmp_path / "i", embedder=str(folder), note=fail, weight=0.5).close()
    code = (
        "import sys, cli\n"
        "try: cli.main(['select', sys.argv[1], 'my card', '--json'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'sentence_transformers', 'huggingface_hub'}\n"
        "print(sorted(heavy & sys.modules.keys()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "i")],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        env=dict(os.environ),
    )
    selected, imported = done.stdout.splitlines()
    assert len(json.loads(selected)["demonstrations"]) == 6
    assert imported == "[]"
    # ONNX Runtime's own notes on every run, which it would send to its maker, are off.
    assert [path.name for path in cache.parent.iterdir()] == ["demonstration-retriever"]


def test_auto_means_the_embedder_of_the_index_whatever_that_is(folder, cache, tmp_path):
    rows = [{"id": str(i), "input": text, "output": "o"} for i, text in enumerate(TEXTS)]
    Retriever.build(rows, tmp_path / "latent", embedder="latent", note=fail, weight=0.5).close()
    for given in ("auto", EmbedderSettings()):
        with Retriever.open(tmp_path / "latent", embedder=given, note=fail) as opened:
            assert len(opened.select("my card")) == 6
    with pytest.raises(InvalidInput, match="latent-semantic does not use device"):
        Retriever.open(tmp_path / "latent", embedder=EmbedderSettings(device="cpu"), note=fail)
    Retriever.build(rows, tmp_path / "own", embedder=str(folder), note=fail, weight=0.5).close()
    with Retriever.open(tmp_path / "own", embedder="auto", note=fail) as opened:
        assert len(opened.select("my card")) == 6

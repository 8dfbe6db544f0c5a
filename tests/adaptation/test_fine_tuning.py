"""A model that is fine-tuned for an index: a tiny one with random weights, by the real trainer."""

import importlib.util
import json
import random
import shutil
import socket

import numpy as np
import pytest
import torch

from retriever import EmbedderSettings, Retriever, tune
from retriever.adaptation.evidence import Asked
from retriever.adaptation.finetune import fine_tune
from retriever.adaptation.sample import Sample
from retriever.adaptation.supervision import FeatureSets
from retriever.adaptation.training import FinetuneSettings, Training, pairs, triplets
from retriever.embedders import Prompts, TunedModel, bfloat16, encode_checked, load_embedder, transformer
from retriever.errors import EmbedderError, Incompatible, InvalidInput, MissingDependency
from retriever.repair import repair
from retriever.verification import verify
from tests.support import build, fail
from tests.tiny_models import transformer_folder

FAST = FinetuneSettings(epochs=4, rate=2e-3)
SIGNS = ("address", "account", "radius", "return")
WORDS = ["my", "card", "has", "not", "arrived", "where", "is", "the", "transfer", "how", "do", "i", "change", "pin"]
WORDS += ["a", "refund", "please", "train", "to", "coast"]
QUERIES = [f"{WORDS[n]} {WORDS[n + 7]} {WORDS[n + 3]} {SIGNS[n % 4]}" for n in range(12)]


def rows(count, start=0):
    """Examples whose last word is one of four signs, which is their label."""
    draw = random.Random(0)
    texts = [" ".join([*draw.sample(WORDS, 4), SIGNS[n % 4]]) for n in range(start + count)]
    return [
        {"id": f"e{n}", "input": texts[n], "output": SIGNS[n % 4], "label": SIGNS[n % 4]}
        for n in range(start, start + count)
    ]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return transformer_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def tuned(tmp_path_factory, model):
    """An index that was fine-tuned, and what came of it; to be copied, never changed."""
    path = tmp_path_factory.mktemp("tuned") / "i"
    with pool(path, model) as index:
        found = index.fine_tune(FAST)
    return path, found


@pytest.fixture
def copied(tmp_path, tuned):
    shutil.copytree(tuned[0], tmp_path / "i")
    return tmp_path / "i"


def pool(path, model, count=120, **options):
    return build(rows(count), path, embedder=EmbedderSettings(str(model)), **options)


def right(index):
    chosen = [(d.example.label, query.split()[-1]) for query in QUERIES for d in index.select(query, mode="dense", k=8)]
    return sum(label == sign for label, sign in chosen) / len(chosen)


def answers(index):
    return [[(d.example.id, d.score) for d in chosen] for chosen in index.select_many(QUERIES, k=8)]


def test_a_model_that_helps_is_kept_and_the_index_opens_anywhere_with_it(tuned, tmp_path, model):
    path, found = tuned
    assert found.kept and found.source == "labels" and found.tuned is not None
    moved = tmp_path / "elsewhere"
    shutil.copytree(path, moved)
    with Retriever.open(moved, note=fail) as index, pool(tmp_path / "plain", model) as plain:
        assert right(index) > right(plain) + 0.2
        about = index.info()["embedder"]
    assert about["name"] == f"tuned:{model}" and about["engine"] == "onnxruntime"
    assert about["tuned"]["source"] == "labels" and about["tuned"]["settings"]["epochs"] == 4
    assert about["tuned"]["base"]["name"] == str(model)
    assert about["tuned"]["compared"] == found.to_dict()["compared"]
    assert verify(moved).intact


def test_the_index_needs_no_folder_of_the_former_model_until_it_is_undone(copied, tmp_path):
    own = transformer_folder(tmp_path / "own")
    with pool(tmp_path / "j", own, 60) as index:
        index.fine_tune(FAST)
        expected = answers(index)
    shutil.rmtree(own)
    with Retriever.open(tmp_path / "j", note=fail) as index:
        assert answers(index) == expected
        with pytest.raises(EmbedderError, match="no model folder"):
            index.undo_adaptation()
        assert answers(index) == expected


def test_undo_gives_back_every_selection_the_weight_and_the_embedder(copied, tmp_path, model):
    with pool(tmp_path / "plain", model) as plain, Retriever.open(copied, note=fail) as index:
        assert answers(index) != answers(plain)
        index.undo_adaptation()
        assert answers(index) == answers(plain)
        assert index.info()["embedder"] == plain.info()["embedder"]
        assert index.info()["fusion"] == plain.info()["fusion"]
        with pytest.raises(InvalidInput, match="not adapted"):
            index.undo_adaptation()


def test_a_weight_in_the_recipe_gives_way_and_comes_back(tmp_path, model):
    with pool(tmp_path / "i", model) as index:
        index.set_recipe({"retrieve": {"weight": 0.1}})
        given = answers(index)
        found = index.fine_tune(FAST)
        assert found.kept, found.reason
        assert (found.recipe_weight, index.recipe.retrieve.weight) == (0.1, None)
        index.undo_adaptation()
        assert index.recipe.retrieve.weight == 0.1
        assert answers(index) == given


@pytest.fixture
def rounds(monkeypatch):
    """The processor computes in bfloat16, which changes no neighbour."""
    monkeypatch.setattr(bfloat16, "has_bfloat16", lambda: True)
    monkeypatch.setattr(bfloat16, "overlap", lambda first, second, k: 1.0)


def vectors(index):
    return index.snapshot.base.vectors.rows.values


def rounded(path, model):
    embedder = EmbedderSettings(str(model), precision="bfloat16")
    return build(rows(60), path, embedder=embedder, weight=0.5)


def test_undo_gives_back_a_pool_in_bfloat16_to_the_bit(tmp_path, model, rounds):
    with rounded(tmp_path / "i", model) as index:
        before, about = vectors(index).copy(), index.info()["embedder"]
        assert about["engine"] == "torch-bfloat16"
        assert index.fine_tune(FAST).kept
        assert not np.array_equal(vectors(index), before)
        index.undo_adaptation()
        assert np.array_equal(vectors(index), before)
        assert index.info()["embedder"] == about


def test_undo_where_there_is_no_bfloat16_says_that_the_pool_is_in_float32(tmp_path, model, rounds, monkeypatch):
    notes = []
    with rounded(tmp_path / "i", model) as index, pool(tmp_path / "plain", model, 60) as plain:
        assert index.fine_tune(FAST).kept
        monkeypatch.setattr(bfloat16, "has_bfloat16", lambda: False)
        monkeypatch.setattr(index, "_note", notes.append)
        index.undo_adaptation()
        assert notes == [f"{model} is run in float32: the processor does not compute in bfloat16"]
        assert np.array_equal(vectors(index), vectors(plain))
        assert index.info()["embedder"]["engine"] == "onnxruntime"


def test_undo_by_another_engine_says_which(copied, model, monkeypatch):
    with Retriever.open(copied, note=fail) as index:
        assert index.info()["embedder"]["tuned"]["base"]["engine"] == "onnxruntime"
        monkeypatch.setattr(transformer, "_on_accelerator", lambda settings: True)
        index.undo_adaptation()
        assert index.info()["embedder"]["engine"] == "torch"
        by_torch = load_embedder(EmbedderSettings(str(model), engine="torch"), note=fail)
        assert np.array_equal(vectors(index), encode_checked(by_torch, [one["input"] for one in rows(120)]))


def test_undo_to_a_model_that_is_another_one_now_is_refused_and_changes_nothing(tmp_path):
    own = transformer_folder(tmp_path / "own")
    with pool(tmp_path / "i", own, 60) as index:
        index.fine_tune(FAST)
        expected = answers(index)
        shutil.rmtree(own)
        transformer_folder(tmp_path / "own", seed=7)
        with pytest.raises(Incompatible, match="gives other vectors than it did"):
            index.undo_adaptation()
        assert answers(index) == expected


def test_what_is_added_later_is_embedded_by_the_tuned_model(copied):
    with Retriever.open(copied, note=fail) as index:
        index.add(rows(6, 120))
        added = index.snapshot.embedded(np.arange(120, 126))
        texts = [one["input"] for one in rows(6, 120)]
        assert np.array_equal(added, index.query_vectors(texts))
        before = answers(index)
        index.compact()
        assert answers(index) == before
    assert verify(copied).intact


def test_changes_that_are_not_folded_in_yet_are_embedded_again_too(tmp_path, model):
    with pool(tmp_path / "i", model, 60) as index:
        index.add(rows(20, 60))
        index.remove(["e1"])
        assert index.fine_tune(FAST).kept
        texts = [one.input for one in index.snapshot.examples(np.arange(len(index)))]
        assert np.array_equal(index.snapshot.embedded(np.arange(len(index))), index.query_vectors(texts))
        assert index.snapshot.pool.vectors(index.snapshot.dim) == {}


def test_another_process_goes_on_with_the_new_model(copied, tmp_path, model):
    with pool(tmp_path / "j", model, 60) as writer, Retriever.open(tmp_path / "j", note=fail) as reader:
        reader.select(QUERIES[0])
        writer.fine_tune(FAST)
        assert reader.refresh()
        assert answers(reader) == answers(writer)


def test_the_former_embedder_is_refused_for_a_tuned_index(copied, model):
    with pytest.raises(Incompatible, match="which built the index"):
        Retriever.open(copied, embedder=EmbedderSettings(str(model)))


def test_torch_runs_it_too_and_gives_the_same(copied):
    with (
        Retriever.open(copied, note=fail) as by_onnx,
        Retriever.open(copied, embedder=EmbedderSettings(engine="torch"), note=fail) as by_torch,
    ):
        assert np.abs(by_onnx.query_vectors(QUERIES) - by_torch.query_vectors(QUERIES)).max() < 1e-5


def test_labels_that_texts_say_nothing_of_change_nothing(tmp_path, model):
    chance = random.Random(1)
    unrelated = [{**one, "label": f"L{chance.randrange(4)}", "output": "x"} for one in rows(90)]
    with build(unrelated, tmp_path / "i", embedder=EmbedderSettings(str(model))) as index:
        generation, before = index.generation, answers(index)
        found = index.fine_tune(FAST)
        assert not found.kept and found.tuned is None and found.reason.startswith("no gain: on")
        assert index.generation == generation and answers(index) == before


def test_where_a_map_does_better_the_model_is_not_kept(tmp_path, model):
    with pool(tmp_path / "i", model) as index:
        generation = index.generation
        found = index.fine_tune(FinetuneSettings(epochs=1, rate=5e-4))
        assert not found.kept and found.tuned is None and index.generation == generation
        assert found.compared[1].gain > found.compared[1].error
        assert "but a map does better for less" in found.reason
        assert index.adapt().kept


def test_a_log_teaches_the_model_and_is_named_in_the_index(tmp_path, model):
    bare = [{**one, "label": None, "output": "x"} for one in rows(80)]
    signs = {one["id"]: one["output"] for one in rows(80)}
    lines = [
        {"query": one["input"], "scores": {f"e{(n * 7 + m) % 80}": 0.0 for m in range(8)}}
        for n, one in enumerate(rows(60, 200))
    ]
    for line in lines:
        line["scores"] = {i: float(signs[i] == line["query"].split()[-1]) for i in line["scores"]}
    with build(bare, tmp_path / "i", embedder=EmbedderSettings(str(model)), note=lambda line: None) as index:
        found = index.fine_tune(FinetuneSettings(epochs=8, rate=2e-3), source=lines)
        assert found.kept and found.source == "feedback"
        assert index.info()["embedder"]["tuned"]["log"]["lines"] == 60


def test_an_index_that_is_adapted_is_refused(copied, tmp_path, model):
    with Retriever.open(copied, note=fail) as index, pytest.raises(InvalidInput, match="adapted already"):
        index.fine_tune(FAST)


def test_a_fine_tuned_index_is_no_judge_of_its_own_examples(copied, tmp_path, model):
    with Retriever.open(copied, note=fail) as index, pool(tmp_path / "plain", model, 60) as plain:
        assert index.snapshot.is_adapted and not plain.snapshot.is_adapted
        with pytest.raises(InvalidInput, match="adapted on these very examples"):
            tune(index, dry_run=True)


def test_an_embedder_that_is_no_model_by_name_is_refused(tmp_path):
    with build(rows(60), tmp_path / "i") as index, pytest.raises(InvalidInput, match="cannot be fine-tuned"):
        index.fine_tune(FAST)


def test_a_missing_package_is_named_with_its_extra(tmp_path, model, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        "retriever.adaptation.finetune.find_spec", lambda name: None if name == "datasets" else found(name)
    )
    with pool(tmp_path / "i", model, 40) as index, pytest.raises(MissingDependency, match="'datasets'") as error:
        index.fine_tune(FAST)
    assert "demonstration-retriever[finetune]" in str(error.value)


def damage(path):
    path.chmod(0o644)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_a_repair_keeps_the_model_where_it_is_intact(copied):
    with Retriever.open(copied, note=fail) as index:
        expected, directory = answers(index), index.snapshot.base.generation.path
    damage(directory / "lengths.npy")
    repair(copied, note=fail)
    with Retriever.open(copied, note=fail) as index:
        assert answers(index) == expected and "tuned" in index.info()["embedder"]


def test_a_repair_without_the_model_goes_back_to_the_former_one_and_says_so(copied, tmp_path, model):
    with Retriever.open(copied, note=fail) as index:
        directory = index.snapshot.base.generation.path
    damage(directory / "embedder_file_1.npy")
    notes = []
    repair(copied, note=notes.append)
    assert notes[0] == f"the model that was fine-tuned is lost: {model} embeds again (retriever adapt --full)"
    with Retriever.open(copied, note=fail) as index, pool(tmp_path / "plain", model) as plain:
        assert answers(index) == answers(plain)


def test_a_repair_without_the_model_embeds_again_what_was_added_by_it(copied, tmp_path, model):
    with Retriever.open(copied, note=fail) as index:
        directory = index.snapshot.base.generation.path
        index.add(rows(6, 120))
    damage(directory / "embedder_file_1.npy")
    repair(copied, note=lambda line: None)
    with Retriever.open(copied, note=fail) as index, pool(tmp_path / "plain", model, 126) as plain:
        assert np.array_equal(vectors(index), vectors(plain))
        assert index.snapshot.pool.vectors(index.snapshot.dim) == {}


def test_a_file_of_another_kind_or_place_is_no_tuned_model():
    for name in ("../modules.json", "/etc/x.json", "a/../b.json", "pytorch_model.bin", "code.py", ".hidden/x.json"):
        with pytest.raises(EmbedderError, match="a tuned model with the file"):
            TunedModel("tuned:x", {"modules.json": b"[]", name: b""})
    with pytest.raises(EmbedderError, match=r"without modules\.json"):
        TunedModel("tuned:x", {"config.json": b"{}"})


def test_a_tuned_model_that_brings_code_is_never_run(tmp_path):
    ran = tmp_path / "ran"
    module = json.dumps([{"idx": 0, "name": "0", "path": "", "type": "evil.Module"}]).encode()
    files = {
        "modules.json": module,
        "config_sentence_transformers.json": b"{}",
        "evil.txt": f"open({str(ran)!r}, 'w')".encode(),
    }
    with pytest.raises(EmbedderError):
        TunedModel("tuned:x", files).load(EmbedderSettings("tuned:x"), fail)
    assert not ran.exists()


def test_a_tuned_model_by_name_alone_is_refused():
    with pytest.raises(InvalidInput, match="which only the index holds"):
        load_embedder("tuned:all-MiniLM-L6-v2", note=fail)


def test_state_gives_the_model_back():
    model = TunedModel("tuned:x", {"1_Pooling/config.json": b"{}", "modules.json": b"[]", "empty.txt": b""})
    assert TunedModel.from_state("tuned:x", model.state()) == model
    assert TunedModel.from_state("tuned:x", model.state()).digest == model.digest


# Training data


class Bare:
    """As much of a sample as training data are made from."""

    def __init__(self, texts, tmp_path):
        with build(
            [{"id": str(n), "input": text} for n, text in enumerate(texts)],
            tmp_path / "bare",
            output=None,
            note=lambda line: None,
        ) as index:
            self.sample = Sample.of(index.snapshot, index._live.encoder)


def test_a_triplet_is_an_example_one_that_is_alike_and_the_nearest_by_words_that_is_not(tmp_path):
    texts = ["pay my card", "settle the bill", "card of mine, my card", "weather"]
    sample = Bare(texts, tmp_path).sample
    sets = FeatureSets([{"pay"}, {"pay"}, {"lost"}, {"lost"}])
    made = triplets(sample, sets, np.arange(4), FinetuneSettings(batch=4))
    found = {query: tuple(column[n] for column in made.examples) for n, query in enumerate(made.queries)}
    assert found["pay my card"] == ("settle the bill", "card of mine, my card")
    assert found["card of mine, my card"] == ("weather", "pay my card")


def test_no_batch_holds_two_anchors_that_are_alike(tmp_path):
    texts = [f"text {n}" for n in range(60)]
    sample = Bare(texts, tmp_path).sample
    made = triplets(
        sample, FeatureSets([{n % 5} for n in range(60)]), np.arange(60), FinetuneSettings(epochs=2, batch=3)
    )
    numbers = {text: n for n, text in enumerate(texts)}
    assert sorted(entry for batch in made.batches for entry in batch) == list(range(120))
    for batch in made.batches:
        labels = [numbers[made.queries[entry]] % 5 for entry in batch]
        assert len(set(labels)) == len(labels) <= 3
    for query, positive, negative in zip(made.queries, *made.examples, strict=True):
        assert numbers[query] % 5 == numbers[positive] % 5 != numbers[negative] % 5
        assert query != positive


def test_pairs_are_those_of_the_log_with_their_credit(tmp_path):
    sample = Bare(["one", "two", "three"], tmp_path).sample
    asked = [
        Asked("q", np.array([0, 2]), np.array([1.0, -1.0]), True),
        Asked("r", np.array([1]), np.array([0.5]), False),
    ]
    made = pairs(sample, asked, FinetuneSettings(batch=2))
    assert set(zip(made.queries, made.examples[0], made.scores, strict=True)) == {
        ("q", "one", 1.0),
        ("q", "three", -1.0),
        ("r", "two", 0.5),
    }
    assert [len(batch) for batch in made.batches] == [2, 1]


@pytest.mark.parametrize("options", [{"epochs": 0}, {"batch": 1}, {"rate": 0}, {"warmup": 1}, {"examples": 0}])
def test_settings_out_of_range_are_refused(options):
    with pytest.raises(InvalidInput, match="expected at least 1"):
        FinetuneSettings(**options)


# The trainer


def loaded(model):
    return load_embedder(EmbedderSettings(str(model), engine="torch"), note=fail).model


def weights(model):
    return {name: tensor.numpy().tobytes() for name, tensor in model.state_dict().items()}


TRAINING = Training(["my card", "the train"], [["card", "train"], ["the coast", "a pin"]], [[0, 1]] * 3)


def test_the_same_training_gives_the_same_bytes_for_any_number_of_threads_and_leaves_no_trace(
    model, tmp_path, monkeypatch, capfd
):
    monkeypatch.chdir(tmp_path)
    threads, found = torch.get_num_threads(), []
    state = torch.random.get_rng_state(), random.getstate(), np.random.get_state()[1].tobytes()  # noqa: NPY002
    try:
        for number in (1, 2):
            torch.set_num_threads(number)
            one = loaded(model)
            fine_tune(one, TRAINING, Prompts(), FinetuneSettings(), lambda done, total: None)
            assert torch.get_num_threads() == number and not one.training
            found.append(weights(one))
    finally:
        torch.set_num_threads(threads)
    assert found[0] == found[1] != weights(loaded(model))
    assert torch.equal(torch.random.get_rng_state(), state[0]) and random.getstate() == state[1]
    assert np.random.get_state()[1].tobytes() == state[2]  # noqa: NPY002
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")


def test_it_needs_no_network(model, monkeypatch):
    def refused(*arguments, **options):
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)
    fine_tune(loaded(model), TRAINING, Prompts(), FinetuneSettings(), lambda done, total: None)


def test_progress_is_told_step_by_step_and_prompts_are_put_before_the_texts(model, monkeypatch):
    told, asked = [], []
    one = loaded(model)
    forward = one.preprocess
    monkeypatch.setattr(one, "preprocess", lambda texts, *a, **o: (asked.extend(texts), forward(texts, *a, **o))[1])
    fine_tune(one, TRAINING, Prompts("ask: ", "doc: "), FinetuneSettings(), lambda *steps: told.append(steps))
    assert told == [(1, 3), (2, 3), (3, 3)]
    assert {"ask: my card", "ask: the train", "doc: card", "doc: a pin"} <= set(asked)


def test_nothing_to_learn_from_leaves_the_model_as_it_is(model):
    one = loaded(model)
    fine_tune(one, Training([], [[], []], []), Prompts(), FinetuneSettings(), lambda done, total: None)
    assert weights(one) == weights(loaded(model))

"""An index that is adapted: what it holds, answers, keeps and gives back."""

import json

import numpy as np
import pytest
from colours import colour, embed, rows

from retriever import IndexSettings, Recipe, Retriever
from retriever.adaptation import sample as sampling
from retriever.adaptation.stored import Adaptation
from retriever.errors import InvalidInput
from retriever.repair import repair
from retriever.verification import verify
from tests.support import adapted_by, build, fail

QUERIES = [f"word{number}" for number in range(9000, 9024)]


def pool(path, count=160, **options):
    return build(rows(count), path, embedder=embed, **options)


def answers(index):
    return [[(d.example.id, d.score) for d in chosen] for chosen in index.select_many(QUERIES, k=8)]


def share_of_the_right_colour(index):
    found = [d.example.label == colour(q) for q in QUERIES for d in index.select(q, k=8, mode="dense")]
    return sum(found) / len(found)


def files(index):
    directory = index.snapshot.base.generation.path
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.name != "manifest.json"}


def test_a_map_that_helps_is_published_and_answers_with_more_of_the_right_colour(tmp_path):
    with pool(tmp_path / "i") as index:
        before = share_of_the_right_colour(index)
        found = index.adapt()
        assert found.kept and found.source == "labels" and found.examples == 160
        assert share_of_the_right_colour(index) > before + 0.2
        about = index.info()["adaptation"]
        assert about["source"] == "labels" and about["settings"]["kind"] == "linear"
        assert about["compared"] == found.to_dict()["compared"]
        assert index.info()["fusion"]["weight"] == found.calibration.weight
    with Retriever.open(tmp_path / "i", embedder=embed, note=fail) as again:
        assert again.info()["adaptation"] == about


def test_labels_that_vectors_say_nothing_of_change_nothing(tmp_path):
    chance = np.random.default_rng(0).integers(0, 4, 120)
    unrelated = rows(120, label=lambda colour, number: f"L{chance[number]}")
    with build(unrelated, tmp_path / "i", embedder=embed) as index:
        generation, given = index.generation, answers(index)
        found = index.adapt()
        assert not found.kept and found.reason.startswith("no gain: on 120 held-out examples")
        assert index.generation == generation and answers(index) == given
        assert "adaptation" not in index.info()


def test_too_few_examples_are_told_apart_from_no_gain(tmp_path):
    with pool(tmp_path / "i", 12) as index:
        assert index.adapt().reason.startswith("only 12 examples say what is alike")


def test_a_pool_that_says_nothing_is_refused(tmp_path):
    bare = [{"id": str(n), "input": f"word{n}"} for n in range(40)]
    with (
        build(bare, tmp_path / "i", embedder=embed, output=None, note=lambda line: None) as index,
        pytest.raises(InvalidInput, match="without labels"),
    ):
        index.adapt()


def test_undo_gives_back_every_selection_and_the_weight(tmp_path):
    with pool(tmp_path / "i") as index:
        given, weight, before = answers(index), index.info()["fusion"], files(index)
        adapted_by(index)
        assert answers(index) != given
        assert files(index)["vectors.npy"] == before["vectors.npy"]
        index.undo_adaptation()
        assert (answers(index), index.info()["fusion"]) == (given, weight)
        assert files(index) == before
        with pytest.raises(InvalidInput, match="not adapted"):
            index.undo_adaptation()


def test_a_weight_that_was_given_stays(tmp_path):
    with pool(tmp_path / "i", weight=0.7) as index:
        index.adapt()
        assert index.info()["fusion"]["weight"] == 0.7 and index.info()["fusion"]["objective"] == "given"
        index.undo_adaptation()
        assert index.info()["fusion"]["weight"] == 0.7


def test_a_weight_in_the_recipe_gives_way_to_the_calibrated_one_and_comes_back(tmp_path):
    with pool(tmp_path / "i") as index:
        index.set_recipe({"retrieve": {"weight": 0.1}, "select": {"k": 3}})
        given, recipe, before = answers(index), index.recipe, files(index)
        for number in range(2):
            assert index.adapt().recipe_weight == (None if number else 0.1)
            assert index.recipe == Recipe.of({"select": {"k": 3}})
            assert index.select("a").recipe.retrieve.weight == index.info()["fusion"]["weight"]
            assert index.info()["adaptation"]["recipe_weight"] == 0.1
        index.undo_adaptation()
        assert (answers(index), index.recipe, files(index)) == (given, recipe, before)


@pytest.mark.parametrize("kind", ["float32", "float16", "int8"])
def test_what_is_added_later_is_mapped_as_if_it_had_been_there(tmp_path, kind):
    settings = IndexSettings(vectors=kind)
    with pool(tmp_path / "late", 60, settings=settings) as late, pool(tmp_path / "all", 90, settings=settings) as all_:
        for index in (late, all_):
            adapted_by(index)
        late.add(rows(30, 60))
        assert late.snapshot.index.dense.vectors(np.arange(90)).tobytes() == (
            all_.snapshot.index.dense.vectors(np.arange(90)).tobytes()
        )
        late.compact()
        same = set(files(all_)) - {"rows.npy"}
        assert {name: files(late)[name] for name in same} == {name: files(all_)[name] for name in same}


def test_a_compaction_and_a_replaced_example_keep_the_map(tmp_path):
    with pool(tmp_path / "i", 40) as index:
        adapted_by(index)
        before = files(index)
        index.update({"id": "e3", "input": "word7000", "output": "x", "label": "red"})
        index.compact()
        after = files(index)
        assert after["adaptation.npy"] == before["adaptation.npy"]
        kept = index.snapshot.base
        assert np.array_equal(kept.adaptation.moved_rows(kept.embedded).values, kept.vectors.rows.values)
        assert verify(tmp_path / "i").intact


def test_text_of_a_known_example_is_not_embedded_again_nor_taken_for_a_mapped_vector(tmp_path):
    with pool(tmp_path / "i", 40) as index:
        adapted_by(index)
        index.add({"id": "copy", "input": rows(1)[0]["input"], "output": "again", "label": "red"})
        vectors = index.snapshot.index.dense.vectors(np.array([0, 40]))
        assert vectors[0].tobytes() == vectors[1].tobytes()
        embedded = index.snapshot.embedded(np.array([0, 40]))
        assert embedded[0].tobytes() == embedded[1].tobytes() != vectors[0].tobytes()


def test_a_query_vector_that_is_given_is_one_of_the_embedder(tmp_path):
    with pool(tmp_path / "i", 40) as index:
        adapted_by(index)
        [vector] = embed(["word9000"])
        assert index.select("word9000", vector=vector) == index.select("word9000")


def test_an_approximate_index_is_built_over_what_is_searched(tmp_path):
    with pool(tmp_path / "i", 80, settings=IndexSettings(ann="HNSW16")) as index:
        adapted_by(index)
        found = [d.example.id for d in index.select("word9000", mode="dense", k=5)]
    with pool(tmp_path / "exact", 80) as exact:
        adapted_by(exact)
        assert [d.example.id for d in exact.select("word9000", mode="dense", k=5)] == found


def test_building_over_it_drops_the_map_and_says_so(tmp_path):
    with pool(tmp_path / "i", 40) as index:
        adapted_by(index)
    notes = []
    with pool(tmp_path / "i", 40, overwrite=True, note=notes.append) as index:
        assert "adaptation" not in index.info()
    assert notes == ["the index was adapted to the examples that it had: adapt it again (retriever adapt)"]


def damage(path):
    path.chmod(0o644)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["adapted.npy", "lengths.npy"])
def test_a_repair_keeps_the_map_and_gives_the_same_bytes(tmp_path, name):
    with pool(tmp_path / "i", 40) as index:
        adapted_by(index)
        before, directory = files(index), index.snapshot.base.generation.path
    damage(directory / name)
    repair(tmp_path / "i", note=fail)
    with Retriever.open(tmp_path / "i", embedder=embed, note=fail) as index:
        assert files(index) == before


def test_a_repair_without_the_map_says_so_and_gives_the_index_as_it_was_built(tmp_path):
    with pool(tmp_path / "i", 40) as index:
        before = files(index)
        adapted_by(index)
        directory = index.snapshot.base.generation.path
    damage(directory / "adaptation.npy")
    notes = []
    repair(tmp_path / "i", note=notes.append)
    assert notes == ["the map that the index was adapted by is lost: adapt it again (retriever adapt)"]
    with Retriever.open(tmp_path / "i", embedder=embed, note=fail) as index:
        assert files(index) == before


def test_mapped_rows_that_are_not_those_of_the_map_are_found_by_verify(tmp_path, monkeypatch):
    with pool(tmp_path / "i", 40) as index:
        monkeypatch.setattr(Adaptation, "moved_rows", lambda self, stored: stored)
        adapted_by(index)
    monkeypatch.undo()
    [problem] = verify(tmp_path / "i").problems
    assert "its mapped vectors are not those that its map gives" in problem.found


def test_another_map_than_the_manifest_speaks_of_is_damage(tmp_path, monkeypatch):
    with pool(tmp_path / "i", 40) as index:
        monkeypatch.setattr("retriever.adaptation.stored.fingerprint", lambda matrix: "0" * 64)
        adapted_by(index)
    monkeypatch.undo()
    [problem] = verify(tmp_path / "i").problems
    assert problem.path.name == "adaptation.npy"
    assert problem.found == "is not the map that the manifest speaks of"


def test_adapting_twice_gives_the_same_bytes(tmp_path):
    contents = []
    for name in ("one", "two"):
        with pool(tmp_path / name) as index:
            index.adapt()
            contents.append(files(index))
    assert contents[0] == contents[1]


def test_examples_beyond_the_most_are_mapped_but_not_learned_from(tmp_path, monkeypatch):
    monkeypatch.setattr(sampling, "MOST_ROWS", 100)
    with pool(tmp_path / "i") as index:
        assert index.adapt().examples == 100
        assert len(index.snapshot.base.vectors) == 160


def test_what_comes_of_it_is_plain_json(tmp_path):
    with pool(tmp_path / "i") as index:
        found = index.adapt().to_dict()
    assert json.loads(json.dumps(found)) == found
    assert [one["metric"] for one in found["compared"]] == ["dense, labels", "hybrid, labels"]

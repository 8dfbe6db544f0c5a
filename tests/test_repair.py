"""Repair: whatever is derived can be lost and comes back; what only the pool holds is refused, not guessed."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import sqlite3
from pathlib import Path

import numpy as np
import pytest
from support import embed

from retriever import IndexSettings, Retriever
from retriever.embedders import Prompts
from retriever.embedders.function import FunctionEmbedder
from retriever.errors import Incompatible, IndexCorrupt, IndexLocked, IndexMissing
from retriever.repair import Repair, repair
from retriever.verification import verify
from retriever.writing import writing

ROWS = [
    {"id": f"r{i}", "input": f"{['card', 'refund', 'login', 'fee'][i % 4]} number {i}", "output": f"o{i % 3}"}
    for i in range(8)
]
MORE = [{"id": f"m{i}", "input": f"late mail {i}", "output": f"o{i % 3}"} for i in range(3)]
LAST = {"id": "last", "input": "lost again", "output": "o1"}
TEXTS = {row["input"] for row in [*ROWS, *MORE, LAST]}
FILES = [
    "manifest.json",
    *(
        f"{name}.npy"
        for name in (
            *("rows", "ids", "id_offsets", "id_rows", "text_hashes", "vectors", "terms", "term_offsets"),
            *("posting_offsets", "posting_rows", "posting_counts", "lengths"),
        )
    ),
]


class Counting:
    """An embedder under a fixed name that remembers which of the pool's texts it was asked for."""

    def __init__(self, function=embed, prompts=None):
        self.asked: list[str] = []
        self._function = function
        self.source = FunctionEmbedder(self._embed, name="counting", prompts=prompts)

    def _embed(self, texts):
        self.asked += [text for text in texts if text in TEXTS]
        return self._function(texts)


def answers(root: Path, embedder=None) -> list[object]:
    with Retriever.open(root, embedder=embedder or Counting().source) as retriever:
        return [
            (len(retriever), retriever.info()["fusion"], retriever.info()["settings"]),
            *(
                [(one.example, one.score, one.channels) for one in retriever.select(query, k=5, mode=mode)]
                for query in ("card fee", "mail late 1", "lost", "refund number 5")
                for mode in ("hybrid", "dense", "lexical")
            ),
        ]


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.unlink()
    path.write_bytes(content)


def content(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


DAMAGES = {"flipped": flip, "deleted": Path.unlink, "emptied": lambda path: path.write_bytes(b"")}


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """Two generations, then one addition and one removal that are in the pool alone."""
    root = tmp_path_factory.mktemp("original") / "pool.index"
    with Retriever.build(ROWS, root, embedder=Counting().source) as retriever:
        retriever.add(MORE)
        retriever.compact()
        retriever.add(LAST)
        retriever.remove("r2")
    return root, answers(root)


@pytest.fixture
def index(original, tmp_path):
    root = tmp_path / "pool.index"
    shutil.copytree(original[0], root)
    return root


def mended(root: Path, original, embedder: Counting) -> Repair:
    made = repair(root, embedder=embedder.source)
    assert answers(root) == original[1]
    assert verify(root).problems == ()
    return made


def test_an_intact_index_is_left_as_it_is_to_the_last_byte(index, original):
    before = content(index / "gen-000001") | content(index / "gen-000002")
    assert repair(index) == Repair(None)
    assert content(index / "gen-000001") | content(index / "gen-000002") == before
    assert answers(index) == original[1]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", FILES)
def test_any_file_of_the_current_generation_is_mended_and_only_lost_vectors_are_embedded(index, original, name, damage):
    DAMAGES[damage](index / "gen-000002" / name)
    embedder = Counting()
    made = mended(index, original, embedder)
    # Rows and vectors together say which vector is whose; the other generation and the pool hold the rest.
    assert embedder.asked == []
    assert (made.generation, made.reused, made.embedded) == ("gen-000003", 11, 0)
    assert sorted(path.name for path in index.glob("gen-*")) == ["gen-000001", "gen-000003"]


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_older_generation_is_removed_and_nothing_is_built(index, original, name):
    flip(index / "gen-000001" / name)
    embedder = Counting()
    assert mended(index, original, embedder) == Repair(None)
    assert embedder.asked == []
    assert [path.name for path in index.glob("gen-*")] == ["gen-000002"]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_current_is_mended_with_every_change(index, original, damage):
    DAMAGES[damage](index / "CURRENT")
    embedder = Counting()
    assert mended(index, original, embedder).embedded == 0
    assert embedder.asked == []


@pytest.mark.parametrize("name", ["vectors.npy", "manifest.json"])
def test_current_and_the_current_generation_may_be_damaged_together(index, original, name):
    (index / "CURRENT").unlink()
    flip(index / "gen-000002" / name)
    embedder = Counting()
    assert mended(index, original, embedder).embedded == 0
    assert embedder.asked == []


def test_when_all_generations_are_gone_the_texts_are_embedded_but_for_those_whose_vectors_the_pool_has(index, original):
    for path in [*index.glob("gen-*"), index / "CURRENT"]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    embedder = Counting()
    made = mended(index, original, embedder)
    assert sorted(embedder.asked) == sorted(row["input"] for row in ROWS if row["id"] != "r2")
    assert (made.reused, made.embedded) == (4, 7)


def test_when_both_files_of_vectors_are_damaged_the_added_examples_keep_theirs(index, original):
    for generation in ("gen-000001", "gen-000002"):
        flip(index / generation / "vectors.npy")
    embedder = Counting()
    assert mended(index, original, embedder).reused == 4
    assert set(embedder.asked) == {row["input"] for row in ROWS if row["id"] != "r2"}


def test_the_callers_function_is_needed_only_when_a_vector_is_lost(index, original):
    flip(index / "gen-000002" / "terms.npy")
    assert repair(index).embedded == 0
    assert answers(index) == original[1]
    for path in index.glob("gen-*"):
        shutil.rmtree(path)
    with pytest.raises(Incompatible, match="counting, which only its owner can bring"):
        repair(index)
    assert repair(index, embedder=Counting().source).embedded == 7
    assert answers(index) == original[1]


def test_another_embedder_embeds_everything_and_says_so(index):
    for path in index.glob("gen-*"):
        shutil.rmtree(path)
    notes: list[str] = []
    embedder = Counting(lambda texts: embed(texts)[:, :16] + 0.5)
    made = repair(index, embedder=embedder.source, note=notes.append)
    assert (made.reused, made.embedded) == (0, 11)
    assert len(set(embedder.asked)) == 11
    assert any("all 11 texts are embedded again" in line for line in notes)
    assert verify(index).intact


def test_prompts_of_the_embedder_stay(tmp_path):
    prompts = Prompts("query: ", "passage: ")
    source = Counting(prompts=prompts).source
    Retriever.build(ROWS, tmp_path / "i", embedder=source, weight=0.5).close()
    before = answers(tmp_path / "i", source)
    shutil.rmtree(tmp_path / "i" / "gen-000001")
    repair(tmp_path / "i", embedder=Counting(prompts=prompts).source)
    assert answers(tmp_path / "i", source) == before


def test_settings_of_an_overwriting_build_are_not_confused_with_those_of_the_generation_before(tmp_path):
    root = tmp_path / "i"
    Retriever.build(ROWS, root, embedder=Counting().source, weight=0.2).close()
    settings = IndexSettings(analyzer="char:3", bm25="okapi")
    source = FunctionEmbedder(lambda texts: embed(texts)[:, :8] + 0.5, name="other")
    Retriever.build(MORE, root, embedder=source, weight=0.7, settings=settings, overwrite=True).close()
    before = answers(root, source)
    (root / "gen-000002" / "manifest.json").unlink()
    repair(root, embedder=source)
    assert answers(root, source) == before


def test_a_generation_that_holds_damage_does_not_stop_one_that_does_not_from_being_used(index, original):
    for name in ("rows.npy", "ids.npy"):
        flip(index / "gen-000001" / name)
    flip(index / "gen-000002" / "lengths.npy")
    embedder = Counting()
    assert mended(index, original, embedder).embedded == 0
    assert embedder.asked == []


def edit(root: Path, sql: str) -> None:
    connection = sqlite3.connect(root / "pool.sqlite")
    with connection:
        connection.execute(sql)
    connection.close()


@pytest.mark.parametrize(
    "sql",
    [
        "UPDATE examples SET payload = replace(payload, 'card', 'CARD') WHERE row = 1",
        "UPDATE examples SET id = 'x' WHERE row = 11",
        "UPDATE vectors SET vector = zeroblob(128) WHERE row = 12",
        "DELETE FROM examples WHERE row = 12",
        "DELETE FROM examples WHERE row = 3",
        "UPDATE examples SET removed = NULL",
        "UPDATE examples SET removed = 2 WHERE row = 5",
        "DROP TABLE vectors",
    ],
)
@pytest.mark.parametrize("derived", ["intact", "lengths.npy", "manifest.json"])
def test_a_damaged_pool_is_refused_by_name_and_nothing_is_published(index, sql, derived):
    edit(index, sql)
    if derived != "intact":
        flip(index / "gen-000002" / derived)
    before = content(index / "gen-000001") | content(index / "gen-000002")
    current = (index / "CURRENT").read_bytes()
    with pytest.raises(IndexCorrupt) as caught:
        repair(index, embedder=Counting().source)
    assert (caught.value.path, caught.value.exit_code) == (index / "pool.sqlite", 4)
    assert "copy" in caught.value.fix
    assert content(index / "gen-000001") | content(index / "gen-000002") == before
    assert (index / "CURRENT").read_bytes() == current


def test_a_pool_from_an_older_copy_is_refused_even_without_an_intact_generation(tmp_path):
    root = tmp_path / "i"
    with Retriever.build(ROWS, root, embedder=Counting().source) as retriever:
        retriever.add(MORE)
    shutil.copytree(root, tmp_path / "copy")
    with Retriever.open(root, embedder=Counting().source) as retriever:
        retriever.add(LAST)
    shutil.copy(tmp_path / "copy" / "pool.sqlite", root / "pool.sqlite")
    flip(root / "gen-000001" / "lengths.npy")
    with pytest.raises(IndexCorrupt, match="does not hold what was written up to revision 3"):
        repair(root, embedder=Counting().source)


def test_a_damaged_vector_in_the_pool_never_takes_the_place_of_an_intact_one(tmp_path):
    root = tmp_path / "i"
    with Retriever.build(ROWS, root, embedder=Counting().source) as retriever:
        retriever.add(MORE)
        retriever.compact()
    before = answers(root)
    shutil.rmtree(root / "gen-000001")
    edit(root, "UPDATE vectors SET vector = zeroblob(128)")
    flip(root / "gen-000002" / "lengths.npy")
    repair(root, embedder=Counting().source)
    assert answers(root) == before


def test_an_index_of_sqlites_own_that_is_damaged_is_made_anew(index, original):
    connection = sqlite3.connect(index / "pool.sqlite")
    connection.execute("PRAGMA writable_schema = ON")
    (root_page,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'examples_id'").fetchone()
    (size,) = connection.execute("PRAGMA page_size").fetchone()
    connection.close()
    path = index / "pool.sqlite"
    body = bytearray(path.read_bytes())
    place = body.index(b"r5", (root_page - 1) * size)
    body[place : place + 2] = b"r6"
    path.write_bytes(body)
    assert [problem.repairable for problem in verify(index).problems] != []
    assert repair(index) == Repair(None)
    assert verify(index).intact
    assert answers(index) == original[1]


@pytest.fixture
def folded(tmp_path):
    """Three generations were published, so that the pool has dropped vectors of its first changes."""
    root = tmp_path / "folded"
    with Retriever.build(ROWS, root, embedder=Counting().source) as retriever:
        for one in (MORE[0], MORE[1]):
            retriever.add(one)
            retriever.compact()
        retriever.add(MORE[2])
        retriever.compact()
        retriever.add(LAST)
    return root


def test_after_many_generations_the_history_is_checked_from_the_one_before(folded):
    before = answers(folded)
    flip(folded / "gen-000004" / "manifest.json")
    assert repair(folded).embedded == 0
    assert answers(folded) == before


def test_a_lost_change_is_found_after_many_generations_too(folded):
    edit(folded, "DELETE FROM examples WHERE row = 12")
    flip(folded / "gen-000004" / "manifest.json")
    with pytest.raises(IndexCorrupt, match="does not hold what was written"):
        repair(folded, embedder=Counting().source)


def test_with_no_generation_left_to_tell_the_pool_is_taken_as_it_is_and_that_is_said(folded):
    before, notes = answers(folded), []
    for path in folded.glob("gen-*"):
        shutil.rmtree(path)
    repair(folded, embedder=Counting().source, note=notes.append)
    assert notes == ["no generation is left that tells whether the pool holds every change: it is taken as it is"]
    assert answers(folded) == before


def test_what_nobody_listens_to_is_logged_as_a_warning(folded, caplog):
    for path in folded.glob("gen-*"):
        shutil.rmtree(path)
    repair(folded, embedder=Counting().source)
    line = "no generation is left that tells whether the pool holds every change: it is taken as it is"
    assert caplog.record_tuples == [("retriever", logging.WARNING, line)]


def test_a_build_over_a_damaged_generation_tells_of_the_damage(folded):
    flip(folded / "gen-000004" / "vectors.npy")
    notes = []
    Retriever.build(ROWS, folded, embedder=Counting().source, weight=0.5, overwrite=True, note=notes.append).close()
    assert [note.partition(":")[0] for note in notes] == ["DAMAGED INDEX"]
    assert "gen-000003" in notes[0]


def test_a_generation_that_current_never_named_is_no_witness_against_the_pool(index, original):
    # A writer that was killed before CURRENT, whose revision another one has used since.
    shutil.copytree(index / "gen-000002", index / "gen-000003")
    path = index / "gen-000003" / "manifest.json"
    manifest = json.loads(path.read_bytes())
    del manifest["sha256"]
    manifest["pool"] |= {"revision": 3, "chain": "a" * 64, "rows": 99}
    body = json.dumps(manifest, ensure_ascii=False, indent=1, sort_keys=True)
    manifest["sha256"] = hashlib.sha256(body.encode()).hexdigest()
    path.write_text(json.dumps(manifest, ensure_ascii=False, indent=1, sort_keys=True))
    assert mended(index, original, Counting()) == Repair(None)


class TestLatent:
    """The embedder that was fitted on the pool is a part of the index itself."""

    @pytest.fixture
    def latent(self, tmp_path):
        Retriever.build(ROWS, tmp_path / "i", embedder="latent", weight=0.5, note=lambda line: None).close()
        return tmp_path / "i"

    @pytest.mark.parametrize(
        "name", ["manifest.json", "vectors.npy", "embedder_idf.npy", "embedder_vocabulary.npy", "lengths.npy"]
    )
    def test_it_is_fitted_again_to_the_same_bytes(self, latent, name):
        before = answers(latent, "latent")
        (latent / "gen-000001" / name).unlink()
        assert repair(latent).generation is not None
        assert answers(latent, "latent") == before
        assert verify(latent).intact

    def test_it_is_fitted_again_when_every_generation_is_gone(self, latent):
        before = answers(latent, "latent")
        shutil.rmtree(latent / "gen-000001")
        (latent / "CURRENT").unlink()
        assert repair(latent).embedded == 8
        assert answers(latent, "latent") == before

    def test_what_it_has_learned_is_used_again_after_the_pool_has_grown(self, latent):
        with Retriever.open(latent) as retriever:
            retriever.add(MORE)
        before = answers(latent, "latent")
        (latent / "gen-000001" / "vectors.npy").unlink()
        assert repair(latent).reused == 3
        assert answers(latent, "latent") == before


def test_without_an_index_there_is_nothing_to_repair(tmp_path):
    with pytest.raises(IndexMissing):
        repair(tmp_path / "nowhere")
    assert list(tmp_path.iterdir()) == []


def test_a_repair_waits_for_no_writer(index):
    with writing(index), pytest.raises(IndexLocked):
        repair(index)


def test_an_index_with_faiss_is_repaired_too(tmp_path):
    source = Counting().source
    settings = IndexSettings(ann="Flat")
    Retriever.build(ROWS, tmp_path / "i", embedder=source, weight=0.5, settings=settings).close()
    before = answers(tmp_path / "i")
    flip(tmp_path / "i" / "gen-000001" / "ann.faiss")
    assert repair(tmp_path / "i").embedded == 0
    assert answers(tmp_path / "i") == before
    assert np.isfinite([one.score for one in Retriever.open(tmp_path / "i", embedder=source).select("card")]).all()

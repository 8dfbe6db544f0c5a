"""The FAISS index that is chosen: its recall is measured, is what a search has, filters included, and is stored."""

import json
from dataclasses import replace

import numpy as np
import pytest
from support import build, embed, fail, run

from indexes import ann_choice
from indexes.ann import AnnIndex, predicted_bytes
from indexes.ann_choice import Sample, candidates, choose, planned_bytes
from indexes.dense import DenseIndex, Segment, exact_scores
from indexes.errors import InvalidInput
from indexes.vector_storage import VectorRows
from retriever import Example, IndexSettings, Retriever

COUNT, DIM = 12_000, 32
PROPOSALS = 30  # so that a pool that fits into a test has as many cells for each proposal as a large one
UNFILTERED = ["PQ8x4fs", "NSG16,Flat", "PQ8x4fs,RFlat"]


@pytest.fixture(scope="module", autouse=True)
def few_proposals():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("indexes.ann.PROPOSALS", PROPOSALS)
        patch.setattr("indexes.ann_choice.PROPOSALS", PROPOSALS)
        yield


def clustered(seed, count=COUNT, dim=DIM):
    generator = np.random.default_rng(seed)
    centres = np.random.default_rng(0).standard_normal((60, dim))
    vectors = centres[generator.integers(0, 60, count)] + 0.8 * generator.standard_normal((count, dim))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


POOL = clustered(1)
QUERIES = clustered(2, 40)


def nearest(eligible, query, depth=10):
    rows = np.arange(COUNT) if eligible is None else np.flatnonzero(eligible)
    return rows[np.lexsort((rows, -exact_scores(POOL[rows], query)))[:depth]]


def recall(ann, eligible):
    """Against brute force, of what is proposed and scored exactly."""
    index, found = DenseIndex([Segment.of(POOL)], ann), []
    for query in QUERIES:
        rows = index.propose(query, PROPOSALS, eligible)
        assert eligible is None or eligible[rows].all()
        assert (np.diff(rows) > 0).all()
        best = rows[np.lexsort((rows, -index.exact(rows, query)))[:10]]
        found.append(len(np.intersect1d(best, nearest(eligible, query))) / len(nearest(eligible, query)))
    return np.mean(found)


def share(part, seed=3):
    return np.random.default_rng(seed).random(COUNT) < part


@pytest.fixture(scope="module")
def chosen():
    return choose(VectorRows(POOL), factory="IVF256,SQ8", target=0.97)


# What is measured


def test_the_sample_counts_the_ten_nearest_others_and_leaves_out_copies():
    vectors = np.concatenate([POOL[:300], POOL[:300]])
    sample = Sample.of(VectorRows(vectors))
    for query, least, wanted in zip(sample.queries, sample.least, sample.wanted, strict=True):
        scores = exact_scores(vectors, query)
        others = np.sort(scores[scores < 0.998])[::-1]
        assert wanted == 10
        assert least == pytest.approx(others[9], abs=1e-4)
        assert np.count_nonzero((scores >= least) & (scores < 0.998)) >= 10


def test_an_index_that_finds_everything_has_recall_1():
    rows = VectorRows(POOL)
    assert Sample.of(rows).recall(AnnIndex.build("Flat", rows)) == 1.0


@pytest.mark.parametrize("vectors", [POOL[:0], np.zeros((30, DIM), np.float32), POOL[:1]], ids=["none", "zero", "one"])
def test_rows_without_neighbours_are_not_counted(vectors):
    rows = VectorRows(vectors)
    assert Sample.of(rows).recall(AnnIndex.build("Flat", rows)) == 1.0


def test_the_least_effort_finds_as_many_rows_as_are_proposed(monkeypatch):
    monkeypatch.setattr("indexes.ann.PROPOSALS", 300)
    for factory, effort in (
        ("HNSW16", 300),
        ("IVF100,SQ8", 15),
        ("Flat", 1),
    ):  # 15 of 100 cells hold twice 300 of 4,000
        ann = AnnIndex.build(factory, VectorRows(POOL[:4000]))
        assert ann.effort == effort
        assert min(len(ann.search(query, 300, None)) for query in QUERIES) >= 150


def test_less_effort_is_measured_as_less_recall():
    rows = VectorRows(POOL)
    sample, ann = Sample.of(rows), AnnIndex.build("IVF256,SQ8", rows)
    measured = []
    for effort in (1, 4, 16, 256):
        ann.effort = effort
        measured.append(sample.recall(ann))
    assert measured == sorted(measured)
    assert measured[0] < 0.9 < measured[-1]


# What is chosen


def test_effort_is_raised_until_the_target_is_measured(chosen):
    ann, report = chosen
    assert report.recall >= 0.97
    assert report.used == report.tried[-1]
    assert [one.recall >= 0.97 for one in report.tried] == [False] * (len(report.tried) - 1) + [True]
    assert report.used.parameters == ann.parameters == {"nprobe": ann.effort}
    assert report.note() is None


def test_the_measured_recall_is_that_of_other_queries(chosen):
    ann, report = chosen
    assert recall(ann, None) >= report.recall - 0.03


def test_the_same_rows_give_the_same_bytes_and_the_same_report(chosen):
    ann, report = choose(VectorRows(POOL.copy()), factory="IVF256,SQ8", target=0.97)
    assert (ann.to_bytes(), report) == (chosen[0].to_bytes(), chosen[1])


def test_a_factory_without_a_target_is_measured_as_it_is_and_a_low_recall_is_told():
    ann, report = choose(VectorRows(POOL), factory="PQ8x4fs")
    assert (report.used.factory, report.used.parameters, report.target) == ("PQ8x4fs", {}, None)
    assert report.recall == Sample.of(VectorRows(POOL)).recall(ann)
    low = replace(report, recall=0.5)
    assert "--recall" in low.note()


def test_few_rows_are_searched_exactly():
    assert choose(VectorRows(POOL), target=0.98) == (None, ann_choice.AnnReport(None, 1.0, 0, 0.98, ()))
    assert planned_bytes(None, 0.98, 199_999, 384, None) == 0


def test_many_rows_get_the_first_candidate_that_reaches_the_target_with_any_effort(monkeypatch):
    monkeypatch.setattr(ann_choice, "EXACT_BELOW", 1000)
    ann, report = choose(VectorRows(POOL), target=0.9)
    bits, bytes_ = (
        [one for one in report.tried if one.factory == factory] for factory in ("IVF128,RaBitQ", "IVF128,SQ8")
    )
    assert report.tried == (*bits, *bytes_)
    assert all(one.recall < 0.9 for one in bits)  # 32 bits tell too little
    assert bits[-1].parameters == {"nprobe": 128}
    assert report.used == bytes_[-1]
    assert ann.parameters == report.used.parameters
    assert planned_bytes(None, 0.9, COUNT, DIM, None) == predicted_bytes("IVF128,RaBitQ", COUNT, DIM)


def test_where_none_reaches_the_target_the_search_is_exact_and_the_note_says_what_was_measured():
    ann, report = choose(VectorRows(clustered(5, 6000, 128)), factory="PQ2x4fs", target=0.999)
    assert (ann, report.used, report.recall) == (None, None, 1.0)
    assert report.tried[0].recall < 0.999
    assert f"PQ2x4fs: recall {report.tried[0].recall:.3f}" in report.note()


def test_where_none_fits_the_search_is_exact_and_the_note_says_so(monkeypatch):
    monkeypatch.setattr(ann_choice, "EXACT_BELOW", 1000)
    ann, report = choose(VectorRows(POOL), target=0.9, room=1000)
    assert (ann, report.tried) == (None, ())
    assert "nothing fits into the memory" in report.note()


def test_candidates_suit_the_number_of_rows_and_fit_into_the_room():
    assert candidates(1_000_000, 384, None) == ["IVF1024,RaBitQ", "IVF1024,SQ8"]
    assert candidates(10_000_000, 384, None) == ["IVF4096,RaBitQ", "IVF4096,SQ8"]
    assert candidates(1_000_000, 384, 100 << 20) == ["IVF1024,RaBitQ"]
    assert candidates(1_000_000, 384, 10 << 20) == []


@pytest.mark.parametrize(
    "factory",
    ["Flat", "HNSW16", "IVF64,Flat", "IVF64,SQ8", "IVF64,RaBitQ", "PCA16,IVF64,SQ8", "IVF64,SQ8,RFlat"],
)
def test_the_predicted_size_is_that_of_the_index_but_for_a_tenth(factory):
    built = len(AnnIndex.build(factory, VectorRows(POOL[:4000])).to_bytes())
    assert built <= 1.1 * predicted_bytes(factory, 4000, DIM)
    assert predicted_bytes(factory, 4000, DIM) <= 1.35 * built


def test_a_factory_string_that_faiss_does_not_know_is_refused_before_there_are_rows():
    with pytest.raises(InvalidInput, match="FAISS refuses 'no such'"):
        predicted_bytes("no such", 1000, DIM)


# Filters


@pytest.mark.parametrize("part", [0.0005, 0.02, 0.3, 0.9, 0.97])
def test_a_filter_keeps_the_recall(chosen, monkeypatch, part):
    monkeypatch.setattr("indexes.ann._FEW_ELIGIBLE", 100)  # else all rows of so small a pool are proposed
    assert recall(chosen[0], share(part)) >= chosen[1].recall - 0.03


@pytest.mark.parametrize("part", [0.02, 0.3, 0.9])
def test_a_filter_that_goes_with_the_vectors_keeps_the_recall(chosen, monkeypatch, part):
    monkeypatch.setattr("indexes.ann._FEW_ELIGIBLE", 100)
    along = POOL[:, 0] > np.quantile(POOL[:, 0], 1 - part)
    assert recall(chosen[0], along) >= chosen[1].recall - 0.03


@pytest.mark.parametrize("factory", [*UNFILTERED, "HNSW16", "IVF64,PQ8x4fs", "IVF64,RaBitQ"])
def test_a_filter_works_with_every_kind_of_index(monkeypatch, factory):
    monkeypatch.setattr("indexes.ann._FEW_ELIGIBLE", 20)
    ann = AnnIndex.build(factory, VectorRows(POOL[:2000]))
    assert ann.filters == (factory not in UNFILTERED)
    for part in (0.0, 0.02, 0.4, 0.99):
        eligible = share(part)[:2000]
        for query in QUERIES[:5]:
            proposed = ann.propose(query, 50, eligible)
            assert eligible[proposed].all()
            assert 2 * len(proposed) >= min(50, np.count_nonzero(eligible))


@pytest.mark.parametrize("part", [None, 0.5], ids=["all", "half"])
def test_more_rows_asked_for_are_searched_for_as_much_harder(chosen, monkeypatch, part):
    monkeypatch.setattr("indexes.ann._FEW_ELIGIBLE", 100)
    eligible = None if part is None else share(part)
    count, index = 10 * PROPOSALS, chosen[0]
    for query in QUERIES[:10]:
        scores = POOL @ query if eligible is None else np.where(eligible, POOL @ query, -2)
        nearest = set(np.argsort(-scores, kind="stable")[:count].tolist())
        found = index.propose(query, count, eligible).tolist()
        assert len(nearest & set(found)) >= 0.8 * count


def test_few_eligible_rows_are_all_proposed(chosen):
    eligible = share(0.01)
    assert chosen[0].propose(QUERIES[0], 50, eligible).tolist() == np.flatnonzero(eligible).tolist()


# In an index


def examples(count):
    words = ("card", "refund", "login", "fee", "lost", "late", "again", "mail", "bank", "note", "euro")
    return [
        Example(f"e{i}", " ".join(words[i * step % 11] for step in (1, 3, 7, 5)) + f" {i}", output=f"o{i % 3}")
        for i in range(count)
    ]


def test_the_measured_recall_is_in_the_manifest_and_the_information(tmp_path, monkeypatch):
    monkeypatch.setattr(ann_choice, "EXACT_BELOW", 100)
    with build(examples(400), tmp_path / "a", weight=0.5, settings=IndexSettings(recall=0.95)) as index:
        shown = index.info()["ann"]
        assert shown == index.snapshot.base.generation.manifest["ann"]
        assert shown["factory"] == "IVF16,RaBitQ"
        assert (shown["target"], shown["at"], shown["sample"]) == (0.95, 10, 200)
        assert shown["recall"] >= 0.95
        assert shown["tried"][-1] == [shown["factory"], shown["parameters"], shown["recall"]]
        assert len(index.select("card lost 7", k=5)) == 5


def test_a_small_pool_with_a_recall_is_exact_and_has_no_faiss_file(tmp_path):
    with build(examples(50), tmp_path / "a", weight=0.5, settings=IndexSettings(recall=0.95)) as index:
        assert (index.info()["ann"]["factory"], index.info()["ann"]["recall"]) == (None, 1.0)
        assert "ann.faiss" not in index.snapshot.base.generation.buffers


def test_memory_bounds_the_choice_and_is_remembered(tmp_path, monkeypatch):
    monkeypatch.setattr(ann_choice, "EXACT_BELOW", 100)
    plans, notes = [], []
    settings = IndexSettings(recall=0.95)
    options = {"weight": 0.5, "settings": settings, "on_plan": plans.append, "note": notes.append}
    build(examples(400), tmp_path / "free", **options).close()
    assert plans[0].ann_bytes > 0
    without = replace(plans[0], ann_bytes=0)
    with build(examples(400), tmp_path / "tight", max_memory=without.memory_bytes, **options) as index:
        assert index.info()["ann"]["factory"] is None
        assert plans[1] == without
        assert len(notes) == 1
        assert "nothing fits into the memory" in notes[0]
        index.add(examples(410)[400:])
        index.compact()
        assert index.info()["ann"]["factory"] is None


def test_a_compaction_chooses_as_a_rebuild_does(tmp_path, monkeypatch):
    monkeypatch.setattr(ann_choice, "EXACT_BELOW", 100)
    settings = IndexSettings(recall=0.95, vectors="float16")
    with (
        build(examples(420), tmp_path / "whole", weight=0.5, settings=settings) as whole,
        build(examples(380), tmp_path / "grown", weight=0.5, settings=settings) as grown,
    ):
        grown.add(examples(420)[380:])
        grown.compact()
        one, other = (index.snapshot.base.generation for index in (whole, grown))
        assert one.buffers["ann.faiss"] == other.buffers["ann.faiss"]
        assert json.dumps(one.manifest["ann"]) == json.dumps(other.manifest["ann"])


def test_a_removed_row_does_not_make_an_index_that_cannot_filter_search_exactly(tmp_path):
    build(examples(300), tmp_path / "a", weight=0.5, settings=IndexSettings(ann="PQ8x4fs"), note=print).close()
    with Retriever.open(tmp_path / "a", embedder=embed, note=fail) as index:
        index.remove(["e7"])
        ids = [d.example.id for d in index.select("card refund fee 7", k=8, mode="dense")]
        assert len(ids) == 8
        assert "e7" not in ids


@pytest.mark.parametrize("recall", [0, -0.1, 1.01, float("nan")])
def test_a_recall_that_is_no_share_is_refused(recall):
    with pytest.raises(InvalidInput, match="recall"):
        IndexSettings(recall=recall)


def test_the_command_line_takes_a_recall(tmp_path):
    pool = tmp_path / "pool.jsonl"
    pool.write_text("".join(json.dumps({"input": e.input_text, "output": "o"}) + "\n" for e in examples(60)))
    options = ["build", pool, "-o", tmp_path / "i", "--embedder", "latent", "--weight", "0.5", "--json"]
    made = run(*options, "--ann", "IVF4,SQ8", "--recall", "0.95", "--vectors", "int8")
    assert made.exit_code == 0
    shown = json.loads(made.stdout)
    assert (shown["ann"]["target"], shown["settings"]["vectors"]) == (0.95, "int8")
    assert run(*options, "--overwrite", "--recall", "2").exit_code == 2

"""Row types: what is stored, what it stands for, and that no fast path changes a score or an order."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import build, embed

from indexes.channels import Fusion, Query
from indexes.dense import DenseIndex, Segment, exact_scores
from indexes.errors import InvalidInput
from indexes.generation import generations
from indexes.hybrid import HybridIndex
from indexes.lexical import BM25Index, Postings
from indexes.vector_storage import TYPES, VectorRows, gives, row_bytes
from retriever import Example, IndexSettings, Retriever
from retriever.errors import IndexCorrupt
from retriever.repair import repair

ROUNDED = ["float16", "int8"]


def unit(seed, rows, dim):
    vectors = np.random.default_rng(seed).standard_normal((rows, dim))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def bits(vectors):
    return vectors.view(np.uint32).tolist()


POOL = np.concatenate([unit(1, 3000, 48), np.zeros((2, 48), np.float32), np.eye(48, dtype=np.float32)])
QUERIES = unit(2, 6, 48)
EVERYTHING = np.arange(len(POOL))


@pytest.fixture(params=ROUNDED)
def kind(request):
    return request.param


# What is stored


def test_a_row_of_whole_numbers_has_127_at_its_largest_component_and_length_1():
    rows = VectorRows.of(np.array([[0.6, -0.8, 0.0]], np.float32), "int8")
    assert rows.values.tolist() == [[95, -127, 0]]  # 0.6 / 0.8 · 127 = 95.25
    length = np.sqrt(95**2 + 127**2)
    assert rows.scales.tolist() == [np.float32(1 / length)]
    assert rows.take(np.array([0]))[0] == pytest.approx([95 / length, -127 / length, 0], abs=1e-7)


def test_a_row_of_half_precision_is_each_component_rounded():
    vectors = unit(3, 5, 7)
    rows = VectorRows.of(vectors, "float16")
    assert rows.scales is None
    assert bits(rows.take(np.arange(5))) == bits(vectors.astype(np.float16).astype(np.float32))


def test_float32_rows_are_the_vectors_themselves():
    rows = VectorRows.of(POOL)
    assert rows.values is POOL
    assert bits(rows.take(EVERYTHING)) == bits(POOL)


def test_a_zero_row_stays_zero(kind):
    rows = VectorRows.of(POOL, kind)
    assert rows.zero_rows().tolist() == [3000, 3001]
    assert not rows.take(np.array([3000, 3001])).any()


@given(seed=st.integers(0, 10_000), dim=st.integers(1, 40), sparse=st.booleans(), kind=st.sampled_from(list(TYPES)))
def test_rounding_what_a_row_stands_for_gives_the_same_row_again(seed, dim, sparse, kind):
    vectors = unit(seed, 20, dim)
    if sparse:
        vectors[np.random.default_rng(seed).random((20, dim)) < 0.7] = 0
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        vectors = np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0)
    once = VectorRows.of(vectors, kind)
    again = VectorRows.of(once.take(np.arange(20)), kind)
    once.check("v")
    assert again.values.tobytes() == once.values.tobytes()
    assert kind != "int8" or again.scales.tobytes() == once.scales.tobytes()


@given(seed=st.integers(0, 10_000), dim=st.integers(1, 40))
def test_a_row_of_whole_numbers_is_off_by_half_a_step_and_what_makes_its_length_1(seed, dim):
    vectors = unit(seed, 20, dim).astype(np.float64)
    off = VectorRows.of(vectors.astype(np.float32), "int8").take(np.arange(20)) - vectors
    step = np.abs(vectors).max(axis=1) / 127
    assert (np.linalg.norm(off, axis=1) <= 2 * (0.51 * step * np.sqrt(dim)) + 1e-6).all()


def test_a_row_takes_what_its_type_takes_and_for_int8_four_bytes_more():
    assert [row_bytes(kind, 384) for kind in TYPES] == [1536, 768, 388]


def test_every_half_precision_number_that_a_vector_can_hold_is_widened_exactly():
    codes = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    codes = codes[np.abs(codes.astype(np.float32)) <= 1].reshape(-1, 1)  # no infinity, no NaN; subnormal ones are in it
    rows = VectorRows(codes)
    out = np.empty((1, len(codes)), np.float32)
    rows.products(np.ones((1, 1), np.float32), out)
    assert (out[0] == codes[:, 0].astype(np.float32)).all()


# What a search makes of it


def test_products_lie_within_the_bound_of_the_exact_scores(kind):
    index = DenseIndex([Segment.of(POOL[:1700], kind), Segment.of(POOL[1700:], kind)])
    scores = index.scores(QUERIES)
    for query, approximate in zip(QUERIES, scores, strict=True):
        assert np.abs(approximate - index.exact(EVERYTHING, query)).max() <= index.bound


@given(seed=st.integers(0, 10_000), dim=st.integers(1, 40), kind=st.sampled_from(list(TYPES)))
def test_the_bound_holds_where_all_products_have_one_sign(seed, dim, kind):
    vectors, query = np.abs(unit(seed, 30, dim)), np.abs(unit(seed + 1, 1, dim))
    index = DenseIndex([Segment.of(vectors, kind)])
    assert np.abs(index.scores(query)[0] - index.exact(np.arange(30), query[0])).max() <= index.bound


def test_exact_scores_are_those_of_the_vectors_that_the_rows_stand_for_to_the_last_bit(kind):
    stood_for = VectorRows.of(POOL, kind).take(EVERYTHING)
    index = DenseIndex([Segment.of(POOL[:100], kind), Segment.of(POOL[100:], kind)])
    for query in QUERIES:
        assert index.exact(EVERYTHING, query).tobytes() == exact_scores(stood_for, query).tobytes()


def test_the_best_are_those_of_a_full_sort_however_many_queries_are_asked_at_once(kind):
    stood_for = VectorRows.of(POOL, kind).take(EVERYTHING)
    lexical = BM25Index([Postings.from_documents([()] * len(POOL))])
    index = HybridIndex(DenseIndex([Segment.of(POOL, kind)]), lexical)
    queries = [Query(vector) for vector in QUERIES]
    together = list(index.score(queries))
    for query, several in zip(queries, together, strict=True):
        expected = exact_scores(stood_for, query.vector)
        order = np.lexsort((EVERYTHING, -expected))[:20]
        for scores in (several, next(index.score([query]))):
            hits = index.rank(scores, 20, Fusion("dense"))
            assert hits.rows.tolist() == order.tolist()
            assert hits.dense.tobytes() == expected[order].tobytes()


# What is refused


def test_rows_of_every_type_are_accepted(kind):
    VectorRows.of(POOL, kind).check("v")
    VectorRows.of(POOL[:0], kind).check("v")


@pytest.mark.parametrize(
    ("values", "scales", "message"),
    [
        ([[np.nan, 0]], None, "row 0 has length nan"),
        ([[1, 0], [0.99, 0]], None, "row 1 has length 0.9"),
        ([[1, 0]], [1.0], "of type float16 with scales"),
    ],
)
def test_half_precision_rows_of_another_length_are_refused(values, scales, message):
    rows = VectorRows(np.array(values, np.float16), None if scales is None else np.array(scales, np.float32))
    with pytest.raises(InvalidInput, match=message):
        rows.check("v")


@pytest.mark.parametrize(
    ("values", "scales", "message"),
    [
        ([[127, 0], [127, 0]], [1 / 127, 0.5], "row 1 with the scale 0.5"),
        ([[127, 0]], [np.nan], "row 0 with the scale nan"),
        ([[0, 0]], [1.0], "row 0 with the scale 1.0"),
        ([[100, 0]], [1 / 100], "components up to 100"),
        ([[-128, 0]], [1 / 128], "components up to 128"),
        ([[127, 0]], None, "of type int8 with scales None"),
        ([[127, 0]], [1 / 127, 1 / 127], "of type int8 with scales"),
    ],
)
def test_rows_of_whole_numbers_in_another_form_are_refused(values, scales, message):
    rows = VectorRows(np.array(values, np.int8), None if scales is None else np.array(scales, np.float32))
    with pytest.raises(InvalidInput, match=message):
        rows.check("v")


def test_rows_stand_for_their_vectors_only_where_nothing_is_lost():
    able = [(kind, wanted) for kind in TYPES for wanted in TYPES if gives(kind, wanted)]
    assert able == [
        ("float32", "float32"),
        ("float32", "float16"),
        ("float32", "int8"),
        ("float16", "float16"),
        ("int8", "int8"),
    ]


# In an index


def texts(count, start=0):
    return [
        Example(f"e{i}", f"card {i % 7} refund {i * 31 % 17} late", output=f"o{i % 3}") for i in range(start, count)
    ]


def content(path):
    newest = path / generations(path)[-1]
    return {file.name: file.read_bytes() for file in newest.iterdir() if file.name != "manifest.json"}


def counting(asked):
    def encode(texts):
        asked.extend(texts)
        return embed(texts)

    return encode


def test_an_index_of_each_type_says_so_and_takes_the_room_of_its_type(tmp_path):
    for kind in TYPES:
        with build(texts(60), tmp_path / kind, weight=0.5, settings=IndexSettings(vectors=kind)) as index:
            assert index.info()["settings"]["vectors"] == kind
        files = content(tmp_path / kind)
        room = (
            len(files["vectors.npy"]) - 128 + len(files.get("vector_scales.npy", b"")) - (128 if kind == "int8" else 0)
        )
        assert room == 60 * row_bytes(kind, 32)


def test_additions_are_answered_as_by_a_rebuild_and_a_compaction_is_one(tmp_path, kind):
    settings = IndexSettings(vectors=kind)
    ways = ({"mode": "dense"}, {}, {"fusion": "rrf"}, {"strategy": "mmr"})
    with (
        build(texts(80), tmp_path / "whole", weight=0.5, settings=settings) as whole,
        build(texts(50), tmp_path / "grown", weight=0.5, settings=settings) as grown,
    ):
        grown.add(texts(80, 50))
        shown = [[(d.example.id, d.score) for d in grown.select("card 3 late", k=9, **way)] for way in ways]
        assert shown == [[(d.example.id, d.score) for d in whole.select("card 3 late", k=9, **way)] for way in ways]
        grown.compact()
        assert content(tmp_path / "grown") == content(tmp_path / "whole")


def test_a_repair_gives_the_same_bytes_and_embeds_nothing(tmp_path, kind):
    path = tmp_path / "pool.index"
    build(texts(40), path, weight=0.5, settings=IndexSettings(vectors=kind)).close()
    before = content(path)
    damaged = path / generations(path)[-1] / "lengths.npy"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"\xff")
    assert repair(path, embedder=embed).embedded == 0
    assert content(path) == before


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("wanted", TYPES)
def test_building_again_in_another_type_embeds_again_only_what_was_rounded(tmp_path, kind, wanted):
    asked = []
    for path, settings in (("pool", kind), ("pool", wanted), ("fresh", wanted)):
        first, overwrite = len(asked), (tmp_path / path).exists()
        settings = IndexSettings(vectors=settings)
        options = {"embedder": counting(asked), "weight": 0.5, "settings": settings, "overwrite": overwrite}
        build(texts(30), tmp_path / path, **options).close()
        if overwrite:
            again = asked[first:]
    again_bytes, fresh = (content(tmp_path / path) for path in ("pool", "fresh"))
    again_bytes["rows.npy"] = fresh["rows.npy"]  # the pool has given the examples new rows
    assert again_bytes == fresh
    assert {example.input_text for example in texts(30)}.isdisjoint(again) == gives(kind, wanted)


def test_a_missing_or_exchanged_file_of_scales_is_damage(tmp_path):
    path = tmp_path / "pool.index"
    build(texts(20), path, weight=0.5, settings=IndexSettings(vectors="int8")).close()
    scales = path / generations(path)[-1] / "vector_scales.npy"
    scales.write_bytes(scales.read_bytes()[:-1] + b"\xff")
    with pytest.raises(IndexCorrupt, match="vector_scales"):
        Retriever.open(path, embedder=embed)

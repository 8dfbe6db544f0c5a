"""The benchmarks of fast paths, small: what they count, and what they would find."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

import _synthetic as synthetic
import agreement
import batch
import warm

from retriever import Example, Retriever


def test_selections_are_the_same_only_with_the_same_ids_order_and_bits():
    slow = [[[["a", 0.5], ["b", 0.25]], [["c", 1.0]]]]
    assert agreement.compared(slow, slow) == {"selections": 2, "same": 2, "kept": 1.0, "largest_difference": 0.0}
    turned = [[[["b", 0.25], ["a", 0.5]], [["c", 1.0 + 2**-52]]]]
    assert agreement.compared(slow, turned) == {"selections": 2, "same": 0, "kept": 1.0, "largest_difference": 2**-52}
    others = [[[["a", 0.5], ["x", 0.25]], [["y", 1.0]]]]
    assert agreement.compared(slow, others)["kept"] == pytest.approx(1 / 3)


def test_a_way_selects_for_every_recipe_and_query(tmp_path):
    folder, index = tmp_path / "data", tmp_path / "i"
    folder.mkdir()
    for name, count in (("pool", 12), ("queries", 3)):
        lines = [f'{{"id": "{name}{i}", "input": "card {i}", "output": "{i}"}}' for i in range(count)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    Retriever.build(folder / "pool.jsonl", index, embedder="latent", weight=0.5).close()
    ways = [agreement.selected(way, index, folder, 3) for way in (agreement.SLOW, agreement.Way("block", block=True))]
    assert [len(recipe) for recipe in ways[0]] == [3] * len(agreement.RECIPES)
    assert agreement.compared(*ways)["same"] == 3 * len(agreement.RECIPES)


@pytest.mark.parametrize(
    ("file", "function", "place"),
    [
        (str(warm._ROOT / "indexes" / "dense.py"), "scores", "indexes.dense"),
        ("~", "<method 'fetchall' of 'sqlite3.Cursor' objects>", "SQLite"),
        ("~", "<method 'reduce' of 'numpy.ufunc' objects>", "NumPy"),
        ("~", "<built-in method builtins.len>", "Python's own"),
    ],
)
def test_time_counts_to_the_module_that_spends_it(file, function, place):
    assert warm.where(file, function) == place


def test_shares_of_a_warm_selection_add_up_to_one(tmp_path):
    embed, queries = synthetic.Embedder(8), synthetic.texts(warm._WARM + 3, seed=1)
    pool = (Example(f"e{i}", text, output="o") for i, text in enumerate(synthetic.texts(40)))
    with Retriever.build(pool, tmp_path / "i", embedder=embed, weight=0.5) as index:
        found = warm.measure(index, queries, embed(queries), {"strategy": "mmr"})
    assert found["ms"] > 0
    assert sum(found["shares"].values()) == pytest.approx(1)
    assert "indexes.dense" in found["shares"]


def test_an_export_is_measured_beside_its_limit(tmp_path):
    row = batch.measure(queries=3, examples=30, dim=384, repeats=1, mode="hybrid", folder=tmp_path)
    assert set(row.times) == {synthetic.OURS, batch.LIMIT}
    assert (tmp_path / "0.jsonl").read_text(encoding="utf-8").count("\n") == 3

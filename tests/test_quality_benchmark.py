"""The quality benchmark, on pools small enough to know every figure."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from retriever import Retriever
from tests.support import benchmark, embed

quality = benchmark("quality")

LABELS = ("alpha", "beta", "gamma")
POOL = [
    {"id": f"p{i}", "input": f"{LABELS[i % 3]} n{i}", "output": f"open {LABELS[i % 3]} door", "label": LABELS[i % 3]}
    for i in range(30)
]
QUERIES = [
    {"id": "q0", "input": "alpha", "output": "open alpha window", "label": "alpha"},
    {"id": "q1", "input": "beta", "output": "gate", "label": "gamma"},
]


def write_rows(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def without(field: str, rows: list[dict]) -> list[dict]:
    return [{name: value for name, value in row.items() if name != field} for row in rows]


def labelled(folder: Path, pool: list[dict] = POOL, queries: list[dict] = QUERIES) -> Path:
    folder.mkdir()
    write_rows(folder / "pool.jsonl", pool)
    write_rows(folder / "queries.jsonl", queries)
    return folder


def judged(folder: Path, qrels: str) -> Path:
    folder.mkdir()
    documents = [{"id": str(i), "title": "", "text": f"plain text {i}"} for i in range(30)]
    documents[25] = {"id": "25", "title": "Zebra", "text": "striped animal"}
    write_rows(folder / "corpus.jsonl", documents)
    write_rows(folder / "queries.jsonl", [{"id": "7", "text": "nobody judged this"}, {"id": "25", "text": "zebra"}])
    (folder / "qrels.tsv").write_text(qrels, encoding="utf-8")
    return folder


def measured(folder: Path, guard: str = "off") -> quality.Result:
    data = quality.read_data_set(folder, 500)
    return quality.measure(data, folder / "x.index", k=4, guard=guard, embedder=embed)


def result(dense: float, hybrid: float) -> quality.Result:
    row = quality.Row("P@8", 10, {"BM25": 0.1, "dense": dense, "RRF": 0.2, "hybrid": hybrid})
    return quality.Result("toy", 30, "callable:embed", 0.7, "labels", [row], ())


def test_bm25_figures_are_those_derived_by_hand(tmp_path: Path) -> None:
    found = measured(labelled(tmp_path / "toy"))
    bm25 = {row.metric: row.means["BM25"] for row in found.rows}
    # q0 finds four alphas: all its label; {open, alpha, door} against {open, alpha, window} is 2 of 4, covering 2 of 3.
    # q1 finds four betas: none its label, no token in common.
    assert bm25 == pytest.approx({"P@4": 0.5, "hit@4": 0.5, "best overlap@4": 0.25, "union overlap@4": 1 / 3})
    assert (found.name, found.pool, found.objective, found.notes) == ("toy", 30, "labels", ())


def test_dense_figures_are_those_of_a_brute_force_search(tmp_path: Path) -> None:
    found = measured(labelled(tmp_path / "toy"))
    pool, queries = (embed([row["input"] for row in rows]).astype(np.float64) for rows in (POOL, QUERIES))
    cosines = queries @ (pool / np.linalg.norm(pool, axis=1, keepdims=True)).T
    nearest = np.argsort(-cosines, axis=1, kind="stable")[:, :4]
    shares = [
        np.mean([POOL[i]["label"] == query["label"] for i in rows])
        for query, rows in zip(QUERIES, nearest, strict=True)
    ]
    assert found.primary.means["dense"] == pytest.approx(np.mean(shares))


def test_the_recipes_are_the_channels_plain_rrf_and_the_defaults(tmp_path: Path) -> None:
    asked = {
        "BM25": ("lexical", 0.9, "convex"),
        "dense": ("dense", 0.9, "convex"),
        "RRF": ("hybrid", 0.5, "rrf"),
        "hybrid": ("hybrid", 0.9, "convex"),
    }
    with Retriever.build(POOL, tmp_path / "x.index", embedder=embed, weight=0.9) as retriever:
        for name, options in quality.RECIPES.items():
            used = retriever.select("alpha", **options).recipe.retrieve
            assert (used.mode, used.weight, used.rule) == asked[name]
    assert list(quality.RECIPES) == list(asked)


@pytest.mark.parametrize(
    ("change", "primary"),
    [
        (lambda rows: rows, "P@4"),
        (lambda rows: without("label", rows), "best overlap@4"),
        (lambda rows: [{**row, "label": [row["label"], "other"]} for row in rows], "best overlap@4"),
    ],
    ids=["single labels", "no labels", "several labels"],
)
def test_the_own_metric_is_precision_with_single_labels_and_else_best_overlap(
    tmp_path: Path, change: object, primary: str
) -> None:
    data = quality.read_data_set(labelled(tmp_path / "toy", change(POOL), change(QUERIES)), 500)
    assert quality.metrics(data, 4)[0].name == primary


def test_a_query_without_an_output_is_judged_by_its_label_alone(tmp_path: Path) -> None:
    queries = [QUERIES[0], *without("output", QUERIES[1:])]
    found = measured(labelled(tmp_path / "toy", queries=queries))
    assert {row.metric: row.queries for row in found.rows} == {
        "P@4": 2, "hit@4": 2, "best overlap@4": 1, "union overlap@4": 1
    }  # fmt: skip


def test_only_the_first_queries_are_asked(tmp_path: Path) -> None:
    data = quality.read_data_set(labelled(tmp_path / "toy"), 1)
    assert [query.id for query in data.queries] == ["q0"]


def test_queries_of_which_nothing_is_known_are_an_error(tmp_path: Path) -> None:
    folder = labelled(tmp_path / "toy", queries=[{"id": "q0", "input": "alpha"}])
    with pytest.raises(ValueError, match=r"^toy: no query has a label, an output or a relevance judgement$"):
        measured(folder)


@pytest.mark.parametrize("guard", ["off", "near"])
@pytest.mark.parametrize("header", ["", "query-id\tcorpus-id\tscore\n"], ids=["no header", "header"])
def test_a_retrieval_set_is_judged_by_ndcg_over_titles_and_texts(tmp_path: Path, header: str, guard: str) -> None:
    # The word is in a title only; query and document share the number 25, and the guard must not mistake one for the
    # other. The document of grade 2 shares nothing with the query and stands too late to be among ten.
    found = measured(judged(tmp_path / "toy", f"{header}25\t25\t1\n25\t29\t2\n7\t3\t0\n"), guard)
    assert [(row.metric, row.queries) for row in found.rows] == [("nDCG@10", 1)]
    assert found.primary.means["BM25"] == pytest.approx(1 / (2 + 1 / math.log2(3)))
    assert (found.weight, found.objective) == (0.5, "none")
    [note] = found.notes
    assert note.startswith("the pool has neither labels nor outputs")


@pytest.mark.parametrize(("hybrid", "kept"), [(0.51, True), (0.495, True), (0.4949, False)])
def test_the_hybrid_may_be_as_much_as_the_tolerance_below_the_better_channel(hybrid: float, kept: bool) -> None:
    found = result(0.5, hybrid)
    assert found.primary.difference == pytest.approx(hybrid - 0.5)
    assert found.kept is kept
    assert quality.verdict([found]).endswith(": none of 1 data sets" if kept else ": toy (-0.0051)")


def test_every_line_of_the_table_is_as_wide_as_its_header() -> None:
    table = quality.Table(["toy"], "auto")
    lines = table.lines(result(0.5, 0.51))
    assert [len(line) for line in lines] == [len(table.header())]
    assert lines[0].split()[-5:] == ["0.1000", "0.5000", "0.2000", "0.5100", "+0.0100"]


def test_two_runs_print_the_same_but_for_the_time_and_json_has_the_same_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [str(labelled(tmp_path / "first")), str(judged(tmp_path / "second", "25\t25\t1\n"))]
    written, indexes = tmp_path / "out.json", tmp_path / "kept"
    printed = []
    for more in ([], ["--json", str(written), "--index-dir", str(indexes)]):
        quality.main([*folders, "--k", "4", "--embedder", "latent", *more])
        lines = capsys.readouterr().out.splitlines()
        printed.append([line for line in lines if not line.startswith("took ")])
        assert len(lines) - len(printed[-1]) == 1
    assert printed[0] == printed[1]
    assert printed[0][-1].startswith("hybrid below the better single channel by more than 0.005")

    content = json.loads(written.read_text(encoding="utf-8"))
    assert content["settings"] == {"k": 4, "queries": 500, "guard": "off"}
    assert [found["data_set"] for found in content["results"]] == ["first", "second"]
    for found in content["results"]:
        [line] = [line for line in printed[0] if line.startswith(f"{found['data_set']} ")]
        own = found["metrics"][0]
        assert f"{found['primary']} *" in line
        assert line.split()[-5:-1] == [f"{own[name]:.4f}" for name in quality.RECIPES]
        with Retriever.open(indexes / f"{found['data_set']}.index") as retriever:
            assert len(retriever) == found["pool"] == 30

"""The report: what it says, that the same gives the same bytes, and that no text of a pool is more than text."""

from __future__ import annotations

import builtins
import html
import json
import re
import sys
from dataclasses import replace

import numpy as np
import pytest

from retriever.errors import InvalidInput, MissingDependency
from retriever.evaluation.report import ReportSettings, write_report
from retriever.evaluation.report.figures import histogram
from retriever.evaluation.report.page import plot_library
from retriever.evaluation.report.projection import FEWEST, principal_axes, umap_places
from retriever.evaluation.report.text import shown
from tests.evaluation.reporting import HOSTILE, ROWS, hostile_rows
from tests.support import build, run

SMALL = ReportSettings(leave_one_out=20, k=3)


def body(text):
    """The page without style and scripts."""
    return re.sub(r"<(script|style)\b.*?</\1>", "", text, flags=re.DOTALL)


def words(text):
    """What a reader sees of the page's own elements."""
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", body(text))).split())


def data(text):
    """The figures by name."""
    found = re.search(r'<script type="application/json" id="figures">(.*?)</script>', text, re.DOTALL)
    return {one["name"]: one for one in json.loads(found[1])}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    retriever = build(ROWS, folder / "fruit.index", weight=0.5)
    write_report(retriever, folder / "a.html", settings=SMALL)
    return folder, retriever, (folder / "a.html").read_text(encoding="utf-8")


def test_the_page_says_what_it_is_about_and_what_it_found(made):
    _, _, text = made
    assert "<title>Report on fruit.index</title>" in text
    seen = words(text)
    for said in (
        "49 examples with 5 different outputs",
        "4 labels, as mixed as 4.0 of equal size",
        "2 examples have the same input and 2 different labels",
        "All 49 examples, and all 20 queries",
        "20 queries, leave-one-out, guard near",
        "made 60 choices for 20 queries",
    ):
        assert said in seen
    titles = re.findall(r"<h2[^>]*>(.*?)</h2>", text)
    assert len(titles) == 8 and len(re.findall("<h1>", text)) == 1


def test_the_same_index_gives_the_same_bytes_and_no_file_is_left_beside(made):
    folder, retriever, text = made
    write_report(retriever, folder / "a.html", settings=SMALL)
    assert (folder / "a.html").read_text(encoding="utf-8") == text
    assert sorted(path.name for path in folder.iterdir()) == ["a.html", "fruit.index"]


def test_the_page_allows_its_own_scripts_and_no_request(made):
    _, _, text = made
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', text)[1]
    parts = dict(part.strip().split(" ", 1) for part in html.unescape(policy).split(";"))
    assert parts["default-src"] == "'none'" and "connect-src" not in parts
    assert re.fullmatch(r"'sha256-[\w+/=]+' 'sha256-[\w+/=]+'", parts["script-src"])
    assert not re.search(r"""(?:src|href)=["'](?!#)""", body(text))


def test_every_plot_has_a_summary_and_every_table_has_heads(made):
    _, _, text = made
    plots = re.findall(r'<div class="plot" id="([^"]+)" role="img" aria-label="([^"]+)"', text)
    assert [name for name, _ in plots] == list(dict.fromkeys(name for name, _ in plots))
    assert sorted(name for name, _ in plots) == sorted(data(text))
    tables = re.findall(r"<table>.*?</table>", body(text), re.DOTALL)
    assert tables and all('scope="col"' in table for table in tables)


def test_the_map_joins_queries_to_what_was_chosen_for_them(made):
    _, retriever, text = made
    points, _, _, queries = data(text)["map"]["data"]
    assert len(points["x"]) == 49 and len(queries["x"]) == 20
    for query in queries["customdata"]:
        chosen = retriever.select({"id": query["id"], "input": query["input"]}, k=3, guard="near")
        assert [points["customdata"][place]["id"] for place in query["picks"]] == list(chosen.ids)


def test_a_pool_over_the_size_of_the_map_is_sampled_and_the_page_says_so(made, tmp_path):
    _, retriever, _ = made
    settings = ReportSettings(leave_one_out=20, k=3, map_examples=5, map_queries=2)
    write_report(retriever, tmp_path / "r.html", settings=settings)
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    points, _, _, queries = data(text)["map"]["data"]
    assert 5 <= len(points["x"]) <= 5 + 2 * 3 and len(queries["x"]) == 2
    assert f"A sample of {len(points['x'])} of 49 examples" in words(text) and "and 2 of 20 queries" in words(text)


def test_queries_of_the_users_own_are_judged_covered_and_searched_for_leaks(made, tmp_path):
    _, retriever, _ = made
    asked = [
        {"id": "q1", "input": ROWS[0]["input"], "label": "apple"},
        {"id": "q2", "input": "zzz unheard banana", "label": "quince"},
    ]
    write_report(retriever, tmp_path / "r.html", asked, settings=SMALL)
    seen = words((tmp_path / "r.html").read_text(encoding="utf-8"))
    assert "Asked with 2 queries" in seen
    assert "Labels of queries that no example has: quince (1)" in seen
    assert "unheard, zzz" in seen
    assert "query q1 : the query is in the pool" in seen


@pytest.mark.parametrize("without", [("label",), ("label", "output"), ("output",)])
def test_a_pool_without_labels_or_outputs_has_a_report_too(without, tmp_path):
    rows = [{name: value for name, value in row.items() if name not in without} for row in ROWS]
    output = None if "output" in without else "output"
    retriever = build(rows, tmp_path / "i", output=output, weight=0.5)
    write_report(retriever, tmp_path / "r.html", settings=SMALL)
    assert "fruit" not in (tmp_path / "r.html").read_text(encoding="utf-8").split("<main>")[0]


@pytest.mark.parametrize("count", [1, 2])
def test_a_pool_of_one_or_two_has_a_report_too(count, tmp_path):
    retriever = build(ROWS[:count], tmp_path / "i", weight=0.5)
    write_report(retriever, tmp_path / "r.html", settings=SMALL)
    assert "NaN" not in json.dumps(data((tmp_path / "r.html").read_text(encoding="utf-8")))


@pytest.mark.parametrize("output", [None, "output"])
def test_a_pool_of_empty_texts_has_a_report_too(output, tmp_path):
    rows = [{"id": f"p{i}", "input": "", "output": ""} for i in range(6)]
    retriever = build(rows, tmp_path / "i", output=output, weight=0.5)
    write_report(retriever, tmp_path / "r.html", settings=SMALL)
    assert "6 examples. Lengths Every text is empty." in words((tmp_path / "r.html").read_text(encoding="utf-8"))


def test_a_pool_of_one_label_has_a_report_too(tmp_path):
    retriever = build([{**row, "label": "fruit"} for row in ROWS], tmp_path / "i", weight=0.5)
    write_report(retriever, tmp_path / "r.html", settings=SMALL)
    assert "1 labels, as mixed as 1.0 of equal size" in words((tmp_path / "r.html").read_text(encoding="utf-8"))


def test_an_empty_pool_has_none(made, tmp_path):
    retriever = build(ROWS[:1], tmp_path / "i", weight=0.5)
    retriever.remove(["p0"])
    with pytest.raises(InvalidInput, match="an index without an example"):
        write_report(retriever, tmp_path / "r.html", settings=SMALL)
    assert not (tmp_path / "r.html").exists()


def test_hostile_texts_are_text_wherever_they_stand(tmp_path):
    retriever = build(hostile_rows(), tmp_path / "<b>i.index", weight=0.5)
    write_report(retriever, tmp_path / "r.html", settings=SMALL)
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert len(re.findall(r"<script\b", text)) == 3 and len(re.findall(r"</script", text)) == 3
    assert not set("\u2028\u2029\u202e\u2066\x00") & set(text.replace(plot_library(), ""))
    assert "<img" not in body(text) and "<b>" not in body(text)
    seen = words(text)
    for one in HOSTILE:
        assert " ".join(shown(one, 30).split()).rstrip("…") in seen
    assert "&lt;/script&gt;" in "".join(data(text)["labels"]["layout"]["yaxis"]["ticktext"])


def test_text_is_cut_and_what_is_unseen_is_an_escape():
    assert shown("abcdef", 4) == "abc…" and shown("abcd", 4) == "abcd"
    assert shown("a\u202eb\u2028c\x00", 99) == "a\\u202eb\\u2028c\\x00"
    assert shown("one\r\ntwo\tthree", 99) == "one ⏎ two three"
    assert shown("👩\u200d🔬", 9) == "👩\u200d🔬"


def test_the_axes_are_those_of_a_singular_value_decomposition():
    random = np.random.default_rng(0)
    vectors = random.normal(size=(200, 6)) * [5, 3, 1, 0.5, 0.2, 0.1]
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    found = principal_axes(vectors)
    centred = vectors - vectors.mean(axis=0)
    _, values, rows = np.linalg.svd(centred, full_matrices=False)
    assert np.allclose(np.abs(np.einsum("kd,dk->k", rows[:2], found.axes)), 1, atol=1e-6)
    assert found.shares == pytest.approx((values**2 / (values**2).sum())[:2].tolist(), abs=1e-6)
    assert found.of(vectors[:1]).shape == (1, 2)


def test_equal_vectors_lie_in_one_place():
    found = principal_axes(np.ones((3, 4), dtype=np.float32) / 2)
    assert found.shares == (0.0, 0.0) and not found.of(np.ones((2, 4), dtype=np.float32) / 2).any()


def test_umap_keeps_what_is_alike_together_and_lays_out_the_same_twice():
    random = np.random.default_rng(0)
    vectors = np.repeat(np.eye(8)[[0, 3]], 30, axis=0) + 0.1 * random.normal(size=(60, 8))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    vectors[5] = vectors[6]
    vectors[7] = 0
    found = umap_places(vectors, 0)
    assert found.shape == (60, 2) and np.isfinite(found).all()
    assert np.array_equal(found, umap_places(vectors, 0)) and not np.array_equal(found, umap_places(vectors, 1))
    # The nearest on the map is of the same group, for all but the vector that is of none.
    apart = np.linalg.norm(found[:, None] - found[None], axis=2) + np.diag([np.inf] * 60)
    same = (apart.argmin(axis=1) < 30) == (np.arange(60) < 30)
    assert same[np.arange(60) != 7].all()
    assert np.isfinite(umap_places(vectors[:FEWEST], 0)).all()


def test_a_map_by_umap_says_so_and_is_the_same_twice(made, tmp_path):
    _, retriever, plain = made
    settings = ReportSettings(leave_one_out=20, k=3, map="umap", audit=False)
    for name in "ab":
        write_report(retriever, tmp_path / name, settings=settings)
    text = (tmp_path / "a").read_text(encoding="utf-8")
    assert text == (tmp_path / "b").read_text(encoding="utf-8")
    assert "The vectors as UMAP lays them out" in words(text) and "component" not in words(text)
    assert data(text)["map"]["layout"]["xaxis"]["title"]["text"] == "UMAP 1"
    assert "The map is by UMAP, of 49 examples" in words(text)
    assert "The map is by PCA, its axes found from 49 examples" in words(plain)


def test_without_umap_the_extra_is_named_before_the_work(made, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(MissingDependency, match=r"demonstration-retriever\[umap\]"):
        write_report(made[1], tmp_path / "r.html", settings=ReportSettings(map="umap"))


def test_two_points_are_laid_out_by_their_axes_alone(tmp_path):
    retriever = build(ROWS[:1], tmp_path / "i", weight=0.5)
    write_report(retriever, tmp_path / "r.html", settings=ReportSettings(map="umap", leave_one_out=1))
    assert "The map is by PCA" in (tmp_path / "r.html").read_text(encoding="utf-8")


def test_equal_vectors_are_laid_out_by_their_axes_and_the_page_says_so(tmp_path):
    rows = [{"id": f"p{i}", "input": "the same text", "output": "o", "label": "ab"[i % 2]} for i in range(30)]
    retriever = build(rows, tmp_path / "i", weight=0.5)
    write_report(retriever, tmp_path / "r.html", settings=replace(SMALL, map="umap", audit=False))
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    points = data(text)["map"]["data"][0]
    assert len(points["x"]) == 30 and not any(points["x"] + points["y"])
    assert "The map is by PCA, its axes found from 30 examples. UMAP had nothing to lay out" in words(text)


def test_what_differs_by_less_than_the_grid_is_nothing_to_lay_out():
    near = np.eye(8)[[0] * 30] + 1e-8 * np.random.default_rng(0).normal(size=(30, 8))
    for nothing in (np.zeros((30, 8)), np.eye(8)[[0] * 30], near, np.eye(8)[: FEWEST - 1]):
        assert umap_places(nothing.astype(np.float32), 0) is None
    assert umap_places(np.eye(8, dtype=np.float32)[[0] * 30 + [3]], 0) is not None


def test_a_histogram_counts_every_value_once_and_the_long_tail_in_its_last_bar():
    values = [1] * 50 + [2] * 49 + [5000]
    bars = histogram("h", "characters", values, whole=True).data[0]
    assert sum(bars["y"]) == 100 and bars["y"] == [50, 50]
    assert bars["customdata"][-1] == "2 and more: 50"


def test_what_cannot_be_used_is_refused_before_the_work(made, tmp_path):
    _, retriever, _ = made
    with pytest.raises(InvalidInput, match="no folder"):
        write_report(retriever, tmp_path / "none" / "r.html")
    with pytest.raises(InvalidInput, match="is a folder"):
        write_report(retriever, tmp_path)
    with pytest.raises(InvalidInput, match="no query"):
        write_report(retriever, tmp_path / "r.html", [])
    with pytest.raises(InvalidInput, match="leave_one_out = 0"):
        ReportSettings(leave_one_out=0)
    with pytest.raises(InvalidInput, match="map = 'tsne'"):
        ReportSettings(map="tsne")
    assert list(tmp_path.iterdir()) == []


def test_without_plotly_the_extra_is_named(made, tmp_path, monkeypatch):
    real = builtins.__import__

    def without(name, *rest):
        if name.startswith("plotly"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingDependency, match=r"demonstration-retriever\[report\]"):
        write_report(made[1], tmp_path / "r.html")


def test_the_command_writes_the_page_and_tells_its_size(tmp_path):
    (tmp_path / "pool.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (tmp_path / "asked.jsonl").write_text(json.dumps({"input": "a banana", "label": "banana"}) + "\n{}\n")
    index, out = tmp_path / "i", tmp_path / "r.html"
    assert run("build", tmp_path / "pool.jsonl", "-o", index, "--embedder", "latent").exit_code == 0
    asked = ["--queries", tmp_path / "asked.jsonl"]
    result = run("report", index, "-o", out, *asked, "-k", "2", "--no-audit")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout) == {"path": str(out), "bytes": out.stat().st_size, "notes": []}
    assert "asked.jsonl:2" in result.stderr and "Not looked for." in out.read_text()
    assert run("report", index, "-o", out, *asked, "--strict").exit_code == 7

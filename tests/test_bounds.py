"""Bounds: what is too large is refused before it costs anything."""

from __future__ import annotations

from dataclasses import replace

import pytest
from support import build, embed, fail

from retriever import IndexSettings, Limits, Retriever
from retriever.errors import InvalidInput
from retriever.plan import BuildPlan

ROWS = [{"id": f"r{i}", "input": f"card {i}", "output": "o"} for i in range(6)]


@pytest.mark.parametrize("name", ["rows", "k", "prompt_characters"])
def test_a_limit_below_1_is_refused(name):
    with pytest.raises(InvalidInput, match=f"the limit {name} is 0; expected at least 1"):
        Limits(**{name: 0})


def test_a_pool_of_just_so_many_rows_is_built_and_one_more_is_refused(tmp_path):
    with build(ROWS, tmp_path / "a", limits=Limits(rows=6)) as index:
        assert len(index) == 6
    with pytest.raises(InvalidInput, match="a pool of more than 5 examples; expected at most 5"):
        build(ROWS, tmp_path / "b", limits=Limits(rows=5))
    assert not (tmp_path / "b").exists()


def test_an_endless_source_is_read_no_further_than_the_limit(tmp_path):
    read = []

    def endless():
        while True:
            read.append(1)
            yield {"input": f"card {len(read)}", "output": "o"}

    with pytest.raises(InvalidInput, match="at most 50"):
        build(endless(), tmp_path / "a", limits=Limits(rows=50))
    assert len(read) == 51


@pytest.mark.parametrize("way", ["add", "update"])
def test_changes_are_bounded_by_the_same_limit_and_refused_as_a_whole(tmp_path, way):
    with build(ROWS, tmp_path / "a", limits=Limits(rows=8)) as index:
        new = [{"id": f"n{i}", "input": "late", "output": "o"} for i in range(3)]
        with pytest.raises(InvalidInput, match="a pool of more than 8 examples"):
            getattr(index, way)(new)
        assert len(index) == 6
        getattr(index, way)(new[:2])
        assert len(index) == 8


def test_an_update_that_replaces_counts_nothing_twice(tmp_path):
    with build(ROWS, tmp_path / "a", limits=Limits(rows=6)) as index:
        changed = [{**row, "output": "other"} for row in ROWS]
        assert len(index.update(changed).replaced) == 6
        assert len(index) == 6


def test_k_over_the_limit_is_refused_wherever_it_is_said(tmp_path):
    with build(ROWS, tmp_path / "a", limits=Limits(k=4)) as index:
        assert len(index.select("card", k=4)) == 4
        for options in ({"k": 5}, {"recipe": {"select": {"k": 5}}}):
            with pytest.raises(InvalidInput, match="k = 5; expected at most 4"):
                index.select("card", **options)
            with pytest.raises(InvalidInput, match="k = 5"):
                next(index.select_many(["card"], **options))


def test_a_prompt_over_the_characters_is_refused_and_one_of_just_so_many_is_made(tmp_path):
    # The query "card" has 4 characters, each demonstration 6 of input and 1 of output.
    build(ROWS, tmp_path / "a").close()
    for most, fits in ((18, True), (17, False)):
        with Retriever.open(tmp_path / "a", embedder=embed, limits=Limits(prompt_characters=most)) as index:
            if fits:
                assert len(index.prompt("card", k=2).messages) >= 5
                continue
            with pytest.raises(InvalidInput, match="2 demonstrations of 18 characters; expected at most 17"):
                index.prompt("card", k=2)


def test_a_build_over_the_memory_is_refused_before_the_embedder_is_asked_for_a_text_of_the_pool(tmp_path):
    asked, plans = [], []

    def counting(texts):
        asked.extend(texts)
        return embed(texts)

    with pytest.raises(InvalidInput, match=r"6 examples needs about [\d,]+ bytes of memory") as caught:
        build(ROWS, tmp_path / "a", embedder=counting, max_memory=100, on_plan=plans.append)
    assert caught.value.expected == "at most 100"
    assert "--max-memory" in caught.value.fix
    assert not {row["input"] for row in ROWS} & set(asked)
    assert not (tmp_path / "a").exists()
    needed = plans[0].memory_bytes
    with pytest.raises(InvalidInput):
        build(ROWS, tmp_path / "a", max_memory=needed - 1)
    with build(ROWS, tmp_path / "a", max_memory=needed) as index:
        assert len(index) == 6


def test_the_memory_in_the_settings_counts_where_the_build_itself_is_given_none(tmp_path):
    tight = IndexSettings(recall=0.95, max_memory=100)
    with pytest.raises(InvalidInput, match="bytes of memory"):
        build(ROWS, tmp_path / "a", settings=tight)
    with build(ROWS, tmp_path / "a", settings=tight, max_memory=10**9) as index:
        assert index.info()["settings"]["max_memory"] == 10**9
    with build(ROWS, tmp_path / "b", settings=replace(tight, max_memory=10**9)) as index:
        assert index.info()["settings"]["max_memory"] == 10**9


@pytest.mark.parametrize("weight", [-0.1, 1.1, float("nan")])
def test_a_weight_that_is_no_share_is_refused_before_anything_is_written(tmp_path, weight):
    with build(ROWS, tmp_path / "a") as index:
        before = index.generation
        with pytest.raises(InvalidInput, match="fusion weight"):
            build(ROWS[:2], tmp_path / "a", overwrite=True, weight=weight)
        assert not index.refresh()
        assert index.generation == before


def test_a_refused_overwrite_leaves_the_index_as_it_was(tmp_path):
    with build(ROWS, tmp_path / "a") as index:
        with pytest.raises(InvalidInput, match="bytes of memory"):
            build(ROWS[:2], tmp_path / "a", overwrite=True, max_memory=1)
        assert index.refresh() is False
        index.add({"id": "n", "input": "late", "output": "o"})
        assert len(index) == 7


def test_a_disk_without_room_is_found_before_anything_is_embedded(tmp_path, monkeypatch):
    plans = []
    monkeypatch.setattr("indexes.files.free_bytes", lambda path: 1000)
    with pytest.raises(OSError, match="are needed and 1,000 are free") as caught:
        build(ROWS, tmp_path / "a", on_plan=plans.append)
    assert caught.value.needed == plans[0].disk_bytes
    assert not (tmp_path / "a").exists()


def test_the_plan_is_told_once_with_what_the_pool_has(tmp_path):
    plans = []
    build(ROWS, tmp_path / "a", on_plan=plans.append).close()
    (plan,) = plans
    assert (plan.examples, plan.dim, plan.ann_bytes) == (6, 32, 0)
    # Of each row at least id, input and output are stored.
    assert plan.characters >= 6 * (2 + 6 + 1)


def test_the_plan_counts_what_an_overwriting_build_is_given_and_not_what_it_replaces(tmp_path):
    plans = []
    build(ROWS, tmp_path / "a", on_plan=plans.append).close()
    build(ROWS[:2], tmp_path / "a", on_plan=plans.append, overwrite=True).close()
    assert [plan.examples for plan in plans] == [6, 2]
    assert plans[0].characters == 3 * plans[1].characters


def test_an_empty_pool_needs_nothing():
    plan = BuildPlan(0, 0, 384, "float32")
    assert (plan.memory_bytes, plan.disk_bytes) == (0, 0)


def test_every_part_of_a_plan_adds_what_it_is_worth():
    plan = BuildPlan(1000, 0, 100, "float32")
    wider = BuildPlan(1000, 0, 200, "float32")
    longer = BuildPlan(1000, 50_000, 100, "float32")
    approximate = BuildPlan(1000, 0, 100, "float32", 1000 * 408)
    twice = BuildPlan(2000, 0, 100, "float32")
    vectors = 1000 * 100 * 4
    assert wider.disk_bytes - plan.disk_bytes == vectors
    assert approximate.disk_bytes - plan.disk_bytes == 1000 * 408
    assert wider.memory_bytes - plan.memory_bytes >= 2 * vectors
    assert approximate.memory_bytes - plan.memory_bytes >= 2 * vectors
    assert longer.memory_bytes - plan.memory_bytes >= 2 * 50_000
    assert longer.disk_bytes - plan.disk_bytes >= 50_000
    assert (twice.memory_bytes, twice.disk_bytes) == (2 * plan.memory_bytes, 2 * plan.disk_bytes)
    half, quarter = (BuildPlan(1000, 0, 100, kind) for kind in ("float16", "int8"))
    assert plan.disk_bytes - half.disk_bytes == vectors // 2
    assert plan.disk_bytes - quarter.disk_bytes == vectors * 3 // 4 - 4 * 1000  # each row has a scale
    assert plan.memory_bytes - half.memory_bytes >= vectors


def test_what_a_fitted_embedder_stores_is_counted_on_the_disk(tmp_path):
    plans = []
    rows = [{"id": f"r{i}", "input": f"word{i} card{i} refund", "output": "o"} for i in range(300)]
    Retriever.build(rows, tmp_path / "a", embedder="latent", weight=0.5, on_plan=plans.append, note=fail).close()
    (plan,) = plans
    assert plan.embedder_bytes == sum(path.stat().st_size for path in (tmp_path / "a").rglob("embedder_*.npy")) > 10_000
    assert plan.disk_bytes - replace(plan, embedder_bytes=0).disk_bytes == plan.embedder_bytes
    assert plan.memory_bytes == replace(plan, embedder_bytes=0).memory_bytes
    used = sum(path.stat().st_size for path in (tmp_path / "a").rglob("*") if path.is_file())
    assert used <= plan.disk_bytes <= 4 * used


def test_what_is_predicted_for_the_disk_is_enough_and_not_wildly_too_much(tmp_path):
    plans = []
    rows = [{"id": f"r{i}", "input": f"how do i get card {i} back after the refund of {i * 7}", "output": f"o{i % 9}"}
            for i in range(3000)]  # fmt: skip
    build(rows, tmp_path / "a", weight=0.5, on_plan=plans.append).close()
    used = sum(path.stat().st_size for path in (tmp_path / "a").rglob("*") if path.is_file())
    assert used <= plans[0].disk_bytes <= 4 * used

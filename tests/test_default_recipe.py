"""The index's own recipe: what `select` goes by where it is told nothing else."""

from __future__ import annotations

import json
import sys
import threading

import pytest

from indexes import generation as generations
from indexes.current import read_current
from retriever import Recipe, Retriever
from retriever.errors import Incompatible, InvalidInput
from retriever.export import ExportSettings, export, made_from
from retriever.repair import repair
from tests.support import build, embed, fail, run

ROWS = [{"id": f"r{i}", "input": f"card {i} refund {i % 3}", "output": f"o{i % 3}"} for i in range(9)]
MMR = {"select": {"strategy": "mmr", "k": 3, "options": {"weight": 0.4}}, "order": {"by": "best-first"}}
TOML = '[select]\nstrategy = "mmr"\nk = 3\n[select.options]\nweight = 0.4\n[order]\nby = "best-first"\n'


@pytest.fixture
def path(tmp_path):
    build(ROWS, tmp_path / "i", weight=0.5, recipe=MMR).close()
    return tmp_path / "i"


def opened(path) -> Retriever:
    return Retriever.open(path, embedder=embed, note=fail)


def test_an_index_has_the_defaults_unless_it_is_built_with_a_recipe(tmp_path, path):
    with build(ROWS, tmp_path / "plain", weight=0.5) as retriever:
        assert retriever.recipe == Recipe()
    with opened(path) as retriever:
        assert retriever.recipe == Recipe.of(MMR)


def test_select_goes_by_it_and_single_keys_change_it_and_a_recipe_takes_its_place(path):
    with opened(path) as retriever:
        by_default = retriever.select("card refund")
        assert by_default.recipe.select.strategy == "mmr"
        assert by_default.ids == retriever.select("card refund", recipe=MMR).ids
        assert [s.ids for s in retriever.select_many(["card refund"])] == [by_default.ids]
        changed = retriever.select("card refund", k=2)
        assert (changed.recipe.select.strategy, len(changed)) == ("mmr", 2)
        replaced = retriever.select("card refund", recipe={})
        assert (replaced.recipe.select.strategy, len(replaced)) == ("top", 8)
        assert retriever.prompt("card refund").tokens == retriever.prompt(by_default).tokens


def test_a_recipe_that_is_set_is_there_for_everybody_and_stays(path):
    with opened(path) as mine, opened(path) as other:
        mine.add({"id": "new", "input": "late refund", "output": "o"})
        assert mine.set_recipe({"select": {"k": 2}}) == "gen-000002"
        assert mine.recipe.select.k == other.recipe.select.k - 1 == 2
        assert other.refresh()
        assert other.recipe == mine.recipe
        assert other.select("late refund").ids == mine.select("late refund").ids
        mine.remove("r1")
        mine.compact()
    with opened(path) as later:
        assert later.recipe.select.k == 2
        assert later.set_recipe(None) == "gen-000004"
        assert later.recipe == Recipe()
    with opened(path) as retriever, pytest.raises(InvalidInput, match=r"select\.k"):
        retriever.set_recipe({"select": {"k": -1}})


def test_a_repair_keeps_it(path):
    vectors = path / "gen-000001" / "lengths.npy"
    vectors.write_bytes(vectors.read_bytes()[:-1])
    repair(path, embedder=embed, note=fail)
    with opened(path) as retriever:
        assert retriever.recipe == Recipe.of(MMR)


def test_an_export_goes_by_it(path, tmp_path):
    with opened(path) as retriever:
        asked = [retriever.select("card refund").query]
        export(retriever, asked, tmp_path / "a.jsonl", ExportSettings())
        export(retriever, asked, tmp_path / "b.jsonl", ExportSettings(recipe=Recipe.of(MMR)))
        assert made_from(retriever, ExportSettings()) == made_from(retriever, ExportSettings(recipe=Recipe.of(MMR)))
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()
    assert len(json.loads((tmp_path / "a.jsonl").read_text())["demonstrations"]) == 3


def test_one_that_names_a_strategy_which_is_not_installed_is_refused_only_when_it_is_used(path):
    current = read_current(path)
    generation = generations.open_current(path, current)
    content = {name: [bytes(buffer)] for name, buffer in generation.buffers.items()}
    about = {name: generation.manifest[name] for name in ("created_by", "pool", "settings", "embedder", "fusion")}
    about["recipe"] = {"select": {"strategy": "foreign"}}
    generations.publish(path, content, about, revision=current.revision, chain=current.chain)
    generation.close()
    with opened(path) as retriever:
        assert len(retriever.select("card refund", recipe={})) == 8
        with pytest.raises(InvalidInput, match=r"select\.strategy = 'foreign'; expected one of top"):
            retriever.select("card refund")
        retriever.add({"id": "new", "input": "late refund", "output": "o"})
        retriever.compact()
        retriever.set_recipe(MMR)
        assert retriever.select("late refund").ids[0] == "new"


def test_a_default_that_no_selection_could_go_by_is_refused_when_it_is_stored(path, tmp_path):
    with opened(path) as retriever:
        for recipe, message in (
            ({"select": {"k": 10_001}}, r"select\.k = 10,001; expected at most 10,000"),
            ({"rerank": {"by": "maxsim", "idf": True}}, "an index built with token vectors"),
            ({"rerank": {"by": "cross-encoder:some/model"}}, "an index may come from anybody"),
            ({"select": {"fixed": ["nobody"]}}, "fixed example 'nobody'"),
            ({"rerank": {"by": "maxsim"}}, "with rerank.by = 'maxsim', and embedder .*, which has no token vectors"),
            (
                {"select": {"strategy": "coverage", "options": {"of": "tokens"}}},
                r"with select\.options\.of = 'tokens', and embedder .*, which has no token vectors",
            ),
            ({"filter": {"where": "label = 1"}}, "filter: an unexpected character at ▸ in: label▸ = 1"),
        ):
            with pytest.raises(InvalidInput, match=message):
                retriever.set_recipe(recipe)
        assert retriever.recipe == Recipe.of(MMR)
    with pytest.raises(InvalidInput, match=r"select\.k = 10,001"):
        build(ROWS, tmp_path / "j", recipe={"select": {"k": 10_001}})
    with pytest.raises(InvalidInput, match="filter: an unexpected character"):
        build(ROWS, tmp_path / "j", recipe={"filter": {"where": "label = 1"}})
    with pytest.raises(InvalidInput, match="which has no token vectors"):
        build(ROWS, tmp_path / "j", recipe={"rerank": {"by": "maxsim"}})
    assert not (tmp_path / "j").exists()


def test_a_model_that_only_an_index_names_is_not_loaded(path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("retriever.retriever.check_default", lambda *args: None)
        with opened(path) as retriever:
            retriever.set_recipe({"rerank": {"by": "cross-encoder:evil/model"}})
    monkeypatch.setattr("retriever.rescoring.CrossEncoderScorer.load", lambda name: pytest.fail(f"loaded {name}"))
    with opened(path) as retriever:
        asked = [retriever.select("card refund", recipe={}).query]
        for use in (
            lambda: retriever.select("card refund"),
            lambda: retriever.select("card refund", k=2),
            lambda: list(retriever.select_many(["card refund"])),
            lambda: retriever.prompt("card refund"),
            lambda: export(retriever, asked, path.parent / "out.jsonl", ExportSettings()),
            lambda: made_from(retriever, ExportSettings()),
        ):
            with pytest.raises(Incompatible, match="names the model evil/model, which the caller has not named"):
                use()
        assert len(retriever.select("card refund", rerank=None)) == 8
        assert len(retriever.select("card refund", recipe={})) == 8


def test_an_index_from_before_there_were_recipes_has_the_defaults(path):
    current = read_current(path)
    generation = generations.open_current(path, current)
    content = {name: [bytes(buffer)] for name, buffer in generation.buffers.items()}
    about = {name: generation.manifest[name] for name in ("created_by", "pool", "settings", "embedder", "fusion")}
    about["settings"] = {key: value for key, value in about["settings"].items() if key != "token_vectors"}
    generations.publish(path, content, about, revision=current.revision, chain=current.chain)
    generation.close()
    with opened(path) as retriever:
        assert retriever.recipe == Recipe()
        assert "recipe" not in retriever.info()
        retriever.add({"id": "new", "input": "late refund", "output": "o"})
    target = path / "gen-000002" / "lengths.npy"
    target.write_bytes(target.read_bytes()[:-1])
    repair(path, embedder=embed, note=fail)
    with opened(path) as retriever:
        assert retriever.recipe == Recipe()


def test_a_selection_is_of_one_view_while_the_recipe_changes(path):
    seen: dict[str, set[int]] = {}
    with opened(path) as retriever:
        done = threading.Event()

        def ask() -> None:
            while not done.is_set():
                found = retriever.select("card refund")
                seen.setdefault(found.generation, set()).add(found.recipe.select.k)

        threads = [threading.Thread(target=ask) for _ in range(3)]
        before = sys.getswitchinterval()
        sys.setswitchinterval(1e-5)
        try:
            for thread in threads:
                thread.start()
            for number in range(20):
                retriever.set_recipe({"select": {"k": number % 5 + 1}})
        finally:
            done.set()
            for thread in threads:
                thread.join()
            sys.setswitchinterval(before)
    assert len(seen) > 1
    assert {len(ks) for ks in seen.values()} == {1}


def printed(*arguments: object) -> str:
    done = run(*arguments)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_the_command_line_builds_with_it_shows_it_and_sets_it(tmp_path):
    pool, recipe, index = tmp_path / "pool.jsonl", tmp_path / "mmr.toml", tmp_path / "cli.index"
    pool.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    recipe.write_text(TOML)
    printed("build", pool, "-o", index, "--embedder", "latent", "--weight", "0.5", "--recipe", recipe)
    assert json.loads(printed("recipe", "show", "--index", index, "--json")) == Recipe.of(MMR).filled().to_dict()
    assert len(json.loads(printed("select", index, "card refund", "--json"))["demonstrations"]) == 3
    recipe.write_text("[select]\nk = 2\n")
    assert json.loads(printed("recipe", "set", index, recipe, "--json")) == {"generation": "gen-000002"}
    assert len(json.loads(printed("select", index, "card refund", "--json"))["demonstrations"]) == 2
    assert json.loads(printed("info", index, "--json"))["recipe"]["select"]["k"] == 2
    recipe.write_text('[filter]\nwhere = "meta.x == 1"\n[select]\nfixed = ["r1"]\nstrategy = "fixed"\n')
    printed("recipe", "set", index, recipe)
    assert json.loads(printed("select", index, "card refund", "--json"))["demonstrations"] == []
    off = ("--where", "", "--fixed", "", "--strategy", "top", "--rerank", "none")
    assert len(json.loads(printed("select", index, "card refund", *off, "--json"))["demonstrations"]) == 8
    both = run("recipe", "show", "--index", index, "--recipe", recipe)
    assert both.exit_code == 2
    assert "both --index and --recipe" in both.output

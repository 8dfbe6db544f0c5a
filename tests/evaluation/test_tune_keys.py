"""Keys searched: what is tried is what would be built, the gain is honest, and a winner becomes the index's own."""

from __future__ import annotations

import json
import random
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import numpy as np
import pytest

from retriever import Example, IndexSettings, Retriever, evaluate, tune
from retriever.adaptation.sample import Sample
from retriever.adaptation.stored import Adaptation
from retriever.command_line import improving
from retriever.embedders import Prompts
from retriever.embedders.function import FunctionEmbedder
from retriever.errors import InvalidInput
from retriever.evaluation.asking import Asking
from retriever.evaluation.search_space import Candidate, around, candidates, combined
from retriever.evaluation.tune import TuneSettings
from retriever.keys import Key
from retriever.ranking.recipe import Recipe
from retriever.repair import repair
from retriever.verification import verify
from retriever.writing import Searched
from tests.support import Words, build, embed, run

FRUITS = ("apple", "banana", "cherry", "damson")
NOISE = [f"word{number}" for number in range(300)]
DRAWN = random.Random(0)
POOL = [
    {
        "id": f"p{number}",
        "input": " ".join(DRAWN.sample(NOISE, 5)),
        "output": f"eat {FRUITS[number % 4]}",
        "label": FRUITS[number % 4],
        "meta": {"title": f"about {FRUITS[number % 4]} and more", "noise": " ".join(DRAWN.sample(NOISE, 9))},
    }
    for number in range(64)
]
ADDED = {"id": "new", "input": "word7", "output": "eat", "label": "apple", "meta": {"title": "about apple pies"}}
TITLE, NOISY = "input+meta.title", "input+meta.noise"
"""What decides the label, and what says nothing of it."""
OWN = {"select": {"k": 4}}
QUICK = TuneSettings(resamples=200)


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch):
    """The folder of temporary directories, which is empty again after every test, whatever happened in it."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    assert list(folder.iterdir()) == []


@pytest.fixture
def index(tmp_path):
    with build(POOL, tmp_path / "i", recipe=OWN) as made:
        yield made


class Asked:
    """An embedder that tells queries from examples, and remembers what it was asked."""

    def __init__(self):
        self.texts = []
        self.embedder = FunctionEmbedder(self._embed, name="callable:asked", prompts=Prompts("Q: ", "E: "))

    def _embed(self, texts):
        self.texts += texts
        return embed(texts)

    def of(self, prompt):
        return [text.removeprefix(prompt) for text in self.texts if text.startswith(prompt)]


def search(index, *keys, queries=None, held_out=64, settings=QUICK, **options):
    count = held_out if queries is None else None
    return tune(index, queries, leave_one_out=count, keys=keys, settings=settings, **options)


def content(path: Path) -> dict[str, bytes]:
    """Every file of an index, but for what SQLite notes of its readers."""
    files = [path for path in sorted(path.rglob("*")) if path.is_file() and not path.name.endswith("-shm")]
    return {str(file.relative_to(path)): file.read_bytes() for file in files}


def derived(index: Retriever) -> dict[str, bytes]:
    """The files of the generation that answers, but for the manifest."""
    return {name: bytes(buffer) for name, buffer in index.snapshot.base.generation.buffers.items()}


def test_a_key_that_decides_the_label_wins_and_becomes_the_indexs_own(index, tmp_path):
    found = search(index, TITLE)
    assert found.gain.sure and found.chosen.key == TITLE and found.chosen.name.endswith(f"key {TITLE}")
    assert found.tried[0].key == "input" and {one.key for one in found.tried} == {"input", TITLE}
    assert found.written == index.generation == "gen-000002"
    with Retriever.open(index.path, embedder=embed) as again:
        assert again.info()["settings"] == {**IndexSettings(key=TITLE).to_dict()}
        assert again.recipe == found.chosen.recipe and len(again) == 64
        chosen = again.select({"input": "unheard", "title": "about cherry"}, k=8, mode="lexical", strategy="top")
        assert {one.example.label for one in chosen} == {"cherry"}
    assert verify(index.path).problems == ()
    after = search(index, "input")
    assert (after.chosen.key, after.written, after.gain.sure) == (TITLE, None, False)
    assert index.generation == "gen-000002"


def test_what_is_kept_is_what_a_build_with_that_key_makes(index, tmp_path):
    found = search(index, TITLE)
    with build(POOL, tmp_path / "other", recipe=OWN, settings=IndexSettings(key=TITLE)) as built:
        assert derived(index) == derived(built)
        assert index.info()["fusion"] == built.info()["fusion"]
        # A candidate is worth what an index of its own would select, measured by hand.
        for one in (one for one in found.tried if one.name in (f"key {TITLE}", f"lexical, key {TITLE}")):
            shares = []
            for query in map(lambda row: Example(**row), POOL):
                hidden = replace(query, output=None, label=None)
                chosen = built.select(hidden, recipe=one.recipe, guard="near")
                shares.append(fmean(demonstration.example.label == query.label for demonstration in chosen))
            assert one.queries < 64 or one.mean == pytest.approx(fmean(shares))
        assert found.chosen.queries == 64


def test_keys_that_are_worse_change_no_byte(tmp_path):
    best = Recipe.of({"retrieve": {"mode": "lexical"}, "select": {"k": 4}})
    with build(POOL, tmp_path / "i", recipe=best, settings=IndexSettings(key="meta.title")) as index:
        before = content(index.path)
        found = search(index, "input", NOISY)
        assert (found.chosen.name, found.written, found.gain.sure) == ("own", None, False)
        assert {one.verdict for one in found.tried if one.key != "meta.title"} == {"worse"}
        assert content(index.path) == before


def test_a_dry_run_changes_nothing_and_gives_the_same_bytes_twice(index):
    before = content(index.path)
    once, again = (json.dumps(search(index, TITLE, NOISY, dry_run=True).to_dict()) for _ in range(2))
    assert once == again and content(index.path) == before
    told = json.loads(once)
    assert told["chosen"]["key"] == TITLE and told["gain"]["sure"] and told["written"] is None
    assert {one["key"] for one in told["tried"]} == {"input", TITLE, NOISY}


def test_two_searches_leave_the_same_bytes(tmp_path):
    left = []
    for name in ("a", "b"):
        with build(POOL, tmp_path / name, recipe=OWN) as made:
            search(made, TITLE)
        left.append({path: body for path, body in content(tmp_path / name).items() if path.startswith("gen-")})
    assert left[0] == left[1] and "gen-000002/manifest.json" in left[0]


def test_no_text_of_the_pool_is_embedded_twice(tmp_path):
    # Half of the examples have no title: by the other key their text is the one that the index has a vector of.
    rows = [row if number % 2 else {**row, "meta": {}} for number, row in enumerate(POOL)]
    asked = Asked()
    with build(rows, tmp_path / "i", recipe=OWN, embedder=asked.embedder) as made:
        found = search(made, TITLE)
        assert found.written == "gen-000002"
    counted = Counter(asked.of("E: "))
    assert set(counted.values()) == {1} and len(counted) == 64 + 32


@pytest.mark.parametrize("vectors", ["float32", "float16", "int8"])
def test_an_index_of_any_type_and_with_a_faiss_index_keeps_them(tmp_path, vectors):
    pytest.importorskip("faiss")
    settings = IndexSettings(vectors=vectors, ann="Flat", bm25="plus", k1=1.2, analyzer="char:3")
    with build(POOL, tmp_path / "i", recipe=OWN, settings=settings) as made:
        assert search(made, TITLE).written == "gen-000002"
        with build(POOL, tmp_path / "o", recipe=OWN, settings=replace(settings, key=TITLE)) as other:
            assert derived(made) == derived(other)
            assert made.info()["settings"] == other.info()["settings"]


def test_stored_tokens_are_those_of_the_other_key_and_made_once(tmp_path):
    words = Words()
    settings = IndexSettings(token_vectors=True)
    with build(POOL, tmp_path / "i", recipe=OWN, settings=settings, embedder=words) as made:
        assert search(made, TITLE).written == "gen-000002"
        assert max(Counter(words.asked).values()) == 1
        with build(POOL, tmp_path / "o", settings=replace(settings, key=TITLE), embedder=Words()) as other:
            assert derived(made) == derived(other)


def test_tokens_that_are_kept_in_memory_are_not_those_of_the_former_key(tmp_path):
    query = {"input": "word1 word2", "title": "about damson and more"}
    with build(POOL, tmp_path / "i", recipe=OWN, embedder=Words()) as made:
        made.select(query, rerank="maxsim", k=4)
        search(made, TITLE)
        with Retriever.open(made.path, embedder=Words()) as again:
            expected = again.select(query, rerank="maxsim", k=4)
        assert made.select(query, rerank="maxsim", k=4) == expected


def test_an_embedder_that_is_fitted_on_the_pool_is_fitted_on_the_other_texts(tmp_path):
    with build(POOL, tmp_path / "i", recipe=OWN, embedder="latent") as made:
        assert search(made, TITLE).written == "gen-000002"
        with build(POOL, tmp_path / "o", embedder="latent", settings=IndexSettings(key=TITLE)) as other:
            assert derived(made) == derived(other)
            query = {"input": "word1", "title": "about cherry"}
            ids = [one.select(query, mode="dense", strategy="top", k=3).ids for one in (made, other)]
            assert ids[0] == ids[1]
    with Retriever.open(tmp_path / "i") as again:
        assert again.add(ADDED) == ("new",)


def test_a_weight_that_was_given_stays(tmp_path):
    with build(POOL, tmp_path / "i", recipe=OWN, weight=0.3) as made:
        search(made, TITLE)
        assert made.info()["fusion"]["objective"] == "given" and made.snapshot.base.weight == 0.3


def test_an_index_that_was_rekeyed_goes_on_as_any_other(index, tmp_path):
    search(index, TITLE)
    index.add(ADDED)
    index.remove(["p0", "p5"])
    rest = [row for row in POOL if row["id"] not in ("p0", "p5")]
    query = {"input": "word9", "title": "about apple pies"}
    with build([*rest, ADDED], tmp_path / "o", settings=IndexSettings(key=TITLE), weight=0.5) as other:
        expected = other.select(query, k=9, weight=0.5, mode="hybrid", strategy="top")
    for step in (index.refresh, index.compact):
        step()
        found = index.select(query, k=9, weight=0.5, mode="hybrid", strategy="top")
        assert found.ids == expected.ids and found.ids[0] == "new"
        assert [one.score for one in found] == pytest.approx([one.score for one in expected], abs=1e-6)
        assert verify(index.path).problems == ()


def test_a_reader_that_is_open_moves_on_to_the_new_key(index):
    with Retriever.open(index.path, embedder=embed) as reader:
        search(index, TITLE)
        assert reader.snapshot.key == Key("input")
        assert reader.refresh() and reader.snapshot.key == Key(TITLE)
        query = {"input": "word9", "title": "about apple"}
        assert reader.select(query) == index.select(query)


def damage(index, name="vectors.npy"):
    path = index.path / index.generation / name
    path.write_bytes(path.read_bytes()[:-1] + b"\x00")


def test_repair_takes_no_vector_of_another_key(index):
    search(index, TITLE)
    index.add(ADDED)
    vectors, recipe = index.snapshot.embedded(np.arange(65)), index.recipe
    damage(index)
    done = repair(index.path, embedder=embed)
    assert (done.reused, done.embedded) == (1, 64)  # the example that was added has its vector in the pool
    with Retriever.open(index.path, embedder=embed) as again:
        assert again.snapshot.key == Key(TITLE) and again.recipe == recipe
        assert np.array_equal(again.snapshot.embedded(np.arange(65)), vectors)
        assert verify(index.path).problems == ()


def test_a_former_generation_answers_without_the_vectors_of_the_new_key(index):
    search(index, TITLE)
    index.add(ADDED)
    damage(index)
    notes = []
    with Retriever.open(index.path, embedder=embed, note=notes.append) as again:
        assert again.snapshot.key == Key("input") and again.generation == "gen-000001"
        assert len(again) == 64 and not len(again.snapshot.tail)
    assert "DAMAGED INDEX" in notes[0]


def test_changes_before_and_by_others_meanwhile_are_there_afterwards(index, tmp_path):
    index.remove(["p3"])
    with index.try_keys([TITLE]) as trials, Retriever.open(index.path, embedder=embed) as other:
        assert len(trials[TITLE].snapshot) == 63
        other.add(ADDED)
        trials[TITLE].keep(index.recipe)
    rows = [*(row for row in POOL if row["id"] != "p3"), ADDED]
    with build(rows, tmp_path / "o", settings=IndexSettings(key=TITLE)) as built:
        assert [example for _, example in index.snapshot.present()] == [e for _, e in built.snapshot.present()]
        names = ("vectors.npy", "text_hashes.npy", "lengths.npy", "posting_counts.npy")
        assert all(derived(index)[name] == derived(built)[name] for name in names)
    assert verify(index.path).problems == ()


def test_an_index_that_changes_under_the_search_is_left_as_it_is(index):
    def change(stage, done, total):
        if stage == f"{TITLE}: embedding" and done == 64:
            index.add(ADDED)

    with pytest.raises(InvalidInput, match="the index changed while it was evaluated"):
        search(index, TITLE, progress=change)
    assert index.snapshot.key == Key("input") and index.generation == "gen-000001"


def test_an_index_that_was_built_in_another_way_meanwhile_is_left_as_it_is(index):
    settings = IndexSettings(k1=1.2)
    with index.try_keys([TITLE]) as trials:
        build(POOL, index.path, overwrite=True, settings=settings).close()
        with pytest.raises(InvalidInput, match="built or adapted in another way meanwhile"):
            trials[TITLE].keep(index.recipe)
    with Retriever.open(index.path, embedder=embed) as again:
        assert again.info()["settings"] == settings.to_dict()


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("stage", ["embedding", "calibrating", "recipes"])
def test_an_interrupted_search_leaves_nothing_behind(index, temporary, error, stage):
    before, seen = content(index.path), []

    def stop(now, done, total):
        seen.append(len(list(temporary.iterdir())))
        if stage in now:
            raise error

    with pytest.raises(error):
        search(index, TITLE, progress=stop)
    assert max(seen) == 1 and content(index.path) == before


# What a query must not say of its answer.


@pytest.mark.parametrize("name", ["output", "label", "rationale"])
def test_a_key_with_an_answer_asks_without_it(name):
    example = Example("a", "in", output="out", rationale="why", label="which")
    key = Key(f"input+{name}")
    assert key.text(example) == f"in\n{getattr(example, name)}"
    assert key.asked_text(example) == "in" and key.is_askable and key.names_answer
    with pytest.raises(InvalidInput, match=name):
        Key(f"$input ${name}").asked_text(example)
    assert not any(Key(spec).is_askable for spec in (f"$input ${name}", name, f"meta.title+{name}", f"{name}.part"))
    assert Key("$task: $input").is_askable and Key("task+meta.output").further == ("task", "meta.output")


def test_no_query_of_a_held_out_example_has_its_answer(tmp_path):
    # Outputs decide the labels, inputs are noise: an answer in its own query would find its like every time.
    asked = Asked()
    settings = IndexSettings(key="input+output")
    with build(POOL, tmp_path / "i", recipe=OWN, embedder=asked.embedder, settings=settings) as made:
        assert asked.of("E: ")[0].endswith("eat apple") or "eat" in asked.of("E: ")[0]
        fusion = made.info()["fusion"]
        assert fusion["objective"] == "labels" and max(fusion["utilities"]) < 0.45
        found = evaluate(made, leave_one_out=64)
        assert max(score.mean for score in found["precision"].scores) < 0.45
        tuned = search(made, "input", "input+label", dry_run=True)
        assert max(one.mean for one in tuned.tried) < 0.6 and not tuned.gain.sure
        # The pool's side keeps them: who asks for an output finds it.
        assert {one.example.label for one in made.select("eat cherry", mode="lexical", k=8)} == {"cherry"}
    assert len(asked.of("Q: ")) > 64 and not [
        text for text in asked.of("Q: ") if "eat" in text and text != "eat cherry"
    ]


def test_the_weight_is_calibrated_as_by_hand_with_queries_that_have_no_answer(tmp_path):
    settings = IndexSettings(key="input+output")
    with build(POOL, tmp_path / "i", settings=settings) as made:
        shares = []
        for query in map(lambda row: Example(**row), POOL):
            hidden = replace(query, output=None, label=None)
            chosen = made.select(hidden, k=8, mode="hybrid", weight=0.0, strategy="top", guard="self")
            shares.append(fmean(one.example.label == query.label for one in chosen))
        assert made.info()["fusion"]["utilities"][0] == pytest.approx(fmean(shares), abs=1e-6)


def test_adaptation_asks_without_the_answer(tmp_path):
    asked = Asked()
    with build(POOL, tmp_path / "i", embedder=asked.embedder, settings=IndexSettings(key="input+output")) as made:
        sample = Sample.of(made.snapshot, made._live.encoder)
        assert sample.texts[1] == f"{POOL[1]['input']}\neat banana" and sample.asked([1]) == [POOL[1]["input"]]
        made.adapt()
    assert asked.of("Q: ") and not [text for text in asked.of("Q: ") if "eat" in text]


def test_a_key_that_cannot_ask_is_not_calibrated_and_says_so(tmp_path):
    notes = []
    settings = IndexSettings(key="$input -> $output")
    with build(POOL, tmp_path / "i", settings=settings, note=notes.append) as made:
        assert made.info()["fusion"] == {"weight": 0.5, "objective": "none", "sample": 0, "utilities": []}
        assert notes == [
            "the key '$input -> $output' needs the answer of a query: the fusion weight is 0.5, uncalibrated"
        ]
        with pytest.raises(InvalidInput, match="has no 'output'"):
            evaluate(made, leave_one_out=8)


def test_what_the_queries_to_come_may_lack_is_told(index):
    told = "the examples were asked with their own meta.title: what that gains holds for queries that come with it"
    assert told in search(index, TITLE, held_out=8, dry_run=True).notes
    assert told not in search(index, "input+output", held_out=8, dry_run=True).notes
    queries = [Example(**{**row, "id": f"q{row['id']}", "input": f"{row['input']} please"}) for row in POOL[:8]]
    assert told not in search(index, TITLE, queries=queries, dry_run=True).notes


# What is refused.


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (["input"], "the key 'input', which is that of the index"),
        ([TITLE, TITLE], f"the key '{TITLE}', which is tried already".replace("+", r"\+")),
        (["$input"], "the key '\\$input', by which every example has the text that it has by 'input'"),
        (["input+meta.titel"], "by which every example has the text that it has"),
        (["$input $output"], "which needs the answer: a query has none"),
        (["label"], "which needs the answer: a query has none"),
        (["answer"], "key 'answer' names 'answer'"),
        (["$input $meta.nothing"], "'p0' has no 'meta.nothing'"),
    ],
)
def test_keys_that_cannot_be_tried_are_refused(index, keys, said):
    before = content(index.path)
    with pytest.raises(InvalidInput, match=said):
        search(index, *keys)
    assert content(index.path) == before


def test_queries_that_lack_a_field_of_the_key_are_refused(index):
    queries = [Example(f"q{number}", f"word{number}", label="apple") for number in range(8)]
    with pytest.raises(InvalidInput, match=r"has no 'meta.title'.*give a query those fields too"):
        search(index, "$input $meta.title", queries=queries)


def test_what_cannot_be_searched_is_refused_before_anything_is_embedded(tmp_path):
    asked = Asked()
    with build(POOL, tmp_path / "i", recipe=OWN, embedder=asked.embedder) as made:
        before = len(asked.texts)
        for settings in (replace(QUICK, metric="precision@9"), replace(QUICK, metric="redundancy")):
            with pytest.raises(InvalidInput):
                search(made, TITLE, settings=settings)
        assert len(asked.texts) == before


def test_an_adapted_index_is_refused(tmp_path):
    rows = [{**row, "input": f"{row['label']} {row['input']}"} for row in POOL * 2]
    rows = [{**row, "id": f"r{number}", "input": f"{row['input']} {number}"} for number, row in enumerate(rows)]
    asked = [Example(f"q{number}", f"{row['input']} please", label=row["label"]) for number, row in enumerate(rows)]
    with build(rows, tmp_path / "i") as made:
        matrix = np.eye(made.snapshot.dim, dtype=np.float32)
        with made._live.session() as session:
            made._live.compact(session, searched=Searched(Adaptation.learned(matrix, {"source": "chance"}), None))
        with pytest.raises(InvalidInput, match=r"adapted to the texts of its own; .*retriever adapt .* --undo"):
            search(made, TITLE, queries=asked)
        made.undo_adaptation()
        assert search(made, TITLE, dry_run=True).chosen.key == TITLE


# The search.


def test_each_key_has_every_recipe_and_the_weight_calibrated_for_it():
    tried, _ = candidates(Recipe(), {None: 0.5, "input+output": 0.8})
    own, other = ([one for one in tried if one.key == key] for key in (None, "input+output"))
    assert tried == [*own, *other] and (len(own), len(other)) == (44, 54)
    assert (own[0].name, other[0].name, other[1].name) == ("own", "key input+output", "lexical, key input+output")
    # The calibrated weight, said in numbers, is the own recipe again: at 0.5 each of the ten strategies is, too.
    assert "weight 0.5" not in {one.name for one in own} and "weight 0.8" in {one.name for one in own}
    assert not [one for one in other if one.recipe.retrieve.weight == 0.8 and one.recipe.select.strategy == "top"]


def test_a_model_is_asked_about_the_own_recipe_with_every_key():
    tried, _ = around(Recipe(), {None: 0.5, "a": 0.5, "b": 0.5}, [Candidate("mmr, key input", Recipe(), "a")], most=100)
    assert [one.name for one in tried][:4] == ["own", "key a", "key b", "order best-first"]


def test_a_better_key_is_put_together_with_a_better_order():
    own = Recipe()
    key, order = Candidate("key a", own, "a"), Candidate("k 4", own.with_options({"k": 4}))
    both = combined(own, [key, order, Candidate("key b", own, "b")])
    assert both == Candidate("key a, k 4", own.with_options({"k": 4}), "a")
    assert combined(own, [key, Candidate("mmr, key a", own.with_options({"strategy": "mmr"}), "a")]) is None


def test_a_model_decides_between_keys(index):
    def answer(prompt):
        return prompt.demonstrations[-1].output

    asking = Asking(answer, "last", "last", index.path.parent / "answers.sqlite")
    found = search(index, TITLE, asking=asking)
    assert found.gain.sure and found.chosen.key == TITLE and found.written == "gen-000002"
    assert found.settings["narrowed_from"] > 54  # recipes with either key
    assert index.snapshot.key == Key(TITLE)


# The command.


def test_the_command_tries_keys_and_says_which_one_is_kept(tmp_path, monkeypatch):
    (tmp_path / "pool.jsonl").write_text("".join(json.dumps(row) + "\n" for row in POOL))
    assert run("build", tmp_path / "pool.jsonl", "-o", tmp_path / "i", "--embedder", "latent").exit_code == 0
    arguments = ("tune", tmp_path / "i", "--leave-one-out", "64", "--resamples", "200", "--try-key", TITLE)
    dry = run(*arguments, "--try-key", NOISY, "--dry-run")
    told = json.loads(dry.stdout)
    assert dry.exit_code == 0 and told["chosen"]["key"] == TITLE and told["written"] is None
    monkeypatch.setattr(improving, "wants_json", lambda flag: False)
    wet = run(*arguments)
    assert wet.exit_code == 0, wet.stderr
    assert f"key {TITLE}" in wet.stdout
    assert wet.stdout.endswith(f"It is the default of gen-000002, by the key {TITLE}.\n")
    assert json.loads(run("info", tmp_path / "i").stdout)["settings"]["key"] == TITLE
    refused = run(*arguments)
    assert refused.exit_code == 2 and "is that of the index" in refused.stderr

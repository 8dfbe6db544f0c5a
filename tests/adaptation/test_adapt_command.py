"""`retriever adapt` on the command line."""

import json

import pytest

from retriever import EmbedderSettings, Retriever
from tests.support import run
from tests.tiny_models import transformer_folder


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    path = tmp_path_factory.mktemp("adapt") / "i"
    nouns = [chr(97 + n // 26) + chr(97 + n % 26) * 3 for n in range(60)]
    pool = [{"input": f"{verb} {noun}", "output": verb, "label": verb} for verb in ("open", "close") for noun in nouns]
    Retriever.build(pool, path, embedder="latent", note=lambda line: None).close()
    return path


def test_a_pool_with_nothing_to_gain_is_left_alone_and_that_is_no_error(index):
    before = sorted(path.name for path in index.iterdir())
    result = run("adapt", index, "--json")
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout)
    assert not said["kept"] and said["reason"].startswith("no gain")
    assert {one["metric"] for one in said["compared"]} == {"dense, labels", "hybrid, labels"}
    assert sorted(path.name for path in index.iterdir()) == before


def test_what_is_not_adapted_cannot_be_undone(index):
    result = run("adapt", index, "--undo")
    assert result.exit_code == 2
    assert "an index that is not adapted" in result.output


def test_an_unknown_kind_is_a_usage_error(index):
    assert run("adapt", index, "--kind", "deep").exit_code == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--undo", "--full"), "--undo together with --full"),
        (("--undo", "--from", "x.jsonl"), "--undo together with --from"),
        (("--full", "--kind", "low-rank"), "--kind together with --full"),
        (("--epochs", "2"), "--epochs without --full"),
        (("--full", "--epochs", "0"), "epochs 0"),
        (("--from", "missing.jsonl"), "there is no file missing.jsonl"),
        (("--strict",), "--strict without a log"),
        (("--from", "templates", "--strict"), "--strict without a log"),
        (("--full",), "embedder latent-semantic, which cannot be fine-tuned"),
    ],
)
def test_options_that_do_not_go_together_or_mean_nothing_are_usage_errors(index, arguments, said):
    result = run("adapt", index, *arguments)
    assert result.exit_code == 2 and said in result.output


@pytest.mark.parametrize("source", ["labels", "outputs", "templates", "embeddings"])
def test_what_of_the_pool_is_learned_from_can_be_said(index, source):
    told = json.loads(run("adapt", index, "--from", source, "--json").stdout)
    assert told["source"] == source and told["compared"]
    if told["kept"]:
        assert run("adapt", index, "--undo").exit_code == 0


def feedback(path, lines):
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return path


def test_a_log_is_read_bad_lines_and_unknown_ids_are_told_on_standard_error(index, tmp_path):
    with Retriever.open(index) as opened:
        ids = [example.id for example in opened.snapshot.examples(range(8))]
    lines = [{"query": f"open it {n}", "scores": {one: n % 3 + m for m, one in enumerate(ids)}} for n in range(40)]
    file = feedback(tmp_path / "log.jsonl", [*lines, {"query": "x", "scores": {"gone": 1}}, {"query": "y"}])
    result = run("adapt", index, "--from", file, "--json")
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout)
    assert said["source"] == "feedback" and said["examples"] == 40
    assert f"{file}:42: no outcome beside the query" in result.stderr
    assert "log.jsonl names 1 examples that are not in the pool, and 8 that are" in result.stderr
    if said["kept"]:
        assert run("adapt", index, "--undo").exit_code == 0


def test_a_bad_line_under_strict_is_exit_code_7(index, tmp_path):
    file = feedback(tmp_path / "log.jsonl", [{"query": "y"}])
    result = run("adapt", index, "--from", file, "--strict")
    assert result.exit_code == 7 and f"{file}:1" in result.output


def test_a_model_is_fine_tuned_and_undone(tmp_path):
    model = transformer_folder(tmp_path / "model")
    signs = ("address", "account", "radius", "return")
    words = ("my", "card", "has", "not", "arrived", "where", "is", "the", "transfer", "how", "do")
    pool = [
        {
            "id": str(n),
            "input": f"{words[n % 11]} {words[n * n % 11]} {signs[n % 4]} {words[n * 3 % 11]}",
            "label": signs[n % 4],
        }
        for n in range(90)
    ]
    settings = EmbedderSettings(str(model))
    Retriever.build(pool, tmp_path / "i", output=None, embedder=settings, note=lambda line: None).close()
    result = run("adapt", tmp_path / "i", "--full", "--epochs", "6", "--rate", "0.002")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["generation"] == "gen-000002" and json.loads(result.stdout)["kept"]
    shown = run("info", tmp_path / "i", "--json")
    assert json.loads(shown.stdout)["embedder"]["tuned"]["settings"]["epochs"] == 6
    undone = run("adapt", tmp_path / "i", "--undo", "--json")
    assert json.loads(undone.stdout)["generation"] == "gen-000003"
    assert "tuned" not in json.loads(run("info", tmp_path / "i", "--json").stdout)["embedder"]

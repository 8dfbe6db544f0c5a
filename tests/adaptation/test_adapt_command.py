"""`retriever adapt` on the command line."""

import json

import pytest
from typer.testing import CliRunner

from cli import app
from retriever import Retriever


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    path = tmp_path_factory.mktemp("adapt") / "i"
    nouns = [chr(97 + n // 26) + chr(97 + n % 26) * 3 for n in range(60)]
    pool = [{"input": f"{verb} {noun}", "output": verb, "label": verb} for verb in ("open", "close") for noun in nouns]
    Retriever.build(pool, path, embedder="latent", note=lambda line: None).close()
    return path


def run(*arguments):
    return CliRunner().invoke(app, [str(one) for one in arguments])


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

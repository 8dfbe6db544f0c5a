"""An index that was adapted on its own examples: asked with them, it knows the answers, and whoever reads is told."""

from __future__ import annotations

import csv
import html
import json
import re

import numpy as np
import pytest

from retriever import EmbedderSettings, Example, evaluate, tune
from retriever.adaptation.adapt import supervision_of
from retriever.adaptation.learner import LearnerSettings, learn
from retriever.adaptation.stored import Adaptation
from retriever.errors import InvalidInput
from retriever.evaluation.evaluate import EvalSettings
from retriever.evaluation.report import ReportSettings, write_report
from retriever.evaluation.tune import TuneSettings
from retriever.writing import Searched
from tests.evaluation.reporting import ROWS, WORDS
from tests.support import adapted_by, build, run

QUICK = EvalSettings(metrics=("precision",), k=4, resamples=200)
QUERIES = [Example(f"q{n}", f"a {WORDS[n % 4]} please {n}", label=WORDS[n % 4]) for n in range(24)]
TOLD = "adapted on these very examples"


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    with build(ROWS, tmp_path_factory.mktemp("plain") / "i", embedder=EmbedderSettings("latent")) as made:
        yield made


@pytest.fixture(scope="module")
def adapted(tmp_path_factory):
    with build(ROWS, tmp_path_factory.mktemp("adapted") / "i", embedder=EmbedderSettings("latent")) as made:
        adapted_by(made)
        yield made


def ok(*arguments):
    result = run(*arguments)
    assert result.exit_code == 0, result.stderr
    return result


def flat(text):
    return " ".join(text.split())


def fitted_to_labels(index):
    """Publishes the map that the labels ask for, whether it helps anybody or not."""
    supervision = supervision_of(index.snapshot, index._live.encoder, None)
    matrix = learn(
        supervision.batches(supervision.items), index.snapshot.dim, LearnerSettings(), lambda done, total: None
    )
    with index._live.session() as session:
        index._live.compact(session, searched=Searched(Adaptation.learned(matrix, {"source": "labels"}), None))


def test_a_map_of_labels_by_chance_shines_when_it_is_asked_with_what_it_learned(tmp_path):
    """Four labels, drawn: nobody can foretell them. What the map gains on its own examples is what it remembers."""
    chance = np.random.default_rng(0).integers(0, 4, 160)
    pool = [
        {"id": f"e{n}", "input": f"word{n} word{7 * n % 160} thing{n % 30}", "output": str(one), "label": str(one)}
        for n, one in enumerate(chance)
    ]
    dense = {"dense": {"retrieve": {"mode": "dense"}}}

    def precision(index):
        return evaluate(index, dense, leave_one_out=160, settings=QUICK)["precision"].scores[0].mean

    with build(pool, tmp_path / "i", embedder=EmbedderSettings("latent")) as index:
        before = precision(index)
        fitted_to_labels(index)
        assert precision(index) > before + 0.2
        assert TOLD in evaluate(index, dense, leave_one_out=160, settings=QUICK).notes[0]


def test_leave_one_out_says_first_that_the_index_has_learned_from_what_is_asked(plain, adapted):
    assert TOLD in evaluate(adapted, leave_one_out=40, settings=QUICK).notes[0]
    assert TOLD in evaluate(adapted, leave_one_out=40, settings=QUICK).to_dict()["notes"][0]
    for index, asked in ((adapted, {"queries": QUERIES}), (plain, {"leave_one_out": 40})):
        assert not any(TOLD in line for line in evaluate(index, settings=QUICK, **asked).notes)


def test_the_command_says_so_in_every_form(adapted):
    command = ("eval", adapted.path, "--leave-one-out", "20", "--metric", "precision", "--resamples", "100")
    assert TOLD in json.loads(ok(*command, "--as", "json").stdout)["notes"][0]
    assert TOLD in flat(ok(*command, "--as", "table").stderr)
    rows = ok(*command, "--as", "csv")
    assert TOLD in flat(rows.stderr) and len(list(csv.DictReader(rows.stdout.splitlines()))) == 3


@pytest.mark.parametrize("asked", [{}, {"leave_one_out": 20}, {"leave_one_out": 20, "dry_run": True}])
def test_tuning_by_what_was_learned_is_refused_with_what_to_do(adapted, asked):
    generation = adapted.generation
    with pytest.raises(InvalidInput, match=TOLD) as refused:
        tune(adapted, **asked)
    assert "name a file of queries" in str(refused.value)
    assert f"retriever adapt {adapted.path} --undo" in str(refused.value)
    assert adapted.generation == generation


def test_tuning_by_queries_of_its_own_and_after_undoing_goes_on(tmp_path):
    with build(ROWS, tmp_path / "i") as index:
        adapted_by(index)
        settings = TuneSettings(resamples=200)
        assert tune(index, QUERIES, settings=settings, dry_run=True).asked == "queries"
        index.undo_adaptation()
        assert tune(index, leave_one_out=24, settings=settings, dry_run=True).asked == "leave-one-out"


def test_the_tune_command_refuses_it_too(adapted):
    result = run("tune", adapted.path, "--dry-run")
    assert result.exit_code == 2 and TOLD in flat(result.stderr)


def header(path):
    """What a reader of the page sees before the first section."""
    found = re.search(r"<header>(.*?)</header>", path.read_text(encoding="utf-8"), re.DOTALL)[1]
    return flat(html.unescape(re.sub(r"<[^>]+>", " ", found)))


def test_the_page_says_it_before_any_figure(plain, adapted, tmp_path):
    small = ReportSettings(leave_one_out=20, k=3, audit=False)
    write_report(adapted, tmp_path / "a.html", settings=small)
    seen = header(tmp_path / "a.html")
    assert TOLD in seen and seen.endswith(seen.split(TOLD)[1]) and seen.index(TOLD) < seen.index("precision")
    for index, queries in ((plain, None), (adapted, QUERIES)):
        write_report(index, tmp_path / "b.html", queries, settings=small)
        assert TOLD not in (tmp_path / "b.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("sample", [(), ("--leave-one-out", "20")])
def test_the_report_command_says_so_whoever_named_the_sample(adapted, tmp_path, sample):
    command = ("report", adapted.path, "-o", tmp_path / "r.html", *sample, "--no-audit")
    [line] = json.loads(ok(*command, "--json").stdout)["notes"]
    assert TOLD in line

"""Golden indexes: what an earlier version of this program has written is still read, and gives the same answers.

`python -m tests.test_golden` writes the index of the format that is being developed anew. The tests never do.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from indexes.generation import FORMAT_VERSION
from retriever import Retriever
from retriever.verification import verify
from tests.support import fail

GOLDEN = Path(__file__).parent / "golden"
FORMATS = sorted(path.name for path in GOLDEN.glob("format-*"))
INDEX = "index.d"
MODES = ("hybrid", "dense", "lexical")
WORDS = ("card", "carte", "Karte", "карта", "カード", "transfer", "fee", "top-up", "cash", "PIN")
FACE = "\U0001f600 "
QUERIES = {
    "plain": ("where is my card", {}),
    "unicode": ("где карта", {}),
    "combining": ("cafe\u0301 receipt", {}),
    "where": ("card fee", {"where": 'lang == "de" and priority >= 3'}),
    "match": ({"input": "card fee", "lang": "fr"}, {"match": ["lang"]}),
    "exclude and fixed": ("transfer", {"exclude": ["r05"], "fixed": ["new-2", "r12"]}),
    "guard": ({"id": "r07", "input": "my カード number 7"}, {"guard": "normalised"}),
    "added": ("a question that was added", {}),
    "random": ("cash", {"strategy": "random", "seed": 3}),
    "unknown": ("zzz qqq", {}),
}


def row(number: int) -> dict[str, object]:
    """One of the rows that are built: several scripts, inputs, labels and metas."""
    word = WORDS[number % len(WORDS)]
    text = f"my {word} number {number} {'' if number % 5 else FACE}has {WORDS[number * 3 % 7]}"
    return {
        "id": f"r{number:02}",
        "input": {"question": text, "lines": ["a\u2028b", number]} if number % 6 == 1 else text,
        "output": {"code": number} if number % 11 == 4 else f"answer {number}: caf\u00e9 \u202exyz {{input}} $output",
        "rationale": "because" if number % 4 == 0 else None,
        "label": [word, "all"] if number % 7 == 2 else word,
        "task": "support" if number % 2 else None,
        "meta": {"lang": ("en", "de", "fr")[number % 3], "priority": number % 5, "deep": {"list": [None, 0.5, True]}},
    }


ADDED = [
    {"id": "new-1", "input": "a question that was added", "output": "and its answer", "label": "new"},
    {"id": "new-2", "input": "transfer of cash to a \u00fcber caf\u00e9", "output": "yes", "meta": {"lang": "de"}},
    {"id": "new-3", "input": "removed again at once", "output": "no"},
]


def answers(retriever: Retriever) -> dict[str, object]:
    """The ids and scores of every question in every mode, the labels, and the ids of all."""
    found = {
        f"{name} ({mode})": [
            [one.example.id, one.score, one.example.to_dict()]
            for one in retriever.select(query, mode=mode, k=6, **options)
        ]
        for name, (query, options) in QUERIES.items()
        for mode in MODES
    }
    everything = retriever.select("card", k=100)
    return {**found, "labels": list(retriever.labels), "ids": sorted(everything.ids)}


def write(directory: Path) -> None:
    """Writes the index and its answers: two generations, a tail with additions, a replacement and removals."""
    shutil.rmtree(directory, ignore_errors=True)
    path = directory / INDEX
    rows = [row(number) for number in range(30)]
    with Retriever.build(rows, path, embedder="latent", weight=0.6, note=fail) as retriever:
        retriever.remove(["r03"])
        retriever.compact()
        retriever.add(ADDED)
        retriever.update({**row(9), "output": "another answer"})
        retriever.remove(["new-3", "r20"])
        expected = answers(retriever)
    (path / "LOCK").write_bytes(b"")
    text = json.dumps(expected, ensure_ascii=False, indent=1, sort_keys=True)
    (directory / "expected.json").write_text(text + "\n", encoding="utf-8")


def digests(path: Path) -> dict[str, str]:
    return {
        str(one.relative_to(path)): hashlib.sha256(one.read_bytes()).hexdigest()
        for one in sorted(path.rglob("*"))
        if one.is_file()
    }


@pytest.fixture(params=FORMATS)
def golden(request):
    return GOLDEN / request.param


@pytest.fixture
def copy(golden, tmp_path):
    return Path(shutil.copytree(golden / INDEX, tmp_path / "copy"))


@pytest.fixture
def expected(golden):
    return json.loads((golden / "expected.json").read_text(encoding="utf-8"))


def assert_same(found, expected):
    """The same ids and examples in the same order; scores to within what another BLAS may round differently."""
    assert found.keys() == expected.keys()
    for name, wanted in expected.items():
        if name in ("labels", "ids"):
            assert found[name] == wanted, name
            continue
        assert [(one, example) for one, _, example in found[name]] == [(one, ex) for one, _, ex in wanted], name
        scores = [[score for _, score, _ in side] for side in (found[name], wanted)]
        np.testing.assert_allclose(*scores, rtol=1e-5, atol=1e-6, err_msg=name)


def test_there_is_an_index_of_every_format():
    assert [f"format-{number}" for number in range(1, FORMAT_VERSION + 1)] == FORMATS


def test_it_is_small_and_holds_no_log_and_two_generations(golden):
    names = {one.name for one in (golden / INDEX).iterdir()}
    assert names == {"CURRENT", "LOCK", "pool.sqlite", "gen-000001", "gen-000002"}
    assert sum(one.stat().st_size for one in golden.rglob("*") if one.is_file()) < 300_000


def test_it_opens_and_gives_the_answers_it_gave(golden, copy, expected):
    with Retriever.open(copy, note=fail) as retriever:
        assert retriever.info()["format"] == int(golden.name.removeprefix("format-"))
        assert (retriever.info()["added_since"], retriever.info()["removed_since"]) == (3, 2)
        assert_same(answers(retriever), expected)


def test_what_it_holds_is_what_was_put_in(expected):
    assert set(expected["ids"]) == ({f"r{n:02}" for n in range(30)} - {"r03", "r20"}) | {"new-1", "new-2"}
    [[first, *_], *_] = expected["added (dense)"]
    assert first == "new-1"
    assert [one for one, *_ in expected["exclude and fixed (hybrid)"]][:2] == ["new-2", "r12"]
    assert "r07" not in [one for one, *_ in expected["guard (hybrid)"]]
    assert all(example["meta"]["lang"] == "fr" for _, _, example in expected["match (lexical)"])
    assert len(expected["where (dense)"]) == sum(n % 3 == 1 and n % 5 >= 3 for n in range(30) if n not in (3, 20))


def test_nothing_is_wrong_with_it(copy):
    found = verify(copy)
    assert found.intact, [str(problem) for problem in found.problems]
    assert found.generations == ("gen-000001", "gen-000002")


def test_it_can_be_added_to_and_compacted_and_no_answer_changes(copy, expected):
    with Retriever.open(copy, note=fail) as retriever:
        assert retriever.add({"id": "later", "input": "an addition by a later version", "output": "x"}) == ("later",)
        assert retriever.select("addition by a later version", mode="lexical", k=1).ids == ("later",)
        assert retriever.remove(["later"]) == 1
        assert retriever.compact() == "gen-000003"
        assert_same(answers(retriever), expected)
    with Retriever.open(copy, note=fail) as retriever:
        assert (retriever.generation, retriever.info()["added_since"]) == ("gen-000003", 0)
        assert_same(answers(retriever), expected)
    assert verify(copy).intact


def test_the_tests_leave_it_as_it_is(golden, copy):
    before = digests(golden)
    with Retriever.open(copy, note=fail) as retriever:
        retriever.add({"input": "one more", "output": "x"})
    assert digests(golden) == before


if __name__ == "__main__":
    write(GOLDEN / f"format-{FORMAT_VERSION}")

"""Damage anywhere in an index: a right answer, a refusal that names the file, or an earlier state and a note.

This is a small share of `python -m tests.soak.damage`.
"""

import random
from collections import Counter
from types import SimpleNamespace

import pytest

from tests.soak import damage
from tests.soak.damage import Damage, damages, files_of, make, run, trial

NEWEST = "gen-000002"
BEFORE = "gen-000001"


@pytest.fixture(scope="module")
def subjects(tmp_path_factory):
    return make(tmp_path_factory.mktemp("damage"), rows=120)


@pytest.fixture(scope="module")
def outcomes(subjects, tmp_path_factory):
    """Every outcome, by variant and file: a few places in each file."""
    work = tmp_path_factory.mktemp("trials") / "work"

    def places(variant, name):
        return 0 if name.startswith(BEFORE) else {"closed": 1, "killed": 4}[variant]

    return {
        (variant, name): list(run(subject, work, name, places(variant, name), seed=1))
        for variant, subject in subjects.items()
        for name in files_of(subject)
        if name not in ("CURRENT", "LOCK") and (variant == "closed" or not name.startswith("gen-"))
    }


def verdicts(outcomes, wanted):
    return Counter(o.verdict for (_, name), tried in outcomes.items() if wanted in name for _, o in tried)


def test_no_damage_gives_a_wrong_answer_an_unnamed_refusal_or_a_traceback(outcomes):
    assert [(key, one.what, o) for key, tried in outcomes.items() for one, o in tried if not o.good] == []
    assert len(outcomes) == 13 * 2 + 1 + 3


def test_verify_finds_whatever_a_reader_was_refused_for_or_told_of(outcomes):
    told = [o.verified for tried in outcomes.values() for _, o in tried if o.verdict != "same"]
    assert len(told) > 50
    assert set(told) == {"found"}


def test_the_generation_before_answers_in_place_of_a_damaged_one_and_a_note_says_so(outcomes):
    assert set(verdicts(outcomes, NEWEST)) == {"fallback"}


def test_damage_in_the_generation_before_changes_no_answer_and_verify_finds_it(outcomes):
    assert set(verdicts(outcomes, BEFORE)) == {"same"}
    assert {o.verified for (_, name), tried in outcomes.items() if BEFORE in name for _, o in tried} == {"found"}


def test_the_shared_memory_that_a_killed_writer_left_does_not_matter(outcomes):
    assert set(verdicts(outcomes, "pool.sqlite-shm")) == {"same"}


def test_the_log_that_a_killed_writer_left_is_refused_when_it_is_damaged(outcomes):
    assert verdicts(outcomes, "pool.sqlite-wal")["refused"] > 10


@pytest.mark.parametrize("name", ["CURRENT", "LOCK"])
def test_a_small_file_is_right_or_noted_at_a_share_of_its_bits(subjects, tmp_path, name):
    subject = subjects["killed"]
    every = list(damages((subject.path / name).read_bytes(), 0, random.Random(1)))
    found = [trial(subject, tmp_path / "work", name, one) for one in every[::131]]
    assert {o.verdict for o in found} == {"fallback" if name == "CURRENT" else "same"}
    assert all(o.good for o in found)


def test_the_damages_of_a_small_file_are_every_bit_and_every_length():
    content = [one.content for one in damages(b"ab", 0, random.Random(1))]
    assert content[0] is None
    assert {bytes(one) for one in content[1:17]} == {bytes([97 ^ 1 << i, 98]) for i in range(8)} | {
        bytes([97, 98 ^ 1 << i]) for i in range(8)
    }
    assert content[17:] == [b"", b"a"]


def test_the_damages_of_a_large_file_are_seeded_and_all_differ_from_it():
    whole = bytes(range(256)) * 64
    first, second = ([one.content for one in damages(whole, 5, random.Random(3))] for _ in range(2))
    assert first == second
    assert whole not in first
    assert len(first) == 1 + 5 + 5 + 4  # the pages are alike, so that a repeated one is no damage


class TestTheJudge:
    """What the harness would say of a reader that breaks the promise."""

    NAME = f"{NEWEST}/vectors.npy"

    def judged(self, monkeypatch, subject, tmp_path, opened):
        monkeypatch.setattr(damage, "Retriever", SimpleNamespace(open=opened))
        content = (subject.path / self.NAME).read_bytes()
        return trial(subject, tmp_path / "work", self.NAME, Damage("cut", content[:-1]))

    def test_an_exception_of_another_kind_is_a_traceback(self, monkeypatch, subjects, tmp_path):
        def opened(path, note):
            raise KeyError("vectors")

        assert self.judged(monkeypatch, subjects["closed"], tmp_path, opened).verdict == "traceback"

    def test_a_refusal_that_names_another_file_is_unnamed(self, monkeypatch, subjects, tmp_path):
        def opened(path, note):
            raise damage.IndexCorrupt(path / "CURRENT", "is damaged")

        assert self.judged(monkeypatch, subjects["closed"], tmp_path, opened).verdict == "unnamed"

    def test_other_answers_are_wrong_and_so_is_an_older_state_without_a_note(self, monkeypatch, subjects, tmp_path):
        real = damage.Retriever

        def opened(path, note):
            return real.open(path, note=lambda line: None)

        outcome = self.judged(monkeypatch, subjects["closed"], tmp_path, opened)
        assert outcome.verdict == "wrong"
        assert not outcome.good

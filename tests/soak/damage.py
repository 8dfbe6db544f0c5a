"""One damaged place in one file of an index: each answer is right, refused by name, or an earlier one and noted.

Each trial damages one file of a copy (a flipped bit, a cut, a zeroed or repeated page, a missing file), opens it and
asks a fixed list of questions, then verifies it. Small files are damaged at every bit and every length, larger ones at
seeded places.

    python -m tests.soak.damage --places 500 --seed 1
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from retriever import Retriever
from retriever.errors import Incompatible, IndexCorrupt, IndexMissing, RetrieverError
from retriever.verification import verify
from tests.support import embed

GOOD = ("same", "refused", "fallback")
_REFUSALS = (IndexCorrupt, Incompatible, IndexMissing)
_PAGE = 4096
_PAGES = 20
_EXHAUSTIVE = 300
_QUERIES = ("question about cards and 17", "which fees are due", "new cash answer 3")
_ASKED: tuple[tuple[object, dict[str, object]], ...] = (
    *[(query, dict[str, object](mode=mode)) for query in _QUERIES for mode in ("hybrid", "dense", "lexical")],
    (_QUERIES[0], {"fusion": "rrf"}),
    ({"id": "e10", "input": "question number 10 about fees"}, {"guard": "self"}),
    (_QUERIES[1], {"guard": "near"}),
    (_QUERIES[0], {"where": 'lang == "de"'}),
    ({"input": _QUERIES[0], "lang": "en"}, {"match": ["lang"]}),
    (_QUERIES[0], {"exclude": ["e17", "n3"]}),
    (_QUERIES[0], {"fixed": ["e20", "e30"]}),
    (_QUERIES[0], {"strategy": "random", "seed": 5}),
)
_OF_A_GENERATION = ("generation", "bytes", "added_since", "removed_since", "damaged")


@dataclass(frozen=True)
class Answers:
    """What an index answers.

    Attributes:
        whole: Everything, by question.
        content: The same without what depends on the generation that answers.
    """

    whole: Mapping[str, object]
    content: Mapping[str, object]


@dataclass(frozen=True)
class Subject:
    """An undamaged index and what it answers.

    Attributes:
        path: The directory.
        answers: Of its newest state.
        states: The content of every state that was acknowledged, the newest among them.
    """

    path: Path
    answers: Answers
    states: tuple[Mapping[str, object], ...]


@dataclass(frozen=True)
class Damage:
    """One damage: what it is, and the content of the file afterwards; None for a missing file."""

    what: str
    content: bytes | None


@dataclass(frozen=True)
class Outcome:
    """What came of a trial.

    Attributes:
        verdict: `same`, `refused` or `fallback`; or a failure: `wrong`, `unnamed` or `traceback`.
        verified: What `verify` did: `found`, `clean`, or the failures `missed` and `traceback`.
        detail: What a failure looks like.
    """

    verdict: str
    verified: str
    detail: str = ""

    @property
    def good(self) -> bool:
        """Whether the promise was kept."""
        return self.verdict in GOOD and self.verified in ("found", "clean")


def _row(number: int, kind: str) -> dict[str, object]:
    topic = ("cards", "loans", "fees", "cash")[number % 4]
    return {
        "id": f"{kind}{number}",
        "input": f"question number {number} about {topic} and {number * 7919 % 101}",
        "output": f"{kind} answer {number}",
        "label": "abcd"[number % 4],
        "meta": {"lang": ("en", "de")[number % 2]},
    }


def _changed(row: dict[str, object]) -> dict[str, object]:
    return {**row, "output": "another answer"}


def _canonical(value: object) -> object:
    return json.loads(json.dumps(value))


def _without_generation(value: object) -> object:
    return {k: v for k, v in value.items() if k not in _OF_A_GENERATION} if isinstance(value, dict) else value


def answers(retriever: Retriever, refusals: list[RetrieverError] | None = None) -> Answers:
    """The answers to every question; a refused one is left out and its error collected."""
    found: dict[str, object] = {}
    for number in range(len(_ASKED) + 2):
        try:
            if number < len(_ASKED):
                query, options = _ASKED[number]
                text = query if isinstance(query, str) else query["input"]  # type: ignore[index]
                selection = retriever.select(query, vector=embed([text])[0], k=5, **options)  # type: ignore[arg-type]
                found[f"{number}: {query} {options}"] = _canonical(selection.to_dict())
            elif number == len(_ASKED):
                found["labels"] = list(retriever.labels)
            else:
                info = dict(retriever.info())
                del info["path"]
                found["info"] = _canonical(info)
        except RetrieverError as error:
            if refusals is None:
                raise
            refusals.append(error)
    return Answers(found, {name: _without_generation(value) for name, value in found.items()})


def make(root: Path, rows: int = 1000) -> dict[str, Subject]:
    """Two indexes of the same state: one that was closed, one as `kill -9` leaves it, its log not taken in yet."""
    path = root / "live"
    embedder = {"embedder": embed, "weight": 0.5}
    states = []
    with Retriever.build([_row(i, "e") for i in range(rows)], path, **embedder) as retriever:  # type: ignore[arg-type]
        states.append(answers(retriever).content)
        retriever.remove(["e1", "e3"])
        states.append(answers(retriever).content)
        retriever.compact()
    with Retriever.open(path, embedder=embed) as retriever:
        for i in range(7):
            retriever.add(_row(i, "n"))
            states.append(answers(retriever).content)
            retriever.remove([f"e{40 + i}"])
            states.append(answers(retriever).content)
            retriever.update(_changed(_row(60 + i, "e")))
            states.append(answers(retriever).content)
        shutil.copytree(path, root / "killed")
    path.rename(root / "closed")
    return {name: _subject(root / name, tuple(states)) for name in ("closed", "killed")}


def _subject(path: Path, states: tuple[Mapping[str, object], ...]) -> Subject:
    work = path.with_name("work")
    shutil.copytree(path, work)
    with Retriever.open(work) as retriever:
        newest = answers(retriever)
    shutil.rmtree(work)
    if newest.content != states[-1]:
        raise AssertionError(f"{path} does not answer as it did before it was closed")
    return Subject(path, newest, states)


def files_of(subject: Subject) -> list[str]:
    """Every file, relative to the index."""
    return sorted(str(path.relative_to(subject.path)) for path in subject.path.rglob("*") if path.is_file())


def damages(whole: bytes, places: int, rng: random.Random) -> Iterator[Damage]:
    """What is done to a file, one at a time."""
    yield Damage("deleted", None)
    small = len(whole) <= _EXHAUSTIVE
    bits = range(8 * len(whole)) if small else rng.sample(range(8 * len(whole)), min(places, 8 * len(whole)))
    for bit in bits:
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        yield Damage(f"bit {bit % 8} of byte {bit // 8} flipped", bytes(flipped))
    for length in range(len(whole)) if small else rng.sample(range(len(whole)), min(places, len(whole))):
        yield Damage(f"cut to {length} bytes", whole[:length])
    pages = -(-len(whole) // _PAGE)
    for page in sorted(rng.sample(range(pages), min(pages, _PAGES, places))):
        other = rng.randrange(pages)
        old = whole[page * _PAGE : (page + 1) * _PAGE]
        repeated = whole[other * _PAGE : (other + 1) * _PAGE].ljust(len(old), b"\0")[: len(old)]
        for what, new in (("zeroed", bytes(len(old))), (f"page {other} again", repeated)):
            if new != old:
                content = whole[: page * _PAGE] + new + whole[page * _PAGE + len(old) :]
                yield Damage(f"page {page}: {what}", content)


def _lay_out(subject: Subject, work: Path, name: str, damage: Damage) -> None:
    """A damaged copy; generations are never written to, so their files are links."""
    shutil.rmtree(work, ignore_errors=True)
    for other in files_of(subject):
        target = work / other
        target.parent.mkdir(parents=True, exist_ok=True)
        if other != name:
            (os.link if other.startswith("gen-") else shutil.copyfile)(subject.path / other, target)
        elif damage.content is not None:
            target.write_bytes(damage.content)


def trial(subject: Subject, work: Path, name: str, damage: Damage) -> Outcome:
    """One damage, judged."""
    _lay_out(subject, work, name, damage)
    try:
        verdict, detail = _verdict(subject, work, name)
    except Exception as error:
        verdict, detail = "traceback", f"{type(error).__name__}: {error}"
    _lay_out(subject, work, name, damage)
    try:
        found = not verify(work).intact
    except RetrieverError:
        found = True
    except Exception as error:
        return Outcome(verdict, "traceback", f"{detail} verify: {type(error).__name__}: {error}")
    missed = not found and verdict in ("refused", "fallback")
    return Outcome(verdict, "missed" if missed else "found" if found else "clean", detail)


def _verdict(subject: Subject, work: Path, name: str) -> tuple[str, str]:
    notes: list[str] = []
    refusals: list[RetrieverError] = []
    got = Answers({}, {})
    try:
        with Retriever.open(work, note=notes.append) as retriever:
            got = answers(retriever, refusals)
    except RetrieverError as error:
        refusals.append(error)
    # SQLite's log and shared memory are part of the pool to whoever reads the message.
    named = str(work / ("pool.sqlite" if name.startswith("pool.sqlite") else name))
    for said in (*refusals, *notes):
        if named not in str(said) or (isinstance(said, Exception) and not isinstance(said, _REFUSALS)):
            return "unnamed", f"{type(said).__name__}: {said}"
    if not notes:
        wrong = [key for key, value in got.whole.items() if subject.answers.whole[key] != value]
        return ("wrong", wrong[0]) if wrong else ("refused", "") if refusals else ("same", "")
    if any(all(state[key] == value for key, value in got.content.items()) for state in subject.states):
        return ("refused", "") if refusals else ("fallback", "")
    return "wrong", f"after the note {notes[0]}"


def run(subject: Subject, work: Path, name: str, places: int, seed: int) -> Iterator[tuple[Damage, Outcome]]:
    """All trials of a file. A file's places depend on the seed and its name alone."""
    rng = random.Random(seed << 32 | zlib.crc32(f"{subject.path.name}/{name}".encode()))
    whole = (subject.path / name).read_bytes()
    for damage in damages(whole, places, rng):
        yield damage, trial(subject, work, name, damage)


def say(line: str) -> None:
    """One line of the report, at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main() -> int:
    """Every file; prints a table by file and verdict."""
    parser = argparse.ArgumentParser(description="Damages every file of an index, one place at a time.")
    parser.add_argument("--places", type=int, default=500, help="seeded places in each file of more than 300 bytes")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="", help="files whose VARIANT/NAME contains this")
    options = parser.parse_args()
    failures = 0
    with tempfile.TemporaryDirectory() as directory:
        for variant, subject in make(Path(directory)).items():
            for name in files_of(subject):
                # What a generation holds does not depend on how the pool was left.
                if options.only not in f"{variant}/{name}" or (variant == "killed" and name.startswith("gen-")):
                    continue
                counts: Counter[str] = Counter()
                for damage, outcome in run(subject, Path(directory) / "work", name, options.places, options.seed):
                    counts.update([outcome.verdict, f"verify {outcome.verified}"])
                    if not outcome.good:
                        failures += 1
                        say(f"FAILED {variant}/{name}: {damage.what}: {outcome}")
                say(" ".join([f"{variant}/{name:36}", *(f"{key}={count}" for key, count in sorted(counts.items()))]))
    say(f"{failures} failures")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())

"""Writers that are killed at random instants while others read: no reader may see a torn or a lost state.

A writer leads an index from state to state, each a function of its number alone, so that whoever reads can tell which
one it sees, and whether all of it. It notes in shared memory what it attempts, and what has returned; the memory
outlives it. After each kill the next writer goes on from what is there.

    python -m tests.soak.kills 5000 --seed 1
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import gc
import json
import math
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

import retriever.live
from retriever import Retriever
from retriever.errors import IndexMissing
from retriever.verification import verify
from retriever.writing import collect
from tests.soak.shared import READERS, Shared
from tests.soak.states import change, example, operation, state
from tests.support import embed

PHASES = ("fork", "open", "between", "compact", "build", "add", "update", "remove")
"""Where a kill can fall: before the writer's first line, or in what it was doing."""
COMPACT_AFTER = 5
SHORTEST, LONGEST = 0.0002, 0.06
PER_INDEX = 100
"""Kills after which another index is begun, so that first builds are killed, too."""


class Wrong(Exception):
    """What must not happen, and of which kind it is: torn, lost, damaged or error."""

    def __init__(self, kind: str, detail: str) -> None:
        self.kind = kind
        super().__init__(f"{kind}: {detail}")


def damaged(line: str) -> None:
    """A note sink: readers have nothing to be told of, for nothing is damaged."""
    raise Wrong("damaged", line)


def unless_resumed(line: str) -> None:
    """A note sink: a build may say that it goes on where one was interrupted."""
    if "interrupted build" not in line:
        raise Wrong("damaged", line)


# The writer


def write(root: Path, shared: Shared) -> None:
    """Goes on from the newest state until it is killed."""
    retriever.live.COMPACT_AFTER = COMPACT_AFTER
    shared.phase = PHASES.index("open")
    number = shared.acknowledged
    index = Retriever.open(root, embedder=embed, note=unless_resumed) if number else None
    while True:
        number += 1
        kind = operation(number)
        shared.attempted = number
        if index is None or kind == "build":
            shared.phase = PHASES.index("build")
            examples = [example(*one) for one in state(number).items()]
            if index is not None:
                index.close()
            index = Retriever.build(
                examples, root, embedder=embed, weight=0.6, strict=True, overwrite=True, note=unless_resumed
            )
        else:
            if number % 4 == 0:
                shared.phase = PHASES.index("compact")
                index.compact()
            shared.phase = PHASES.index(kind)
            change(index, number)
        shared.acknowledged = number
        shared.phase = PHASES.index("between")


# The readers


def look(index: Retriever, least: int, most: Callable[[], int], random_: random.Random) -> int:
    """Reads everything, and tells the state that it is.

    Args:
        index: An open index.
        least: The newest state that had been acknowledged before the look.
        most: The newest that has been attempted; asked after it.
        random_: Draws the query.
    """
    found = [example.to_dict() for _, example in index.snapshot.present()]
    number = identify(found, least, most())
    check_selection(index, state(number), random_)
    return number


def identify(found: list[dict[str, object]], least: int, most: int) -> int:
    """The state that examples in their order are.

    Raises:
        Wrong: They are none, or one before the least or after the most.
    """
    seen = [{name: one[name] for name in ("id", "input", "output")} for one in found]
    for number in (*range(least, most + 1), *range(least), *range(most + 1, most + 3)):
        if number and seen == [example(*one) for one in state(number).items()]:
            if least <= number <= most:
                return number
            raise Wrong("lost", f"state {number} was seen where {least} to {most} can be")
    raise Wrong("torn", f"what was seen is no state from 0 to {most + 2}: {json.dumps(seen)}")


def check_selection(index: Retriever, expected: Mapping[str, int], random_: random.Random) -> None:
    """Selects with a vector: what comes back belongs to the state, with its own vector."""
    query = example(*random_.choice(list(expected.items())))
    vector = unit(query["input"])
    mode = random_.choice(("dense", "hybrid"))
    chosen = index.select({"input": query["input"]}, vector=vector, k=5, mode=mode, guard="off")
    if len(chosen) != min(5, len(expected)):
        raise Wrong("torn", f"{len(chosen)} of {len(expected)} examples were selected, expected 5 or all")
    for one in chosen:
        wanted = example(one.example.id, expected.get(one.example.id, 0))
        if (one.example.input, one.example.output) != (wanted["input"], wanted["output"]):
            raise Wrong("torn", f"selected {one.example}, which is not of the state {json.dumps(expected)}")
        likeness = float(unit(wanted["input"]) @ vector)
        if abs(one.channels["dense"] - likeness) > 1e-5:
            raise Wrong("torn", f"{one.example.id} has the vector of another: {one.channels}, expected {likeness}")


def unit(text: str) -> np.ndarray:
    """The unit vector of a text."""
    vector = embed([text])[0]
    return vector / np.linalg.norm(vector)


def read(root: Path, shared: Shared, reader: int, seed: str) -> None:
    """Looks again and again: opened anew, refreshed, or from the view that it has, which must not have changed."""
    random_ = random.Random(seed)
    parent, newest, index = os.getppid(), 0, None
    while not shared.stop and os.getppid() == parent:
        least = max(newest, shared.acknowledged)
        way = random_.choice(("open", "refresh", "stay"))
        if index is not None and way == "open":
            index.close()
            index = None
        if index is None:
            index = opened(root, least)
            if index is None:
                continue
        elif way == "refresh":
            index.refresh()
        if way == "stay" and newest:
            look(index, newest, lambda: newest, random_)  # noqa: B023  called at once
        else:
            newest = look(index, least, lambda: shared.attempted, random_)
        shared.count_read(reader)


def opened(root: Path, least: int) -> Retriever | None:
    """The index; None while its first build is not finished."""
    try:
        return Retriever.open(root, embedder=embed, note=damaged)
    except IndexMissing as error:
        if least:
            raise Wrong("lost", f"state {least} was there and now: {error}") from None
        return None


# The parent


@dataclass
class Report:
    """What came of it.

    Attributes:
        kills: How many writers were killed.
        by_phase: What they were doing.
        states: How many states were reached.
        reads: How many looks were verified, those of the parent included.
        unacknowledged: How many states were finished by a writer that could not say so any more.
        wrong: How many of each kind were not as they must be.
        failures: What a reader needs to find out why.
    """

    kills: int = 0
    by_phase: Counter[str] = field(default_factory=Counter)
    states: int = 0
    reads: int = 0
    unacknowledged: int = 0
    wrong: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    def to_dict(self, seconds: float) -> dict[str, object]:
        """As it is printed."""
        return {
            "kills": self.kills,
            "kills_by_phase": {phase: self.by_phase[phase] for phase in PHASES},
            "states_reached": self.states,
            "done_but_not_acknowledged": self.unacknowledged,
            "reads_verified": self.reads,
            **{kind: self.wrong[kind] for kind in ("torn", "lost", "damaged", "error")},
            "seconds": round(seconds, 1),
        }


def forked(work: Callable[[], None], failure: Path) -> int:
    """A process that does the work; what it raises is in the file `failure` afterwards."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        work()
        code = 0
    except BaseException as error:
        kind = error.kind if isinstance(error, Wrong) else "error"
        failure.write_text(f"{kind}\n{traceback.format_exc()}")
    finally:
        os._exit(code)


def kill_writers(root: Path, kills: int, seed: str, report: Report, longest: float) -> None:
    """Kills writers of one index while readers look at it, and checks after each.

    Raises:
        Wrong: Something is not as it must be.
    """
    random_, shared = random.Random(seed), Shared()
    failures = [root.with_name(f"{root.name}.{reader}") for reader in range(READERS + 1)]
    delay = 0.0
    readers = [
        forked(functools.partial(read, root, shared, reader, f"{seed}/{reader}"), failures[reader])
        for reader in range(READERS)
    ]
    try:
        for kill in range(kills):
            shared.phase = 0
            writer = forked(functools.partial(write, root, shared), failures[READERS])
            delay = wait(shared, kill, random_, longest)
            os.kill(writer, signal.SIGKILL)
            os.waitpid(writer, 0)
            report.kills += 1
            report.by_phase[PHASES[shared.phase]] += 1
            raise_first(failures)
            check_after_kill(root, shared, random_, report)
    except Wrong as error:
        where = f"seed {seed}, kill {report.kills}, {delay * 1000:.2f} ms, in {PHASES[shared.phase]}"
        raise Wrong(error.kind, f"{where}, acknowledged {shared.acknowledged}, {root}\n{error}") from error
    finally:
        shared.stop = 1
        for reader in readers:
            os.waitpid(reader, 0)
        report.states += shared.acknowledged
        report.reads += shared.reads_verified()
    raise_first(failures)
    check_at_the_end(root)


def wait(shared: Shared, kill: int, random_: random.Random, longest: float) -> float:
    """Sleeps for as long as the writer may live, and tells how long that was.

    By turns that counts from its birth, from its first change, and from a state that it has reached: on a machine
    whose disk or processor is slow few would get so far by themselves, and the index must go on to be worth a kill.
    """
    start = shared.acknowledged
    if kill % 3 == 0:
        delay = math.exp(random_.uniform(math.log(SHORTEST), math.log(longest)))
    elif kill % 3 == 1:
        delay = random_.uniform(0, longest)
        wait_until(lambda: shared.phase >= PHASES.index("between"))
    else:
        delay = random_.uniform(0, longest)
        wait_until(lambda: shared.acknowledged > start)
    time.sleep(delay)
    return delay


def wait_until(reached: Callable[[], bool]) -> None:
    """Waits for the writer, ten seconds at most: one that has failed gets nowhere, and left word of it."""
    patience = time.monotonic() + 10
    while not reached() and time.monotonic() < patience:
        time.sleep(SHORTEST)


def raise_first(failures: list[Path]) -> None:
    """Raises what a process has left in its file."""
    for path in failures:
        with contextlib.suppress(FileNotFoundError):
            kind, _, detail = path.read_text().partition("\n")
            raise Wrong(kind or "error", detail)


def check_after_kill(root: Path, shared: Shared, random_: random.Random, report: Report) -> None:
    """What was acknowledged is there, or the one state more that the dead writer had just finished."""
    acknowledged = shared.acknowledged
    try:
        with Retriever.open(root, embedder=embed, note=damaged) as index:
            seen = look(index, max(acknowledged, 1), lambda: acknowledged + 1, random_)
    except IndexMissing as error:
        if acknowledged:
            raise Wrong("lost", f"state {acknowledged} was acknowledged and now: {error}") from None
        return
    except Wrong:
        raise
    except Exception:
        raise Wrong("error", traceback.format_exc()) from None
    report.reads += 1
    report.unacknowledged += seen - acknowledged
    # What was seen once must not be lost either.
    shared.acknowledged = seen


def check_at_the_end(root: Path) -> None:
    """Nothing is damaged, and what the dead have left behind is cleared away by whoever writes next."""
    try:
        collect(root)
    except IndexMissing:
        return  # no writer has lived long enough for a first build: what it left is for the next one
    problems = verify(root).problems
    if problems:
        raise Wrong("damaged", "; ".join(map(str, problems)))
    left = [path.name for path in root.glob("*") if ".tmp-" in path.name]
    generations = list(root.glob("gen-*"))
    if left or len(generations) > 2:
        raise Wrong("error", f"left behind: {left or generations}")


def warm_up(root: Path) -> float:
    """Imports and makes once what each process needs, so that a fork has it at once; tells how long a writer may live.

    That is long enough for a first build and some changes on this machine as busy as it is now.
    """
    with Retriever.build([example("a", 1), example("b", 1)], root, embedder=embed, weight=0.6, note=damaged) as index:
        index.update(example("a", 2))
        index.select("a", k=1)
    started = time.monotonic()
    Retriever.build([example("a", 1)], root, embedder=embed, weight=0.6, note=damaged, overwrite=True).close()
    gc.freeze()
    return max(LONGEST, 4 * (time.monotonic() - started))


def run(kills: int, seed: int, folder: Path) -> Report:
    """Kills so many writers, each hundred on an index of its own; the index that fails stays in the folder."""
    report = Report()
    longest = warm_up(folder / "warm")
    for number, start in enumerate(range(0, kills, PER_INDEX)):
        root = folder / f"{number}.index"
        try:
            kill_writers(root, min(PER_INDEX, kills - start), f"{seed}/{number}", report, longest)
        except Wrong as error:
            report.wrong[error.kind] += 1
            report.failures.append(str(error))
            break
        shutil.rmtree(root, ignore_errors=True)
    return report


def main() -> None:
    """Prints the figures; exits with 1 when anything is not as it must be."""
    parser = argparse.ArgumentParser(prog="scripts/soak kills", description=__doc__.partition("\n")[0])
    parser.add_argument("kills", nargs="?", type=int, default=5000, help="how many (5000)")
    parser.add_argument("--seed", type=int, default=1, help="of the instants and of what is read (1)")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="kills-"))
    started = time.monotonic()
    report = run(options.kills, options.seed, folder)
    sys.stdout.write(json.dumps(report.to_dict(time.monotonic() - started), indent=1) + "\n")
    if report.failures:
        sys.stderr.write("\n".join(report.failures) + f"\nThe index is kept in {folder}\n")
        sys.exit(1)
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()

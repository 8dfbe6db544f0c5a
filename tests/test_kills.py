"""No kill of a writer, at whatever instant, lets a reader see a torn or a lost state."""

import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

from retriever import Retriever
from tests.soak import kills, states
from tests.support import build, embed

ROOT = Path(__file__).parent.parent
MANY = range(1, 4 * len(states.PLAN))


def listed(number: int) -> list[dict[str, object]]:
    return [states.example(*one) for one in states.state(number).items()]


class TestStates:
    def test_no_two_states_are_alike(self):
        assert len({json.dumps(listed(number)) for number in MANY}) == len(MANY)

    def test_every_kind_of_change_leads_to_some_state(self):
        assert {states.operation(number) for number in MANY} == {"build", "add", "update", "remove"}

    def test_each_change_leads_an_index_to_the_next_state_and_a_look_tells_which_it_is(self, tmp_path):
        with build(listed(1), tmp_path / "i", weight=0.6) as index:
            for number in range(2, len(states.PLAN) + 1):
                states.change(index, number)
                assert kills.look(index, 1, lambda: 100, random.Random(number)) == number

    def test_what_is_missing_altered_in_another_order_or_of_two_states_is_torn(self):
        whole = listed(5)
        wrongs = [whole[1:], [{**whole[0], "output": "x"}, *whole[1:]], whole[::-1], [*whole, *listed(2)[:1]], []]
        for wrong in wrongs:
            with pytest.raises(kills.Wrong, match=r"^torn"):
                kills.identify(wrong, 1, 9)

    def test_a_state_before_the_acknowledged_one_is_lost_and_one_that_nobody_attempted_is_wrong_too(self):
        assert kills.identify(listed(5), 5, 5) == 5
        for least, most in ((6, 7), (3, 4)):
            with pytest.raises(kills.Wrong, match=r"^lost: state 5"):
                kills.identify(listed(5), least, most)

    def test_a_selection_of_another_state_is_torn(self, tmp_path):
        with (
            build(listed(3), tmp_path / "i", weight=0.6) as index,
            pytest.raises(kills.Wrong, match=r"^torn: selected"),
        ):
            kills.check_selection(index, states.state(15), random.Random(0))

    def test_an_example_with_the_vector_of_another_is_torn(self, tmp_path):
        def constant(texts):
            return embed(["the same for all"] * len(texts))

        with (
            Retriever.build(listed(3), tmp_path / "i", embedder=constant, weight=0.6) as index,
            pytest.raises(kills.Wrong, match="has the vector of another"),
        ):
            kills.check_selection(index, states.state(3), random.Random(0))


def run(kills: int, folder: Path, *, before: str = "") -> subprocess.CompletedProcess[str]:
    """The soak test in a process of its own: it forks, which a process with threads must not."""
    program = f"{before}\nfrom tests.soak.kills import main; main()"
    command = [sys.executable, "-c", program, str(kills), "--seed", "7"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TMPDIR": str(folder)}
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment, timeout=300)


def test_sixty_kills_tear_nothing_and_lose_nothing(tmp_path):
    done = run(60, tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["kills"] == sum(report["kills_by_phase"].values()) == 60
    assert [report[kind] for kind in ("torn", "lost", "damaged", "error")] == [0, 0, 0, 0]
    # One writer in three is not killed before it has led the index to its next state.
    assert report["states_reached"] >= 60 // 3
    assert report["reads_verified"] > 60


SABOTAGE = {
    "a change is acknowledged and not shown": (
        "from retriever.writing import Session; Session.show = lambda self, revision: None"
    ),
    "what a dead writer left behind is not dropped": (
        "from retriever.pool import Pool; Pool.settle = lambda self, revision, about: None"
    ),
    "CURRENT is rewritten in place": (
        "import time\n"
        "from indexes import generation\n"
        "from retriever import writing\n"
        "def point(root, current):\n"
        "    line = current.line()\n"
        "    with open(root / 'CURRENT', 'wb', buffering=0) as file:\n"
        "        [(file.write(line[i : i + 8]), time.sleep(0.0005)) for i in range(0, len(line), 8)]\n"
        "generation.point = writing.point = point"
    ),
}


@pytest.mark.parametrize("before", SABOTAGE.values(), ids=SABOTAGE)
def test_a_library_that_breaks_the_promise_is_found_out(tmp_path, before):
    done = run(2000, tmp_path, before=before)  # it stops at the first that is noticed
    assert done.returncode == 1, done.stdout
    report = json.loads(done.stdout)
    # Whoever notices first stops the test, and what it sees depends on the instant.
    assert sum(report[kind] for kind in ("torn", "lost", "damaged", "error")) == 1
    assert re.search(r"seed 7/\d+, kill \d+", done.stderr)

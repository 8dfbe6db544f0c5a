"""Work on all cores: all of it is done, whatever the number of cores, and an error is not lost."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from indexes import kernels, lexical, parallel
from indexes.lexical import BM25Index
from indexes.postings import Postings

needs_numba = pytest.mark.skipif(kernels.find_spec("numba") is None, reason="the extra `fast` is not installed")


@pytest.fixture(params=[1, 2, 5])
def cores(request, monkeypatch):
    monkeypatch.setattr(parallel, "cores", lambda: request.param)
    return request.param


@pytest.mark.parametrize("count", [0, 1, 2, 100])
def test_each_item_is_worked_on_once(cores, count):
    done = np.zeros(count, dtype=int)

    def work(item):
        done[item] += 1

    parallel.each(work, range(count))
    assert done.tolist() == [1] * count


def test_an_error_is_raised(cores):
    def work(item):
        if item == 7:
            raise ValueError(f"item {item}")

    with pytest.raises(ValueError, match="item 7"):
        parallel.each(work, range(10))


def test_a_thread_that_does_not_begin_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(parallel, "cores", lambda: 2)
    busy, free = threading.Event(), threading.Event()
    with ThreadPoolExecutor(1) as pool:
        monkeypatch.setattr(parallel, "_pool", lambda process: pool)
        pool.submit(lambda: (busy.set(), free.wait(10)))
        busy.wait(10)
        done = []
        parallel.each(done.append, range(5))
        free.set()
    assert done == [0, 1, 2, 3, 4]


def test_pieces_of_work_run_side_by_side(monkeypatch):
    monkeypatch.setattr(parallel, "cores", lambda: 2)
    both = threading.Barrier(2, timeout=10)
    parallel.each(lambda item: both.wait(), range(2))  # one thread alone would wait in vain


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity masks on this system")
def test_only_cores_of_the_affinity_mask_count():
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert parallel.cores() == 1
    finally:
        os.sched_setaffinity(0, before)
    assert parallel.cores() == len(before)


@pytest.mark.parametrize(
    ("asked", "cores_used"),
    [(None, 4), ("", 4), ("1", 1), ("3", 3), ("64", 4), ("2,1", 2), ("0", 4), ("many", 4), ("-1", 4)],
)
def test_cores_are_those_of_the_process_and_no_more_than_openmp_may_use(asked, cores_used, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 5, 7}, raising=False)
    if asked is None:
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    else:
        monkeypatch.setenv("OMP_NUM_THREADS", asked)
    assert parallel.cores() == cores_used


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # that this process has threads is the point
def test_a_forked_process_has_threads_of_its_own(monkeypatch):
    monkeypatch.setattr(parallel, "cores", lambda: 2)
    parallel.each(str, range(4))
    child = os.fork()
    if not child:
        parallel.each(str, range(4))
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize("fast", [False, pytest.param(True, marks=needs_numba)])
def test_bm25_has_the_same_bits_on_any_number_of_cores(cores, fast, monkeypatch):
    random = np.random.default_rng(7)

    def draw(count):
        return [[f"t{n}" for n in random.zipf(1.3, random.integers(0, 9)) if n < 400] for _ in range(count)]

    documents, asked = draw(3 * kernels.ROWS + 17), draw(9)
    cut = kernels.ROWS + 5
    segments = [Postings.from_documents(documents[:cut]), Postings.from_documents(documents[cut:])]
    with kernels.using(kernels.Loader()):
        alone = BM25Index(segments)
        wanted = np.array([alone.scores(terms) for terms in asked])
    monkeypatch.setattr(lexical, "_ALONE", 0)
    loader = kernels.Loader()
    if fast:
        loader.load()
    index = BM25Index(segments)
    with kernels.using(loader):
        for _ in range(3):  # weights are worked out, then kept, then read
            assert np.array_equal(index.block(asked), wanted)
            assert np.array_equal(index.scores(asked[0]), wanted[0])

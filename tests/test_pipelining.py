"""One item ahead: the same results in the same order, begun a little earlier."""

import threading

import pytest

from retriever.pipelining import one_ahead


def test_results_come_in_order_and_each_is_begun_while_the_one_before_is_used():
    begun = [threading.Event() for _ in range(4)]

    def double(item):
        begun[item].set()
        return 2 * item

    for place, result in enumerate(one_ahead(double, range(4))):
        assert result == 2 * place
        if place < 3:
            assert begun[place + 1].wait(10)
        assert not any(later.is_set() for later in begun[place + 2 :])


@pytest.mark.parametrize("items", [[], [1]])
def test_up_to_one_item_needs_no_thread(items):
    threads = [threading.get_ident() for _ in items]
    assert list(one_ahead(lambda item: threading.get_ident(), items)) == threads


def test_an_error_is_raised_in_the_place_of_its_result():
    results = one_ahead(lambda item: 1 / item, [2, 0, 4])
    assert next(results) == 0.5
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_a_caller_who_stops_leaves_no_thread_behind():
    before = threading.active_count()
    results = one_ahead(lambda item: item, [1, 2, 3])
    next(results)
    results.close()
    assert threading.active_count() == before

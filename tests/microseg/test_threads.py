from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from microseg.threads import results_in_order


@pytest.mark.parametrize(("ahead", "started"), [(0, [1, 2, 3, 4, 5]), (2, [3, 4, 5, 5, 5]), (9, [5, 5, 5, 5, 5])])
def test_items_are_taken_and_started_only_so_many_ahead(ahead: int, started: list[int]) -> None:
    taken, running = list[int](), list[int]()

    def items() -> Iterator[int]:
        for item in range(5):
            taken.append(item)
            yield item

    def start(item: int) -> "Future[int]":
        running.append(item)
        future: Future[int] = Future()
        future.set_result(item * item)
        return future

    results = results_in_order(start, items(), ahead)
    for number, count in enumerate(started):
        assert next(results) == number * number
        assert taken == running == list(range(count))
    assert list(results) == []


def test_an_error_comes_in_the_place_of_its_result() -> None:
    with ThreadPoolExecutor(2) as other:
        results = results_in_order(lambda item: other.submit(divmod, 6, item), [1, 2, 0, 3], 3)
        assert [next(results), next(results)] == [(6, 0), (3, 0)]
        with pytest.raises(ZeroDivisionError):
            next(results)

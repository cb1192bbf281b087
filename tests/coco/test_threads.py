"""A function of many items in threads: in order, and only a few items ahead."""

import time
from concurrent.futures import ThreadPoolExecutor

from eecs598.coco.threads import map_in_order


def test_results_are_in_order_and_few_items_are_taken_ahead():
    taken = []

    def items():
        for item in range(20):
            taken.append(item)
            yield item

    def square(item):
        time.sleep(0.01 * (item % 3 == 0))  # some finish after those that follow
        return item**2

    with ThreadPoolExecutor(4) as pool:
        results = map_in_order(pool, square, items(), ahead=5)
        assert [next(results), next(results)] == [0, 1] and taken == list(range(7))
        assert list(results) == [item**2 for item in range(2, 20)]
        assert list(map_in_order(pool, square, [], ahead=5)) == []

"""A function of many items in threads, with the results in order: `map_in_order`."""

from collections import deque


def map_in_order(pool, function, items, ahead):
    """Yield function(item) in the items' order, with at most `ahead` items submitted to the pool in advance.

    pool: a ThreadPoolExecutor. `pool.map` would take all items, and keep all results, at once.
    """
    waiting = deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()

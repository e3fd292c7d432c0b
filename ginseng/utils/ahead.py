"""Items made by a thread while the ones before them are used."""

import os
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

from ginseng.interruption import leave_if_asked

Item = TypeVar("Item")

# Those that wait, each with its thread, for the next iterator. What is freed in a thread of its own stays with the
# process, so that with a new one each time a long run grows: see benchmarks/long.py.
_idle: list[ThreadPoolExecutor] = []
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_idle.clear)  # a child has none of the threads


def read_ahead(items: Iterator[Item]) -> Generator[Item]:
    """Give out the items of an iterator, of which a thread makes the next one meanwhile.

    An error in the thread is raised where its item is asked for. Closing waits for the item that is being made; the
    thread then waits for the next iterator.

    Examples
    --------
    >>> list(read_ahead(iter("abc")))
    ['a', 'b', 'c']
    """
    nothing = object()
    reader = _idle.pop() if _idle else ThreadPoolExecutor(1, thread_name_prefix="ginseng")
    following = reader.submit(next, items, nothing)
    try:
        while (item := following.result()) is not nothing:
            leave_if_asked()
            following = reader.submit(next, items, nothing)
            yield item  # pyright: ignore[reportReturnType]
            del item
    finally:
        wait([following])
        _idle.append(reader)

"""Items made by a thread while the ones before them are used."""

from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")


def read_ahead(items: Iterator[Item]) -> Generator[Item]:
    """Give out the items of an iterator, of which a thread makes the next one meanwhile.

    An error in the thread is raised where its item is asked for. Closing waits for the item that is being made.

    Examples
    --------
    >>> list(read_ahead(iter("abc")))
    ['a', 'b', 'c']
    """
    nothing = object()
    with ThreadPoolExecutor(1, thread_name_prefix="ginseng") as reader:
        following = reader.submit(next, items, nothing)
        while (item := following.result()) is not nothing:
            following = reader.submit(next, items, nothing)
            yield item  # pyright: ignore[reportReturnType]
            del item

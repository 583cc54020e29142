"""An event loop that outlives a call, for whoever offers ordinary functions over coroutines."""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, TypeVar

T = TypeVar("T")


async def together(works: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """What coroutines return, in their order. The first one that raises says it; the others are cancelled for it."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(work) for work in works]
    except BaseExceptionGroup as problems:
        raise problems.exceptions[0] from None
    return [task.result() for task in tasks]


class EventLoop:
    """Runs coroutines to their end, all in one loop: connections that tools or servers keep stay usable."""

    def __init__(self) -> None:
        self._runner = asyncio.Runner()

    def run(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """What the coroutine made by `work` returns."""
        found: list[T] = []

        async def inside() -> None:
            # The work of a Runner returns nothing: one that ends takes the `repr` of its task, results and all.
            found.append(await work())

        _beside_any_loop(lambda: self._runner.run(inside()))
        return found[0]

    def close(self) -> None:
        """End the loop and whatever still runs in it."""
        _beside_any_loop(self._runner.close)


def _beside_any_loop(work: Callable[[], None]) -> None:
    """Do work that runs an event loop: in a thread of its own where somebody's loop runs here (a notebook)."""
    if asyncio._get_running_loop() is None:
        return work()
    problems: list[BaseException] = []

    def inside() -> None:
        try:
            work()
        except BaseException as problem:
            problems.append(problem)

    thread = threading.Thread(target=inside, daemon=True)
    thread.start()
    thread.join()
    if problems:
        raise problems[0]

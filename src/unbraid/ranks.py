"""Several processes that train one policy together: the ranks of a run, and how they stay one run.

Every rank runs the same program on the same recipe: it reads the same tasks, holds the same weights and takes the same
decisions. Drawing and learning are shared out (`rollout.shared`, `learn.shares`), and rank 0, the first, alone writes.
Whoever starts the ranks (torchrun, accelerate, Ray) tells each its place in the environment.

What may fail on one rank alone goes through `agree`, `gather` or `first`: then it fails on all of them, with the words
of the one where it failed, instead of leaving the others waiting.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import distributed

from unbraid.errors import RanksError, UnbraidError

T = TypeVar("T")
PATIENCE = timedelta(hours=2)
"""How long a rank waits for another. Choice: longer than any rollout; a process that is gone is noticed at once."""

_messages: list[Any] = []
"""The group that Python objects travel in, where it is another than that of gradients."""
_shared: list[BaseException] = []
"""Errors that all ranks have: one of them says it."""


def world() -> int:
    """How many ranks there are; 1 for a process that is alone."""
    return distributed.get_world_size() if _joined() else 1


def rank() -> int:
    """Which one this is, from 0; before they have met, which one it was started as."""
    return distributed.get_rank() if _joined() else int(os.environ.get("RANK", "0"))


def is_first() -> bool:
    """Whether this rank is the one that writes."""
    return rank() == 0


@contextmanager
def joined(device: str = "auto") -> Iterator[None]:
    """Within, the processes that were started together are ranks of one run; nothing to do for one that is alone.

    Args:
        device: `model.device`. `auto` gives every rank of a node a device of its own.

    Raises:
        RanksError: they do not find each other.
    """
    if _joined() or int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    from accelerate import PartialState

    # Else transformers would leave the weights of all ranks but the first empty, for Accelerate to fill them.
    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
    try:
        PartialState(cpu=device == "cpu", timeout=PATIENCE)
    except (RuntimeError, ValueError) as problem:
        raise RanksError(
            f"the ranks do not find each other ({_line(problem)}): start them with torchrun or accelerate launch, and "
            "see that MASTER_ADDR and MASTER_PORT can be reached from every node"
        ) from problem
    yield
    # Only here: after an error others may be waiting, and notice at once when this process ends.
    _messages.clear()
    distributed.destroy_process_group()
    PartialState._reset_state()


def agree(work: Callable[[], T]) -> T:
    """Every rank works for itself; what fails on one of them fails on all.

    Raises:
        UnbraidError: on the ranks where `work` did not fail, of the same kind; the others raise what was raised.
    """
    return _exchange(work, keep=False)[rank() if world() > 1 else 0]


def gather(work: Callable[[], T]) -> list[T]:
    """As `agree`, and every rank gets the results of all, in their order."""
    return _exchange(work, keep=True)


def first(work: Callable[[], T]) -> T:
    """Rank 0 works, alone; every rank gets its result, or fails as it did."""
    if world() == 1:
        return work()
    return gather(lambda: work() if is_first() else None)[0]  # type: ignore[return-value]


def in_turn(work: Callable[[], T]) -> T:
    """As `agree`, the first rank of every node before the others: what is downloaded or built is so once."""
    leads = os.environ.get("LOCAL_RANK", "0") == "0"
    found = agree(lambda: [work()] if leads else [])
    others = agree(lambda: [] if leads else [work()])
    return (found or others)[0]


def check_same(what: str, value: Any) -> None:
    """Compare something that every rank must have alike.

    Raises:
        RanksError: it differs; `what` says what it was.
    """
    values = gather(lambda: value)
    if other := next((number for number, one in enumerate(values) if one != values[0]), None):
        raise _everywhere(
            RanksError(f"ranks 0 and {other} have different {what}: they need the same files, packages and machines")
        )


def is_told(error: BaseException) -> bool:
    """Whether another rank says this error: all of them have it."""
    return not is_first() and (not _joined() or error in _shared)


def sum_tensor(values: torch.Tensor) -> None:
    """Replace a tensor by its sum over all ranks, in place."""
    if world() > 1:
        with _lost():
            distributed.all_reduce(values)


def _exchange(work: Callable[[], T], keep: bool) -> list[T]:
    if world() == 1:
        return [work()]
    mine: T | None = None
    problem: Exception | None = None
    try:
        mine = work()
    except Exception as error:
        problem = error
    every: list[Any] = [None] * world()
    with _lost():
        distributed.all_gather_object(every, (_said(problem), mine if keep else None), group=_group())
    if failed := [(number, said) for number, (said, _) in enumerate(every) if said]:
        number, (kind, text) = failed[0]
        raise _everywhere(problem or kind(f"rank {number}: {text}" if number else text))
    found = [value for _, value in every]
    if not keep:
        found[rank()] = mine
    return found


def _said(problem: Exception | None) -> tuple[type[UnbraidError], str] | None:
    """An error as the other ranks raise it. One that is none of ours has its traceback where it was raised."""
    if problem is None:
        return None
    if isinstance(problem, UnbraidError):
        return type(problem), str(problem)
    return RanksError, str(problem) if isinstance(problem, OSError) else f"{type(problem).__name__}: {_line(problem)}"


def _everywhere(error: Exception) -> Exception:
    if isinstance(error, UnbraidError | OSError):
        _shared.append(error)
    return error


@contextmanager
def _lost() -> Iterator[None]:
    """What torch raises where another process is gone becomes one line."""
    try:
        yield
    except RuntimeError as problem:
        raise RanksError(
            f"another rank is gone or hangs ({_line(problem)}): what it said comes before this; start all of them "
            "again with --resume"
        ) from problem


def _group() -> Any:
    """Objects travel by gloo, whatever gradients do: through memory, and without waking a GPU."""
    if distributed.get_backend() == "gloo":
        return None
    if not _messages:
        _messages.append(distributed.new_group(backend="gloo", timeout=PATIENCE))
    return _messages[0]


def _joined() -> bool:
    return distributed.is_available() and distributed.is_initialized()


def _line(problem: BaseException) -> str:
    text = str(problem).strip()
    return text.splitlines()[0] if text else type(problem).__name__

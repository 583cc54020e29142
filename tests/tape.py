"""What CUDA does in recording a graph, on the CPU: the same operations again, on the same tensors, and no Python."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

LOOKS = ("aten::item", "aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::is_nonzero")
"""Operations that need an answer from the device: CUDA refuses to record them."""


def storages(values: Any) -> dict[int, torch.Tensor]:
    """The tensors in there by the address of their storage."""
    return {x.untyped_storage().data_ptr(): x for x in tree_leaves(values) if isinstance(x, torch.Tensor)}


class Tape(TorchDispatchMode):
    """Stands in for `torch.cuda.CUDAGraph`: what runs within `record` has no effect until `replay`."""

    def __init__(self):
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []
        self._before: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self.replayed = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func._schema.name in LOOKS:
            raise RuntimeError(f"operation not permitted when stream is capturing: {func._schema.name}")
        written = [
            value
            for value, told in zip(args, func._schema.arguments, strict=False)
            if told.alias_info and told.alias_info.is_write
        ]
        for address, tensor in storages(written).items():
            whole = torch.empty(0, dtype=tensor.dtype).set_(tensor.untyped_storage())
            self._before.setdefault(address, (whole, whole.clone()))
        found = func(*args, **kwargs)
        self.calls.append((func, args, kwargs, found))
        return found

    @contextmanager
    def record(self) -> Iterator[None]:
        """Write down what runs; then everything is as it was."""
        try:
            with self:
                yield
        finally:
            for tensor, before in self._before.values():
                tensor.copy_(before)

    def replay(self) -> None:
        """Run it: results go to where they went when it was written down."""
        self.replayed += 1
        for func, args, kwargs, recorded in self.calls:
            found, given = func(*args, **kwargs), storages((args, kwargs))
            for old, new in zip(tree_leaves(recorded), tree_leaves(found), strict=True):
                if isinstance(old, torch.Tensor) and old.untyped_storage().data_ptr() not in given:
                    old.copy_(new)


class TapeRecorder:
    """Stands in for `fixed.Recorder`; `tapes` are those of all of them."""

    tapes: ClassVar[list[Tape]] = []

    def __init__(self, _: torch.device): ...

    def run(self, advance: Callable[[], torch.Tensor]) -> torch.Tensor:
        return advance()

    def record(self, advance: Callable[[], torch.Tensor]) -> tuple[Tape, torch.Tensor]:
        tape = Tape()
        with tape.record():
            found = advance()
        self.tapes.append(tape)
        return tape, found

"""Gradients as count-sketches: inner products of gradients without keeping a gradient.

A tensor's gradient of n numbers becomes `width` numbers, each a sum of entries with random signs. Signs and places are
the same for every gradient of that tensor, so sketches add up as gradients do, and

    E ⟨sketch x, sketch y⟩ = ⟨x, y⟩,    deviation at most about ‖x‖ ‖y‖ √(2 / width)

Tensors are sketched one by one, while the backward pass is still at work on the next one: neither a whole gradient nor
a `.grad` stays. Inner products of whole gradients are sums over tensors, whose errors are independent.

Source: Charikar, Chen, Farach-Colton 2002. Choice: an entry's place is its index plus a random shift per block of
`width` entries, so that blocks lie on each other without a scatter; entries of one block never collide, those of two do
with chance 1 / width, as in a count-sketch.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from zlib import crc32

import torch
from torch import Tensor, nn

WIDTH = 4096
"""Choice: a tensor with this many numbers or fewer is kept exactly; angles of larger ones are good to about .02."""
KEPT_SIGNS = 1 << 24
"""Numbers whose signs are kept between gradients (a byte each); beyond that they are drawn anew every time."""

Sketch = dict[str, Tensor]
"""Tensor name → its sketch, (min(n, width),), float32."""


class Sketcher:
    """Sketches gradients of a fixed list of parameters.

    Args:
        parameters: (name, parameter); names key the random signs.
        width: numbers per tensor; None keeps gradients exactly.
    """

    def __init__(self, parameters: Sequence[tuple[str, nn.Parameter]], width: int | None = WIDTH):
        self.parameters, self.width = list(parameters), width
        self._keeps = sum(p.numel() for _, p in self.parameters) <= KEPT_SIGNS
        self._signs: dict[str, tuple[Tensor, list[int]]] = {}

    @contextmanager
    def into(self, sketch: Sketch) -> Iterator[None]:
        """Within, backward passes add to `sketch` instead of to `.grad`, which is as before afterwards."""
        before = [p.grad for _, p in self.parameters]
        for _, parameter in self.parameters:
            parameter.grad = None
        hooks = [p.register_post_accumulate_grad_hook(self._hook(name, sketch)) for name, p in self.parameters]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
            for (_, parameter), grad in zip(self.parameters, before, strict=True):
                parameter.grad = grad

    def _hook(self, name: str, sketch: Sketch):
        def take(parameter: Tensor) -> None:
            grad, parameter.grad = parameter.grad, None
            if grad is not None:
                found = self(name, grad)
                sketch[name] = sketch[name] + found if name in sketch else found

        return take

    def __call__(self, name: str, grad: Tensor) -> Tensor:
        """The sketch of one tensor's gradient."""
        flat = grad.detach().flatten().float()
        width = self.width
        if width is None or len(flat) <= width:
            return flat.clone()
        signs, shifts = self._drawn(name, len(flat), width, flat.device)
        blocks = nn.functional.pad(flat * signs, (0, -len(flat) % width)).view(-1, width)
        found = torch.zeros(width, device=flat.device)
        for block, shift in zip(blocks, shifts, strict=True):
            found += block.roll(shift)
        return found

    def _drawn(self, name: str, length: int, width: int, device: torch.device) -> tuple[Tensor, list[int]]:
        """Signs (length,) int8, and the shift of every block; always the same for a name on one kind of device."""
        if name in self._signs:
            return self._signs[name]
        generator = torch.Generator(device).manual_seed(crc32(name.encode()))
        signs = torch.empty(length, dtype=torch.int8, device=device).random_(0, 2, generator=generator) * 2 - 1
        shifts = torch.randint(width, (-(-length // width),), generator=generator, device=device).tolist()
        if self._keeps:
            self._signs[name] = signs, shifts
        return signs, shifts


def inner_products(sketches: Sequence[Sketch]) -> dict[str, Tensor]:
    """Of every tensor, the inner products of K gradients: name → (K, K) float64. A tensor without gradient is 0."""
    names = sorted({name for sketch in sketches for name in sketch})
    found = {}
    for name in names:
        size = next(len(sketch[name]) for sketch in sketches if name in sketch)
        rows = [sketch[name].double().cpu() if name in sketch else torch.zeros(size).double() for sketch in sketches]
        stacked = torch.stack(rows)
        found[name] = stacked @ stacked.T
    return found

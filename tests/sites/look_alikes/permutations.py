"""Keys under every order of their axes, where all or most sizes coincide: only one is the transpose.

Every order gives some attention (to keys whose axes are exchanged consistently) or none; what is raised
must be exact. Checking that there is a permutation, and not which one, is a known way to be wrong.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import permutations

from torch import Tensor

from tests.sites.look_alikes.case import LookAlike

SHAPES = ((1, 8, 8, 8), (2, 8, 8, 8), (8, 8, 8, 8), (1, 1, 8, 8))


def keys_permuted(order: tuple[int, ...], form: str) -> LookAlike:
    def function(q: Tensor, k: Tensor, v: Tensor, m: Tensor) -> Tensor:
        scores = q @ k.permute(order)
        scores = {"divided": scores / 3, "multiplied": scores * 0.3, "masked": scores / 3 + m}[form]
        return scores.softmax(-1) @ v

    return LookAlike(function)


def orders() -> Iterator[tuple[int, ...]]:
    return permutations(range(4))


def cases() -> Iterator[tuple[str, LookAlike]]:
    """Yield every order of the keys' axes that leaves the shapes valid."""
    for shape in SHAPES:
        for order in orders():
            fits = tuple(shape[k] for k in order) == shape
            if not fits:
                continue
            form = ("divided", "multiplied", "masked")[sum(order[:2]) % 3]
            base = keys_permuted(order, form)
            name = f"keys {''.join(map(str, order))} of {'x'.join(map(str, shape))}, {form}"
            square = (shape[-1], shape[-1])
            yield name, LookAlike(base.function, (shape, shape, shape, square), ("attention",), reason=("",))


def values_permuted(order: tuple[int, ...]) -> LookAlike:
    def function(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (q @ k.mT).softmax(-1) @ v.permute(order)

    return LookAlike(function, ((4, 4, 4, 4),) * 3, ("attention",), reason=("",))


def scores_permuted(order: tuple[int, ...]) -> LookAlike:
    """The scores change axes between product and softmax."""

    def function(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (q @ k.mT).permute(order).softmax(-1) @ v

    return LookAlike(function, ((4, 4, 4, 4),) * 3, ("attention", "slot-attention"), reason=("",))


def weights_permuted(order: tuple[int, ...]) -> LookAlike:
    def function(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (q @ k.mT).softmax(-1).permute(order) @ v

    return LookAlike(function, ((4, 4, 4, 4),) * 3, ("attention", "slot-attention"), reason=("",))


def reshaped(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Heads are split by a reshape where a transpose was meant: tokens and heads are mixed."""
    b, n, c = q.shape
    q, k, v = (x.reshape(b, 4, n, c // 4) for x in (q, k, v))
    return ((q @ k.mT).softmax(-1) @ v).reshape(b, n, c)


def reshaped_for_transposed(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.reshape(4, 4, 4, 4).view(4, 4, 16).mT.reshape(4, 4, 4, 4)).softmax(-1) @ v


def merged_wrongly(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The result is merged without being transposed back."""
    return ((q @ k.mT).softmax(-1) @ v).reshape(2, 8, 32)


CASES: dict[str, LookAlike] = {
    **dict(cases()),
    **{f"values {''.join(map(str, o))}": values_permuted(o) for o in orders()},
    **{f"scores {''.join(map(str, o))}": scores_permuted(o) for o in orders() if o[3] != 3},
    **{f"weights {''.join(map(str, o))}": weights_permuted(o) for o in orders() if o[3] != 3},
    "heads by a reshape": LookAlike(reshaped, ((2, 8, 32),) * 3, ("attention",), reason=("",)),
    "keys reshaped": LookAlike(reshaped_for_transposed, ((4, 4, 4, 4),) * 3, ("attention",), reason=("",)),
    "heads merged by a reshape": LookAlike(merged_wrongly, ((2, 4, 8, 8),) * 3, ("attention",), reason=("",)),
}

"""All look-alikes, by module and name."""

from __future__ import annotations

from tests.sites.look_alikes import (
    axes,
    chains,
    denominators,
    gates,
    heads,
    masks,
    mutation,
    permutations,
    readers,
    vision,
    weights,
)
from tests.sites.look_alikes.case import LookAlike

__all__ = ["CASES"]

_MODULES = {
    "axes": axes,
    "chains": chains,
    "denominators": denominators,
    "gates": gates,
    "heads": heads,
    "masks": masks,
    "mutation": mutation,
    "permutations": permutations,
    "readers": readers,
    "vision": vision,
    "weights": weights,
}

CASES: dict[str, LookAlike] = {
    f"{module}: {name}": case for module, cases in _MODULES.items() for name, case in cases.CASES.items()
}

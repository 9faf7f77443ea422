"""A corpus of the ways in which attention is written, collected from real code, by theme."""

from __future__ import annotations

from tests.sites.spellings.biases import BIASES
from tests.sites.spellings.caches import CACHES
from tests.sites.spellings.entry import Spelling
from tests.sites.spellings.groups import GROUPS
from tests.sites.spellings.heads import HEADS
from tests.sites.spellings.layouts import LAYOUTS
from tests.sites.spellings.loops import LOOPS
from tests.sites.spellings.masks import MASKS
from tests.sites.spellings.modules import MODULES
from tests.sites.spellings.products import PRODUCTS
from tests.sites.spellings.projections import PROJECTIONS
from tests.sites.spellings.published import PUBLISHED
from tests.sites.spellings.scores import SCORES
from tests.sites.spellings.sizes import SIZES
from tests.sites.spellings.softmaxes import SOFTMAXES

__all__ = ["SPELLINGS", "Spelling"]

SPELLINGS: dict[str, Spelling] = {
    **PUBLISHED,
    **PROJECTIONS,
    **LAYOUTS,
    **PRODUCTS,
    **SOFTMAXES,
    **MASKS,
    **BIASES,
    **SCORES,
    **GROUPS,
    **CACHES,
    **HEADS,
    **LOOPS,
    **MODULES,
    **SIZES,
}

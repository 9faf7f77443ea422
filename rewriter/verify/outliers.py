"""Outliers of activations, and the heads that make them: why a model loses accuracy in 8 bits.

A head that is to change nothing cannot give zeros with a softmax. It gives almost all weight to a token
without content, for which training makes ever larger scores and activations (Quantizable Transformers,
arXiv:2306.12929). The figures are the paper's: infinity norm and kurtosis of what a block makes of tokens,
and how many heads do nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from rewriter.program.graph import Graph
from rewriter.program.program import Program
from rewriter.sites.site import AttentionSite

if TYPE_CHECKING:
    from rewriter.kernels.softmax.definition import Operands

__all__ = ["block_output", "idle_heads", "infinity_norm", "kurtosis"]


def infinity_norm(x: np.ndarray) -> float:
    """Return ``max |x|``."""
    return float(np.abs(x.astype(np.float64)).max(initial=0.0))


def kurtosis(x: np.ndarray) -> float:
    """Return ``E[(x - mean)⁴] / E[(x - mean)²]²`` over all elements.

    Of normal numbers it is 3, however large they are; one outlier among n equal numbers makes it about n.

    Examples
    --------
    >>> kurtosis(np.array([1.0, -1.0, 1.0, -1.0]))
    1.0
    >>> round(kurtosis(np.array([10.0] + [0.0] * 99)))
    98
    """
    apart = x.astype(np.float64) - x.astype(np.float64).mean()
    variance = float((apart**2).mean())
    return float((apart**4).mean()) / variance**2 if variance > 0.0 else 0.0


def idle_heads(x: Operands, above: float = 0.5) -> float:
    """Return the share of heads that give more than ``above`` of their weight to one token.

    The weight of a head is the mean over the queries that see a key; each element of the batch counts by
    itself.

    Parameters
    ----------
    x
        Operands of the site; its weights are those of the softmax.
    above
        Between 0 and 1.
    """
    from rewriter.kernels.softmax.definition import attention_weights, band_mask

    weights = attention_weights(x, band_mask(x.band, x.q.shape[2], x.k.shape[2]))
    received = weights.nanmean(dim=2).amax(dim=-1)
    return float((received > above).double().mean())


def block_output(program: Program, site: AttentionSite) -> str | None:
    """Return the value at which the result of a site joins the tokens that went around it, or None.

    That is the first value that is made of the site's result and of another tensor of the same shape that
    depends on the inputs and not on the site: the residual sum, in whatever operator.
    """
    graph = program.graph
    from_inputs, from_site = _after(graph, set(graph.inputs)), {site.output}
    for node in graph.nodes[graph.position[site.anchor] + 1 :]:
        read = [name for name in node.inputs if name is not None]
        if not from_site.intersection(read):
            continue
        beside = [n for n in read if n in from_inputs and n not in from_site]
        if any(_shape(program, n) == _shape(program, node.outputs[0]) for n in beside):
            return node.outputs[0]
        from_site.update(node.outputs)
    return None


def _after(graph: Graph, known: set[str]) -> set[str]:
    """Return all values that depend on the known ones."""
    found = set(known)
    for node in graph.nodes:
        if found.intersection(node.inputs):
            found.update(node.outputs)
    return found


def _shape(program: Program, name: str) -> object:
    value = program.graph.values.get(name)
    return name if value is None or value.shape is None else value.shape

"""What the outputs of a traced module are called."""

from __future__ import annotations

from typing import Any

from torch.export import ExportedProgram
from torch.fx import Node
from torch.utils import _pytree as pytree

from rewriter.program.fx_view import hidden_outputs

__all__ = ["structured_names"]


def structured_names(exported: ExportedProgram) -> tuple[str, ...] | None:
    """Return the paths of the tensors in what the module returns: ``past.0.k``.

    None where no part of the structure has a key, so that paths say no more than positions, or where two
    would have one name.
    """
    spec = exported.call_spec.out_spec
    (returned,) = exported.graph.output_node().args
    nodes = pytree.tree_leaves(returned)[hidden_outputs(exported) :]
    if spec is None or spec.num_leaves != len(nodes):
        return None
    try:
        leaves = pytree.tree_flatten_with_path(pytree.tree_unflatten(range(len(nodes)), spec))[0]
    except (TypeError, ValueError, KeyError, AttributeError):
        return None  # of a class that cannot be made of numbers, or does not tell its keys
    paths = [path for path, at in leaves if isinstance(nodes[at], Node)]
    names = tuple(".".join(map(_key, path)) for path in paths)
    keyed = any(not isinstance(key, pytree.SequenceKey) for path in paths for key in path)
    return names if keyed and len(set(names)) == len(names) else None


def _key(key: Any) -> str:
    return str(getattr(key, "key", getattr(key, "idx", getattr(key, "name", key))))

"""Runs of a traced program in a row: each starts from what the one before has written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.export.graph_signature import InputKind
from torch.utils import _pytree as pytree

from rewriter.program.tensors import to_numpy, to_torch

if TYPE_CHECKING:
    from rewriter.program.fx import FxProgram
    from rewriter.program.program import Arrays

__all__ = ["run_in_turn"]


def run_in_turn(program: FxProgram, cases: Sequence[Arrays]) -> dict[str, Any]:
    """Run the program's module on inputs, one after the other, from the state that the program holds now.

    The program's own state stays as it is. Nothing is copied on the way: a result that shares memory with
    what a later run writes has changed.

    Parameters
    ----------
    program
        It may write to buffers and to inputs.
    cases
        Inputs by name, for each run.

    Returns
    -------
    dict
        What the last run leaves in the buffers and inputs that are written, and what each has returned:
        what it is -> array.
    """
    exported = program.exported
    module = program.module()
    written = sorted(set(exported.graph_signature.buffers_to_mutate.values()))
    for name in written:
        _hold(module, name, module.get_buffer(name).clone())
    changed = set(exported.graph_signature.user_inputs_to_mutate.values())
    returned: list[list[Any]] = []
    inputs: list[dict[str, torch.Tensor]] = []
    with torch.no_grad():
        for case in cases:
            given = {name: to_torch(x).clone() for name, x in case.items()}
            args, kwargs = _structured(program, given)
            returned.append(pytree.tree_leaves(module(*args, **kwargs)))
            inputs.append({name: given[name] for name in sorted(changed)})
    found = {f"the buffer {name}": module.get_buffer(name) for name in written}
    for at, (outputs, kept) in enumerate(zip(returned, inputs, strict=True), 1):
        found |= {f"the input {name} after run {at}": x for name, x in kept.items()}
        found |= {f"output {k} of run {at}": x for k, x in enumerate(outputs)}
    return {name: to_numpy(x) for name, x in found.items() if isinstance(x, torch.Tensor)}


def _hold(module: torch.nn.Module, name: str, tensor: torch.Tensor) -> None:
    owner, _, last = name.rpartition(".")
    module.get_submodule(owner).register_buffer(last, tensor)


def _structured(program: FxProgram, given: Mapping[str, torch.Tensor]) -> tuple[Any, Any]:
    """Return inputs as the module takes them: positional ones, and those by name."""
    exported = program.exported
    names = [n.name for n in exported.graph.nodes if n.op == "placeholder"]
    specs = zip(names, exported.graph_signature.input_specs, strict=True)
    users = [(name, spec.arg) for name, spec in specs if spec.kind == InputKind.USER_INPUT]
    leaves = [given[name] if name in given else getattr(arg, "value", None) for name, arg in users]
    found: tuple[Any, Any] = pytree.tree_unflatten(leaves, exported.call_spec.in_spec)
    return found

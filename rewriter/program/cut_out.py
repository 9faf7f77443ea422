"""A part of a program as a program of its own, to be saved and looked at by itself."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rewriter.errors import InputError
from rewriter.program.program import Arrays, Program
from rewriter.program.tensors import to_torch

if TYPE_CHECKING:
    from rewriter.program.fx import FxProgram
    from rewriter.program.onnx import OnnxProgram

__all__ = ["cut_out_program", "part_inputs"]

SITES = "rewriter.sites"


def cut_out_program(
    program: Program,
    inputs: Sequence[str],
    outputs: Sequence[str],
    sample: Arrays,
    notes: Mapping[str, Mapping[str, str]] | None = None,
) -> Program:
    """Return the part of a program from some values to others; it shares the weights it needs.

    Parameters
    ----------
    program
        The whole.
    inputs, outputs
        Names of values; those that are graph inputs and needed must be among ``inputs``. Whole numbers that
        shapes decide are none in the part.
    sample
        One array per input: a program traced from PyTorch is for these sizes.
    notes
        What the part says of its sites, as `Program.metadata` has it.

    Raises
    ------
    InputError
        When the part needs something that is not given, or the format has no parts.
    """
    text = json.dumps({k: dict(v) for k, v in (notes or {}).items()}, sort_keys=True)
    metadata = {SITES: text} if notes else {}
    match program.format:
        case "fx":
            return _of_fx(program, inputs, outputs, sample, metadata)
        case "onnx":
            return _of_onnx(program, inputs, outputs, sample, metadata)
        case other:
            raise InputError(f"{program.source}: no part of a program in {other} can be cut out")


def part_inputs(program: Program, names: Sequence[str]) -> list[str]:
    """Return the values that a part can take as inputs: all but whole numbers that shapes decide."""
    if program.format != "fx":
        return list(names)
    import torch

    from rewriter.program.fx import FxProgram

    assert isinstance(program, FxProgram)
    nodes = program._apart.graph.nodes
    numbers = {n.name for n in nodes if isinstance(n.meta.get("val"), torch.SymInt)}
    return [name for name in names if name not in numbers]


def _of_onnx(
    program: Program,
    inputs: Sequence[str],
    outputs: Sequence[str],
    sample: Arrays,
    metadata: Mapping[str, str],
) -> OnnxProgram:
    from rewriter.program.onnx import OnnxProgram
    from rewriter.program.onnx_parts import cut_out

    assert isinstance(program, OnnxProgram)
    dtypes = {name: program.graph.values[name].dtype or str(sample[name].dtype) for name in inputs}
    part = cut_out(program._apart, program.graph, inputs, outputs, dtypes)
    part.metadata_props.update(metadata)
    return OnnxProgram(part, f"a part of {program.source}")


def _of_fx(
    program: Program,
    inputs: Sequence[str],
    outputs: Sequence[str],
    sample: Arrays,
    metadata: Mapping[str, str],
) -> FxProgram:
    import torch

    from rewriter.program.fx import FxProgram, trace
    from rewriter.program.fx_part import needed_weights, tensor_part

    assert isinstance(program, FxProgram)
    exported, graph = program._apart, program.graph
    inputs = part_inputs(program, inputs)
    weights = needed_weights(exported, graph, inputs, outputs)

    class Part(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name, held in weights.items():
                if isinstance(held, torch.Tensor):
                    self.register_buffer(name, held.detach())

        def forward(self, *given: Any) -> tuple[Any, ...]:
            bound = {n: getattr(self, n) if isinstance(x, torch.Tensor) else x for n, x in weights.items()}
            compute = tensor_part(exported, graph, inputs, outputs, bound)
            return tuple(compute(given))

    found = trace(Part(), tuple(to_torch(sample[name]) for name in inputs))
    return FxProgram(found.exported, f"a part of {program.source}", metadata)

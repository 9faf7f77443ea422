"""Products of many tensors in an ONNX model, taken apart into chains of products of two."""

from __future__ import annotations

import onnx_ir as ir

from rewriter.program.chains import Chains
from rewriter.program.onnx_parts import main_values

__all__ = ["taken_apart"]


def taken_apart(model: ir.Model, chains: Chains) -> ir.Model:
    """Return a copy of a model with chains in the place of products; it shares the weights."""
    model = model.clone()
    values = main_values(model)
    for *before, last in chains.values():
        anchor = values[last.name].producer()
        assert anchor is not None
        for product in before:
            node = ir.Node(
                anchor.domain,
                anchor.op_type,
                [values[name] for name in product.operands],
                [ir.AttrString("equation", product.equation)],
                outputs=[ir.Value(name=product.name)],
                name=product.name,
            )
            model.graph.insert_before(anchor, node)
            values[product.name] = node.outputs[0]
        for at, name in enumerate(last.operands):
            anchor.replace_input_with(at, values[name])
        for at in range(len(last.operands), len(anchor.inputs)):
            anchor.replace_input_with(at, None)
        anchor.resize_inputs(len(last.operands))
        anchor.attributes.add(ir.AttrString("equation", last.equation))
    return model

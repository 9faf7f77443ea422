"""Passes: what a user applies to a program. One file per pass; the file name is that of its form or rule."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

from rewriter.errors import InputError

if TYPE_CHECKING:
    from rewriter.engine import Pass
    from rewriter.forms import Form
    from rewriter.passes.affine_weights import AffineWeights
    from rewriter.passes.agent import AgentAttention
    from rewriter.passes.blend import Blend
    from rewriter.passes.branch_softmax import BranchSoftmax
    from rewriter.passes.branch_sum import BranchSum
    from rewriter.passes.clean_up import CleanUp
    from rewriter.passes.clipped import ClippedAttention
    from rewriter.passes.dead_branches import DeadBranches
    from rewriter.passes.flow import FlowAttention
    from rewriter.passes.folded_outputs import FoldedOutputs
    from rewriter.passes.folded_scales import FoldedScales
    from rewriter.passes.fused_attention import FusedAttention
    from rewriter.passes.gated import GatedAttention
    from rewriter.passes.gelu import Gelu
    from rewriter.passes.global_pool import GlobalPool
    from rewriter.passes.group_norm import GroupNorm
    from rewriter.passes.hard_swish import HardSwish
    from rewriter.passes.joint_pools import JointPools
    from rewriter.passes.l2_norm import L2Norm
    from rewriter.passes.layer_norm import LayerNorm
    from rewriter.passes.linear import LinearAttention
    from rewriter.passes.loop_invariants import LoopInvariants
    from rewriter.passes.merge import MergedAttention
    from rewriter.passes.mish import Mish
    from rewriter.passes.nystrom import NystromAttention
    from rewriter.passes.pooled import PooledAttention
    from rewriter.passes.reassociated import ReassociatedAttention
    from rewriter.passes.reassociation import Reassociation
    from rewriter.passes.reparameterize import Reparameterize
    from rewriter.passes.rms_norm import RmsNorm
    from rewriter.passes.rotary import Rotary
    from rewriter.passes.shared_projections import SharedProjections
    from rewriter.passes.silu import Silu
    from rewriter.passes.softmax import SoftmaxAttention
    from rewriter.passes.softplus import Softplus
    from rewriter.passes.split_sources import SplitSources
    from rewriter.passes.squeeze_excite import SqueezeExcite
    from rewriter.passes.stable_softmax import StableSoftmax
    from rewriter.passes.static_operands import StaticOperands
    from rewriter.passes.unmoved_gates import UnmovedGates
    from rewriter.passes.unread_queries import UnreadQueries
    from rewriter.passes.unseen_keys import UnseenKeys
    from rewriter.passes.weight_absorption import WeightAbsorption
    from rewriter.passes.window import WindowAttention
    from rewriter.program.program import Program
    from rewriter.rules import Rule

__all__ = [
    "AffineWeights",
    "AgentAttention",
    "Blend",
    "BranchSoftmax",
    "BranchSum",
    "CATALOG",
    "CleanUp",
    "ClippedAttention",
    "DeadBranches",
    "FlowAttention",
    "FoldedOutputs",
    "FoldedScales",
    "FusedAttention",
    "GatedAttention",
    "Gelu",
    "GlobalPool",
    "GroupNorm",
    "HardSwish",
    "L2Norm",
    "JointPools",
    "LayerNorm",
    "LinearAttention",
    "LoopInvariants",
    "MergedAttention",
    "Mish",
    "NystromAttention",
    "PooledAttention",
    "RULES",
    "ReassociatedAttention",
    "Reassociation",
    "Reparameterize",
    "RmsNorm",
    "Rotary",
    "Sequential",
    "SharedProjections",
    "Silu",
    "SoftmaxAttention",
    "Softplus",
    "SplitSources",
    "SqueezeExcite",
    "StableSoftmax",
    "StaticOperands",
    "UnmovedGates",
    "UnreadQueries",
    "UnseenKeys",
    "WeightAbsorption",
    "WindowAttention",
    "form_type",
    "get",
    "parse_form",
    "parse_rules",
]

CATALOG = {
    "agent": "rewriter.passes.agent:AgentAttention",
    "clipped": "rewriter.passes.clipped:ClippedAttention",
    "flow": "rewriter.passes.flow:FlowAttention",
    "gated": "rewriter.passes.gated:GatedAttention",
    "linear": "rewriter.passes.linear:LinearAttention",
    "merge": "rewriter.passes.merge:MergedAttention",
    "nystrom": "rewriter.passes.nystrom:NystromAttention",
    "pooled": "rewriter.passes.pooled:PooledAttention",
    "reassociated": "rewriter.passes.reassociated:ReassociatedAttention",
    "softmax": "rewriter.passes.softmax:SoftmaxAttention",
    "window": "rewriter.passes.window:WindowAttention",
}
"""Name of the form -> where the pass is; imported when it is asked for."""

RULES = {
    "affine-weights": "rewriter.passes.affine_weights:AffineWeights",
    "blend": "rewriter.passes.blend:Blend",
    "branch-softmax": "rewriter.passes.branch_softmax:BranchSoftmax",
    "branch-sum": "rewriter.passes.branch_sum:BranchSum",
    "clean-up": "rewriter.passes.clean_up:CleanUp",
    "dead-branches": "rewriter.passes.dead_branches:DeadBranches",
    "folded-outputs": "rewriter.passes.folded_outputs:FoldedOutputs",
    "folded-scales": "rewriter.passes.folded_scales:FoldedScales",
    "fused-attention": "rewriter.passes.fused_attention:FusedAttention",
    "gelu": "rewriter.passes.gelu:Gelu",
    "global-pool": "rewriter.passes.global_pool:GlobalPool",
    "group-norm": "rewriter.passes.group_norm:GroupNorm",
    "hard-swish": "rewriter.passes.hard_swish:HardSwish",
    "joint-pools": "rewriter.passes.joint_pools:JointPools",
    "l2-norm": "rewriter.passes.l2_norm:L2Norm",
    "layer-norm": "rewriter.passes.layer_norm:LayerNorm",
    "loop-invariants": "rewriter.passes.loop_invariants:LoopInvariants",
    "mish": "rewriter.passes.mish:Mish",
    "reassociation": "rewriter.passes.reassociation:Reassociation",
    "reparameterize": "rewriter.passes.reparameterize:Reparameterize",
    "rms-norm": "rewriter.passes.rms_norm:RmsNorm",
    "rotary": "rewriter.passes.rotary:Rotary",
    "shared-projections": "rewriter.passes.shared_projections:SharedProjections",
    "silu": "rewriter.passes.silu:Silu",
    "softplus": "rewriter.passes.softplus:Softplus",
    "split-sources": "rewriter.passes.split_sources:SplitSources",
    "squeeze-excite": "rewriter.passes.squeeze_excite:SqueezeExcite",
    "stable-softmax": "rewriter.passes.stable_softmax:StableSoftmax",
    "static-operands": "rewriter.passes.static_operands:StaticOperands",
    "unmoved-gates": "rewriter.passes.unmoved_gates:UnmovedGates",
    "unread-queries": "rewriter.passes.unread_queries:UnreadQueries",
    "unseen-keys": "rewriter.passes.unseen_keys:UnseenKeys",
    "weight-absorption": "rewriter.passes.weight_absorption:WeightAbsorption",
}
"""Name of the rule -> where it is. All of them together, each where it pays, are ``exact``.

The order is that of the names; it decides which of two rules that fit one place has it. None comes too early:
`rewriter.rules.fuse` applies those that look at the whole graph again, until none finds more.
"""


def get(name: str) -> type[Pass]:
    """Return the pass of a form.

    Raises
    ------
    InputError
        When there is none; the message lists what there is.
    """
    if name in RULES or name == "exact":
        raise InputError(
            f"{name} is no form but a rule, without parameters and selector: give its name alone"
        )
    if name not in CATALOG:
        raise InputError(f"there is no form {name!r}; there are {', '.join(sorted(CATALOG))}")
    module, _, attribute = CATALOG[name].partition(":")
    found: type[Pass] = getattr(import_module(module), attribute)
    return found


def form_type(name: str) -> type[Form]:
    """Return the class of a form by its name; see `get`."""
    return get(name).form_type


def parse_form(text: str) -> Form:
    """Read ``window:window=512,sinks=4``.

    Raises
    ------
    InputError
        When the form or a parameter is unknown, or a value is not allowed.
    """
    name, _, settings = text.strip().partition(":")
    kind = form_type(name.strip())
    try:
        return kind.parse([s for s in settings.split(",") if s.strip()])
    except ValueError as error:
        raise InputError(str(error)) from error


def parse_rules(text: str) -> tuple[Rule, ...] | None:
    """Read ``layer-norm``, ``exact`` (every rule) or ``package.module:Class``; None if it is none of these.

    Raises
    ------
    InputError
        When a class cannot be imported, or is no rule.
    """
    from rewriter.verify.callables import is_callable_name

    name = text.strip()
    if name == "exact":
        return tuple(_rule(where, asked=False) for where in RULES.values())
    if name in RULES:
        return (_rule(RULES[name]),)
    if is_callable_name(name) and name.partition(":")[0] not in CATALOG:
        return (_rule(name),)
    return None


def _rule(where: str, *, asked: bool = True) -> Rule:
    from rewriter.rules import Rule
    from rewriter.verify.callables import find_callable

    found = find_callable(where, "rule")
    if not (isinstance(found, type) and issubclass(found, Rule)):
        raise InputError(f"rule {where}: expected a class derived from rewriter.rules.Rule")
    try:
        return found(asked=asked)
    except Exception as error:  # a class of the user's raises what it likes
        raise InputError(f"rule {where}: it cannot be made: {error}") from error


class Sequential:
    """Passes applied one after the other, each to the result of the one before.

    Parameters
    ----------
    passes
        In order.
    """

    def __init__(self, *passes: Pass | Rule) -> None:
        self.passes: Sequence[Pass | Rule] = passes

    def __call__(self, program: Program) -> Program:
        """Return the program that the last pass returns."""
        for step in self.passes:
            program = step(program)
        return program


def __getattr__(name: str) -> Any:
    for target in (*CATALOG.values(), *RULES.values()):
        module, _, attribute = target.partition(":")
        if attribute == name:
            return getattr(import_module(module), attribute)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""How large a floating-point difference may be: derived from the original, not guessed.

**Of a site.** Old and new computation are compared with a float64 evaluation of the same formula. The
new one may be `SITE_FACTOR` times as wrong as the old one is: another order of the same sums changes an
error by a small factor, a wrong formula by orders of magnitude. Where the old one happens to be exact
(ties, one key, zeros) its error says nothing, so `floor` stands in: a few units in the last place of
the largest exact value, because every output is a sum of values of about that size and is rounded once
per term.

**End to end.** There is no float64 run of a whole model. Instead each weight and each floating input is
moved by one unit in the last place, up or down at random, which is at least the rounding that any
operator may apply to them. How much the original's outputs respond is how far they are determined at
all in this precision; an exact rewrite may differ `MODEL_FACTOR` times as much. The factor covers that a
perturbation stands for one rounding per product while a rewrite reorders whole sums, and that the
response is sampled with few seeds.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from rewriter.errors import InputError
from rewriter.program.program import Arrays, Program
from rewriter.program.tensors import to_numpy, to_torch
from rewriter.verify.distance import Tally
from rewriter.verify.metrics import is_floating, max_abs, pattern_mismatches
from rewriter.verify.progress import Progress, silent
from rewriter.verify.running import run

__all__ = [
    "MODEL_FACTOR",
    "SITE_FACTOR",
    "Response",
    "SiteVerdict",
    "epsilon",
    "floor",
    "judge_site",
    "perturbed",
    "perturbed_program",
    "perturbed_run",
    "response",
    "summation",
]

SITE_FACTOR = 4.0
"""A new computation of a site may have this many times the error of the old one."""

MODEL_FACTOR = 16.0
"""A rewritten model may differ this many times as much as the original responds to its last bits."""

FLOOR_ULPS = 2.0
"""Units in the last place of the largest value below which an error says nothing."""

DOUBLE_ULPS = 256.0
"""The same where the graph computes in float64, as the reference does: scores of some hundreds round, too."""

LEAST_WEIGHTS = 17
"""Shorter tensors may be parameters of an operator (scales of a resize), where a last bit changes a shape."""


def epsilon(dtype: str | np.dtype) -> float:
    """Return the distance from 1 to the next number of a floating dtype."""
    try:
        return float(np.finfo(np.dtype(dtype)).eps)
    except (TypeError, ValueError):
        import ml_dtypes

        return float(ml_dtypes.finfo(dtype).eps)


def floor(exact: np.ndarray, dtype: str | np.dtype) -> float:
    """Return the error below which a result of this size says nothing: `FLOOR_ULPS` · eps · max |exact|."""
    finite = np.abs(exact[np.isfinite(exact)])
    ulps = DOUBLE_ULPS if epsilon(dtype) < 1e-12 else FLOOR_ULPS
    return ulps * epsilon(dtype) * float(finite.max(initial=0.0))


def summation(exact: np.ndarray, dtype: str | np.dtype, terms: int) -> float:
    """Return the error that a sum of ``terms`` numbers may have by its order: √terms · eps / 2 · max |exact|.

    Roundings of equal terms add up in one order and hardly occur in another, in blocks. The bound is the
    probabilistic one of Higham and Mary, "A new approach to probabilistic rounding error analysis" (2019).
    """
    finite = np.abs(exact[np.isfinite(exact)])
    return float(np.sqrt(terms)) * epsilon(dtype) / 2 * float(finite.max(initial=0.0))


@dataclass(frozen=True, slots=True)
class SiteVerdict:
    """Whether a new computation of a site is as right as the old one.

    Parameters
    ----------
    ok
        Same NaN and inf pattern, and ``error <= tolerance``.
    error, original_error
        Largest absolute error of the new and of the old computation against float64.
    tolerance
        What the error may be.
    pattern
        Places where one is NaN or inf and the other is not the same.
    """

    ok: bool
    error: float
    original_error: float
    tolerance: float
    pattern: int

    def __str__(self) -> str:
        if self.pattern:
            return f"{self.pattern} elements are NaN or inf in one of the two only"
        if not self.ok and self.error <= self.tolerance:
            return f"the graph differs from its formula by {self.original_error:.2e}: that is no rounding"
        verb = "within" if self.ok else "over"
        return (
            f"error {self.error:.2e} against float64 is {verb} {self.tolerance:.2e}"
            f" (the original's own error is {self.original_error:.2e})"
        )


PLAUSIBLE = 0.1
"""How far the original may be from its formula, relative to the largest value, to be believed.

An error of this size in single precision is no rounding: the formula is not what the graph computes.
"""


def judge_site(exact: np.ndarray, old: np.ndarray, new: np.ndarray, dtype: str | np.dtype) -> SiteVerdict:
    """Return whether ``new`` may replace ``old``.

    Parameters
    ----------
    exact
        The formula in float64.
    old, new
        What the native runtime gives for the original and for the rewritten region.
    dtype
        dtype of the computation.
    """
    if old.shape != new.shape:
        return SiteVerdict(False, np.inf, 0.0, 0.0, max(old.size, new.size))
    # where the original overflows and its formula does not, the formula is what is wanted
    seen = np.isfinite(old.astype(np.float64))
    spared = ~seen & np.isfinite(exact) & np.isfinite(new.astype(np.float64))
    pattern = pattern_mismatches(np.where(spared, 0, old), np.where(spared, 0, new))
    before = max_abs(np.where(seen, exact, 0.0), np.where(seen, old, 0))
    compared = np.where(seen | spared, exact, 0.0)
    after = max_abs(compared, np.where(seen | spared, new, 0))
    tolerance = SITE_FACTOR * max(before, floor(compared, dtype))
    # what single precision absorbs (a score in a bias of -1e9) the new computation absorbs, too
    apart = min(before, max_abs(np.where(seen, old, 0), np.where(seen, new, 0)))
    believed = epsilon(dtype) > 1e-6 or apart <= PLAUSIBLE * np.abs(compared).max(initial=0.0)
    return SiteVerdict(pattern == 0 and after <= tolerance and believed, after, before, tolerance, pattern)


def perturbed(array: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the array with every number moved to one of its two neighbours, at random.

    Zeros (a pruned weight, a padded row), the largest finite numbers, infinities and NaN stay.
    """
    if not is_floating(array.dtype) or not array.size:
        return array
    bits = np.ascontiguousarray(array).view(f"i{array.dtype.itemsize}").copy()
    step = rng.integers(0, 2, size=bits.shape, dtype=np.int8) * 2 - 1
    limit = _largest(array.dtype)
    moves = (array != 0) & (np.abs(array.astype(np.float64)) < limit)
    # the magnitude of a float grows with its bits read as an integer, whatever the sign bit
    bits += np.where(moves, step, 0).astype(bits.dtype)
    return bits.view(array.dtype).reshape(array.shape)


@dataclass(slots=True)
class Response:
    """How one output moves when the last bits of weights and inputs do.

    Parameters
    ----------
    tally
        All measures of a floating output, pooled over the perturbations.
    unstable
        Of an integer or boolean output, the elements (flat positions) that are not always the same.
    """

    tally: Tally = field(default_factory=Tally)
    unstable: set[int] = field(default_factory=set)

    def add(self, x: np.ndarray, y: np.ndarray) -> None:
        """Add an output and what it is under one perturbation."""
        if x.shape != y.shape:
            # the shape hangs on the last bits: no element is determined
            self.unstable.update(range(x.size))
        elif is_floating(x.dtype):
            self.tally.add(x, y)
        else:
            self.unstable.update(map(int, np.flatnonzero(x != y)))


def response(
    program: Program,
    cases: Sequence[tuple[Arrays, Sequence[np.ndarray]]],
    seeds: Iterable[int] = (0, 1, 2),
    progress: Progress = silent,
) -> list[list[float]]:
    """Return how much each output moves when the last bits of weights and inputs do.

    Parameters
    ----------
    program
        The original.
    cases
        Inputs by name, and the outputs that the program gives for them.
    seeds
        One perturbation each; the largest response counts.
    progress
        Told after each run.

    Returns
    -------
    list
        For every case, for every output, the largest absolute difference; 0 for outputs that are
        not floating.
    """
    found: list[list[Response]] = [[Response() for _ in outputs] for _, outputs in cases]
    seeds = list(seeds)
    for turn, seed in enumerate(seeds):
        moved = perturbed_program(program, seed)
        for at, (inputs, exact) in enumerate(cases):
            progress("noise floor", turn * len(cases) + at, len(seeds) * len(cases))
            for k, (x, y) in enumerate(zip(exact, perturbed_run(moved, inputs, seed, at), strict=True)):
                found[at][k].add(x, y)
    return [[r.tally.largest for r in row] for row in found]


def perturbed_run(moved: Program, inputs: Arrays, seed: int, at: int) -> list[np.ndarray]:
    """Run what `perturbed_program` returned on inputs whose last bits are moved, too.

    Parameters
    ----------
    moved
        The perturbed program.
    inputs
        By name.
    seed, at
        Decide which way each number goes.
    """
    rng = np.random.default_rng([seed, at])
    return run(moved, {name: perturbed(x, rng) for name, x in inputs.items()})


def perturbed_program(program: Program, seed: int) -> Program:
    """Return a program whose floating weights are moved by one unit in the last place.

    Raises
    ------
    InputError
        When the format of the program is not known here.
    """
    rng = np.random.default_rng(seed)
    match program.format:
        case "fx":
            return _perturbed_fx(program, rng)
        case "onnx":
            return _perturbed_onnx(program, rng)
        case "module":
            return _perturbed_module(program, rng)
        case other:
            raise InputError(f"{program.source}: the noise floor of a {other} program cannot be measured")


def _perturbed_fx(program: Program, rng: np.random.Generator) -> Program:
    import torch
    from torch.export import ExportedProgram

    from rewriter.program.fx import FxProgram
    from rewriter.program.fx_edit import copied

    assert isinstance(program, FxProgram)
    old = program.exported
    moved: dict[int, torch.Tensor] = {}

    def shifted(tensor: torch.Tensor) -> torch.Tensor:
        if not tensor.is_floating_point() or tensor.numel() < LEAST_WEIGHTS:
            return tensor
        # weights that are shared stay equal
        key = tensor.data_ptr()
        if key not in moved or moved[key].shape != tensor.shape:
            moved[key] = to_torch(perturbed(to_numpy(tensor), rng))
        # a parameter and a constant may be one tensor
        parameter = isinstance(tensor, torch.nn.Parameter)
        return torch.nn.Parameter(moved[key], tensor.requires_grad) if parameter else moved[key]

    constants = {n: shifted(x) if isinstance(x, torch.Tensor) else x for n, x in old.constants.items()}
    exported = ExportedProgram(
        root=old.graph_module,
        graph=copied(old.graph),
        graph_signature=old.graph_signature,
        state_dict={name: shifted(tensor) for name, tensor in old.state_dict.items()},
        range_constraints=old.range_constraints,
        module_call_graph=old.module_call_graph,
        example_inputs=old.example_inputs,
        constants=constants,
        verifiers=list(old.verifiers),
    )
    return FxProgram(exported, program.source)


def _perturbed_onnx(program: Program, rng: np.random.Generator) -> Program:
    import onnx_ir as ir

    from rewriter.program.onnx import OnnxProgram

    assert isinstance(program, OnnxProgram)
    model = program.model.clone()
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if tensor is not None and tensor.dtype.is_floating_point() and tensor.size >= LEAST_WEIGHTS:
            value.const_value = ir.tensor(perturbed(tensor.numpy(), rng), name=value.name)
    return OnnxProgram(model, program.source)


def _perturbed_module(program: Program, rng: np.random.Generator) -> Program:
    import copy

    from rewriter.verify.module_program import ModuleProgram

    assert isinstance(program, ModuleProgram)
    module = copy.deepcopy(program.weights)
    # a tensor that is shared is in the list once
    for tensor in [*module.parameters(), *module.buffers()]:
        if tensor.is_floating_point() and tensor.numel() >= LEAST_WEIGHTS:
            tensor.data = to_torch(perturbed(to_numpy(tensor), rng)).to(tensor.device)
    return ModuleProgram(module, program.like)


def _largest(dtype: np.dtype) -> float:
    try:
        return float(np.finfo(dtype).max)
    except ValueError:
        import ml_dtypes

        return float(ml_dtypes.finfo(dtype).max)

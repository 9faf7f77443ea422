"""The fused kernels that a program calls, as a package of their own: sources, definitions and a test.

Nothing of what is written imports this program; it needs PyTorch and Triton.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rewriter.errors import InputError
from rewriter.program.program import Program

__all__ = ["KernelCall", "check_package", "kernel_calls", "small", "write_kernels"]

FEW = 70
"""Tokens that Triton's interpreter is given: some tiles, the last one not full."""

LEAST_SIDE = 6
"""Of a grid that it is given."""

_IMPORT = re.compile(r"^from rewriter\.kernels\.(\w+)\.(\w+) import", re.MULTILINE)
_KERNELS = Path(__file__).parent / "kernels"


@dataclass(frozen=True)
class KernelCall:
    """How a program calls a kernel.

    Parameters
    ----------
    name
        ``window`` of ``torch.ops.rewriter.window``.
    operands
        Shape and dtype of each tensor, at one length where it may vary; None for one that there is not.
    settings
        Its other arguments.
    """

    name: str
    operands: tuple[tuple[tuple[int, ...], str] | None, ...]
    settings: Mapping[str, Any]


def kernel_calls(program: Program) -> tuple[KernelCall, ...]:
    """Return the different calls of fused kernels in a program, in order; none unless it is a traced one."""
    if program.format != "fx":
        return ()
    found: dict[str, KernelCall] = {}
    for node in program.module().graph.nodes:  # type: ignore[union-attr]
        if getattr(node.target, "namespace", None) == "rewriter":
            name = node.target._schema.name.partition("::")[2]
            settings = {key: _plain(value) for key, value in node.kwargs.items()}
            call = KernelCall(name, tuple(_kind(x) for x in node.args), settings)
            found.setdefault(json.dumps(asdict(call), sort_keys=True), call)
    return tuple(found.values())


def _of_small_maps(call: KernelCall) -> KernelCall:
    """Return a call with fewer channels and places; the first operand has an axis for the maps besides."""
    count = sum(x is not None for x in call.operands) - 1

    def fewer(at: int, shape: tuple[int, ...]) -> tuple[int, ...]:
        least = tuple(min(n, LEAST_SIDE) for n in (shape if at else shape[1:]))
        return least if at else (count, *least)

    operands = tuple(x and (fewer(at, x[0]), x[1]) for at, x in enumerate(call.operands))
    return replace(call, operands=operands)


def _of_small_sets(call: KernelCall) -> KernelCall:
    """Return a call of one batch and few tokens that have no heads."""
    operands = tuple(x and ((1, min(x[0][1], FEW), x[0][2]), x[1]) for x in call.operands)
    return replace(call, operands=operands)


def small(call: KernelCall) -> KernelCall:
    """Return a call of one batch, one head of keys and few tokens, with the same kinds of operands."""
    if call.name == "weighed":
        return _of_small_maps(call)
    if call.name == "nearest":
        return _of_small_sets(call)
    if call.name == "pools":
        shapes = ((tuple(min(n, LEAST_SIDE) for n in x[0]), x[1]) for x in call.operands if x is not None)
        return replace(call, operands=tuple(shapes))
    assert call.operands[0] is not None and call.operands[1] is not None, "queries and keys"
    (_, heads, queries, _), (_, groups, keys, _) = (x[0] for x in call.operands[:2] if x is not None)
    settings, share = dict(call.settings), heads // groups
    if settings.get("grid"):
        settings["grid"] = [min(n, LEAST_SIDE) for n in settings["grid"]]
        j = i = math.prod(settings["grid"]) + settings.get("sinks", 0)
    else:
        j = min(keys, FEW)
        i = j if queries == keys else min(queries, FEW // 3, j)
    if settings.get("offset"):
        settings["offset"] = min(settings["offset"], j - i)

    def fewer(at: int, shape: tuple[int, ...]) -> tuple[int, ...]:
        of_keys = at in (1, 2) or (call.name == "scan" and at == 3)
        head, tokens = (1, j) if of_keys else (share, i)
        last = j if at == 3 and not of_keys else shape[3]
        return (1, min(head, shape[1]), min(tokens, shape[2]), min(last, shape[3]))

    operands = tuple(x and (fewer(at, x[0]), x[1]) for at, x in enumerate(call.operands))
    return KernelCall(call.name, operands, settings)


def check_package(directory: str | os.PathLike[str]) -> Path:
    """Return where a package can be written.

    Raises
    ------
    InputError
        When the name is none of a package, or something is there that is not an empty directory.
    """
    path = Path(directory)
    if not path.name.isidentifier():
        raise InputError(f"{path}: no name of a package; expected letters, digits and _, no digit first")
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise InputError(f"{path} exists; give a new directory for the kernels")
    if not path.resolve().parent.is_dir():
        raise InputError(f"{path}: the directory {path.resolve().parent} does not exist; create it first")
    return path


def write_kernels(program: Program, directory: str | os.PathLike[str]) -> tuple[str, ...]:
    """Write the kernels that a program calls as a package; return their names.

    Each kernel is ``<package>.<name>.fused_triton.forward``, its definition
    ``<package>.<name>.definition.by_settings``; ``test_kernels.py`` compares them with the settings of the
    program, on a GPU or in Triton's interpreter.

    Raises
    ------
    InputError
        When the program calls no kernel, or the package cannot be written.
    """
    path, calls = check_package(directory), kernel_calls(program)
    if not calls:
        raise InputError(
            f"{program.source} calls no fused kernel: its forms have none for its sites, or it was not"
            " rewritten for target triton"
        )
    names = tuple(dict.fromkeys(call.name for call in calls))
    files = {f"{form}/{module}.py": text for form, module, text in _sources(names)}
    files |= {f"{name.partition('/')[0]}/__init__.py": "" for name in files}
    files["__init__.py"] = f'"""Fused kernels of attention for Triton: {", ".join(names)}."""\n'
    few = tuple(map(small, calls))
    files["test_kernels.py"] = _TEST.replace("[CASES]", _cases(calls)).replace("[FEW]", _cases(few))
    try:
        for name, text in files.items():
            target = path / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}") from error
    return names


def _sources(names: tuple[str, ...]) -> Iterator[tuple[str, str, str]]:
    """Yield form, module and text of all that the kernels import, by relative imports."""
    pending = [(name, module) for name in names for module in ("fused_triton", "definition")]
    seen = set(pending)
    while pending:
        form, module = pending.pop(0)
        text = (_KERNELS / form / f"{module}.py").read_text(encoding="utf-8")
        needed = [needs for needs in _IMPORT.findall(text) if needs not in seen]
        pending += dict.fromkeys(needed)
        seen.update(needed)
        yield form, module, _IMPORT.sub(r"from ..\1.\2 import", text)


def _cases(calls: tuple[KernelCall, ...]) -> str:
    lines = [f"    ({call.name!r}, {list(call.operands)!r}, {dict(call.settings)!r})," for call in calls]
    return "\n".join(["[", *lines, "]"])


def _kind(x: Any) -> tuple[tuple[int, ...], str] | None:
    if x is None:
        return None
    value = x.meta["val"]
    return tuple(map(_plain, value.shape)), str(value.dtype).removeprefix("torch.")


def _plain(value: Any) -> Any:
    """Return a number for what is one when the model is traced, and lists for all kinds of them."""
    if hasattr(value, "meta"):
        value = value.meta["val"]
    if hasattr(value, "node"):
        return int(value.node.hint)
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value


_TEST = '''"""Each kernel against its definition, with the settings of the model: ``pytest test_kernels.py``.

Without a GPU, Triton's interpreter runs the kernels on few heads and tokens.
"""

import importlib
import os

import pytest
import torch

GPU = torch.cuda.is_available()
if not GPU:
    os.environ["TRITON_INTERPRET"] = "1"

# kernel, shape and dtype of each operand, and settings, as the model calls it
AS_TRACED = [CASES]

# the same of few heads and tokens
SMALL = [FEW]


def operand(kernel, at, shape, dtype, generator):
    x = torch.randn(shape, generator=generator)
    x = -x.abs() if kernel == "scan" and at == 3 else x  # a decay is never positive
    x = x.abs().ceil() if kernel == "nearest" and at > 3 else x  # a number of tokens
    return x.to(getattr(torch, dtype))


@pytest.mark.parametrize(("kernel", "operands", "settings"), AS_TRACED if GPU else SMALL)
def test_kernel_meets_its_definition(kernel, operands, settings):
    generator = torch.Generator().manual_seed(0)
    x = [o and operand(kernel, at, *o, generator) for at, o in enumerate(operands)]
    package = f"{__package__ or os.path.basename(os.path.dirname(os.path.abspath(__file__)))}.{kernel}"
    launch = importlib.import_module(f"{package}.fused_triton").forward
    defined = importlib.import_module(f"{package}.definition").by_settings
    found = launch(*(t.cuda() if GPU and t is not None else t for t in x), **settings)[0].cpu()
    want, eps = defined(*x, **settings), torch.finfo(found.dtype).eps
    bound = 64 * eps * max(1.0, float(want.abs().max()))
    torch.testing.assert_close(found.to(want.dtype), want, rtol=0, atol=bound)
'''

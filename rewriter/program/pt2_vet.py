"""What a ``.pt2`` archive may hold before PyTorch may load it.

Loading one evaluates its size expressions as Python, unpickles some members, opens compiled libraries
and looks up operators by dotted name. So every member must be one of those that a plain exported
program has, and all text that would be executed must match a grammar of plain data. Members are read
with the reader that the loading itself uses: a second opinion on the zip format would be a way around.
"""

from __future__ import annotations

import ast
import io
import json
import math
import pickle
import re
from collections.abc import Iterator
from typing import Any

import torch
from torch.export.pt2_archive._package import PT2ArchiveReader

from rewriter.errors import InputError

__all__ = ["vet_members"]

_MEMBERS = re.compile(
    r"archive_format|archive_version|byteorder|\.data/(version|serialization_id)|models/model\.json"
    r"|data/weights/(weight_\d+|model_weights_config\.json)"
    r"|data/constants/(tensor_\d+|model_constants_config\.json)|data/sample_inputs/model\.pt|extra/.+"
)
_MODEL = "models/model.json"
_SAMPLES = "data/sample_inputs/model.pt"
_PAYLOADS = ("data/weights/model_weights_config.json", "data/constants/model_constants_config.json")

_CALLS = frozenset(
    "Symbol Integer Rational Float Add Mul Pow Mod Max Min Abs floor ceiling Eq Ne Le Lt Ge Gt And Or Not"
    " StrictLessThan LessThan StrictGreaterThan GreaterThan Equality Unequality Piecewise ExprCondPair ITE"
    " FloorDiv ModularIndexing Where PythonMod CleanDiv CeilToInt FloorToInt CeilDiv LShift RShift"
    " PowByNatural FloatPow FloatTrueDiv IntTrueDiv TruncToFloat TruncToInt RoundToInt RoundDecimal"
    " IsNonOverlappingAndDenseIndicator ToFloat Identity".split()
)
_WORD = re.compile(r"[A-Za-z]\w*|-?\d+(\.\d*)?(e[+-]?\d+)?")
_LONGEST_EXPRESSION = 4096
_LARGEST_POWER = 64
_GUARD_TOKEN = re.compile(
    r"L(\['\w+'\]|\[\d+\])+(\.size\(\)\[\d+\])?|math\.inf|\d+|and|or|not|max|min|Mod|Max|Min|[-+*/%()=<>!, ]"
)

_PYTHON = {
    "_operator": "eq ne le ge lt gt neg pos mul add sub floordiv mod pow truediv getitem".split(),
    "math": "trunc floor ceil sqrt log exp pow".split(),
    "torch": "sym_not sym_int sym_float sym_ite sym_max sym_min sym_sqrt sym_sum _sym_sqrt".split(),
}
_HIGHER_ORDER = frozenset(
    "cond while_loop map_impl scan associative_scan wrap_with_set_grad_enabled wrap_with_autocast"
    " invoke_subgraph flex_attention auto_functionalized auto_functionalized_v2"
    " tag_activation_checkpoint".split()
)
_UNSAFE_OPERATORS = re.compile(
    r"torch\.ops\.(aten\.(from_file|set_|set_data|_print)|debugprims|debug_mode_ops|profiler|c10d|symm_mem|fsdp"
    r"|inductor|streams|static_runtime|image)\b"
)
"""They read or write files, other memory, or other processes."""

_EXPANDED = 1 << 26
"""Elements that a stored tensor may have without having that many bytes: it may repeat itself."""


def vet_members(reader: PT2ArchiveReader, path: str) -> None:
    """Raise `InputError` unless an archive is plain data that loading does not execute.

    Parameters
    ----------
    reader
        The archive, opened.
    path
        Its name, for messages.
    """
    names = reader.archive_file.get_all_records()
    if _MODEL not in names:
        raise InputError(
            f"{path}: holds no exported program ({_MODEL}); expected a file of torch.export.save"
        )
    for name in names:
        if not _MEMBERS.fullmatch(name) or ".." in name:
            raise InputError(
                f"{path}: member {name!r} is no part of a plain program; save it again with torch.export.save"
            )
    for name in _PAYLOADS:
        if name in names:
            content = _json(reader.read_bytes(name), f"{path}: {name}")
            _vet_payloads(content, f"{path}: {name}")
            _vet_tensors(content, reader, name, path)
    _vet_model(_json(reader.read_bytes(_MODEL), f"{path}: {_MODEL}"), f"{path}: {_MODEL}")
    if _SAMPLES in names:
        _vet_samples(reader.read_bytes(_SAMPLES), f"{path}: {_SAMPLES}")


def _json(data: bytes, where: str) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{where} is not JSON ({error}); save the program again with torch.export.save"
        ) from error


def _entries(content: Any) -> Iterator[tuple[str, Any]]:
    """Yield every key and value of nested JSON objects."""
    stack = [content]
    while stack:
        match stack.pop():
            case dict() as entries:
                yield from entries.items()
                stack.extend(entries.values())
            case list() as items:
                stack.extend(items)


def _vet_payloads(content: Any, where: str) -> None:
    for key, value in _entries(content):
        pickled = key == "use_pickle" and value
        # the loader goes by the file's name: custom and opaque objects are unpickled whatever the flag says
        if pickled or (key == "path_name" and not re.fullmatch(r"(weight|tensor)_\d+", str(value))):
            raise InputError(
                f"{where}: holds a pickled object, which could run code when it is loaded; "
                "load it in Python and call rewriter.trace(module, args)"
            )


def _vet_tensors(content: Any, reader: PT2ArchiveReader, name: str, path: str) -> None:
    """Check that the sizes of stored tensors are numbers, and that their members hold so much."""
    members = frozenset(reader.archive_file.get_all_records())
    entries = content.get("config") if isinstance(content, dict) else None
    if not isinstance(entries, dict):
        raise InputError(f"{path}: {name} lists no tensors; save the program again with torch.export.save")
    for key, entry in entries.items():
        where = f"{path}: {name}: tensor {key[:80]!r}"
        meta = entry.get("tensor_meta") if isinstance(entry, dict) else None
        if not isinstance(meta, dict):
            raise InputError(f"{where} has no description; save the program again with torch.export.save")
        sizes = [_plain_size(s, where) for s in _list(meta, "sizes", where)]
        for stride in _list(meta, "strides", where):
            _plain_size(stride, where)
        _plain_size(meta.get("storage_offset"), where)
        member = f"{name.rpartition('/')[0]}/{entry.get('path_name')}"
        held = reader.archive_file.get_record_size(member) if member in members else 0
        if math.prod(sizes) > max(held, _EXPANDED if held else 0):
            raise InputError(
                f"{where} has {math.prod(sizes)} elements, and its member {held} bytes; it is damaged"
            )


def _list(meta: dict[str, Any], key: str, where: str) -> list[Any]:
    found = meta.get(key)
    if not isinstance(found, list):
        raise InputError(f"{where} has no {key}; save the program again with torch.export.save")
    return found


def _plain_size(size: Any, where: str) -> int:
    number = size.get("as_int") if isinstance(size, dict) else None
    if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < 1 << 62:
        raise InputError(f"{where} has the size {str(size)[:80]}; expected a number that is not negative")
    return number


def _vet_samples(data: bytes, where: str) -> None:
    if not data:
        return
    try:
        # the loading starts with this same call, and unpickles without limits only if it fails
        torch.load(io.BytesIO(data), weights_only=True)
    except (
        pickle.UnpicklingError,
        RuntimeError,
        ValueError,
        EOFError,
        KeyError,
        TypeError,
        AttributeError,
    ) as error:
        raise InputError(
            f"{where}: the example inputs are more than tensors, and could run code when they are loaded; "
            "set example_inputs to None and save the program again"
        ) from error


def _vet_model(content: Any, where: str) -> None:
    expressions: set[str] = set()
    operators: set[str] = set()
    for key, value in _entries(content):
        if key == "expr_str":
            expressions.add(str(value))
        elif key in ("target", "as_operator"):
            operators.add(str(value))
        elif key in ("in_spec", "out_spec"):
            _vet_tree(value, where)
        elif key == "guards_code":
            _vet_guards(value, where)
    for text in sorted(expressions):
        _vet_expression(text, where)
    for name in sorted(operators):
        _vet_operator(name, where)


def _vet_tree(text: Any, where: str) -> None:
    """Refuse descriptions of nested inputs that import modules (enumerations, factories of dictionaries)."""
    stack = [text]
    while stack:
        match stack.pop():
            case str() as inner if inner[:1] in ("[", "{"):
                stack.append(_json(inner.encode(), f"{where}: nesting of inputs"))
            case list() as items:
                stack.extend(items)
            case dict() as entries:
                if entries.keys() & {"__enum__", "default_factory_module"}:
                    raise InputError(
                        f"{where}: the nesting of its inputs names a Python object; pass plain containers"
                    )
                stack.extend(entries.values())


def _vet_guards(guards: Any, where: str) -> None:
    for guard in guards if isinstance(guards, list) else [guards]:
        if not isinstance(guard, str) or len(guard) > _LONGEST_EXPRESSION or _GUARD_TOKEN.sub("", guard):
            raise InputError(f"{where}: the guard {str(guard)[:60]!r} is no comparison of sizes")


def _vet_expression(text: str, where: str) -> None:
    refusal = InputError(f"{where}: {text[:60]!r} is no size expression")
    if len(text) > _LONGEST_EXPRESSION:
        raise refusal
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise refusal from error
    if not _plain(tree.body):
        raise refusal


def _plain(node: ast.expr) -> bool:
    """Whether evaluating an expression can do nothing but arithmetic on named sizes."""
    match node:
        case ast.Constant(value=value):
            # sympy parses strings again
            return _WORD.fullmatch(value) is not None if isinstance(value, str) else _number(value)
        case ast.Name(id=name):
            return not name.startswith("_")
        case ast.UnaryOp(op=ast.USub() | ast.UAdd(), operand=operand):
            return _plain(operand)
        case ast.BinOp(
            left=left, op=ast.Add() | ast.Sub() | ast.Mult() | ast.Div() | ast.FloorDiv() | ast.Mod()
        ):
            return _plain(left) and _plain(node.right)
        case ast.BinOp(left=left, op=ast.Pow(), right=right):
            return _plain(left) and _small(right)
        case ast.Compare(left=left, comparators=others):
            return all(_plain(x) for x in (left, *others))
        case ast.Call(func=ast.Name(id=name), args=args, keywords=keywords) if name in _CALLS:
            powers = name in ("Pow", "PowByNatural", "FloatPow", "LShift")
            if powers and not (len(args) == 2 and _small(args[1])):
                return False
            known = (isinstance(k.value, ast.Constant) and isinstance(k.value.value, int) for k in keywords)
            return all(_plain(x) for x in args) and all(known)
        case _:
            return False


def _number(value: object) -> bool:
    return isinstance(value, float) or (isinstance(value, int) and abs(value) < 1 << 64)


def _small(node: ast.expr) -> bool:
    match node:
        case ast.Constant(value=int() | float() as number):
            return abs(number) <= _LARGEST_POWER
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return _small(operand)
        case ast.Call(func=ast.Name(id="Integer" | "Float"), args=[ast.Constant() | ast.UnaryOp() as number]):
            return _small(number)
        case _:
            return False


def _vet_operator(name: str, where: str) -> None:
    family, _, rest = name.rpartition(".")
    if family in _PYTHON and rest in _PYTHON[family]:
        return
    if family == "torch.ops.higher_order" and rest in _HIGHER_ORDER:
        return
    parts = name.split(".")
    if len(parts) != 5 or parts[:2] != ["torch", "ops"] or _UNSAFE_OPERATORS.match(name):
        raise InputError(f"{where}: calls {name[:80]!r}, which is no operator of PyTorch")
    found: Any = torch.ops
    for part in parts[2:]:
        try:
            found = getattr(found, part)
        except (AttributeError, RuntimeError) as error:
            raise InputError(
                f"{where}: calls {name[:80]!r}, which is not registered; first import what defines it"
            ) from error
    if not isinstance(found, torch._ops.OpOverload):
        raise InputError(f"{where}: calls {name[:80]!r}, which is no operator of PyTorch")

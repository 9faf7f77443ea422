"""``.pt2`` archives: vetted before torch sees them, written atomically.

`torch.export.load` evaluates the size expressions of an archive as Python and unpickles some of its
members, so everything that it would execute is checked against a grammar or an allow-list first.
"""

from __future__ import annotations

import ast
import io
import json
import os
import pickletools
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from rewriter.errors import InputError

if TYPE_CHECKING:
    from torch.export import ExportedProgram

__all__ = ["read_archive", "vet_archive", "write_archive"]

NOTES = "rewriter.json"
"""Name of the extra file that holds a program's metadata."""

LARGEST_TEXT = 512 << 20
"""Bytes of JSON or pickle that one member may unpack to."""

_EXPRESSIONS = frozenset({"expr_str", "as_expr_str"})
_FUNCTIONS = frozenset(
    "Symbol Integer Rational Float Add Mul Pow Mod Max Min Abs floor ceiling Eq Ne Le Lt Ge Gt And Or Not true false"
    " StrictLessThan LessThan StrictGreaterThan GreaterThan Equality Unequality Piecewise ExprCondPair Tuple"
    " FloorDiv ModularIndexing CleanDiv CeilDiv CeilToInt FloorToInt IntTrueDiv FloatTrueDiv PythonMod ToFloat"
    " TruncToInt TruncToFloat Identity Where PowByNatural FloatPow LShift RShift".split()
)
_TARGETS = ("torch.ops.", "_operator.", "operator.", "math.", "torch.sym_", "torch._sym_")
_GLOBALS = {
    "collections": {"OrderedDict"},
    "torch._utils": {"_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_parameter"},
    "torch.nn.parameter": {"Parameter"},
    "torch._tensor": {"_rebuild_from_type_v2"},
    "torch.storage": {"UntypedStorage", "TypedStorage", "_load_from_bytes"},
    "torch.serialization": {"_get_layout"},
    "_codecs": {"encode"},
}
_GLOBALS["torch.storage"].discard("_load_from_bytes")  # it unpickles again


def read_archive(path: str | os.PathLike[str]) -> tuple[ExportedProgram, dict[str, str]]:
    """Return the program in an archive and its notes.

    Raises
    ------
    InputError
        If the file is not an archive of `torch.export.save`, or holds something that is not plain data.
    """
    import torch

    vet_archive(path)
    extra = {NOTES: ""}
    try:
        exported = torch.export.load(path, extra_files=extra)
    except Exception as error:  # noqa: BLE001  torch raises many kinds on an archive whose parts disagree
        first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise InputError(f"{path}: torch cannot load the archive: {first.strip()}") from error
    notes = json.loads(extra[NOTES]) if extra[NOTES] else {}
    return exported, {str(k): str(v) for k, v in notes.items()}


def vet_archive(path: str | os.PathLike[str]) -> None:
    """Raise `InputError` unless loading the archive would execute nothing but plain data."""
    if not Path(path).is_file():
        raise InputError(f"{path}: no such file")
    try:
        with zipfile.ZipFile(path) as archive:
            if broken := archive.testzip():
                raise InputError(f"{path}: member {broken} is damaged")
            _vet(archive, str(path))
    except (zipfile.BadZipFile, EOFError, OSError, RuntimeError, NotImplementedError) as error:
        raise InputError(f"{path}: not a .pt2 archive ({error}); expected a file of torch.export.save") from error


def _vet(archive: zipfile.ZipFile, path: str) -> None:
    names = [i.filename for i in archive.infolist()]
    for name in names:
        parts = PurePosixPath(name).parts
        if name.startswith(("/", "\\")) or ".." in parts or "\\" in name:
            raise InputError(f"{path}: member {name!r} points out of the archive")
    if not any(PurePosixPath(n).match("models/*.json") for n in names):
        raise InputError(f"{path}: holds no exported program (models/*.json); expected a file of torch.export.save")
    for info in archive.infolist():
        kind = PurePosixPath(info.filename)
        if kind.suffix == ".json":
            _vet_json(_text(archive, info, path), f"{path}: {info.filename}")
        elif kind.suffix in (".pt", ".pkl", ".pth"):
            _vet_pickle(_text(archive, info, path), f"{path}: {info.filename}")


def _text(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: str) -> bytes:
    if info.file_size > LARGEST_TEXT:
        raise InputError(f"{path}: member {info.filename} claims {info.file_size} bytes, more than {LARGEST_TEXT}")
    return archive.read(info)


def _vet_json(data: bytes, where: str) -> None:
    try:
        content = json.loads(data) if data else None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} is not JSON: {error}") from error
    for key, value in _entries(content):
        if key in _EXPRESSIONS and isinstance(value, str):
            _vet_expression(value, where)
        elif key == "use_pickle" and value:
            raise InputError(f"{where}: weights are pickled; save the program again with a current PyTorch")
        elif key == "target" and isinstance(value, str) and "." in value and not value.startswith(_TARGETS):
            raise InputError(f"{where}: calls {value!r}, which is no PyTorch operator")


def _entries(content: Any) -> Iterator[tuple[str, Any]]:
    stack = [content]
    while stack:
        at = stack.pop()
        if isinstance(at, dict):
            yield from at.items()
            stack.extend(at.values())
        elif isinstance(at, list):
            stack.extend(at)


def _vet_expression(text: str, where: str) -> None:
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise InputError(f"{where}: {text[:60]!r} is not a size expression") from error
    allowed = (
        ast.Expression, ast.Call, ast.Name, ast.Load, ast.Constant, ast.keyword, ast.BinOp, ast.UnaryOp, ast.operator,
        ast.unaryop, ast.Compare, ast.cmpop, ast.Tuple,
    )  # fmt: skip
    for node in ast.walk(tree):
        plain = isinstance(node, allowed) and not (isinstance(node, ast.operator) and isinstance(node, ast.Pow))
        if isinstance(node, ast.Call):
            plain = isinstance(node.func, ast.Name) and node.func.id in _FUNCTIONS
        if isinstance(node, ast.Name) and node.id.startswith("_"):
            plain = False
        if not plain:
            raise InputError(f"{where}: {text[:60]!r} is not a size expression")


def _vet_pickle(data: bytes, where: str) -> None:
    if not data:
        return
    if data[:2] == b"PK":
        with zipfile.ZipFile(io.BytesIO(data)) as inner:
            for info in inner.infolist():
                if info.filename.endswith(".pkl"):
                    _vet_pickle(_text(inner, info, where), where)
        return
    for module, name in _globals(data, where):
        known = name in _GLOBALS.get(module, ())
        storage = module == "torch" and (name.endswith("Storage") or name.islower() or name == "Size")
        if not known and not (storage and "_" not in name[:1]):
            raise InputError(f"{where}: its pickle calls {module}.{name}; only tensors are loaded")


def _globals(data: bytes, where: str) -> Iterator[tuple[str, str]]:
    """Yield every global that a pickle imports; a name that is computed is refused."""
    strings: list[str] = []
    memo: dict[int, str] = {}
    try:
        for opcode, arg, _ in pickletools.genops(data):
            if opcode.name in ("GLOBAL", "INST"):
                module, _, name = str(arg).partition(" ")
                yield module, name
            elif opcode.name == "STACK_GLOBAL":
                if len(strings) < 2:
                    raise InputError(f"{where}: its pickle computes what it calls")
                yield strings[-2], strings[-1]
            elif "UNICODE" in opcode.name or opcode.name in ("STRING", "BINSTRING", "SHORT_BINSTRING"):
                strings.append(str(arg))
            elif opcode.name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
                memo[len(memo) if arg is None else int(arg)] = strings[-1] if strings else ""
            elif opcode.name in ("GET", "BINGET", "LONG_BINGET"):
                strings.append(memo.get(int(arg), ""))
            elif opcode.name in ("EXT1", "EXT2", "EXT4"):
                raise InputError(f"{where}: its pickle uses the extension registry")
    except (ValueError, IndexError, UnicodeDecodeError) as error:
        raise InputError(f"{where} is not a pickle: {error}") from error


def write_archive(exported: ExportedProgram, path: str | os.PathLike[str], notes: Mapping[str, str]) -> None:
    """Write an archive: complete, or not there.

    Raises
    ------
    InputError
        If the file cannot be written.
    """
    import torch

    target = Path(path)
    if target.suffix != ".pt2":
        raise InputError(f"{path}: a traced program is saved as .pt2")
    try:
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.stem}.", suffix=".pt2")
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror})") from error
    os.close(handle)
    try:
        torch.export.save(exported, name, extra_files={NOTES: json.dumps(dict(notes), sort_keys=True)})
        os.replace(name, target)
    except (OSError, RuntimeError) as error:
        raise InputError(f"{path}: cannot be written ({error})") from error
    finally:
        Path(name).unlink(missing_ok=True)

"""A text file as inputs of a model: tokens of lines or of pieces of one length.

``text:FILE:tokenizer=tokenizer.json,length=512,limit=8``; what each setting means is in `SETTINGS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from rewriter.algebra.sizes import Size
from rewriter.errors import InputError
from rewriter.program.graph import Value
from rewriter.program.program import Program
from rewriter.program.regular import read_text
from rewriter.verify.binding import numpy_dtype
from rewriter.verify.callables import find_callable, is_callable_name
from rewriter.verify.inputs import index_bounds, is_position, mask_inputs, plain_input
from rewriter.verify.metrics import is_floating
from rewriter.verify.specs import Spec

__all__ = ["SETTINGS", "text_inputs"]

SETTINGS = {
    "tokenizer": "a tokenizer.json, a directory with one, bytes, or module:callable that returns a tokenizer",
    "split": "pieces: the whole text in pieces of `length` tokens; lines: every line that is not empty",
    "length": "tokens of a piece, and the most of a line; by default what the model declares, or 512",
    "batch": "how many stand side by side, padded on the right where the model has a mask; by default 1",
    "limit": "how many pieces or lines",
    "input": "the input that takes the tokens, if there are several",
}
"""What each setting means."""

LENGTH = 512

Ids = list[int]


def text_inputs(spec: Spec, program: Program) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """Yield a text as inputs of a program, by name.

    Masks are 1 at tokens and 0 at padding, positions count from 0, other inputs that are looked up in a table
    are 0.

    Raises
    ------
    InputError
        When the file or the tokenizer cannot be read, a token is not in the model's table, or an input cannot
        be made of text.
    """
    spec.check(SETTINGS)
    tokens = _token_input(spec, program)
    encode = _tokenizer(spec)
    fixed_batch, fixed_length = _declared(tokens)
    batch = spec.number("batch", fixed_batch or 1) or 1
    length = spec.number("length", fixed_length or LENGTH) or LENGTH
    rows = islice(_rows(spec, encode, length), spec.number("limit"))
    for at, group in enumerate(_groups(rows, batch)):
        if fixed_batch is not None and len(group) != fixed_batch:
            return
        width = fixed_length or max(map(len, group))
        yield f"{spec.path.name}[{at}]", _inputs(spec, program, tokens, group, width)


def _rows(spec: Spec, encode: Callable[[str], Ids], length: int) -> Iterator[Ids]:
    text = read_text(spec.path, "a text")
    if spec.choice("split", ("pieces", "lines"), "pieces") == "lines":
        rows = (encode(line)[:length] for line in text.splitlines() if line.strip())
        yield from (row for row in rows if row)
        return
    ids = encode(text)
    # a shorter rest is a piece only if there is no other
    yield from (ids[at : at + length] for at in range(0, max(1, len(ids) - length + 1), length) if ids)


def _groups(rows: Iterator[Ids], size: int) -> Iterator[list[Ids]]:
    while group := list(islice(rows, size)):
        yield group


def _tokenizer(spec: Spec) -> Callable[[str], Ids]:
    name = spec.options.get("tokenizer")
    if not name:
        raise spec.error(f"say which tokenizer: tokenizer={SETTINGS['tokenizer']}")
    if name == "bytes":
        return lambda text: list(text.encode())
    path = Path(name)
    if path.exists():
        tokenizer: Any = _from_file(spec, path / "tokenizer.json" if path.is_dir() else path)
    elif is_callable_name(name):
        tokenizer = find_callable(name, "tokenizer")()
    else:
        raise spec.error(f"tokenizer={name}: no such file; expected {SETTINGS['tokenizer']}")
    call = getattr(tokenizer, "encode", tokenizer)

    def encode(text: str) -> Ids:
        try:
            found = call(text)
            return [int(i) for i in getattr(found, "ids", found)]
        except Exception as error:  # a tokenizer raises what it likes
            raise spec.error(f"the tokenizer failed: {type(error).__name__}: {error}") from error

    return encode


def _from_file(spec: Spec, path: Path) -> Any:
    try:
        import tokenizers
    except ImportError:
        raise spec.error("tokenizer.json is read with tokenizers: pip install tokenizers") from None
    text = read_text(path, "a tokenizer.json")
    try:
        tokenizer = tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # the library raises nothing narrower
        raise spec.error(f"{path} is no readable tokenizer ({error})") from error
    # a file may say that texts are cut and padded: pieces and batches do that here
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _token_input(spec: Spec, program: Program) -> Value:
    values = {name: program.graph.values[name] for name in program.graph.inputs}
    wanted = spec.options.get("input")
    if wanted is not None and wanted in values:
        return values[wanted]
    bounds = index_bounds(program)
    whole = [v for v in values.values() if v.dtype is not None and not is_floating(numpy_dtype(v.dtype))]
    candidates = [v for v in whole if v.name in bounds and not is_position(v.name)] or whole
    # types and positions are looked up in small tables, tokens in the largest
    best = max((bounds.get(v.name, 0) for v in candidates), default=0)
    found = [v for v in candidates if bounds.get(v.name, 0) == best]
    if wanted is not None or len(found) != 1:
        raise spec.error(f"which input takes the tokens? The model has {', '.join(values)}; say input=NAME")
    return found[0]


def _declared(tokens: Value) -> tuple[int | None, int | None]:
    """Return the fixed batch and length of the tokens, None where they are dynamic."""
    sizes = [size.known() for size in tokens.shape or ()]
    if len(sizes) == 1:
        return 1, sizes[0]
    return (sizes[0], sizes[-1]) if len(sizes) == 2 else (None, None)


def _inputs(
    spec: Spec, program: Program, tokens: Value, group: Sequence[Ids], width: int
) -> dict[str, np.ndarray]:
    bounds, masks = index_bounds(program), mask_inputs(program)
    entries = bounds.get(tokens.name)
    most = max(max(row) for row in group)
    if entries is not None and most >= entries:
        raise spec.error(f"token {most} is not in the table of the model, which has {entries} entries")
    ids = np.zeros((len(group), width), numpy_dtype(tokens.dtype or "int64"))
    seen = np.zeros((len(group), width), bool)
    for row, numbers in enumerate(group):
        ids[row, : len(numbers)] = numbers[:width]
        seen[row, : len(numbers)] = True
    if not seen.all() and not masks:
        raise spec.error("texts of different lengths must be padded, and the model has no mask: use batch=1")
    arrays = {tokens.name: ids if len(tokens.shape or (0, 0)) == 2 else ids[0]}
    sizes = _sizes(tokens, arrays[tokens.name])
    for name in program.graph.inputs:
        if name != tokens.name:
            arrays[name] = _beside(spec, program, name, sizes, seen, bounds.keys())
    return arrays


def _sizes(tokens: Value, ids: np.ndarray) -> dict[str, int]:
    """Return the numbers of the named dimensions of the tokens."""
    pairs = zip(tokens.shape or (), ids.shape, strict=False)
    return {name: number for size, number in pairs for name in size.symbols if Size.symbol(name) == size}


def _beside(
    spec: Spec,
    program: Program,
    name: str,
    sizes: dict[str, int],
    seen: np.ndarray,
    looked_up: Any,
) -> np.ndarray:
    value = program.graph.values[name]
    if value.dtype is None or is_floating(numpy_dtype(value.dtype)):
        raise spec.error(f"input {name} cannot be made of text; give inputs by module:callable")
    try:
        plain = plain_input(program, name, sizes)
    except (KeyError, ValueError, InputError) as error:
        raise spec.error(f"input {name} has a dimension that the tokens do not decide: {error}") from error
    if name in mask_inputs(program) and plain.size == seen.size:
        return seen.reshape(plain.shape).astype(plain.dtype)
    return np.zeros_like(plain) if name in looked_up and not is_position(name) else plain

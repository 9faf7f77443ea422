from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rewriter.errors import InputError
from rewriter.verify.data import data_cases
from rewriter.verify.specs import parse_spec

IDS = ("ids", ("b", "n"), "int64")
MASK = ("attention_mask", ("b", "n"), "int64")
TYPES = ("token_type_ids", ("b", "n"), "int64")
POSITIONS = ("position_ids", ("b", "n"), "int64")
TABLES = {"ids": 256, "token_type_ids": 2, "position_ids": 512}


def program(numpy_program: Any, *inputs: Any) -> Any:
    inputs = inputs or (IDS,)
    tables = {name: rows for name, rows in TABLES.items() if name in [i[0] for i in inputs]}
    return numpy_program(lambda *xs: xs[:1], list(inputs), [("y", ("b", "n"), "int64")], tables=tables)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "t.txt"
    path.write_text("abcd\n\nefg\nhéllo wörld\n", encoding="utf-8")
    return path


def rows(program: Any, spec: str) -> list[dict[str, np.ndarray]]:
    return [dict(case.inputs) for case in data_cases(spec, program)]


def test_pieces(numpy_program: Any, text: Path) -> None:
    found = rows(program(numpy_program), f"text:{text}:tokenizer=bytes,length=5")
    whole = list(text.read_bytes())
    assert [list(r["ids"][0]) for r in found] == [whole[k : k + 5] for k in range(0, len(whole) - 4, 5)]
    (one,) = rows(program(numpy_program), f"text:{text}:tokenizer=bytes")
    assert list(one["ids"][0]) == whole and one["ids"].dtype == np.int64
    assert len(rows(program(numpy_program), f"text:{text}:tokenizer=bytes,length=5,limit=2")) == 2


def test_lines_in_batches_are_padded_and_masked(numpy_program: Any, text: Path) -> None:
    model = program(numpy_program, IDS, MASK, TYPES, POSITIONS)
    lines = [line for line in text.read_text(encoding="utf-8").splitlines() if line]
    single = rows(model, f"text:{text}:tokenizer=bytes,split=lines")
    assert [bytes(r["ids"][0].tolist()).decode() for r in single] == lines
    assert all((r["attention_mask"] == 1).all() for r in single)
    first, second = rows(model, f"text:{text}:tokenizer=bytes,split=lines,batch=2,length=6")
    assert first["ids"].tolist() == [[97, 98, 99, 100], [101, 102, 103, 0]]
    assert first["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]
    assert first["token_type_ids"].tolist() == [[0] * 4] * 2
    assert first["position_ids"].tolist() == [[0, 1, 2, 3]] * 2
    assert second["ids"].shape == (1, 6)


def test_fixed_shapes(numpy_program: Any, text: Path) -> None:
    ids, mask = ("ids", (2, 5), "int64"), ("attention_mask", (2, 1, 1, 5), "bool")
    found = rows(program(numpy_program, ids, mask), f"text:{text}:tokenizer=bytes,split=lines")
    (only,) = found  # the third line alone makes no batch of two
    assert only["ids"].tolist()[1] == [101, 102, 103, 0, 0]
    assert only["attention_mask"][1, 0, 0].tolist() == [True, True, True, False, False]
    flat = program(numpy_program, ("ids", (4,), "int32"))
    assert [r["ids"].shape for r in rows(flat, f"text:{text}:tokenizer=bytes,limit=3")] == [(4,)] * 3


def test_tokenizers(numpy_program: Any, text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    monkeypatch.chdir(text.parent)
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({"abcd": 7, "efg": 9, "?": 1}, unk_token="?")
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    folder = text.parent / "folder"
    folder.mkdir()
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=9)
    tokenizer.save(str(folder / "tokenizer.json"))
    Path("tokens_of_a_test.py").write_text(
        "class T:\n    def encode(self, text): return [len(w) for w in text.split()]\n"
        "def make(): return T()\ndef function(): return T().encode\n"
        "def broken(): return lambda text: 1 / 0\ndef words(): return str.split\n"
    )
    for path in (folder, folder / "tokenizer.json"):
        assert rows(program(numpy_program), f"text:{text}:tokenizer={path}")[0]["ids"].tolist() == [
            [7, 9, 1, 1]
        ]
    for name in ("make", "function"):
        found = rows(program(numpy_program), f"text:{text}:tokenizer=tokens_of_a_test:{name},length=3")
        assert found[0]["ids"].tolist() == [[4, 3, 5]]
    for name, complaint in [
        ("broken", "ZeroDivisionError"),
        ("words", "ValueError"),
        ("none", "no callable"),
    ]:
        with pytest.raises(InputError, match=complaint):
            rows(program(numpy_program), f"text:{text}:tokenizer=tokens_of_a_test:{name}")
    (folder / "tokenizer.json").write_text('{"model": 3}')
    with pytest.raises(InputError, match="is no readable tokenizer"):
        rows(program(numpy_program), f"text:{text}:tokenizer={folder}")


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ("", "say which tokenizer: tokenizer=a tokenizer.json"),
        (":tokenizer=nothing", "tokenizer=nothing: no such file"),
        (":tokenizer=bytes,length=0", "length=0 is not a positive"),
        (":tokenizer=bytes,length=x", "length=x is not a positive"),
        (":tokenizer=bytes,split=words", "split=words: expected pieces or lines"),
        (":tokenizer=bytes,size=3", "there is no setting 'size' of text"),
        (":tokenizer=bytes,input=x", "which input takes the tokens.* ids; say input=NAME"),
        (":tokenizer=bytes,batch=2,split=lines", "the model has no mask: use batch=1"),
    ],
)
def test_says_what_is_wrong(numpy_program: Any, text: Path, settings: str, complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        rows(program(numpy_program), f"text:{text}{settings}")


def test_models_that_text_does_not_fit(numpy_program: Any, text: Path) -> None:
    spec = f"text:{text}:tokenizer=bytes"
    small = numpy_program(lambda x: (x,), [IDS], [("y", ("b", "n"), "int64")], tables={"ids": 100})
    with pytest.raises(InputError, match="token 195 is not in the table of the model, which has 100 entries"):
        rows(small, spec)
    with pytest.raises(InputError, match="input image cannot be made of text"):
        rows(program(numpy_program, IDS, ("image", ("b", 3), "float32")), spec)
    with pytest.raises(InputError, match="input past has a dimension that the tokens do not decide"):
        rows(program(numpy_program, IDS, ("past", ("b", "m"), "int64")), spec)
    with pytest.raises(InputError, match="which input takes the tokens"):
        rows(numpy_program(lambda x: (x,), [("x", ("n",), "float32")], [("y", ("n",), "float32")]), spec)


def test_texts_that_are_none(numpy_program: Any, tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    for data, complaint in [(b"", "holds no inputs"), (b"\xff\xfe", "is not text")]:
        path.write_bytes(data)
        with pytest.raises(InputError, match=complaint):
            rows(program(numpy_program), f"text:{path}:tokenizer=bytes")
    with pytest.raises(InputError, match="is a directory; expected a text"):
        rows(program(numpy_program), f"text:{tmp_path}:tokenizer=bytes")
    with pytest.raises(InputError, match=r"a text is text:.*:tokenizer=…"):
        rows(program(numpy_program), str(path))


@pytest.mark.parametrize(
    ("line", "path", "options"),
    [
        ("text:a.txt", "a.txt", {}),
        ("text:a.txt:tokenizer=m:f,length=3", "a.txt", {"tokenizer": "m:f", "length": "3"}),
        ("text:a:b.txt:length=3", "a:b.txt", {"length": "3"}),
        ("text:a=b.txt:tokenizer=", "a=b.txt", {"tokenizer": ""}),
        ("images:/x/y z:mean=1/2/3", "/x/y z", {"mean": "1/2/3"}),
    ],
)
def test_lines(line: str, path: str, options: dict[str, str]) -> None:
    spec = parse_spec(line)
    assert spec is not None and (str(spec.path), dict(spec.options)) == (path, options)


@pytest.mark.parametrize("line", ["a.npz", "texts:a", "text", "text:", "module:callable", ""])
def test_lines_of_another_kind(line: str) -> None:
    assert parse_spec(line) is None

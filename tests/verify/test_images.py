from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rewriter.errors import InputError
from rewriter.verify.data import data_cases
from rewriter.verify.images import SETTINGS
from rewriter.verify.specs import parse_spec

PIL = pytest.importorskip("PIL.Image")

PLAIN = "mean=0,std=1"


def program(numpy_program: Any, shape: tuple[Any, ...] = ("n", 3, "h", "w")) -> Any:
    return numpy_program(lambda x: (x,), [("pixels", shape, "float32")], [("y", shape, "float32")])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A wide image whose columns are 0, 1, 2, … in red, and a grey one; a file that is no image by name."""
    wide = np.zeros((10, 20, 3), np.uint8)
    wide[..., 0] = np.arange(20)
    wide[..., 2] = 255
    PIL.fromarray(wide).save(tmp_path / "a.png")
    PIL.fromarray(np.full((4, 4), 51, np.uint8)).save(tmp_path / "b.PNG")
    (tmp_path / "notes.txt").write_text("no image")
    return tmp_path


def cases(numpy_program: Any, spec: str, *shape: Any) -> list[np.ndarray]:
    found = data_cases(spec, program(numpy_program, *([shape] if shape else [])))
    return [case.inputs["pixels"] for case in found]


def test_values_are_those_of_the_file(numpy_program: Any, folder: Path) -> None:
    first, second = cases(numpy_program, f"images:{folder}:{PLAIN}")
    assert first.shape == (1, 3, 10, 20) and first.dtype == np.float32
    np.testing.assert_allclose(first[0, 0, 0], np.arange(20) / 255, rtol=1e-6)
    assert (first[0, 1] == 0).all() and (first[0, 2] == 1).all()
    np.testing.assert_allclose(second, np.full((1, 3, 4, 4), 0.2), rtol=1e-6)


def test_mean_std_range_and_colours(numpy_program: Any, folder: Path) -> None:
    (x, _) = cases(numpy_program, f"images:{folder}:mean=0.5/0/1,std=0.25/1/2")
    np.testing.assert_allclose(x[0, :, 0, 0], [-2.0, 0.0, 0.0], atol=1e-6)
    (x, _) = cases(numpy_program, f"images:{folder}:mean=5,std=10,range=255")
    np.testing.assert_allclose(x[0, :, 0, 3], [-0.2, -0.5, 25.0], atol=1e-5)
    (x, _) = cases(numpy_program, f"images:{folder}:{PLAIN},colour=bgr")
    assert x[0, 0, 0, 0] == 1.0 and x[0, 2, 0, 0] == 0.0
    (x, _) = cases(numpy_program, f"images:{folder}:mean=0.2,std=1,colour=grey", "n", 1, "h", "w")
    assert x.shape == (1, 1, 10, 20)
    (_, x) = cases(numpy_program, f"images:{folder}:{PLAIN},layout=nhwc", "n", "h", "w", 3)
    assert x.shape == (1, 4, 4, 3)


@pytest.mark.parametrize(
    ("settings", "shape", "expected"),
    [
        ("size=10", (), (10, 10)),
        ("size=10x15", (), (10, 15)),
        ("size=5x20,fit=stretch", (), (5, 20)),
        ("size=7", (), (7, 7)),
        ("size=40x3", (), (40, 3)),
        ("limit=9", ("n", 3, 6, 8), (6, 8)),
        ("limit=9", ("n", 6, 8, 3), (6, 8)),
    ],
)
def test_sizes(
    numpy_program: Any, folder: Path, settings: str, shape: Any, expected: tuple[int, int]
) -> None:
    for x in cases(numpy_program, f"images:{folder}:{PLAIN},{settings}", *shape):
        assert (x.shape[1:3] if shape[3:] == (3,) else x.shape[2:]) == expected


def test_the_middle_is_cut_out(numpy_program: Any, folder: Path) -> None:
    (x, _) = cases(numpy_program, f"images:{folder}:{PLAIN},size=10")
    np.testing.assert_allclose(x[0, 0, 0] * 255, np.arange(5, 15), atol=0.01)


def test_a_callable_prepares(numpy_program: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    Path("preparing_of_a_test.py").write_text(
        "import numpy as np\n"
        "def ones(image): return np.ones((1, 3, image.height, 2), 'float32')\n"
        "def named(image): return {'pixels': ones(image) * 2}\n"
        "def broken(image): raise ZeroDivisionError('no')\n"
    )
    assert [
        x.shape[2] for x in cases(numpy_program, f"images:{folder}:prepare=preparing_of_a_test:ones")
    ] == [10, 4]
    assert cases(numpy_program, f"images:{folder}:prepare=preparing_of_a_test:named,limit=1")[0].max() == 2.0
    for settings, complaint in [
        ("prepare=preparing_of_a_test:broken", "prepare failed: ZeroDivisionError: no"),
        ("prepare=preparing_of_a_test:ones,size=3", "expected module:callable"),
        ("prepare=3", "expected module:callable"),
    ]:
        with pytest.raises(InputError, match=complaint):
            cases(numpy_program, f"images:{folder}:{settings}")


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ("", "mean and std of the training must be stated"),
        (":size=4,std=1", "mean of the training must be stated"),
        (":mean=0,std=0", "std=0 cannot be divided by"),
        (":mean=a,std=1", "mean=a: expected a number, or one per channel"),
        (":mean=1/2,std=1", "mean=1/2: expected 1 or 3 finite numbers"),
        (":mean=nan,std=1", "finite"),
        (f":{PLAIN},size=0", "size=0: expected N or HEIGHTxWIDTH"),
        (f":{PLAIN},size=3x4x5", "expected N or HEIGHTxWIDTH"),
        (f":{PLAIN},size=99999999999", "expected N or HEIGHTxWIDTH"),
        (f":{PLAIN},limit=-1", "limit=-1 is not a positive whole number"),
        (f":{PLAIN},fit=squash", "fit=squash: expected crop or stretch"),
        (f":{PLAIN},colour=cmyk", "expected rgb or bgr or grey"),
        (f":{PLAIN},shear=3", "there is no setting 'shear' of images; they are size, mean"),
        (f":{PLAIN},mean=2", "a setting is given twice"),
        (f":{PLAIN},input=x", "which input is the image.* pixels; say input=NAME"),
    ],
)
def test_says_what_is_wrong(numpy_program: Any, folder: Path, settings: str, complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        cases(numpy_program, f"images:{folder}{settings}")


def test_files_that_are_no_images(numpy_program: Any, tmp_path: Path, folder: Path) -> None:
    with pytest.raises(InputError, match=r"is a directory of images: .* images:.*:size=224"):
        cases(numpy_program, str(folder))
    whole = (folder / "a.png").read_bytes()
    for data in (b"", b"text", whole[:40], whole[:-30], whole[:30] + bytes(9) + whole[39:]):
        (folder / "a.png").write_bytes(data)
        with pytest.raises(InputError, match=r"a\.png is no readable image"):
            cases(numpy_program, f"images:{folder}:{PLAIN}")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(InputError, match="holds no images"):
        cases(numpy_program, f"images:{empty}:{PLAIN}")
    with pytest.raises(InputError, match="is no directory"):
        cases(numpy_program, f"images:{empty}x:{PLAIN}")


def test_an_image_that_unpacks_to_more_than_memory_is_refused(numpy_program: Any, tmp_path: Path) -> None:
    PIL.new("1", (20000, 20000)).save(tmp_path / "bomb.png")
    with pytest.raises(InputError, match=r"bomb\.png"):
        cases(numpy_program, f"images:{tmp_path}:{PLAIN}")


def test_every_setting_is_said() -> None:
    spec = parse_spec("images:d:" + ",".join(f"{name}=1" for name in SETTINGS))
    assert spec is not None and set(spec.options) == set(SETTINGS)

"""The page in a real browser: nothing sticks out at the width of a phone, and dark is dark."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from rewriter.report.validation_page import validation_page
from tests.report.records import HOSTILE, drawing, full_report

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")

WIDTH = 390


def _chromium(*arguments: str) -> str:
    assert BROWSER is not None
    base = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    done = subprocess.run(
        [BROWSER, *base, *arguments], capture_output=True, text=True, timeout=300, check=True
    )
    return done.stdout


def _picture(folder: Path, text: str, *arguments: str) -> np.ndarray:
    image = pytest.importorskip("PIL.Image")
    (folder / "page.html").write_text(text, encoding="utf-8")
    shot = folder / "shot.png"
    _chromium(*arguments, f"--screenshot={shot}", (folder / "page.html").as_uri())
    return np.asarray(image.open(shot).convert("RGB")).astype(int)


@pytest.mark.parametrize("name", ["models/dino.onnx", HOSTILE, "a" * 300], ids=["plain", "hostile", "long"])
def test_nothing_sticks_out_on_a_phone(tmp_path: Path, name: str) -> None:
    # a frame of the phone's width; the page around it asks how wide the contents want to be
    page = validation_page(full_report(name=name), [drawing(name)])
    (tmp_path / "page.html").write_text(page, encoding="utf-8")
    (tmp_path / "frame.html").write_text(
        f'<iframe src="page.html" width="{WIDTH}" height="800" style="border:0"></iframe>'
        "<script>onload = () => { const d = document.querySelector('iframe').contentDocument;"
        " document.title = d.documentElement.scrollWidth + ' ' + d.images.length"
        " + ' ' + d.documentElement.clientWidth; }</script>",
        encoding="utf-8",
    )
    dom = _chromium(
        "--allow-file-access-from-files",
        "--virtual-time-budget=5000",
        "--dump-dom",
        (tmp_path / "frame.html").as_uri(),
    )
    wide, images, seen = (int(x) for x in dom.partition("<title>")[2].partition("</title>")[0].split())
    assert (wide, seen) == (WIDTH, WIDTH)
    assert images == 16


def test_follows_the_reader_into_the_dark(tmp_path: Path) -> None:
    page = validation_page(full_report())
    light = _picture(tmp_path, page, "--window-size=800,600")
    dark = _picture(tmp_path, page, "--window-size=800,600", "--blink-settings=preferredColorScheme=0")
    assert light.mean() > 220 and dark.mean() < 60


def test_pictures_are_drawn(tmp_path: Path) -> None:
    whole = _picture(tmp_path, validation_page(full_report(), [drawing()]), "--window-size=1200,5400")
    blue = (whole[..., 2] - whole[..., 0]) > 60
    assert blue.sum() > 20_000  # maps, bars and lines are all in the accent's colour

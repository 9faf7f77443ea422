"""One case of the fuzzer: files in a folder of their own, commands, and what they did wrong."""

from __future__ import annotations

import random
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.fuzz.judge import PAGE, page_problems, problems, snapshot
from tests.fuzz.kinds import KINDS, Command, Maker
from tests.fuzz.worker import Ended, call

__all__ = ["Trial", "kind_of", "tried", "tried_seed"]


@dataclass(frozen=True)
class Trial:
    """What became of a case.

    Parameters
    ----------
    name
        Kind and number: ``onnx-fields 17``, or the name of a case made by hand.
    problems
        A sentence for everything that a command did wrong, the command first.
    ended
        Every command and how it ended.
    """

    name: str
    problems: tuple[str, ...]
    ended: tuple[tuple[Command, Ended], ...] = field(repr=False)


def kind_of(seed: int) -> str:
    """Return the kind of a numbered case."""
    rng = random.Random(f"kind {seed}")
    return rng.choices(list(KINDS), [weight for _, weight in KINDS.values()])[0]


def tried_seed(seed: int, kind: str | None = None, keep: Path | None = None) -> Trial:
    """Try a numbered case; see `tried`."""
    name = kind or kind_of(seed)
    return tried(f"{name} {seed}", KINDS[name][0], False, keep)


def tried(name: str, make: Maker, refused: bool = False, keep: Path | None = None) -> Trial:
    """Write the files of a case, run its commands, and judge them.

    Parameters
    ----------
    make
        Writes the files and returns the commands.
    refused
        Whether every command must refuse them.
    keep
        Where to copy the files to if there are problems.
    """
    with TemporaryDirectory(prefix="fuzz-") as place:
        folder, scratch = Path(place) / "case", Path(place) / "said"
        folder.mkdir()
        scratch.mkdir()
        found, ended = [], []
        for arguments in make(random.Random(name), folder):
            before = snapshot(folder)
            end = call(arguments, folder, scratch)
            after = snapshot(folder)
            ended.append((arguments, end))
            wrong = problems(arguments, end, before, after, refused)
            if (folder / PAGE).is_file():
                wrong += page_problems((folder / PAGE).read_text(encoding="utf-8"))
            found += [f"{' '.join(arguments)}: {p}" for p in wrong]
        if found and keep is not None:
            _copied(folder, keep / name.replace(" ", "-"))
    return Trial(name, tuple(found), tuple(ended))


def _copied(folder: Path, to: Path) -> None:
    """Copy the plain files of a case."""

    def special(place: str, names: list[str]) -> set[str]:
        paths = {name: Path(place) / name for name in names}
        return {n for n, p in paths.items() if p.is_symlink() or not (p.is_file() or p.is_dir())}

    shutil.copytree(folder, to, ignore=special, dirs_exist_ok=True)

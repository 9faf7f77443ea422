"""Arrays that were fitted for one site, read from a file."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from rewriter.errors import InputError
from rewriter.verify.npz import read_npz

__all__ = ["check_path", "read_arrays"]


def read_arrays(path: str, needed: Mapping[str, int], others: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Read a ``.npz`` file of floating-point arrays.

    Parameters
    ----------
    path
        Of the file.
    needed, others
        Names of arrays that must and may be there, with their numbers of axes.

    Raises
    ------
    ValueError
        With the reason, if it is no such file.
    """
    try:
        found = read_npz(path)
    except InputError as error:
        raise ValueError(f"weights {path}: not a readable .npz of plain arrays ({error})") from error
    known = {**needed, **others}
    if needed.keys() - found.keys() or found.keys() - known.keys():
        wanted = ", ".join([*needed, *(f"{name} if wanted" for name in others)])
        raise ValueError(f"weights {path}: expected {wanted}, found {', '.join(sorted(found)) or 'nothing'}")
    for name, array in found.items():
        if array.dtype.kind != "f" or array.ndim != known[name]:
            raise ValueError(
                f"weights {path}: {name} is {array.dtype} {list(array.shape)};"
                f" expected floating-point numbers on {known[name]} axes"
            )
    return found


def check_path(path: str | None) -> None:
    """Refuse a path that cannot be written among the settings of a form.

    Raises
    ------
    ValueError
        If it is empty or has a comma.
    """
    if path == "":
        raise ValueError("weights is ''; expected the path of a .npz file")
    if path is not None and "," in path:
        raise ValueError(f"weights is {path!r}; expected a path without a comma")

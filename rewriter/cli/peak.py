"""How much memory a model needs for one call, measured in a process of its own."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

__all__ = ["peak_of"]


def peak_of(model: str, inputs: Sequence[np.ndarray]) -> int | None:
    """Return how far a fresh process grows from when a model is loaded to the end of its first call.

    What the runtime copies or packs of the weights is a part of it. None where it is not known: the
    process was killed, the model could not be run, or the system keeps no peak.

    Parameters
    ----------
    model
        As on the command line.
    inputs
        In the order of its signature.
    """
    # a fork would inherit the threads and the memory of this process
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        try:
            return pool.submit(_measure, model, list(inputs)).result()
        except BrokenProcessPool:
            return None


def _measure(model: str, inputs: Sequence[np.ndarray]) -> int | None:
    import os
    import warnings

    from rewriter.cli.models import open_model
    from rewriter.errors import RewriterError
    from rewriter.verify.memory import growth
    from rewriter.verify.running import run_positional

    warnings.simplefilter("ignore")
    os.environ.setdefault("TQDM_DISABLE", "1")
    try:
        program = open_model(model)
        return growth(lambda: run_positional(program, inputs))
    except RewriterError:
        return None

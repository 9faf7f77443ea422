"""How a command ends: errors become one line and an exit status, never a traceback."""

from __future__ import annotations

import functools
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ParamSpec

import typer

from rewriter.cli.output import emit_error, emitted, fresh, say
from rewriter.errors import RewriterError

__all__ = ["DEBUG", "guarded", "resumable"]

DEBUG = "REWRITER_DEBUG"
"""Environment variable that shows tracebacks and the warnings of the runtimes."""

_TALKATIVE = ("onnx_ir", "torch", "torch.export", "torch.fx", "torch._subclasses", "transformers")
"""Libraries that log what is no news to the user."""

_LONGEST = 1000  # letters of an error: names in a file may have any length

P = ParamSpec("P")


def guarded(command: Callable[P, None]) -> Callable[P, None]:
    """Return a command that reports its errors: on standard error, and as JSON when it has ``json=True``."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        fresh()
        debug = bool(os.environ.get(DEBUG))
        if not debug:
            _silence()
        try:
            command(*args, **kwargs)
        except KeyboardInterrupt:
            say("interrupted", "yellow")
            raise typer.Exit(130) from None
        except (typer.Exit, typer.Abort, BrokenPipeError):
            raise
        # the last resort, too: a user's file found a way to break us, and is owed a sentence all the same
        except Exception as error:
            if debug:
                raise
            message, status = _ending(error)
            _report(message, bool(kwargs.get("json")))
            raise typer.Exit(status) from None

    return run


@contextmanager
def resumable(record: Path | None) -> Iterator[None]:
    """Say, where a run is interrupted, how to go on from what is recorded."""
    try:
        yield
    except KeyboardInterrupt:
        if record is not None and record.exists():
            say(f"what is finished is in {record}; the same command goes on from there", "yellow")
        raise


def _silence() -> None:
    """Let libraries say nothing: what matters is raised."""
    warnings.simplefilter("ignore")
    for library in _TALKATIVE:
        logging.getLogger(library).setLevel(logging.CRITICAL)
    # bars of libraries would mix with ours
    os.environ.setdefault("TQDM_DISABLE", "1")


def _ending(error: Exception) -> tuple[str, int]:
    """Return what is said of an error, and the exit status."""
    if isinstance(error, RewriterError):
        return str(error), error.exit_status
    first = (str(error).strip().splitlines() or [""])[0][:300]
    if isinstance(error, MemoryError):
        return f"not enough memory ({first or 'none is left'}); give smaller inputs", 2
    return f"unexpected {type(error).__name__}: {first}; a bug: set {DEBUG}=1 to see where", 2


def _report(message: str, json: bool) -> None:
    line = "".join(c if c.isprintable() else "?" for c in " ".join(message.split()))
    if len(line) > _LONGEST:
        line = f"{line[:_LONGEST]} …"
    say(f"error: {line}", "red")
    if json and not emitted():
        emit_error(line)

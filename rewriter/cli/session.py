"""How a command ends: errors become one line and an exit status, never a traceback."""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Callable
from typing import ParamSpec

import typer

from rewriter.cli.output import emit_error, emitted, fresh, say
from rewriter.errors import RewriterError

__all__ = ["DEBUG", "guarded"]

DEBUG = "REWRITER_DEBUG"
"""Environment variable that shows tracebacks and the warnings of the runtimes."""


P = ParamSpec("P")


def guarded(command: Callable[P, None]) -> Callable[P, None]:
    """Return a command that reports its errors: on standard error, and as JSON when it has ``json=True``."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        fresh()
        debug = bool(os.environ.get(DEBUG))
        if not debug:
            warnings.simplefilter("ignore")
            # bars of libraries would mix with ours
            os.environ.setdefault("TQDM_DISABLE", "1")
        try:
            command(*args, **kwargs)
        except RewriterError as error:
            if debug:
                raise
            _report(str(error), bool(kwargs.get("json")))
            raise typer.Exit(error.exit_status) from None
        except KeyboardInterrupt:
            say("interrupted", "yellow")
            raise typer.Exit(130) from None
        except (typer.Exit, typer.Abort, BrokenPipeError):
            raise
        # the last resort: a user's file found a way to break us, and is owed a sentence all the same
        except Exception as error:
            if debug:
                raise
            first = (str(error).strip().splitlines() or [""])[0]
            _report(
                f"unexpected {type(error).__name__}: {first[:300]}; a bug: set {DEBUG}=1 to see where",
                bool(kwargs.get("json")),
            )
            raise typer.Exit(2) from None

    return run


def _report(message: str, json: bool) -> None:
    line = " ".join(message.split())
    say(f"error: {line}", "red")
    if json and not emitted():
        emit_error(line)

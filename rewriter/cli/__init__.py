"""The command line. Nothing here imports a runtime before a command needs it."""

from __future__ import annotations

__all__ = ["main"]


def main() -> None:
    """Run the command line; exits with 0 (fine), 1 (a gate failed) or 2 (bad usage or input)."""
    from rewriter.cli.app import run
    from rewriter.cli.truncation import report_truncation

    report_truncation()
    run()

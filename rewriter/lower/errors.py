"""What an emitter raises when a target cannot spell a computation."""

from __future__ import annotations

from rewriter.errors import RewriterError

__all__ = ["EmitError"]


class EmitError(RewriterError):
    """A computation cannot be written for this target: the site it is for is refused, with this sentence."""

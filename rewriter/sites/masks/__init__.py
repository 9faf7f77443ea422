"""What is proved of a mask: by comparing positions, or by evaluating it in full when it is known."""

from __future__ import annotations

from rewriter.sites.masks.analysis import Mask, analyse

__all__ = ["Mask", "analyse"]

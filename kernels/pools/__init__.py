"""Means and maxima of a map, or means of its rows and columns, in one pass: ``torch.ops.rewriter.pools``."""

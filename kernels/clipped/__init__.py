"""Clipped softmax: weights that are stretched and cut off, so that a head can give exact zeros."""

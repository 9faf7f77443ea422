"""Exact softmax attention by the best fused operator of the target."""

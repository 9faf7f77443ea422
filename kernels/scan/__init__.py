"""Sums over the keys before each query, which may fade: what causal linear attention consists of."""

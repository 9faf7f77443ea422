"""Attention without a softmax: its two products in the order that costs least."""

"""Sliding windows in one and two dimensions, with first tokens that stay connected to everything."""

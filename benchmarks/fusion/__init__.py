"""Measures what fusion templates cost before and after: `python -m benchmarks.fusion`."""

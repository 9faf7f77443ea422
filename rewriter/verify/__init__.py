"""Proof: probes, metrics, budgets, the noise floor, and the comparison of whole programs."""

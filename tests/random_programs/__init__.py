"""Random attention and near-attention: a grammar, what each program is expected to be, and a judge.

    python -m tests.random_programs --count 10000 --seed 0

A case is a number and, for a shrunk one, the decisions that are fixed: ``case(17, noise_q="none").report()``.
"""

from __future__ import annotations

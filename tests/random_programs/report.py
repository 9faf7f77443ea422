"""A failing case as Python that reproduces it."""

from __future__ import annotations

from tests.random_programs.case import Case
from tests.random_programs.judge import judged

__all__ = ["snippet"]


def snippet(failing: Case) -> str:
    """Return Python that makes and judges a case, and its program as comments."""
    problems = [f"# {line}" for p in judged(failing).problems for line in p.splitlines()]
    program = [f"#   {line}" for line in str(failing.program).splitlines()]
    code = [
        "from tests.random_programs.case import case",
        "from tests.random_programs.judge import judged",
        f"assert judged({failing}).ok",
    ]
    return "\n".join([*problems, *program, *code]) + "\n"

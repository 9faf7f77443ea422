from __future__ import annotations

from rewriter.report.docstrings import outline, parameter_docs, sections


class Documented:
    """First line.

    A paragraph over
    two lines, with ``code``.

    Applies when
        it is soft, and
        also warm.
    Refuses when
        it is not.

    Parameters
    ----------
    window
        How far.

        More of it.
    sinks, grid : int
        Shared.

    Examples
    --------
    ``rewriter demo``
    """


def test_sections() -> None:
    found = sections(Documented)
    assert list(found) == ["", "Parameters", "Examples"]
    assert found[""].startswith("First line.")
    assert found["Examples"] == "rewriter demo"
    assert sections(object())[""]  # the type's own docstring


def test_parameters() -> None:
    assert parameter_docs(Documented) == {
        "window": "How far. More of it.",
        "sinks": "Shared.",
        "grid": "Shared.",
    }


def test_outline() -> None:
    assert outline(sections(Documented)[""]) == [
        "First line.",
        "A paragraph over two lines, with code.",
        ("Applies when", "it is soft, and also warm."),
        ("Refuses when", "it is not."),
    ]
